"""The click head: the chance that a pair is clicked at a place, parted into what the place does and what the pair does.

In: impressions as models/shown.py has them, those of train weeks and later ones to validate. Out: a `ClickHead`: saved,
exported as `click.onnx`, asked for chances of impressions, or for relevances of pairs, by which a list is ranked.
A click is a look and a wish: P(click | pair, place) = examined(surface, place) x relevant(pair) (the position-based
model: Richardson, Dominowska and Ragno, WWW 2007; Craswell et al., WSDM 2008), both fitted together by the binary
cross-entropy. The first place of one surface, that whose first place is clicked most, is always looked at; any other
is looked at as often as that, or less. The pair's part:
    pair        sigmoid(b + M(x)), M the trunk of train/small.py over numbers of the pair
    bilinear    sigmoid(b + <W1 E(u), W2 E(c)>), both E with a one beside what is known of the user and of the item
It begins with nothing added to the base rates, click rates by place and one relevance for all, and is kept as it was at
the best epoch on validation. Where only a share w of the negatives is learned from, log w is taken from the log-odds of
the sampled rows (the prior correction of King and Zeng, Political Analysis 2001, section 4.1; He et al., ADKDD 2014,
section 6.3), so that chances are those of all rows. Log-odds are stretched and moved at the end (Platt 1999) where that
lowers the log loss on the half of validation's users that it was not fitted on.
Trade-off: a look depends on the place alone, not on what was clicked above it: fewer numbers, and no order of clicks
need be known; who stops at the first click is seen as one who looks less far down.

Shape legend: Q impressions, R rows of a batch, F features, S surfaces, P places, D directions of the bilinear form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrec.errors import InputError
from mmrec.models.shown import Shown
from mmrec.train.small import Head, Pace, learned, trunk

FORMS = ("pair", "bilinear")
_PACE = Pace(rate=2e-3, decay=0.1, batch=2048, epochs=60, patience=8)
_D = 8
_FAST = 10.0  # Adam moves any number by the rate a step: log-odds of a look have further to go than a weight
_NEXT = "mmrec bench clicks"
_LEAST, _MOST = 0.02, 0.98  # of a look at a place, where the fit begins


class _Pair(nn.Module):
    """(R, F) -> (R,): how likely a pair is clicked once it is looked at."""

    def __init__(self, form: str, wide: int, of_user: int) -> None:
        super().__init__()
        self.of_user = of_user
        self.register_buffer("mean", torch.zeros(wide))
        self.register_buffer("scale", torch.ones(wide))  # 0 of what never varies
        self.register_buffer("base", torch.zeros(()))
        self.more = nn.Parameter(torch.zeros(()))
        self.trunk = trunk(wide) if form == "pair" else None
        if form == "bilinear":
            self.user, self.item = nn.Linear(of_user, _D), nn.Linear(wide - of_user, _D)
            nn.init.zeros_(self.item.weight)
            nn.init.zeros_(self.item.bias)

    def odds(self, x: torch.Tensor) -> torch.Tensor:
        x, base = (x - self.mean) * self.scale, self.base + _FAST * self.more
        if self.trunk is not None:
            return base + self.trunk(x).squeeze(1)
        return base + (self.user(x[:, : self.of_user]) * self.item(x[:, self.of_user :])).sum(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.odds(x))


class _Net(nn.Module):
    """Log-odds of a click, of (R, F) pairs at (R,) cells of a surface and a place."""

    def __init__(self, pair: _Pair, look_SP: np.ndarray, sure: int) -> None:
        super().__init__()
        self.pair, self.sure = pair, sure
        self.register_buffer("look", torch.from_numpy(_odds(np.clip(look_SP, _LEAST, _MOST)).reshape(-1)).float())
        self.more = nn.Parameter(torch.zeros(len(self.look)))  # apart, so that decay draws to the rates, not to a half

    def odds(self) -> torch.Tensor:
        return self.look + _FAST * self.more

    def forward(self, x: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        log_look = nn.functional.logsigmoid(self.odds())[cell].where(cell != self.sure, torch.zeros(()))
        log_p = log_look + nn.functional.logsigmoid(self.pair.odds(x))
        log_p = log_p.clamp(-30, -1e-6)
        return log_p - torch.log(-torch.expm1(log_p))


@dataclass(frozen=True)
class _Told:
    """Of a fit. `examined`: surface -> place from 1 -> chance of a look, None where nothing was shown there. `stretch`:
    what log-odds are multiplied by, and what is added. `loss`: on validation, of the base rates and of the head."""

    form: str
    features: tuple[str, ...]
    of_user: int
    examined: dict[str, list[float | None]]
    stretch: tuple[float, float]
    keep: float
    seed: int
    epochs: int
    loss: tuple[float, float]


@dataclass(frozen=True)
class ClickHead(Head):
    """A fitted head; `told`: what is known of the fit, for bundle.json."""

    net: _Pair
    told: _Told
    name, output, then = "click", "relevance", _NEXT

    def relevance(self, x_QF: np.ndarray) -> np.ndarray:
        """(Q,) float32: what a list is ranked by; of any place.

        Raises: InputError: other features.
        """
        if x_QF.shape[1:] != (len(self.told.features),):
            raise InputError("pairs don't fit the click head", where="click head", value=x_QF.shape,
                             valid=f"(Q, {len(self.told.features)})", next=_NEXT)  # fmt: skip
        with torch.no_grad():
            return self.net(torch.from_numpy(x_QF)).numpy()

    def looked(self, surfaces: tuple[str, ...], surface_Q: np.ndarray, place_Q: np.ndarray) -> np.ndarray:
        """(Q,) float64: how likely places from 1 are looked at. `surfaces`: what `surface_Q` counts in.

        Raises: InputError: a surface or a place that nothing was learned of.
        """
        told = self.told.examined
        wide = max(map(len, told.values()))
        table_SP = np.array([[*told.get(s, ()), *[None] * wide][:wide] for s in surfaces], float)
        out_Q = np.full(len(place_Q), np.nan)
        fits = (place_Q >= 1) & (place_Q <= wide)
        out_Q[fits] = table_SP[surface_Q[fits], place_Q[fits] - 1]
        if np.isnan(out_Q).any():
            row = int(np.argmax(np.isnan(out_Q)))
            raise InputError("nothing was learned of this place", where=f"click head, impression {row}",
                             value=(surfaces[surface_Q[row]], int(place_Q[row])),
                             valid=[f"{s} 1 to {len(v)}" for s, v in told.items()], next=_NEXT)  # fmt: skip
        return out_Q

    def chance(self, shown: Shown) -> np.ndarray:
        """(Q,) float64, of a click. Raises: InputError: as `relevance` and `looked`."""
        p_Q = self.looked(shown.surfaces, shown.surface, shown.place) * self.relevance(shown.x_QF)
        return _stretched(_odds(p_Q), self.told.stretch)

    @classmethod
    def load(cls, folder: Path) -> ClickHead:
        """What `save` wrote. Raises: InputError: of a form that there is not."""
        told, weights = cls.read(folder)
        _checked(told["form"], len(told["features"]), told["of_user"], str(folder / "click.json"))
        net = _Pair(told["form"], len(told["features"]), told["of_user"])
        net.load_state_dict(weights)
        return cls(net, _Told(**told))


def fit_click(train: Shown, valid: Shown, *, form: str = "pair", keep: float = 1.0, seed: int = 0) -> ClickHead:
    """Learn from impressions.

    Args:
        valid: later ones, of places that are in train. form: one of `FORMS`; "bilinear" takes the first `of_user`
            columns for the user's. keep: the share of train's negatives that is learned from.

    Raises: InputError: no such form; no click, or nothing but clicks; a share outside (0, 1]; a place of validation
        that train does not have. QualityError: the loss is not a number.
    """
    _checked(form, train.x_QF.shape[1], train.of_user, "click head")
    if not 0 < keep <= 1:
        raise InputError("no such share of negatives", where="click head: keep", value=keep, valid="above 0, to 1",
                         next=_NEXT)  # fmt: skip
    for name, side in (("train", train), ("validation", valid)):
        if not 0 < side.clicked.sum() < len(side.clicked):
            raise InputError("nothing to learn from", where=f"click head: {name}",
                             value=f"{int(side.clicked.sum())} clicks of {len(side.clicked)} impressions",
                             valid="at least a click and one that is none", next=_NEXT)  # fmt: skip
    places = int(train.place.max())
    shape = len(train.surfaces), places
    cell_Q, held_Q = (side.surface * places + side.place - 1 for side in (train, valid))
    many, clicks = (np.bincount(cell_Q, w, shape[0] * places).reshape(shape) for w in (None, train.clicked))
    if int(valid.place.max()) > places or not (many.reshape(-1)[held_Q] > 0).all():
        raise InputError("validation has places that train has not", where="click head", value=int(valid.place.max()),
                         valid=f"places and surfaces of train, 1 to {places}", next=_NEXT)  # fmt: skip
    # one more impression of the mean rate: what was hardly shown begins there
    rate_SP = (clicks + train.clicked.mean()) / (many + 1)
    sure = int(np.where(many[:, 0] > 0, rate_SP[:, 0], -1.0).argmax())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pair = _Pair(form, *train.x_QF.shape[1:], train.of_user)
    net = _Net(pair, rate_SP / rate_SP[sure, 0], sure * places)
    pair.base.fill_(float(_odds(rate_SP[sure, 0])))
    drawn_Q = np.random.default_rng([seed, 1]).random(len(cell_Q)) < keep
    kept = np.flatnonzero(train.clicked | drawn_Q)
    x_QF, y_Q, at_Q = (torch.from_numpy(a[kept]) for a in (train.x_QF, train.clicked.astype(np.float32), cell_Q))
    spread_F = x_QF.std(0, correction=0)
    pair.mean.copy_(x_QF.mean(0))
    pair.scale.copy_(torch.where(spread_F > 1e-6, 1 / spread_F, 0.0))
    bce, more = nn.functional.binary_cross_entropy_with_logits, float(np.log(keep))
    held = torch.from_numpy(valid.x_QF), torch.from_numpy(held_Q)
    want_Q = torch.from_numpy(valid.clicked).float()
    epochs, loss = learned(net, len(kept), lambda rows: bce(net(x_QF[rows], at_Q[rows]) - more, y_Q[rows]),
                           lambda: float(bce(net(*held), want_Q)), _PACE, seed, ("click head", _NEXT))  # fmt: skip
    look_SP = torch.sigmoid(net.odds().detach()).double().numpy().reshape(shape)
    look_SP[sure, 0] = 1.0
    examined = {s: [float(v) if n else None for v, n in zip(look_P, n_P, strict=True)]
                for s, look_P, n_P in zip(train.surfaces, look_SP, many, strict=True)}  # fmt: skip
    told = _Told(form, train.names, train.of_user, examined, (1.0, 0.0), keep, seed, epochs, loss)
    odds_Q = _odds(ClickHead(pair, told).chance(valid))
    return ClickHead(pair, _Told(**vars(told) | {"stretch": _platt(odds_Q, valid)}))


def _checked(form: str, wide: int, of_user: int, where: str) -> None:
    if form not in FORMS:
        raise InputError("no such form of the click head", where=where, value=form, valid=FORMS, next=_NEXT)
    if form == "bilinear" and not 0 < of_user < wide:
        raise InputError("user and item can't be told apart", where=where, value=of_user,
                         valid=f"1 to {wide - 1} columns of the user, of {wide}", next=_NEXT)  # fmt: skip


def _platt(odds_Q: np.ndarray, valid: Shown) -> tuple[float, float]:
    """What log-odds are multiplied by, above 0, and what is added: 1 and 0 where it does not help users it was not
    fitted on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    def fitted(rows: np.ndarray) -> tuple[float, float]:
        if not 0 < valid.clicked[rows].sum() < rows.sum():
            return 1.0, 0.0
        made = LogisticRegression(C=np.inf).fit(odds_Q[rows, None], valid.clicked[rows])
        slope, shift = float(made.coef_[0, 0]), float(made.intercept_[0])
        return (slope, shift) if slope > 0 else (1.0, 0.0)  # few clicks can't turn an order round

    half_Q = valid.user % 2 == 0
    out_Q = np.zeros(len(odds_Q))
    for own_Q in (half_Q, ~half_Q):
        out_Q[own_Q] = _stretched(odds_Q[own_Q], fitted(~own_Q))
    helped = log_loss(valid.clicked, out_Q) < log_loss(valid.clicked, _stretched(odds_Q, (1.0, 0.0)))
    return fitted(np.ones(len(odds_Q), bool)) if helped else (1.0, 0.0)


def _odds(p: Any) -> Any:
    p = np.clip(p, 1e-12, 1 - 1e-6)
    return np.log(p / (1 - p))


def _stretched(odds_Q: np.ndarray, stretch: tuple[float, float]) -> np.ndarray:
    return 1 / (1 + np.exp(-(stretch[0] * odds_Q + stretch[1])))
