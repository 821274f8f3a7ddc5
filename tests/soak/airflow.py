"""A real Airflow over one home, as a supervisor runs it: its components as processes, its REST API, its database.

`Airflow(home, folder, db)` on SQLite is `airflow standalone`; on PostgreSQL, a server of its own on loopback and the
four components with LocalExecutor. What is killed is started again by `restart`, as systemd would.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import free_port, until

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "infra" / "local"))

import stack  # noqa: E402

# how soon a lost task is noticed; the defaults are for clusters of hundreds
PROMPT = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
}
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
POSTGRES = Path("/usr/lib/postgresql")


class Postgres:
    """Debian's server on a loopback port, its files in a folder; root lets the user postgres run it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder / "pg", free_port()
        if not any(POSTGRES.glob("*/bin/initdb")) and os.geteuid() == 0 and shutil.which("apt-get"):
            for words in (["update"], ["install", "-y", "--no-install-recommends", "postgresql"]):
                subprocess.run(["apt-get", "-q", *words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})  # fmt: skip
        self.bin = max(POSTGRES.glob("*/bin"), key=lambda p: int(p.parent.name))
        self.user = "postgres" if os.geteuid() == 0 else getpass.getuser()

    def start(self) -> Postgres:
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            if os.geteuid() == 0:
                shutil.chown(self.folder, "postgres", "postgres")
                for up in (self.folder.parent, *self.folder.parent.parents):
                    if up.stat().st_uid == 0 and up != Path("/") and not up.stat().st_mode & 0o001:
                        up.chmod(up.stat().st_mode | 0o011)  # pytest's folders are for their owner alone
            self._run("initdb", "-D", str(self.folder), "-A", "trust", "-U", "airflow", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", str(self.folder), "-w", "-l", str(self.folder / "log"), "-o", options, "start")
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "airflow", "airflow")
        return self

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder), "-m", "immediate", "stop", check=False)

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/airflow"

    def _run(self, name: str, *words: str, check: bool = True) -> None:
        command = [str(self.bin / name), *words]
        if os.geteuid() == 0:
            command = ["runuser", "-u", self.user, "--", *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")
        if check and done.returncode:
            raise AssertionError(f"{name}: {done.stdout[-1000:]}")


@dataclass
class Airflow:
    home: Path
    folder: Path
    db: str = "sqlite"
    more: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    postgres: Postgres | None = None

    def start(self) -> Airflow:
        self.folder.mkdir(parents=True, exist_ok=True)
        more = PROMPT | {"AIRFLOW_HOME": str(self.folder / "airflow")} | self.more
        if self.db == "postgres":
            self.postgres = Postgres(self.folder).start()
            more |= {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.postgres.url, "AIRFLOW__CORE__EXECUTOR": "LocalExecutor"}
        self.env = stack.environment(self.home, self.port, **more)
        stack.prepare(self.env)
        for name in ("standalone",) if self.db == "sqlite" else COMPONENTS:
            self.restart(name)
        until("Airflow answers", lambda: self.get("monitor/health")["scheduler"]["status"] == "healthy", 120)
        until("the DAGs are there", lambda: {d["dag_id"] for d in self.get("dags")["dags"]} >= {"nightly", "training"}, 120)
        return self

    def restart(self, name: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen([sys.executable, "-m", "airflow", name], env=self.env, stdout=log, stderr=log,
                                                stdin=subprocess.DEVNULL, start_new_session=True, cwd=self.folder)  # fmt: skip

    def end(self, name: str) -> None:
        process = self.processes[name]
        if process.poll() is None:
            stack._end({"pid": process.pid, "born": psutil.Process(process.pid).create_time()}, 5)
        process.wait()

    def stop(self) -> None:
        for name in self.processes:
            self.end(name)
        if self.postgres:
            self.postgres.stop()

    # -- what runs

    def tree(self) -> list[psutil.Process]:
        found = []
        for process in self.processes.values():
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

    def named(self, *words: str) -> list[psutil.Process]:
        """Processes of this Airflow whose title or command holds all the words."""
        found = []
        for process in self.tree():
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(w in title for w in words):
                found.append(process)
        return found

    def kill(self, what: str) -> None:
        """kill -9, while a command of ours runs, of: the scheduler; the executor's worker that supervises the task; the
        task's own process; the command that the task runs."""
        for process in until(f"a {what} at work", lambda: self.victims(what), 90):
            process.send_signal(signal.SIGKILL)

    def victims(self, what: str) -> list[psutil.Process]:
        # of a night, not of a training beside it; and not the guard, whose command holds the same words
        commands = [p for p in self.named("-m mmrec steps world") if "guard.py" not in " ".join(p.cmdline())]
        if what == "command" or not commands:
            return commands
        if what == "scheduler":
            return self.named("airflow scheduler")
        above = {p.pid: p for c in commands for p in c.parents()}
        titles = {p: " ".join(p.cmdline()) for p in above.values()}
        return [p for p, t in titles.items() if t.startswith("airflow worker") and ("LocalExecutor" in t) == (what == "worker")]

    # -- the API

    def call(self, method: str, path: str, body: Any = None, again: int = 10) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v2/{path}", method=method,
                                         data=None if body is None else json.dumps(body).encode())  # fmt: skip
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {self._token()}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            told = f"{method} {path}: {error.code} {error.read()[:500]!r}"
            if error.code in (500, 503) and again:  # SQLite was locked; 503 when a backfill was asked for
                time.sleep(2)
                return self.call(method, path, body, again - 1)
            raise AssertionError(told) from None

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def _token(self) -> str:
        if not hasattr(self, "_bearer"):
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/auth/token", timeout=30) as answer:
                self._bearer = json.load(answer)["access_token"]
        return self._bearer

    def trigger(self, dag: str, **conf: Any) -> str:
        return self.call("POST", f"dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"]

    def backfill(self, dag: str, start: str, end: str, **conf: Any) -> int:
        return self.call("POST", "backfills", {"dag_id": dag, "from_date": start, "to_date": end, "dag_run_conf": conf,
                                               "max_active_runs": 2, "reprocess_behavior": "none"})["id"]  # fmt: skip

    def runs(self, dag: str) -> list[dict[str, Any]]:
        return self.get(f"dags/{dag}/dagRuns?limit=100&order_by=run_after")["dag_runs"]

    def run(self, dag: str, run_id: str) -> dict[str, Any]:
        return next(r for r in self.runs(dag) if r["dag_run_id"] == run_id)

    def tasks(self, dag: str, run_id: str) -> dict[str, dict[str, Any]]:
        rows = self.get(f"dags/{dag}/dagRuns/{urllib.parse.quote(run_id)}/taskInstances?limit=100")["task_instances"]
        return {t["task_id"]: t for t in rows}

    def done(self, dag: str, count: int, seconds: float) -> list[dict[str, Any]]:
        """All runs of a DAG, once `count` of them have ended and none goes on."""

        def ended() -> list[dict[str, Any]] | None:
            runs = self.runs(dag)
            return runs if len([r for r in runs if r["state"] in ("success", "failed")]) >= count and all(
                r["state"] in ("success", "failed") for r in runs) else None  # fmt: skip

        return until(f"{count} runs of {dag} end", ended, seconds)

    def red(self, dag: str) -> list[str]:
        """What is not green, with the end of the log of each failed task."""
        found = []
        for run in self.runs(dag):
            if run["state"] != "success":
                tasks = {k: t["state"] for k, t in self.tasks(dag, run["dag_run_id"]).items()}
                found.append(f"{run['dag_run_id']} {run['state']} {tasks}")
        return found
