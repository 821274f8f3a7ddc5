"""Nights, backfills, retries, zombies, maintenance and readers in any order: nobody sees what no order allows, and the simulator itself finds what is planted."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from greenlet import getcurrent

from mmrec.errors import TransientError
from mmrec.lake import commit, log, stage
from mmrec.lake.audit import audit
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from tests.faults.sim.schedule import HOUR, Regime, Violation
from tests.faults.sim.shop import FIRST, Job, Shop
from tests.faults.sim.tables import LIST, SILVER, VECTORS, table_of, template
from tests.faults.simulator import fast_folder, shop, simulate
from tests.soak import simulator as soak

STEPS, SEED = 10_000, 1
AT_ONCE = 100
CALM = Regime()
Tried = Callable[[str, object], None]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with fast_folder() as made:
        template(made / "template")  # before anything is planted
        yield made


def slates(run_id: str, users: str = "ab", day: date = FIRST) -> Any:
    return table_of(LIST, [{"run_date": day, "arm": "main", "user_id": u, "rank": 1, "item_id": "i", "score": 1.0, "source": "model",
                            "reason": "", "propensity": 1.0, "model_version": "0", "run_id": run_id} for u in users])  # fmt: skip


def test_ten_thousand_steps_of_everybody_at_once_show_nothing_that_no_order_allows(folder: Path, tried: Tried) -> None:
    told = simulate(SEED, STEPS, folder=folder)
    tried("simulator", ", ".join(f"{k} {v}" for k, v in told.items()))
    assert told["steps"] >= STEPS
    # a world in which nothing happened shows nothing
    assert all(told.get(k, 0) >= n for k, n in {"commits": 100, "reads": 200, "fenced": 5, "kills": 10, "pauses": 5, "faults": 10, "compactions": 1, "files_deleted": 1}.items()), told


def test_a_seed_gives_the_same_events_in_any_process(folder: Path) -> None:
    here = simulate(3, 1, folder=folder)
    code = ("import json; from tests.faults.simulator import fast_folder, simulate\n"
            "with fast_folder() as f: print(json.dumps(simulate(3, 1, folder=f)))")  # fmt: skip
    there = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "12345"}, capture_output=True, text=True, check=True)
    assert here["trace"] in there.stdout


def outcomes(made: Shop) -> Counter[str]:
    return Counter(end.split(":")[0] for job in made.jobs if not job.name.endswith("last") for end in job.ended)


def test_two_nights_of_the_same_run_date_at_once_exactly_one_publishes_the_other_says_so(folder: Path, tried: Tried) -> None:
    said: Counter[str] = Counter()
    for seed in range(AT_ONCE):
        with shop(folder, seed, Regime(stick=(0, 0.5, 0.9)[seed % 3])) as made:
            one, two = made.nightly(FIRST), made.nightly(FIRST)
            for job in (one, two):
                made.start(job, made.rng.random() * 30)
            if seed % 2:  # between the plans of the two, or not: then they are two runs, not one
                made.start(made.silver())
            made.world.drain()
            ends = sorted(end for job in (one, two) for end in job.ended)
            published = [r.run_id for r in made.oracle.models[LIST].runs[str(FIRST)]]
            assert len(published) == 1, (seed, ends)
            assert ends.count("published") == 1, (seed, ends)
            assert len(ends) == 2
            assert all(end == "published" or end in ("settled", "published already") or end.startswith("told: ") for end in ends), ends
            said.update(ends)
            made.oracle.at_rest()
    tried(f"two nights at once, {AT_ONCE} interleavings", dict(said))
    # all three ways to say so came up
    assert {"settled", "published already"} <= said.keys()
    assert any(end.startswith("told: another run") for end in said)


@pytest.mark.parametrize("seed", range(8))
def test_a_backfill_while_the_nightly_runs_replaces_each_date_once_and_the_latest_list_never_moves_back(folder: Path, seed: int) -> None:
    days = [FIRST + timedelta(days=n) for n in range(-2, 2)]
    with shop(folder, seed, Regime(stick=0.5)) as made:
        made.start(made.nightly(days[-1]))
        made.start(made.backfill(days), 20)
        for n in range(3):  # each reader holds what it was given against what any reader was given before
            made.start(made.latest(), 100.0 * n)
        made.drain()
        runs = made.oracle.models[LIST].runs
        assert {day: len(runs[day]) for day in runs} == {str(day): 1 for day in days}
        assert made.newest == days[-1]


def alone(made: Shop, run_id: str, attempt: int, pinned: int = 0, day: date = FIRST) -> tuple[Job, list[Any]]:
    """A job that writes one list, once, as `attempt` of its run; what it was told."""
    ends: list[Any] = []

    def work(_job: Job, _n: int) -> str:
        lake = Lake(made.lake.root)
        lake.stamp = {"attempt": str(attempt)}
        try:
            ends.append(commit.write(lake, LIST, slates(run_id, day=day), run_id=run_id, pinned=pinned, partition=day))
        except Exception as error:
            ends.append(error)
        return "over"

    # the model asks what the run's plan would make: of a list by hand nothing is asked
    made.oracle.landed = None
    return Job(f"{run_id}@{attempt}", work, most=1), ends


def stepped(folder: Path, n: int, run_id: str = "r") -> Iterator[tuple[Shop, Any, list[Any]]]:
    """A writer that stands after its n-th step."""
    with shop(folder, 0, CALM) as made:
        made.world.dense = True
        job, ends = alone(made, run_id, 1)
        made.start(job)
        actor = made.world.actors[0]
        for _ in range(n):
            if not actor.greenlet.dead:
                made.world.resume(actor)
        yield made, actor, ends


def steps_of_a_write(folder: Path) -> int:
    for made, _, ends in stepped(folder, 10_000):
        assert [end.changed for end in ends] == [True]
        return made.world.step
    raise AssertionError


def held(made: Shop) -> Counter[str]:
    return Counter(made.lake.day(LIST, FIRST)["run_id"].to_pylist())


def test_a_slow_store_a_503_and_a_lost_acknowledgement_are_tried_again_a_bounded_number_of_times_and_doubled_never(folder: Path, tried: Tried) -> None:
    failed, ways = 0, Counter[str]()
    for when in ("before", "after"):
        for n in range(1, 10_000):
            with shop(folder, n, CALM) as made:
                job, ends = alone(made, "r", 1)
                made.world.fault_at = (n, when)
                made.start(job)
                made.world.drain()
                if made.world.calls < n:
                    break
                failed += made.world.counts["faults"]
                ways[f"{when}: {'done' if isinstance(ends[0], commit.Committed) else type(ends[0]).__name__}"] += 1
                again, more = alone(made, "r", 2)
                made.start(again)
                made.world.drain()
                assert isinstance(more[0], commit.Committed), (n, when, ends, more)
                assert held(made) == {"r": 2}
                assert len(made.oracle.models[LIST].runs[str(FIRST)]) == 1
                made.oracle.at_rest()
    tried("calls of one write that failed, before or after their effect", dict(ways))
    assert ways["before: done"]
    assert ways["after: done"]


def test_a_store_that_stays_down_is_given_up_on_and_said_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def down(*_: Any, **__: Any) -> None:
        asked.append(1)
        raise DeltaError("Generic error: 503 Service Unavailable: SlowDown")

    with shop(folder, 0, CALM) as made:
        monkeypatch.setattr(DeltaTable, "create_write_transaction", down)
        job, ends = alone(made, "r", 1)
        made.start(job)
        made.world.actors[0].hurt = 1  # the oracle is told that the store is not well
        made.oracle.told = lambda *_: None  # type: ignore[method-assign]
        made.world.drain()
    assert isinstance(ends[0], TransientError)
    assert ends[0].exit_code == 75
    assert 2 <= len(asked) <= 10


def test_who_looks_for_the_commits_since_a_fence_does_not_trip_over_maintenance_that_shortens_the_log(folder: Path) -> None:
    with shop(folder, 0, CALM) as made:
        for _ in range(3):
            made.start(made.silver())
            made.world.drain()
        path = made.lake.path(SILVER)
        made.lake.handle(SILVER).create_checkpoint()
        made.world.dense = True
        looks = made.world.spawn("looks", lambda: log.since(path, "somebody else", 0))
        made.world.resume(looks)
        (path / "_delta_log" / f"{0:020}.json").unlink()
        made.world.drain()


def test_of_two_nights_at_once_features_and_list_are_of_the_same_one(folder: Path) -> None:
    with shop(folder, 0, CALM) as made:
        world, features = made.world, made.oracle.models[VECTORS].runs
        world.dense = world.calm = True
        nights = []
        for n in (1, 2):
            made.start(made.silver())  # each night plans on a state of its own
            world.drain()
            made.start(made.nightly(FIRST))
            while len(features.get(str(FIRST), [])) < n:
                world.resume(world.actors[0])
            nights.append(world.actors.pop())
        for night in nights:  # the first goes on and publishes, then the second, which is refused
            world.actors.append(night)
            world.drain()
        assert sorted(end.split(":")[0] for job in made.jobs for end in job.ended if "rows" not in end) == ["published", "told"]
        of = [made.lake.day(name, FIRST)["run_id"].unique().to_pylist() for name in (LIST, VECTORS)]
        assert of[0] == of[1]


def test_two_nights_with_one_plan_can_save_it_at_once(folder: Path) -> None:
    plan = Manifest(str(FIRST), f"{FIRST}T00:00:00+00:00", {}, "0", "d", {}, {}, {}, "1")
    for n in range(1, 5):
        with shop(folder, 0, CALM) as made:
            made.world.dense = True
            one, two = (made.world.spawn(name, lambda made=made: plan.save(made.lake.root.parent / "runs")) for name in ("one", "two"))
            for _ in range(n):
                if not one.greenlet.dead:
                    made.world.resume(one)
            while two in made.world.actors:
                made.world.resume(two)
            made.world.drain()
            assert Manifest.from_json((made.lake.root.parent / "runs" / plan.run_id / "manifest.json").read_text()) == plan


def test_an_attempt_that_meets_a_failing_disk_leaves_the_stage_to_the_attempt_that_is_about_to_commit_it(folder: Path) -> None:
    with shop(folder, 0, CALM) as made:
        world, made.oracle.landed, staged = made.world, None, list[Path]()
        world.dense = True

        def publish() -> None:
            if not staged:
                staged.append(stage.stage_arrow(made.lake, LIST, slates("r"), "r").folder)
            audited = audit(made.lake, stage.read_stage(LIST, staged[0]), partition=str(FIRST))
            with suppress(TransientError):
                commit.adopt(made.lake, audited, run_id="r", pinned=0, partition=FIRST, metadata={})

        first = world.spawn("first", publish)
        while not first.at.startswith("commit to"):
            world.resume(first)
        second = world.spawn("second", publish)
        while not second.at.startswith("fsync"):
            world.resume(second)
        world.fault_at = (world.calls + 1, "before")
        while second in world.actors:
            world.resume(second)
        world.drain()
        assert held(made) == {"r": 2}


@pytest.mark.deep
def test_a_stage_whose_publishing_met_a_failing_disk_is_there_for_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(template(tmp_path / "lake"))
    folder = stage.stage_arrow(lake, LIST, slates("r"), "r").folder

    def publish() -> commit.Committed:  # as a station does that knows the stage by its folder
        audited = audit(lake, stage.read_stage(LIST, folder), partition=str(FIRST))
        return commit.adopt(lake, audited, run_id="r", pinned=0, partition=FIRST, metadata={})

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as down:
        down.setattr(os, "fsync", failing)
        with pytest.raises(TransientError):
            publish()
    assert publish().changed


def test_killed_at_any_step_of_a_write_then_retried_the_retry_completes_it_or_is_a_no_op(folder: Path, tried: Tried) -> None:
    told: Counter[str] = Counter()
    for n in range(steps_of_a_write(folder)):
        for made, actor, _ in stepped(folder, n):
            made.world.kill(actor)
            landed = bool(made.oracle.models[LIST].runs)
            job, ends = alone(made, "r", 2)
            made.start(job)
            made.world.drain()
            assert (ends[0].changed, held(made)) == (not landed, {"r": 2}), n
            told["no-op" if landed else "completed"] += 1
            made.oracle.at_rest()
    tried("kills of a writer, then its retry", dict(told))
    assert min(told["no-op"], told["completed"]) >= 3


@pytest.mark.parametrize("successor", ["the same run", "another run"])
def test_a_zombie_attempt_wakes_after_its_successor_fenced_refused(folder: Path, tried: Tried, successor: str) -> None:
    told: Counter[str] = Counter()
    for n in range(1, steps_of_a_write(folder)):
        for made, actor, ends in stepped(folder, n):
            made.world.pause(actor, 12 * HOUR)
            landed = len(made.oracle.models[LIST].runs)
            next_id = "r" if successor == "the same run" else "s"
            job, more = alone(made, next_id, 2, pinned=0 if next_id == "r" else landed)
            made.start(job)
            made.world.drain()
            assert more[0].changed == (next_id == "s" or not landed), n
            assert held(made) == {next_id: 2}
            assert isinstance(ends[0], commit.Committed if landed else commit.Fenced), (n, ends)
            told["had committed" if landed else "refused"] += 1
            made.oracle.at_rest()
    tried(f"zombies of a write, successor {successor}", dict(told))
    assert min(told["had committed"], told["refused"]) >= 3


LOST = ("its retry", "a writer of another day")


@pytest.mark.parametrize("after", LOST)
def test_a_write_that_was_told_yes_outlasts_the_power_whoever_was_killed_before_it(folder: Path, after: str) -> None:
    for n in range(1, steps_of_a_write(folder)):
        for made, actor, _ in stepped(folder, n):
            made.world.kill(actor)
            job, ends = alone(made, "r", 2) if after == "its retry" else alone(made, "s", 1, day=FIRST + timedelta(days=1))
            made.start(job)
            made.world.drain()
            assert isinstance(ends[0], commit.Committed)
            made.oracle.power_goes(torn=1.0)
            made.oracle.at_rest()


def test_a_version_that_a_plan_wrote_down_outlasts_the_power_whoever_was_killed_before_it(folder: Path) -> None:
    seen = set()
    for n in range(1, steps_of_a_write(folder)):
        for made, actor, _ in stepped(folder, n):
            made.world.kill(actor)
            pinned: list[int] = []
            made.world.spawn("plan", lambda made=made, pinned=pinned: pinned.append(made.lake.pin(LIST)))  # type: ignore[misc]
            made.world.drain()
            made.oracle.power_goes(torn=1.0)
            assert made.lake.version(LIST) == pinned[0]
            seen.add(pinned[0])
    assert len(seen) == 2, "before the write and after it"


def test_the_power_goes_in_the_middle_of_a_write_and_the_next_attempt_completes_it(folder: Path, tried: Tried) -> None:
    told: Counter[str] = Counter()
    for n in range(1, steps_of_a_write(folder)):
        for made, actor, _ in stepped(folder, n):
            made.world.kill(actor)
            made.oracle.power_goes(torn=1.0)
            stood = bool(made.oracle.models[LIST].runs.get(str(FIRST)))
            job, ends = alone(made, "r", 2)
            made.start(job)
            made.world.drain()
            assert ends[0].changed != stood, n
            assert held(made) == {"r": 2}
            made.oracle.at_rest()
            told["stood" if stood else "done again"] += 1
    tried("losses of power within a write, then its retry", dict(told))
    assert min(told["stood"], told["done again"]) >= 3


ZOMBIE = """
import os, signal, sys
from datetime import date
from pathlib import Path
from deltalake import DeltaTable
from mmrec.errors import MmrecError
from mmrec.lake import commit
from mmrec.lake.store import Lake
from tests.faults.test_simulator import FIRST, LIST, slates

real = DeltaTable.create_write_transaction
def stop(*args, **more):
    os.kill(os.getpid(), signal.SIGSTOP)  # its fence is read and agrees; the transaction is not asked for yet
    return real(*args, **more)
DeltaTable.create_write_transaction = stop
try:
    commit.write(Lake(Path(sys.argv[1])), LIST, slates("zombie"), run_id="zombie", pinned=0, partition=FIRST)
except MmrecError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.deep
def test_a_zombie_process_that_was_stopped_wakes_after_its_successor_and_is_refused(tmp_path: Path) -> None:
    lake = Lake(template(tmp_path / "lake"))
    zombie = subprocess.Popen([sys.executable, "-c", ZOMBIE, str(lake.root)], stdout=subprocess.PIPE, text=True)
    try:
        _, how = os.waitpid(zombie.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(how)
        assert commit.write(lake, LIST, slates("successor", "c"), run_id="successor", pinned=0, partition=FIRST).changed
        os.kill(zombie.pid, signal.SIGCONT)
        said, _ = zombie.communicate()
    finally:
        if zombie.poll() is None:
            zombie.kill()
    assert zombie.returncode == 75, said
    assert "moved by run successor" in said
    assert lake.day(LIST, FIRST)["run_id"].to_pylist() == ["successor"]
    assert len(list(lake.path(LIST).glob("stage-*"))) == 1


def test_vacuum_during_a_read_or_an_uncommitted_write_leaves_live_files_alone(folder: Path, tried: Tried) -> None:
    deleted = written = 0
    for n in range(1, steps_of_a_write(folder), 3):
        for made, actor, ends in stepped(folder, n):
            world, lake, seen = made.world, made.lake, made.oracle.models[SILVER]
            world.pause(actor, 72 * HOUR)  # longer than any retention: its stage lives as long as it does
            for _ in range(3):
                made.start(made.silver())
                while len(world.actors) > 1:
                    world.turn()
            pinned = lake.version(SILVER)
            made.start(made.silver(), 48 * HOUR)
            for hours in (49, 60):
                for _ in range(2):
                    made.start(made.maintenance(), hours * HOUR)
            world.actors.append(world.actors.pop(0))

            def read(made: Shop = made, pinned: int = pinned) -> None:
                for _ in range(4):
                    made.see(made.lake, SILVER, pinned)
                    made.world.sleep(6 * HOUR)

            world.spawn("reader", read, after=47 * HOUR)
            world.drain()
            deleted += made.oracle.seen["files_deleted"]
            assert isinstance(ends[0], commit.Committed), (n, ends)
            written += ends[0].changed
            assert held(made) == {"r": 2}
            assert seen.version > pinned
            made.oracle.at_rest()
    tried("files deleted beside a reader and a stopped writer", deleted)
    assert deleted
    assert written


def _app_per_run(planted: pytest.MonkeyPatch) -> None:
    runs: dict[Any, str] = {}
    adopted = commit._adopt

    def adopt(lake: Lake, checked: Any, run_id: str, *rest: Any) -> Any:
        runs[getcurrent()] = run_id
        return adopted(lake, checked, run_id, *rest)

    planted.setattr(commit, "_adopt", adopt)
    planted.setattr(log, "app_id", lambda name, partition: f"{name}/{partition or '*'}/{runs.get(getcurrent())}")


def _second_handle(planted: pytest.MonkeyPatch) -> None:
    real = DeltaTable.create_write_transaction
    planted.setattr(DeltaTable, "create_write_transaction", lambda self, *a, **more: real(DeltaTable(self.table_uri), *a, **more))


def _cleans_up(planted: pytest.MonkeyPatch) -> None:
    adopted = commit._adopt

    def adopt(lake: Lake, checked: Any, *rest: Any) -> Any:
        try:
            return adopted(lake, checked, *rest)
        except OSError:
            checked.stage.discard()
            raise

    planted.setattr(commit, "_adopt", adopt)


def _unpinned(planted: pytest.MonkeyPatch) -> None:
    real = Lake.dataset
    planted.setattr(Lake, "dataset", lambda self, name, version=None: real(self, name))


def _vacuum_at_once(planted: pytest.MonkeyPatch) -> None:
    def clean(home: Any, name: str, **_: Any) -> list[dict[str, Any]]:
        Lake(home.lake).handle(name).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
        return [{"refused": None, "files": 0, "stages": 0}]

    planted.setattr(Shop, "maintain", staticmethod(clean))


def _compact_by_delta_rs(planted: pytest.MonkeyPatch) -> None:
    # its conflict check lets a writer that read before it remove the same files again
    def compacted(home: Any, name: str, **_: Any) -> list[dict[str, Any]]:
        Lake(home.lake).handle(name).optimize.compact()
        return [{"refused": None, "files": 0, "stages": 0}]

    planted.setattr(Shop, "maintain", staticmethod(compacted))


def _since(planted: pytest.MonkeyPatch, **as_if: Any) -> None:
    real = log.since
    planted.setattr(log, "since", lambda *args: [replace(c, **as_if) for c in real(*args)])


def _retry_is_refused(planted: pytest.MonkeyPatch) -> None:
    _since(planted, run_id="?")


def _attempts_unknown(planted: pytest.MonkeyPatch) -> None:
    _since(planted, attempt=0)


def violation(folder: Path, seed: int, goes_on: Callable[[Shop], None]) -> Violation | None:
    """What a world of rough weather shows."""
    try:
        with shop(folder, seed, Regime(0.02, 0.005, 0.005, 0.3)) as made:
            goes_on(made)
            while made.world.turn():
                pass
            made.drain()
    except Violation as found:
        return found
    return None


def crowd(made: Shop) -> None:
    made.days(2, 5, 8)


def maintenance_within_a_write(made: Shop) -> None:
    """Everything is maintained while a night stands between its fence and its transaction, and a reader reads."""
    world = made.world
    made.start(made.nightly(FIRST))
    world.drain()
    made.start(made.nightly(FIRST, force=True))
    while not world.actors[0].at.startswith("commit to"):
        world.resume(world.actors[0])
    world.calm = False
    world.actors[0].wake = world.now + HOUR
    for job in (made.reader(), made.silver(), made.maintenance(), made.maintenance()):
        made.start(job)


def another_night_meanwhile(made: Shop) -> None:
    """A night has seen that its date is not published, and has not planned yet."""
    made.start(made.nightly(FIRST))
    while not made.world.actors[0].at.startswith("open gold/user_vectors"):
        made.world.resume(made.world.actors[0])
    made.world.actors[0].wake = made.world.now + HOUR
    made.start(made.nightly(FIRST))


@pytest.mark.parametrize("goes_on", [another_night_meanwhile, crowd, maintenance_within_a_write])
def test_the_worlds_in_which_bugs_are_planted_are_well_without_them(folder: Path, goes_on: Callable[[Shop], None]) -> None:
    assert [violation(folder, seed, goes_on) for seed in range(3)] == [None] * 3


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, Callable[[Shop], None]]] = {
    "an app id per run instead of one per partition": (_app_per_run, "committed on fence|stands twice|was published again|existing_key", crowd),
    "a commit through another handle than the one the fence was read from": (_second_handle, "committed on fence", crowd),
    "a stage that is cleaned up after an unknown outcome": (_cleans_up, "files that readers need were removed", crowd),
    "a reader without a pin": (_unpinned, "a read at version", crowd),
    "a vacuum without retention": (_vacuum_at_once, "were removed|No such file|No files found|not found|its rows are not there|not on disk", maintenance_within_a_write),
    "an older attempt than the one that committed is told all is well": (_attempts_unknown, "a later attempt had committed", crowd),
    "small files put together by delta-rs itself": (_compact_by_delta_rs, "which was not there|holds in", maintenance_within_a_write),
    "a retry of a run that committed is refused": (_retry_is_refused, "a retry of a run that had committed was refused", crowd),
    "a night that looks for a published date before its fences are pinned, not after": (lambda p: p.setattr(Shop, "looks_twice", False), "published again by run", another_night_meanwhile),
    "a published date whose night was killed before it was on record stays off it": (lambda p: p.setattr(Shop, "completes", False), "not on record", crowd),
}
SEEDS = 40


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried, what: str) -> None:
    plant, says, goes_on = PLANTED[what]
    plant(monkeypatch)
    found = (violation(folder, seed, goes_on) for seed in range(SEEDS))
    worlds, first = next((n, v) for n, v in enumerate(found, 1) if v)
    tried(f"planted: {what}: found in world", worlds)
    assert re.search(says, str(first)), first


def test_a_failing_run_tells_seed_step_and_the_last_events_and_a_replay_repeats_it(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _unpinned(monkeypatch)
    assert soak.main(["--seed", "0", "--steps", "100000"]) == 1
    first = capsys.readouterr().err
    again = first.split("again: python -m tests.soak.simulator ")[1].split()
    assert soak.main(again) == 1
    out, err = capsys.readouterr()
    assert err == first
    events = first.split("the last events:\n")[1].split("\nagain")[0].splitlines()
    assert len(events) == 30
    assert out.splitlines()[-30:] == events
