"""Vectors of what an item is linked to, against loops; as they are read at a moment; and scored as they were trained on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shops import DAY, make_items, make_log
from test_slate import embeddings, items_of, users_of

from mmrec import schema, trained
from mmrec.bundle.bundle import load, seal
from mmrec.features import asof
from mmrec.models.knowledge import FILE, KNOWLEDGE, Knowledge
from mmrec.models.splits import per_user
from mmrec.recommend.score import item_side, user_vectors
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES

NOW = datetime(2026, 3, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
NAMES = ["maker=a", "maker=b", "genre=a", "genre=😀", "made_in=", "x"]
LISTS = st.lists(st.none() | st.lists(st.sampled_from(NAMES), max_size=5), max_size=9)


def rarity(entities: list[list[str] | None]) -> dict[str, float]:
    """Entity -> idf, of those that two items or more have."""
    of = {name: sum(name in (own or ()) for own in entities) for name in NAMES}
    return {name: math.log(len(entities) / n) + 1 for name, n in of.items() if n > 1}


def naive_cosine(a: list[str] | None, b: list[str] | None, idf: dict[str, float]) -> float:
    dot = sum(idf[e] ** 2 for e in idf if e in (a or ()) and e in (b or ()))
    size = [math.sqrt(sum(idf[e] ** 2 for e in idf if e in (own or ()))) for own in (a, b)]
    return dot / (size[0] * size[1]) if all(size) else 0.0


@given(LISTS)
def test_with_a_direction_an_entity_two_items_are_as_alike_as_their_rare_entities_say(entities: list[list[str] | None]) -> None:
    found, idf = Knowledge.fit(entities, len(NAMES)), rarity(entities)
    assert (found is None) == (not idf)
    if found is None:
        return
    assert found.names == tuple(sorted(idf))
    vector_ND, present_N = found.vectors(entities)
    assert vector_ND.dtype == np.float32
    assert present_N.tolist() == [any(e in idf for e in own or ()) for own in entities]
    want_NN = [[naive_cosine(a, b, idf) for b in entities] for a in entities]
    assert np.allclose(vector_ND @ vector_ND.T, want_NN, atol=1e-5)  # sums of float32


@given(LISTS, st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_an_item_is_the_sum_of_its_entities_each_once_whatever_else_is_there(entities: list[list[str] | None], seed: int, d: int) -> None:
    known = tuple(sorted(NAMES[:4]))
    table = Knowledge(known, np.random.default_rng(seed).normal(size=(4, d)).astype(np.float32))
    vector_ND, present_N = table.vectors(entities)
    for n, own in enumerate(entities):
        total_D = sum((table.vector_ED[known.index(e)].astype(np.float64) for e in sorted(set(own or ())) if e in known), np.zeros(d))
        size = np.linalg.norm(total_D)
        assert present_N[n] == (size > 1e-9)
        assert np.allclose(vector_ND[n], total_D / size if present_N[n] else 0, atol=1e-6)
    alone = [table.vectors([own])[0][0] for own in entities]
    assert all((a == b).all() for a, b in zip(alone, vector_ND, strict=True))


def test_of_many_entities_the_strongest_directions_are_kept() -> None:
    rng, e, d = np.random.default_rng(2), 40, 6
    # six themes of entities; an item has some of its theme's
    entities = [[f"e{t + 6 * int(k):02d}" for k in rng.permutation(6)[:4]] for t in rng.integers(0, 6, 300)]
    found = Knowledge.fit(entities, d)
    assert found is not None
    assert found.vector_ED.shape == (len(found.names), d)
    assert len(found.names) > d
    many = {name: sum(name in own for own in entities) for name in found.names}
    idf = np.array([math.log(len(entities) / many[name]) + 1 for name in found.names])
    x = np.array([[name in own for name in found.names] for own in entities]) * idf
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    _, _, right = np.linalg.svd(x, full_matrices=False)
    want = x @ right[:d].T
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    got, _ = found.vectors(entities)
    # signs of directions are free, angles are not; the randomised decomposition is short by what is left behind
    assert np.abs(got @ got.T - want @ want.T).max() < 1e-3
    assert e > d


def test_what_was_saved_comes_back_and_the_same_is_the_same_file(tmp_path: Path) -> None:
    entities = [["maker=a", "genre=😀"], ["maker=a"], ["genre=😀", "x"], None]
    found = Knowledge.fit(entities, 8)
    assert found is not None
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        found.save(tmp_path / name)
    again = Knowledge.load(tmp_path / "one")
    assert again.names == found.names
    assert np.array_equal(again.vector_ED, found.vector_ED)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()


@pytest.mark.parametrize("entities", [[], [None, None], [["a"], ["b"]], [["a", "a"]]])
def test_what_links_no_two_items_is_no_knowledge(entities: list[list[str] | None]) -> None:
    assert Knowledge.fit(entities, 8) is None


def test_nobody_is_given_vectors_of_no_size() -> None:
    assert Knowledge.fit([["a"], ["a"]], 0) is None


def edge(subject: str, relation: str, entity: str, at: datetime, kind: str = "item", n: int = 0) -> dict[str, Any]:
    return {"kind": kind, "subject_id": subject, "relation": relation, "object_id": entity, "available_at": at, "source": "s",
            "row_hash": f"{subject}{relation}{entity}{n}"}  # fmt: skip


def test_an_items_entities_are_those_delivered_before_as_of_each_once(spark: Any) -> None:
    early = NOW - timedelta(days=3)
    rows = [
        edge("i1", "maker", "b", early), edge("i1", "maker", "b", NOW - US, n=1), edge("i1", "genre", "😀", early), edge("i1", "genre", "\ue000", early),
        edge("i2", "maker", "a", NOW), edge("i3", "maker", "a", NOW - US), edge("i1", "follows", "u2", early, kind="user"),
    ]  # fmt: skip
    frame = spark.createDataFrame(pa.Table.from_pylist(rows, schema=schema.table("silver.relations").arrow))
    got = {r["item_id"]: r["entities"] for r in asof.entities(frame, NOW).toArrow().to_pylist()}
    # in the order of UTF-8, on either engine
    assert got == {"i1": ["genre=\ue000", "genre=😀", "maker=b"], "i3": ["maker=a"]}


def test_a_night_scores_by_the_vectors_that_the_model_was_trained_on(tmp_path: Path) -> None:
    rng, n, people = np.random.default_rng(4), 60, 30
    own = [None if i % 7 == 3 else sorted({f"maker={i % 4}", f"genre={int(rng.integers(3))}"}) for i in range(n)]
    knowledge = Knowledge.fit(own, 5)
    assert knowledge is not None
    assert len(knowledge.names) > 5
    text = rng.normal(size=(n, 6)).astype(np.float32)
    vector_ND, present_N = knowledge.vectors(own)
    items = make_items(n, content={"text": text, KNOWLEDGE: vector_ND}, present={"text": np.ones(n, bool), KNOWLEDGE: present_N})
    log = make_log([(u, int(i), d) for u in range(people) for d, i in enumerate(rng.permutation(n - 5)[: rng.integers(3, 12)])], people)
    fold = replace(per_user(log, items), train=np.ones(len(log.user), bool), case_user=np.arange(people, dtype=np.int32),
                   case_at_us=np.full(people, 40 * DAY), hist_ptr=log.ptr, hist_row=np.arange(len(log.user)),
                   target_ptr=np.zeros(people + 1, np.int64), target_item=np.zeros(0, np.int32))  # fmt: skip
    recipe = replace(RECIPES["small"], d=8, epochs=1, schedule=1, context=16, length=64, tokens=256, negatives=32, rank=8, content=0.5, content_cold=1.0)
    model = Champion(recipe, seed=1).fit(items, log, fold)
    spec = trained.exported(model, items, log, fold, tmp_path / "bundle", 64, knowledge)
    assert spec["content_dims"] == {KNOWLEDGE: 5, "text": 6}
    seal(tmp_path / "bundle", spec | {"encoders": {"text": "toy-1"}, "features": schema.features_fingerprint()})
    bundle = load(tmp_path / "bundle")
    assert FILE in json.loads((tmp_path / "bundle" / "digest.json").read_text())["files"]
    lake, m = embeddings(tmp_path / "lake", {f"sha{i}": v for i, v in enumerate(text)}, "toy-1")
    ids = [str(i) for i in items.ids]
    # entities nobody knew are passed over
    told = [None if e is None else [*e, "maker=new"] for e in own]
    day = items_of(ids, (model.popularity_N * 1e6).round().astype(int).tolist(), [f"sha{i}" for i in range(n)])
    day = day.append_column("entities", pa.array(told, pa.list_(pa.string())))
    side = item_side(bundle, day, lake, m.tables, device="cpu", threads=1)
    assert side is not None
    assert np.allclose(side.item_vec, model.item_side(items), atol=1e-5)  # float32, and another library's sums
    # without what is known of them items lie elsewhere: the vectors are looked at
    bare = item_side(bundle, day.set_column(day.column_names.index("entities"), "entities", pa.nulls(n, pa.list_(pa.string()))),
                     lake, m.tables, device="cpu", threads=1)  # fmt: skip
    assert bare is not None
    assert not np.allclose(bare.item_vec[present_N], side.item_vec[present_N], atol=1e-2)
    assert np.array_equal(bare.item_vec[~present_N], side.item_vec[~present_N])
    histories = [[ids[i] for i in log.item[log.ptr[u] : log.ptr[u + 1]]] for u in range(people)]
    users = users_of(histories)
    made = user_vectors(bundle, users, pa.array(ids), side.item_in, device="cpu", threads=1)
    assert made.shape == (people, side.item_vec.shape[1])
    assert np.isfinite(made).all()
