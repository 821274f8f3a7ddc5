"""Bad rows, by the whole way from a file to the lake: quarantine with reason; rows in = rows kept + rows quarantined."""

from __future__ import annotations

import csv
import io
import shutil
from datetime import date
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec import config, night, quarantine
from mmrec.context import Night
from mmrec.lake.store import Lake
from mmrec.verify import verify

COLUMNS = ("user_id", "item_id", "event_type", "event_ts", "weight", "context")
RULES = {"parse_error", "missing_key", "bad_timestamp", "time_out_of_range", "bad_number", "bad_json", "duplicate", "unknown_item"}
GOOD = {"user_id": "u", "item_id": "i0", "event_type": "view", "event_ts": "2026-02-28T10:00:00Z", "weight": "1", "context": "{}"}
FAULTS: dict[str, list[str]] = {
    "user_id": ["", " ", "u2", "😀"], "item_id": ["", "i1", "i9", "I0"], "event_type": ["", "buy"],
    "event_ts": ["", "yesterday", "1969-07-20T20:17:00Z", "2100-01-01", "2026-02-30", "2026-02-27", "12:30"],
    "weight": ["", "NaN", "inf", "1e999", "many", "-0.0", "2"], "context": ["", "{", "[]", '{"a": 1}', "null"],
}  # fmt: skip
ROW = st.fixed_dictionaries({c: st.sampled_from([GOOD[c]] * 3 + values) for c, values in FAULTS.items()})
LINE = st.one_of(ROW.map(lambda r: tuple(r.values())), ROW.map(lambda r: tuple(r.values())), st.sampled_from([("u", "i0"), ("torn",), ("u", "i0", "view", "2026-02-28", "1", "{}", "more")]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Path:
    """A home that knows two items and has no interaction yet; half of a delivery may be bad, and more."""
    home = tmp_path_factory.mktemp("made")
    (home / "shop" / "2026-02-27").mkdir(parents=True)
    (home / "shop" / "2026-02-27" / "items.jsonl").write_text('{"item_id": "i0"}\n{"item_id": "i1"}\n')
    config.write(home, {"engine": engine, "source": {"spec": "files", "max_bad_share": 1.0}})
    Lake(home / "lake").create_all()
    validate(home)
    return home


def validate(home: Path) -> config.Config:
    cfg = config.load(home)
    cfg = config.load(home, source=cfg.source.model_copy(update={"root": home / "shop"}))
    for station in (night.ingest, night.validate):
        station(Night(cfg, date(2026, 3, 5)))
    return cfg


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, min_size=1, max_size=25), st.lists(LINE, min_size=1, max_size=10))
def test_bad_rows_are_in_quarantine_with_a_reason_and_rows_in_are_rows_kept_and_rows_quarantined(
    made: Path, tmp_path: Path, first: list[tuple[str, ...]], second: list[tuple[str, ...]]
) -> None:
    home = tmp_path / "home"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(made, home)
    lake = Lake(home / "lake")
    came = 0
    for day, lines in (("2026-03-01", first), ("2026-03-02", first + second)):  # the second repeats the first, as files that grow do
        (home / "shop" / day).mkdir()
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *lines])
        (home / "shop" / day / "interactions.csv").write_text(text.getvalue())
        came += len(lines)
        cfg = validate(home)
        bronze = lake.arrow("bronze.interactions").to_pylist()
        kept = {r["row_hash"] for r in lake.arrow("silver.interactions").to_pylist()}
        verdicts = lake.arrow("ops.quarantine").to_pylist()
        kept_out = {(r["row_hash"], r["occurrence"]) for r in verdicts}
        assert len(bronze) == came  # a day's own delivery time makes another row of the same values
        assert len(bronze) == lake.dataset("silver.interactions").count_rows() + len(kept_out)
        assert {(r["row_hash"], r["occurrence"]) for r in bronze} == {(h, 0) for h in kept} | kept_out
        assert not {(h, 0) for h in kept} & kept_out
        assert {r["rule"] for r in verdicts} <= RULES
        assert all(r["reason"] and r["raw"] and r["line"] >= 1 and r["file"].endswith("interactions.csv") for r in verdicts)
        assert sum(r["held"] for r in quarantine.summary(lake)) == len(verdicts)
    before = lake.versions()
    validate(home)
    assert lake.versions() == before
    assert [f for f in verify(cfg) if not f["ok"]] == []


def test_one_fault_of_each_kind_breaks_each_rule_and_the_reason_names_column_and_value(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(made, home)
    lines = [tuple((GOOD | {c: v}).values()) for c, values in FAULTS.items() for v in values] + [tuple(GOOD.values())] * 2 + [("torn",)]
    (home / "shop" / "2026-03-01").mkdir()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *lines])
    (home / "shop" / "2026-03-01" / "interactions.csv").write_text(text.getvalue())
    validate(home)
    verdicts = Lake(home / "lake").arrow("ops.quarantine").to_pylist()
    assert {r["rule"] for r in verdicts} == RULES
    for r in verdicts:
        line = lines[r["line"] - 2]
        if r["rule"] not in ("parse_error", "duplicate"):
            (column,) = [c for c, v in zip(COLUMNS, line, strict=True) if v != GOOD[c]]
            assert r["reason"].startswith(column), r
            assert not (GOOD | dict(zip(COLUMNS, line, strict=True)))[column].strip() or dict(zip(COLUMNS, line, strict=True))[column] in r["reason"]
