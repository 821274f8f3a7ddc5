"""`mmrec maintain`: no row is lost, doubled or changed, no promised version ends early, and what is expired goes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec import schema
from mmrec.config import Config, MaintainConfig, load
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.lake import audit, commit, compact, stage
from mmrec.lake.content import content_hash
from mmrec.lake.maintain import maintain, pins
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.lake.vacuum import kept
from tests.conftest import NIGHTS, Lived, mmrec
from tests.unit.test_lake import D1, D2, D3, LIST, USERS, people, put, race, slates, users_of

DAY = timedelta(days=1)
NOW = datetime.now(UTC)
SMALL = {"min_files": 2, "checkpoint_every": 3}


@pytest.fixture
def home(tmp_path: Path) -> Config:
    made = load(tmp_path / "home")
    for name in (LIST, USERS, "ops.runs"):
        Lake(made.lake).create(name)
    return made


@pytest.fixture
def lake(home: Config) -> Lake:
    return Lake(home.lake)


def tidy(home: Config, only: str | None = None, *, days: float = 0, dry_run: bool = False, **more: Any) -> dict[str, Any]:
    """What maintenance `days` from now does; small files are worth it from two on."""
    config = home.model_copy(update={"maintain": MaintainConfig(**SMALL | more)})
    told = maintain(config, only, dry_run=dry_run, now=datetime.now(UTC) + days * DAY)
    return told[0] if only else {t["table"]: t for t in told}


def seen(lake: Lake, name: str, version: int | None = None) -> Counter[str]:
    return Counter(map(repr, lake.arrow(name, version).to_pylist()))


def hashes(lake: Lake, name: str) -> dict[Any, str]:
    """Content hash of every partition."""
    if schema.table(name).partition:
        return {d: content_hash(lake.day(name, d), name) for d in lake.run_dates(name)}
    return {None: content_hash(lake.arrow(name), name)}


def files(lake: Lake, name: str) -> list[str]:
    return sorted(pa.table(lake.handle(name).get_add_actions(flatten=True))["path"].to_pylist())


def on_disk(lake: Lake, name: str) -> set[str]:
    root = lake.path(name)
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def log_lines(lake: Lake, name: str, version: int) -> list[dict[str, Any]]:
    text = (lake.path(name) / "_delta_log" / f"{version:020}.json").read_text()
    return [json.loads(line) for line in text.splitlines()]


def scattered(lake: Lake, n: int = 4) -> None:
    """A day of `n` small files, a day of one, and a table of `n` appends."""
    for name, rows, day in ((LIST, slates, D1), (LIST, slates, D2)):
        parts = [rows(f"u{i}", day=day, run_id="r") for i in range(n if day == D1 else 1)]
        many(lake, name, parts, day)
    for i in range(n):
        put(lake, people(f"h{i}"), f"r{i}", None, USERS)


def many(lake: Lake, name: str, parts: list[pa.Table], day: date) -> None:
    """A partition of one file a part, by one commit; an engine's tasks leave as many."""
    staged = [stage.stage_arrow(lake, name, rows, "r") for rows in parts]
    home = staged[0].folder
    listed = list(staged[0].files)
    for other in staged[1:]:
        for f in other.files:
            target = home / f.path
            (other.folder / f.path).rename(target)
            listed.append(f)
        other.discard()
    checked = audit.audit(lake, stage.Stage(name, home, tuple(listed)), partition=str(day))
    commit.adopt(lake, checked, run_id="r", pinned=commit.fence(lake, name, day), partition=day, metadata={})


def test_small_files_become_one_and_no_row_of_any_partition_changes(home: Config, lake: Lake) -> None:
    scattered(lake)
    before = {n: (hashes(lake, n), seen(lake, n), lake.version(n)) for n in (LIST, USERS)}
    told = tidy(home)
    assert [told[n]["compacted"] for n in (LIST, USERS)] == [{"files": 4, "into": 1, "skipped": 0}] * 2
    assert (len(files(lake, LIST)), len(files(lake, USERS))) == (2, 1)
    for name, (digests, rows, version) in before.items():
        assert hashes(lake, name) == digests
        assert seen(lake, name) == rows == seen(lake, name, version)


def test_a_compaction_is_marked_as_no_change_of_data_and_leaves_every_fence_where_it_was(home: Config, lake: Lake) -> None:
    scattered(lake)
    fences = {(n, d): commit.fence(lake, n, d) for n, d in ((LIST, D1), (LIST, D2), (USERS, None))}
    tidy(home, LIST)
    tidy(home, USERS)
    assert {k: commit.fence(lake, *k) for k in fences} == fences
    for name in (LIST, USERS):
        commits = [log_lines(lake, name, v) for v in range(lake.version(name) + 1)]
        swaps = [c for c in commits if any("compacted" in a.get("commitInfo", {}) for a in c)]
        assert len(swaps) == 1
        moved = [a[k] for a in swaps[0] for k in ("add", "remove") if k in a]
        assert [m["dataChange"] for m in moved] == [False] * 5
        assert "txn" in swaps[0][-1]
    assert not put(lake, slates("u0", run_id="r"), "r", D1, pinned=0).changed
    assert put(lake, slates("z"), "next", D1, pinned=1).changed


def test_the_second_maintenance_finds_nothing_to_do(home: Config, lake: Lake) -> None:
    scattered(lake)
    tidy(home, days=8)
    versions, disk = lake.versions(), {n: on_disk(lake, n) for n in (LIST, USERS)}
    again = tidy(home, days=8)
    assert lake.versions() == versions
    assert {n: on_disk(lake, n) for n in disk} == disk
    assert all(t["compacted"]["files"] == t["files"] == t["stages"] == t["entries"] == 0 for t in again.values())


def test_files_of_the_target_size_and_partitions_of_few_files_are_left_alone(home: Config, lake: Lake) -> None:
    scattered(lake)
    sizes = dict(zip(*(pa.table(lake.handle(USERS).get_add_actions(flatten=True))[c].to_pylist() for c in ("path", "size_bytes")), strict=True))
    assert tidy(home, USERS, target_mb=min(sizes.values()) / 1e6)["compacted"]["files"] == 0
    assert tidy(home, LIST, min_files=5)["compacted"]["files"] == 0
    assert len(files(lake, LIST)) == 5


def test_a_bin_holds_about_the_target_size(lake: Lake) -> None:
    scattered(lake, 6)
    size = max(pa.table(lake.handle(USERS).get_add_actions(flatten=True))["size_bytes"].to_pylist())
    groups = compact.bins(lake, USERS, int(2.5 * size), 2)
    assert [len(g.files) for g in groups] == [2, 2, 2]
    assert all(g.bytes <= 2.5 * size for g in groups)
    assert len({f for g in groups for f in g.files}) == 6


WRITERS: dict[str, tuple[Callable[[Lake], Any], dict[str, list[str]]]] = {
    "replaces that day": (lambda lake: put(lake, slates("new"), "w", D1), {LIST: ["new", "u0"]}),
    "replaces another day": (lambda lake: put(lake, slates("new", day=D3), "w", D3), {LIST: ["new", "u0", "u0", "u1", "u2", "u3"]}),
    "appends": (lambda lake: put(lake, people("new"), "w", None, USERS), {USERS: ["h0", "h1", "h2", "h3", "new"]}),
}  # fmt: skip
COLUMN = {LIST: "user_id", USERS: "row_hash"}


def holds(lake: Lake, right: dict[str, list[str]]) -> None:
    for name, values in right.items():
        assert sorted(lake.arrow(name)[COLUMN[name]].to_pylist()) == values


@pytest.mark.parametrize("what", WRITERS)
def test_a_writer_that_comes_in_while_files_are_put_together_loses_nothing_and_nothing_is_doubled(home: Config, lake: Lake, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    scattered(lake)
    write, right = WRITERS[what]
    real, came = compact._same, list[Any]()

    def meanwhile(*args: Any) -> None:
        real(*args)
        if not came:
            came.append(write(lake))

    monkeypatch.setattr(compact, "_same", meanwhile)
    told = tidy(home, next(iter(right)))
    assert came[0].changed
    holds(lake, right)
    # whoever is met is told so and tried again, or was not in the way
    assert told["compacted"]["skipped"] == (0 if what == "replaces another day" else 1)
    tidy(home)
    holds(lake, right)


@pytest.mark.parametrize("what", WRITERS)
def test_a_writer_that_read_the_table_before_the_files_were_put_together_commits_once_and_exactly(home: Config, lake: Lake, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    # delta-rs itself lets such a writer double every row: the old ones it meant to replace stand in the new file
    scattered(lake)
    write, right = WRITERS[what]
    real, calls = DeltaTable.create_write_transaction, list[str]()

    def late(handle: DeltaTable, *args: Any, **more: Any) -> None:
        calls.append("asked")
        if len(calls) == 1:
            tidy(home)
        real(handle, *args, **more)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", late)
    assert write(lake).changed
    holds(lake, right)


def test_without_the_fence_in_it_a_compaction_would_let_a_stale_writer_double_the_rows(lake: Lake) -> None:
    # what delta-rs does today; when this fails, its own optimize may be enough
    scattered(lake)
    stale = DeltaTable(str(lake.path(LIST)))
    DeltaTable(str(lake.path(LIST))).optimize.compact()
    staged = stage.stage_arrow(lake, LIST, slates("new"), "w")
    from deltalake.transaction import AddAction

    adds = [AddAction(f"{staged.folder.name}/{f.path}", f.size, f.partition, f.modified, True, f.stats) for f in staged.files]
    stale.create_write_transaction(adds, "overwrite", stale.schema(), ["run_date"], [("run_date", "=", str(D1))])
    assert len(users_of(lake)) == 5


def test_two_maintenances_at_once_double_nothing(home: Config, lake: Lake) -> None:
    for turn in range(3):
        many(lake, LIST, [slates(f"u{i}", run_id=f"t{turn}") for i in range(4)], D1)
        ends = race([partial(tidy, home) for _ in range(3)])  # type: ignore[list-item]
        assert not [e for e in ends if isinstance(e, Exception)]
        assert users_of(lake) == ["u0", "u1", "u2", "u3"]


def test_a_file_that_differs_from_what_it_was_made_of_is_never_committed(home: Config, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    scattered(lake)
    before, real = (lake.versions(), seen(lake, USERS)), compact._rows

    def wrong(*args: Any) -> Any:
        for n, batch in enumerate(real(*args)):
            at = batch.schema.get_field_index("source")
            yield batch if n else batch.set_column(at, batch.schema.field(at), pa.array(["other"] * batch.num_rows))

    monkeypatch.setattr(compact, "_rows", wrong)
    told = tidy(home)
    assert "other rows than it read" in told[USERS]["refused"]
    assert (lake.versions()[USERS], seen(lake, USERS)) == (before[0][USERS], before[1])
    assert not list(lake.path(USERS).glob("stage-maintain-*"))


@pytest.mark.parametrize("lost", ["before", "after"])
def test_an_answer_that_never_came_leaves_the_rows_as_they_were(home: Config, lake: Lake, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    scattered(lake)
    rows, real = seen(lake, USERS), DeltaTable.create_write_transaction

    def unheard(*args: Any, **more: Any) -> None:
        if lost == "after":
            real(*args, **more)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(DeltaTable, "create_write_transaction", unheard)
        if lost == "before":
            with pytest.raises(TransientError):
                tidy(home, USERS)
        else:
            assert tidy(home, USERS)["compacted"]["into"] == 1
    assert seen(lake, USERS) == rows
    assert len(list(lake.path(USERS).glob("stage-maintain-*"))) == (lost == "after")
    tidy(home)
    assert (seen(lake, USERS), len(files(lake, USERS))) == (rows, 1)


def test_a_checkpoint_is_made_when_the_log_has_grown_and_the_table_reads_the_same_from_it(home: Config, lake: Lake) -> None:
    scattered(lake, 5)
    rows, fence = seen(lake, USERS), commit.fence(lake, USERS)
    told = tidy(home, USERS)
    assert told["checkpoint"] == lake.version(USERS)
    assert (lake.path(USERS) / "_delta_log" / f"{told['checkpoint']:020}.checkpoint.parquet").is_file()
    assert tidy(home, USERS)["checkpoint"] is None
    assert (seen(lake, USERS), commit.fence(lake, USERS)) == (rows, fence)


def test_the_engine_reads_every_promised_version_after_checkpoints_and_a_shorter_log(home: Config, lake: Lake, spark: Any) -> None:
    # with a _last_checkpoint the embedded engine says "Missing commit file" for versions before it
    keep = schema.table(LIST).retention_days
    for n in range(4):
        put(lake, slates(f"u{n}"), f"r{n}")
    tidy(home, LIST)
    first = tidy(home, LIST, days=keep + 1)["oldest"]
    for n in range(4, 9):
        put(lake, slates(f"u{n}"), f"r{n}")
        if n == 6:
            (lake.path(LIST) / "_delta_log" / "_last_checkpoint").write_text("{}")
        tidy(home, LIST)
    assert first > 4
    assert not (lake.path(LIST) / "_delta_log" / f"{0:020}.json").exists()
    for version in range(first, lake.version(LIST) + 1):
        assert lake.frame(spark, LIST, version).toArrow()["user_id"].to_pylist() == lake.arrow(LIST, version)["user_id"].to_pylist(), version


def test_other_tools_are_told_how_long_versions_stay_and_to_leave_the_log_alone(home: Config, lake: Lake) -> None:
    tidy(home, LIST)
    assert schema.table(LIST).promises == {"delta.logRetentionDuration": "interval 400 days", "delta.deletedFileRetentionDuration": "interval 400 days", "delta.enableExpiredLogCleanup": "false", "delta.checkpointInterval": "1000000"}
    assert lake.handle(LIST).metadata().configuration.items() >= schema.table(LIST).promises.items()
    version = lake.version(LIST)
    tidy(home, LIST)
    assert lake.version(LIST) == version


def test_a_version_stays_readable_for_the_tables_retention_from_the_day_it_was_replaced_and_no_longer(home: Config, lake: Lake) -> None:
    keep = schema.table(LIST).retention_days
    for n in range(5):
        put(lake, slates(f"u{n}"), f"r{n}")
    tidy(home, LIST)
    pinned = {v: seen(lake, LIST, v) for v in range(lake.version(LIST) + 1)}
    told = tidy(home, LIST, days=keep - 1)
    assert (told["oldest"], told["files"] + told["stages"] + told["entries"]) == (0, 0)
    assert {v: seen(lake, LIST, v) for v in pinned} == pinned
    told = tidy(home, LIST, days=keep + 1)
    assert told["oldest"] == told["version"] == max(pinned)
    assert told["stages"] == 4
    assert told["entries"] >= max(pinned) - 1
    assert seen(lake, LIST) == pinned[max(pinned)]
    assert len([p for p in on_disk(lake, LIST) if p.endswith(".parquet") and "stage-" in p]) == 1


def test_what_a_manifest_pins_stays_readable_as_long_as_the_manifest_is_young(home: Config, lake: Lake) -> None:
    keep = schema.table(LIST).retention_days
    for n in range(4):
        put(lake, slates(f"u{n}"), f"r{n}")
    pinned = lake.version(LIST) - 2
    rows = seen(lake, LIST, pinned)
    manifest = Manifest(str(D1), NOW.isoformat(), {LIST: pinned}, "0", "d", {}, {}, {}, "1")
    path = manifest.save(home.runs)
    later = NOW + (keep + 30) * DAY
    os.utime(path, (later.timestamp() - 86400,) * 2)
    assert pins(lake, home.runs)[LIST][0][0] == pinned
    told = tidy(home, LIST, days=keep + 30)
    # no checkpoint stands before it: the entries stay, and with them their copies in the stages
    assert (told["oldest"], told["files"], told["stages"]) == (pinned, 2, 0)
    assert seen(lake, LIST, pinned) == rows
    assert users_of(lake) == ["u3"]
    told = tidy(home, LIST, days=2 * keep + 31)
    assert told["oldest"] == told["version"]
    assert len([p for p in on_disk(lake, LIST) if p.endswith(".parquet") and "stage-" in p]) == 1


def test_a_run_on_record_pins_its_inputs_though_the_folder_of_runs_is_lost(home: Config, lake: Lake) -> None:
    manifest = Manifest(str(D1), NOW.isoformat(), {LIST: 7, USERS: 3}, "0", "d", {}, {}, {}, "1")
    row = {"run_id": manifest.run_id, "run_date": D1, "manifest": manifest.to_json(), "content_hash": "c", "model_version": "0",
           "users": 1, "rows": 1, "table_version": 1, "finished_at": NOW}  # fmt: skip
    put(lake, pa.Table.from_pylist([row], schema.table("ops.runs").arrow), "r", None, "ops.runs")
    assert dict(pins(lake, home.runs)) == {LIST: [(7, NOW)], USERS: [(3, NOW)]}


def test_partitions_stay_unless_a_setting_drops_them_and_then_a_run_of_that_day_is_fenced_off(home: Config, lake: Lake) -> None:
    for day in (D1, D2, D3):
        put(lake, slates("u", day=day, run_id=str(day)), str(day), day)
    before, whole = lake.version(LIST), seen(lake, LIST)
    away = (D3 - datetime.now(UTC).date()).days + 10
    assert tidy(home, LIST, days=away)["dropped"] == []
    assert lake.run_dates() == [D1, D2, D3]
    drop = {"drop_days": {LIST: 10}}
    assert tidy(home, LIST, days=away, dry_run=True, **drop)["dropped"] == [str(D1), str(D2)]
    assert lake.run_dates() == [D1, D2, D3]
    assert tidy(home, LIST, days=away, **drop)["dropped"] == [str(D1), str(D2)]
    assert (lake.run_dates(), seen(lake, LIST, before)) == ([D3], whole)
    with pytest.raises(TransientError, match="fenced"):
        put(lake, slates("z"), "planned before", D1, pinned=1)
    assert put(lake, slates("z"), "planned after", D1, pinned=2).changed


def test_a_dry_run_tells_what_would_be_done_and_touches_nothing(home: Config, lake: Lake) -> None:
    scattered(lake)
    keep = schema.table(LIST).retention_days
    for n in range(3):
        put(lake, slates(f"z{n}", day=D3), f"z{n}", D3)
    disk, versions = {n: on_disk(lake, n) for n in (LIST, USERS)}, lake.versions()
    told = tidy(home, days=keep + 1, dry_run=True)
    assert ({n: on_disk(lake, n) for n in disk}, lake.versions()) == (disk, versions)
    assert told[LIST]["compacted"] == {"files": 4, "into": 1, "skipped": 0}
    assert (told[LIST]["files"], told[LIST]["checkpoint"]) == (2, versions[LIST])
    assert told[LIST]["bytes"] > 0
    assert told[USERS]["files"] == 0


@pytest.mark.parametrize("harm", ["empty", "cut", "gone"])
def test_a_table_whose_log_is_damaged_is_refused_and_left_as_it_is_and_the_others_go_on(home: Config, lake: Lake, harm: str) -> None:
    scattered(lake)
    entry = lake.path(USERS) / "_delta_log" / f"{lake.version(USERS) - 1:020}.json"
    if harm == "gone":
        entry.unlink()
    else:
        entry.write_bytes(b"" if harm == "empty" else entry.read_bytes()[:40])
    disk = on_disk(lake, USERS)
    told = tidy(home, days=4000)
    assert "mmrec repair" in told[USERS]["refused"]
    assert on_disk(lake, USERS) == disk
    assert told[LIST]["refused"] is None
    assert told[LIST]["compacted"]["into"] == 1


def test_a_table_with_a_feature_that_is_not_known_here_is_refused(lake: Lake) -> None:
    put(lake, people("h"), "r", None, USERS)
    DeltaTable(str(lake.path(USERS))).alter.add_feature(_feature(), allow_protocol_versions_increase=True)
    with pytest.raises(QualityError, match="features"):
        kept(lake, USERS, [], NOW, DAY)


def _feature() -> Any:
    from deltalake import TableFeatures

    return TableFeatures.DeletionVectors


def test_a_table_that_is_not_there_is_an_input_error(home: Config) -> None:
    for name in ("gold.nope", "silver.items"):
        with pytest.raises(InputError, match="table"):
            tidy(home, name)


STEP = st.sampled_from(["list1", "list2", "append", "compact", "vacuum", "later", "much later"])


@settings(max_examples=int(os.environ.get("TEST_MAINTAIN_EXAMPLES", "8")), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, min_size=2, max_size=8))
def test_whatever_happened_in_whatever_order_every_version_within_retention_reads_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Against a dictionary that remembers every version's rows and when it was replaced."""
    config = load(tmp_path_factory.mktemp("any") / "home")
    lake, days = Lake(config.lake), 0.0
    for name in (LIST, USERS):
        lake.create(name)
    rows: dict[str, dict[int, Counter[str]]] = {LIST: {}, USERS: {}}
    until: dict[str, dict[int, float]] = {LIST: {}, USERS: {}}

    def look() -> None:
        for name, known in rows.items():
            now, newest = seen(lake, name), lake.version(name)
            for v in range(min(known, default=0), newest):
                until[name].setdefault(v, days)
            known.setdefault(newest, now)
            assert known[newest] == now

    aged: set[Path] = set()
    def age() -> None:
        """Give what is new on the disk the fake clock's time; of a commit's two times the later one counts."""
        at = (datetime.now(UTC) + days * DAY).timestamp()
        for path in lake.root.rglob("*"):
            if path.is_file() and path not in aged:
                os.utime(path, (at, at))
                aged.add(path)

    tidy(config, min_files=10**6)  # its own first commit, before the fake clock runs
    age()
    look()
    for n, step in enumerate(steps):
        if step.startswith("list"):
            put(lake, slates(f"u{n}", f"v{n}", day=D1 if step == "list1" else D2), f"r{n}", D1 if step == "list1" else D2)
        elif step == "append":
            put(lake, people(f"h{n}"), f"r{n}", None, USERS)
        elif step in ("later", "much later"):
            days += 30 if step == "later" else 390
        else:
            if step == "compact":
                tidy(config)
                age()
                look()
            told = tidy(config, days=days, min_files=10**6)
            assert not [t["refused"] for t in told.values() if t["refused"]]
        age()
        look()
        for name, known in rows.items():
            for version, right in known.items():
                gone = until[name].get(version)
                if gone is None or days < gone + schema.table(name).retention_days:
                    assert seen(lake, name, version) == right, (name, version)


def test_the_command_tells_a_program_and_a_person_and_refuses_with_exit_three(home: Config, lake: Lake) -> None:
    scattered(lake, 9)
    rows, version = seen(lake, USERS), lake.version(USERS)
    told = json.loads(mmrec("maintain", "--home", str(home.home), "--dry-run", "--json").stdout)
    assert told["dry_run"]
    assert {t["table"]: t["compacted"]["files"] for t in told["tables"]} == {USERS: 9, LIST: 9, "ops.runs": 0}
    assert lake.version(USERS) == version
    shown = mmrec("maintain", "--home", str(home.home), "--table", USERS).stdout
    assert USERS in shown
    assert "9 to 1" in shown
    assert seen(lake, USERS) == rows
    (lake.path(USERS) / "_delta_log" / f"{3:020}.json").write_bytes(b"")
    told = json.loads(mmrec("maintain", "--home", str(home.home), "--json", ok=(3,)).stdout)
    assert [t["table"] for t in told["tables"] if t["refused"]] == [USERS]
    assert "gold.nope" in mmrec("maintain", "--home", str(home.home), "--table", "gold.nope", ok=(2,)).stderr


def test_a_home_that_was_maintained_keeps_every_promise_and_replays_its_first_night(lived: Lived, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    text = (home / "mmrec.toml").read_text()
    for key, value in SMALL.items():
        text = re.sub(rf"(?m)^# {key} = .*$", f"{key} = {value}", text)
    (home / "mmrec.toml").write_text(text)
    told = json.loads(mmrec("maintain", "--home", str(home), "--json").stdout)["tables"]
    assert sum(t["compacted"]["files"] for t in told) > 10
    assert sum(t["checkpoint"] is not None for t in told) > 5
    assert json.loads(mmrec("verify", "--home", str(home), "--deep", "--json").stdout)["ok"]
    again = json.loads(mmrec("run", "--home", str(home), "--date", NIGHTS[0], "--replay", "--json").stdout)
    assert again["content_hash"] == lived.nights[0]["counts"]["publish"]["content_hash"]
