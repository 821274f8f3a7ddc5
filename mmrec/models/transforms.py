"""Declared transforms: columns as the source has them become numbers that a model takes.

In: columns of N rows, numbers or names, and for each how it is told to be transformed. Out: (N, F) float32. What a
transform learns (a mean, edges, a vocabulary) it learns of the rows it is fitted on, and keeps as a record that is
JSON: training and nights go through the same code with the same record.
How: `standardise`; `log` (of one more, by sign, then standardised); `bucket n` (by quantiles, one column a bucket);
`hash n` (one column a slot); `vocabulary n` (the n commonest names, one column each, and one for all others);
`cyclic p` (sine and cosine of a time of period p); `target m` (the mean of a target among rows of the name, as if
m more rows had the overall mean; Micci-Barreca, SIGKDD Explorations 2001, eq. 4).
Trade-off: one column after another; what two columns say together is the model's to find.

Shape legend: N rows, F numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, sha256
from typing import Any, Self

import numpy as np

from mmrec.errors import InputError, QualityError

# how -> its argument where none is told; None: it takes none
HOW: dict[str, float | None] = {"standardise": None, "log": None, "bucket": 10, "hash": 32, "vocabulary": 50,
                                "cyclic": 24, "target": 20}  # fmt: skip
_NAMES = ("hash", "vocabulary", "target")  # take names; the others take numbers
_BINS, _SMALL = 10, 1e-3  # of what is remembered of a column's values, and the least share of a bin
_APART = 1.0  # population stability index: .25 is called a shift; a swapped column has 2 and more
_FEW = 50  # rows that say little of a distribution


@dataclass(frozen=True)
class Fitted:
    """One column. `learned`: of `how`. `shape`: what its values were like: edges or names, and shares."""

    column: str
    how: str
    argument: float
    learned: dict[str, Any]
    shape: dict[str, Any]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Transforms:
    """See the module. `columns`: in the order of their names."""

    columns: tuple[Fitted, ...] = field(default=())

    @classmethod
    def fit(
        cls, declared: Mapping[str, str], columns: Mapping[str, np.ndarray], target_N: np.ndarray | None = None
    ) -> Self:
        """Learn from rows.

        Args:
            declared: column -> how, with its argument behind it: "log", "bucket 20". columns: (N,) float64, NaN where
                missing, or object of str and None. target_N: what is foretold, for `target`.

        Raises: InputError: no such transform, a column that is not there, or is of another kind.
        """
        return cls(tuple(_fit(name, *_told(name, declared[name]), _of(columns, name), target_N)
                         for name in sorted(declared)))  # fmt: skip

    @staticmethod
    def takes_names(told: str) -> bool:
        """Whether a transform, as it is declared, takes names; else numbers."""
        return told.partition(" ")[0] in _NAMES

    @property
    def outputs(self) -> tuple[str, ...]:
        """(F,) names of what comes out."""
        return tuple(name for c in self.columns for name in c.outputs)

    @property
    def fingerprint(self) -> str:
        """Of all that was learned."""
        return sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()[:16]

    def record(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [asdict(c) for c in self.columns]

    @classmethod
    def of_record(cls, record: list[dict[str, Any]]) -> Self:
        """What `record` gave."""
        return cls(tuple(Fitted(**(r | {"outputs": tuple(r["outputs"])})) for r in record))

    def apply(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N, F) float32."""
        parts = [_apply(c, _of(columns, c.column)) for c in self.columns]
        n = len(next(iter(columns.values()), ()))
        return np.concatenate(parts, 1).astype(np.float32) if parts else np.zeros((n, 0), np.float32)

    def check(self, columns: Mapping[str, np.ndarray]) -> None:
        """Refuse columns whose values are not of the kind that was learned from.

        Raises: QualityError: values of a column are spread in another way (population stability index): it was fitted
            on other data, or stands for another.
        """
        for c in self.columns:
            values = _of(columns, c.column)
            apart = _stability(c.shape, values) if len(values) >= _FEW else 0.0
            if apart > _APART:
                raise QualityError("a column is not what the model was trained on", where=f"feature {c.column}",
                                   value=f"stability index {apart:.2f}", valid=f"at most {_APART}",
                                   next="mmrec learn --date D, if the source means it so")  # fmt: skip


def _told(name: str, words: str) -> tuple[str, float]:
    how, _, more = words.partition(" ")
    if how not in HOW:
        raise InputError("no such transform", where=f"second_stage.columns, {name}", value=words, valid=list(HOW),
                         next="edit mmrec.toml")  # fmt: skip
    usual = HOW[how]
    try:
        argument = float(more) if more else (usual or 0)
    except ValueError:
        argument = -1.0
    if argument < 0 or (usual is None) != (not argument) or (how in ("bucket", "hash", "vocabulary") and argument % 1):
        raise InputError("not an argument of this transform", where=f"second_stage.columns, {name}", value=words,
                         valid=how if usual is None else f"{how} N, as {how} {usual:g}",
                         next="edit mmrec.toml")  # fmt: skip
    return how, argument


def _of(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in columns:
        raise InputError("there is no such column", where="second_stage.columns", value=name, valid=sorted(columns),
                         next="edit mmrec.toml")  # fmt: skip
    return columns[name]


def _fit(name: str, how: str, argument: float, values_N: np.ndarray, target_N: np.ndarray | None) -> Fitted:
    if (values_N.dtype == object) != (how in _NAMES):
        raise InputError("the transform takes another kind of column", where=f"second_stage.columns, {name}", value=how,
                         valid=[h for h in HOW if (h in _NAMES) == (values_N.dtype == object)],
                         next="edit mmrec.toml")  # fmt: skip
    learned: dict[str, Any] = {}
    outputs = [name]
    if how in ("standardise", "log"):
        there = _scaled(how, values_N[np.isfinite(values_N)])
        spread = float(there.std()) if len(there) else 0.0
        learned = {"mean": float(there.mean()) if len(there) else 0.0, "spread": spread if spread > 1e-12 else 1.0}
    elif how == "bucket":
        learned = {"edges": _edges(values_N, int(argument))}
        outputs = [f"{name}[{n}]" for n in range(len(learned["edges"]) + 1)]
    elif how == "hash":
        outputs = [f"{name}#{n}" for n in range(int(argument))]
    elif how == "vocabulary":
        learned = {"names": _commonest(values_N, int(argument))}
        outputs = [*(f"{name}={v}" for v in learned["names"]), f"{name}: another"]
    elif how == "cyclic":
        outputs = [f"{name}: sine", f"{name}: cosine"]
    else:
        if target_N is None:
            raise InputError("there is no target here that a mean could be taken of",
                             where=f"second_stage.columns, {name}", value=how, valid=[h for h in _NAMES if h != how],
                             next="edit mmrec.toml")  # fmt: skip
        total, many = Counter[str](), Counter[str]()
        for value, y in zip(values_N.tolist(), target_N.tolist(), strict=True):
            if value is not None:
                total[value] += y
                many[value] += 1
        learned = {"mean": float(np.mean(target_N)) if len(target_N) else 0.0,
                   "of": {v: [total[v], many[v]] for v in sorted(many)}}  # fmt: skip
    if how not in _NAMES and not np.isfinite(values_N).all():
        outputs.append(f"{name}: missing")
    return Fitted(name, how, argument, learned, _shape(values_N), tuple(outputs))


def _apply(c: Fitted, values_N: np.ndarray) -> np.ndarray:
    """(N, outputs) float64."""
    out = np.zeros((len(values_N), len(c.outputs)))
    if c.how in _NAMES:
        own = values_N.tolist()
        if c.how == "target":
            mean, m = c.learned["mean"], c.argument
            for n, value in enumerate(own):
                total, many = c.learned["of"].get(value, (0.0, 0))
                out[n, 0] = (total + m * mean) / (many + m) if many + m else mean
            return out
        slot = {v: n for n, v in enumerate(c.learned.get("names", ()))}
        for n, value in enumerate(own):
            if value is not None:
                out[n, _slot(value, len(c.outputs)) if c.how == "hash" else slot.get(value, len(slot))] = 1
        return out
    there_N = np.isfinite(values_N)
    plain_N = np.where(there_N, values_N, 0)
    if c.how in ("standardise", "log"):
        out[:, 0] = np.where(there_N, (_scaled(c.how, plain_N) - c.learned["mean"]) / c.learned["spread"], 0)
    elif c.how == "bucket":
        at = np.searchsorted(c.learned["edges"], plain_N, side="right")
        out[there_N, at[there_N]] = 1
    else:
        turn_N = 2 * np.pi * plain_N / c.argument
        out[:, 0], out[:, 1] = np.where(there_N, np.sin(turn_N), 0), np.where(there_N, np.cos(turn_N), 0)
    if c.outputs[-1].endswith(": missing"):
        out[:, -1] = ~there_N
    return out


def _scaled(how: str, values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.log1p(np.abs(values)) if how == "log" else values


def _slot(value: str, slots: int) -> int:
    return int.from_bytes(blake2b(value.encode(), digest_size=8).digest(), "little") % slots


def _commonest(values_N: np.ndarray, most: int) -> list[str]:
    """Ascending; of equally common ones the first by name."""
    many = Counter(v for v in values_N.tolist() if v is not None)
    return sorted(sorted(many, key=lambda v: (-many[v], v))[:most])


def _edges(values_N: np.ndarray, parts: int) -> list[float]:
    """Inner quantiles, each once."""
    there = values_N[np.isfinite(values_N)]
    if not len(there):
        return []
    return np.unique(np.quantile(there, np.arange(1, parts) / parts, method="higher")).tolist()


def _shape(values_N: np.ndarray) -> dict[str, Any]:
    """What values are like: bins of names or numbers, and the share of each; what is missing comes last."""
    names = values_N.dtype == object
    shape: dict[str, Any] = {"names": _commonest(values_N, _BINS)} if names else {"edges": _edges(values_N, _BINS)}
    return shape | {"shares": _shares(shape, values_N)}


def _shares(shape: Mapping[str, Any], values_N: np.ndarray) -> list[float]:
    if "names" in shape:
        slot = {v: n for n, v in enumerate(shape["names"])}
        size = len(slot) + 2
        at = [size - 1 if v is None else slot.get(v, size - 2) for v in values_N.tolist()]
    else:
        size = len(shape["edges"]) + 2
        at = np.where(np.isfinite(values_N), np.searchsorted(shape["edges"], values_N, side="right"), size - 1).tolist()
    return (np.bincount(np.array(at, np.int64), minlength=size) / max(len(at), 1)).tolist()


def _stability(shape: Mapping[str, Any], values_N: np.ndarray) -> float:
    """Population stability index of what was learned from and what is there: sum of (q - p) ln(q / p)."""
    if (values_N.dtype == object) != ("names" in shape):
        return float("inf")
    p, q = (np.maximum(x, _SMALL) for x in (np.array(shape["shares"]), np.array(_shares(shape, values_N))))
    return float(((q - p) * np.log(q / p)).sum())
