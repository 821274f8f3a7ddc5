"""Rules made ready for one day's items: what each keeps from whom, lifts, limits, asks for and puts where.

In: rules in force, the day's items with their attributes, a batch of users with theirs. Out: `Ruling`, and of a batch
the `Law` of each user as arrays that a compiled walk reads.
What is kept from everybody leaves the catalogue before anything is scored. Users whom the same rules hold for are one
class, and a class has its arrays once, however many users it has.
Trade-off: a class costs twelve bytes an item, so rules that name many single users one by one cost memory.

Shape legend: N items, B users of a batch, C classes, R rules, P pins of a class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec.dates import micros
from mmrec.recommend.rules import Match, Range, Rule

_BARS = ("exclude", "include", "hold")
TABLES = {  # what a finished list is held against
    "bars": pa.schema({"name": pa.string(), "item_id": pa.string(), "some": pa.bool_()}),
    "counted": pa.schema({"name": pa.string(), "item_id": pa.string(), "code": pa.int64(), "most": pa.int64(),
                          "some": pa.bool_()}),
    "bound": pa.schema({"name": pa.string(), "user_id": pa.string()}),
    "again": pa.schema({"name": pa.string(), "user_id": pa.string(), "item_id": pa.string()}),
    "hidden": pa.schema({"user_id": pa.string(), "item_id": pa.string()}),
}  # fmt: skip
TWIN = "twin"  # what a walk says of an item whose twin is in the list; no rule's name may be it
WITHDRAWN = "withdrawn"  # what publishing says of an item that has left the shop; nor may this


@dataclass(frozen=True)
class Law:
    """What holds for some users.

    Attributes:
        class_B: (B,) int32. fate_CN: (C, N, 2) int16, the first rule that keeps an item from a class, -1: none; and the
            places that a boost lifts it. lifter_CN: (C, N) int16, which boost; -1: none.
        code_RN: (R, N) int32, of caps what is counted together, of quotas 0; -1: not meant. holds_CR: (C, R) bool.
        bound_R: (R,) int32, of caps the most, of quotas the negative of the least, 0 of others. least_CR: (C, R) int32,
            of quotas, what is asked for of a class: no more than there is on offer for it.
        pin_CP, place_CP, pinner_CP: (C, P) int32, pinned items, their places from 0, and rules, in the order of
            places; -1 in empty places.
        lift: the most places that anything is lifted. kept: what was made of these for a walk. learned: K -> places of
            a ranking that lists took.
    """

    class_B: np.ndarray
    fate_CN: np.ndarray
    lifter_CN: np.ndarray
    code_RN: np.ndarray
    holds_CR: np.ndarray
    bound_R: np.ndarray
    least_CR: np.ndarray
    pin_CP: np.ndarray
    place_CP: np.ndarray
    pinner_CP: np.ndarray
    lift: int = 0
    kept: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)
    learned: dict[int, int] = field(default_factory=dict)

    @classmethod
    def none(cls, users: int, items: int) -> Law:
        """A law that asks nothing of anyone."""
        return cls(np.zeros(users, np.int32), *_nothing(items))

    def facts(self, group_N: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, 1 + F) int32, an item's group, -1 where it has no twin, and what each cap and quota counts it as, side by
        side; and rule and column of the caps, and of the quotas. `group_N`: None: no item has a twin."""
        if id(group_N) not in self.kept:
            self.kept.clear()  # a process has one night's, or the next one's
            counted = np.flatnonzero(self.bound_R)
            group = np.full(self.fate_CN.shape[1], -1)
            if group_N is not None and len(group_N):
                group = np.where(np.bincount(group_N)[group_N] > 1, group_N, -1)
            facts_NF = np.column_stack([group, *self.code_RN[counted]]).astype(np.int32)
            both = np.column_stack([counted, np.arange(1, len(counted) + 1)]).astype(np.int64)
            most = self.bound_R[counted] > 0
            # the array is kept as well, so that its id is its own
            self.kept[id(group_N)] = (facts_NF, both[most], both[~most], group_N)
        return self.kept[id(group_N)][:3]  # type: ignore[return-value]


@lru_cache(maxsize=2)
def _nothing(items: int) -> tuple[Any, ...]:
    fate_1N, nobody = np.zeros((1, items, 2), np.int16), np.zeros((1, 0), np.int32)
    fate_1N[:, :, 0] = -1
    codes, kept = np.zeros((0, items), np.int32), {}
    return (fate_1N, np.zeros((1, 0), np.int16), codes, np.zeros((1, 0), bool), np.zeros(0, np.int32), nobody, nobody,
            nobody, nobody, 0, kept)  # fmt: skip


class Ruling:
    """See the module.

    Attributes:
        rules: those in force, in the file's order. names: theirs, then `TWIN`: what a cause is called.
        repeats: those of kind repeat.
        allowed_N: (N,) bool, items that not everybody is kept from. meant_RN: (R, N) bool, the items of a rule.
    """

    def __init__(self, rules: Sequence[Rule], items: pa.Table, as_of: datetime | None = None) -> None:
        """Args: items: of the day, ascending by item_id: item_id, and with rules title, categories, attributes.
        as_of: what repeats count days back from."""
        self.rules = list(rules)
        self.as_of_us = 0 if as_of is None else micros(as_of)
        self.names = [*(r.name for r in self.rules), TWIN]
        n = items.num_rows
        self.item_ids = items["item_id"].combine_chunks()
        fields = _Fields(items)
        self.meant_RN = np.array([fields.meant(r.items) for r in self.rules], bool).reshape(len(self.rules), n)
        self._barred_RN = np.array([self._barred(r, m) for r, m in zip(self.rules, self.meant_RN, strict=True)], bool
                                   ).reshape(len(self.rules), n)  # fmt: skip
        for_all = [k for k, r in enumerate(self.rules) if not r.users]
        self.cause_N = _first(self._barred_RN, for_all)
        self.allowed_N = self.cause_N < 0
        # the bars on everybody are in the catalogue: a class knows only its own
        self._code_RN = np.array([fields.codes(r, m) for r, m in zip(self.rules, self.meant_RN, strict=True)], np.int32
                                 ).reshape(len(self.rules), n)  # fmt: skip
        self._bound_R = np.array([r.most if r.kind == "cap" else -(r.least or 0) for r in self.rules], np.int32)
        self._place = {i: p for p, i in enumerate(items["item_id"].to_pylist())} if self._kind("pin") else {}
        self._classes: dict[bytes, int] = {}
        self.repeats = self._kind("repeat")
        self._made: list[tuple[np.ndarray, ...]] = []
        self._by_attributes = lru_cache(maxsize=65_536)(self._holds_for)
        self._named = any("user" in r.users for r in self.rules)
        self._kept: dict[int, tuple[np.ndarray, ...]] = {}
        self._learned: dict[int, int] = {}

    def _barred(self, rule: Rule, meant_N: np.ndarray) -> np.ndarray:
        """(N,) bool: what a rule keeps from its users."""
        if rule.kind == "include":
            return ~meant_N
        if rule.kind == "hold" and not rule.holds_lists:
            approved = pa.array(rule.approved, pa.string())
            return meant_N & ~pc.is_in(self.item_ids, value_set=approved).to_numpy(zero_copy_only=False)
        return meant_N & (rule.kind == "exclude")

    def _kind(self, *kinds: str) -> list[int]:
        return [k for k, r in enumerate(self.rules) if r.kind in kinds]

    @property
    def walks(self) -> bool:
        """Whether lists need more than the best K of what is allowed."""
        return any(r.kind not in _BARS or r.users for r in self.rules)

    def law(self, user_ids: pa.Array, attributes: pa.Array | None) -> Law:
        """What holds for a batch of users.

        Args:
            user_ids: (B,). attributes: (B,) JSON objects, null: none; None: nobody has any.
        """
        texts = pa.nulls(len(user_ids), pa.string()) if attributes is None else attributes
        if self._named:
            found = [self._holds_for(t, u) for t, u in zip(texts.to_pylist(), user_ids.to_pylist(), strict=True)]
            class_B = np.array([self._class(h) for h in found], np.int32)
        else:
            coded = pc.dictionary_encode(pc.fill_null(texts, "{}"))
            class_D = np.array([self._class(self._by_attributes(t)) for t in coded.dictionary.to_pylist()], np.int32)
            class_B = class_D[coded.indices.to_numpy()] if len(coded) else np.zeros(0, np.int32)
        if not self._made:  # nobody
            self._class(np.zeros(len(self.rules), bool).tobytes())
        fate, lifter, holds, least, pin, place, pinner = self._stacked(len(self._made))
        return Law(class_B, fate, lifter, self._code_RN, holds, self._bound_R, least, pin, place, pinner,
                   int(fate[:, :, 1].max(initial=0)) if self._kind("boost") else 0, self._kept,
                   self._learned)  # fmt: skip

    def holds_for(self, user_id: str, attributes: str | None) -> np.ndarray:
        """(R,) bool: the rules that hold for a user."""
        return np.frombuffer(self._holds_for(attributes, user_id), bool)

    def tables(self, users: pa.Table) -> dict[str, pa.Table]:
        """What a finished list can be held against, by joins.

        Args:
            users: user_id and attributes, those who have a list.

        Returns: of `TABLES`, but for again and hidden: bars, what a rule keeps from users; counted, what caps count
            together; bound, for whom a rule of `some` users holds.
        """
        ids = self.item_ids
        found: dict[str, list[pa.Table]] = {name: [TABLES[name].empty_table()] for name in ("bars", "counted", "bound")}
        for k, rule in enumerate(self.rules):
            same = {"name": rule.name, "some": bool(rule.users), "most": rule.most}
            if rule.kind in _BARS:
                found["bars"].append(_rows("bars", same, item_id=ids.filter(pa.array(self._barred_RN[k]))))
            if rule.kind == "cap":
                there = self._code_RN[k] >= 0
                found["counted"].append(_rows("counted", same, item_id=ids.filter(pa.array(there)),
                                              code=pa.array(self._code_RN[k][there])))  # fmt: skip
        conditional = [k for k, r in enumerate(self.rules) if r.users]
        if conditional and users.num_rows:
            names = users["user_id"].combine_chunks()
            law = self.law(names, users["attributes"].combine_chunks())
            for k in conditional:
                theirs = names.filter(pa.array(law.holds_CR[law.class_B, k]))
                found["bound"].append(_rows("bound", {"name": self.rules[k].name}, user_id=theirs))
        return {name: pa.concat_tables(parts) for name, parts in found.items()}

    def _holds_for(self, attributes: str | None, user_id: str | None = None) -> bytes:
        about = {**json.loads(attributes or "{}"), **({} if user_id is None else {"user": user_id})}
        return np.array([all(name in about and _meets(about[name], m, name == "user") for name, m in r.users.items())
                         for r in self.rules], bool).tobytes()  # fmt: skip

    def _class(self, holds: bytes) -> int:
        if holds not in self._classes:
            self._classes[holds] = len(self._made)
            self._made.append(self._arrays(np.frombuffer(holds, bool)))
            self._stacked.cache_clear()
        return self._classes[holds]

    def _arrays(self, holds_R: np.ndarray) -> tuple[np.ndarray, ...]:
        own = [k for k, r in enumerate(self.rules) if holds_R[k] and r.users]
        cause_N = _first(self._barred_RN, own)
        n = len(cause_N)
        lift_N, lifter_N = np.zeros(n, np.int16), np.full(n, -1, np.int16)
        for k in self._kind("boost"):
            higher = self.meant_RN[k] & holds_R[k] & (lift_N < (self.rules[k].places or 0))
            lift_N[higher], lifter_N[higher] = self.rules[k].places, k
        pins = []
        for k in self._kind("pin"):
            (item,) = self.rules[k].items["item"]  # type: ignore[misc]
            at = self._place.get(str(item), -1)
            if holds_R[k] and at >= 0 and self.allowed_N[at] and cause_N[at] < 0:
                pins.append(((self.rules[k].place or 1) - 1, at, k))
        pin_P3 = np.array(sorted(pins), np.int32).reshape(-1, 3)
        fate_N = np.stack([cause_N, lift_N], 1)
        free_N = self.allowed_N & (cause_N < 0)
        least_R = np.array([min(r.least or 0, int((m & free_N).sum())) for r, m in zip(
            self.rules, self.meant_RN, strict=True)], np.int32)  # fmt: skip
        return fate_N, lifter_N, holds_R, least_R, pin_P3[:, 1], pin_P3[:, 0], pin_P3[:, 2]

    @lru_cache(maxsize=1)  # noqa: B019  # a ruling lives as long as its process
    def _stacked(self, classes: int) -> list[np.ndarray]:
        assert classes == len(self._made)
        wide = max(len(made[4]) for made in self._made)
        return [np.stack([np.pad(x, (0, wide - len(x)), constant_values=-1) if n >= 4 else x for x in column])
                for n, column in enumerate(zip(*self._made, strict=True))]  # fmt: skip


def _rows(table: str, same: dict[str, Any], **own: pa.Array) -> pa.Table:
    """Rows of one of `TABLES`; `same`: what is alike in all of them."""
    n = len(next(iter(own.values())))
    return pa.table([own[f.name].cast(f.type) if f.name in own else pa.repeat(pa.scalar(same[f.name], f.type), n)
                     for f in TABLES[table]], schema=TABLES[table])  # fmt: skip


def _first(barred_RN: np.ndarray, rules: list[int]) -> np.ndarray:
    """(N,) int16: the first of some rules that bars an item, -1: none."""
    cause_N = np.full(barred_RN.shape[1], -1, np.int16)
    for k in reversed(rules):
        cause_N[barred_RN[k]] = k
    return cause_N


class _Fields:
    """The day's items as rules see them; a field is read once."""

    def __init__(self, items: pa.Table) -> None:
        self._items, self.n = items, items.num_rows
        self._about: list[dict[str, Any]] | None = None
        self._read = lru_cache(maxsize=None)(self._values)

    def meant(self, match: Match) -> np.ndarray:
        """(N,) bool: items that meet all of a match."""
        out_N = np.ones(self.n, bool)
        for name, wanted in match.items():
            text = name in ("item", "category", "title")
            if name == "category":
                out_N &= np.array([any(_meets(c, wanted, True) for c in cs or ()) for cs in self._read(name)], bool)
            elif name == "item" and not isinstance(wanted, Range):
                ids = pa.array([str(w) for w in wanted], pa.string())
                out_N &= pc.is_in(self._items["item_id"], value_set=ids).to_numpy()
            else:
                out_N &= np.array([v is not None and _meets(v, wanted, text) for v in self._read(name)], bool)
        return out_N

    def codes(self, rule: Rule, meant_N: np.ndarray) -> np.ndarray:
        """(N,) int32: what a cap counts together, 0 what a quota counts; -1: neither."""
        if rule.kind not in ("cap", "quota"):
            return np.full(self.n, -1, np.int32)
        if rule.each is None:
            return np.where(meant_N, 0, -1).astype(np.int32)
        values = self._read(rule.each)
        # of several categories the first, which is the most important, is counted
        first = [(v[0] if v else None) if isinstance(v, list) else v for v in values]
        known: dict[str, int] = {}
        codes = [-1 if v is None else known.setdefault(_alike(v), len(known)) for v in first]
        return np.where(meant_N, np.array(codes, np.int32), -1).astype(np.int32)

    def _values(self, name: str) -> list[Any]:
        column = {"item": "item_id", "category": "categories", "title": "title"}.get(name)
        if column is not None:
            return self._items[column].to_pylist()
        if self._about is None:
            read: Callable[[str | None], dict[str, Any]] = lru_cache(maxsize=4096)(lambda t: json.loads(t or "{}"))
            self._about = [read(t) for t in self._items["attributes"].to_pylist()]
        return [about.get(name) for about in self._about]


def _meets(value: Any, wanted: Range | tuple[Any, ...], text: bool) -> bool:
    """Whether a value is one of those wanted, or any of its values is; with `text` a number is its digits."""
    if isinstance(value, list):
        return any(_meets(v, wanted, text) for v in value)
    if isinstance(wanted, Range):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (wanted.at_least is None or value >= wanted.at_least) and (wanted.below is None or value < wanted.below)
    if text:
        return str(value) in {str(w) for w in wanted}
    return any(value == w and (type(value) is type(w) or _numbers(value, w)) for w in wanted)


def _alike(value: Any) -> str:
    """The same of 1 and 1.0, as a match has it."""
    return repr(float(value)) if _numbers(value, value) else json.dumps(value)


def _numbers(a: Any, b: Any) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
