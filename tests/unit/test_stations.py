"""`mmrec steps` and jobs/step.py: stations in one process, of a published date nothing again, and kills in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mmrec import config
from mmrec.bundle import bundle, registry, server
from mmrec.context import Night
from mmrec.lake import commit
from mmrec.lake.content import content_hash
from mmrec.lake.store import Lake
from mmrec.steps import STEPS
from tests.conftest import mmrec

DAY, NAME, ROOT = "2026-03-02", "gold.recommendations", Path(__file__).parents[2]
NIGHT = ("plan", "features", "recommend", "publish", "monitor")
RUN = "from mmrec.cli import main\nmain()\n"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home up to its plan: what comes before is a day's, whatever happens to the night."""
    home = tmp_path_factory.mktemp("embedded") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    config.write(home, {"source": {"spec": "builtin", "size": "tiny"}, "night": {"text": "", "image": ""}})
    mmrec("steps", "world", "ingest", "validate", "embed", "--home", str(home), "--date", DAY)
    return home


@pytest.fixture
def home(embedded: Path, tmp_path: Path) -> Path:
    shutil.copytree(embedded, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def published(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same home after its night; tests read it, or do what changes nothing."""
    home = tmp_path_factory.mktemp("published") / "home"
    shutil.copytree(embedded, home)
    steps(home, *NIGHT)
    return home


def steps(home: Path, *words: str, ok: tuple[int, ...] = (0,)) -> dict[str, Any]:
    done = mmrec("steps", *words, "--home", str(home), "--date", DAY, "--json", ok=ok)
    return json.loads(done.stdout) if done.returncode == 0 else {"said": done.stderr}


def planted(code: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`mmrec steps` in a process with something planted in it."""
    command = [sys.executable, "-c", code + RUN, "steps", *words, "--home", str(home), "--date", DAY]
    return subprocess.run(command, capture_output=True, text=True)


def lists(home: Path) -> str:
    return content_hash(Lake(home / "lake").day(NAME, date.fromisoformat(DAY)), NAME)


def whole(home: Path, want: Path) -> bool:
    """Published once, as an undisturbed night would have, on record, with its report, and every promise kept."""
    rows = Lake(home / "lake").arrow("ops.runs").to_pylist()
    assert lists(home) == lists(want)
    assert [(r["run_id"], r["content_hash"]) for r in rows] == [(commit.published_run_id(Lake(home / "lake"), NAME, date.fromisoformat(DAY)), lists(home))]
    assert (home / "reports" / DAY / "report.html").is_file()
    return json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]


def test_a_served_models_encoder_that_is_gone_does_not_stop_the_night_and_is_an_alert(home: Path) -> None:
    about = {"kind": "two_tower", "as_of": None, "encoders": {"text": "gone/1"}, "encoder_names": {"text": "/no/such/model"}}
    bundle.seal(home / "made", about)
    settings = config.load(home)
    client = server.client(settings)
    run = client.create_run(client.create_experiment("t"))
    registry.register(settings, home / "made", run.info.run_id, about)
    night = steps(home, "embed", *NIGHT)
    (told,) = night["embed"]["unfed"]
    assert (told["version"], told["modality"]) == ("gone/1", "text")
    assert told["waiting"] > 20
    assert night["publish"]["rows"] > 0
    (alert,) = Lake(home / "lake").arrow("ops.alerts").to_pylist()
    assert (alert["kind"], alert["subject"]) == ("unfed_encoder", "gone/1")
    assert f"{told['waiting']} contents (text) wait for it: /no/such/model can't be opened" in alert["message"]


def test_stations_run_in_the_order_given_and_share_one_session(home: Path) -> None:
    counting = ("import sys\nfrom mmrec.lake import session as room\nhonest = room._sail\n"
                "room._sail = lambda: (print('a session', file=sys.stderr), honest())[1]\n")  # fmt: skip
    done = planted(counting, home, "validate", "plan", "ingest", "features", "recommend", "publish", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a session") == 1
    told = json.loads(done.stdout)
    order = ["validate", "plan", "ingest", "features", "recommend", "publish"]
    assert list(told) == [*order, "run_date", "seconds", "skipped"]
    assert list(told["seconds"]) == order
    assert (told["run_date"], told["skipped"]) == (DAY, [])
    assert told["recommend"]["rows"] == told["publish"]["rows"] > 0
    # stations that compute nothing start no engine
    done = planted(counting, home, "ingest", "monitor")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["ingest", "monitor"]


@pytest.mark.deep
def test_stations_one_by_one_give_the_lists_of_stations_together(home: Path, published: Path) -> None:
    for name in NIGHT:
        mmrec(name, "--home", str(home), "--date", DAY)
    assert whole(home, published)


@pytest.mark.deep
def test_a_night_that_was_planned_before_there_were_wishes_is_made_without_them(home: Path, published: Path) -> None:
    steps(home, "plan")
    day, name, night = date.fromisoformat(DAY), "gold.user_sequences", Night(config.load(home), date.fromisoformat(DAY))
    assert "silver.wishes" in night.manifest.tables
    night.planned(replace(night.manifest, tables={n: v for n, v in night.manifest.tables.items() if n != "silver.wishes"}))
    steps(home, *NIGHT[1:])
    here, there = (Lake(h / "lake").day(name, day).drop_columns("run_id").sort_by("user_id") for h in (home, published))
    assert here["wishes"].null_count == here.num_rows > there["wishes"].null_count > 0
    assert here.drop_columns("wishes").equals(there.drop_columns("wishes"))
    asked = [w for row in there["wishes"].to_pylist() for w in row or ()]
    assert {w.split()[0] for w in asked} <= {"less", "more"}
    assert all(" category=aisle " in w for w in asked)
    told = json.loads(mmrec("run", "--home", str(home), "--date", DAY, "--replay", "--json").stdout)
    assert told["content_hash"] == lists(home)


def test_an_unknown_station_stops_before_the_first_one_runs(home: Path) -> None:
    said = steps(home, "plan", "dance", ok=(2,))["said"]
    assert "no such step" in said
    assert "'dance'" in said
    assert all(s.name in said for s in STEPS)
    assert not list((home / "runs").glob("planned-*"))
    assert mmrec("steps", "--home", str(home), "--date", DAY, ok=(2,)).stdout == ""


def test_a_published_date_is_left_alone_unless_it_is_forced(published: Path, tmp_path: Path) -> None:
    versions = Lake(published / "lake").versions()
    told = steps(published, *NIGHT)
    assert told["skipped"] == ["plan", "features", "recommend"]
    assert told["publish"]["changed"] is False
    after = Lake(published / "lake").versions()
    assert {n for n in after if after[n] != versions[n]} <= {"ops.freshness", "ops.steps"}  # monitor looks again
    assert whole(published, published)
    for name in ("plan", "features", "recommend"):
        assert steps(published, name) == {"run_date": DAY, "seconds": {}, "skipped": [name]}
    assert Lake(published / "lake").versions() == after


@pytest.mark.deep
def test_a_forced_plan_is_followed_only_by_stations_that_are_forced_too(home: Path) -> None:
    first = steps(home, *NIGHT)["plan"]["run_id"]
    second = steps(home, "plan", "--force")["plan"]["run_id"]
    assert second != first
    # another run is planned, so publish and monitor have nothing of their own to complete
    assert steps(home, *NIGHT)["skipped"] == list(NIGHT)
    assert commit.published_run_id(Lake(home / "lake"), NAME, date.fromisoformat(DAY)) == first
    told = steps(home, "features", "recommend", "publish", "monitor", "--force")
    assert (told["skipped"], told["publish"]["changed"]) == ([], True)
    assert commit.published_run_id(Lake(home / "lake"), NAME, date.fromisoformat(DAY)) == second
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]


def test_a_published_date_without_its_run_folder_has_nothing_to_do(home: Path) -> None:
    steps(home, *NIGHT)
    shutil.rmtree(home / "runs")
    assert steps(home, *NIGHT)["skipped"] == list(NIGHT)


KILL = "import os, signal\n"
AFTER_COMMIT = KILL + f"""
from mmrec.lake import commit
honest = commit.adopt
def adopt(lake, checked, **more):
    done = honest(lake, checked, **more)
    if checked.stage.table == {NAME!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
commit.adopt = adopt
"""
BEFORE_COMMIT = KILL + f"""
from mmrec.lake import commit
honest = commit.adopt
def adopt(lake, checked, **more):
    if checked.stage.table == {NAME!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(lake, checked, **more)
commit.adopt = adopt
"""
WHILE_SCORING = KILL + """
from mmrec.recommend import spread
def lists_of(folder, batches):
    os.kill(os.getpid(), signal.SIGKILL)
    yield
spread.lists_of = lists_of
"""


BLOCK_BY_BLOCK = KILL + """
import sys
from mmrec.lake import blocks
from mmrec.recommend import spread
blocks._USERS = 10
calls = []
def counted(name, last):
    honest = getattr(spread, name)
    def fn(folder, batches):
        calls.append(name)
        print(name, file=sys.stderr, flush=True)
        if calls.count(name) > last:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(folder, batches)
    fn.__module__, fn.__qualname__ = "mmrec.recommend.spread", name
    setattr(spread, name, fn)
"""


def test_a_publish_that_is_killed_after_its_commit_is_completed_by_its_retry(home: Path, published: Path) -> None:
    steps(home, "plan", "features", "recommend")
    assert planted(AFTER_COMMIT, home, "publish", "monitor").returncode == -signal.SIGKILL
    lake = Lake(home / "lake")
    version = lake.version(NAME)
    assert lake.arrow("ops.runs").num_rows == 0
    assert not (home / "reports").exists()
    told = steps(home, "publish", "monitor")
    assert (told["skipped"], told["publish"]["changed"]) == ([], False)
    assert lake.version(NAME) == version
    assert whole(home, published)


def test_a_night_that_is_killed_between_recommend_and_publish_goes_on_or_begins_anew(home: Path, published: Path, tmp_path: Path) -> None:
    steps(home, "plan", "features", "recommend")
    assert planted(BEFORE_COMMIT, home, "publish").returncode == -signal.SIGKILL
    day = date.fromisoformat(DAY)
    assert Lake(home / "lake").day(NAME, day).num_rows == 0
    assert commit.published_run_id(Lake(home / "lake"), NAME, day) is None
    # anew: another plan, for the fences have moved; what was staged is never seen
    told = steps(home, *NIGHT)
    assert (told["skipped"], told["publish"]["changed"]) == ([], True)
    assert whole(home, published)


def test_a_publish_that_was_killed_before_its_commit_goes_on_with_what_was_staged(home: Path, published: Path) -> None:
    steps(home, "plan", "features", "recommend")
    assert planted(BEFORE_COMMIT, home, "publish").returncode == -signal.SIGKILL
    assert steps(home, "publish", "monitor")["publish"]["changed"] is True
    assert whole(home, published)


def test_a_recommend_that_is_killed_while_it_scores_leaves_nothing_to_publish_and_is_run_again(home: Path, published: Path) -> None:
    steps(home, "plan", "features")
    assert planted(WHILE_SCORING, home, "recommend").returncode == -signal.SIGKILL
    assert "nothing staged" in steps(home, "publish", ok=(2,))["said"]
    steps(home, "recommend", "publish", "monitor")
    assert whole(home, published)


@pytest.mark.deep
def test_a_recommend_that_is_killed_again_and_again_makes_every_block_once(home: Path, published: Path) -> None:
    steps(home, "plan", "features")
    people = Lake(home / "lake").day("gold.user_sequences", date.fromisoformat(DAY)).num_rows
    blocks = -(-people // 10)
    assert blocks > 4
    made = []
    for last in (1, 2):  # blocks that an attempt survives
        done = planted(BLOCK_BY_BLOCK + f"counted('lists_of', {last})\n", home, "recommend")
        assert done.returncode == -signal.SIGKILL, done.stderr
        made.append(done.stderr.count("lists_of") - 1)
        assert "nothing staged" in steps(home, "publish", ok=(2,))["said"]
    done = planted(BLOCK_BY_BLOCK + "counted('lists_of', 99)\n", home, "recommend")
    assert done.returncode == 0, done.stderr
    assert [*made, done.stderr.count("lists_of")] == [1, 2, blocks - 3]
    assert len(list((home / "lake" / "gold" / "recommendations").glob("stage-*"))) == 1
    steps(home, "publish", "monitor")
    assert whole(home, published)


@pytest.mark.deep
def test_a_stage_that_maintenance_took_is_said_to_be_gone_and_made_again(home: Path, published: Path) -> None:
    steps(home, "plan", "features", "recommend")
    (waits,) = (home / "lake" / "gold" / "recommendations").glob("stage-*")
    shutil.rmtree(waits)
    said = steps(home, "publish", ok=(2,))["said"]
    assert "nothing staged" in said
    assert f"{waits.name} is gone" in said
    assert f"mmrec recommend --date {DAY}" in said
    steps(home, "recommend", "publish", "monitor")
    assert whole(home, published)


FASTER = """
import sys
from mmrec.lake import stage
real = stage.find

def find(name, folder):
    import subprocess
    stage.find = real
    subprocess.run([sys.executable, "-m", "mmrec", "steps", "publish", *sys.argv[sys.argv.index("--home"):]], check=True)
    return real(name, folder)

stage.find = find
from mmrec.cli import main
main()
"""


@pytest.mark.deep
def test_a_publish_that_another_attempt_outruns_ends_well(home: Path, published: Path) -> None:
    steps(home, "plan", "features", "recommend")
    told = job("steps", "publish", "--home", str(home), "--date", DAY, "--json", code=FASTER)
    assert told.returncode == 0, told.stderr
    assert '"changed": false' in told.stdout
    steps(home, "monitor")
    assert whole(home, published)


def job(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else [str(ROOT / "jobs" / "step.py")]
    return subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, cwd="/",
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip


WORDS = f"""
import runpy, sys
import mmrec.cli
mmrec.cli.main = lambda: print(*sys.argv[1:], sep="|")
runpy.run_path({str(ROOT / "jobs" / "step.py")!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("given", "more"),
    [(("features", "--home", "H"), ("--engine", "spark")), (("features", "--engine", "local"), ()), (("features", "--engine=local"), ()),
     (("features", "--engine", "spark", "--json"), ()), ((), ("--engine", "spark"))],
    ids=" ".join,
)  # fmt: skip
def test_a_job_hands_its_words_on_and_runs_on_spark_unless_they_name_an_engine(given: tuple[str, ...], more: tuple[str, ...]) -> None:
    done = job(*given, code=WORDS)
    assert done.stdout.strip().split("|") == ["steps", *given, *more], done.stderr


def test_a_job_is_the_same_stations_with_the_same_codes(published: Path) -> None:
    words = ("--home", str(published), "--date", DAY, "--engine", "local", "--json")
    done = job("features", "publish", *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["skipped"], told["publish"]["changed"]) == (["features"], False)
    assert job("dance", *words).returncode == 2
