"""Finished lists against a naive oracle, the last look at them with every fault planted, and the scorer's vectors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, make_items, make_log

from mmrec import schema
from mmrec.bundle.bundle import load, seal
from mmrec.errors import QualityError
from mmrec.lake import commit
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.models.data import Fold, Items, Log
from mmrec.models.splits import per_user
from mmrec.ort import session
from mmrec.recommend import score, scorers, slate
from mmrec.recommend.check import check_slates
from mmrec.recommend.score import item_side, user_vectors
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.slate import FALLBACK, MODEL, Stamp, slates
from mmrec.schema import features_fingerprint
from mmrec.topk.exact import search
from mmrec.train.export import export
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES

STAMP = Stamp(date(2026, 3, 1), "run", "7")
Row = dict[str, Any]
Plant = Callable[[list[Row]], list[Row]]


def users_of(histories: list[list[str]], seen: list[list[str]] | None = None) -> pa.Table:
    arrow = schema.table("gold.user_sequences").arrow
    seen = seen or [sorted(set(h)) for h in histories]
    values = {"user_id": [f"u{n:03d}" for n in range(len(histories))], "item_ids": histories, "seen_item_ids": seen}
    values |= {name: [[each] * len(h) for h in histories]
               for name, each in (("event_types", "view"), ("gap_s", 86_400), ("weight_micro", 1_000_000))}  # fmt: skip
    return pa.table({name: pa.array(column, arrow.field(name).type) for name, column in values.items()})


def items_of(ids: list[str], popularity: list[int] | None = None, shas: list[str | None] | None = None) -> pa.Table:
    return pa.table({"item_id": ids, "title": [f"Title {i}" for i in ids], "popularity_micro": popularity or [0] * len(ids),
                     "text_sha256": pa.array(shas or [None] * len(ids), pa.string())})  # fmt: skip


def lists(
    users: pa.Table, items: pa.Table, v: Vectors | None, k: int, groups: np.ndarray | None = None
) -> tuple[list[Row], dict[str, int]]:
    counts: dict[str, int] = {}
    made = pa.Table.from_batches(slates(users, items, v, k, STAMP, counts, groups), schema.table("gold.recommendations").arrow)
    return made.to_pylist(), counts


def of(rows: list[Row], user: str, *columns: str) -> list[Any]:
    return [tuple(r[c] for c in columns) if columns else r for r in rows if r["user_id"] == user]


def naive(
    users: pa.Table, items: pa.Table, v: Vectors | None, k: int, groups: np.ndarray | None = None
) -> Iterator[tuple[str, int, str, float, str]]:
    """One user and one item at a time: down the model's whole ranking, then down popularity's, past what is there or has
    a twin there."""
    ids = items["item_id"].to_pylist()
    group = dict(zip(ids, ids if groups is None else groups.tolist(), strict=True))

    def ranked(scores: dict[str, np.float32]) -> list[tuple[str, np.float32]]:
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))

    popular = {r["item_id"]: np.float32(r["popularity_micro"] / 1e6) for r in items.to_pylist()}
    for n, user in enumerate(users.to_pylist()):
        may = [i for i in popular if i not in user["seen_item_ids"]]
        scores: dict[str, np.float32] = {}
        if v is not None and np.isfinite(v.user_UD[n]).all():
            for place, i in enumerate(popular):
                if i in may and np.isfinite(v.item_ND[place]).all():
                    total = 0.0
                    for a, b in zip(v.user_UD[n], v.item_ND[place], strict=True):
                        total += float(a) * float(b)
                    scores[i] = np.float32(total)
        walk = [(i, s, MODEL) for i, s in ranked(scores)]
        walk += [(i, s, MODEL if v is None else FALLBACK) for i, s in ranked({i: popular[i] for i in may})]
        have: set[Any] = set()
        for i, s, source in walk:
            if group[i] not in have and len(have) < k:
                have.add(group[i])
                yield user["user_id"], len(have), i, float(s), source


def world(seed: int, n_users: int, n_items: int) -> tuple[pa.Table, pa.Table, Vectors]:
    """Ties, users without a vector, items without one, histories with what is no longer on offer."""
    rng = np.random.default_rng(seed)
    ids = [f"i{n:03d}" for n in range(n_items)]
    histories = [rng.choice([*ids, "gone"], rng.integers(0, n_items + 2)).tolist() for _ in range(n_users)]
    user_UD = rng.integers(-2, 3, (n_users, 3)).astype(np.float32)
    item_ND = rng.integers(-2, 3, (n_items, 3)).astype(np.float32)
    user_UD[rng.random(n_users) < 0.2, 1], item_ND[rng.random(n_items) < 0.1, 0] = np.nan, np.inf
    # what was seen goes further back than the history that features keep
    seen = [sorted({*h, *(i for i in ids if rng.random() < 0.2)}) for h in histories]
    return users_of(histories, seen), items_of(ids, rng.integers(0, 4, n_items).tolist()), Vectors(user_UD, item_ND)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 24), st.integers(1, 17), st.integers(1, 5), st.booleans(), st.integers(0, 24))
def test_lists_are_the_oracles_whatever_the_blocks_and_threads(
    seed: int, n_users: int, n_items: int, k: int, block: int, model: bool, n_groups: int
) -> None:
    users, items, v = world(seed, n_users, n_items)
    found = v if model else None
    # from one group of all items to hardly any twins; none: nothing is known of groups
    groups = np.random.default_rng(seed).integers(0, n_groups, n_items) if n_groups else None
    whole, counts = lists(users, items, found, k, groups)
    got = [(r["user_id"], r["rank"], r["item_id"], r["score"], r["source"]) for r in whole]
    assert got == list(naive(users, items, found, k, groups))
    assert {(r["run_date"], r["arm"], r["model_version"], r["run_id"]) for r in whole} <= {(STAMP.run_date, "main", "7", "run")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slate, "_BLOCK", block)
        patch.setattr(slate, "_WRITTEN", 2)
        for module in (slate, scorers):
            patch.setattr(module, "search", partial(search, threads=2, block=1, tile=2))
        assert lists(users, items, found, k, groups) == (whole, counts)
    short = sum(len(of(whole, u)) < k for u in users["user_id"].to_pylist())
    lost = [int((~np.isfinite(x).all(1)).sum()) if model else 0 for x in (v.user_UD, v.item_ND)]
    filled = sum(r["source"] == FALLBACK for r in whole)
    assert counts == {"users": n_users, "rows": len(whole), "fallback_rows": filled, "dropped_users": lost[0],
                      "dropped_items": lost[1], "short_lists": short}  # fmt: skip


def test_more_places_than_items_give_every_unseen_item_once_and_nothing_to_who_has_seen_all() -> None:
    ids = list("abcdef")
    users = users_of([[], ["b"], ids, ["b", "gone"]])
    rows, counts = lists(users, items_of(ids), Vectors(np.ones((4, 1), np.float32), np.ones((6, 1), np.float32)), 6 + 5)
    got = [[r["item_id"] for r in of(rows, u)] for u in users["user_id"].to_pylist()]
    assert got == [ids, list("acdef"), [], list("acdef")]
    assert counts["short_lists"] == 4
    assert counts["fallback_rows"] == 0


def test_of_twins_the_best_ranked_is_offered_and_only_users_whom_more_places_do_not_fill_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n, k = 64, 4
    items, group = items_of([f"i{i:02}" for i in range(n)]), np.where(np.arange(n) < 40, 0, np.arange(n))
    # one likes the 40 that are one thing best, the other the rest
    v = Vectors(np.array([[-1.0], [1.0]]), np.arange(n, dtype=np.float32)[:, None])
    asked: list[tuple[int, int]] = []

    def counted(user_BD: np.ndarray, item_ND: np.ndarray, wide: int, **more: Any) -> Any:
        asked.append((len(user_BD), wide))
        return search(user_BD, item_ND, wide, **more)

    for module in (slate, scorers):
        monkeypatch.setattr(module, "search", counted)
    rows, counts = lists(users_of([["i01"], ["i63"]]), items, v, k, group)
    assert of(rows, "u000", "item_id") == [("i00",), ("i40",), ("i41",), ("i42",)]
    assert of(rows, "u001", "item_id") == [("i62",), ("i61",), ("i60",), ("i59",)]
    assert counts["short_lists"] == counts["fallback_rows"] == 0
    # one user is filled at once; popularity is not asked where nobody has an empty place
    assert asked == [(2, 5), (1, 10), (1, 20), (1, 40), (1, 43)]


def test_a_list_that_the_model_leaves_short_is_filled_with_none_of_its_kind() -> None:
    items, group = items_of(list("abcdef"), [60, 50, 40, 30, 20, 10]), np.array([0, 1, 2, 0, 1, 3])
    item_ND = np.array([[np.nan], [np.nan], [np.nan], [1], [np.nan], [np.nan]], np.float32)
    rows, _ = lists(users_of([[]]), items, Vectors(np.ones((1, 1)), item_ND), 5, group)
    assert of(rows, "u000", "item_id", "source") == [("d", MODEL), ("b", FALLBACK), ("c", FALLBACK), ("f", FALLBACK)]
    rows, _ = lists(users_of([["b"]]), items, None, 3, group)
    assert of(rows, "u000", "item_id") == [("a",), ("c",), ("e",)], "who has seen one of two may get the other"


def test_a_user_without_a_vector_gets_what_is_popular_says_so_and_disturbs_nobody() -> None:
    users, items = users_of([["a"], ["c"], []]), items_of(list("abcd"), [1, 5, 9, 5])
    item_ND = np.array([[1], [2], [3], [4]], np.float32)
    clean, _ = lists(users, items, Vectors(np.ones((3, 1), np.float32), item_ND), 2)
    rows, counts = lists(users, items, Vectors(np.array([[1], [np.nan], [1]], np.float32), item_ND), 2)
    assert [r for r in rows if r["user_id"] != "u001"] == [r for r in clean if r["user_id"] != "u001"]
    popular = (FALLBACK, "popular lately", np.float32(5e-6))
    assert of(rows, "u001", "item_id", "source", "reason", "score") == [("b", *popular), ("d", *popular)]
    assert counts["dropped_users"] == 1


def test_a_reason_names_the_watched_item_that_is_closest() -> None:
    ids = [f"i{n}" for n in range(8)]
    angle = np.linspace(0, 1, 8)
    item_ND = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32) * np.arange(1, 9)[:, None]
    rows, _ = lists(users_of([["i0", "gone", "i7"], []]), items_of(ids), Vectors(np.ones((2, 2)), item_ND), 8)
    said = {r["item_id"]: r["reason"] for r in of(rows, "u000")}
    # lengths differ eightfold and must not count
    assert said == {i: f"because of Title i{0 if n < 4 else 7}" for n, i in enumerate(ids) if n not in (0, 7)}
    assert {r["reason"] for r in of(rows, "u001")} == {"what newcomers like"}


def test_who_has_a_history_is_not_called_a_newcomer_when_the_latest_items_are_withdrawn() -> None:
    users = users_of([["a", *(f"gone{n}" for n in range(20))]])
    rows, _ = lists(users, items_of(["a", "b"]), Vectors(np.ones((1, 1)), np.ones((2, 1))), 2)
    assert of(rows, "u000", "item_id", "reason") == [("b", "because of Title a")]


def test_a_watched_item_without_a_vector_is_no_reason_for_anything() -> None:
    v = Vectors(np.ones((1, 2)), np.array([[1, 0], [np.nan, 0], [1, 0.1]]))
    rows, _ = lists(users_of([["a", "b"]]), items_of(list("abc")), v, 3)
    assert of(rows, "u000", "item_id", "reason") == [("c", "because of Title a")]


def plain_world() -> tuple[pa.Table, pa.Table, list[Row]]:
    users, items = users_of([["i0"], ["i1", "i2"]]), items_of([f"i{n}" for n in range(8)])
    return users, items, lists(users, items, Vectors(np.ones((2, 1)), np.arange(8.0)[:, None]), 4)[0]


# i4 is offered to u000 beside no other of them
GROUPS = {"item_id": ["i2", "i4"], "group_id": ["i2", "i2"]}


def look(folder: Path, rows: list[Row], users: pa.Table, items: pa.Table, k: int = 4) -> int:
    files = [folder / f"{n}.parquet" for n in range(2)]
    for n, file in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows[n::2], schema.table("gold.recommendations").arrow), file)
    return check_slates(files, users, items, k, pa.table(GROUPS))


def change(place: int, **values: Any) -> Plant:
    return lambda rows: [r | values if (r["user_id"], r["rank"]) == ("u000", place) else r for r in rows]


# user u000 had i0, and is offered i7, i6, i5, i4
FAULTS: list[tuple[str, Plant]] = [
    ("seen_item", change(4, item_id="i0")),
    ("not_on_offer", change(2, item_id="gone")),
    ("unknown_user", lambda rows: [*rows, rows[0] | {"user_id": "who"}]),
    ("gap_in_ranks", lambda rows: [r for r in rows if (r["user_id"], r["rank"]) != ("u000", 2)]),
    ("gap_in_ranks", lambda rows: [r for r in rows if (r["user_id"], r["rank"]) != ("u000", 1)]),
    ("gap_in_ranks", change(1, rank=0)),
    ("gap_in_ranks", change(3, rank=2, source=FALLBACK)),  # one twice, and the last fits
    ("repeated_item", change(4, item_id="i7")),
    ("twins", change(3, item_id="i2")),
    ("too_long", lambda rows: [*rows, rows[3] | {"rank": 5, "item_id": "i3", "score": 3.0}]),
    ("order", change(2, score=9.0)),
    ("order", change(4, score=5.0)),  # as i5 before it, which has the greater id
]


def test_the_slates_themselves_are_accepted(tmp_path: Path) -> None:
    users, items, rows = plain_world()
    # equal scores in the order of ids, and the fallback's scores beside the model's, are as they should be
    tied = change(4, source=FALLBACK, score=70.0)(change(2, score=5.0, item_id="i5")(change(3, item_id="i6", score=5.0)(rows)))
    for good in (rows, tied, [*rows, *(r | {"arm": "other"} for r in rows)]):
        assert look(tmp_path, good, users, items) == 2


@pytest.mark.parametrize(("name", "plant"), FAULTS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(FAULTS)])
def test_a_planted_fault_is_refused_by_its_name_and_no_other(name: str, plant: Plant, tmp_path: Path) -> None:
    users, items, rows = plain_world()
    with pytest.raises(QualityError, match=name) as refused:
        look(tmp_path, plant(rows), users, items)
    assert set(refused.value.report["faults"]) == {name}


def vectors(bundle: Any, users: pa.Table, items: pa.Table, lake: Lake, m: Manifest, *, device: str, threads: int) -> Vectors | None:
    side = item_side(bundle, items, lake, m.tables, device=device, threads=threads)
    if side is None:
        return None
    return Vectors(user_vectors(bundle, users, pa.array(items["item_id"].to_pylist()), side.item_in, device=device, threads=threads), side.item_vec)


@dataclass(frozen=True)
class Scored:
    """A real bundle with a history longer than its buckets, the torch model it came from, and a day's rows."""

    model: Champion
    shop: tuple[Items, Log, Fold]
    day: dict[str, Any]

    def run(self, threads: int = 1, **other: Any) -> Vectors:
        found = vectors(**self.day | other, device="cpu", threads=threads)
        assert found is not None
        return found


def embeddings(root: Path, content: dict[str, np.ndarray], version: str) -> tuple[Lake, Manifest]:
    lake = Lake(root)
    lake.create("gold.item_embeddings")
    rows = [{"content_sha256": sha, "encoder_version": version, "modality": "text", "dim": len(v), "embedding": v.tolist(),
             "refused": None} for sha, v in content.items()]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema.table("gold.item_embeddings").arrow)
    commit.write(lake, "gold.item_embeddings", table, run_id="r", pinned=commit.fence(lake, "gold.item_embeddings"))
    pinned = {"gold.item_embeddings": lake.version("gold.item_embeddings")}
    return lake, Manifest("2026-03-01", "2026-03-01T00:00:00+00:00", pinned, "1", "", {}, {}, {}, "")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    rng, n, folder = np.random.default_rng(0), 120, tmp_path_factory.mktemp("bundle")
    # 63 to 65 and 80 events: on either side of a bucket's edge, and beyond the history's length
    sizes = [3, 10, 16, 17, 63, 64, 65, 80, *rng.integers(3, 40, 20).tolist()]
    bought = [(u, int(i), day) for u, size in enumerate(sizes) for day, i in enumerate(rng.permutation(n - 1)[:size])]
    content = {"text": rng.normal(size=(n, 6)).astype(np.float32)}
    content["text"][5] = 0
    items, log = make_items(n, content=content), make_log(bought, len(sizes))
    recipe = replace(RECIPES["small"], d=8, epochs=1, schedule=1, context=16, length=72, tokens=256, negatives=32, rank=16,
                     popularity=0.7, content=0.5)  # fmt: skip
    fold = replace(per_user(log, items), train=np.ones(len(log.user), bool))
    model = Champion(recipe, seed=1).fit(items, log, fold)
    seal(folder, export(model, items, log, fold, folder) | {"kind": "two_tower", "encoders": {"text": "toy-1"}, "features": features_fingerprint()})
    shas = [f"sha{i}" if items.present["text"][i] else None for i in range(n)]
    vector = {s: v for s, v in zip(shas, content["text"], strict=True) if s}
    lake, manifest = embeddings(tmp_path_factory.mktemp("lake"), vector, "toy-1")
    histories = [[str(items.ids[i]) for i in log.item[log.ptr[u] : log.ptr[u + 1]]] for u in range(len(sizes))]
    offered = items_of([str(i) for i in items.ids], np.rint(model.popularity_N * 1e6).astype(int).tolist(), shas)
    day = {"bundle": load(folder), "users": users_of(histories), "items": offered, "lake": lake, "m": manifest}
    return Scored(model, (items, log, fold), day)


def test_the_scorer_takes_the_contents_that_its_bundle_names_and_an_old_bundle_the_usual_ones(scored: Scored, tmp_path: Path) -> None:
    """Each item's two texts are two halves of the vector that the model was trained on: pooled, they are it again."""
    content, rng = scored.shop[0].content["text"].astype(float), np.random.default_rng(3)
    vector = {}
    for n, v in enumerate(content):
        away = rng.normal(size=6)
        away -= v * (away @ v) / max(v @ v, 1e-9)
        away *= np.linalg.norm(v) / np.linalg.norm(away)
        for half, sign in (("a", 1), ("b", -1)):
            vector[f"{half}{n}"] = (0.8 * v + sign * 0.6 * away).astype(np.float32)
        vector[f"sha{n}"] = (content[n] if n % 2 else away).astype(np.float32)
    lake, manifest = embeddings(tmp_path / "lake", {k: v for k, v in vector.items() if v.any()}, "toy-1")
    present = scored.shop[0].present["text"]
    apart = pa.array([[f"a{n}", f"b{n}"] if has else None for n, has in enumerate(present)], pa.list_(pa.string()))
    offered = scored.day["items"].append_column("texts_sha256", apart)
    old = scored.day["bundle"]
    assert "fields" not in old.about
    folder = shutil.copytree(old.folder, tmp_path / "bundle")
    seal(folder, old.about | {"fields": {"text": "separate", "image": "first"}})
    more: dict[str, Any] = {"device": "cpu", "threads": 1}
    trained = item_side(old, scored.day["items"], scored.day["lake"], scored.day["m"].tables, **more)
    pooled = item_side(load(folder), offered, lake, manifest.tables, **more)
    whole = item_side(old, offered, lake, manifest.tables, **more)
    alone = item_side(old, scored.day["items"], lake, manifest.tables, **more)
    assert None not in (trained, pooled, whole, alone)
    np.testing.assert_allclose(pooled.item_vec, trained.item_vec, atol=1e-4 * np.abs(trained.item_vec).max())
    assert np.abs(whole.item_vec - trained.item_vec).max() > 0.01 * np.abs(trained.item_vec).max(), "it took no text's own vector"
    np.testing.assert_array_equal(whole.item_vec, alone.item_vec)


def test_a_dot_product_of_the_vectors_is_the_trained_models_score(scored: Scored) -> None:
    items, log, fold = scored.shop
    n = log.n_users
    served = replace(fold, case_user=np.arange(n, dtype=np.int32), case_at_us=log.ts_us[log.ptr[1:] - 1] + DAY,
                     hist_ptr=log.ptr, hist_row=np.arange(len(log.user)), target_ptr=np.zeros(n + 1, np.int64))  # fmt: skip
    want = scored.model.score(items, log, served, slice(0, n))
    # fp32 in another order, and popularity rounded to millionths
    np.testing.assert_allclose((v := scored.run()).user_UD @ v.item_ND.T, want, atol=3e-4 * want.std())


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_companions_and_order_do_not_change_a_rows_bits(scored: Scored, data: st.DataObject) -> None:
    whole = scored.run()
    some = data.draw(st.lists(st.integers(0, scored.day["users"].num_rows - 1), min_size=1, max_size=12, unique=True))
    alone = scored.run(data.draw(st.integers(1, 2)), users=scored.day["users"].take(some))
    np.testing.assert_array_equal(alone.user_UD, whole.user_UD[some])
    np.testing.assert_array_equal(alone.item_ND, whole.item_ND)


def test_batches_have_the_same_few_shapes_whoever_is_in_them(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = set()

    def opened(*given: Any) -> Any:
        graph = session(*given)
        run = graph.run
        graph.run = lambda names, feeds: (shapes.update((k, v.shape[:2]) for k, v in feeds.items() if k in ("mask", "text")), run(names, feeds))[1]
        return graph

    monkeypatch.setattr(score, "session", opened)
    for some in ([0], [1, 5, 7], list(range(20))):
        scored.run(users=scored.day["users"].take(some), items=scored.day["items"].slice(0, 100))
    # sixteen thousand places whether a history is of 64 events or of 72, and 256 items
    assert shapes == {("mask", (256, 64)), ("mask", (227, 72)), ("text", (256, 6))}


def test_an_items_bits_do_not_change_with_the_catalogue_and_nobody_touched_has_a_vector(scored: Scored) -> None:
    whole, few = scored.run(), scored.run(items=scored.day["items"].slice(3, 7))
    np.testing.assert_array_equal(few.item_ND, whole.item_ND[3:10])
    v = scored.run(items=pa.concat_tables([scored.day["items"], items_of(["z-new"], [0], ["sha7"])]))
    np.testing.assert_array_equal(v.item_ND[:-1], whole.item_ND)
    np.testing.assert_array_equal(v.user_UD, whole.user_UD)
    assert np.isfinite(v.item_ND[-1]).all()
    assert (v.item_ND[-1] != whole.item_ND[7]).any()


def test_a_history_counts_to_its_length_and_only_what_is_on_offer(scored: Scored) -> None:
    whole, histories = scored.run(), scored.day["users"]["item_ids"].to_pylist()
    again = scored.run(users=users_of([histories[7][-72:], histories[7][-71:], ["gone", *histories[1], "gone"]]))
    np.testing.assert_array_equal(again.user_UD[0], whole.user_UD[7])
    assert (again.user_UD[1] != whole.user_UD[7]).any()
    np.testing.assert_array_equal(again.user_UD[2], whole.user_UD[1])


def test_a_user_the_model_cannot_speak_for_has_a_row_that_is_not_a_number(scored: Scored) -> None:
    histories = scored.day["users"]["item_ids"].to_pylist()
    some = users_of([[], histories[4], ["gone"]])
    v = scored.run(users=some)
    assert np.isnan(v.user_UD[[0, 2]]).all()
    np.testing.assert_array_equal(v.user_UD[1], scored.run().user_UD[4])
    popular = replace(scored.day["bundle"], about={"kind": "popularity"})
    assert vectors(**scored.day | {"bundle": popular}, device="cpu", threads=1) is None


def test_vectors_become_lists_that_pass_the_last_look(scored: Scored, tmp_path: Path) -> None:
    users = users_of([*scored.day["users"]["item_ids"].to_pylist(), []])
    rows, counts = lists(users, scored.day["items"], scored.run(users=users), 10)
    assert look(tmp_path, rows, users, scored.day["items"], 10) == users.num_rows
    assert (counts["dropped_users"], counts["fallback_rows"], counts["short_lists"]) == (1, 10, 0)
    had = dict(zip(*(users[c].to_pylist() for c in ("user_id", "item_ids")), strict=True))
    assert all(r["source"] == FALLBACK or r["reason"].removeprefix("because of Title ") in had[r["user_id"]] for r in rows)


@pytest.mark.parametrize(("size", "version", "said"), [(5, "toy-1", "another size"), (6, "toy-2", "toy-1")])
def test_embeddings_of_another_size_or_encoder_are_refused_and_not_taken_for_missing_content(
    scored: Scored, tmp_path: Path, size: int, version: str, said: str
) -> None:
    lake, m = embeddings(tmp_path, {f"sha{i}": np.ones(size) for i in range(120)}, version)
    with pytest.raises(QualityError, match=said):
        scored.run(lake=lake, m=m)


def test_a_bundle_made_with_other_features_is_refused(scored: Scored) -> None:
    mine = scored.day["bundle"]
    with pytest.raises(QualityError, match="feature"):
        scored.run(bundle=replace(mine, about=mine.about | {"features": "0" * 16}))
