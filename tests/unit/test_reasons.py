"""Contributions against answers that are known, shares, ties, words in every language, and rows that say nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from mmrec import schema
from mmrec.bundle.bundle import load, seal
from mmrec.config import ReasonsConfig
from mmrec.models.linear import history_weights
from mmrec.models.stored import Stored
from mmrec.recommend import contributions, reasons, words
from mmrec.recommend.contributions import Factors, Tower, Weights, latest_items
from mmrec.recommend.histories import Rows, rows_of
from mmrec.recommend.reasons import COLUMNS, Reasons
from mmrec.recommend.rules import of_records
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.score import known_weigher
from mmrec.recommend.scorers import Sums, Vectors
from mmrec.recommend.slate import Stamp, slates
from mmrec.topk.rerank import Rerank

STAMP = Stamp(date(2026, 3, 1), "run", "7")
RNG = np.random.default_rng
Row = dict[str, Any]


def users_of(histories: list[list[str]]) -> pa.Table:
    arrow = schema.table("gold.user_sequences").arrow
    values = {"user_id": [f"u{n}" for n in range(len(histories))], "item_ids": histories, "seen_item_ids": [sorted(set(h)) for h in histories],
              "attributes": ["{}"] * len(histories)}  # fmt: skip
    return pa.table({name: pa.array(column, arrow.field(name).type) for name, column in values.items()})


def items_of(n: int, categories: list[list[str] | None] | None = None) -> pa.Table:
    ids = [f"i{i:02}" for i in range(n)]
    return pa.table({"item_id": ids, "title": [f"T{i}" for i in range(n)], "popularity_micro": [0] * n, "attributes": ["{}"] * n,
                     "categories": pa.array(categories or [[]] * n, pa.list_(pa.string()))})  # fmt: skip


def tower(seed: int, n: int = 12, d: int = 3, r: int = 4, c: tuple[int, int] = (2, 3), **more: Any) -> Tower:
    """Random columns; half of the items stand elsewhere than where they are offered from, as weighed offers do."""
    g = RNG(seed)
    item_in = g.standard_normal((n, d + r + sum(c))).astype(np.float32)
    item_vec = g.standard_normal((n, d + r + sum(c) + 3)).astype(np.float32)
    plain: dict[str, Any] = {"tau": 4.0, "base": 0.3, "length": 50, "context": 8}
    return Tower(item_in, item_vec, d, r, (("image", c[0]), ("text", c[1])), **plain | more)


def user_of(t: Tower, history: list[int], sequence: np.ndarray) -> np.ndarray:
    """The user's half as the graph makes it, of a sequence part that is given."""
    last = history[-t.length :]
    weight_L = history_weights(t.length, tau=t.tau, base=t.base)[t.length - len(last) :]
    once = np.array([i not in last[n + 1 :] for n, i in enumerate(last)])
    w = weight_L * once
    side = t.item_in[last].astype(np.float64)
    end = t.sequence + t.linear
    linear = (w[:, None] * side[:, t.sequence : end]).sum(0) / np.sqrt(w.sum())
    content = (once[:, None] * side[:, end:]).sum(0) / np.sqrt(once.sum())
    return np.concatenate([sequence, [1], linear, [1], content, [1]]).astype(np.float32)


def weighed(t: Tower, history: list[int], user_V: np.ndarray, offered: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = Rows(np.array([0, len(history)]), np.array(history, np.int32))
    near, value, part = t.weigh(users_of([[]]), rows, Vectors(user_V[None], t.item_vec), np.array([offered]))
    return near[0], value[0], part[0]


def lists(users: pa.Table, items: pa.Table, v: Any, told: Reasons | None, k: int = 4, ruling: Ruling | None = None) -> list[Row]:
    made = slates(users, items, v, k, STAMP, {}, None, ruling, None, None, told)
    return pa.Table.from_batches(made, schema.table("gold.recommendations").arrow).to_pylist()


# contributions


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 11), min_size=2, max_size=70), st.integers(3, 60))
def test_of_the_linear_head_and_content_it_is_what_the_score_loses_without_the_item(seed: int, history: list[int], length: int) -> None:
    t = tower(seed, length=max(length, len(history)), base=0.05 if seed % 2 else 10.0)
    t.item_in[:, :3] = 0  # of the tower, nothing
    user_V = user_of(t, history, np.zeros(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contributions, "_HISTORY", 12)
        near, value_KH, part_KP = weighed(t, history, user_V, [0, 5, -1])
    assert near[near >= 0].tolist() == list(dict.fromkeys(history[::-1]))
    for k, item in enumerate((0, 5)):
        for h, gone in enumerate(near[near >= 0].tolist()):
            kept = [i for i in history if i != gone]
            if kept:
                lost = (user_V.astype(float) - user_of(t, kept, np.zeros(3))) @ t.item_vec[item]
                assert value_KH[k, h] == pytest.approx(lost, abs=1e-4)
        behaviour, image, text, rest = part_KP[k]
        assert behaviour == pytest.approx(float(user_V[4:8].astype(float) @ t.item_vec[item, 4:8]), abs=1e-4)
        assert image == pytest.approx(float(user_V[9:11].astype(float) @ t.item_vec[item, 9:11]), abs=1e-4)
        assert text == pytest.approx(float(user_V[11:14].astype(float) @ t.item_vec[item, 11:14]), abs=1e-4)
        assert rest == pytest.approx(float(t.item_vec[item, [3, 8, 14]].sum()), abs=1e-5)
    assert (value_KH[2] == 0).all()


def test_what_is_further_back_than_is_weighed_still_counts_in_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    t = tower(6, base=10.0, tau=0.1)  # hardly anything shifts
    t.item_in[:, :3] = 0
    history = list(range(1, 12))
    user_V = user_of(t, history, np.zeros(3))
    whole = weighed(t, history, user_V, [0])[1]
    monkeypatch.setattr(contributions, "_HISTORY", 4)
    near, value_KH, _ = weighed(t, history, user_V, [0])
    assert near.tolist() == [11, 10, 9, 8]
    np.testing.assert_allclose(value_KH[0], whole[0, :4], atol=1e-4)


def test_content_names_the_item_that_is_most_alike() -> None:
    t = replace(tower(1), item_in=np.zeros((12, 12), np.float32), item_vec=np.zeros((12, 15), np.float32))
    t.item_in[[1, 2, 3], 7:9] = [[1, 0], [0.6, 0.8], [0, 1]]
    t.item_vec[0, 9:11] = [2, 0]
    near, value_KH, part_KP = weighed(t, [1, 2, 3], user_of(t, [1, 2, 3], np.zeros(3)), [0])
    left = {1: 1.2, 2: 2.0, 3: 3.2}  # likeness to the others, doubled
    want = {i: 3.2 / np.sqrt(3) - x / np.sqrt(2) for i, x in left.items()}
    np.testing.assert_allclose(value_KH[0], [want[i] for i in near.tolist()], atol=1e-5)
    assert np.flatnonzero(part_KP[0]).tolist() == [1], "of pictures alone"


def test_the_tower_is_taken_for_a_mean_of_its_context() -> None:
    t = tower(2, r=1, c=(1, 1), context=3)
    t.item_in[:, 3:], t.item_vec[:, 3:] = 0, 0
    user_V = np.concatenate([[1.0, 2.0, 2.0], np.ones(6)]).astype(np.float32)
    near, value_KH, _ = weighed(t, [4, 3, 2, 1], user_V, [0])
    share = 1 / np.sqrt(1 + np.arange(3))
    share /= share.sum()
    side = t.item_in[[1, 2, 3], :3].astype(float)
    mean = share @ side
    want = 0.5 * 3 / np.linalg.norm(mean) * share / (1 - share) * ((side - mean) @ t.item_vec[0, :3].astype(float))
    assert near.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(value_KH[0], [*want, 0], rtol=1e-4, err_msg="what is behind the context adds nothing")


def test_of_one_item_all_is_its_own() -> None:
    t = tower(3)
    assert weighed(t, [7, 7], user_of(t, [7, 7], np.ones(3)), [0])[1].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("how", "say"), [
    (Rerank("stacking", 100, ((0, 4), (4, 9), (9, 15)), (2.0, 3.0, 0.0, 1.0, 1.0, 1.0)), [2, 3, 0]),
    (Rerank("vote", 100, ((0, 4), (4, 9), (9, 15))), None),
    (Rerank("ranks", 100, ((0, 4), (4, 9), (9, 15)), (1.0, 5.0, 2.0)), None),
])  # fmt: skip
def test_members_of_a_blend_that_re_ranks_count_by_their_weights(how: Rerank, say: list[float] | None) -> None:
    t, plain = tower(4, how=how), tower(4)
    user_V = user_of(plain, [1, 2, 3], np.ones(3))
    run = [float(user_V[a:b].astype(float) @ t.item_vec[0, a:b]) for a, b in how.members]
    found, _, part = weighed(t, [1, 2, 3], user_V, [0])
    assert found.tolist() == [3, 2, 1]
    if say is None:
        weights = how.weights or (1.0, 1.0, 1.0)
        say = [w / abs(r) for w, r in zip(weights, run, strict=True)]
    assert part.sum() == pytest.approx(sum(s * r for s, r in zip(say, run, strict=True)), rel=1e-4)


def test_a_bundle_of_before_columns_were_told_has_no_weigher() -> None:
    assert Tower.of({"blend": None}, np.zeros((1, 1)), np.zeros((1, 4))) is None


def stored(name: str, seed: int = 0, n: int = 9, f: int = 4) -> Stored:
    g = RNG(seed)
    arrays = {"item": g.standard_normal((n, f)).astype(np.float32), "history": g.standard_normal((n, f)).astype(np.float32),
              "bias": g.standard_normal(n).astype(np.float32), "mean": g.standard_normal(f) * 0.1}  # fmt: skip
    numbers = {"alpha": 6.0, "reg": 0.5, "mean_bias": 0.1}
    return Stored(name, [f"i{i:02}" for i in range(n)], arrays, numbers)


def test_what_a_history_adds_to_bpr_is_the_whole_score() -> None:
    s, items, history = stored("bpr"), items_of(9), [["i01", "i04", "i05", "i04"]]
    users = users_of(history)
    model = Vectors(s.users(s.histories(history)), s.item_MD)
    weigher = Factors(s, np.arange(9))
    found, value_BKH, part_BKP = weigher.weigh(users, rows_of(users["item_ids"], items["item_id"].combine_chunks()), model, np.array([[0, 7, -1]]))
    assert found.tolist() == [[4, 5, 1]]
    scores = weigher.scores(model, np.array([[0, 7]]), model)
    np.testing.assert_allclose(part_BKP[0, :2].sum(1), scores[0], rtol=1e-5)
    # the fold-in's steps end near its optimum, where this is exact
    np.testing.assert_allclose(value_BKH[0, :2].sum(1), part_BKP[0, :2, 0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["lightgcn", "als"])
def test_a_score_of_factors_loses_what_their_fold_in_would(name: str) -> None:
    s, items, history = stored(name), items_of(9), [["i01", "i04", "i05"], ["i04", "i05"]]
    users, user_UD = users_of(history), s.users(s.histories(history))
    rows = rows_of(users["item_ids"], items["item_id"].combine_chunks())
    _, value_BKH, _ = Factors(s, np.arange(9)).weigh(users, rows, Vectors(user_UD, s.item_MD), np.array([[0, 7], [-1, -1]]))
    np.testing.assert_allclose(value_BKH[0, :, 2], (user_UD[0] - user_UD[1]) @ s.item_MD[[0, 7]].T, atol=1e-5)


def sums(history: list[list[str]], n: int = 6) -> tuple[Sums, np.ndarray]:
    weight = np.zeros((n, n), np.float32)
    weight[1, 0], weight[2, 0], weight[3, 0], weight[3, 4] = 0.1, 0.4, 0.3, 0.2
    matrix = sparse.csr_matrix(weight)
    arrays = {"matrix.data": matrix.data, "matrix.indices": matrix.indices, "matrix.ptr": matrix.indptr}
    s = Stored("ease", [f"i{i:02}" for i in range(n)], arrays, {})
    return Sums(s, s.histories(history), np.array([f"u{i}" for i in range(len(history))], object), matrix, matrix.T.tocsr(), np.arange(n)), weight


def test_ease_adds_its_own_weights() -> None:
    histories = [["i01", "i02", "i03"], ["i03"], []]
    users, items = users_of(histories), items_of(6)
    model, _ = sums(histories)
    rows = lists(users, items, model, Reasons(items, "en", 10, Weights()))
    first = {r["user_id"]: r for r in rows if r["item_id"] == "i00"}
    assert (first["u0"]["because"], first["u0"]["because_share"]) == (["i02", "i03", "i01"], [0.5, 0.375, 0.125])
    assert first["u0"]["reason"] == "because of T2 and T3"
    assert (first["u1"]["because"], first["u1"]["because_share"], first["u1"]["reason"]) == (["i03"], [1.0], "because of T3")
    assert (first["u0"]["parts"], first["u0"]["parts_share"]) == (["behaviour"], [1.0])
    assert (first["u2"]["source"], first["u2"]["reason"], first["u2"]["because"], first["u2"]["parts"]) == ("fallback:popularity", "popular lately", None, None)


# shares


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.booleans())
def test_shares_fall_ties_go_by_item_and_parts_are_one(seed: int, h: int, whole: bool) -> None:
    g = RNG(seed)
    near_BH = g.permutation(20)[:h][None]
    value = g.integers(-2, 4, (1, 5, h)).astype(float) if whole else g.standard_normal((1, 5, h))
    value[0, 4, 0] = np.nan
    part = g.standard_normal((1, 5, 4))
    part[0, 1] = 0
    item, share, parts = reasons._account(np.array([[1, 2, 3, -1, 4]]), near_BH, value, part)
    for k in range(5):
        there = item[0, k] >= 0
        found = list(zip((-share[0, k][there]).tolist(), item[0, k][there].tolist(), strict=True))
        positive = {int(i): max(v, 0) for i, v in zip(near_BH[0], np.nan_to_num(value[0, k]), strict=True)} if k != 3 else {}
        total = sum(positive.values())
        want = sorted(((round(-v / total, 6), i) for i, v in positive.items() if v / total >= 0.0006), key=lambda x: x)[:3] if total else []
        assert [i for _, i in found] == [i for _, i in want] or not whole
        assert found == sorted(found) if whole else [s for s, _ in found] == sorted(s for s, _ in found)
        assert share[0, k].sum() <= 1.0015
        if k in (1, 3):
            assert np.isnan(parts[0, k]).all()
        else:
            assert parts[0, k].sum() == pytest.approx(1, abs=1e-12)
            np.testing.assert_allclose(parts[0, k], np.abs(part[0, k]) / np.abs(part[0, k]).sum(), atol=0.0021)


def night(rows: int = 2, language: str = "en", categories: list[list[str] | None] | None = None) -> tuple[pa.Table, pa.Table, Vectors, Reasons]:
    t = tower(5)
    histories = [["i01", "i02", "i03", "gone"], ["i04"], []]
    users, items = users_of(histories), items_of(12, categories)
    user_UV = np.stack([user_of(t, [1, 2, 3], np.ones(3)), user_of(t, [4], np.ones(3)), np.full(15, np.nan, np.float32)]).astype(np.float32)
    return users, items, Vectors(user_UV, t.item_vec), Reasons(items, language, rows, t)


def test_only_the_first_rows_have_numbers_and_only_of_the_model() -> None:
    users, items, v, told = night()
    rows = lists(users, items, v, told)
    for r in rows:
        has = r["source"] == "model" and r["rank"] <= 2
        assert [r[c] is not None for c in ("parts", "parts_share")] == [has, has]
        assert has or [r[c] for c in COLUMNS] == [None] * 4
        if has:
            assert sum(r["parts_share"]) == pytest.approx(1, abs=1e-9)
            assert r["parts_share"] == sorted(r["parts_share"], reverse=True)
            assert set(r["parts"]) <= {"behaviour", "image", "text", "popularity"}
            assert len(r["because"]) == len(r["because_share"])
            assert r["reason"].startswith(f"because of T{int(r['because'][0][1:])}")
        else:
            assert r["reason"].startswith("because of T" if r["source"] == "model" else "popular lately")
    assert [r["because"] for r in rows if r["user_id"] == "u1"][:2] == [["i04"], ["i04"]]


def test_without_a_weigher_or_a_key_there_are_no_numbers_and_words_stay() -> None:
    users, items, v, told = night()
    old = lists(users, items, v, None)
    assert all(r[c] is None for r in old for c in COLUMNS)
    assert old == lists(users, items, v, Reasons(items, "en", 10, None)) == lists(users, items, v, Reasons(items, "en", 0, told.weigher))
    assert [{c: x for c, x in r.items() if c not in (*COLUMNS, "reason")} for r in old] == [
        {c: x for c, x in r.items() if c not in (*COLUMNS, "reason")} for r in lists(users, items, v, told)]  # fmt: skip
    assert {r["reason"] for r in lists(users, items, None, told)} == {"popular lately"}


def test_rows_do_not_depend_on_companions(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, v, told = night(4)
    whole = lists(users, items, v, told)
    monkeypatch.setattr(reasons, "_USERS", 1)
    monkeypatch.setattr(contributions, "_FEW", 1)
    assert lists(users, items, v, told) == whole
    alone = lists(users.slice(1, 1), items, replace(v, user_UD=v.user_UD[1:2]), told)
    assert alone == [r for r in whole if r["user_id"] == "u1"]


def test_an_item_that_is_not_a_number_adds_nothing() -> None:
    users, items, v, told = night(4)
    told.weigher.item_in[2], told.weigher.item_vec[2] = np.nan, np.nan  # the same array as of `v`
    rows = lists(users, items, v, told)
    assert all("i02" not in (r["because"] or ()) and r["item_id"] != "i02" for r in rows if r["source"] == "model")
    assert any(r["because"] for r in rows)


# words


def test_every_language_has_the_same_templates_with_the_same_places() -> None:
    places = {language: {k: sorted(re.findall(r"{(.*?)}", text)) for k, text in each.items()} for language, each in words.TEMPLATES.items()}
    assert all(p == places["en"] for p in places.values())
    assert places["en"]["two"] == ["a", "b"]
    assert set(get_args(ReasonsConfig.model_fields["language"].annotation)) == set(words.TEMPLATES)
    for each in words.TEMPLATES.values():
        assert all(each.values())
        assert len(set(each.values())) == len(each)


def test_a_title_is_told_as_it_is() -> None:
    odd = pa.array(["{b} & %s", "ü"])
    assert words.said("de", "two", a=odd, b=odd).to_pylist() == ["wegen {b} & %s und {b} & %s", "wegen ü und ü"]


@pytest.mark.parametrize(("language", "shares", "categories", "want"), [
    ("en", [0.6, 0.4], [["G"]] * 12, "because of T1"),
    ("en", [0.5, 0.4], None, "because of T1 and T2"),
    ("en", [0.5, 0.4], [["G", "x"]] * 12, "because of T1 and T2: both are G"),
    ("en", [0.5, 0.4], [["H"], *[["G"]] * 11], "because of T1 and T2"),
    ("en", [0.5, 0.4], [["G"], ["G"], None, *[["G"]] * 9], "because of T1 and T2"),
    ("de", [0.5, 0.4], [["G"]] * 12, "wegen T1 und T2: beides G"),
    ("fr", [0.6, 0.1], None, "d'après T1"),
    ("nl", [0.5, 0.5], None, "vanwege T1 en T2"),
])  # fmt: skip
def test_a_sentence_names_two_that_are_comparable_and_what_all_share(language: str, shares: list[float], categories: Any, want: str) -> None:
    told = Reasons(items_of(12, categories), language, 10, tower(0))
    said = told._sentences(pa.array(["-"]), np.array([0]), np.array([[1, 2, -1]]), np.array([[*shares, 0.0]]))
    assert said.to_pylist() == [want]


def test_two_of_one_title_are_named_once() -> None:
    items = items_of(12)
    same = items.set_column(1, "title", pa.array([""] * 12))
    said = Reasons(same, "nl", 10, tower(0))._sentences(pa.array(["-"]), np.array([0]), np.array([[1, 2, -1]]), np.array([[0.5, 0.5, 0]]))
    assert said.to_pylist() == ["vanwege een eerdere keuze"]


def test_a_row_of_a_rule_says_so_in_the_language() -> None:
    users, items, v, told = night(4, "de")
    pin = of_records([{"name": "window", "kind": "pin", "items": {"item": ["i09"]}, "place": 1}])
    rows = lists(users, items, v, told, ruling=Ruling(pin, items))
    firsts = [r for r in rows if r["rank"] == 1]
    assert {(r["item_id"], r["reason"], r["because"], r["parts"]) for r in firsts} == {("i09", "vom Shop ausgewählt", None, None)}
    assert any(r["because"] for r in rows)


def test_the_latest_items_are_distinct_and_newest_first() -> None:
    assert latest_items(Rows(np.array([0, 4, 4]), np.array([1, 2, 1, 3], np.int32))).tolist() == [[3, 1, 2], [-1, -1, -1]]


def test_popularity_that_is_served_as_factors_has_no_history_to_weigh(tmp_path: Path) -> None:
    for name, want in (("popularity", type(None)), ("lightgcn", Factors)):
        folder = tmp_path / name
        stored(name).save(folder)
        seal(folder, {"kind": "factors", "encoders": {}})
        assert type(known_weigher(load(folder), items_of(9))) is want
