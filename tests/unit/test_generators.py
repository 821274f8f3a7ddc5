"""Other generators' candidates against a plain look: each generator written out naively, places given away by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ruled_lists import RULES, ruled_world
from test_slate import STAMP, world

from mmrec import schema
from mmrec.dates import micros
from mmrec.recommend import slate
from mmrec.recommend.check import check_slates
from mmrec.recommend.explore import Exploration
from mmrec.recommend.generators import COLUMN, NAMES, Generators
from mmrec.recommend.rules import Rule, of_records
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.sketch import sketched
from mmrec.recommend.slate import DRAWN, FALLBACK, slates

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = 86_400_000_000
Row = dict[str, Any]


def shop(seed: int, n_users: int, n_items: int) -> tuple[pa.Table, pa.Table, Vectors, np.ndarray]:
    """A world whose items have ages and contents, some of them none, and whose users are linked to somebody."""
    users, items, v = world(seed, n_users, n_items)
    rng = np.random.default_rng([seed, 7])
    age = rng.integers(0, 30, n_items)
    items = items.append_column("available_us", pa.array(micros(NOW) - age * DAY))
    content = rng.standard_normal((n_items, 6))
    content[rng.random(n_items) < 0.2] = 0
    ids = items["item_id"].to_pylist()
    near = [None if rng.random() < 0.3 else [str(i) for i in rng.permutation([*ids, "gone"])[: rng.integers(0, 6)]]
            for _ in range(n_users)]  # fmt: skip
    return users.append_column(COLUMN, pa.array(near, pa.list_(pa.string()))), items, v, sketched([content])


def lists(users: pa.Table, items: pa.Table, v: Vectors | None, k: int, others: Generators | None, **more: Any) -> list[Row]:
    made = slates(users, items, v, k, STAMP, {}, others=others, **more)
    return pa.Table.from_batches(made, schema.table("gold.recommendations").arrow).to_pylist()


def naive(name: str, row: Row, items: list[Row], v: Vectors | None, sketch: np.ndarray, how: Generators) -> list[int]:
    """A generator's best for a user, places in the catalogue, by what the module says it does."""
    place = {r["item_id"]: n for n, r in enumerate(items)}
    may = [n for n, r in enumerate(items) if r["item_id"] not in row["seen_item_ids"]]
    if how.allowed_N is not None:
        may = [n for n in may if how.allowed_N[n]]
    # what the model does not know is no part of a history
    history = [place[i] for i in row["item_ids"] if i in place and (v is None or np.isfinite(v.item_ND[place[i]]).all())]
    mean = sketch[history[-20:]].astype(np.int64).sum(0) if history else np.zeros(64, np.int64)
    length = np.sqrt(float((mean**2).sum()))
    taste = (mean / length).astype(np.float32) if length else np.zeros(64, np.float32)

    def best(score: dict[int, float]) -> list[int]:
        return sorted(score, key=lambda n: (-np.float32(score[n]), n))[: how.depth]

    def like(n: int) -> float:
        return float(taste.astype(np.float64) @ (sketch[n].astype(np.float32) / 127).astype(np.float64))

    if name == "content":
        return best({n: like(n) for n in may if sketch[n].any()}) if length else []
    if name == "new":
        def newer(n: int) -> float:
            days = (micros(NOW) - items[n]["available_us"]) / DAY
            return float(np.float32(1e-3 * (1 - days / how.new_days)))

        fresh = [n for n in may if micros(NOW) - items[n]["available_us"] < how.new_days * DAY]
        return best({n: like(n) + newer(n) for n in fresh})
    if name == "popular":
        return best({n: items[n]["popularity_micro"] / 1e6 for n in may})
    if name == "social":
        told = [place[i] for i in row[COLUMN] or () if i in place]
        return [n for n in told if n in may][: how.depth]
    if v is None or v.item_ND.shape[1] < 2 or not history:
        return []
    with np.errstate(invalid="ignore"):  # of a vector that is not finite
        unit = v.item_ND.astype(np.float64) / np.maximum(np.linalg.norm(v.item_ND.astype(np.float64), axis=1), 1e-30)[:, None]
    unit = unit.astype(np.float32).astype(np.float64)
    return best({n: float(unit[n] @ unit[history[-1]]) for n in may if np.isfinite(unit[n]).all()})


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 16), st.integers(1, 9), st.integers(2, 4),
       st.integers(1, 5), st.lists(st.sampled_from(NAMES), min_size=1, unique=True), st.booleans(), st.booleans())  # fmt: skip
def test_each_so_many_th_place_is_a_generators_best_that_is_not_above(
    seed: int, n_users: int, n_items: int, k: int, every: int, depth: int, names: list[str], model: bool, barred: bool
) -> None:
    users, items, v, sketch = shop(seed, n_users, n_items)
    bars = [{"name": "bar", "kind": "exclude", "items": {"item": [i for n, i in enumerate(items["item_id"].to_pylist()) if (n + seed) % 3 == 0] or ["none"]}}]
    ruling = Ruling(of_records(bars), items) if barred else None
    allowed = None if ruling is None else ruling.allowed_N
    found = replace(v, allowed_N=allowed) if model else None
    how = Generators(items, tuple(names), every, depth, 14, NOW, sketch, None if found is None else found.item_ND, allowed)
    # a plain list as long as the catalogue is the ranking
    whole = lists(users, items, found, n_items, None, ruling=ruling)
    got = lists(users, items, found, k, how, ruling=ruling)
    rows = items.to_pylist()
    place = {r["item_id"]: n for n, r in enumerate(rows)}
    for u, row in enumerate(users.to_pylist()):
        name = f"u{u:03d}"
        mine = [r for r in whole if r["user_id"] == name]
        first = [r for r in mine if r["source"] != FALLBACK]
        silent = not first
        base = [place[r["item_id"]] for r in (mine if silent else first)]
        rest = [] if silent else [place[r["item_id"]] for r in mine if r["source"] == FALLBACK]
        bests = {g: naive(g, row, rows, found, sketch, how) for g in names}
        want: list[tuple[int, str]] = []
        taken: set[int] = set()
        left, turn = list(base), 0
        while len(want) < len(place):
            by = None
            if (len(want) + 1) % every == 0:
                for g in [*names[turn:], *names[:turn]]:
                    there = [n for n in bests[g] if n not in taken]
                    if there:
                        by, turn = (there[0], g), (names.index(g) + 1) % len(names)
                        break
            if by is None:
                left = [n for n in left if n not in taken]
                if not left:
                    break
                by = (left[0], FALLBACK if silent and found is not None else "model")
            want.append(by)
            taken.add(by[0])
        want += [(n, FALLBACK) for n in rest if n not in taken]
        have = [(place[r["item_id"]], r["source"]) for r in got if r["user_id"] == name]
        assert have == want[:k]
        for r in (r for r in got if r["user_id"] == name):
            if r["source"] in names:
                assert bests[r["source"]][r["ranked"] - 1] == place[r["item_id"]], "its place in its generator's ranking"
                assert r["because"] is r["parts"] is None
            elif (place[r["item_id"]], r["source"]) in want[: len(base)] and place[r["item_id"]] in base:
                assert r["ranked"] == base.index(place[r["item_id"]]) + 1
            assert r["place"] is None or r["place"] >= 1


def test_the_block_has_no_say_and_drawn_places_come_from_the_mixed_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items, v, sketch = shop(3, 9, 60)
    how = Generators(items, ("new", "popular", "social"), 2, 10, 14, NOW, sketch, v.item_ND)
    draws = Exploration(8, 0.25, 3)
    whole = lists(users, items, v, 8, how, draws=draws)
    monkeypatch.setattr(slate, "_BLOCK", 2)
    assert lists(users, items, v, 8, how, draws=draws) == whole
    assert {r["source"] for r in whole} > {DRAWN, "popular", "new"}
    assert all(r["ranked"] for r in whole if r["source"] not in (DRAWN, FALLBACK))
    drawn = [r for r in whole if r["source"] == DRAWN]
    assert {r["rank"] for r in drawn} == {4, 8}
    assert all(r["propensity"] == 1 for r in whole if r["source"] != DRAWN)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 16), st.integers(1, 9), st.integers(0, 12), RULES,
       st.lists(st.sampled_from(NAMES), min_size=1, unique=True))  # fmt: skip
def test_whatever_else_brings_candidates_lists_keep_every_promise(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n_users: int, n_items: int, k: int, n_groups: int, rules: list[Rule], names: list[str]
) -> None:
    users, items, v = ruled_world(seed, n_users, n_items)
    plain_users, plain_items, _, sketch = shop(seed, n_users, n_items)
    users = users.append_column(COLUMN, plain_users[COLUMN])
    items = items.append_column("available_us", plain_items["available_us"])
    group = np.random.default_rng(seed).integers(0, n_groups, n_items) if n_groups else None
    ruling = Ruling(rules, items)
    how = Generators(items, tuple(names), 2, 5, 14, NOW, sketch, v.item_ND, ruling.allowed_N)
    made = slates(users, items, replace(v, allowed_N=ruling.allowed_N), k, STAMP, {}, group, ruling, others=how)
    file = tmp_path_factory.mktemp("lists") / "lists.parquet"
    pq.write_table(pa.Table.from_batches(made, schema.table("gold.recommendations").arrow), file)
    named = None if group is None else pa.table({"item_id": items["item_id"], "group_id": pa.array([str(g) for g in group])})
    assert check_slates([file], users, items, k, named, ruling.tables(users)) >= 0


def test_words_say_who_brought_a_row() -> None:
    users, items, v, sketch = shop(5, 8, 60)
    told = {r["source"]: r["reason"] for r in lists(users, items, v, 12, Generators(items, NAMES, 2, 20, 14, NOW, sketch, v.item_ND))}
    want = {"content": "like earlier choices", "item_to_item": "goes with the latest choice", "new": "new in the shop",
            "popular": "popular lately", "social": "chosen by people you follow"}  # fmt: skip
    assert {g: told[g] for g in want} == want
