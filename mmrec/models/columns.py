"""Declared columns: what a shop's own tables say of items, users and moments, as numbers that a second stage takes.

In: `second_stage.columns`, a column and its transform each; JSON objects of items, users, and of users' last events.
Out: numbers of items and of users; kept in a bundle as `columns.json`, and refused where a day's values are of another
kind than those that were learned from.
A column is named by where it is: `items.price` and `users.age` are keys of attributes, `context.device` one of the last
event's context; `context.hour` and `context.weekday` (Monday is 0) are of that event's time, UTC. Transforms:
transforms.py; the target of an item's is log(1 + users that had it).
Trade-off: one value a key: of a list the first entry counts; traits.py looks at all.

Shape legend: N items, S users, F numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from mmrec.errors import InputError, QualityError
from mmrec.models.transforms import Transforms

FILE = "columns.json"
_ITEMS, _USERS, _CONTEXT = "items", "users", "context"
_TABLES = (_CONTEXT, _ITEMS, _USERS)
_HOUR_US, _DAY_US = 3_600_000_000, 86_400_000_000
_FIRST_DAY = 3  # 1970-01-01 was a Thursday

# of events: their context, JSON or None, and microseconds; -1: there was none
Moments = tuple[Sequence[str | None], np.ndarray]


@dataclass(frozen=True)
class Columns:
    """See the module. `parts`: (table, transforms) of tables that have any, in the order of their names."""

    parts: tuple[tuple[str, Transforms], ...]

    @classmethod
    def fit(
        cls, declared: Mapping[str, str], items: Sequence[str | None], target_N: np.ndarray,
        users: Sequence[str | None], moments: Moments,
    ) -> Self:  # fmt: skip
        """Learn from what a training window knows.

        Args:
            declared: column -> how. items, users: (N,) and (U,) JSON objects. target_N: of items. moments: of events.

        Raises: InputError: no such table, column or transform.
        """
        told = {_ITEMS: items, _USERS: users}
        parts = []
        for table in _TABLES:
            own = {name: how for name, how in declared.items() if name.split(".", 1)[0] == table}
            if own:
                values = _moments(own, *moments) if table == _CONTEXT else _values(own, told[table])
                _there(values, moments[0] if table == _CONTEXT else told[table])
                parts.append((table, Transforms.fit(own, values, target_N if table == _ITEMS else None)))
        strange = sorted(n for n in declared if n.split(".", 1)[0] not in _TABLES or not n.partition(".")[2])
        if strange:
            raise InputError("no such column", where="mmrec.toml: second_stage.columns", value=strange[0],
                             valid=[f"{t}.NAME" for t in _TABLES], next="edit mmrec.toml")  # fmt: skip
        return cls(tuple(parts))

    @property
    def names(self) -> tuple[str, ...]:
        """(F,) of numbers, those of users before those of items."""
        return tuple(f"columns/{name}" for part in (self._of(_CONTEXT), self._of(_USERS), self._of(_ITEMS))
                     for name in part.outputs)  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """Of all that was learned."""
        return "-".join(part.fingerprint for _, part in self.parts)

    def items(self, told: Sequence[str | None], checked: bool = True) -> np.ndarray:
        """(N, F) float32 of JSON objects. `checked`: as a night does.

        Raises: QualityError: a column is spread in another way than what was learned from.
        """
        return self._made(_ITEMS, checked, told)

    def users(self, told: Sequence[str | None], moments: Moments, checked: bool = True) -> np.ndarray:
        """(S, F) float32 of users and of the last event of each, as `items`."""
        return np.concatenate([self._made(_CONTEXT, checked, *moments), self._made(_USERS, checked, told)], 1)

    def save(self, folder: Path) -> None:
        """Write `columns.json`."""
        told = {table: part.record() for table, part in self.parts}
        (folder / FILE).write_text(json.dumps(told, sort_keys=True, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Self:
        """What `save` wrote.

        Raises: QualityError: it was fitted on other data than the model.
        """
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        made = cls(tuple((table, Transforms.of_record(told[table])) for table in _TABLES if table in told))
        if made.fingerprint != fingerprint:
            raise QualityError("columns' transforms were fitted on other data than the model", where=f"bundle, {FILE}",
                               value=made.fingerprint, valid=fingerprint, next="mmrec learn --date D")  # fmt: skip
        return made

    def _of(self, table: str) -> Transforms:
        return dict(self.parts).get(table, Transforms())

    def _made(
        self, table: str, checked: bool, told: Sequence[str | None], at_us: np.ndarray | None = None
    ) -> np.ndarray:
        part = self._of(table)
        own = {c.column: c.how for c in part.columns}
        values = _values(own, told) if at_us is None else _moments(own, told, at_us)
        if checked:
            part.check(values)
        return part.apply(values) if own else np.zeros((len(told), 0), np.float32)


def _values(declared: Mapping[str, str], told: Sequence[str | None]) -> dict[str, np.ndarray]:
    """Column -> (N,) float64 or object, as its transform takes it."""
    read = [json.loads(text) if text else {} for text in told]
    out = {}
    for column, how in declared.items():
        key = column.partition(".")[2]
        some = (r.get(key) for r in read)
        plain = [(v[0] if v else None) if isinstance(v, list) else v for v in some]
        if Transforms.takes_names(how):
            out[column] = np.array([None if v is None else str(v) for v in plain], object)
        else:
            out[column] = np.array([_number(v) for v in plain], np.float64)
    return out


def _moments(declared: Mapping[str, str], told: Sequence[str | None], at_us: np.ndarray) -> dict[str, np.ndarray]:
    out = _values({c: how for c, how in declared.items() if c not in ("context.hour", "context.weekday")}, told)
    at_us = np.asarray(at_us, np.int64)
    for column, number in (("context.hour", at_us % _DAY_US / _HOUR_US),
                           ("context.weekday", (at_us // _DAY_US + _FIRST_DAY) % 7)):  # fmt: skip
        if column in declared:
            number = np.where(at_us >= 0, number, np.nan)
            out[column] = number if not Transforms.takes_names(declared[column]) else np.array(
                [None if math.isnan(n) else f"{n:.0f}" for n in np.floor(number)], object)  # fmt: skip
    return out


def _number(value: Any) -> float:
    """Of a number, or of a text that is one; else it is missing."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _there(values: Mapping[str, np.ndarray], told: Sequence[str | None]) -> None:
    """Raises: InputError: a column has no value at all. `told`: where it was looked for."""
    for column, value_N in values.items():
        known = [v is not None for v in value_N] if value_N.dtype == object else np.isfinite(value_N)
        if not np.any(known):
            raise InputError("a column has no value that its transform takes", value=column,
                             where="mmrec.toml: second_stage.columns",
                             valid=sorted({key for text in told if text for key in json.loads(text)}),
                             next="edit mmrec.toml")  # fmt: skip
