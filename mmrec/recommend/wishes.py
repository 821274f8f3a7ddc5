"""What users ask for themselves: this hidden, less of that, more of the other.

In: a day's items, users' wishes as gold.user_sequences has them ("hide item=i7", "less category=Wine"). Out: what a
user must not get, and rankings in which the rest moves.
What is hidden is out of a list as what was seen is. Of the first `pool` places of a ranking, what a user wants more of
comes `places` earlier, and what they want less of as many later; of an item that is both, nothing moves.
Trade-off: users who ask for something are gone through one by one; they are few.

Shape legend: U users, S some of them, W places of a ranking, P those of the pool.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.topk.exact import TopK

COLUMN = "wishes"


@dataclass(frozen=True)
class Wishes:
    """Over a day's items (item_id, categories, attributes), ascending by item_id. `places`: that a wish moves an item;
    `pool`: first places of a ranking in which it does."""

    items: pa.Table
    places: int
    pool: int

    def hidden(self, users: pa.Table) -> dict[int, np.ndarray]:
        """Row of `users` -> (n,) int32 places in the catalogue that this user hides."""
        out = {}
        for row, entries in self._asked(users):
            if own := {i for entry in entries if entry.startswith("hide ") for i in self.meant(entry)}:
                out[row] = np.array(sorted(own), np.int32)
        return out

    def moves(self, users: pa.Table) -> dict[int, dict[int, int]]:
        """Row of `users` -> item -> places that it comes later; below 0, earlier."""
        out: dict[int, dict[int, int]] = {}
        for row, entries in self._asked(users):
            for entry in entries:
                by = {"less": self.places, "more": -self.places}.get(entry.partition(" ")[0], 0)
                for item in self.meant(entry) if by else ():
                    own = out.setdefault(row, {})
                    own[item] = max(-self.places, min(self.places, own.get(item, 0) + by))
        return out

    def moved(self, found: TopK, rows: np.ndarray, moves: dict[int, dict[int, int]], wide: int) -> TopK:
        """The first `wide` places of rankings, of which the first `pool` come as their users wish, and `rank`, which is
        0 where nothing was put in another order.

        Args:
            found: of at least max(wide, pool) places, or all there are; it is used up. rows: (S,) of `moves`.
        """
        rank = found.rank
        if rank is None:
            rank = np.zeros(found.item.shape, np.int32)
            rank[[row in moves for row in rows.tolist()]] = np.arange(1, found.item.shape[1] + 1)
        for s, row in enumerate(rows.tolist()):
            own = moves.get(row)
            if own:
                item_P = found.item[s, : self.pool]
                key_P = np.arange(len(item_P)) + np.array([own.get(i, 0) for i in item_P.tolist()], np.int64)
                # of equal ones what is asked for comes first, what is not wanted last
                order_P = np.lexsort((key_P - np.arange(len(item_P)), np.where(item_P < 0, len(item_P) ** 2, key_P)))
                for of in (found.item, found.score, rank):
                    of[s, : self.pool] = of[s, order_P]
        return TopK(*(np.ascontiguousarray(x[:, :wide]) for x in (found.item, found.score)), found.dropped_users,
                    found.dropped_items, np.ascontiguousarray(rank[:, :wide]))  # fmt: skip

    def _asked(self, users: pa.Table) -> Iterator[tuple[int, list[str]]]:
        if COLUMN in users.column_names:
            yield from ((row, told) for row, told in enumerate(users[COLUMN].to_pylist()) if told)

    def meant(self, entry: str) -> list[int]:
        """Places in the catalogue of what an entry is about."""
        field, _, value = entry.partition(" ")[2].partition("=")
        if field == "item":
            return self._ids.get(value, [])
        if field == "category":
            return self._categories.get(value, [])
        return self._attributes.get((field, value), [])

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        return {item: [n] for n, item in enumerate(self.items["item_id"].to_pylist())}

    @cached_property
    def _categories(self) -> dict[str, list[int]]:
        out: dict[str, list[int]] = {}
        for n, categories in enumerate(self.items["categories"].to_pylist()):
            for c in dict.fromkeys(categories or ()):
                out.setdefault(c, []).append(n)
        return out

    @cached_property
    def _attributes(self) -> dict[tuple[str, str], list[int]]:
        out: dict[tuple[str, str], list[int]] = {}
        for n, text in enumerate(self.items["attributes"].to_pylist()):
            about: dict[str, Any] = json.loads(text or "{}")
            for field, value in about.items():
                for v in dict.fromkeys(str(v) for v in (value if isinstance(value, list) else [value])):
                    out.setdefault((field, v), []).append(n)
        return out


def hidden_pairs(users: pa.Table, wishes: Wishes) -> pa.Table:
    """user_id and item_id of what users hide, of items on offer."""
    found = wishes.hidden(users)
    size = [len(items) for items in found.values()]
    user, item = np.repeat(list(found), size).astype(np.int64), np.concatenate([np.zeros(0, np.int32), *found.values()])
    return pa.table({"user_id": users["user_id"].take(pa.array(user)),
                     "item_id": wishes.items["item_id"].take(pa.array(item))})  # fmt: skip
