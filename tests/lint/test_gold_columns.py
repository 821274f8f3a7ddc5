"""Gold columns are what others build on: one that goes, or changes its type, was declared, and deprecated long enough ago.

`gold_columns.json` holds what each gold table has shown so far. A column that is new, or newly deprecated, is added by
`python -m tests.lint.test_gold_columns`; one that is gone is taken out by hand, with the change that dropped it.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

import mmrec
from mmrec import schema
from mmrec.schema import Column, Table, changes
from mmrec.schema.changes import Change

BASELINE = Path(__file__).with_name("gold_columns.json")
GRACE = timedelta(days=90)
MINORS = 2
Known = dict[str, dict[str, dict[str, str]]]
_SAYS = re.compile(r"(\d{4}-\d{2}-\d{2}): use ([a-z_0-9]+) instead\Z")


def shown(tables: dict[str, Table], known: Known) -> Known:
    """What gold tables show now, beside when a deprecated column first said so."""
    out: Known = {}
    for t in tables.values():
        if t.layer != "gold":
            continue
        for c in t.columns:
            about = {"type": c.type}
            if c.deprecated:
                since = known.get(t.name, {}).get(c.name, {}).get("version", mmrec.__version__)
                about |= {"deprecated": c.deprecated[:10], "version": since}
            out.setdefault(t.name, {})[c.name] = about
    return out


def broken(known: Known, tables: dict[str, Table], declared: tuple[Change, ...], today: date) -> list[str]:
    """What the policy forbids, a line each."""
    found = []
    for name, columns in known.items():
        t = tables.get(name)
        held = {c.name: c for c in t.columns} if t else {}
        for column, about in columns.items():
            own = [c for c in declared if c.table == name]
            if column not in held:
                moved = [c for c in own if c.kind == "rename" and c.was == column]
                drops = [c for c in own if c.kind == "drop" and c.column == column]
                if not (moved or drops):
                    found.append(f"{name}.{column} is gone: no change of mmrec/schema/changes.py says so")
                elif not about.get("deprecated"):
                    found.append(f"{name}.{column} is gone and was never deprecated")
                elif date.fromisoformat(about["deprecated"]) + GRACE > today:
                    found.append(f"{name}.{column} is gone before {date.fromisoformat(about['deprecated']) + GRACE}")
                elif _minor((moved or drops)[0].since) < _minor(about["version"]) + MINORS:
                    found.append(f"{name}.{column} is gone less than {MINORS} minor versions after {about['version']}")
            elif held[column].type != about["type"] and not any(
                c.kind == "widen" and c.column == column and c.was == about["type"] and changes.WIDER[c.was] == held[column].type for c in own):  # fmt: skip
                found.append(f"{name}.{column} was {about['type']}, is {held[column].type}: no widening says so")
    for t in tables.values():
        for c in t.columns:
            says = _SAYS.match(c.deprecated or "")
            if c.deprecated and (not says or says[2] == c.name or says[2] not in t.arrow.names):
                found.append(f"{t.name}.{c.name}: deprecated must read 'YYYY-MM-DD: use COLUMN instead', a column of the table")
    for t, columns in shown(tables, known).items():
        stale = {c for c, about in columns.items() if known.get(t, {}).get(c) != about and known.get(t, {}).get(c, {}).get("type") in (None, about["type"])}
        found += [f"{t}.{c} is not in gold_columns.json as it is now; next: python -m tests.lint.test_gold_columns" for c in sorted(stale)]
    return found


def _minor(version: str) -> int:
    major, minor = version.split(".")[:2]
    return 1000 * int(major) + int(minor)


def test_gold_keeps_its_columns_or_says_long_before_that_it_will_not() -> None:
    assert broken(json.loads(BASELINE.read_text()), schema.TABLES, changes.CHANGES, date.today()) == []


def test_each_declared_change_speaks_of_a_table_and_of_what_it_can_do() -> None:
    for c in changes.CHANGES:
        assert c.table in schema.TABLES
        assert re.fullmatch(r"\d+\.\d+\.\d+", c.since)
        assert c.kind != "widen" or c.was in changes.WIDER


A, B = Column("a", "INT", "first"), Column("b", "STRING", "second")
OLD = Column("a", "INT", "first", deprecated="2026-01-10: use b instead")
KNOWN: Known = {"gold.t": {"a": {"type": "INT"}, "b": {"type": "STRING"}}}
SAID: Known = {"gold.t": {"a": {"type": "INT", "deprecated": "2026-01-10", "version": "0.2.0"}, "b": {"type": "STRING"}}}
DROP, SOON = Change("drop", "gold.t", "a", "INT", "0.4.0"), Change("drop", "gold.t", "a", "INT", "0.3.9")
MOVE, WIDEN = Change("rename", "gold.t", "c", "a", "0.4.0"), Change("widen", "gold.t", "a", "INT", "0.2.0")
LATE, EARLY = date(2026, 4, 10), date(2026, 4, 9)


@pytest.mark.parametrize(
    ("known", "columns", "declared", "today", "says"),
    [
        (KNOWN, (A, B), (), LATE, None),
        (KNOWN, (B, A), (), LATE, None),
        (KNOWN, (B,), (), LATE, "gold.t.a is gone: no change"),
        (KNOWN, (B,), (DROP,), LATE, "never deprecated"),
        (SAID, (OLD, B), (), LATE, None),
        (SAID, (B,), (), LATE, "gold.t.a is gone: no change"),
        (SAID, (B,), (DROP,), EARLY, "gone before 2026-04-10"),
        (SAID, (B,), (SOON,), LATE, "less than 2 minor versions after 0.2.0"),
        (SAID, (B,), (DROP,), LATE, None),
        (SAID, (B,), (Change("drop", "gold.u", "a", "INT", "0.4.0"),), LATE, "gold.t.a is gone: no change"),
        (KNOWN, (B, Column("c", "INT", "first")), (MOVE,), LATE, "never deprecated"),
        (KNOWN, (Column("a", "BIGINT", "first"), B), (), LATE, "was INT, is BIGINT"),
        (KNOWN, (Column("a", "STRING", "first"), B), (WIDEN,), LATE, "was INT, is STRING"),
        (KNOWN, (Column("a", "BIGINT", "first"), B), (WIDEN,), LATE, None),
        (KNOWN, (A, B, Column("c", "INT", "new")), (), LATE, "gold.t.c is not in gold_columns.json"),
        (KNOWN, (OLD, B), (), LATE, "gold.t.a is not in gold_columns.json"),
        (SAID, (Column("a", "INT", "first", deprecated="soon"), B), (), LATE, "must read"),
        (SAID, (Column("a", "INT", "first", deprecated="2026-01-10: use x instead"), B), (), LATE, "must read"),
        (SAID, (Column("a", "INT", "first", deprecated="2026-01-10: use a instead"), B), (), LATE, "must read"),
    ],
)  # fmt: skip
def test_the_policy_finds_what_is_planted_and_nothing_else(known: Known, columns: tuple[Column, ...], declared: tuple[Change, ...],
                                                          today: date, says: str | None) -> None:  # fmt: skip
    table = Table("gold.t", "one", "T.", "features", "append_new", ("b",), columns)
    other = Table("silver.s", "one", "S.", "validate", "append_new", ("b",), (B,))
    found = broken(known, {t.name: t for t in (table, other)}, declared, today)
    assert any(says in f for f in found) if says else found == []


def test_a_table_that_is_gone_is_gone_with_its_columns() -> None:
    assert len(broken(KNOWN, {}, (), LATE)) == 2


def main() -> dict[str, Any]:
    """Add what is new to the list; nothing is ever taken out."""
    known: Known = json.loads(BASELINE.read_text()) if BASELINE.is_file() else {}
    for table, columns in shown(schema.TABLES, known).items():
        for column, about in columns.items():
            held = known.setdefault(table, {}).get(column)
            if held is None or held["type"] == about["type"]:  # a type that changed stays, to be found
                known[table][column] = about
    BASELINE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known


if __name__ == "__main__":
    main()
    sys.exit(0)
