"""The K best of a block of users by ONNX Runtime, on the device that a catalogue is kept on: MatMul, then TopK.

In: vectors, what users have seen. Out: positions and final scores of their lists, written into the caller's arrays.
The device's fp32 scores only propose. A list is taken where it is proven: what a tile did not propose scored no more
there than the least that it did, so its final score is at most that and the bound on fp32. The other users, of many
seen items or of ties within the bound, go the portable way.
Trade-off: a proposal is some places longer than a list, and goes from the device to the processor, which scores what of
it may be in the list in fp64; scores of all items never do.

Shape legend: B users, M items that may be shown, K places, D vector size, T items of a tile, W proposed of a tile, C
proposed of all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmrec.ort import session
from mmrec.topk import portable
from mmrec.topk.compiled import jit
from mmrec.topk.heap import is_seen, push
from mmrec.topk.seen import of_users

BLOCK = 1024  # users at a time
_TILE = 65_536  # items at a time: of a block of users 256 MB of scores
_MORE, _SEEN = 16, 256  # proposed beyond K: for ties, and for what users have seen
_OPSET = 21


class Tiles:
    """Items (M, D) on a device."""

    def __init__(self, item_MD: np.ndarray, device: str, threads: int = 2) -> None:
        import onnxruntime as ort

        self.item_MD = item_MD
        self._run = session(_graph(item_MD.shape[1]), device, threads)
        parts = [item_MD[start : start + _TILE] for start in range(0, len(item_MD), _TILE)]
        self._tiles = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(part.T), device, 0) for part in parts]

    def best(self, user_BD: np.ndarray, wide: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each tile the greatest scores (B, W) float32, descending, and positions (B, W) int32.

        W is `wide`, or all that the tile has.
        """
        start = 0
        for tile in self._tiles:
            size = tile.shape()[1]
            bound = self._run.io_binding()
            bound.bind_ortvalue_input("item", tile)
            bound.bind_cpu_input("user", user_BD)
            bound.bind_cpu_input("k", np.array([min(wide, size)], np.int64))
            for name in ("score", "position"):
                bound.bind_output(name)
            self._run.run_with_iobinding(bound)
            score_BW, position_BW = bound.copy_outputs_to_cpu()
            yield score_BW, position_BW.astype(np.int32) + np.int32(start)
            start += size


def search_block(
    tiles: Tiles, user_BD: np.ndarray, ok_B: np.ndarray, margin_B: np.ndarray, seen_ptr: np.ndarray,
    seen_idx: np.ndarray, out_item: np.ndarray, out_score: np.ndarray,
) -> int:  # fmt: skip
    """Fill the rows of the outputs with positions and final scores; says how many users went the portable way.

    Args:
        user_BD: float32; rows of users that are not `ok_B` are zeros. margin_B: as of exact.py. seen_ptr, seen_idx:
            positions, ascending within a user.
        out_item, out_score: (B, K) int32 and float32, filled with -1 and -inf.
    """
    k = out_item.shape[1]
    wide = k + min(int(np.diff(seen_ptr).max(initial=0)), _SEEN) + _MORE
    edge_B = np.full(len(user_BD), -np.inf)  # nothing that was not proposed has more
    parts, scores = [], []
    start = 0
    for score_BW, position_BW in tiles.best(user_BD, wide):
        parts.append(position_BW)
        scores.append(score_BW)
        if position_BW.shape[1] < min(_TILE, len(tiles.item_MD) - start):
            edge_B = np.maximum(edge_B, score_BW[:, -1])
        start += _TILE
    item_BC = np.concatenate(parts, 1)
    trusted_B = ok_B & np.isfinite(margin_B)
    count_B = np.where(trusted_B, item_BC.shape[1], -2)
    _near(item_BC, np.concatenate(scores, 1), k, margin_B, seen_ptr, seen_idx, count_B)
    portable.finish(user_BD, tiles.item_MD, seen_ptr, seen_idx, item_BC, count_B, out_item, out_score)
    proven_B = trusted_B & (np.isneginf(edge_B) | (edge_B + np.where(trusted_B, margin_B, 0) < out_score[:, -1]))
    rest = np.flatnonzero(ok_B & ~proven_B)
    if len(rest):
        item, score = np.full((len(rest), k), -1, np.int32), np.full((len(rest), k), -np.inf, np.float32)
        portable.search_block(user_BD[rest], tiles.item_MD, ok_B[rest], margin_B[rest],
                              *of_users((seen_ptr, seen_idx), rest), portable.TILE, item, score)  # fmt: skip
        out_item[rest], out_score[rest] = item, score
    return len(rest)


@jit
def _near(
    item_BC: np.ndarray, score_BC: np.ndarray, k: int, margin_B: np.ndarray, seen_ptr: np.ndarray,
    seen_idx: np.ndarray, count_B: np.ndarray,
) -> None:  # fmt: skip
    """Move what may be among the best k to the front: each tile proposes a whole list. The bound is that of
    portable.py's `_scan`. `count_B`: of all proposed, -2: leave the user out; then of those in front."""
    heap_score, heap_item = np.empty(k, np.float32), np.empty(k, np.int32)
    for u in range(item_BC.shape[0]):
        if count_B[u] < 0:
            continue
        size, kept = 0, 0
        for c in range(item_BC.shape[1]):
            item, score = item_BC[u, c], score_BC[u, c]
            if (size < k or score > heap_score[0]) and not is_seen(seen_idx, seen_ptr[u], seen_ptr[u + 1], item):
                size = push(heap_score, heap_item, size, score, item)
        floor = np.float64(heap_score[0]) - 2 * margin_B[u] if size == k else -np.inf
        for c in range(item_BC.shape[1]):
            if score_BC[u, c] >= floor:
                item_BC[u, kept] = item_BC[u, c]
                kept += 1
        count_B[u] = kept


def _graph(d: int) -> bytes:
    from onnx import TensorProto, helper

    names = {"user": (TensorProto.FLOAT, ["B", d]), "item": (TensorProto.FLOAT, [d, "T"]),
             "k": (TensorProto.INT64, [1]), "score": (TensorProto.FLOAT, ["B", "W"]),
             "position": (TensorProto.INT64, ["B", "W"])}  # fmt: skip
    values = {name: helper.make_tensor_value_info(name, *about) for name, about in names.items()}
    nodes = [helper.make_node("MatMul", ["user", "item"], ["all"]),
             helper.make_node("TopK", ["all", "k"], ["score", "position"], axis=1, largest=1, sorted=1)]  # fmt: skip
    made = helper.make_graph(nodes, "topk", [values[n] for n in ("user", "item", "k")],
                             [values[n] for n in ("score", "position")])  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = min(model.ir_version, 10)
    return model.SerializeToString()
