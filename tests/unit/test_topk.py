"""Exact top K against a brute-force oracle: items, order and scores to the last bit."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.errors import InputError
from mmrec.topk import exact, graph, native
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import select


def search(*given, **named):
    """By every way that this machine has; all give the same to the last bit."""
    found = [exact.search(*given, **named, way=way) for way in (*exact.WAYS, None)]
    for other in found[1:]:
        same(other, (found[0].item, found[0].score, found[0].dropped_users, found[0].dropped_items))
    return found[0]


def oracle(user, item, k, seen=None, allowed=None):
    """One pair at a time: fp64 products added in column order, rounded once; then sort."""
    user, item = np.asarray(user, np.float32), np.asarray(item, np.float32)
    out_item = np.full((len(user), k), -1, np.int32)
    out_score = np.full((len(user), k), -np.inf, np.float32)
    ok_user, ok_item = np.isfinite(user).all(1), np.isfinite(item).all(1)
    total = np.zeros((len(user), len(item)))
    with np.errstate(all="ignore"):
        for d in range(user.shape[1]):
            total += user[:, d, None].astype(np.float64) * item[None, :, d].astype(np.float64)
        score = total.astype(np.float32)
    for b in np.flatnonzero(ok_user):
        gone = set() if seen is None else set(seen[1][seen[0][b] : seen[0][b + 1]].tolist())
        pool = [i for i in range(len(item)) if ok_item[i] and i not in gone and (allowed is None or allowed[i])]
        for place, i in enumerate(sorted(pool, key=lambda i: (-score[b, i], i))[:k]):
            out_item[b, place], out_score[b, place] = i, score[b, i]
    return out_item, out_score, int((~ok_user).sum()), int((~ok_item).sum())


def same(got, want):
    assert got.item.dtype == np.int32
    assert got.score.dtype == np.float32
    np.testing.assert_array_equal(got.item, want[0])
    np.testing.assert_array_equal(got.score, want[1])
    assert (got.dropped_users, got.dropped_items) == want[2:]


def csr(rows):
    return np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64), np.array(
        [i for r in rows for i in r], np.int32
    )


def world(seed, b=37, n=900, d=24):
    rng = np.random.default_rng(seed)
    user, item = rng.standard_normal((b, d)).astype(np.float32), rng.standard_normal((n, d)).astype(np.float32)
    seen = csr([rng.integers(0, n, rng.integers(0, 60)).tolist() for _ in range(b)])  # unsorted, with repeats
    return user, item, seen, rng.random(n) > 0.2


@pytest.mark.parametrize(
    ("block", "tile", "threads"), [(1, 1, 1), (5, 7, 1), (16, 100, 2), (1000, 5000, 2), (37, 900, 1)]
)
def test_result_is_the_oracles_whatever_the_blocks_and_threads(block, tile, threads):
    user, item, seen, allowed = world(0)
    got = search(user, item, 10, seen=seen, allowed=allowed, block=block, tile=tile, threads=threads)
    same(got, oracle(user, item, 10, seen, allowed))


def test_near_ties_that_fp32_sees_in_the_wrong_order():
    # cancellation: fp32 sums are off by more than the gap between neighbours
    rng = np.random.default_rng(1)
    d, n = 64, 3000
    item = np.repeat(rng.standard_normal((1, d)) * 1000, n, 0)
    item += rng.standard_normal((n, d)) * 1e-4
    user = rng.standard_normal((8, d))
    user -= (user @ item[0])[:, None] * item[0] / (item[0] @ item[0])
    user, item = user.astype(np.float32), item.astype(np.float32)
    want = oracle(user, item, 20)
    naive = np.argsort(-(user @ item.T), axis=1, kind="stable")[:, :20]
    assert (np.sort(naive, 1) != np.sort(want[0], 1)).any(1).all(), "fp32 alone must choose other items"
    same(search(user, item, 20, tile=256), want)


def test_ties_go_to_the_smaller_index():
    rng = np.random.default_rng(2)
    item = np.repeat(rng.integers(-2, 3, (40, 6)), 50, axis=0)[rng.permutation(2000)].astype(np.float32)
    user = rng.integers(-2, 3, (20, 6)).astype(np.float32)
    same(search(user, item, 30, tile=111), oracle(user, item, 30))


@pytest.mark.parametrize("d", [1, 5])
def test_everything_equal_lists_the_first_indices(d):
    user, item = np.ones((3, d), np.float32), np.full((5000, d), 0.1, np.float32)
    got = search(user, item, 4, seen=csr([[0, 2], [], [1]]), tile=64)
    np.testing.assert_array_equal(got.item, [[1, 3, 4, 5], [0, 1, 2, 3], [0, 2, 3, 4]])
    same(got, oracle(user, item, 4, csr([[0, 2], [], [1]])))


def test_one_column_with_many_ties_as_popularity_has():
    rng = np.random.default_rng(3)
    item = rng.integers(0, 4, (4000, 1)).astype(np.float32) / 7
    user = np.array([[1], [-1], [0], [0.3]], np.float32)
    same(search(user, item, 900, tile=500), oracle(user, item, 900))


def test_not_finite_vectors_disturb_nobody():
    user, item, seen, allowed = world(4)
    clean = search(user, item, 10, seen=seen, allowed=allowed)
    bad_user, bad_item = np.vstack([user, user[:2]]), np.vstack([item, item[:3]])
    bad_user[-1, 3], bad_user[-2, 0] = np.nan, np.inf
    bad_item[-1, 1], bad_item[-2, 2], bad_item[-3] = np.nan, -np.inf, np.nan
    seen = np.append(seen[0], [seen[0][-1]] * 2), seen[1]
    got = search(bad_user, bad_item, 10, seen=seen, allowed=np.append(allowed, [True] * 3))
    np.testing.assert_array_equal(got.item[:-2], clean.item)
    np.testing.assert_array_equal(got.score[:-2], clean.score)
    assert (got.item[-2:] == -1).all()
    assert (got.dropped_users, got.dropped_items) == (2, 3)


def test_more_places_than_items_and_a_user_who_has_seen_everything():
    user, item, *_ = world(5, b=3, n=12)
    seen = csr([[], list(range(12)), [3]])
    got = search(user, item, 17, seen=seen)
    same(got, oracle(user, item, 17, seen))
    assert (got.item[0, :12] >= 0).all()
    assert (got.item[0, 12:] == -1).all()
    assert (got.item[1] == -1).all()
    assert np.isneginf(got.score[1]).all()
    assert (got.item[2] >= 0).sum() == 11


@pytest.mark.parametrize("scale", [1e-44, 1e-23, 1e-20, 1e15, 3e18, 3e37])
def test_vectors_at_the_ends_of_the_range(scale):
    rng = np.random.default_rng(6)
    user = (rng.standard_normal((5, 8)) * scale).astype(np.float32)
    item = (rng.standard_normal((4000, 8)) * scale).astype(np.float32)
    same(search(user, item, 10, tile=64), oracle(user, item, 10))


def test_what_underflow_loses_is_within_the_bound():
    # products of 6e-46 vanish in fp32 one by one, but not their sum of 4e-44: the last items win
    user, item = np.full((2, 64), 1e-23, np.float32), np.zeros((4000, 64), np.float32)
    item[:10, 0], item[-5:] = 1e-22, 6e-23
    want = oracle(user, item, 10)
    assert want[0][0].tolist() == [3995, 3996, 3997, 3998, 3999, 0, 1, 2, 3, 4]
    same(search(user, item, 10, tile=64), want)


def test_nothing_to_rank():
    for b, n in ((0, 5), (5, 0), (0, 0)):
        got = search(np.zeros((b, 3)), np.zeros((n, 3)), 4)
        assert got.item.shape == got.score.shape == (b, 4)
        assert (got.item == -1).all()
    none_allowed = search(np.ones((2, 3)), np.ones((5, 3)), 4, allowed=np.zeros(5, bool))
    assert (none_allowed.item == -1).all()
    assert (none_allowed.dropped_users, none_allowed.dropped_items) == (0, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 60), st.integers(1, 4), st.integers(1, 12))
def test_any_small_world(seed, block, n, d, k):
    rng = np.random.default_rng(seed)
    b = int(rng.integers(1, 9))
    special = np.array([0.0, -0.0, 1.0, -1.0, 1e-40, np.nan, 3e38, 0.1], np.float32)
    p = [0.2, 0.1, 0.2, 0.2, 0.1, 0.02, 0.03, 0.15]
    user, item = rng.choice(special, (b, d), p=p), rng.choice(special, (n, d), p=p)
    seen = csr([rng.integers(0, n, rng.integers(0, n)).tolist() for _ in range(b)])
    allowed = rng.random(n) > 0.3
    same(
        search(user, item, k, seen=seen, allowed=allowed, block=block, tile=block), oracle(user, item, k, seen, allowed)
    )


def test_select_agrees_with_search_and_isolates_what_is_not_finite():
    user, item, seen, allowed = world(7)
    want = search(user, item, 15, seen=seen, allowed=allowed)
    total = np.zeros((len(user), len(item)))
    for d in range(user.shape[1]):
        total += user[:, d, None].astype(np.float64) * item[:, d].astype(np.float64)
    score = total.astype(np.float32)
    got = select(score, 15, seen=seen, allowed=allowed)
    np.testing.assert_array_equal(got.item, want.item)
    np.testing.assert_array_equal(got.score, want.score)
    score[0, want.item[0, 0]] = np.nan
    score[1, want.item[1, 0]] = np.inf
    score[2] = -np.inf
    bad = select(score, 15, seen=seen, allowed=allowed)
    np.testing.assert_array_equal(bad.item[0, :14], want.item[0, 1:])
    np.testing.assert_array_equal(bad.item[1, :14], want.item[1, 1:])
    assert (bad.item[2] == -1).all()
    np.testing.assert_array_equal(bad.item[3:], want.item[3:])
    assert bad.dropped_users == 1
    assert bad.dropped_items == len({want.item[0, 0], want.item[1, 0]})


def test_select_breaks_ties_by_index_in_every_order_of_scores():
    for row in itertools.product([0.0, 1.0, 2.0], repeat=5):
        got = select(np.array([row]), 3)
        assert got.item[0].tolist() == sorted(range(5), key=lambda i: (-row[i], i))[:3]


@pytest.mark.parametrize(
    ("bad", "where"),
    [
        ({"k": 0}, "K"),
        ({"k": 2, "allowed": np.ones(3, bool)}, "Allowed"),
        ({"k": 2, "seen": csr([[9]])}, "Seen"),
        ({"k": 1, "block": 0}, "K"),
    ],
)
def test_a_wrong_request_is_refused(bad, where):
    with pytest.raises(InputError, match=where):
        search(np.ones((1, 2)), np.ones((5, 2)), **bad)


# the compiled kernel

compiled = pytest.mark.skipif("fp32" not in exact.WAYS, reason="no compiled kernel: no compiler, or another processor")


def passed(user, item, k, way):
    """Items that reached a floor, and scored in fp64, of a block without anything seen."""
    catalogue, b = Catalogue(item), len(user)
    panels = catalogue.int8 if way == "int8" else catalogue.fp32
    norm = np.linalg.norm(user.astype(np.float64), axis=1)
    margin = exact._margin(norm, catalogue.longest, user.shape[1])
    out = np.full((b, k), -1, np.int32), np.full((b, k), -np.inf, np.float32)
    told = native.search_block(panels, user, norm, margin, k, (np.zeros(b + 1, np.int64), np.zeros(0, np.int32)), 16, *out)
    same(exact.TopK(*out, 0, 0), oracle(user, item, k))
    return told


@compiled
@pytest.mark.parametrize("way", ["int8", "fp32"])
def test_few_items_pass_and_a_short_tail_is_not_looked_at(way):
    rng = np.random.default_rng(8)
    user, item = rng.standard_normal((12, 32)).astype(np.float32), rng.standard_normal((20_000, 32)).astype(np.float32)
    some = passed(user, item, 10, way)
    assert some[0] < 12 * 20_000 * 0.1
    assert some[1] < 12 * 40
    item[2_000:] *= 1e-4  # nothing of these can reach what is there already
    fewer = passed(user, item, 10, way)
    # a panel in 16 of these is looked at for the guess, and passes while there is no floor
    assert fewer[0] <= passed(user, item[:2_000], 10, way)[0] + 12 * 2 * native.PANEL


@compiled
@pytest.mark.parametrize("way", ["int8", "fp32"])
def test_a_wrong_guess_is_found_out_and_the_user_looked_at_again(way):
    rng = np.random.default_rng(14)
    n, b = 30_016, 20  # 469 panels: enough for a sample
    # of equal norms, so that places are rows; what is good lies in the panels that are looked at first
    item = np.where(rng.random((n, 16)) < 0.2, 1, -1).astype(np.float32)
    first = np.arange(n).reshape(-1, 64)[8::16].ravel()
    item[first[:60]] = np.where(rng.random((60, 16)) < 0.95, 1, -1)
    user = rng.uniform(0.5, 1.5, (b, 16)).astype(np.float32)
    told = passed(user, item, 100, way)
    assert told[1] >= b * (15 + 100)  # those above the guess, and later a list's


@compiled
def test_a_score_that_rounds_up_to_a_tie_is_not_lost_to_int8():
    # item 0 is as good as item 1 once rounded, and a little worse before: 1 comes first in the panels, by its norm
    item = np.zeros((500, 2), np.float32)
    item[0], item[1] = [1.0, -(2.0**-26)], [1.0, 2.0**-26]
    user = np.ones((7, 2), np.float32)
    got = search(user, item, 1)
    assert got.item.ravel().tolist() == [0] * 7
    same(got, oracle(user, item, 1))


def test_a_score_that_rounds_to_nothing_ties_with_zero_and_has_its_bytes():
    item = np.zeros((300, 2), np.float32)
    item[::3, 0], item[1::3, 0] = -(2.0**-100), 2.0**-100
    user = np.full((40, 2), 2.0**-100, np.float32)
    for way in (*exact.WAYS, None):
        got = exact.search(user, item, 9, way=way)
        assert got.item.tolist() == [list(range(9))] * 40
        assert got.score.tobytes() == np.zeros((40, 9), np.float32).tobytes()


@compiled
def test_the_way_depends_on_how_many_pass_and_lists_do_not():
    rng = np.random.default_rng(9)
    user = rng.standard_normal((300, 16)).astype(np.float32)
    plain = Catalogue(rng.standard_normal((9_000, 16)).astype(np.float32))
    same(exact.search(user, plain, 5), oracle(user, plain.item_ND, 5))
    assert plain.ways == {3: "int8"}
    probed = len(plain.ways)
    for k in (4, 6, 7):  # a few places more or less are not tried anew
        same(exact.search(user, plain, k), oracle(user, plain.item_ND, k))
    assert len(plain.ways) == probed
    # one column drowns the others: a step of int8 is wider than what tells items apart
    odd = rng.standard_normal((9_000, 16)).astype(np.float32)
    odd[:, 0] = 1e4
    drowned = Catalogue(odd)
    same(exact.search(user, drowned, 5), oracle(user, odd, 5))
    assert drowned.ways == {3: "fp32"}


@compiled
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 140), st.integers(1, 300))
def test_any_larger_world(seed, b, d, k):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 3_000))
    item = rng.standard_normal((n, d)) * rng.pareto(1.5, (n, 1)).clip(0, 50)
    user, item = rng.standard_normal((b, d)).astype(np.float32), item.astype(np.float32)
    if seed % 3 == 0:  # many ties
        user, item = np.rint(user), np.rint(item / 4)
    seen = csr([rng.integers(0, n, rng.integers(0, 80)).tolist() for _ in range(b)])
    allowed = rng.random(n) > 0.1
    same(search(user, item, k, seen=seen, allowed=allowed, block=17), oracle(user, item, k, seen, allowed))


@pytest.mark.parametrize(("b", "threads"), [(1, 1), (1, 4), (385, 1), (1024, 2), (8192, 2), (8192, 3), (767, 2)])
def test_blocks_are_of_a_size_that_ends_threads_together(b, threads):
    block = exact._even(b, threads)
    assert block % native.GROUP == 0
    assert block <= exact.BLOCK + native.GROUP
    turns = -(-b // block)
    assert turns <= threads * -(-b // (threads * exact.BLOCK))  # not more blocks than turns of all threads
    assert b - (turns - 1) * block > 0


def test_a_catalogue_is_made_once_and_serves_any_block():
    user, item, seen, allowed = world(10)
    made = Catalogue(item, allowed)
    whole = exact.search(user, item, 9, seen=seen, allowed=allowed)
    for way in (*exact.WAYS, None):
        found = [exact.search(user[u : u + 5], made, 9, seen=(seen[0][u : u + 6], seen[1]), way=way) for u in range(0, 37, 5)]
        np.testing.assert_array_equal(np.concatenate([f.item for f in found]), whole.item)
        np.testing.assert_array_equal(np.concatenate([f.score for f in found]), whole.score)


@compiled
def test_vectors_too_wide_for_sums_of_int8_go_another_way():
    wide = np.full((40, exact._WIDEST + 1), 1.0, np.float32)
    item = np.concatenate([wide[:2], wide[:1] * 2])
    assert exact.search(wide, item, 2).item.tolist() == [[2, 0]] * 40
    with pytest.raises(InputError, match="way") as caught:
        exact.search(wide, item, 2, way="int8")
    assert caught.value.valid == ("fp32", "portable", "graph")


def test_a_catalogue_has_its_own_items_on_offer():
    with pytest.raises(InputError, match="catalogue"):
        exact.search(np.ones((1, 2)), Catalogue(np.ones((5, 2))), 1, allowed=np.ones(5, bool))


def test_a_way_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="way") as caught:
        exact.search(np.ones((1, 2)), np.ones((5, 2)), 1, way="fp8")
    assert caught.value.valid == exact.WAYS


def test_without_the_library_the_portable_way_is_taken(monkeypatch):
    monkeypatch.setattr(exact, "WAYS", ("portable", "graph"))
    user, item, seen, allowed = world(11, b=100)
    monkeypatch.setattr(native, "search_block", lambda *_, **__: pytest.fail("it is not there"))
    same(exact.search(user, item, 9, seen=seen, allowed=allowed), oracle(user, item, 9, seen, allowed))


# on a device: the graph is the same on a processor


def test_a_catalogue_on_a_device_is_searched_there_or_not_at_all():
    user, item, seen, allowed = world(12)
    made = Catalogue(item, allowed, device="cuda")
    if _has_cuda():
        same(exact.search(user, made, 9, seen=seen), oracle(user, item, 9, seen, allowed))
    else:
        with pytest.raises(InputError, match="did not load"):
            exact.search(user, made, 9, seen=seen)
    assert not made.packed


def _has_cuda():
    try:
        graph.session(graph._graph(2), "cuda")
    except InputError:
        return False
    return True


def proposed(user, item, k, seen=None):
    """Users that went the portable way, of a block."""
    user, item = np.asarray(user, np.float32), np.asarray(item, np.float32)
    ptr, idx = seen or (np.zeros(len(user) + 1, np.int64), np.zeros(0, np.int32))
    margin = exact._margin(np.linalg.norm(user.astype(np.float64), axis=1), np.linalg.norm(item, axis=1).max(), user.shape[1])
    out = np.full((len(user), k), -1, np.int32), np.full((len(user), k), -np.inf, np.float32)
    rest = graph.search_block(graph.Tiles(item, "cpu"), user, np.ones(len(user), bool), margin, ptr, idx, *out)
    same(exact.TopK(*out, 0, 0), oracle(user, item, k, seen))
    return rest


def test_proposals_of_tiles_are_taken_where_they_are_proven(monkeypatch):
    monkeypatch.setattr(graph, "_TILE", 512)
    rng = np.random.default_rng(13)
    user, item = rng.standard_normal((40, 16)), rng.standard_normal((2_000, 16))
    assert proposed(user, item, 10) == 0
    assert proposed(user, item, 600) == 0  # more than a tile has
    # so many equal the last that no proposal holds them all
    assert proposed(np.ones((5, 2)), np.ones((2_000, 2)), 10) == 5
    # one user has seen more than is proposed beyond K, all of it the best there is
    first = np.argsort(-(user[3] @ item.T))[:300]
    assert proposed(user, item, 10, csr([[] if u != 3 else sorted(first.tolist()) for u in range(40)])) <= 1


def test_of_what_tiles_propose_only_what_may_be_in_a_list_is_scored_again(monkeypatch):
    monkeypatch.setattr(graph, "_TILE", 512)
    counts = []
    finish = graph.portable.finish
    monkeypatch.setattr(graph.portable, "finish", lambda *given: (counts.extend(given[5]), finish(*given)))
    rng = np.random.default_rng(14)
    user, item = rng.standard_normal((40, 16)), rng.standard_normal((2_000, 16))
    assert proposed(user, item, 10) == 0
    seen = csr([sorted(np.argsort(-(u @ item.T))[:7].tolist()) for u in user])
    assert proposed(user, item, 10, seen) == 0
    assert len(counts) == 80
    assert min(counts) >= 10
    assert max(counts) <= 10 + 7 + 2


def test_blocks_on_a_device_go_side_by_side_to_the_same_lists():
    user, item, seen, allowed = world(15, b=70)
    made, whole = Catalogue(item, allowed), oracle(user, item, 9, seen, allowed)
    for threads in (1, 2, 9):
        same(exact.search(user, made, 9, seen=seen, way="graph", block=8, threads=threads), whole)
