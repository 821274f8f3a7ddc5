"""Rules beside the columns: one word in a column's line is all that a new rule takes, and everybody reads the same list."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mmrec import cli, docs, schema
from mmrec.features import silver
from mmrec.lake.session import session
from mmrec.schema.rules import TESTS, rule

EARLIEST, LATEST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
SILVER = [t.name for t in schema.TABLES.values() if t.layer == "silver" and t.step == "validate"]  # what is delivered


@pytest.fixture
def local(engine: str) -> Any:
    """A session for what is the same on both engines by tests elsewhere: these tests run on one."""
    return session(engine)


def declared(monkeypatch: pytest.MonkeyPatch, name: str, column: str, *rules: schema.Rule) -> None:
    """The schema with more rules on one column of one table."""
    t = schema.table(name)
    columns = tuple(replace(c, rules=(*c.rules, *rules)) if c.name == column else c for c in t.columns)
    monkeypatch.setitem(schema.TABLES, name, replace(t, columns=columns))


def verdicts(spark: Any, kind: str, rows: list[dict[str, Any]]) -> list[tuple[str, str] | None]:
    """(rule, reason) of each row, None where it is kept."""
    t = schema.table(f"bronze.{kind}")
    plain = {"available_at": "2020-01-01", "source": "s", "file": "f", "occurrence": 0, "ingested_at": LATEST}
    full = [plain | {"line": n + 1, "row_hash": f"h{n}"} | r for n, r in enumerate(rows)]
    known = spark.createDataFrame(pa.table({"item_id": ["i"]}))
    good, bad = silver.to_silver(kind, spark.createDataFrame(pa.Table.from_pylist(full, t.arrow), t.ddl), known, earliest=EARLIEST, latest=LATEST)
    found = {r["row_hash"]: (r["rule"], r["reason"]) for r in bad.toArrow().to_pylist()}
    assert good.count() + len(found) == len(rows)
    return [found.get(f"h{n}") for n in range(len(rows))]


# test -> (arguments, values that break it, values that keep it), on relations.relation, a text that is never blank
ONE_LINE: dict[str, tuple[tuple[Any, ...], list[str], list[str]]] = {
    "moment": ((), ["soon", "2020-13-01"], ["2020-01-01", "2020-01-01T10:00:00+02:00"]),
    "in_range": ((), ["1989-12-31", "2026-03-01"], ["1990-01-01", "2026-02-28T23:59:59Z"]),
    "number": ((), ["many", "NaN", "1e400"], ["1", "-.5e3", " 7 "]),
    "numeral": ((), ["many", "NaN"], ["1", "1e400"]),
    "whole": ((3,), ["2", "3.5", "x"], ["3", "+4"]),
    "within": ((-1, 2), ["-1.5", "2.1"], ["-1", "2", "x"]),
    "object": ((), ["[]", "{"], ["{}", '{"a":[1]}']),
    "names": ((), ["{}", "[1]"], ["[]", '["a","b"]']),
    "one_of": (("a", "b"), ["c", "A", "a "], ["a", "b"]),
    "known": (("silver.items",), ["j", "I"], ["i"]),
}


@pytest.mark.parametrize("test", ONE_LINE)
def test_a_rule_that_is_declared_on_a_column_is_applied_named_and_shown(local: Any, monkeypatch: pytest.MonkeyPatch, test: str) -> None:
    args, broken, kept = ONE_LINE[test]
    declared(monkeypatch, "silver.relations", "relation", rule(test, *args, name="house_rule"))
    rows = [{"kind": "item", "subject_id": "s", "relation": v, "object_id": "o"} for v in (*broken, *kept)]
    assert verdicts(local, "relations", rows) == [("house_rule", f"relation is '{v}'") for v in broken] + [None] * len(kept)
    ours = [(c.name, r.name, r.says) for c, r in schema.rules("silver.relations") if r.name == "house_rule"]
    assert ours == [("relation", "house_rule", rule(test, *args).says)]
    assert "{}" not in ours[0][2] or test == "object"
    assert f"| `house_rule` | `relation` | {ours[0][2]} |" in docs.dictionary()


def test_every_test_is_compiled_and_tried(local: Any) -> None:
    elsewhere = {"parsed", "not_blank", "dated", "first"}  # of rows, see test_silver_rules
    assert set(TESTS) == set(ONE_LINE) | elsewhere
    column = schema.table("silver.relations").columns[0]
    for test in TESTS:
        silver._broken(column, rule(test, *ONE_LINE.get(test, ((),))[0]), EARLIEST, LATEST)
    with pytest.raises(NotImplementedError, match="astrology"):
        silver._broken(column, schema.Rule("x", "astrology"), EARLIEST, LATEST)
    with pytest.raises(KeyError, match="astrology"):
        rule("astrology")


def test_two_columns_may_name_items_and_the_rule_that_names_what_is_not_known_yet_is_the_only_one_that_is_not_final(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    declared(monkeypatch, "silver.interactions", "event_type", rule("known", "silver.items"))
    rows = [{"user_id": "u", "item_id": i, "event_type": e, "event_ts": "2020-01-01"} for i, e in (("i", "i"), ("j", "i"), ("i", "j"))]
    assert [v and v[1] for v in verdicts(spark, "interactions", rows)] == [None, "item_id is 'j'", "event_type is 'j'"]
    assert {r.test for name in SILVER for _, r in schema.rules(name) if not r.final} == {"known"}
    assert next(reversed(TESTS)) == "known"  # silver.pending counts on it


@pytest.mark.parametrize("name", SILVER)
def test_the_order_of_rules_is_that_of_the_tests_then_of_delivery_and_the_command_prints_it(name: str) -> None:
    found = schema.rules(name)
    delivered = schema.table(name.replace("silver", "bronze")).arrow.names
    keys = [(list(TESTS).index(r.test), delivered.index(c.name)) for c, r in found]
    assert keys == sorted(set(keys))
    assert {r.test for _, r in found} >= {"parsed", "not_blank", "first"}
    told = json.loads(CliRunner().invoke(cli.app, ["tables", name, "--json"]).stdout)["rules"]
    assert [(r["rule"], r["column"], r["keeps"]) for r in told] == [(r.name, c.name, r.says) for c, r in found]
    shown = CliRunner().invoke(cli.app, ["tables", name], env={"COLUMNS": "200"}).stdout
    assert all(r.name in shown and r.says in shown for _, r in found)


def test_other_layers_have_no_rules_of_delivery() -> None:
    assert not [name for name in schema.TABLES if name not in SILVER and schema.rules(name)]
