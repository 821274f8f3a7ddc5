"""Each way to run a command builds the right provider's operator, and its failure gives back the exit code."""

import json
import os
import stat
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.docker.exceptions import DockerContainerFailedException
from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk.exceptions import AirflowException

from mmrec import config as settings
from mmrec.flow.runners import Delegate, Job, build, exit_code
from tests.dags.conftest import ROOT

WORDS = ("steps", "plan", "features", "--date", "2026-03-02", "--engine", "spark", "--home", "/h", "--json")


def job(home: Path, toml: str = "") -> Job:
    (home / "mmrec.toml").write_text(toml)
    return Job("features", WORDS, settings.load(home), {"TMPDIR": "/h/s", "MMREC_HOME": "/h"})


def test_spark_submit_gets_the_words_of_mmrec_steps_the_settings_and_the_connection(bare_home: Path, tmp_path: Path) -> None:
    toml = "[spark]\nmemory = '3g'\noptions = {'spark.executor.instances' = '4', 'spark.jars' = 'in-the-image.jar'}\n[airflow]\nconnection = 'cluster'\n"
    made = build("spark-submit", job(bare_home, toml), lambda _: None, tmp_path / "step.py")
    assert made.application == str(tmp_path / "step.py")
    assert made.application_args == list(WORDS[1:])
    quiet = made.conf.pop("spark.driver.extraJavaOptions")
    assert "-Dlog4j2.configurationFile=file:" in quiet
    assert made.conf == {"spark.driver.memory": "3g", "spark.executor.instances": "4", "spark.jars": "in-the-image.jar"}
    with zipfile.ZipFile(made.py_files) as package:
        assert "mmrec/recommend/spread.py" in package.namelist()
    assert made.jars is None
    python = dict.fromkeys(("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"), sys.executable)
    assert made.env_vars == {"TMPDIR": "/h/s", "MMREC_HOME": "/h"} | python
    assert (made._conn_id, made.name) == ("cluster", "mmrec-features")


def test_spark_submit_is_told_where_deltas_jars_are_unless_the_settings_say_that_they_are_there(bare_home: Path) -> None:
    made = build("spark-submit", job(bare_home), lambda _: None)
    assert made.application == str(ROOT / "jobs" / "step.py")
    assert any("delta-spark" in j for j in made.jars.split(","))
    assert all(Path(j).is_file() for j in made.jars.split(","))


def test_a_container_has_the_home_where_it_is_here_our_user_and_is_removed(bare_home: Path) -> None:
    made = build("container", job(bare_home, "threads = 6\n[airflow]\nimage = 'shop:1'\n"), lambda _: None)
    assert type(made) is DockerOperator
    assert (made.image, made.command) == ("shop:1", ["python", "-m", "mmrec", *WORDS])
    assert made.environment == {"TMPDIR": "/h/s", "MMREC_HOME": "/h"}
    assert [(m["Source"], m["Target"], m["Type"]) for m in made.mounts] == [(str(bare_home), str(bare_home), "bind")]
    assert (made.mount_tmp_dir, made.auto_remove, made.xcom_all, made.cpus) == (False, "force", True, 6)
    assert made.user == f"{os.getuid()}:{os.getgid()}"
    assert made.device_requests is None
    gpu = build("container", job(bare_home, "device = 'cuda'\n"), lambda _: None).device_requests
    assert [(r["Count"], r["Capabilities"]) for r in gpu] == [(-1, [["gpu"]])]


def test_a_pod_has_the_homes_volume_and_a_gpu_when_the_device_is_one(bare_home: Path) -> None:
    lines: list[str] = []
    made = build("pod", job(bare_home, "device = 'cuda'\n[airflow]\nimage = 'shop:1'\nnamespace = 'recs'\n"), lines.append)
    assert type(made) is KubernetesPodOperator
    pod = made.build_pod_request_obj(dry_run=True)
    (container,) = pod.spec.containers
    assert (pod.metadata.namespace, container.image) == ("recs", "shop:1")
    assert (container.command, container.args) == (["python", "-m", "mmrec"], list(WORDS))
    assert {e.name: e.value for e in container.env} == {"TMPDIR": "/h/s", "MMREC_HOME": "/h"}
    assert [v.persistent_volume_claim.claim_name for v in pod.spec.volumes] == ["mmrec-home"]
    assert [m.mount_path for m in container.volume_mounts] == [str(bare_home)]
    assert container.resources.limits == {"nvidia.com/gpu": "1"}
    assert made.log_formatter("base", "a line") == "a line"
    assert lines == ["a line"]
    assert not made.durable


def test_exit_codes_are_read_out_of_what_each_provider_says() -> None:
    operator = SimpleNamespace()
    submit = AirflowException("Cannot execute: spark-submit --x 3. Error code is: 75.\nLast spark-submit output:\nexit 1")
    cluster = AirflowException("Cannot execute: x. Error code is: 0. Kubernetes spark exit code is: 3\n")
    driver = RuntimeError("Spark application a failed (phase=Failed exit_code=2 reason=Error)")
    docker = DockerContainerFailedException("Docker container failed: {'Error': None, 'StatusCode': 137}", logs=["x"])
    nothing = AirflowException("the daemon does not answer")
    assert [exit_code(operator, e) for e in (submit, cluster, driver, docker, nothing)] == [75, 3, 2, 137, 1]


def test_the_exit_code_of_a_pod_is_its_containers_state_not_its_sidecars() -> None:
    def container(name: str, code: int | None) -> Any:
        ended = SimpleNamespace(exit_code=code) if code is not None else None
        return SimpleNamespace(name=name, state=SimpleNamespace(terminated=ended))

    def operator(*containers: Any) -> Any:
        pod = SimpleNamespace(status=SimpleNamespace(container_statuses=containers))
        return SimpleNamespace(remote_pod=pod, base_container_name="base")

    error = AirflowException("Pod x returned a failure.")
    assert exit_code(operator(container("istio", 0), container("base", 75)), error) == 75
    assert exit_code(operator(container("base", None)), error) == 1
    assert exit_code(SimpleNamespace(remote_pod=None), error) == 1


@pytest.fixture
def submit_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `spark-submit` that runs the application, the first word that ends in .py, with what follows."""
    script = tmp_path / "bin" / "spark-submit"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\nwhile [ \"${{1%.py}}\" = \"$1\" ]; do shift; done\nexec '{sys.executable}' \"$@\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", '{"conn_type": "spark", "host": "local[1]"}')
    return tmp_path / "step.py"


@pytest.mark.parametrize("code", [0, 2, 3, 75])
def test_the_providers_own_hook_runs_the_application_and_its_exit_code_output_and_error_come_back(
    bare_home: Path, submit_on_path: Path, code: int
) -> None:
    submit_on_path.write_text(
        "import json, os, sys\n"
        "print('InputError: so it is', file=sys.stderr, flush=True)\n"
        "print(json.dumps({'words': sys.argv[1:], 'tmp': os.environ['TMPDIR']}), flush=True)\n"
        f"sys.exit({code})\n"
    )
    delegate = Delegate("spark-submit", job(bare_home), {})
    delegate.operator.application = str(submit_on_path)
    done = delegate.run()
    assert done.code == code
    assert json.dumps({"words": list(WORDS[1:]), "tmp": "/h/s"}) in done.stdout
    assert "InputError: so it is" in (done.stderr if code else done.stdout)


def test_a_provider_that_can_not_even_begin_counts_as_worth_a_retry(bare_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    done = Delegate("container", job(bare_home), {}).run()
    assert done.code == 1
    assert "nowhere" in done.stderr or "ocker" in done.stderr
