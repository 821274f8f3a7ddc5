"""What a shop knows of its users beside behaviour, as of a fold's cut: traits, and what friends had.

In: users' attributes, who is linked to whom, the context and words of events. Out: of a fold, the counts of traits, and
who each case's user is: the same numbers that a night makes of gold.user_sequences.
Trade-off: attributes, links and entities are those of the day of the training; only what hangs on events is of the cut.

Shape legend: U users, E interactions, R train rows, S cases, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from zlib import crc32

import numpy as np

from mmrec.models.columns import Columns
from mmrec.models.data import Fold, Log
from mmrec.models.traits import WORDS_US, Traits, Who, traits_of

_DAY = 86_400_000_000
_COINS = 6  # faces of what says nothing of a user


@dataclass(frozen=True)
class Sources:
    """See the module.

    Attributes:
        attributes_U: JSON of each user, or None. friends: user -> those they are linked to, dense. entities_N:
            `relation=entity` of each item. attributes_N: JSON of each item, or None. declared: columns, and how each
            is transformed. social_days, social_items: what a night keeps of what friends had.
    """

    attributes_U: Sequence[str | None]
    friends: Mapping[int, Sequence[int]]
    entities_N: Sequence[Sequence[str] | None]
    social_days: int
    social_items: int
    attributes_N: Sequence[str | None] = ()
    declared: Mapping[str, str] = field(default_factory=dict)

    def columns(self, log: Log, fold: Fold, target_N: np.ndarray) -> Columns | None:
        """Declared columns as the fold's train rows, their users and the items on offer have them; None: none is
        declared. `target_N`: log(1 + users) of items.

        Raises: InputError: as `Columns.fit`.
        """
        if not self.declared:
            return None
        rows, offer = np.flatnonzero(fold.train), np.flatnonzero(fold.catalogue)
        users = np.unique(log.user[rows])
        return Columns.fit(self.declared, [self.attributes_N[i] for i in offer], target_N[offer],
                           [self.attributes_U[u] for u in users], (_about(log)[0][rows], log.ts_us[rows]))  # fmt: skip

    def counted(self, log: Log, fold: Fold, n_items: int) -> Traits:
        """Choices of the fold's train rows under each trait; the log has context and text."""
        context_E, text_E = _about(log)
        row_R = np.flatnonzero(fold.train)
        user_R, item_R, ts_R = log.user[row_R], log.item[row_R], log.ts_us[row_R]
        _, first = np.unique(user_R.astype(np.int64) * n_items + item_R, return_index=True)
        chosen_R = np.zeros(len(row_R), bool)
        chosen_R[first] = True
        names: dict[str, int] = {}
        trait_E: list[int] = []
        at_E: list[int] = []

        def add(traits: Sequence[str], rows: np.ndarray | Sequence[int]) -> None:
            for trait in traits:
                code = names.setdefault(trait, len(names))
                trait_E.extend([code] * len(rows))
                at_E.extend(rows)

        ends = np.searchsorted(user_R, np.arange(log.n_users + 1))
        for u in np.unique(user_R).tolist():
            mine = np.flatnonzero(chosen_R[ends[u] : ends[u + 1]]) + ends[u]
            add([*self._own[u], *self._coin(log, u)], mine.tolist())
        later = np.flatnonzero(chosen_R[1:] & (user_R[1:] == user_R[:-1])) + 1
        before = context_E[row_R[later - 1]]
        for context in sorted({c for c in before if c}):
            add(traits_of(None, context), later[before == context].tolist())
        texts = np.flatnonzero([bool(t) for t in text_E[row_R]])
        said: dict[str, set[int]] = {}
        for t in texts.tolist():
            stop = np.searchsorted(ts_R[t : ends[user_R[t] + 1]], ts_R[t] + WORDS_US, side="left") + t
            rows = (np.flatnonzero(chosen_R[t + 1 : stop]) + t + 1).tolist()
            for word in traits_of(None, None, [text_E[row_R[t]]]):
                said.setdefault(word, set()).update(rows)
        for word in sorted(said):
            add([word], sorted(said[word]))
        item_E = item_R[np.array(at_E, np.int64)].astype(np.int64)
        all_N = np.bincount(item_R[chosen_R], minlength=n_items)
        return Traits.of(list(names), np.array(trait_E, np.int64), item_E, all_N, len(set().union(*said.values())))

    def who(
        self, log: Log, fold: Fold, cases: slice, traits: Traits, length: int, columns: Columns | None = None
    ) -> Who:
        """Who the users of cases are; `length`: events of a history that a night keeps."""
        at, (context_E, text_E) = {name: t for t, name in enumerate(traits.names)}, _about(log)
        ends, rows = self._had(log, fold)
        own, theirs, last = [], [], []
        for c in range(cases.start, min(cases.stop, fold.n_cases)):
            user, row = int(fold.case_user[c]), fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]][-length:]
            lately = row[log.ts_us[row] > fold.case_at_us[c] - WORDS_US]
            context = context_E[row[-1]] if len(row) else None
            last.append((user, context, int(log.ts_us[row[-1]]) if len(row) else -1))
            own.append([*self._own[user], *self._coin(log, user), *traits_of(None, context, text_E[lately])])
            linked = [rows[ends[v] : ends[v + 1]] for v in self.friends.get(user, ())]
            item = self._lately(log, np.concatenate([*linked, np.zeros(0, np.int64)]), int(fold.case_at_us[c]))
            theirs.append(np.where(fold.catalogue[item], item, -1))
        moments = [c for _, c, _ in last], np.array([us for *_, us in last], np.int64)
        told = [self.attributes_U[u] for u, *_ in last]
        return Who.of(own, at, theirs, None if columns is None else columns.users(told, moments, checked=False))

    def _lately(self, log: Log, rows: np.ndarray, at_us: int) -> np.ndarray:
        """Items of friends' rows: what most of them had first, of equals what was had last, then by id; as
        features/sequences.py `social` has them."""
        age_us = at_us - log.ts_us[rows]
        rows = rows[(age_us >= 0) & (age_us <= self.social_days * _DAY)]
        pair = log.user[rows].astype(np.int64) << 32 | log.item[rows]
        item = np.unique(pair) & 0xFFFFFFFF
        item, many = np.unique(item, return_counts=True)
        last = np.zeros(len(item), np.int64)
        np.maximum.at(last, np.searchsorted(item, log.item[rows]), log.ts_us[rows])
        return item[np.lexsort((item, -last, -many))][: self.social_items]

    @cached_property
    def _own(self) -> list[list[str]]:
        return [traits_of(told, None) for told in self.attributes_U]

    @staticmethod
    def _coin(log: Log, user: int) -> list[str]:
        return [f"noise/{crc32(str(log.user_ids[user]).encode()) % _COINS}"]

    def _had(self, log: Log, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
        """(U + 1,) and train rows that are late enough to matter to any case."""
        least = int(fold.case_at_us.min(initial=fold.fit_at_us)) - self.social_days * _DAY
        rows = np.flatnonzero(fold.train & (log.ts_us >= least))
        return np.searchsorted(log.user[rows], np.arange(log.n_users + 1)), rows


def _about(log: Log) -> tuple[np.ndarray, np.ndarray]:
    assert log.context is not None
    assert log.text is not None
    return log.context, log.text
