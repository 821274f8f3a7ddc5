"""`mmrec bench recommend`: the whole of the night's scoring and publishing, and how much of it is the search.

In: how many users and items. Out: seconds of the stations recommend and publish as a night calls them, on a home of a
made-up shop with a trained model: item encoder, user encoder, user vectors committed, exact top K, rows with reasons,
staging, audit, commit. Then the same work again, part by part. Half the users come first, as a night of their own: two
sizes say what a user and what a catalogue costs, and so what a million users would take.
It runs in a process of its own, whose memory is its own.
Trade-off: parts are measured by themselves, after the whole, so they don't add up to it to the last digit; nothing in
the stations knows that they are measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import mmrec
from mmrec import config as settings
from mmrec import night as stations
from mmrec import schema
from mmrec.bench.shop import purchases
from mmrec.bench.sides import Side
from mmrec.bundle import bundle as bundles
from mmrec.context import Night
from mmrec.lake import commit
from mmrec.lake.manifest import Manifest
from mmrec.memory import Peak
from mmrec.publish import publish
from mmrec.recommend import spread
from mmrec.recommend.packed import Job, pack
from mmrec.recommend.score import item_side
from mmrec.recommend.scorers import Vectors
from mmrec.topk.rerank import Rerank

_DAYS = (date(2026, 3, 1), date(2026, 3, 2))  # half the users, all of them
_EVENTS = 20  # a user
_FITTED = 20_000  # users that the model is fitted on
_D, _RANK = 48, 12  # with three constants and a content of none these make vectors of 64
_BATCH, _BLOCK = 8192, 8192  # users at a time: of the engine, of a list
_DEPTH = 100  # of a blend's members
_MILLION = 1_000_000
_Tell = Callable[[str, int, int], None]


def bench(
    tell: _Tell, *, users: int = 100_000, items: int = 100_000, k: int = 100, threads: int = 2
) -> dict[str, Any]:
    """Seconds of the stations, and of their parts.

    Args:
        k: places in a list. threads: of encoders and BLAS; the search takes the cores it has.

    Returns: users, items, k, dim; rows written; recommend_s, publish_s, and half_recommend_s, half_publish_s of half
        the users; peak_mb: the process' greatest resident memory, MiB, recommend_peak_mb: while it recommends,
        half_peak_mb: with half the users; parts: seconds of items_s (item encoder), users_s (user encoder), kernel_s
        (top K alone), rows_s (reasons and rows), write_s (the rest of recommend: reading, Parquet, commits);
        kernel_share: of recommend; rerank_s: the search where the model's three parts are members of a blend by
        stacking, and blend_vs_single: the time of recommend with it, over that without; million_users_s: both
        stations, on the line through the two sizes; user_ms and fixed_s: that line.
    """
    with tempfile.TemporaryDirectory(prefix="mmrec-bench-") as name:
        folder = Path(name)
        tell("bench recommend: a model", 0, 3)
        members = _home(folder, users, items, k, threads)
        words = [sys.executable, "-m", "mmrec.bench.recommend", str(folder / "home")]
        told = []
        with Side("bench recommend", words, folder / "side.log", {"OMP_NUM_THREADS": str(threads)}) as side:
            for n, day in enumerate(_DAYS):
                tell(f"bench recommend: {users >> (1 - n)} users", 1 + n, 3)
                told.append(side.ask({"day": str(day)}))
            tell("bench recommend: part by part", 3, 3)
            parts = side.ask({"parts": str(_DAYS[1]), "members": members})
    half, whole = told
    both = [t["recommend_s"] + t["publish_s"] for t in told]
    slope = (both[1] - both[0]) / (users - users // 2)
    dim, rerank = parts.pop("dim"), parts.pop("rerank_s")
    parts["write_s"] = whole["recommend_s"] - sum(parts.values())
    return {
        "users": users, "items": items, "k": k, "dim": dim, "rows": whole["rows"], "threads": threads,
        "recommend_s": round(whole["recommend_s"], 2), "publish_s": round(whole["publish_s"], 2),
        "half_recommend_s": round(half["recommend_s"], 2), "half_publish_s": round(half["publish_s"], 2),
        "half_peak_mb": half["peak_mb"], "recommend_peak_mb": whole["recommend_peak_mb"], "peak_mb": whole["peak_mb"],
        "parts": {n: round(s, 2) for n, s in parts.items()},
        "kernel_share": round(parts["kernel_s"] / whole["recommend_s"], 3), "rerank_s": round(rerank, 2),
        "blend_vs_single": round(1 + (rerank - parts["kernel_s"]) / whole["recommend_s"], 3),
        "user_ms": round(1000 * slope, 4),
        "fixed_s": round(both[1] - slope * users, 2),
        "million_users_s": round(both[1] + slope * (_MILLION - users), 1),
    }  # fmt: skip


def _home(folder: Path, users: int, items: int, k: int, threads: int) -> list[tuple[int, int]]:
    """A home with a sealed model, planned for both dates, with their features; the columns of the model's parts."""
    from mmrec.run import make_home

    owner_E, item_E = purchases(users, items, _EVENTS * users)
    config = make_home(folder / "home")
    toml = folder / "home" / "mmrec.toml"
    toml.write_text(f"threads = {threads}\n" + toml.read_text())
    digest, members = _model(config.bundles / "1", owner_E, item_E, items)
    for n, day in enumerate(_DAYS):
        some = owner_E < users >> (1 - n)
        night = Night(settings.load(folder / "home"), day)
        fences = {name: commit.fence(night.lake, name, day) for name in stations.TARGETS}
        pinned = ("gold.item_embeddings", "silver.item_groups")
        night.planned(Manifest(
            str(day), night.as_of.isoformat(), {name: night.lake.pin(name) for name in pinned}, "1", digest, {},
            config.night.model_dump() | {"k": k, "zone": config.zone, "rules": []}, fences,
            mmrec.__version__))  # fmt: skip
        made = {"gold.user_sequences": _sequences(owner_E[some], item_E[some], day),
                "gold.item_features": _offers(item_E[some], items, day)}  # fmt: skip
        run_id = night.manifest.run_id
        for name, columns in made.items():
            arrow = schema.table(name).arrow
            n_rows = len(next(iter(columns.values())))
            same = {"run_date": day, "run_id": run_id, "attributes": "{}"}
            rows = [columns[f.name].cast(f.type) if f.name in columns else
                    pa.repeat(pa.scalar(same.get(f.name), f.type), n_rows) for f in arrow]  # fmt: skip
            table = pa.Table.from_arrays(rows, schema=arrow)
            commit.write(night.lake, name, table, run_id=run_id, pinned=fences[name], partition=day)
    return members


def _model(folder: Path, owner_E: np.ndarray, item_E: np.ndarray, items: int) -> tuple[str, list[tuple[int, int]]]:
    """Fit the main model on some of the users, one epoch, and seal its bundle; the digest, the columns of its parts."""
    from dataclasses import replace

    from mmrec.bench.train import views
    from mmrec.train.export import export
    from mmrec.train.fit import Champion
    from mmrec.train.recipe import RECIPES

    some = owner_E < _FITTED
    place_E = np.arange(some.sum()) - np.searchsorted(owner_E[some], owner_E[some])
    data = {"user": owner_E[some], "item": item_E[some], "place": place_E, "n_items": np.array(items)}
    shop, log, fold = views(data)
    recipe = replace(RECIPES["small"], d=_D, rank=_RANK, epochs=1, schedule=1)
    model = Champion(recipe, seed=0).fit(shop, log, fold)
    about = export(model, shop, log, fold, folder)
    about |= {"kind": "two_tower", "encoders": {}, "features": schema.features_fingerprint()}
    return bundles.seal(folder, about), list(model.members)


def _names(n: int) -> pa.Array:
    return pa.array([f"{i:09d}" for i in range(n)])


def _lists(ptr: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(ptr, pa.int32()), values)


def _sequences(owner_E: np.ndarray, item_E: np.ndarray, day: date) -> dict[str, pa.Array]:
    n = int(owner_E[-1]) + 1
    ptr = np.searchsorted(owner_E, np.arange(n + 1))
    names = _names(int(item_E.max()) + 1)
    pair = np.unique(owner_E * len(names) + item_E)
    seen_ptr = np.searchsorted(pair // len(names), np.arange(n + 1))
    e, size = len(item_E), pa.array(np.diff(ptr))
    last = int((day - date(1970, 1, 1)) / timedelta(microseconds=1)) - 1
    return {
        "user_id": _names(n), "item_ids": _lists(ptr, names.take(pa.array(item_E))),
        "event_types": _lists(ptr, pa.repeat("event", e)), "event_us": _lists(ptr, pa.repeat(last, e)),
        "gap_s": _lists(ptr, pa.repeat(86_400, e)), "weight_micro": _lists(ptr, pa.repeat(1_000_000, e)),
        "seen_item_ids": _lists(seen_ptr, names.take(pa.array(pair % len(names)))), "n_interactions": size,
        "n_7d": size, "n_30d": size, "n_90d": size,
    }  # fmt: skip


def _offers(item_E: np.ndarray, items: int, day: date) -> dict[str, pa.Array]:
    bought = pa.array(np.bincount(item_E, minlength=items))
    names = _names(items)
    return {
        "item_id": names, "title": pa.array([f"Title {i}" for i in range(items)]),
        "categories": _lists(np.zeros(items + 1, int), pa.array([], pa.string())), "n_interactions": bought,
        "n_users": bought, "n_7d": bought, "n_30d": bought, "n_90d": bought,
        "popularity_micro": pa.array(np.bincount(item_E, minlength=items) * 1_000_000),
        "available_us": pa.array(np.zeros(items, np.int64)),
    }  # fmt: skip


def _whole(night: Night) -> dict[str, Any]:
    """Both stations."""
    with Peak() as first:
        counts, recommend_s = _timed(lambda: stations.recommend(night))
    with Peak() as second:
        publish_s = _timed(lambda: publish(night))[1]
    return {"recommend_s": recommend_s, "publish_s": publish_s, "rows": counts["rows"],
            "recommend_peak_mb": first.megabytes, "peak_mb": max(first.megabytes, second.megabytes)}  # fmt: skip


def _parts(night: Night, members: list[tuple[int, int]]) -> dict[str, Any]:
    """Parts of the station recommend, in the batches that it has, their results dropped."""
    m, config = night.manifest, night.config
    spent: dict[str, Any] = {}
    items = night.lake.day("gold.item_features", m.day).sort_by("item_id")
    users = night.lake.day("gold.user_sequences", m.day).sort_by("user_id")
    model = bundles.load(config.bundles / m.model_version, m.model_digest)
    side, spent["items_s"] = _timed(
        lambda: item_side(model, items, night.lake, m.tables, device=config.device, threads=config.threads)
    )
    assert side is not None
    job = Job(str(config.bundles.absolute() / "1"), m.model_digest, config.device, config.threads, m.config["k"],
              m.run_date, m.run_id, "1", model.kind, model.about.get("blend"), m.config["rules"])  # fmt: skip
    packed = str(pack(night.folder / "parts", job, items, side))
    vectors, spent["users_s"] = _timed(
        lambda: pa.Table.from_batches(spread.vectors_of(packed, _batches(users))))  # fmt: skip
    user_UD = np.stack(vectors["vector"].to_numpy())
    how = Rerank("stacking", _DEPTH, tuple((a, b) for a, b in members), (1.0,) * len(members) + (-0.5,) * len(members))
    single = Vectors(user_UD, side.item_vec, device=config.device)
    blend = Vectors(user_UD, side.item_vec, how=how, cold_N=side.cold, device=config.device)
    nobody = np.zeros(_BLOCK + 1, np.int64), np.zeros(0, np.int32)

    def search(found: Vectors) -> None:
        for start in range(0, len(user_UD), _BLOCK):
            n = min(_BLOCK, len(user_UD) - start)
            found.best(slice(start, start + n), slice(None), job.k, (nobody[0][: n + 1], nobody[1]))

    spent["kernel_s"], spent["rerank_s"] = (_timed(partial(search, found))[1] for found in (single, blend))
    asked = users.select(["user_id", "item_ids", "seen_item_ids"]).append_column("vector", vectors["vector"])

    def lists() -> None:
        for _ in spread.lists_of(packed, _batches(asked)):
            pass

    spent["rows_s"] = _timed(lists)[1] - spent["kernel_s"]
    return spent | {"dim": user_UD.shape[1]}


def _batches(table: pa.Table) -> Iterator[pa.RecordBatch]:
    return iter(table.combine_chunks().to_batches(max_chunksize=_BATCH))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    made = work()
    return made, time.perf_counter() - begun


def _main(home: str) -> None:
    """Serve orders until stdin ends: {"day": D} the stations of a date, {"parts": D, "members": M} its parts."""
    answers = partial(print, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        day = date.fromisoformat(order.get("day") or order["parts"])
        night = Night(settings.load(Path(home)), day)
        answers(json.dumps(_whole(night) if "day" in order else _parts(night, order["members"])))


if __name__ == "__main__":
    _main(*sys.argv[1:])
