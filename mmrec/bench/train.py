"""`mmrec bench train`: training speed of mmrec's sequence tower and, interleaved in one run, of RecTools'.

In: a folder of Amazon sequences or a made-up shop of Amazon Beauty's size, slices, threads. Out: targets trained on a
second, and ratios; with minutes, also the validation ndcg@10 each side reaches in them, and the way there, at times
that double.
All sides have the same interactions in the same order, width, depth, heads, history, dropout, number of negatives and
threads. Each is a process (bench/trainers.py) that waits while another works; a slice of seconds goes through all
sides, in turning order, before the next. The clock runs over batches, forward, backward and update; what is made before
the first step, and ranking, is not on it. Lists are full rankings without what the user had, measured here for all.
Trade-off: order is all that a side is told of time, and a user's history is cut to what one window holds, so that an
epoch has the same targets on every side, which is checked; what mmrec makes of times, weights and content is left out.
With minutes, each side goes at the pace that it has by itself (mmrec's recipe, RecTools' defaults), and mmrec's fit
ends where its recipe says.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mmrec import metrics
from mmrec.bench import peers, trainers
from mmrec.bench.shop import purchases
from mmrec.bench.sides import Side
from mmrec.errors import InputError, QualityError
from mmrec.models.data import Fold, Items, Log, events_a_user
from mmrec.models.splits import leave_one_out
from mmrec.train.recipe import RECIPES

PEERS = ("rectools", "rectools_fast", "rectools_fast_sampled")
_SETTINGS: dict[str, Any] = {
    "d": 64, "blocks": 2, "heads": 2, "history": 50, "dropout": 0.2, "negatives": 256, "batch_users": 128,
    "batch_tokens": 1024, "peers_lr": 1e-3, "seed": 0,
}  # fmt: skip
_DAY = 86_400_000_000
_SHOP = (22_363, 12_101, 198_502)  # users, items, events of Amazon Beauty
_Tell = Callable[[str, int, int], None]


def bench(
    rounds: int, tell: _Tell, *, source: Path | None = None, threads: int = 2, seconds: float = 20.0,
    minutes: float | None = None, only: tuple[str, ...] = PEERS,
) -> dict[str, Any]:  # fmt: skip
    """Tokens a second of each side and mmrec's over the peers'; a token is a target trained on, padding is none.

    Args:
        rounds: slices. source: a folder with sequences.txt; None: a made-up shop. threads: of every side.
        only: the peers that take part. seconds: of a slice. minutes: each side trains for so long in `rounds` slices,
            each ending at twice the time of the one before, with a ranking after each; what comes before the first step
            is part of it, and rectools_fast_sampled, which its own model takes only if told, is left out; None: no
            ranking.

    Returns, of the sides that take part: tokens_per_s, rectools_tokens_per_s, rectools_fast_tokens_per_s,
        rectools_fast_sampled_tokens_per_s: medians of slices, and of each side tokens_per_step; ratio_vs_rectools,
        ratio_vs_rectools_fast, ratio_vs_rectools_fast_sampled: of the medians, `_low` and `_high` the lowest and
        highest of a round; settings. With minutes, of each side ndcg@10: the best after a slice; curves: side -> a row
        a slice of minutes, tokens, loss, ndcg@10.

    Raises: InputError: source is no folder of sequences, nobody in it has enough, or no such peer. QualityError: a
        side trains on other targets, or its loss is not a number. TransientError: RecTools' environment can't be made;
        a side failed.
    """
    if wrong := set(only) - set(PEERS):
        raise InputError("no such peer", where="bench train --peer", value=sorted(wrong), valid=list(PEERS),
                         next="mmrec bench train --help")  # fmt: skip
    data = interactions(source)
    items, log, fold = views(data)
    wanted = int(np.maximum(np.bincount(log.user[fold.train]) - 1, 0).sum())
    python = {"mmrec": [sys.executable, "-m", "mmrec.bench.trainers"]}
    sides = ["mmrec", *(p for p in PEERS if p in only and (minutes is None or p != "rectools_fast_sampled"))]
    theirs = [str(peers.environment("rectools", tell)), "-I", trainers.__file__]
    python |= {who: theirs for who in sides if who != "mmrec"}
    slices: dict[str, list[dict[str, Any]]] = {who: [] for who in sides}
    with tempfile.TemporaryDirectory(prefix="mmrec-bench-") as folder, ExitStack() as stack:
        np.savez(Path(folder) / "data.npz", **data)
        (Path(folder) / "settings.json").write_text(json.dumps(_SETTINGS | {"whole": minutes is not None}))
        running, spent = {}, {}
        for who in sides:  # one after the other: a side that starts works too
            tell(f"bench train: {who} begins", 0, rounds * len(sides))
            running[who] = stack.enter_context(_side(who, python[who], Path(folder), threads))
            spent[who] = _checked(who, running[who].ask({"seconds": 0}), wanted)["seconds"]
        for n in range(rounds):
            for m in range(len(sides)):
                who = sides[(n + m) % len(sides)]
                tell(f"bench train: {who}", n * len(sides) + m, rounds * len(sides))
                left = seconds if minutes is None else 60 * minutes / 2 ** (rounds - 1 - n) - spent[who]
                row = _checked(who, running[who].ask({"seconds": max(left, 0.0)}), wanted)
                spent[who] += row["seconds"]
                row["minutes"] = round(spent[who] / 60, 2)
                if minutes is not None:
                    row["ndcg@10"] = round(_ndcg(running[who], Path(folder) / f"{who}.npy", fold), 5)
                slices[who].append(row)
        tell("bench train", rounds * len(sides), rounds * len(sides))
    about = {"source": "a made-up shop" if source is None else source.name, "users": log.n_users, "items": items.n,
             "targets": wanted, "threads": threads, "rounds": rounds}  # fmt: skip
    pace = RECIPES["default"].pace(events_a_user(log, fold.train))
    about |= {"seconds": seconds} if minutes is None else {"minutes": minutes, "mmrec": pace}
    pins = peers.pinned("rectools")
    about |= {"torch": version("torch"), "rectools": pins["RecTools"], "rectools_torch": pins["torch"]}
    return _told(slices) | {"settings": _SETTINGS | about}


def _told(slices: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What `bench` returns of its slices, without the settings.

    Args:
        slices: side -> a row a round, of tokens, seconds, steps, loss, minutes and, where it was asked for, ndcg@10.
    """
    rate = {who: [row["tokens"] / row["seconds"] if row["tokens"] else None for row in rows]
            for who, rows in slices.items()}  # fmt: skip
    middle = {who: statistics.median(r for r in each if r is not None) for who, each in rate.items()}
    out: dict[str, Any] = {_key(who, "tokens_per_s"): round(middle[who], 1) for who in slices}
    out |= {_key(who, "tokens_per_step"): round(sum(r["tokens"] for r in rows) / sum(r["steps"] for r in rows), 1)
            for who, rows in slices.items()}  # fmt: skip
    for who in slices:
        if who != "mmrec":
            # a fit that is over has no rate
            each = [a / b for a, b in zip(rate["mmrec"], rate[who], strict=True) if a is not None and b is not None]
            name = f"ratio_vs_{who}"
            out |= {name: round(middle["mmrec"] / middle[who], 2), f"{name}_low": round(min(each), 2),
                    f"{name}_high": round(max(each), 2)}  # fmt: skip
    if all("ndcg@10" in row for rows in slices.values() for row in rows):
        out |= {_key(who, "ndcg@10"): max(row["ndcg@10"] for row in rows) for who, rows in slices.items()}
        out["curves"] = {who: [{k: row[k] for k in ("minutes", "tokens", "loss", "ndcg@10")} for row in rows]
                         for who, rows in slices.items()}  # fmt: skip
    return out


def _key(who: str, name: str) -> str:
    return name if who == "mmrec" else f"{who}_{name}"


def interactions(source: Path | None) -> dict[str, np.ndarray]:
    """What all sides train on, by user, then in order.

    Of each user's items, each once, the last history + 3: one window of inputs and targets, one to validate, one that
    nobody sees. Users with fewer than four are left out.

    Returns: user, item, place (E,) int64, dense and 0 at a user's first; train (E,) bool; case_user (C,) int64;
        n_items () int64.

    Raises: InputError: no folder of sequences; no user with four items.
    """
    had: dict[str, dict[str, None]] = {}
    for user, item in _pairs(source):
        had.setdefault(user, {})[item] = None
    kept = {user: list(own)[-(_SETTINGS["history"] + 3) :] for user, own in sorted(had.items()) if len(own) > 3}
    if not kept:
        raise InputError("nobody has enough items to train on", where=str(source), value=f"{len(had)} users",
                         valid="a user with four items", next="mmrec bench train --help")  # fmt: skip
    at = {item: n for n, item in enumerate(sorted({item for own in kept.values() for item in own}))}
    size = [len(own) for own in kept.values()]
    back = np.concatenate([np.arange(n)[::-1] for n in size])
    data = {"user": np.repeat(np.arange(len(size)), size), "item": np.array([at[i] for o in kept.values() for i in o]),
            "place": np.concatenate([np.arange(n) for n in size]), "train": back > 1,
            "n_items": np.array(len(at))}  # fmt: skip
    return data | {"case_user": views(data)[2].case_user.astype(np.int64)}


def views(data: dict[str, np.ndarray]) -> tuple[Items, Log, Fold]:
    """mmrec's views of `interactions`; an event a day, as nothing but order is told. The fold is the validation."""
    n, users = int(data["n_items"]), int(data["user"].max()) + 1
    day = data["place"].astype(np.int64) * _DAY
    items = Items(ids=np.array([f"{i:09d}" for i in range(n)], object), content={}, present={},
                  available_us=np.full(n, -1, np.int64), withdrawn_us=np.full(n, np.iinfo(np.int64).max),
                  category=np.full(n, "", object))  # fmt: skip
    log = Log(user_ids=np.array([f"{u:09d}" for u in range(users)], object), event_types=("event",),
              user=data["user"].astype(np.int32), item=data["item"].astype(np.int32), ts_us=day,
              weight=np.ones(len(day), np.float32), event=np.zeros(len(day), np.int16), available_us=day)  # fmt: skip
    return items, log, leave_one_out(log, items, validation=True)


def _pairs(source: Path | None) -> list[tuple[str, str]]:
    """(user, item), a user's in order of time."""
    if source is None:
        return [(f"{u:06d}", f"{i:06d}") for u, i in zip(*(x.tolist() for x in purchases(*_SHOP)), strict=True)]
    from mmrec.worlds.sources import open_source

    rows = [row for delivery in open_source("amazon", source, source).deliveries() if delivery.kind == "interactions"
            for batch in delivery.read() for row in batch.to_pylist() if not row["parse_error"]]  # fmt: skip
    whole = [(row["user_id"], row["event_ts"], row["item_id"]) for row in rows]
    return [(user, item) for user, _, item in sorted(row for row in whole if all(row))]


def _checked(who: str, row: dict[str, Any], wanted: int) -> dict[str, Any]:
    if row["targets"] != wanted:
        raise QualityError("a side trains on other targets", where=f"bench train, {who}", value=row["targets"],
                           valid=f"{wanted} an epoch", next="mmrec bench train --help")  # fmt: skip
    if not np.isfinite(row["loss"]):
        raise QualityError("the loss is not a number", where=f"bench train, {who}", value=row["loss"],
                           next="mmrec bench train --help")  # fmt: skip
    return row


def _ndcg(side: Side, file: Path, fold: Fold) -> float:
    side.ask({"rank": str(file)})
    return float(metrics.ranking(np.load(file), fold.target_ptr, fold.target_item, (10,))["ndcg@10"].mean())


def _side(name: str, python: list[str], folder: Path, threads: int) -> Side:
    words = [*python, name, str(folder), str(threads)]
    return Side(f"bench train, {name}", words, folder / f"{name}.log", {"OMP_NUM_THREADS": str(threads)})
