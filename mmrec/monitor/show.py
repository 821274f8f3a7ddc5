"""One user's page: what they did lately, beside what they are offered and why.

In: a lake, user ids, a run_date. Out: `UserPage`: JSON for programs, a rich renderable for a terminal.
Titles and ids are other people's text: control characters are taken out before a terminal or a page sees them.
Trade-off: history is read as of the list's own moment, from the newest table version unless versions are given; a
delivery that was late by more than a night shows here though the night couldn't know it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.dataset as ds
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mmrec import dates
from mmrec.errors import InputError
from mmrec.lake.store import Lake

_LAST = 10
_WIDE = 110  # columns from which two tables fit beside each other
_NAME, _PROFILES = "gold.recommendations", "gold.user_profiles"


@dataclass(frozen=True)
class UserPage:
    """What `show` knows about one user.

    Attributes:
        attributes: as of run_date.
        interests: label -> how often the user's events fall on it, for once that everybody's do; the strongest first.
        history: newest first: when (aware, in the asked zone), event, item_id, title, weight, image_sha256.
        slate: by rank: rank, item_id, title, score, source, reason, model_version, image_sha256. Empty where the
            user had no list that day.
    """

    user_id: str
    run_date: date
    attributes: dict[str, Any]
    interests: dict[str, float]
    history: list[dict[str, Any]]
    slate: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types: dates and times in ISO 8601."""
        page = asdict(self) | {"run_date": self.run_date.isoformat()}
        page["history"] = [h | {"when": h["when"].isoformat()} for h in page["history"]]
        return page


def user_page(lake: Lake, user_id: str, run_date: date | None = None, zone: str = "UTC") -> UserPage:
    """The page of one user on `run_date` (None: the newest published).

    Raises: InputError: no such user, with a few there are; or nothing is published on that day.
    """
    day = _published(lake, run_date)
    return user_pages(lake, [user_id], day, zone)[0]


def user_pages(
    lake: Lake,
    user_ids: list[str],
    run_date: date,
    zone: str = "UTC",
    *,
    versions: dict[str, int] | None = None,
    last: int = _LAST,
) -> list[UserPage]:
    """Pages of several users in the order asked, one scan a table.

    Args:
        versions: table -> version to read (default: the newest). last: interactions shown.

    Raises: InputError: as `user_page`.
    """
    at, pinned = dates.as_of(run_date, zone), versions or {}
    mine = ds.field("user_id").isin(user_ids)
    lists = lake.arrow(_NAME, where=(ds.field("run_date") == run_date) & mine).sort_by(
        [("user_id", "ascending"), ("arm", "ascending"), ("rank", "ascending")]
    )
    slates: dict[str, list[dict[str, Any]]] = {u: [] for u in user_ids}
    for row in lists.to_pylist():
        slates[row["user_id"]].append(row)
    histories = _histories(lake, user_ids, at, pinned.get("silver.interactions"), last)
    about = _attributes(lake, user_ids, run_date, at, pinned.get("silver.users"))
    drawn = _interests(lake, user_ids, run_date)
    for user in user_ids:
        if not slates[user] and not histories[user] and user not in about:
            raise _unknown(lake, user, run_date)
    wanted = {r["item_id"] for rows in (*slates.values(), *histories.values()) for r in rows}
    items = _items(lake, wanted, at, pinned.get("silver.items"))
    tz = ZoneInfo(zone)

    def item(row: dict[str, Any]) -> dict[str, Any]:
        known = items.get(row["item_id"], {})
        return {
            "item_id": row["item_id"],
            "title": plain(known.get("title") or ""),
            "image_sha256": known.get("image_sha256"),
        }

    pages = []
    for user in user_ids:
        history = [
            {"when": r["event_ts"].astimezone(tz), "event": plain(r["event_type"]), **item(r), "weight": r["weight"]}
            for r in histories[user]
        ]
        slate = [
            {"rank": r["rank"], **item(r), "score": r["score"],
             "source": plain(r["source"]) + (f", rule {plain(r['rule'])}" if r["rule"] else ""),
             "reason": plain(r["reason"]), "model_version": r["model_version"]}
            for r in slates[user]
            if r["arm"] == slates[user][0]["arm"]
        ]  # fmt: skip
        pages.append(UserPage(user, run_date, about.get(user, {}), drawn.get(user, {}), history, slate))
    return pages


def render(page: UserPage) -> RenderableType:
    """Two tables side by side (one above the other where the terminal is narrow): history, recommendations."""
    done, offered = Table(title="did lately", expand=True), Table(title="is offered", expand=True)
    for head, right in (("when", False), ("event", False), ("item", False), ("weight", True)):
        done.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=head in ("when", "weight"))
    for h in page.history:
        done.add_row(f"{h['when']:%Y-%m-%d %H:%M}", Text(h["event"]), Text(_name(h)), f"{h['weight']:g}")
    for head, right in (("#", True), ("item", False), ("score", True), ("why", False), ("source", False)):
        offered.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=head in ("#", "score"))
    for s in page.slate:
        offered.add_row(str(s["rank"]), Text(_name(s)), f"{s['score']:.3f}", Text(s["reason"]), Text(s["source"]))
    sides = _Sides(
        done if page.history else Text("no interaction before this day"),
        offered if page.slate else Text("no list on this day"),
    )
    about = ", ".join(f"{plain(str(k))} {plain(str(v))}" for k, v in page.attributes.items())
    versions = sorted({s["model_version"] for s in page.slate})
    head = Text.assemble(
        ("user ", "dim"), (plain(page.user_id), "bold"), ("  run_date ", "dim"), str(page.run_date),
        *([("  model version ", "dim"), plain(", ".join(versions))] if versions else []),
        *([("  ", ""), (about, "dim")] if about else []),
    )  # fmt: skip
    drawn = ", ".join(f"{label} {lift:.1f}" for label, lift in page.interests.items())
    interests = [Text.assemble(("drawn to, times as often as all: ", "dim"), drawn)] if drawn else []
    return Group(head, *interests, sides)


@dataclass(frozen=True)
class _Sides:
    left: RenderableType
    right: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < _WIDE:
            yield self.left
            yield self.right
            return
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=5)
        grid.add_column(ratio=7)
        grid.add_row(self.left, self.right)
        yield grid


def plain(text: str) -> str:
    """`text` without control characters (escape sequences, NUL, bidirectional overrides), line breaks as spaces."""
    keep = (" " if c in "\n\r\t" else c for c in text)
    return "".join(c for c in keep if unicodedata.category(c) != "Cc" and c not in _BIDI)


_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029\ufeff")


def _published(lake: Lake, run_date: date | None) -> date:
    known = lake.run_dates(_NAME)
    if not known:
        raise InputError(
            "nothing is published yet", where=_NAME, valid="a published run_date", next="mmrec run --date YYYY-MM-DD"
        )
    if run_date is not None and run_date not in known:
        raise InputError(
            "nothing is published for this run_date",
            where=_NAME,
            value=str(run_date),
            valid=[str(d) for d in known[-5:]],
            next=f"mmrec run --date {run_date}",
        )
    return run_date or known[-1]


def _unknown(lake: Lake, user: str, run_date: date) -> InputError:
    few: set[str] = set()
    for batch in lake.batches(_NAME, columns=["user_id"], where=ds.field("run_date") == run_date):
        few.update(batch.column(0).unique().to_pylist())
        if len(few) >= 5:
            break
    valid = sorted(few)[:5]
    return InputError(
        "no such user",
        where=f"{_NAME} run_date={run_date}",
        value=user,
        valid=[*valid, "..."] if valid else "none: the night has no lists",
        next=f"mmrec show {valid[0]}" if valid else f"mmrec run --date {run_date}",
    )


def _before(at: datetime, *columns: str) -> ds.Expression:
    moment = pa.scalar(at, pa.timestamp("us", tz="UTC"))
    condition = ds.field(columns[0]) < moment
    for column in columns[1:]:
        condition &= ds.field(column) < moment
    return condition


def _interests(lake: Lake, users: list[str], run_date: date) -> dict[str, dict[str, float]]:
    if not lake.exists(_PROFILES):  # a home of an earlier release
        return {}
    rows = lake.arrow(_PROFILES, where=(ds.field("run_date") == run_date) & ds.field("user_id").isin(users)).to_pylist()
    return {r["user_id"]: {plain(label): micro / 1e6 for label, micro in
                           zip(r["interests"], r["lifts_micro"], strict=True)} for r in rows}  # fmt: skip


def _histories(
    lake: Lake, users: list[str], at: datetime, version: int | None, last: int
) -> dict[str, list[dict[str, Any]]]:
    """The last interactions of each user, newest first; of several deliveries of one event the newest wins."""
    rows = lake.arrow(
        "silver.interactions",
        version,
        columns=["user_id", "item_id", "event_type", "event_ts", "available_at", "weight", "row_hash"],
        where=ds.field("user_id").isin(users) & _before(at, "event_ts", "available_at"),
    )
    order = ("event_ts", "item_id", "event_type", "available_at", "row_hash")
    rows = rows.sort_by([("user_id", "ascending"), *((c, "descending") for c in order)])
    found: dict[str, list[dict[str, Any]]] = {u: [] for u in users}
    before: tuple[Any, ...] = ()
    for batch in rows.to_batches(max_chunksize=4096):
        if all(len(found[u]) >= last for u in batch.column(0).unique().to_pylist()):
            continue
        for row in batch.to_pylist():
            key = (row["user_id"], row["event_ts"], row["item_id"], row["event_type"])
            if key != before and len(found[row["user_id"]]) < last:
                found[row["user_id"]].append(row)
            before = key
    return found


def _attributes(
    lake: Lake, users: list[str], day: date, at: datetime, version: int | None
) -> dict[str, dict[str, Any]]:
    """Attributes of the users who are known, from the day's features, else from silver."""
    mine = ds.field("user_id").isin(users)
    found: dict[str, str] = {}
    older = lake.arrow("silver.users", version, where=mine & _before(at, "available_at"))
    for row in older.sort_by([("available_at", "ascending"), ("row_hash", "ascending")]).to_pylist():
        found[row["user_id"]] = row["attributes"]
    day_rows = lake.arrow(
        "gold.user_sequences", columns=["user_id", "attributes"], where=(ds.field("run_date") == day) & mine
    )
    found |= {r["user_id"]: r["attributes"] for r in day_rows.to_pylist()}
    return {user: _object(text) for user, text in found.items()}


def _items(lake: Lake, ids: Iterable[str], at: datetime, version: int | None) -> dict[str, dict[str, Any]]:
    """item_id -> its newest version as of `at`."""
    rows = lake.arrow(
        "silver.items",
        version,
        columns=["item_id", "title", "image_sha256", "available_at", "row_hash"],
        where=ds.field("item_id").isin(pa.array(sorted(ids), pa.string())) & _before(at, "available_at"),
    )
    rows = rows.sort_by([("available_at", "ascending"), ("row_hash", "ascending")])
    return {r["item_id"]: r for r in rows.to_pylist()}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _name(row: dict[str, Any]) -> str:
    return row["title"] or f"item {plain(row['item_id'])}"
