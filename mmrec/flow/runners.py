"""The same command by spark-submit, in a container, or in a pod: a provider's operator, built, run and understood.

In: a `Job` (words, settings, environment). Out: `Done`, as from a local process: the exit code, and what was printed.
    spark-submit  jobs/step.py beside dags/, over the connection `airflow.connection`, with Delta's jars
    container     `airflow.image`, with the home mounted where it is here
    pod           `airflow.image` in `airflow.namespace`, with the volume claim `mmrec-home` mounted at the home
Trade-off: providers tell a failure by a sentence, so the exit code is read out of it; a sentence that holds none
counts as worth a retry, which at worst tries thrice what a person must change.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmrec
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.flow.process import Done

VOLUME = "mmrec-home"
_LINES = 5000  # of a log that a command's output is looked for in
_CODES = (r"Kubernetes spark exit code is: (\d+)", r"exit_code=(\d+)", r"'StatusCode': (\d+)", r"Error code is: (\d+)")


@dataclass(frozen=True)
class Job:
    """One mmrec command: the words after `mmrec`, and the environment it needs beside the place's own."""

    task_id: str
    words: tuple[str, ...]
    config: Config
    env: dict[str, str]


class Delegate:
    """Runs a job by a provider's operator."""

    def __init__(self, kind: str, job: Job, context: Mapping[str, Any]) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._context = context
        self.operator = build(kind, job, self._lines.append)

    def run(self) -> Done:
        from airflow.sdk.bases.operator import ExecutorSafeguard
        from airflow.sdk.exceptions import AirflowException

        # an operator inside an operator is what Airflow warns of; here it is meant
        meant = {f"{type(self.operator).__name__}__sentinel": ExecutorSafeguard.sentinel_value}
        try:
            told = self.operator.execute(self._context, **meant)
        except (AirflowException, RuntimeError) as error:
            self._lines += [str(line) for line in getattr(error, "logs", None) or ()]
            printed = "\n".join(self._lines)
            return Done(exit_code(self.operator, error), printed, f"{printed}\n{_short(error)}")
        if isinstance(told, list):  # a container's log
            self._lines += map(str, told)
        return Done(0, "\n".join(self._lines), "")

    def kill(self) -> None:
        self.operator.on_kill()


def build(kind: str, job: Job, tee: Any, application: Path | None = None) -> Any:
    """The provider's operator for `job`; `tee` is called with every line of its log, where a provider has a way."""
    return {"spark-submit": _spark_submit, "container": _container, "pod": _pod}[kind](job, tee, application)


def exit_code(operator: Any, error: BaseException) -> int:
    """The command's exit code, from a failed operator: its pod's state, or the sentence; 1 where neither has it."""
    status = getattr(getattr(operator, "remote_pod", None), "status", None)
    for container in getattr(status, "container_statuses", None) or ():
        if container.name == operator.base_container_name and container.state and container.state.terminated:
            return int(container.state.terminated.exit_code)
    for pattern in _CODES:
        found = re.findall(pattern, str(error))
        if found:
            return int(found[-1])
    return 1


def _spark_submit(job: Job, tee: Any, application: Path | None) -> Any:
    from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

    from mmrec.lake.jars import shipped

    class Submit(SparkSubmitOperator):
        """SparkSubmitOperator that lets its log be read; it returns nothing of what the application prints."""

        def _get_hook(self) -> Any:
            hook = super()._get_hook()
            plain = hook._process_spark_submit_log

            def both(lines: Any) -> None:
                def read() -> Any:
                    for line in lines:
                        tee(line.rstrip("\n"))
                        yield line

                plain(read())

            hook._process_spark_submit_log = both
            return hook

    # Delta has to be there before the first session is; an image that has it says so in [spark] options
    spark, ship = job.config.spark, shipped(job.config.spark)
    given = {"spark.jars", "spark.jars.packages"} & set(spark.options)
    quiet = "spark.driver.extraJavaOptions"
    return Submit(
        task_id=job.task_id,
        jars=None if given else ship["jars"],
        py_files=ship["py_files"],
        files=ship["files"] or None,
        application=str(application or _application()),
        application_args=list(job.words[1:]),  # jobs/step.py takes the words of `mmrec steps`
        conn_id=job.config.airflow.connection,
        conf={"spark.driver.memory": spark.memory, quiet: ship[quiet], **spark.options},
        env_vars={"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, **job.env},
        name=f"mmrec-{job.task_id}",
    )


def _container(job: Job, _tee: Any, _application: Path | None) -> Any:
    from airflow.providers.docker.operators.docker import DockerOperator
    from docker.types import DeviceRequest, Mount

    home = str(job.config.home)
    gpu = [DeviceRequest(count=-1, capabilities=[["gpu"]])] if job.config.device == "cuda" else None
    return DockerOperator(
        task_id=job.task_id,
        image=job.config.airflow.image,
        command=["python", "-m", "mmrec", *job.words],
        environment=dict(job.env),
        mounts=[Mount(source=home, target=home, type="bind")],
        mount_tmp_dir=False,  # TMPDIR lies in the home
        user=f"{os.getuid()}:{os.getgid()}",  # what it writes is ours
        cpus=job.config.threads,
        device_requests=gpu,
        xcom_all=True,
        auto_remove="force",
    )


def _pod(job: Job, tee: Any, _application: Path | None) -> Any:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import models as k8s

    def formatted(_container: str, line: str) -> str:
        tee(line)
        return line

    gpu = k8s.V1ResourceRequirements(limits={"nvidia.com/gpu": "1"}) if job.config.device == "cuda" else None
    claimed = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=VOLUME)
    return KubernetesPodOperator(
        task_id=job.task_id,
        name=f"mmrec-{job.task_id.replace('_', '-')}",
        namespace=job.config.airflow.namespace,
        image=job.config.airflow.image,
        cmds=["python", "-m", "mmrec"],
        arguments=list(job.words),
        env_vars=dict(job.env),
        volumes=[k8s.V1Volume(name=VOLUME, persistent_volume_claim=claimed)],
        volume_mounts=[k8s.V1VolumeMount(name=VOLUME, mount_path=str(job.config.home))],
        container_resources=gpu,
        get_logs=True,
        log_formatter=formatted,
        log_pod_spec_on_failure=False,
        durable=False,  # a retry begins anew: the pod of the attempt before is not to be joined
        deferrable=False,
    )


def _application() -> Path:
    """jobs/step.py: beside the folder of DAGs, or beside the package in a checkout."""
    from airflow.sdk.configuration import conf

    places = [Path(conf.get("core", "dags_folder")).parent, Path(mmrec.__file__).parents[1]]
    for place in places:
        if (place / "jobs" / "step.py").is_file():
            return place / "jobs" / "step.py"
    raise InputError("there is no jobs/step.py for spark-submit", where="airflow.runner", value="spark-submit",
                     valid=[str(p / "jobs" / "step.py") for p in places], next="copy jobs/ beside dags/")  # fmt: skip


def _short(error: BaseException) -> str:
    return str(error)[-1500:]
