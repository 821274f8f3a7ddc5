"""`make up` and `make down`: three servers on loopback that answer, a page whose links lead somewhere, and nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import psutil
import pytest

from mmrec import config
from tests.conftest import mmrec
from tests.waiting import free_port

ROOT, DAY = Path(__file__).parents[2], "2026-03-02"
LOG_SERVERS = ("AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT", "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT")


def stack(*words: object, ok: int = 0) -> subprocess.CompletedProcess[str]:
    """`python infra/local/stack.py`, as the Makefile calls it."""
    done = subprocess.run([sys.executable, str(ROOT / "infra" / "local" / "stack.py"), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == ok, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def listening() -> socket.socket:
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen()
    return s


def sleeper(**more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], start_new_session=True, **more)


def running(home: Path, **about: dict[str, Any]) -> Path:
    path = home / "stack" / "running.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about))
    return path


def born(pid: int) -> float:
    return psutil.Process(pid).create_time()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bare") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    return home


@pytest.fixture(scope="module")
def night(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one published night and its report."""
    home = tmp_path_factory.mktemp("night") / "home"
    shutil.copytree(bare, home)
    config.write(home, {"source": {"spec": "builtin", "size": "tiny"}, "night": {"text": "", "image": ""}})
    mmrec("run", "--home", str(home), "--date", DAY, "--no-train")
    return home


# what stops it


def test_a_folder_that_is_no_home_and_one_without_a_lake_are_told_what_makes_them_one(tmp_path: Path) -> None:
    said = stack("up", "--home", tmp_path / "nowhere", ok=2).stderr
    assert "there is no home here" in said
    assert str(tmp_path / "nowhere") in said
    assert "make demo" in said
    config.write(tmp_path / "home", {})
    said = stack("up", "--home", tmp_path / "home", ok=2).stderr
    assert "this home has no lake yet" in said
    assert f"mmrec init --home {tmp_path / 'home'}" in said
    assert [p.name for p in tmp_path.rglob("*")] == ["home", "mmrec.toml"]
    assert "nothing of it runs" in stack("down", "--home", tmp_path / "home").stdout


@pytest.mark.parametrize("name", ["airflow", "mlflow", "page"])
def test_a_port_that_is_taken_is_named_with_the_words_that_take_another_and_nothing_starts(bare: Path, name: str) -> None:
    with listening() as taken:
        port = taken.getsockname()[1]
        ports = {n: port if n == name else free_port() for n in ("airflow", "mlflow", "page")}
        said = stack("up", "--home", bare, *(w for n, p in ports.items() for w in (f"--{n}-port", p)), ok=2).stderr
    assert "the port is taken" in said
    assert f"where: --{name}-port" in said
    assert f"value: {port}" in said
    assert f"make up UP='--{name}-port {port + 1}'" in said
    assert not (bare / "stack").exists()
    assert not (bare / "airflow").exists()


# what it ends


def test_another_process_that_has_got_the_number_is_not_ended(tmp_path: Path) -> None:
    other = sleeper()
    try:
        path = running(tmp_path, page={"pid": other.pid, "born": born(other.pid) - 60, "port": 1})
        assert "nothing of it runs" in stack("down", "--home", tmp_path).stdout
        assert alive(other.pid)
        assert not path.exists()
    finally:
        other.kill()
        other.wait()


def test_the_process_itself_is_ended_with_its_children_and_a_number_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    gone = sleeper()
    gone.kill()
    gone.wait()
    innocent = sleeper()
    shell = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600 & wait"], start_new_session=True)
    try:
        while len(children := psutil.Process(shell.pid).children(recursive=True)) < 2:
            time.sleep(0.01)
        running(tmp_path, page={"pid": shell.pid, "born": born(shell.pid), "port": 1}, mlflow={"pid": gone.pid, "born": 1.0, "port": 2})
        told = stack("down", "--home", tmp_path).stdout
        assert told == f"ended page ({shell.pid})\n"
        assert not any(alive(p.pid) for p in (*children, psutil.Process(shell.pid)))
        assert alive(innocent.pid)
    finally:
        for p in (shell, innocent):
            p.kill()
            p.wait()


def test_children_of_a_server_that_was_killed_are_ended_too(tmp_path: Path) -> None:
    shell = subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True)
    while not (children := psutil.Process(shell.pid).children()):
        time.sleep(0.01)
    try:
        running(tmp_path, airflow={"pid": shell.pid, "born": born(shell.pid), "port": 1})
        shell.kill()
        shell.wait()
        assert alive(children[0].pid)
        assert "ended airflow" in stack("down", "--home", tmp_path).stdout
        assert not alive(children[0].pid)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            children[0].kill()


# the real thing


@dataclass(frozen=True)
class Up:
    """A home whose three servers run, what `up` told, and somebody else's process."""

    home: Path
    ports: dict[str, int]
    told: str
    innocent: subprocess.Popen[bytes]

    def at(self, name: str, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def started(self) -> dict[str, Any]:
        return json.loads((self.home / "stack" / "running.json").read_text())

    def processes(self) -> list[psutil.Process]:
        """Every process that was started for this home, whoever its parent is by now."""
        found = []
        for p in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if p.environ().get("MMREC_HOME") == str(self.home) and p.status() != psutil.STATUS_ZOMBIE:
                    found.append(p)
        return found


@pytest.fixture(scope="module")
def up(night: Path) -> Iterator[Up]:
    ports = {name: free_port() for name in ("airflow", "mlflow", "page")}
    innocent = sleeper()
    try:
        told = stack("up", "--home", night, *(w for n, p in ports.items() for w in (f"--{n}-port", p)), "--wait-s", 300).stdout
        yield Up(night, ports, told, innocent)
    finally:
        innocent.kill()
        innocent.wait()
        stack("down", "--home", night)


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.status, answer.read().decode(errors="replace")


def test_up_tells_where_everything_is_and_each_part_is_well(up: Up) -> None:
    assert all(up.at(name, "") in up.told for name in up.ports)
    assert set(up.started()) == set(up.ports)
    parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
    end = time.monotonic() + 120
    while True:
        health = json.loads(get(up.at("airflow", "/api/v2/monitor/health"))[1])
        if all(health[p]["status"] == "healthy" for p in parts) or time.monotonic() > end:
            break
        time.sleep(1)
    assert {p: health[p]["status"] for p in parts} == dict.fromkeys(parts, "healthy")
    assert get(up.at("mlflow", "/health")) == (200, "OK")
    assert "experiments" in get(up.at("mlflow", "/ajax-api/2.0/mlflow/experiments/search?max_results=5"))[1]


def test_every_link_of_the_page_leads_somewhere(up: Up) -> None:
    status, page = get(up.at("page"))
    assert status == 200
    assert "1 nights, the last of 2026-03-02" in page
    links = re.findall(r'href="([^"]+)"', page)
    assert f"reports/{DAY}/report.html" in links
    for name in ("airflow", "mlflow"):
        assert any(link.startswith(up.at(name)) for link in links)
    for link in links:
        assert get(urljoin(up.at("page"), link))[0] == 200, link
    assert DAY in get(urljoin(up.at("page"), f"reports/{DAY}/report.html"))[1]


def test_nothing_listens_for_other_machines_but_airflows_log_servers(up: Up) -> None:
    theirs = up.processes()
    leaders = {about["pid"] for about in up.started().values()}
    assert leaders <= {p.pid for p in theirs}
    env = psutil.Process(up.started()["airflow"]["pid"]).environ()
    named = {int(env[name]) for name in LOG_SERVERS}
    # whatever is asked for is found, also what a child that lost its environment holds; a short-lived one may end meanwhile
    tree = set(theirs)
    for p in theirs:
        with contextlib.suppress(psutil.NoSuchProcess):
            tree.update(p.children(recursive=True))
    open_at = set()
    for p in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            open_at |= {(c.laddr.ip, c.laddr.port) for c in p.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    assert {("127.0.0.1", port) for port in up.ports.values()} <= open_at
    strangers = {(ip, port) for ip, port in open_at if ip != "127.0.0.1"}
    assert {port for _, port in strangers} <= named, strangers


def test_a_second_up_starts_nothing_and_finds_what_runs_whatever_ports_it_is_given(up: Up) -> None:
    before, processes = up.started(), {(p.pid, p.create_time()) for p in up.processes()}
    leaders = {(about["pid"], about["born"]) for about in before.values()}
    told = stack("up", "--home", up.home).stdout
    assert "preparing" not in told
    assert all(up.at(name, "") in told for name in up.ports)
    assert up.started() == before
    assert leaders <= {(p.pid, p.create_time()) for p in up.processes()} & processes
    page = get(up.at("page"))[1]
    assert up.at("airflow", "/dags/nightly") in page


def test_a_server_that_died_is_started_again_and_the_others_are_left(up: Up) -> None:
    before = up.started()
    os.kill(before["page"]["pid"], signal.SIGKILL)
    while alive(before["page"]["pid"]):
        time.sleep(0.01)
    stack("up", "--home", up.home, "--page-port", up.ports["page"])
    after = up.started()
    assert {n: after[n] for n in ("airflow", "mlflow")} == {n: before[n] for n in ("airflow", "mlflow")}
    assert after["page"]["pid"] != before["page"]["pid"]
    assert get(up.at("page"))[0] == 200


def test_down_ends_all_three_and_nobody_else_and_what_was_made_stays(up: Up) -> None:
    started, theirs = up.started(), up.processes()
    assert len(theirs) > 5
    told = stack("down", "--home", up.home).stdout
    assert sorted(told.splitlines()) == sorted(f"ended {name} ({about['pid']})" for name, about in started.items())
    assert up.processes() == []
    assert not [p for p in theirs if alive(p.pid) and p.is_running()]
    for port in up.ports.values():
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.1", port)) != 0
    assert alive(up.innocent.pid)
    assert "nothing of it runs" in stack("down", "--home", up.home).stdout
    assert (up.home / "airflow" / "airflow.db").is_file()
    assert json.loads(mmrec("verify", "--home", str(up.home), "--json").stdout)["ok"]


def test_a_copied_home_shows_its_own_reports_and_no_report_that_is_not_there(up: Up, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(up.home, copied, symlinks=True)
    shutil.rmtree(up.home / "reports" / DAY)
    assert (copied / "stack" / "www" / "reports" / DAY / "report.html").read_text().startswith("<!")
    code = (f"import runpy; m = runpy.run_path({str(ROOT / 'infra' / 'local' / 'stack.py')!r}); from pathlib import Path\n"
            f"m['_page'](Path({str(up.home)!r}), 'x', {{'airflow': 1, 'mlflow': 2}}, Path({str(up.home / 'stack' / 'www')!r}))")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
    page = (up.home / "stack" / "www" / "index.html").read_text()
    assert "the last of 2026-03-02" in page
    assert "report.html" not in page
