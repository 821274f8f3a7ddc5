"""`mmrec bench topk`: the K best of a whole catalogue, by mmrec and, interleaved in one run, by its peers.

In: sizes. Out: for each case the seconds of mmrec's kernel in fp32 (`exact_s`) and of the way it takes by itself
(`fast_s`), of the same loop over the same tiles without selection (`limit_s`), of the peers, and ratios of speeds.
Vectors are random, or a trained model's: implicit's ALS over made-up purchases, whose items differ in popularity and
belong together in groups.
Before the clock, every way that mmrec has must give the lists of a plain fp64 loop over the first users, and all ways
the same lists for everybody. Each side is a process (bench/searchers.py) that waits while another works.
Trade-off: medians over rounds of a whole search each, not of many small ones: what a night does.

Shape legend: U users, N items, D columns, K places.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from mmrec.bench import peers, searchers
from mmrec.bench.sides import Side
from mmrec.errors import QualityError
from mmrec.topk import exact

_OWN = "fp32" if "fp32" in exact.WAYS else "portable"
_Tell = Callable[[str, int, int], None]
_SEEN, _CHECKED, _AT_ONCE = 50, 128, 8
_GROUPS, _OF_GROUP, _PURCHASES = 200, 0.7, 10_000_000


def bench(
    rounds: int, tell: _Tell, *, users: int = 8192, items: int = 100_000, million: bool = True, k: int = 100,
    threads: int = 2, dims: tuple[int, ...] = (64, 128),
) -> dict[str, Any]:  # fmt: skip
    """Speeds of all sides, case by case.

    Args:
        rounds: searches of a side in a case. users, items, k, dims: of the cases. million: also ten times the items, of
            the first of dims. threads: of every side.

    Returns: threads, rounds, way (the kernels that this machine has); cases, each with users, items, dim, k, vectors,
        limit_s, exact_s, fast_s, peers (name: seconds), mismatches (of lists with the fp64 loop's and of ways among
        themselves), exact_vs_limit, exact_vs_best_peer, fast_vs_best_peer (speeds; above 1 is faster), best_peer,
        peer_differs (name: share of lists whose items are others).

    Raises: QualityError: a list is not the fp64 loop's. TransientError: a peer can't be had; a side failed.
    """
    about = [(items, d, kind) for d in dims for kind in ("random", "trained")]
    about += [(10 * items, dims[0], kind) for kind in ("random", "trained")] if million else []
    cases = []
    for n, (size, d, kind) in enumerate(about):
        def said(what: str, done: int, of: int, n: int = n) -> None:
            tell(f"bench topk: case {n + 1} of {len(about)}, {what}", done, of)

        cases.append(_case(users, size, d, kind, k, rounds, threads, said))
    return {"threads": threads, "rounds": rounds, "ways": list(exact.WAYS), "cases": cases}


def _case(users: int, items: int, d: int, kind: str, k: int, rounds: int, threads: int, tell: _Tell) -> dict[str, Any]:
    tell("vectors", 0, rounds)
    user_UD, item_ND = _random(users, items, d) if kind == "random" else _trained(users, items, d)
    rng = np.random.default_rng(1)
    seen_UW = np.sort(rng.integers(0, items, (users, _SEEN)), axis=1)
    first = np.concatenate([np.ones((users, 1), bool), seen_UW[:, 1:] != seen_UW[:, :-1]], 1)
    seen = np.concatenate([[0], np.cumsum(first.sum(1))]).astype(np.int64), seen_UW[first].astype(np.int32)
    with tempfile.TemporaryDirectory(prefix="mmrec-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        for what, array in {"user": user_UD, "item": item_ND, "seen_ptr": seen[0], "seen_idx": seen[1]}.items():
            np.save(folder / f"{what}.npy", array)
        (folder / "k.json").write_text(json.dumps(k))
        running = {}
        for side in ("mmrec", *searchers.PEERS):
            python = str(peers.environment("topk", tell)) if side == "faiss" else sys.executable
            words = [python, *(("-I", searchers.__file__) if side == "faiss" else ("-m", "mmrec.bench.searchers"))]
            env = {"OMP_NUM_THREADS": str(threads)} | ({"OPENBLAS_NUM_THREADS": "1"} if side == "implicit" else {})
            running[side] = stack.enter_context(Side(
                f"bench topk, {side}", [*words, side, name, str(threads)], folder / f"{side}.log", env))  # fmt: skip
        mismatches = _check(running["mmrec"], folder, user_UD, item_ND, seen, k)
        asked = [("mmrec", way) for way in ("limit", _OWN, "fast") if way != "limit" or _OWN == "fp32"]
        asked += [(peer, "fast") for peer in searchers.PEERS]
        spent: dict[tuple[str, str], list[float]] = {a: [] for a in asked}
        lists = {}
        for n in range(rounds):
            for m in range(len(asked)):
                side, way = asked[(n + m) % len(asked)]
                tell(side, n * len(asked) + m, rounds * len(asked))
                out = str(folder / f"{side}.npz") if n == 0 and way == "fast" else None
                spent[side, way].append(running[side].ask({"way": way, "users": users, "out": out})["seconds"])
        for side in running:
            with np.load(folder / f"{side}.npz") as found:
                lists[side] = np.sort(found["item"], axis=1)
    middle = {a: statistics.median(s) for a, s in spent.items()}
    own, fast = (middle["mmrec", w] for w in (_OWN, "fast"))
    limit = middle.get(("mmrec", "limit"), float("nan"))
    theirs = {p: middle[p, "fast"] for p in searchers.PEERS}
    best = min(theirs, key=theirs.__getitem__)
    return {
        "users": users, "items": items, "dim": d, "k": k, "vectors": kind, "limit_s": round(limit, 4),
        "exact_s": round(own, 4), "fast_s": round(fast, 4), "peers": {p: round(s, 4) for p, s in theirs.items()},
        "mismatches": mismatches, "exact_vs_limit": round(limit / own, 3), "best_peer": best,
        "exact_vs_best_peer": round(theirs[best] / own, 3), "fast_vs_best_peer": round(theirs[best] / fast, 3),
        "peer_differs": {p: round(float((lists[p] != lists["mmrec"]).any(1).mean()), 4) for p in theirs},
    }  # fmt: skip


def _check(side: Side, folder: Path, user_UD: np.ndarray, item_ND: np.ndarray, seen: Any, k: int) -> int:
    """0; lists of every way against the loop's for the first users, and against each other's for all."""
    wanted = _loop(user_UD[:_CHECKED], item_ND, seen, k)
    one: tuple[np.ndarray, np.ndarray] | None = None
    wrong = 0
    for way in exact.WAYS:
        file = folder / "checked.npz"
        head = len(wanted[0])
        # ONNX Runtime's own is not timed: a device's
        side.ask({"way": way, "users": head if way == "graph" else len(user_UD), "out": str(file)})
        with np.load(file) as found:
            got = found["item"], found["score"]
        for mine, right in ((got[0][:head], wanted[0]), (got[1][:head], wanted[1]), *zip(got, one or got, strict=True)):
            wrong += int((mine != right[: len(mine)]).any(1).sum())
        one = one or got
    if wrong:
        raise QualityError("lists are not the exact ones", where="bench topk", value=f"{wrong} lists", valid="0",
                           next="mmrec doctor")  # fmt: skip
    return wrong


def _loop(user_BD: np.ndarray, item_ND: np.ndarray, seen: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, K) twice, the plain way: every product in fp64, added in order, rounded once, sorted."""
    items, scores = [], []
    for start in range(0, len(user_BD), _AT_ONCE):
        block = user_BD[start : start + _AT_ONCE].astype(np.float64)
        total = np.zeros((len(block), len(item_ND)))
        for j in range(item_ND.shape[1]):
            total += block[:, j, None] * item_ND[:, j].astype(np.float64)
        score = total.astype(np.float32)
        for b in range(len(block)):
            score[b, seen[1][seen[0][start + b] : seen[0][start + b + 1]]] = -np.inf
            near = np.argpartition(-score[b], min(4 * k, len(item_ND) - 1))
            edge = score[b][near[: min(4 * k, len(item_ND))]].min()
            pool = np.flatnonzero(score[b] >= edge)
            order = pool[np.lexsort((pool, -score[b][pool]))][:k]
            items.append(order)
            scores.append(score[b][order])
    return np.stack(items), np.stack(scores)


def _random(users: int, items: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((users, d), np.float32), rng.standard_normal((items, d), np.float32)


def _trained(users: int, items: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of implicit's ALS, of purchases by three times the users and thirty an item, ten million at most."""
    from implicit.als import AlternatingLeastSquares
    from scipy import sparse

    rng = np.random.default_rng(0)
    rows, shoppers = min(30 * items, _PURCHASES), max(3 * users, items // 4)
    group_I = rng.integers(0, _GROUPS, items)
    by_group = np.argsort(group_I, kind="stable")
    ptr = np.searchsorted(group_I[by_group], np.arange(_GROUPS + 1))
    owner = rng.integers(0, shoppers, rows)
    liked = rng.integers(0, _GROUPS, (shoppers, 3))[owner, rng.integers(0, 3, rows)]
    # the r-th of a group is bought in proportion to 1 / r, about
    share = np.exp(rng.random(rows) * np.log(np.maximum(ptr[liked + 1] - ptr[liked], 1))) - 1
    item = by_group[np.minimum(ptr[liked] + share.astype(np.int64), ptr[liked + 1] - 1)]
    item = np.where(rng.random(rows) < _OF_GROUP, item, rng.integers(0, items, rows))
    matrix = sparse.csr_matrix((np.ones(rows, np.float32), (owner, item)), shape=(shoppers, items))
    model = AlternatingLeastSquares(factors=d, iterations=5, random_state=0, num_threads=2)
    with threadpool_limits(1, user_api="blas"):  # as implicit asks for
        model.fit(matrix, show_progress=False)
    return model.user_factors[:users].astype(np.float32), model.item_factors.astype(np.float32)
