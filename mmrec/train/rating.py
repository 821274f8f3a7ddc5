"""The rating head: a small network that foretells the rating of a pair from what models/rated.py sees of it.

In: pairs, their ratings and what is seen of them, of train rows out of fold, of validation rows by all train rows.
Out: a `RatingHead`: saved, exported as `rating.onnx`, or asked for ratings beside what is known of a day.
The loss is the mean squared error of the residual to the baseline; the network begins as the baseline (nothing added)
and is kept as it was at the best epoch on the validation rows: where nothing is learned, nothing is moved.
Trade-off: the head holds weights and settings, not the models it stands on, which are fitted anew on whatever ratings
are known: a day's fit is some seconds, and the head of an older day still fits.

Shape legend: Q pairs, R rows of a batch, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrec.errors import InputError
from mmrec.models.rated import FEATURES, Known, Parts, Sample
from mmrec.train.small import Head, Pace, learned, trunk

_PACE = Pace(rate=2e-3, decay=1e-3, batch=512, epochs=60, patience=8)
_NEXT = "mmrec bench ratings --root FOLDER"


class _Net(nn.Module):
    """(R, F) -> (R,): what is added to the baseline. Features that are not used count as their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk(len(FEATURES))
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("scale", torch.ones(len(FEATURES)))  # 0 of what is not used or never varies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trunk((x - self.mean) * self.scale).squeeze(1)


@dataclass(frozen=True)
class _Told:
    """Of a fit. `bounds`: least and greatest rating. `loss`: on validation, of the baseline and of the head."""

    features: tuple[str, ...]
    without: tuple[str, ...]
    parts: dict[str, Any]
    bounds: tuple[float, float]
    seed: int
    epochs: int
    loss: tuple[float, float]


@dataclass(frozen=True)
class RatingHead(Head):
    """A fitted head; `told`: what is known of the fit, for bundle.json."""

    net: _Net
    told: _Told
    name, output, then = "rating", "residual", _NEXT

    @property
    def parts(self) -> Parts:
        """Settings of the models that a `Known` is to be made with."""
        return Parts.of(self.told.parts)

    def rate(self, base_Q: np.ndarray, x_QF: np.ndarray) -> np.ndarray:
        """(Q,) float64 ratings, within the bounds of those it learned from; of `Known.features`."""
        with torch.no_grad():
            return np.clip(base_Q + self.net(torch.from_numpy(x_QF)).numpy(), *self.told.bounds)

    def predict(self, known: Known, user_Q: np.ndarray, item_Q: np.ndarray, ts_us_Q: np.ndarray) -> np.ndarray:
        """(Q,) float64 ratings; `known`: with `parts`. Raises: InputError: a pair that it can't know."""
        return self.rate(*known.features(user_Q, item_Q, ts_us_Q))

    @classmethod
    def load(cls, folder: Path) -> RatingHead:
        """What `save` wrote. Raises: InputError: it was fitted on other features than there are now."""
        (told, weights), net = cls.read(folder), _Net()
        if told["features"] != FEATURES:
            raise InputError("the head was fitted on other features", where=str(folder / "rating.json"),
                             value=told["features"], valid=FEATURES, next=_NEXT)  # fmt: skip
        net.load_state_dict(weights)
        return cls(net, _Told(**told))


def fit_rating(
    train: Sample, valid: Sample, parts: Parts, *, seed: int = 0, without: tuple[str, ...] = ()
) -> RatingHead:
    """Learn from pairs.

    Args:
        train: out of fold. valid: rows that are not in train. parts: with which both were seen. without: features that
            are not to be used.

    Raises: InputError: no row, or no such feature. QualityError: the loss is not a number.
    """
    if not len(train.value_Q) or not len(valid.value_Q):
        raise InputError("nothing to learn from", where="rating head", value=[len(train.value_Q), len(valid.value_Q)],
                         valid="a train row and a validation row", next=_NEXT)  # fmt: skip
    if wrong := sorted(set(without) - set(FEATURES)):
        raise InputError("no such feature", where="rating head: without", value=wrong, valid=FEATURES, next=_NEXT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Net()
    x_QF, held_QF = torch.from_numpy(train.x_QF), torch.from_numpy(valid.x_QF)
    spread_F = x_QF.std(0, correction=0)
    used_F = torch.tensor([name not in without for name in FEATURES]) & (spread_F > 1e-6)
    net.mean.copy_(x_QF.mean(0))
    net.scale.copy_(torch.where(used_F, 1 / spread_F, 0.0))
    left_Q, held_Q = (torch.from_numpy(s.value_Q - s.base_Q).float() for s in (train, valid))
    mse = nn.functional.mse_loss
    epochs, loss = learned(net, len(left_Q), lambda rows: mse(net(x_QF[rows]), left_Q[rows]),
                           lambda: float(mse(net(held_QF), held_Q)), _PACE, seed, ("rating head", _NEXT))  # fmt: skip
    bounds = (float(train.value_Q.min()), float(train.value_Q.max()))
    return RatingHead(net, _Told(FEATURES, tuple(without), parts.told(), bounds, seed, epochs, loss))
