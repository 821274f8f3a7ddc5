"""Amazon review sequences in the form that published benchmarks share: one user's items a line, in order of time.

In: a folder with sequences.txt ("user item item ...") and, if there, items.jsonl (item, title, attributes: brand
first, then categories). Out: interactions of type "purchase", items, users, brand and category as relations.
The files hold order and no time. A user's last event is put on the last day of the collection (2014-07-23, McAuley et
al., SIGIR 2015) and every earlier one a day before the next; intervals therefore mean nothing, order does.
Trade-off: time cuts over such data cut every user at the same place from the end, which is not how a shop's days
look; the protocol for it is leave_one_out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mmrec.errors import InputError
from mmrec.worlds.sources import Delivery, batches, jsonl_rows, records

_LAST = datetime(2014, 7, 23, tzinfo=UTC)
_SINCE = "1996-01-01T00:00:00Z"  # no item has a day of its own
_Row = tuple[int, dict[str, Any] | None, str, str | None]


class Amazon:
    """See the module."""

    name = "amazon"

    def __init__(self, root: Path) -> None:
        if not (root / "sequences.txt").is_file():
            raise InputError(
                "this is not a folder of sequences",
                where=str(root),
                value="no sequences.txt",
                valid="sequences.txt and, if there is one, items.jsonl",
                next="mmrec init --source amazon --root FOLDER",
            )
        self.root = root

    def deliveries(self) -> list[Delivery]:
        made = [("interactions", "sequences.txt", self._events), ("users", "sequences.txt", self._users),
                ("items", "items.jsonl" if self._described else "sequences.txt", self._items)]  # fmt: skip
        if self._described:
            made.append(("relations", "items.jsonl", self._relations))
        return [Delivery(kind, file, self.root / file, None, read) for kind, file, read in made]

    def media(self, reference: str) -> bytes | None:
        return None

    def last_day(self) -> Any:
        """The day of the newest event."""
        return _LAST.date()

    @property
    def _described(self) -> bool:
        return (self.root / "items.jsonl").is_file()

    def _events(self) -> Iterator[Any]:
        def rows() -> Iterator[_Row]:
            for line, text, error in records(self.root / "sequences.txt"):
                user, *items = text.split() or [""]
                if error or not items:
                    yield line, None, text, error or "a user and at least one item are needed"
                    continue
                for back, item in enumerate(reversed(items)):
                    when = (_LAST - timedelta(days=back)).strftime("%Y-%m-%dT%H:%M:%SZ")
                    yield line, {"user_id": user, "item_id": item, "event_ts": when}, text, None

        def convert(row: dict[str, Any]) -> dict[str, str | None]:
            return row | {"event_type": "purchase", "available_at": row["event_ts"], "weight": "1"}

        return batches("interactions", rows(), convert)

    def _users(self) -> Iterator[Any]:
        def rows() -> Iterator[_Row]:
            for line, text, error in records(self.root / "sequences.txt"):
                if not error and text.split():  # what can't be read is named by the interactions
                    yield line, {"user_id": text.split()[0], "available_at": _SINCE}, text, None

        return batches("users", rows(), lambda row: row)

    def _items(self) -> Iterator[Any]:
        if not self._described:
            return batches("items", self._bare(), lambda row: row)

        def convert(row: dict[str, Any]) -> dict[str, str | None]:
            brand, *categories = row.get("attributes") or [None]
            known = {"asin": row.get("asin"), "brand": brand}
            about = {k: v for k, v in known.items() if v and v != "Unknown"}
            return {"item_id": str(row["item"]), "title": row.get("title") or " ".join(about.get("brand", "").split()),
                    "categories": json.dumps(categories), "attributes": json.dumps(about, sort_keys=True),
                    "valid_from": _SINCE, "available_at": _SINCE}  # fmt: skip

        return batches("items", jsonl_rows(self.root / "items.jsonl"), convert)

    def _bare(self) -> Iterator[_Row]:
        seen: set[str] = set()
        for line, text, error in records(self.root / "sequences.txt"):
            for item in [] if error else text.split()[1:]:
                if item not in seen:
                    seen.add(item)
                    yield line, {"item_id": item, "title": "", "valid_from": _SINCE, "available_at": _SINCE}, text, None

    def _relations(self) -> Iterator[Any]:
        def edges() -> Iterator[_Row]:
            for line, row, text, error in jsonl_rows(self.root / "items.jsonl"):
                found = (row or {}).get("attributes")
                named = isinstance(found, list) and all(isinstance(a, str) for a in found)  # if not, items name it
                brand, *categories = (named and found) or ["Unknown"]
                pairs = [("brand", brand)] * (brand != "Unknown") + [("category", c) for c in dict.fromkeys(categories)]
                for relation, entity in pairs if row and "item" in row else ():
                    yield line, {"item": row["item"], "relation": relation, "entity": entity}, text, error

        def convert(row: dict[str, Any]) -> dict[str, str | None]:
            return {"kind": "item", "subject_id": str(row["item"]), "relation": row["relation"],
                    "object_id": row["entity"], "available_at": _SINCE}  # fmt: skip

        return batches("relations", edges(), convert)
