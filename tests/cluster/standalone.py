"""A real Spark standalone cluster on loopback: one master, any number of workers, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mmrec.config import SparkConfig
from mmrec.lake.jars import shipped
from mmrec.lake.java import environment, submit
from tests.waiting import free_port, until

ROOT = Path(__file__).parents[2]


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


@dataclass
class Cluster:
    folder: Path
    port: int = field(default_factory=free_port)
    web: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def master(self) -> str:
        return f"spark://127.0.0.1:{self.port}"

    def start(self, workers: int = 2) -> Cluster:
        self._run("master", "Master", "--host", "127.0.0.1", "--port", str(self.port), "--webui-port", str(self.web))
        until("the master answers", lambda: fetch(f"http://127.0.0.1:{self.web}/json/")["status"] == "ALIVE")
        for n in range(workers):
            self.add_worker(f"worker-{n}")
        until("the workers are there", lambda: len(self.alive()) == workers)
        return self

    def alive(self) -> list[dict[str, Any]]:
        return [w for w in fetch(f"http://127.0.0.1:{self.web}/json/")["workers"] if w["state"] == "ALIVE"]

    def add_worker(self, name: str) -> None:
        self._run(name, "Worker", "--host", "127.0.0.1", "--cores", "1", "--memory", "1g", "--webui-port", "0",
                  "--work-dir", str(self.folder / name), self.master)  # fmt: skip

    def commands(self, name: str) -> list[list[str]]:
        """What runs below a worker: executors, and the Python that they start."""
        found = []
        for process in psutil.Process(self.processes[name].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append(process.cmdline())
        return found

    def kill(self, name: str) -> None:
        """kill -9 of a worker and of its executors, as when a machine goes."""
        worker = psutil.Process(self.processes[name].pid)
        for process in (worker, *worker.children(recursive=True)):
            process.send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()

    def submit(self, *words: str, conf: dict[str, str] | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """spark-submit of jobs/step.py, the package shipped with it."""
        ship = shipped(SparkConfig())
        options = {"spark.executor.memory": "700m", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
                   "spark.executor.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"} | (conf or {})  # fmt: skip
        options["spark.driver.extraJavaOptions"] = ship["spark.driver.extraJavaOptions"] + " -XX:TieredStopAtLevel=1"
        command = [str(submit()), "--master", self.master, "--jars", ship["jars"], "--py-files", ship["py_files"], *(["--files", ship["files"]] if ship["files"] else []), *(w for k, v in options.items() for w in ("--conf", f"{k}={v}")),
                   str(ROOT / "jobs" / "step.py"), *words]  # fmt: skip
        return subprocess.Popen(command, env=environment() | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                cwd=self.folder)  # fmt: skip

    def _run(self, name: str, cls: str, *words: str) -> None:
        env = environment() | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m", "SPARK_NO_DAEMONIZE": "1"}
        log = (self.folder / f"{name}.log").open("wb")
        self.processes[name] = subprocess.Popen([str(Path(env["SPARK_HOME"]) / "bin" / "spark-class"), f"org.apache.spark.deploy.{cls.lower()}.{cls}", *words],
                                                env=env, stdout=log, stderr=log, start_new_session=True, cwd=self.folder)  # fmt: skip


def events(folder: Path) -> list[dict[str, Any]]:
    """What Spark's event log of the one application in `folder` says."""
    files = [p for p in folder.rglob("*") if p.is_file() and re.search(r"app-|events_", p.name) and "appstatus" not in p.name]
    return [json.loads(line) for p in sorted(files) for line in p.read_text().splitlines()]


