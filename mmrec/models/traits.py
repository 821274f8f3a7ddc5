"""What is known of a user at a moment, as traits: an attribute, a device, a word of a review. And what is chosen by
those who have one.

In: what users chose and the traits they had then. Out: counts, which are kept in a bundle; of a day's items, how much
more than usual each is chosen under a trait.
    lift   log of (n_ti + m_t) / (e_ti + m_t): n_ti choices of item i under trait t, e_ti those that there were if it
           said nothing, m_t as many that are thought to have been as expected: a Poisson count under a Gamma prior,
           whose variance 1 / m_t is that of n over e beyond chance (Clayton and Kaldor, Biometrics 1987, section 3);
           a trait that says no more than chance has no lift
    likes  the mean sketch of what is chosen under the trait, less everybody's, times the item's: so it speaks of
           items that nobody has chosen yet. The difference is drawn to nothing by the share of its square that chance
           would give (James and Stein, 1961, the positive part)
A choice is a user's first event on an item, under the traits of that moment: attributes, the context of the event
before, words written in the week before. At night they are those of now.
Trade-off: traits are looked at one by one; what two say together is left to who takes the numbers.

Shape legend: T traits, N items, V columns of a sketch, E pairs of a trait and an item, S users.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from mmrec.models.sketch import ONE

KINDS = ("attributes", "context", "reviews", "noise")
FILE = "traits.parquet"
WORDS_US = 7 * 86_400_000_000  # how long a word says what a user is after
_LEAST = 30  # choices under a trait, else it says nothing
_COMMON = 0.5  # share of the choices under any word beyond which one is grammar
_MOST = 256  # traits of a kind, the commonest
_ROOM = 100_000_000  # numbers of a trait and an item that may be held
_PRIORS = (1.0, 1e6)  # choices, between which the m above lies
_GRAIN = 256  # of a mean sketch: whole numbers have one sum in any order
_WORD = re.compile(r"[^\W\d_]{3,}")


def traits_of(attributes: str | None, context: str | None, texts: Iterable[str | None] = ()) -> list[str]:
    """`kind/field=value` and `kind/word`, ascending, each once.

    Args:
        attributes, context: JSON objects; values that are lists say each of their entries. texts: the user's own words.
    """
    found = {f"{kind}/{field}={value}" for kind, told in (("attributes", attributes), ("context", context))
             for field, value in _said(told)}  # fmt: skip
    found |= {f"reviews/{word}" for text in texts for word in _WORD.findall((text or "").lower())}
    return sorted(found)


def _said(told: str | None) -> Iterable[tuple[str, str]]:
    for field, value in (json.loads(told) if told else {}).items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str | int | bool):
                yield field, str(one)


@dataclass(frozen=True)
class Traits:
    """Counts of choices.

    Attributes:
        names: (T,) ascending. chosen_TN: CSR int64, choices of an item under a trait. all_N: (N,) int64, choices of an
            item by anybody.
    """

    names: tuple[str, ...]
    chosen_TN: sparse.csr_matrix
    all_N: np.ndarray

    @classmethod
    def of(
        cls, names: Sequence[str], trait_E: np.ndarray, item_E: np.ndarray, all_N: np.ndarray, worded: int
    ) -> Self:
        """Of pairs of a trait and what was chosen under it; traits that say too little are left out.

        Args:
            names: what `trait_E` counts in. trait_E, item_E: (E,) ints. all_N: (N,) choices of an item by anybody.
            worded: choices under any word, of which one that stands for more than half is grammar.
        """
        whole = sparse.csr_matrix((np.ones(len(trait_E), np.int64), (trait_E, item_E)), (len(names), len(all_N)))
        many_T = np.asarray(whole.sum(1)).ravel()
        kept: list[int] = []
        for kind in KINDS:
            own = [t for t, name in enumerate(names) if name.startswith(f"{kind}/") and many_T[t] >= _LEAST]
            if kind == "reviews":
                own = [t for t in own if many_T[t] <= _COMMON * worded]
            kept += sorted(own, key=lambda t: (-many_T[t], names[t]))[: min(_MOST, _ROOM // max(len(all_N), 1))]
        kept.sort(key=lambda t: names[t])
        return cls(tuple(names[t] for t in kept), whole[kept].tocsr(), all_N.astype(np.int64))

    def of_kinds(self, kinds: Iterable[str]) -> Traits:
        """Those of some kinds."""
        kinds = set(kinds)
        kept = [t for t, name in enumerate(self.names) if name.split("/", 1)[0] in kinds]
        return Traits(tuple(self.names[t] for t in kept), self.chosen_TN[kept].tocsr(), self.all_N)

    @property
    def fields(self) -> tuple[str, ...]:
        """What traits are of, ascending: `attributes/country`, `context/device`, `reviews`."""
        return tuple(sorted(set(map(_field, self.names))))

    @property
    def field_T(self) -> np.ndarray:
        """(T,) int64, places in `fields`."""
        at = {field: n for n, field in enumerate(self.fields)}
        return np.array([at[_field(name)] for name in self.names], np.int64)

    def tables(
        self, sketch_NV: np.ndarray | None, offer_N: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(T, N) float32, twice: lift and likes.

        Args:
            sketch_NV: of sketch.py; None: no content is known, and none is liked. offer_N: (N,) bool, items whose
                choices count; None: all.
        """
        offer_N = np.ones(len(self.all_N), bool) if offer_N is None else offer_N
        all_N = np.where(offer_N, self.all_N, 0)
        total = float(all_N.sum())
        share_N = all_N / max(total, 1.0)
        chosen_TN = self.chosen_TN.toarray().astype(np.float64) * offer_N
        under_T1 = chosen_TN.sum(1, keepdims=True)
        due_TN = under_T1 * share_N
        chance_TN = due_TN * (1 - under_T1 / max(total, 1.0))  # the trait's own choices are among all
        beyond_TN = ((chosen_TN - due_TN) ** 2 - chance_TN) / np.where(due_TN > 0, due_TN, 1)
        prior_T1 = due_TN.sum(1, keepdims=True) / np.maximum(beyond_TN.sum(1, keepdims=True), 1e-9)
        prior_T1 = np.clip(prior_T1, *_PRIORS)
        lift_TN = np.log((chosen_TN + prior_T1) / (due_TN + prior_T1))
        if sketch_NV is None or not len(self.names):
            return lift_TN.astype(np.float32), np.zeros(lift_TN.shape, np.float32)
        wide_NV = sketch_NV.astype(np.float64)
        mean_V, square = all_N @ wide_NV / max(total, 1.0), (wide_NV**2).sum(1)
        mean_TV = chosen_TN @ wide_NV / np.maximum(under_T1, 1) - mean_V
        spread = all_N @ square / max(total, 1.0) - mean_V @ mean_V
        chance_T1 = spread * (1 / np.maximum(under_T1, 1) - 1 / max(total, 1.0))
        mean_TV *= np.maximum(1 - chance_T1 / np.maximum((mean_TV**2).sum(1, keepdims=True), 1e-9), 0)
        likes_TN = np.rint(_GRAIN * mean_TV) @ wide_NV.T / (_GRAIN * ONE * ONE)
        return lift_TN.astype(np.float32), likes_TN.astype(np.float32)

    def save(self, folder: Path, ids: Sequence[str]) -> None:
        """Write `traits.parquet`: (trait, item_id, n), choices of anybody under the trait "". `ids`: of the items."""
        pairs, some = self.chosen_TN.tocoo(), np.flatnonzero(self.all_N)
        names = np.array(["", *self.names], object)
        at = np.concatenate([np.zeros(len(some), np.int64), pairs.row + 1])
        item = np.concatenate([some, pairs.col])
        table = pa.table({"trait": pa.array(names[at], pa.string()),
                          "item_id": pa.array(np.asarray(ids, object)[item], pa.string()),
                          "n": pa.array(np.concatenate([self.all_N[some], pairs.data]), pa.int64())})  # fmt: skip
        order = np.lexsort((item, at))
        pq.write_table(table.take(pa.array(order)), folder / FILE)

    @classmethod
    def load(cls, folder: Path, ids: Sequence[str]) -> Self:
        """What `save` wrote, of a day's items: choices of what is on offer no more are left out; new ones have none."""
        rows, place = pq.read_table(folder / FILE), {item: n for n, item in enumerate(ids)}
        item = np.array([place.get(i, -1) for i in rows["item_id"].to_pylist()], np.int64)
        trait, n = np.array(rows["trait"].to_pylist(), object), rows["n"].to_numpy()
        all_N = np.zeros(len(ids), np.int64)
        anybody = trait == ""
        here = item >= 0
        all_N[item[anybody & here]] = n[anybody & here]
        names = tuple(sorted(set(trait[~anybody])))
        at = {name: t for t, name in enumerate(names)}
        kept = ~anybody & here
        rows_E = np.array([at[t] for t in trait[kept]], np.int64)
        chosen_TN = sparse.csr_matrix((n[kept], (rows_E, item[kept])), (len(names), len(ids)))
        return cls(names, chosen_TN, all_N)


@dataclass(frozen=True)
class Who:
    """S users at a moment, as CSR.

    Attributes:
        trait_ptr: (S + 1,) int64, trait: int32, places in `Traits.names`. friend_ptr: (S + 1,) int64, friend: int32,
            items that those whom a user is linked to had lately, what most had first. told_SF: (S, F) float32, of
            declared columns of users; None: there are none.
    """

    trait_ptr: np.ndarray
    trait: np.ndarray
    friend_ptr: np.ndarray
    friend: np.ndarray
    told_SF: np.ndarray | None = None

    @classmethod
    def of(
        cls, traits: Sequence[Iterable[str]], at: Mapping[str, int], friends: Sequence[np.ndarray],
        told_SF: np.ndarray | None = None,
    ) -> Self:  # fmt: skip
        """Of users' traits by name, those that are not in `at` left out, and friends' items, -1 of what is not on
        offer."""
        own = [sorted(at[t] for t in mine if t in at) for mine in traits]
        theirs = [np.asarray(f, np.int32) for f in friends]
        theirs = [f[f >= 0] for f in theirs]
        return cls(_ptr(own), np.array([t for mine in own for t in mine], np.int32), _ptr(theirs),
                   np.concatenate([*theirs, np.zeros(0, np.int32)]), told_SF)  # fmt: skip

    def some(self, users: np.ndarray) -> Who:
        """Some of the users."""
        trait, friend = (_taken(*csr, users) for csr in ((self.trait_ptr, self.trait), (self.friend_ptr, self.friend)))
        return Who(*trait, *friend, None if self.told_SF is None else self.told_SF[users])


def _field(name: str) -> str:
    kind, told = name.split("/", 1)
    return f"{kind}/{told.split('=', 1)[0]}" if kind in ("attributes", "context") else kind


def _ptr(lists: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)


def _taken(ptr: np.ndarray, idx: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [idx[ptr[u] : ptr[u + 1]] for u in users]
    return _ptr(parts), np.concatenate([*parts, np.zeros(0, idx.dtype)])
