"""Two dozen ways in which a delivery comes in another form: the same rows, more columns on record, or a stop with a diff.

A first day is ingested as it is. The second comes in a drifted form, and is compared with itself undrifted. What stops
keeps nothing of the ingest, and goes through once it is delivered as before.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrec.errors import InputError, MmrecError, QualityError
from mmrec.lake.store import Lake
from mmrec.worlds.files import MAPPING, FilesSource
from mmrec.worlds.ingest import ingest
from tests.conftest import mmrec

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
TABLES = ("interactions", "items", "users", "relations", "impressions", "wishes", "files", "media")
Row = dict[str, Any]
Change = Callable[[list[Row]], bytes]


def events(day: int, n: int = 5) -> list[Row]:
    return [{"user_id": f"u{i}", "item_id": f"i{i}", "event_type": "view", "event_ts": f"2026-03-0{day}T10:00:{i % 60:02d}Z",
             "weight": "1.5", "context": '{"device":"tv"}'} for i in range(n)]  # fmt: skip


def items(day: int, n: int = 5) -> list[Row]:
    return [{"item_id": str(100 * day + i), "title": f"Item {i}", "text": "words", "categories": ["a", "b"],
             "attributes": {"size": i}, "valid_from": f"2026-03-0{day}"} for i in range(n)]  # fmt: skip


def as_csv(rows: list[Row], delimiter: str = ",", head: bool = True, quoting: int = csv.QUOTE_MINIMAL, end: str = "\n") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([list(rows[0])] * head + [list(r.values()) for r in rows])
    return out.getvalue().encode()


def as_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def each(change: Callable[[Row], Row], write: Change = as_csv) -> Change:
    return lambda rows: write([change(r) for r in rows])


def renamed(old: str, new: str) -> Callable[[Row], Row]:
    return lambda row: {new if k == old else k: v for k, v in row.items()}


def without(name: str) -> Callable[[Row], Row]:
    return lambda row: {k: v for k, v in row.items() if k != name}


def parquet(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def line_twice(rows: list[Row]) -> bytes:
    head, *rest = as_csv(rows).decode().splitlines()
    return "\n".join([f"{head},item_id", *(f"{line},i9" for line in rest)]).encode() + b"\n"


def wider_rows(rows: list[Row]) -> bytes:
    head, *rest = as_csv(rows).decode().splitlines()
    return "\n".join([head, *(f"{line},more" for line in rest)]).encode() + b"\n"


# what, file, how it is written, rows, and what comes of it: "same", new columns with their shapes, or (error, what its
# diff says)
Outcome = str | dict[str, str] | tuple[type[MmrecError], tuple[str, ...]]
CSV, JSONL, MANY = "interactions.csv", "items.jsonl", 150
GONE, NEW = "'{}': was there, is gone".format, "'{}': was not there, is a column now".format
DRIFTS: list[tuple[str, str, str, Change, int, Outcome]] = [
    # harmless
    ("as it is", CSV, CSV, as_csv, 5, "same"),
    ("columns in another order", CSV, CSV, each(lambda r: dict(reversed(r.items()))), 5, "same"),
    ("a byte order mark", CSV, CSV, lambda rows: b"\xef\xbb\xbf" + as_csv(rows), 5, "same"),
    ("line ends of Windows", CSV, CSV, lambda rows: as_csv(rows, end="\r\n"), 5, "same"),
    ("every field in quotes", CSV, CSV, lambda rows: as_csv(rows, quoting=csv.QUOTE_ALL), 5, "same"),
    ("lines of JSON where a csv was", CSV, "interactions.jsonl", as_jsonl, 5, "same"),
    ("a number where its text was", JSONL, JSONL, each(lambda r: r | {"item_id": int(r["item_id"])}, as_jsonl), 5, "same"),
    ("an object as text", JSONL, JSONL, each(lambda r: r | {"attributes": json.dumps(r["attributes"], separators=(",", ":"))}, as_jsonl), 5, "same"),
    ("keys in another order", JSONL, JSONL, each(lambda r: dict(reversed(r.items())), as_jsonl), 5, "same"),
    ("an optional key that few rows need", JSONL, JSONL, each(without("text"), as_jsonl), 5, "rows"),
    # additive
    ("one more column", CSV, CSV, each(lambda r: {"channel": "web"} | r), 5, {"channel": "value"}),
    ("two more columns", CSV, CSV, each(lambda r: r | {"größe 😀": "1", "b": ""}), 5, {"größe 😀": "value", "b": "value"}),
    ("one more key", JSONL, JSONL, each(lambda r: r | {"brand": "x"}, as_jsonl), 5, {"brand": "value"}),
    ("more keys of any shape", JSONL, JSONL, each(lambda r: r | {"maker": {"name": 1}, "tags": [1], "none": None}, as_jsonl), 5,
     {"maker": "object", "tags": "list", "none": "null"}),
    # anything else
    ("a needed column is gone", CSV, CSV, each(without("item_id")), 5, (QualityError, (GONE("item_id"),))),
    ("an optional column is gone", CSV, CSV, each(without("weight")), 5, (QualityError, (GONE("weight"),))),
    ("a column has another name", CSV, CSV, each(renamed("user_id", "customer")), 5, (QualityError, (GONE("user_id"), NEW("customer")))),
    ("a column is there twice", CSV, CSV, line_twice, 5, (QualityError, ("'item_id': was one column, is there twice",))),
    ("another delimiter", CSV, CSV, lambda rows: as_csv(rows, ";"), 5, (QualityError, (GONE("user_id"), "user_id;item_id;event_type"))),
    ("a header in capitals", CSV, CSV, each(lambda r: {k.upper(): v for k, v in r.items()}), 5, (QualityError, (GONE("user_id"), NEW("USER_ID")))),
    ("no header", CSV, CSV, lambda rows: as_csv(rows, head=False), 5, (QualityError, (GONE("user_id"), NEW("u0")))),
    ("rows wider than the header", CSV, CSV, wider_rows, MANY, (QualityError, ("none of 150 lines can be read as csv with 6 columns",))),
    ("packed by gzip under the same name", CSV, CSV, lambda rows: gzip.compress(as_csv(rows)), 5, (QualityError, ("gzip, by its first bytes",))),
    ("packed by gzip under its own name", CSV, f"{CSV}.gz", lambda rows: gzip.compress(as_csv(rows)), 5, (InputError, ("interactions.csv.gz", "interactions.jsonl"))),
    ("in UTF-16", CSV, CSV, lambda rows: as_csv(rows).decode().encode("utf-16"), 5, (QualityError, ("UTF-16, by its first bytes",))),
    ("in Parquet", CSV, "interactions.parquet", parquet, 5, (InputError, ("interactions.parquet", "interactions.csv"))),
    ("in Parquet under the same name", CSV, CSV, parquet, 5, (QualityError, ("Parquet, by its first bytes",))),
    ("an object where a value was", JSONL, JSONL, each(lambda r: r | {"title": {"en": r["title"]}}, as_jsonl), 5, (QualityError, ("title: was value, is object",))),
    ("a list where a value was", JSONL, JSONL, each(lambda r: r | {"item_id": [r["item_id"]]}, as_jsonl), 5, (QualityError, ("item_id: was value, is list",))),
    ("a needed key is gone", JSONL, JSONL, each(without("item_id"), as_jsonl), 5, (QualityError, (GONE("item_id"),))),
    ("an optional key is gone from a hundred rows", JSONL, JSONL, each(without("text"), as_jsonl), MANY, (QualityError, (GONE("text"),))),
    ("a key has another name", JSONL, JSONL, each(renamed("title", "name"), as_jsonl), 5, (QualityError, (GONE("title"), NEW("name")))),
    ("rows within another object", JSONL, JSONL, each(lambda r: {"data": r}, as_jsonl), 5, (QualityError, (GONE("item_id"), NEW("data")))),
    ("one JSON array on one line", JSONL, JSONL, lambda rows: json.dumps(rows).encode(), 5, (QualityError, ("none of 1 lines can be read as a JSON object",))),
    ("one JSON array over many lines", JSONL, JSONL, lambda rows: json.dumps(rows, indent=1).encode(), 5, (QualityError, ("lines can be read as a JSON object",))),
]  # fmt: skip


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty") / "lake"
    for name in TABLES:
        Lake(root).create(f"bronze.{name}")
    return root


@pytest.fixture
def lake(empty: Path, tmp_path: Path) -> Lake:
    shutil.copytree(empty, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def deliver(shop: Path, day: int, file: str, data: bytes) -> Path:
    folder = shop / f"2026-03-0{day}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(data)
    return folder / file


def held(lake: Lake, kind: str) -> set[tuple[str, int]]:
    rows = lake.arrow(f"bronze.{kind}").to_pylist()
    assert not [r["parse_error"] for r in rows if r["parse_error"]]
    return {(r["row_hash"], r["occurrence"]) for r in rows}


def recorded(lake: Lake) -> dict[str, str]:
    """Columns of sources on record -> their shape; each of them once."""
    rows = lake.arrow("ops.schema_changes").to_pylist() if lake.exists("ops.schema_changes") else []
    found = {r["column_name"]: r["after"] for r in rows if r["change"] == "source_column"}
    assert len(found) == len(rows) - sum(r["change"] == "table_added" for r in rows)
    return found


@cache
def undrifted(empty: Path, file: str, n: int, fewer: bool) -> set[tuple[str, int]]:
    """Both days of a kind as they would have come; `fewer`: the second without an optional key."""
    root, (rows, usual) = empty.parent / f"{file}-{n}-{fewer}", ordinary(file.split(".")[0])
    for day in (1, 2):
        deliver(root / "shop", day, file, (each(without("text"), usual) if fewer and day == 2 else usual)(rows(day, n)))
    shutil.copytree(empty, root / "lake")
    ingest(Lake(root / "lake"), FilesSource(root / "shop"), now=NOW)
    return held(Lake(root / "lake"), file.split(".")[0])


def ordinary(kind: str) -> tuple[Callable[[int, int], list[Row]], Change]:
    return (events, as_csv) if kind == "interactions" else (items, as_jsonl)


@pytest.mark.parametrize(("what", "file", "now_called", "write", "n", "outcome"), DRIFTS, ids=[d[0] for d in DRIFTS])
def test_a_drifted_delivery_is_absorbed_or_stops_with_the_difference(
    lake: Lake, empty: Path, tmp_path: Path, what: str, file: str, now_called: str, write: Change, n: int, outcome: Outcome
) -> None:
    shop, kind = tmp_path / "shop", file.split(".")[0]
    rows, usual = ordinary(kind)
    deliver(shop, 1, file, usual(rows(1, n)))
    ingest(lake, FilesSource(shop), now=NOW)
    before, versions = held(lake, kind), lake.versions()
    drifted = deliver(shop, 2, now_called, write(rows(2, n)))
    if isinstance(outcome, tuple):
        # a second kind of the same ingest, without fault: it is not kept either
        deliver(shop, 2, "users.jsonl", b'{"user_id": "u1"}\n')
        with pytest.raises(outcome[0]) as stopped:
            ingest(lake, FilesSource(shop), now=NOW)
        for words in (*outcome[1], "2026-03-02", "next:"):
            assert words in str(stopped.value)
        assert lake.versions() == versions
        assert not lake.exists("ops.schema_changes")
        drifted.unlink()
        deliver(shop, 2, file, usual(rows(2, n)))
    counts = ingest(lake, FilesSource(shop), now=NOW)
    assert counts[kind] == n
    assert held(lake, kind) == undrifted(empty, file, n, outcome == "rows") > before
    assert recorded(lake) == (outcome if isinstance(outcome, dict) else {})
    assert counts.get("new_columns", 0) == len(recorded(lake))
    # what was on record is not recorded again
    if isinstance(outcome, dict):
        deliver(shop, 3, now_called, write(rows(3, n)))
        assert "new_columns" not in ingest(lake, FilesSource(shop), now=NOW)
        assert recorded(lake) == outcome


def test_there_are_more_than_a_dozen_drifts_of_each_outcome_class() -> None:
    stops = [d for d in DRIFTS if isinstance(d[5], tuple)]
    assert len(stops) >= 12
    assert len(DRIFTS) - len(stops) >= 12


def test_a_nested_value_in_some_rows_costs_those_rows_alone(lake: Lake, tmp_path: Path) -> None:
    rows = [*items(1), {"item_id": ["x"], "title": "t"}, {"item_id": "y", "title": {"en": "t"}}]
    deliver(tmp_path / "shop", 1, JSONL, as_jsonl(rows))
    assert ingest(lake, FilesSource(tmp_path / "shop"), now=NOW)["items"] == 7
    told = {r["line"]: r["parse_error"] for r in lake.arrow("bronze.items").to_pylist() if r["parse_error"]}
    assert set(told) == {6, 7}
    assert "item_id is a list, not a value" in told[6]
    assert "title is a object, not a value" in told[7]


def test_a_column_that_is_named_as_gone_may_be_gone_and_is_not_asked_for_again(lake: Lake, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    deliver(shop, 1, CSV, as_csv(events(1)))
    ingest(lake, FilesSource(shop), now=NOW)
    deliver(shop, 2, CSV, each(without("weight"))(events(2)))
    with pytest.raises(QualityError, match=r'source\.gone(.|\n)*"items\.text"'):
        ingest(lake, FilesSource(shop), gone=("items.weight", "interactions.text"), now=NOW)
    assert ingest(lake, FilesSource(shop), gone=("interactions.weight",), now=NOW)["interactions"] == 5
    # accepted once, it is optional from then on; another one is not
    deliver(shop, 3, CSV, each(without("weight"))(events(3)))
    assert ingest(lake, FilesSource(shop), now=NOW)["interactions"] == 5
    deliver(shop, 4, CSV, each(without("context"))(events(4)))
    with pytest.raises(QualityError, match="context"):
        ingest(lake, FilesSource(shop), now=NOW)


def test_a_first_delivery_is_held_to_its_mapping(lake: Lake, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / MAPPING).write_text('[interactions]\nfile = "orders*.csv"\ndelimiter = ";"\n'
                                'columns = { user_id = "customer", item_id = "sku", event_ts = "at" }\n'
                                'constants = { event_type = "purchase" }\n')  # fmt: skip
    (shop / "orders.csv").write_text("customer;article;at\nc;s;2026-03-01\n")
    with pytest.raises(QualityError) as stopped:
        ingest(lake, FilesSource(shop), now=NOW)
    for words in (GONE("sku"), NEW("article"), "orders.csv", MAPPING):
        assert words in str(stopped.value)
    assert stopped.value.report["gone"] == ["sku"]
    (shop / "orders.csv").write_text("customer;sku;at;event_type;till\nc;s;2026-03-01;x;7\n")
    ingest(lake, FilesSource(shop), now=NOW)
    # a column that a constant stands for has no table any more than one that nobody knows
    assert set(recorded(lake)) == {"event_type", "till"}


def test_what_history_does_not_tell_is_no_drift(lake: Lake, tmp_path: Path) -> None:
    """Files of one first ingest may differ: nothing was promised yet; and a form has its own history."""
    shop = tmp_path / "shop"
    deliver(shop, 1, CSV, as_csv(events(1)))
    deliver(shop, 2, CSV, each(without("weight"))(events(2)))
    ingest(lake, FilesSource(shop), now=NOW)
    deliver(shop, 3, CSV, each(without("weight"))(events(3)))
    deliver(shop, 4, "interactions.jsonl", each(without("context"), as_jsonl)(events(4)))
    assert ingest(lake, FilesSource(shop), now=NOW)["interactions"] == 10


@pytest.mark.deep
def test_a_night_over_a_drifted_delivery_stops_with_the_difference_and_exit_code_three(tmp_path: Path) -> None:
    shop, home = tmp_path / "shop", tmp_path / "home"
    deliver(shop, 1, CSV, as_csv(events(1)))
    mmrec("init", "--home", str(home), "--source", "files", "--root", str(shop))
    mmrec("ingest", "--home", str(home), "--date", "2026-03-03")
    deliver(shop, 2, CSV, each(renamed("item_id", "sku"))(events(2)))
    stopped = mmrec("ingest", "--home", str(home), "--date", "2026-03-03", ok=(3,))
    told = re.sub(r"\s+", " ", stopped.stderr)
    assert "a delivery has drifted" in told
    assert f"{GONE('item_id')} {NEW('sku')}" in told
    assert "Traceback" not in told
