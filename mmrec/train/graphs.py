"""What every export of graphs shares: writing them, feeding them a fold's histories, and comparing them.

In: torch modules, folds, scores. Out: ONNX files that hold what a bundle may; inputs as a scorer makes them; how far
two ways to a score are apart.
Trade-off: a graph is compared by scores and by lists, not by its weights: what nobody could tell from a list passes.

Shape legend: B rows, L history, N items, V dot product side, I history side.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from mmrec.errors import QualityError
from mmrec.models.data import Fold, Log
from mmrec.models.tables import latest
from mmrec.topk.exact import search
from mmrec.train.inputs import history

_OPSET = 17
_SCALE = 2e-4  # of the scores' spread: fp32 in another order of operations; measured 2e-6 on the films
_K = 20


def write_graph(graph: nn.Module, inputs: tuple[torch.Tensor, ...], names: list[str], outputs: list[str],
                more: dict[int, str], path: Path) -> None:  # fmt: skip
    """Export a module.

    Args:
        inputs: examples, one for each of `names`. more: axes of the inputs that vary beside the first.

    Raises: QualityError: the graph refers to other files, or to operators that are not ONNX's own.
    """
    axes = {n: {0: "B"} | (more if n in names else {}) for n in (*names, *outputs)}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(graph, inputs, str(path), input_names=names, output_names=outputs, dynamic_axes=axes,
                          opset_version=_OPSET, dynamo=False)  # fmt: skip
    made = onnx.load(str(path), load_external_data=False)
    outside = [t.name for t in made.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    foreign = sorted({node.domain for node in made.graph.node} - {"", "ai.onnx"})
    if outside or foreign:
        raise QualityError(
            "the graph holds what a bundle may not",
            where=path.name,
            value=outside or foreign,
            valid="no external data, operators of ONNX itself",
            next="mmrec train --date D",
        )


def compare(wanted_BN: np.ndarray, user_BV: np.ndarray, item_NV: np.ndarray, where: str) -> float:
    """Largest difference of scores and of what stands in the lists, in units of the scores' spread.

    Raises: QualityError: more than rounding explains, or a score that is not finite.
    """
    got_BN = user_BV @ item_NV.T
    spread = max(float(wanted_BN.std()), 1e-9)
    worst = float(np.abs(got_BN - wanted_BN).max()) / spread
    top = search(user_BV, item_NV, _K).item
    for b, row in enumerate(top):
        # what either side lists must be, for the other, no worse than its own last place less the tolerance
        kth = np.sort(wanted_BN[b])[::-1][:_K][-1]
        worst = max(worst, float(kth - wanted_BN[b][row[row >= 0]].min()) / spread)
    if not np.isfinite(worst) or worst > _SCALE:
        raise QualityError(
            "ONNX and torch disagree: the model is not registered",
            where=where,
            value=worst,
            valid=f"at most {_SCALE} of the scores' spread",
            next="mmrec train --date D",
        )
    return worst


def history_feeds(
    log: Log, fold: Fold, cases: slice, item_in: np.ndarray, length: int, context: int
) -> dict[str, np.ndarray]:
    """Inputs of a user graph for cases of a fold, as a scorer makes them.

    Args:
        item_in: (N, I), finite for every item of a history. length, context: events that are kept, at most and least.
    """
    rows, mask = history(fold, cases, length, context)
    safe = np.maximum(rows, 0)
    after = np.concatenate([log.ts_us[safe[:, 1:]], fold.case_at_us[cases, None]], 1)
    gap = np.where(mask, np.maximum(after - log.ts_us[safe], 0) / 1e6, 0)
    return {
        "item_in": np.where(mask[..., None], item_in[log.item[safe]], 0).astype(np.float32),
        "event": np.where(mask, log.event[safe] + 1, 0).astype(np.int64),
        "gap_log": np.log1p(gap).astype(np.float32),
        "weight": np.where(mask, log.weight[safe], 0).astype(np.float32),
        "mask": mask.astype(np.float32),
        "once": latest(log.item[safe], mask).astype(np.float32),
    }
