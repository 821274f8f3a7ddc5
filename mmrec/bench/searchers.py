"""One side of `mmrec bench topk`, in a process of its own: `searchers.py SIDE FOLDER THREADS`.

In: a side's name; a folder with user.npy (U, D), item.npy (N, D), seen_ptr.npy, seen_idx.npy and k.json; orders on
stdin, a line of JSON each: {"way": w, "users": n, "out": FILE or null} search for the first n users. Out: a line of
JSON an order, {"seconds"}; FILE.npz with item (n, K) int64, score (n, K) float32.
What can be made before users come (packed items, an index, a session) is made before the clock starts, on every side.
Peers are given users in blocks of the size that suits them best of four, found before; what a user has seen is asked
for on top of K and taken out behind, unless a peer does that itself.
A peer runs in its own environment, which may have no mmrec: a side imports what is its own when it is called.
Trade-off: ties and rounding are each peer's own: its lists are compared, not demanded to be equal.

Shape legend: U users, B users of a block, N items, D columns, K places, W places asked for.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_BLOCKS = (64, 256, 512, 1024)
_TRIED = 1024
Lists = tuple[np.ndarray, np.ndarray]
_Search = Callable[[slice], Lists]


class Data:
    """What all sides search in. `seen_ptr` (U + 1,), `seen_idx`, ascending within a user."""

    def __init__(self, folder: Path) -> None:
        self.user, self.item, self.seen_ptr, self.seen_idx = (
            np.load(folder / f"{name}.npy") for name in ("user", "item", "seen_ptr", "seen_idx"))  # fmt: skip
        self.k = int(json.loads((folder / "k.json").read_text()))
        self.wide = min(len(self.item), self.k + int(np.diff(self.seen_ptr).max(initial=0)))
        owner = np.repeat(np.arange(len(self.user), dtype=np.int64), np.diff(self.seen_ptr))
        self.seen_key = owner * len(self.item) + self.seen_idx

    def unseen(self, block: slice, item_BW: np.ndarray, score_BW: np.ndarray) -> Lists:
        """The first K of each row that the user has not seen; there are enough."""
        key_BW = np.arange(block.start, block.stop, dtype=np.int64)[:, None] * len(self.item) + item_BW
        at_BW = np.minimum(np.searchsorted(self.seen_key, key_BW), max(len(self.seen_key) - 1, 0))
        had_BW = self.seen_key[at_BW] == key_BW if len(self.seen_key) else np.zeros(key_BW.shape, bool)
        order_BK = np.argsort(had_BW, axis=1, kind="stable")[:, : self.k]
        return np.take_along_axis(item_BW, order_BK, 1), np.take_along_axis(score_BW, order_BK, 1)


def _mmrec(data: Data, threads: int) -> dict[str, Callable[[int], Lists]]:
    from mmrec.topk import exact, native
    from mmrec.topk.catalogue import Catalogue

    catalogue = Catalogue(data.item)
    seen = data.seen_ptr, data.seen_idx

    def search(way: str | None, n: int) -> Lists:
        own = seen[0][: n + 1], seen[1]
        found = exact.search(data.user[:n], catalogue, data.k, seen=own, threads=threads, way=way)
        return found.item, found.score

    def limit(n: int) -> Lists:
        """The kernel's loop over the same blocks and tiles, with nothing compared and nothing kept."""
        norm, margin, none = np.ones(n), np.zeros(n), (np.zeros(n + 1, np.int64), np.zeros(0, np.int32))
        out = np.full((n, data.k), -1, np.int32), np.full((n, data.k), -np.inf, np.float32)
        tile = max(1, exact.TILE_BYTES // (4 * data.item.shape[1] * native.PANEL))

        def block(start: int) -> None:
            rows = slice(start, min(start + exact.BLOCK, n))
            native.search_block(catalogue.fp32, data.user[rows], norm[rows], margin[rows], data.k,
                                (none[0][: rows.stop - rows.start + 1], none[1]), tile, out[0][rows], out[1][rows],
                                select=False)  # fmt: skip

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(block, range(0, n, exact.BLOCK)))
        return out

    def way(name: str | None) -> Callable[[int], Lists]:
        return lambda n: search(name, n)

    ways = {name: way(name) for name in exact.WAYS} | {"fast": way(None)}
    if "fp32" in ways:
        ways["limit"] = limit
    for made in ways.values():
        made(min(len(data.user), 64))  # packs, compiles
    return ways


def _onnxruntime(data: Data, threads: int) -> _Search:
    import onnxruntime as ort
    from onnx import TensorProto, helper

    nodes = [helper.make_node("MatMul", ["user", "item"], ["all"]),
             helper.make_node("TopK", ["all", "width"], ["score", "place"], axis=1)]  # fmt: skip
    inputs = [helper.make_tensor_value_info("user", TensorProto.FLOAT, ["B", "D"]),
              helper.make_tensor_value_info("item", TensorProto.FLOAT, ["D", "N"]),
              helper.make_tensor_value_info("width", TensorProto.INT64, [1])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("place", TensorProto.INT64, ["B", "W"]),
               helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B", "W"])]  # fmt: skip
    graph = helper.make_graph(nodes, "topk", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    across, width = np.ascontiguousarray(data.item.T), np.array([data.wide], np.int64)

    def search(block: slice) -> Lists:
        place, score = session.run(["place", "score"], {"user": data.user[block], "item": across, "width": width})
        return data.unseen(block, place, score)

    return search


def _torch(data: Data, threads: int) -> _Search:
    import torch

    torch.set_num_threads(threads)
    user, item = torch.from_numpy(data.user), torch.from_numpy(data.item)

    def search(block: slice) -> Lists:
        score = user[block] @ item.T
        low, high = data.seen_ptr[block.start], data.seen_ptr[block.stop]
        owner = np.repeat(np.arange(block.stop - block.start), np.diff(data.seen_ptr[block.start : block.stop + 1]))
        score[torch.from_numpy(owner), torch.from_numpy(data.seen_idx[low:high].astype(np.int64))] = -torch.inf
        best = torch.topk(score, data.k, dim=1)
        return best.indices.numpy(), best.values.numpy()

    return search


def _faiss(data: Data, threads: int) -> _Search:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(data.item.shape[1])
    index.add(data.item)

    def search(block: slice) -> Lists:
        score, place = index.search(data.user[block], data.wide)
        return data.unseen(block, place, score)

    return search


def _implicit(data: Data, threads: int) -> _Search:
    from implicit.cpu.topk import topk
    from scipy import sparse

    seen = sparse.csr_matrix((np.ones(len(data.seen_idx), np.float32), data.seen_idx, data.seen_ptr),
                             shape=(len(data.user), len(data.item)))  # fmt: skip

    def search(block: slice) -> Lists:
        return topk(data.item, data.user[block], data.k, filter_query_items=seen[block], num_threads=threads)

    return search


PEERS: dict[str, Callable[[Data, int], _Search]] = {
    "onnxruntime": _onnxruntime, "faiss": _faiss, "implicit": _implicit, "torch": _torch,
}  # fmt: skip


def _in_blocks(data: Data, search: _Search) -> dict[str, Callable[[int], Lists]]:
    tried = min(_TRIED, len(data.user))
    search(slice(0, min(64, tried)))

    def run(size: int, n: int) -> Lists:
        parts = [search(slice(start, min(start + size, n))) for start in range(0, n, size)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def spent(size: int) -> float:
        begun = time.perf_counter()
        run(size, tried)
        return time.perf_counter() - begun

    best = min(_BLOCKS, key=spent)
    return {"fast": lambda n: run(best, n)}


def main(name: str, folder: str, threads: str) -> None:
    """Serve orders until stdin ends. What the libraries print goes to stderr: answers have stdout to themselves."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    data = Data(Path(folder))
    ways = _mmrec(data, int(threads)) if name == "mmrec" else _in_blocks(data, PEERS[name](data, int(threads)))
    for line in iter(sys.stdin.readline, ""):
        order: dict[str, Any] = json.loads(line)
        begun = time.perf_counter()
        item, score = ways[order["way"]](order["users"])
        seconds = time.perf_counter() - begun
        if order["out"]:
            np.savez(order["out"], item=item, score=score)
        answers.write(json.dumps({"seconds": seconds}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
