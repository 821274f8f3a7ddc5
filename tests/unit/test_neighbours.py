"""Nearest items by content, beside a loop over all pairs, and what a person may ask for in vain."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmrec import schema
from mmrec.content import neighbours as room
from mmrec.content.neighbours import Neighbours
from mmrec.errors import InputError, QualityError
from mmrec.lake import commit
from mmrec.lake.content import text_key
from mmrec.lake.store import Lake

ITEMS, VECTORS = "silver.items", "gold.item_embeddings"
THEN = datetime(2026, 1, 1, tzinfo=UTC)


def put(lake: Lake, name: str, *rows: dict[str, Any]) -> None:
    columns = schema.table(name).arrow
    full = [{"source": "s", "attributes": "{}", "title": "", "categories": [], "available_at": THEN, "valid_from": THEN} | r for r in rows]
    table = pa.Table.from_pylist([{c: r.get(c) for c in columns.names} for r in full], columns)
    commit.write(lake, name, table, run_id=f"r{lake.version(name)}", pinned=commit.fence(lake, name))


def item(name: str, text: str | None, **more: Any) -> dict[str, Any]:
    return {"item_id": name, "row_hash": f"{name} {text} {more}", "text": text, "title": f"title {name}", **more}


def vector(text: str, emb: Any, version: str = "v", refused: str | None = None) -> dict[str, Any]:
    emb = [] if refused else list(emb)
    return {"content_sha256": text_key(text), "encoder_version": version, "modality": "text", "dim": len(emb), "embedding": emb, "refused": refused}


def near(lake: Lake, *asked: str, k: int = 3, modality: str = "text", version: str = "v") -> Any:
    return seen(lake, modality, version).of(asked, k)


def seen(lake: Lake, modality: str = "text", version: str = "v") -> Neighbours:
    return Neighbours(lake, modality=modality, version=version, text_of=lambda row: row["text"])


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fresh") / "lake"
    for name in (ITEMS, VECTORS):
        Lake(root).create(name)
    return root


@pytest.fixture
def lake(fresh: Path, tmp_path: Path) -> Lake:
    shutil.copytree(fresh, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def test_known_angles_come_in_their_order_whatever_the_vectors_length(lake: Lake) -> None:
    put(lake, ITEMS, item("a", "east"), item("b", "north east"), item("c", "north"), item("d", "west"))
    put(lake, VECTORS, vector("east", [1, 0]), vector("north east", [5, 5]), vector("north", [0, 0.1]), vector("west", [-2, 0]))
    found = near(lake, "a")["a"]
    assert [(r["item_id"], r["title"], round(r["similarity"], 6), r["same"]) for r in found] == [
        ("b", "title b", round(0.5**0.5, 6), False), ("c", "title c", 0, False), ("d", "title d", -1, False)]  # fmt: skip


def test_items_of_equal_content_come_first_and_ties_by_item(lake: Lake) -> None:
    put(lake, ITEMS, *(item(n, "x") for n in "dacb"), item("e", "y"), item("f", "z"))
    put(lake, VECTORS, vector("x", [1, 1]), vector("y", [1, 0]), vector("z", [0, 1]))
    assert [(r["item_id"], r["same"]) for r in near(lake, "c", k=4)["c"]] == [("a", True), ("b", True), ("d", True), ("e", False)]
    assert [r["item_id"] for r in near(lake, "e", k=2)["e"]] == ["a", "b"]


@pytest.mark.parametrize(("seed", "cells"), [(0, 4_000_000), (1, 1), (2, 60 * 7)])
def test_neighbours_are_those_of_a_loop_over_all_pairs(lake: Lake, seed: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_CELLS", cells)  # all at once, a content at a time, seven at a time
    rng = np.random.default_rng(seed)
    texts = [f"t{n}" for n in range(40)]
    emb = {t: rng.integers(-2, 3, 3) + np.array([0, 0, 0.5]) for t in texts}  # few values: many ties
    owner = {f"i{n:02}": texts[rng.integers(len(texts))] for n in range(60)}
    gone = {f"i{n:02}" for n in rng.choice(60, 8, replace=False)}
    put(lake, ITEMS, *(item(i, t, withdrawn_at=THEN if i in gone else None) for i, t in owner.items()))
    put(lake, VECTORS, *(vector(t, e) for t, e in emb.items()))
    put(lake, VECTORS, *(vector(t, e[::-1], version="other") for t, e in emb.items()))

    def cosine(a: str, b: str) -> float:
        x, y = emb[owner[a]], emb[owner[b]]
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    asked = sorted(owner)
    found = near(lake, *asked, k=7)
    for i in asked:
        want = sorted((-round(cosine(i, j), 6), j) for j in owner if j != i and j not in gone)[:7]
        assert [(-r["similarity"], r["item_id"]) for r in found[i]] == want


def test_an_item_counts_in_its_newest_version(lake: Lake) -> None:
    put(lake, ITEMS, item("a", "x"), item("b", "y"), item("c", "z"))
    put(lake, ITEMS, item("b", "x", available_at=THEN + timedelta(days=1)), item("c", "x", available_at=THEN - timedelta(days=1)))
    put(lake, VECTORS, vector("x", [1, 0]), vector("y", [0, 1]), vector("z", [-1, 0]))
    assert [(r["item_id"], round(r["similarity"], 6)) for r in near(lake, "a")["a"]] == [("b", 1), ("c", -1)]


def test_a_lone_item_has_no_neighbours(lake: Lake) -> None:
    put(lake, ITEMS, item("a", "x"), item("bare", None))
    put(lake, VECTORS, vector("x", [1, 0]), vector("old", [1, 0]))
    assert near(lake, "a") == {"a": []}


def test_what_is_not_there_is_said_with_what_is(lake: Lake) -> None:
    put(lake, ITEMS, item("film-1", "x"), item("film-2", None), item("film-3", "broken"), item("film-4", "new"))
    put(lake, VECTORS, vector("x", [1, 0]), vector("broken", [], refused="truncated: half"))
    with pytest.raises(InputError, match="no such item") as told:
        near(lake, "film-11")
    assert "film-1" in told.value.valid
    with pytest.raises(InputError, match="the item has no text"):
        near(lake, "film-2")
    with pytest.raises(InputError, match="the item has no image"):
        near(lake, "film-1", modality="image")
    with pytest.raises(QualityError, match="truncated: half"):
        near(lake, "film-3")
    with pytest.raises(QualityError, match="not encoded yet"):
        near(lake, "film-4")
    with pytest.raises(QualityError, match="not encoded yet"):
        near(lake, "film-1", version="w")


def test_what_has_no_vector_is_passed_over_where_that_is_asked(lake: Lake) -> None:
    put(lake, ITEMS, item("a", "x"), item("b", "y"), item("bare", None), item("new", "z"))
    put(lake, VECTORS, vector("x", [1, 0]), vector("y", [1, 1]))
    some = seen(lake).of(["bare", "a", "nobody", "new"], passing_over=True)
    assert {i: [r["item_id"] for r in rows] for i, rows in some.items()} == {"a": ["b"]}
    for asked in (["bare"], []):
        assert seen(lake).of(asked, passing_over=True) == {}


@pytest.mark.parametrize(("seed", "cells"), [(0, 4_000_000), (1, 50 * 7)])
def test_the_nearest_of_other_content_are_those_of_a_loop_over_all_pairs(lake: Lake, seed: int, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_CELLS", cells)
    monkeypatch.setattr(room, "_ASKED", cells // 20)
    rng = np.random.default_rng(seed)
    texts = [f"t{n}" for n in range(30)]
    emb = {t: rng.integers(-2, 3, 3) + np.array([0, 0, 0.5]) for t in texts}
    owner = {f"i{n:02}": texts[rng.integers(len(texts))] for n in range(60)}
    kinds = {i: [c for c in "pqr" if rng.random() < 0.4] for i in owner}
    gone = {f"i{n:02}" for n in rng.choice(60, 8, replace=False)}
    blind = set(texts[:4])
    put(lake, ITEMS, *(item(i, t, withdrawn_at=THEN if i in gone else None, categories=kinds[i]) for i, t in owner.items()))
    put(lake, VECTORS, *(vector(t, e, refused="broken" if t in blind else None) for t, e in emb.items()))

    def cosine(a: str, b: str) -> float:
        x, y = emb[owner[a]], emb[owner[b]]
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    among = [i for i in sorted(owner) if i not in gone and kinds[i] and owner[i] not in blind]
    found = seen(lake).apart(5)
    assert found.items == among
    assert found.categories == [frozenset(kinds[i]) for i in among]
    assert found.asked_Q.tolist() == list(range(len(among)))
    for n, i in enumerate(among):
        want = sorted((-round(cosine(i, j), 6), j) for j in among if owner[j] != owner[i])[:5]
        assert [among[m] for m in found.near_QK[n] if m >= 0] == [j for _, j in want]
        assert [found.content_N[n] == found.content_N[m] for m in range(len(among))] == [owner[i] == owner[j] for j in among]
    some = seen(lake).apart(5, most=9, seed=3)
    assert (len(some.asked_Q), some.items) == (9, among)
    assert (some.near_QK == found.near_QK[some.asked_Q]).all()
    assert some.asked_Q.tolist() == seen(lake).apart(5, most=9, seed=3).asked_Q.tolist() != seen(lake).apart(5, most=9, seed=4).asked_Q.tolist()


def test_where_nothing_lies_apart_places_stay_empty(lake: Lake) -> None:
    assert seen(lake).apart(3).near_QK.shape == (0, 3)
    put(lake, ITEMS, item("a", "x", categories=["p"]), item("b", "x", categories=["q", None, ""]), item("c", "y", categories=[""]))
    put(lake, VECTORS, vector("x", [1, 0]), vector("y", [1, 0]))
    found = seen(lake).apart(3)
    assert (found.items, found.categories) == (["a", "b"], [frozenset("p"), frozenset("q")])
    assert found.near_QK.tolist() == [[-1] * 3] * 2
