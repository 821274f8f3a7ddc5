"""spark-submit on a real standalone cluster: the rows of engine local, and again when a worker is killed in the middle."""

import json
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from mmrec import config
from mmrec.config import SparkConfig
from mmrec.lake.content import content_hash
from mmrec.lake.jars import shipped
from mmrec.lake.store import Lake
from tests.cluster.standalone import Cluster, events
from tests.conftest import Lived, mmrec, serve
from tests.waiting import until

pytestmark = pytest.mark.deep

DAY, BEFORE = "2026-03-06", ("world", "ingest", "validate", "embed", "plan")
GOLD = ("gold.user_sequences", "gold.item_features", "gold.user_vectors", "gold.recommendations")


@pytest.fixture(scope="module")
def planned(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose next night a trained model serves, up to its plan."""
    home = tmp_path_factory.mktemp("planned") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    serve(config.load(home), lived.nights[0]["counts"]["training"]["register"]["model_version"])
    mmrec("steps", *BEFORE, "--home", str(home), "--date", DAY)
    return home


def hashes(home: Path) -> dict[str, str]:
    lake = Lake(home / "lake")
    return {name: content_hash(lake.day(name, date.fromisoformat(DAY)), name) for name in GOLD}


@pytest.fixture(scope="module")
def want(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("local") / "home"
    shutil.copytree(planned, home, symlinks=True)
    mmrec("steps", "features", "recommend", "publish", "--home", str(home), "--date", DAY)
    found = hashes(home)
    assert Lake(home / "lake").day(GOLD[2], date.fromisoformat(DAY)).num_rows == 60
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made.start(workers=2)
    finally:
        made.stop()


def night(home: Path) -> tuple[str, ...]:
    return ("features", "recommend", "--home", str(home), "--date", DAY, "--json")


def test_two_workers_give_the_rows_of_local_and_lose_nothing_when_one_is_killed_while_it_scores(
    cluster: Cluster, planned: Path, want: dict[str, str], tmp_path: Path
) -> None:
    home, log = tmp_path / "home", tmp_path / "events"
    shutil.copytree(planned, home, symlinks=True)
    log.mkdir()
    conf = {"spark.eventLog.enabled": "true", "spark.eventLog.compress": "false", "spark.eventLog.dir": log.as_uri()}
    job = cluster.submit(*night(home), conf=conf, env={"MMREC_SPARK__PARTITIONS": "6"})
    try:
        # Python on the worker's executor: it scores its first users, or is about to
        until("a worker scores", lambda: any("pyspark.daemon" in " ".join(p) for p in cluster.commands("worker-1")), 180)
        cluster.kill("worker-1")
        out, err = job.communicate(timeout=240)
    finally:
        job.kill()
    assert job.returncode == 0, err
    told = events(log)
    ended = [e for e in told if e["Event"] == "SparkListenerTaskEnd"]
    assert any(e["Task End Reason"]["Reason"] == "ExecutorLostFailure" for e in ended), "the kill hit no task"
    assert len({e["Task Info"]["Executor ID"] for e in ended}) == 2
    sent = ["mmrec.zip", *(Path(f).name for f in shipped(SparkConfig())["files"].split(",") if f)]
    for file in sent:
        assert all(list((cluster.folder / f"worker-{n}").rglob(file)) for n in (0, 1)), f"{file} was not shipped"
    assert json.loads(out)["recommend"]["users"] == 60
    mmrec("steps", "publish", "monitor", "--home", str(home), "--date", DAY)
    assert hashes(home) == want
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]
    assert len(cluster.alive()) == 1


def test_the_cluster_left_with_one_worker_gives_the_rows_of_local(
    cluster: Cluster, planned: Path, want: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(planned, home, symlinks=True)
    job = cluster.submit("features", "recommend", "publish", "monitor", *night(home)[2:])
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert json.loads(out)["features"]["gold.user_sequences"] == 60
    assert hashes(home) == want
    assert (home / "reports" / DAY / "report.html").is_file()


def test_a_job_that_meets_a_wrong_word_ends_with_the_exit_code_of_the_command_line(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("features", "--home", str(tmp_path / "nowhere"), "--date", DAY)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 2, err
    assert "no lake yet" in out + err  # spark-submit makes one stream of the two
