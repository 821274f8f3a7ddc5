"""What is looked at when lists are published: what has left the shop since they were made, and who has to approve."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrec import config, schema, withdrawn
from mmrec.context import Night
from mmrec.lake import stage
from mmrec.lake.store import Lake
from tests.conftest import mmrec

DAY, NAME = "2026-03-02", "gold.recommendations"
WHEN = date.fromisoformat(DAY)
CLOCK = "from datetime import UTC, datetime\nfrom mmrec import withdrawn\nwithdrawn._now = lambda: datetime(2026, 3, 2, {}, tzinfo=UTC)\n"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("embedded") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    config.write(home, {"source": {"spec": "builtin", "size": "tiny"}, "night": {"text": "", "image": ""}})
    mmrec("steps", "world", "ingest", "validate", "embed", "--home", str(home), "--date", DAY)
    return home


@pytest.fixture
def home(embedded: Path, tmp_path: Path) -> Path:
    shutil.copytree(embedded, tmp_path / "home")
    return tmp_path / "home"


def lists(home: Path) -> list[Row]:
    return Lake(home / "lake").day(NAME, WHEN).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()


def staged_lists(home: Path) -> list[Row]:
    """What `recommend` left."""
    folder = stage.waiting(Night(config.load(home), WHEN).folder / "stage.json")
    assert folder is not None
    found = stage.find(NAME, folder)
    assert found is not None
    rows = pa.concat_tables([pq.read_table(folder / f.path, partitioning=None) for f in found.files])
    return [r | {"run_date": WHEN} for r in rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()]


def at(hour: int, home: Path, *words: str) -> Row:
    """A command whose clock, at publish, says such an hour of the day of the lists."""
    run = CLOCK.format(hour) + "from mmrec.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", run, *words, "--home", str(home), "--date", DAY, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def deliver(home: Path, rows: list[Row]) -> None:
    """More of the day's file of items, after the night has begun."""
    folder = home / "source" / DAY
    folder.mkdir(exist_ok=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    mmrec("steps", "ingest", "validate", "--home", str(home), "--date", str(WHEN + timedelta(1)))


def version(home: Path, item: str, hour: int, **more: Any) -> Row:
    """One more version of an item, delivered at an hour of the day."""
    rows = (json.loads(line) for f in sorted((home / "source").glob("*/items.jsonl")) for line in f.read_text().splitlines())
    return next(r for r in rows if r["item_id"] == item) | {"available_at": f"{DAY}T{hour:02}:00:00.000000Z"} | more


def closed_up(before: list[Row], gone: set[str]) -> list[Row]:
    """Lists without some items, by a plain walk down each."""
    out, open_, rank, user = [], {}, 0, None
    for r in before:
        if r["user_id"] != user:
            user, rank, open_ = r["user_id"], 0, {}
        own = dict(zip(r["passed"] or (), r["passed_n"] or (), strict=True))
        if r["item_id"] in gone:
            own |= {"withdrawn": 1} if r["place"] is not None else {}
            open_ = {c: open_.get(c, 0) + own.get(c, 0) for c in {*open_, *own}}
            continue
        rank += 1
        if open_ or own:
            own = {c: open_.get(c, 0) + own.get(c, 0) for c in {*open_, *own}}
        out.append(r | {"rank": rank, "passed": own or None})
        open_ = {}
    return out


def told(rows: list[Row]) -> list[Row]:
    return [r | {"passed": dict(zip(r["passed"], r["passed_n"], strict=True)) if isinstance(r["passed"], list) else r["passed"],
                 "passed_n": None} for r in rows]  # fmt: skip


def test_what_leaves_the_shop_before_lists_are_published_is_taken_out_of_them_and_out_of_a_replay(home: Path) -> None:
    (home / "rules.yaml").write_text("rules:\n- name: few\n  cap: {}\n  each: category\n  most: 3\n")
    mmrec("steps", "plan", "features", "recommend", "--home", str(home), "--date", DAY)
    before = staged_lists(home)
    counted = [r["item_id"] for r in before]
    often = sorted(set(counted), key=lambda i: (-counted.count(i), i))[:6]
    gone, later, corrected, back, tomorrow = often[:5]
    deliver(home, [
        version(home, gone, 1, withdrawn_at=f"{DAY}T01:00:00Z"),
        version(home, later, 1, withdrawn_at=f"{DAY}T09:00:00Z"),  # it will be, not yet
        version(home, corrected, 2, title="Another title"),
        version(home, back, 1, withdrawn_at=f"{DAY}T00:30:00Z"), version(home, back, 2),  # and is on offer again
        version(home, tomorrow, 1, valid_from="2026-03-05T00:00:00Z"),
    ])  # fmt: skip
    night = at(3, home, "publish")
    assert night["withdrawn"] == 2
    after = lists(home)
    assert {r["item_id"] for r in before} - {r["item_id"] for r in after} == {gone, tomorrow}
    drop = {"run_id": None}
    assert [r | drop for r in told(after)] == [r | drop for r in told(closed_up(before, {gone, tomorrow}))]
    assert any("withdrawn" in (r["passed"] or ()) for r in after)
    assert any({"withdrawn", "few"} <= {*(r["passed"] or ())} for r in after)
    (run,) = Lake(home / "lake").arrow("ops.runs").to_pylist()
    assert run["withdrawn"] == sorted([gone, tomorrow])
    at(5, home, "monitor")
    drops = {r["rule"]: r for r in Lake(home / "lake").arrow("ops.rule_drops").to_pylist()}
    assert drops["withdrawn"]["items"] == 2
    assert drops["withdrawn"]["passed"] == sum(dict(zip(r["passed"] or (), r["passed_n"] or (), strict=True)).get("withdrawn", 0) for r in after)
    checks = json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["checks"]
    assert [c for c in checks if not c["ok"]] == []
    again = at(12, home, "run", "--replay")  # by then more would be gone
    assert again["content_hash"] == night["content_hash"] == run["content_hash"]
    user = next(r["user_id"] for r in before if r["item_id"] == gone)
    said = json.loads(mmrec("why-not", user, gone, "--home", str(home), "--json").stdout)
    assert (said["fell"], "before they were published" in said["says"]) == ("withdrawn", True)


def test_lists_of_a_day_that_is_over_are_left_as_they_were_made(home: Path) -> None:
    mmrec("steps", "plan", "features", "recommend", "--home", str(home), "--date", DAY)
    item = staged_lists(home)[0]["item_id"]
    deliver(home, [version(home, item, 1, withdrawn_at=f"{DAY}T01:00:00Z")])
    assert withdrawn.withdrawn(Night(config.load(home), WHEN)) == []
    told = json.loads(mmrec("publish", "--home", str(home), "--date", DAY, "--json").stdout)
    assert told["withdrawn"] == 0
    assert item in {r["item_id"] for r in lists(home)}


def test_ranks_close_up_whatever_goes_and_pins_and_drawn_rows_are_not_counted(home: Path) -> None:
    mmrec("steps", "plan", "features", "--home", str(home), "--date", DAY)
    night, arrow = Night(config.load(home), WHEN), schema.table(NAME).arrow
    plain = {f.name: None for f in arrow} | {"run_date": WHEN, "arm": "main", "score": 0.0, "source": "model", "reason": "",
                                             "propensity": 1.0, "model_version": "0", "run_id": night.manifest.run_id}  # fmt: skip
    rows = []
    for user, kinds in (("a", "mpmmdm"), ("b", "m"), ("c", "pmd")):
        place = 0
        for rank, kind in enumerate(kinds, 1):
            over = {"few": rank, "twin": 1} if rank % 2 and kind == "m" else {}
            place += sum(over.values()) + 1 if kind == "m" else 0
            rows.append(plain | {"user_id": user, "rank": rank, "item_id": f"{user}{rank}", "place": place if kind == "m" else None,
                                 "passed": list(over) or None, "passed_n": list(over.values()) or None})  # fmt: skip
    for gone in ([], ["a1"], ["a2", "a3"], ["a5", "a6"], ["b1"], ["c1", "c3"], ["a1", "a2", "a3", "a4", "a5"], ["x"]):
        staged = stage.stage(night.out, NAME, pa.Table.from_pylist(rows, arrow), night.manifest.run_id)
        left = withdrawn.without(night, staged, gone)
        assert (left is staged) == (gone in ([], ["x"]))
        made = pa.concat_tables([pq.read_table(left.folder / f.path) for f in left.files] or [arrow.empty_table()])
        made = made.sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()
        want = closed_up(rows, set(gone))
        assert [{c: r[c] for c in ("user_id", "rank", "item_id", "place", "passed")} for r in told(made)] == [
            {c: r[c] for c in ("user_id", "rank", "item_id", "place", "passed")} for r in told(want)]  # fmt: skip
        for each in {id(staged): staged, id(left): left}.values():
            each.discard()


HOLD = "rules:\n- name: look-first\n  hold: {}\n  why: a new season\n- name: some\n  hold: {}\n  users: {user: [nobody]}\n"


def test_lists_wait_for_a_person_and_are_published_once_somebody_has_approved(home: Path, tmp_path: Path) -> None:
    (home / "rules.yaml").write_text(HOLD)
    where = ("--home", str(home))
    stopped = mmrec("run", *where, "--date", DAY, "--no-train", ok=(3,))
    assert "wait for a person's approval" in stopped.stderr
    assert f"mmrec review approve --date {DAY}" in " ".join(stopped.stderr.split())
    assert Lake(home / "lake").run_dates() == []
    (first,) = [r for r in json.loads(mmrec("review", "list", *where, "--json").stdout)["lists"] if r["rule"] == "look-first"]
    assert (first["run_date"], first["decision"], first["says"]) == (DAY, "waiting", "a new season")
    assert "look-first" in mmrec("review", "list", *where).stdout
    rejected = tmp_path / "rejected"
    shutil.copytree(home, rejected)
    mmrec("review", "reject", "--date", DAY, "--home", str(rejected), "--by", "bob", "--why", "too loud")
    said = mmrec("publish", "--home", str(rejected), "--date", DAY, ok=(3,)).stderr
    assert "rejected by bob" in said
    assert "too loud" in said
    # a word on one rule is no word on the other, which is about nobody here
    mmrec("review", "approve", "--date", DAY, *where, "--rule", "look-first", "--by", "ann", "--why", "fine")
    (row,) = Lake(home / "lake").arrow("ops.reviews").to_pylist()
    assert (row["rule"], row["item_id"], row["lists_of"], row["decided_by"]) == ("look-first", "", first["run_id"], "ann")
    mmrec("publish", *where, "--date", DAY)
    assert {r["run_id"] for r in lists(home)} == {first["run_id"]}
    mmrec("monitor", *where, "--date", DAY)
    checks = json.loads(mmrec("verify", *where, "--json").stdout)["checks"]
    assert [c for c in checks if not c["ok"]] == []
    assert json.loads(mmrec("review", "list", *where, "--json").stdout)["lists"] == []
    assert mmrec("run", *where, "--date", DAY, "--replay", "--json").returncode == 0


def test_a_run_goes_on_with_the_lists_that_were_approved(home: Path) -> None:
    (home / "rules.yaml").write_text(HOLD.replace("nobody", "u00001"))
    where = ("--home", str(home))
    mmrec("run", *where, "--date", DAY, "--no-train", ok=(3,))
    waiting = json.loads(mmrec("review", "list", *where, "--json").stdout)["lists"]
    mmrec("review", "approve", "--date", DAY, *where, "--by", "ann")
    told = json.loads(mmrec("run", *where, "--date", DAY, "--no-train", "--json").stdout)
    assert {told["run_id"]} == {r["run_id"] for r in waiting}
    assert set(told["seconds"]) == {"publish", "monitor", "total"}
    assert told["published"]


def test_another_dates_plan_that_can_not_be_read_holds_nothing_and_hides_nothing(home: Path) -> None:
    (home / "runs").mkdir(exist_ok=True)
    (home / "runs" / "planned-2026-03-01.json").write_text('{"run_id": "gone"}')
    (home / "rules.yaml").write_text(HOLD.replace("look-first", "look"))
    where = ("--home", str(home))
    said = mmrec("review", "approve", "--date", "2026-03-01", *where, ok=(2,)).stderr
    assert "no rule holds the lists of this date" in said
    mmrec("run", *where, "--date", DAY, "--no-train", ok=(3,))
    assert [r["rule"] for r in json.loads(mmrec("review", "list", *where, "--json").stdout)["lists"]] == ["some", "look"]


def test_what_is_decided_on_is_named_and_a_date_without_waiting_lists_is_refused(home: Path) -> None:
    said = mmrec("review", "approve", "--home", str(home), ok=(2,)).stderr
    assert "what is decided on are items, or the lists of a date" in said
    said = mmrec("review", "approve", "--home", str(home), "--date", DAY, ok=(2,)).stderr
    assert "no rule holds the lists of this date" in said
