"""Scoring in parts: however users are split, wherever a part runs, rows are the same; joins by user; what was staged is counted."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import make_items, make_log
from test_slate import embeddings, items_of, look, users_of

from mmrec import config, schema
from mmrec.bundle.bundle import load, seal
from mmrec.config import Config, SparkConfig
from mmrec.lake import blocks, commit, stage
from mmrec.lake.manifest import Manifest
from mmrec.lake.spread import map_arrow
from mmrec.lake.store import Lake
from mmrec.models.splits import per_user
from mmrec.night import Night
from mmrec.recommend.packed import Job, opened, pack
from mmrec.recommend.score import item_side
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.slate import FALLBACK, Stamp, slates
from mmrec.recommend.spread import lists_of, vectors_of
from mmrec.recommend.tally import tally
from mmrec.train.export import export
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES
from tests.conftest import mmrec

DAY, K = date(2026, 3, 1), 7
HISTORY = ["user_id", "item_ids", "event_types", "gap_s", "weight_micro"]
LISTS, VECTORS = (schema.table(f"gold.{n}").arrow for n in ("recommendations", "user_vectors"))


@dataclass(frozen=True)
class Packed:
    """A real bundle's folder for all parts, the day's users, and what one batch of all of them gives."""

    folder: str
    users: pa.Table
    items: pa.Table
    vectors: pa.Table
    lists: pa.Table


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    rng, n, made = np.random.default_rng(3), 90, tmp_path_factory.mktemp("bundle")
    sizes = [3, 16, 17, 63, 64, 65, 80, *rng.integers(3, 40, 20).tolist()]
    bought = [(u, int(i), day) for u, size in enumerate(sizes) for day, i in enumerate(rng.permutation(n - 1)[:size])]
    content = {"text": rng.normal(size=(n, 6)).astype(np.float32)}
    items, log = make_items(n, content=content), make_log(bought, len(sizes))
    recipe = replace(RECIPES["small"], d=8, epochs=1, schedule=1, context=16, length=72, tokens=256, negatives=32, rank=16)
    fold = replace(per_user(log, items), train=np.ones(len(log.user), bool))
    model = Champion(recipe, seed=1).fit(items, log, fold)
    seal(made, export(model, items, log, fold, made) | {"kind": "two_tower", "encoders": {"text": "toy-1"},
                                                        "features": schema.features_fingerprint()})  # fmt: skip
    shas = [f"sha{i}" for i in range(n)]
    lake, m = embeddings(tmp_path_factory.mktemp("lake"), dict(zip(shas, content["text"], strict=True)), "toy-1")
    offered = items_of([str(i) for i in items.ids], rng.integers(0, 50, n).tolist(), shas)
    histories = [[str(items.ids[i]) for i in log.item[log.ptr[u] : log.ptr[u + 1]]] for u in range(len(sizes))]
    # nobody's history: what the model can't speak for is filled, and somebody has had everything
    users = users_of([*histories, [], ["gone"], [str(i) for i in items.ids]])
    bundle = load(made)
    job = Job(str(made), bundle.digest, "cpu", 1, K, str(DAY), "run", "7")
    side = item_side(bundle, offered, lake, m.tables, device="cpu", threads=1)
    folder = str(pack(tmp_path_factory.mktemp("packed"), job, offered, side))
    vectors = pa.Table.from_batches(vectors_of(folder, iter(users.combine_chunks().to_batches())), VECTORS)
    whole = users.append_column("vector", vectors["vector"].combine_chunks())
    lists = pa.Table.from_batches(lists_of(folder, iter(whole.combine_chunks().to_batches())), LISTS)
    return Packed(folder, whole, offered, vectors, lists)


def parts(table: pa.Table, order: list[int], cuts: list[int]) -> Iterator[pa.RecordBatch]:
    """Rows of `table` in `order`, cut at `cuts`; two equal cuts make an empty batch."""
    moved = table.take(order).combine_chunks()
    edges = [0, *sorted(cuts), table.num_rows]
    for start, end in pairwise(edges):
        yield from moved.slice(start, end - start).to_batches() or [pa.RecordBatch.from_pylist([], moved.schema)]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_vectors_and_lists_do_not_depend_on_how_users_are_split_into_batches(packed: Packed, data: st.DataObject) -> None:
    n = packed.users.num_rows
    order = data.draw(st.permutations(range(n)))
    cuts = data.draw(st.lists(st.integers(0, n), max_size=8))
    vectors = pa.Table.from_batches(vectors_of(packed.folder, parts(packed.users.select(HISTORY), order, cuts)), VECTORS)
    assert vectors["user_id"].to_pylist() == [packed.users["user_id"][i].as_py() for i in order]
    want = np.array(packed.vectors["vector"].to_pylist())[order]
    np.testing.assert_array_equal(np.array(vectors["vector"].to_pylist()), want)
    columns = ["user_id", "item_ids", "seen_item_ids", "vector"]
    lists = pa.Table.from_batches(lists_of(packed.folder, parts(packed.users.select(columns), order, cuts)), LISTS)
    by = [("user_id", "ascending"), ("rank", "ascending")]
    assert lists.sort_by(by).equals(packed.lists.sort_by(by))


def test_the_parts_together_are_lists_of_the_days_users_that_pass_the_last_look(packed: Packed, tmp_path: Path) -> None:
    rows = packed.lists.to_pylist()
    assert look(tmp_path, rows, packed.users, packed.items, K) == packed.users.num_rows - 1  # who has had everything has no list
    assert {(r["run_date"], r["run_id"], r["model_version"], r["arm"]) for r in rows} == {(DAY, "run", "7", "main")}
    assert {(r["run_date"], r["run_id"], r["model_version"]) for r in packed.vectors.to_pylist()} == {(DAY, "run", "7")}
    filled = {r["user_id"] for r in rows if r["source"] == FALLBACK}
    nobody = np.isnan(np.array(packed.vectors["vector"].to_pylist())).all(1)
    assert filled == set(np.array(packed.vectors["user_id"].to_pylist())[nobody]) == {"u027", "u028"}


def test_a_part_in_another_process_has_the_same_bits(packed: Packed, tmp_path: Path) -> None:
    feather.write_feather(packed.users.slice(5, 9).select(HISTORY), tmp_path / "users.arrow")
    work = pickle.dumps(partial(vectors_of, packed.folder))  # by reference: executors import it
    assert len(work) < 500
    (tmp_path / "work").write_bytes(work)
    code = ("import pickle, sys, pyarrow as pa, pyarrow.feather as f\n"
            "fn = pickle.load(open(sys.argv[1] + '/work', 'rb'))\n"
            "rows = f.read_table(sys.argv[1] + '/users.arrow').combine_chunks().to_batches(max_chunksize=4)\n"
            "f.write_feather(pa.Table.from_batches(fn(iter(rows))), sys.argv[1] + '/vectors.arrow')\n"
            "assert not {'torch', 'pyspark'} & set(sys.modules), 'an executor loads what it does not need'\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = feather.read_table(tmp_path / "vectors.arrow")
    assert told.equals(packed.vectors.slice(5, 9).cast(told.schema))


def test_no_users_are_no_rows_and_an_empty_batch_is_an_empty_batch(packed: Packed) -> None:
    assert list(vectors_of(packed.folder, iter([]))) == list(lists_of(packed.folder, iter([]))) == []
    empty = pa.RecordBatch.from_pylist([], packed.users.schema)
    vectors = list(vectors_of(packed.folder, iter([empty, empty])))
    assert [b.num_rows for b in vectors] == [0, 0]
    assert all(b.schema.equals(VECTORS) for b in vectors)
    assert sum(b.num_rows for b in lists_of(packed.folder, iter([empty]))) == 0


def test_a_popularity_bundle_packs_no_vectors_and_gives_popular_lists_in_parts(packed: Packed, tmp_path: Path) -> None:
    job = Job("", "", "cpu", 1, K, str(DAY), "run", "0")
    folder = tmp_path / "popular"
    # what an earlier try left there belongs to another model
    folder.mkdir()
    (folder / "item_vec.npy").write_bytes(b"torn")
    (folder / "item_in.npy").write_bytes(b"torn")
    pack(folder, job, packed.items, None)
    assert sorted(p.name for p in folder.iterdir()) == ["items.arrow", "job.json"]
    users = packed.users.select(["user_id", "item_ids", "seen_item_ids"])
    want = pa.Table.from_batches(slates(users, packed.items, None, K, Stamp(DAY, "run", "0"), {}), LISTS)
    got = pa.Table.from_batches(lists_of(str(folder), parts(users, list(range(users.num_rows)), [1, 1, 20])), LISTS)
    assert got.equals(want)
    assert set(got["source"].to_pylist()) == {"model"}


@pytest.mark.parametrize("model", [True, False])
def test_who_is_listed_twice_is_packed_and_kept_apart_in_every_part(packed: Packed, tmp_path: Path, model: bool) -> None:
    ids = packed.items["item_id"].to_pylist()
    groups = {i: f"g{n % 30}" for n, i in enumerate(ids) if n % 3} | {"of another day": "g1"}
    job, side = opened(packed.folder).job, opened(packed.folder).side
    users = packed.users if model else packed.users.drop_columns(["vector"])
    folder = str(pack(tmp_path / "packed", job, packed.items, side if model else None, groups))
    order = list(range(users.num_rows))[::-1]
    got = pa.Table.from_batches(lists_of(folder, parts(users, order, [3, 3, 11])), LISTS)
    vectors = Vectors(np.array(users["vector"].to_pylist(), np.float32), side.item_vec) if model and side else None
    codes = np.array([int(groups[i][1:]) if i in groups else 1000 + n for n, i in enumerate(ids)])
    want = pa.Table.from_batches(slates(users, packed.items, vectors, K, Stamp(DAY, "run", "7"), {}, codes), LISTS)
    by = [("user_id", "ascending"), ("rank", "ascending")]
    assert got.sort_by(by).equals(want.sort_by(by))
    rows = got.to_pylist()
    assert len({(r["user_id"], groups.get(r["item_id"], r["item_id"])) for r in rows}) == len(rows)
    # a pack of before, and one without twins, give what they always gave
    for known in (None, {}):
        plain = str(pack(tmp_path / "plain", job, packed.items, side, known))
        opened.cache_clear()
        lists = pa.Table.from_batches(lists_of(plain, parts(packed.users, order, [3, 3, 11])), LISTS)
        assert lists.sort_by(by).equals(packed.lists.sort_by(by))
    assert not got.sort_by(by).equals(packed.lists.sort_by(by))


# joins


def filled(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of a table with what a test does not care about filled in."""
    t = schema.table(name)
    fill: dict[str, Any] = {"STRING": "", "TIMESTAMP": 0, "DATE": DAY}
    values = {c.name: [r.get(c.name, None if c.nullable else fill.get(c.type, [] if "ARRAY" in c.type else 0)) for r in rows] for c in t.columns}
    return pa.table({c.name: pa.array(values[c.name], c.arrow.type) for c in t.columns}, schema=t.arrow)


def put(lake: Lake, name: str, rows: list[dict[str, Any]], day: date = DAY, run_id: str = "r") -> int:
    lake.create(name)
    table = filled(name, [r | {"run_date": day} for r in rows])
    return commit.write(lake, name, table, run_id=run_id, pinned=commit.fence(lake, name, day), partition=day).version


def mapped(lake: Lake, sources: dict[str, tuple[int, tuple[str, ...]]]) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = []

    def keep(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found.append(batch)
            yield batch

    assert [b.num_rows for b in map_arrow(lake, "local", SparkConfig(), DAY, sources, keep, "gold.recommendations")] == [
        b.num_rows for b in found]  # fmt: skip
    return found


def test_users_come_in_the_order_of_their_ids_with_what_the_other_table_knows_of_them(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    people = put(lake, "gold.user_sequences", [{"user_id": u, "item_ids": [u]} for u in ("c", "a", "ü", "b", "B")])
    known = put(lake, "gold.user_vectors", [{"user_id": u, "vector": [float(n)]} for n, u in enumerate(("b", "nobody", "c", "B", "a"))])
    # another day, and what came after the version that is read, are not seen
    put(lake, "gold.user_sequences", [{"user_id": "late"}], DAY + timedelta(days=1))
    put(lake, "gold.user_vectors", [{"user_id": "a", "vector": [99.0]}])
    sources = {"gold.user_sequences": (people, ("user_id", "item_ids")), "gold.user_vectors": (known, ("user_id", "vector"))}
    rows = pa.Table.from_batches(mapped(lake, sources))
    assert rows.column_names == ["user_id", "item_ids", "vector"]
    assert rows.to_pylist() == [
        {"user_id": "B", "item_ids": ["B"], "vector": [3.0]}, {"user_id": "a", "item_ids": ["a"], "vector": [4.0]},
        {"user_id": "b", "item_ids": ["b"], "vector": [0.0]}, {"user_id": "c", "item_ids": ["c"], "vector": [2.0]},
        {"user_id": "ü", "item_ids": ["ü"], "vector": None}]  # fmt: skip
    alone = pa.Table.from_batches(mapped(lake, {"gold.user_sequences": sources["gold.user_sequences"]}))
    assert alone.equals(rows.select(["user_id", "item_ids"]))


def test_a_day_without_users_has_no_batches(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    version = put(lake, "gold.user_sequences", [{"user_id": "late"}], DAY + timedelta(days=1))
    assert mapped(lake, {"gold.user_sequences": (version, ("user_id",))}) == []


def test_many_users_come_in_batches_of_a_bounded_size_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", 10)
    lake = Lake(tmp_path)
    names = [f"u{n:03d}" for n in np.random.default_rng(0).permutation(95)]
    people = put(lake, "gold.user_sequences", [{"user_id": u} for u in names])
    known = put(lake, "gold.user_vectors", [{"user_id": u, "vector": [float(u[1:])]} for u in names[::-1]])
    batches = mapped(lake, {"gold.user_sequences": (people, ("user_id",)), "gold.user_vectors": (known, ("user_id", "vector"))})
    assert max(b.num_rows for b in batches) == 10
    rows = [r for b in batches for r in b.to_pylist()]
    assert rows == [{"user_id": u, "vector": [float(u[1:])]} for u in sorted(names)]


# counts


@pytest.mark.parametrize("seed", range(6))
def test_what_was_staged_is_counted_as_one_would_by_hand(tmp_path: Path, seed: int) -> None:
    rng, k = np.random.default_rng(seed), 4
    Lake(tmp_path / "lake").create("gold.recommendations")
    night = Night(Config(home=tmp_path), DAY, replayed=Manifest(str(DAY), "", {}, "7", "", {}, {"k": k}, {}, ""))
    users = [f"u{n}" for n in range(12)]
    people = put(night.lake, "gold.user_sequences", [{"user_id": u} for u in users])
    vector = rng.normal(size=(12, 3)).astype(np.float32)
    vector[rng.random(12) < 0.3, 1] = np.nan
    vector[rng.random(12) < 0.2] = np.inf
    known = put(night.lake, "gold.user_vectors", [{"user_id": u, "vector": v.tolist()} for u, v in zip(users, vector, strict=True)])
    items = rng.normal(size=(9, 3)).astype(np.float32)
    items[rng.random(9) < 0.3, 0] = np.nan
    rows = [{"user_id": u, "rank": place + 1, "item_id": f"i{place}", "source": FALLBACK if rng.random() < 0.4 else "model", "arm": "main"}
            for u in users for place in range(int(rng.integers(0, k + 1)))]  # fmt: skip
    staged = stage.stage(night.lake, "gold.recommendations", iter(filled("gold.recommendations", rows).to_batches(max_chunksize=5)), "r")
    sources = {"gold.user_sequences": (people, ("user_id",)), "gold.user_vectors": (known, ("user_id", "vector"))}
    length = Counter(r["user_id"] for r in rows)
    want = {"users": 12, "rows": len(rows), "fallback_rows": sum(r["source"] == FALLBACK for r in rows),
            "short_lists": sum(length[u] < k for u in users), "dropped_users": sum(not all(map(np.isfinite, v)) for v in vector),
            "dropped_items": sum(not all(map(np.isfinite, v)) for v in items)}  # fmt: skip
    assert tally(night.lake, staged, DAY, night.manifest.config["k"], [items], sources) == want
    # those of a canary's users may be of another length
    longer = [[*v.tolist(), 1.0] if n % 3 else v.tolist() for n, v in enumerate(vector)]
    known = put(night.lake, "gold.user_vectors", [{"user_id": u, "vector": v} for u, v in zip(users, longer, strict=True)], run_id="r2")
    mixed = sources | {"gold.user_vectors": (known, ("user_id", "vector"))}
    twice = want | {"dropped_items": 2 * want["dropped_items"]}
    assert tally(night.lake, staged, DAY, night.manifest.config["k"], [items, items], mixed) == twice
    assert tally(night.lake, staged, DAY, night.manifest.config["k"], [], sources) == want | {"dropped_users": 0, "dropped_items": 0}


def test_nothing_staged_counts_every_user_as_short(tmp_path: Path) -> None:
    Lake(tmp_path / "lake").create("gold.recommendations")
    night = Night(Config(home=tmp_path), DAY, replayed=Manifest(str(DAY), "", {}, "7", "", {}, {"k": 3}, {}, ""))
    put(night.lake, "gold.user_sequences", [{"user_id": u} for u in "ab"])
    staged = stage.stage(night.lake, "gold.recommendations", iter([]), "r")
    assert tally(night.lake, staged, DAY, night.manifest.config["k"], [], {}) == {"users": 2, "rows": 0, "fallback_rows": 0, "short_lists": 2, "dropped_users": 0,
                                               "dropped_items": 0}  # fmt: skip


def test_a_shop_without_users_publishes_nothing_and_says_so(tmp_path: Path) -> None:
    home, day = tmp_path / "home", tmp_path / "shop" / "2026-03-01"
    day.mkdir(parents=True)
    (day / "items.jsonl").write_text("".join(json.dumps({"item_id": i, "title": i}) + "\n" for i in "ab"))
    mmrec("init", "--home", str(home), "--source", "files", "--root", str(day.parent))
    config.write(home, {"source": {"spec": "files", "root": day.parent}, "night": {"text": "", "image": "", "audio": ""}})
    done = mmrec("run", "--home", str(home), "--date", "2026-03-02", "--no-train", ok=(3,))
    assert "gold.user_sequences run_date=2026-03-02" in done.stderr
    assert Lake(home / "lake").run_dates() == []
