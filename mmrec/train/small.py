"""Small networks over numbers of a pair, which begin as nothing added: the second stage, the rating and the click head.

In: numbers, a loss. Out: a trunk to build on, the best epoch's weights; what is fitted, saved, and exported as a graph
that was compared with torch.
Trade-off: all are 64 and 32 wide and learn by one recipe but for its pace; decision 0025 has other sizes.

Shape legend: R rows of a batch, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmrec.errors import QualityError
from mmrec.ort import session
from mmrec.train.graphs import write_graph

_HIDDEN = (64, 32)
_SCALE = 1e-4  # of the values' spread: fp32 in another order of operations


@dataclass(frozen=True)
class Pace:
    """How a network learns: AdamW's rate and decay, rows of a step, epochs at most, and how many that bring nothing end
    it."""

    rate: float
    decay: float
    batch: int
    epochs: int
    patience: int


def trunk(wide: int) -> nn.Sequential:
    """(R, wide) -> (R, 1), which is zero until something is learned."""
    sizes = (wide, *_HIDDEN)
    parts = [x for a, b in pairwise(sizes) for x in (nn.Linear(a, b), nn.ReLU())]
    last = nn.Linear(sizes[-1], 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*parts, last)


def learned(
    net: nn.Module, n: int, loss: Callable[[torch.Tensor], torch.Tensor], judged: Callable[[], float], pace: Pace,
    seed: int, what: tuple[str, str],
) -> tuple[int, tuple[float, float]]:  # fmt: skip
    """Epochs of the best network, which `net` is then, and the loss on what is held out: at first and at best.

    Args:
        n: what there is to learn from. loss: of some of it, by index. judged: the loss on what is held out. what: the
            network's name, and the command to type next.

    Raises: QualityError: the loss is not a number.
    """

    def held() -> float:
        with torch.no_grad():
            return judged()

    draw = torch.Generator().manual_seed(seed)
    steps = torch.optim.AdamW(net.parameters(), pace.rate, weight_decay=pace.decay)
    first = best = held()
    kept, at = {k: v.clone() for k, v in net.state_dict().items()}, 0
    for epoch in range(1, pace.epochs + 1):
        order = torch.randperm(n, generator=draw)
        for start in range(0, n, pace.batch):
            step = loss(order[start : start + pace.batch])
            if not torch.isfinite(step):
                raise QualityError(f"the {what[0]}'s loss is not a number", where=f"epoch {epoch}", value=float(step),
                                   valid="a finite loss", next=what[1])  # fmt: skip
            steps.zero_grad()
            step.backward()
            steps.step()
        got = held()
        if got < best:
            best, at, kept = got, epoch, {k: v.clone() for k, v in net.state_dict().items()}
        elif epoch - at >= pace.patience:
            break
    net.load_state_dict(kept)
    return at, (first, best)


@dataclass(frozen=True)
class Head:
    """A fitted network, (R, F) -> (R,), and what is told of its fit. Each kind has names: of its files, of what it
    gives, and of the command to type where its graph differs.

    Attributes:
        net: has buffers `mean` and `scale`, one over the spread, 0 of what it does not look at. told: a dataclass, for
            bundle.json.
    """

    net: Any
    told: Any
    name: ClassVar[str]
    output: ClassVar[str]
    then: ClassVar[str]

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and what is told (JSON)."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.contiguous() for k, v in self.net.state_dict().items()}
        save_file(weights, folder / f"{self.name}.safetensors")
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self.told)))

    @classmethod
    def read(cls, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What `save` wrote: what is told, lists as tuples, and weights."""
        told = json.loads((folder / f"{cls.name}.json").read_text())
        told = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
        return told, load_file(folder / f"{cls.name}.safetensors")

    def export(self, folder: Path) -> dict[str, Any]:
        """Write the graph, x (R, F) float32. Returns: fields for bundle.json, among them `parity`: how far it is from
        torch, in the values' spread.

        Raises: QualityError: the graph differs from torch.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file, mean_F, scale_F = folder / f"{self.name}.onnx", self.net.mean, self.net.scale
        write_graph(self.net.eval(), (torch.zeros(2, len(mean_F)),), ["x"], [self.output], {}, file)
        spread_F = 1 / torch.where(scale_F > 0, scale_F, 1.0)
        x = mean_F + 2 * spread_F * torch.randn(4096, len(mean_F), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = self.net(x).numpy()
        (got,) = session(file).run(None, {"x": x.numpy()})
        worst = float(np.abs(got - wanted).max()) / max(float(wanted.std()), 1e-9)
        if not worst <= _SCALE:
            raise QualityError("ONNX and torch disagree: the model is not registered", where=file.name, value=worst,
                               valid=f"at most {_SCALE} of the values' spread", next=self.then)  # fmt: skip
        return asdict(self.told) | {"parity": worst}
