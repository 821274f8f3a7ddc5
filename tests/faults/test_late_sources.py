"""An upstream that arrives empty, at a tenth of its size, or not at all: never published; yesterday's list stays, marked stale, with an alert."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmrec import config
from tests.conftest import mmrec, share_encoders

FIRST, NEXT = "2026-03-02", "2026-03-03"
EXPECT = ["{day}/inter*.jsonl"]


def source_of(home: Path) -> Path:
    return home / "drop"


def deliver(home: Path, day: str, events: int, items: bool = False) -> None:
    """A shop of 12 users and 30 items; a file of events a day."""
    folder = source_of(home) / day
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"user_id": f"u{n % 12}", "item_id": f"i{(n * 7) % 30}", "event_type": "view", "event_ts": f"{day}T{n % 24:02}:{n % 60:02}:00Z"}
            for n in range(events)]  # fmt: skip
    (folder / "interactions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if items:
        lines = ["item_id,title,available_at"] + [f"i{n},thing number {n},{day}T00:00:00Z" for n in range(30)]
        (folder / "items.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> Path:
    """A home with one published night, of three days of events."""
    home = tmp_path_factory.mktemp("late") / "home"
    for day in ("2026-02-26", "2026-02-27", "2026-02-28", "2026-03-01"):
        deliver(home, day, 200, items=day == "2026-02-26")
    mmrec("init", "--home", str(home), "--source", "files", "--root", str(source_of(home)))
    config.write(home, {"max_age_hours": 1000, "source": {"spec": "files", "root": str(source_of(home)), "expect": EXPECT, "min_share": 0.5},
                        "night": {"text": "", "image": "", "audio": ""}})  # fmt: skip
    share_encoders(home, encoders_cache)
    assert json.loads(run(home, FIRST).stdout)["published"]
    return home


def run(home: Path, day: str, ok: tuple[int, ...] = (0,)) -> Any:
    return mmrec("run", "--home", str(home), "--date", day, "--no-train", "--json", ok=ok)


def sql(home: Path, statement: str) -> list[dict[str, Any]]:
    return json.loads(mmrec("sql", "--home", str(home), "--json", statement).stdout)


@pytest.fixture
def home(published: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "home"
    shutil.copytree(published, copied, symlinks=True)
    text = (copied / "mmrec.toml").read_text().replace(str(published), str(copied))
    (copied / "mmrec.toml").write_text(text)
    return copied


def lists(home: Path) -> list[dict[str, Any]]:
    return sql(home, "SELECT run_date::VARCHAR AS run_date, user_id, rank, item_id FROM latest_recommendations ORDER BY ALL")


def test_a_source_that_does_not_come_publishes_nothing_marks_the_list_stale_and_tells(home: Path) -> None:
    before = lists(home)
    told = run(home, NEXT, ok=(3,))
    assert "sources were late: nothing is published for this date, the list of 2026-03-02 stays and is marked stale" in told.stderr
    assert "2026-03-02/inter*.jsonl" in told.stderr
    assert lists(home) == before
    assert sql(home, f"SELECT stale, latest_available_at::VARCHAR AS made_for, age_hours FROM ops_freshness WHERE run_date = '{NEXT}' "
                     "AND table_name = 'gold.recommendations'") == [{"stale": True, "made_for": "2026-03-02 00:00:00+00", "age_hours": 24.0}]  # fmt: skip
    alerts = sql(home, "SELECT kind, subject, message FROM ops_alerts ORDER BY kind")
    assert [(a["kind"], a["subject"]) for a in alerts] == [("late_source", "2026-03-02/inter*.jsonl"), ("stale_list", "gold.recommendations")]
    # what the night did read is kept, and nothing is broken
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]
    # again: the same answer, no second alert
    run(home, NEXT, ok=(3,))
    assert len(sql(home, "SELECT 1 FROM ops_alerts")) == len(alerts)
    # it comes: the same command publishes
    deliver(home, "2026-03-02", 200)
    assert json.loads(run(home, NEXT).stdout)["published"]
    assert {r["run_date"] for r in lists(home)} == {NEXT}
    assert sql(home, f"SELECT stale FROM ops_freshness WHERE run_date = '{NEXT}' AND table_name = 'gold.recommendations'") == [{"stale": False}]
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]


@pytest.mark.parametrize(("events", "says"), [(0, "a delivery is empty"), (20, "a delivery collapsed")], ids=["empty", "a tenth"])
def test_a_source_that_comes_empty_or_at_a_tenth_publishes_nothing(home: Path, events: int, says: str) -> None:
    before = lists(home)
    deliver(home, "2026-03-02", events)
    told = run(home, NEXT, ok=(3,))
    assert says in told.stderr
    assert lists(home) == before
    deliver(home, "2026-03-02", 200)
    assert json.loads(run(home, NEXT).stdout)["published"]


def test_a_date_that_was_planned_and_has_no_lists_needs_a_reason(home: Path) -> None:
    deliver(home, "2026-03-03", 200)
    run(home, NEXT, ok=(3,))  # 2026-03-02 is missing: late
    assert json.loads(run(home, "2026-03-04").stdout)["published"]
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]
    deliver(home, "2026-03-04", 200)
    mmrec("steps", "ingest", "validate", "plan", "--home", str(home), "--date", "2026-03-05")
    deliver(home, "2026-03-06", 200)
    assert json.loads(run(home, "2026-03-07").stdout)["published"]
    broken = json.loads(mmrec("verify", "--home", str(home), "--json", ok=(3,)).stdout)["checks"]
    assert [c["detail"] for c in broken if not c["ok"]] == ["planned, and neither lists nor a reason: 2026-03-05"]
