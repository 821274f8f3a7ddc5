"""The local stack without containers: Airflow standalone, MLflow's server, and a page of links, over one home.

In: a home that `make demo` or `mmrec init` made. Out: three servers on loopback, each in a session of its own, and
`<home>/stack/running.json`, which says who they are; `down` ends those and nothing else.
Trade-off: on loopback everyone on the machine is let in as admin, as the pages of a demo should be; nothing listens for
other machines but Airflow's log server, which asks for a signed token.
"""

from __future__ import annotations

import html
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from mmrec import config as settings
from mmrec.errors import InputError, MmrecError, TransientError
from mmrec.lake.store import Lake

ROOT = Path(__file__).resolve().parents[2]
Home = Annotated[Path, typer.Option(help="the home that is served")]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def environment(home: Path, port: int, **more: str) -> dict[str, str]:
    """Airflow's settings for a home: SQLite and logs below `<home>/airflow`, the DAGs of this checkout.

    Args:
        port: of Airflow's page and API. more: further variables, which go before these.
    """
    return os.environ | {
        "MMREC_HOME": str(home),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_any_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(_any_port()),
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",  # one machine: the pause between tasks is felt
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    } | more  # fmt: skip


def airflow(env: dict[str, str], *words: str) -> str:
    """Airflow's own command line; its output. TransientError where it fails."""
    done = subprocess.run([sys.executable, "-m", "airflow", *words], env=env, capture_output=True, text=True)
    if done.returncode:
        raise TransientError(f"airflow {' '.join(words)} failed", where=env["AIRFLOW_HOME"],
                             value=(done.stdout + done.stderr)[-1500:], next="make down, then make up")  # fmt: skip
    return done.stdout


def prepare(env: dict[str, str]) -> None:
    """Airflow's database and the pools that the DAGs name."""
    Path(env["AIRFLOW_HOME"]).mkdir(parents=True, exist_ok=True)
    airflow(env, "db", "migrate")
    airflow(env, "pools", "import", str(ROOT / "infra" / "airflow" / "pools.json"))


@app.command()
def up(
    home: Home = Path("demo/builtin"),
    airflow_port: int = 8080,
    mlflow_port: int = 5000,
    page_port: int = 8000,
    wait_s: float = 180,
) -> None:
    """Start what does not run yet, wait until it answers, print where it is."""
    home = home.absolute()
    config = settings.load(home)
    if not (home / "mmrec.toml").is_file():
        raise InputError("there is no home here", where="--home", value=str(home), valid="a home", next="make demo")
    Lake(config.lake).made()
    running = _running(home)
    ports = {"airflow": airflow_port, "mlflow": mlflow_port, "page": page_port}
    ports |= {name: about["port"] for name, about in running.items()}  # what runs stays where it is
    for name, about in _told(home).items():
        if name not in running:  # it died, and may have left children that hold its port
            _end(about)
    for name in ports.keys() - running.keys():
        _free(name, ports[name])
    env = environment(home, ports["airflow"])
    if "airflow" not in running:
        print("preparing Airflow's database", flush=True)
        prepare(env)
    www = home / "stack" / "www"
    _page(home, config.tracking, ports, www)
    python = [sys.executable, "-m"]
    commands = {
        "airflow": [*python, "airflow", "standalone"],
        "mlflow": [*python, "mlflow", "server", "--backend-store-uri", config.tracking, "--host", "127.0.0.1",
                   "--port", str(ports["mlflow"]), "--artifacts-destination", str(home / "mlartifacts"),
                   "--workers", "1"],
        "page": [*python, "http.server", str(ports["page"]), "--bind", "127.0.0.1", "--directory", str(www)],
    }  # fmt: skip
    for name, command in commands.items():
        if name not in running:
            running[name] = _start(home, name, command, env) | {"port": ports[name]}
            _save(home, running)
    at = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    for name, path in {"airflow": "/api/v2/monitor/health", "mlflow": "/health", "page": "/"}.items():
        _wait(home, name, at[name] + path, running[name], wait_s)
    print(f"page     {at['page']}    links to everything\nAirflow  {at['airflow']}\nMLflow   {at['mlflow']}")
    print("next: open the page; `make down` ends these three")


@app.command()
def down(home: Home = Path("demo/builtin")) -> None:
    """End what `up` started, and only that."""
    home = home.absolute()
    ended = [f"{name} ({about['pid']})" for name, about in _told(home).items() if _end(about)]
    (home / "stack" / "running.json").unlink(missing_ok=True)
    print("\n".join(f"ended {e}" for e in ended) or "nothing of it runs")


def _told(home: Path) -> dict[str, dict[str, Any]]:
    """What `up` started, whether it lives or not: name -> pid, when it was born, port."""
    path = home / "stack" / "running.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _running(home: Path) -> dict[str, dict[str, Any]]:
    """What `up` started and is still the same process."""
    return {name: about for name, about in _told(home).items() if _same(about)}


def _same(about: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(about["pid"])
        return process.create_time() == about["born"] and _lives(process)
    except psutil.NoSuchProcess:
        return False


def _lives(process: psutil.Process) -> bool:
    """Whether it runs; one that only waits to be buried, which in a container may take forever, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _save(home: Path, running: dict[str, dict[str, Any]]) -> None:
    path = home / "stack" / "running.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(running, indent=1))
    part.replace(path)


def _start(home: Path, name: str, command: list[str], env: dict[str, str]) -> dict[str, Any]:
    folder = home / "stack"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                                   start_new_session=True)  # fmt: skip
    return {"pid": process.pid, "born": psutil.Process(process.pid).create_time()}


def _end(about: dict[str, Any], grace_s: float = 15) -> bool:
    """SIGTERM to what was started and all that it started, SIGKILL to what stays; whether there was anything."""
    tree = found = [p for p in _theirs(about) if _lives(p)]
    for sig in (signal.SIGTERM, signal.SIGKILL):
        for process in tree:
            try:
                process.send_signal(sig)
            except psutil.NoSuchProcess:
                continue
        end = time.monotonic() + grace_s
        while (tree := [p for p in tree if _lives(p)]) and time.monotonic() < end:
            time.sleep(0.05)
    return bool(found)


def _theirs(about: dict[str, Any]) -> list[psutil.Process]:
    """A process that was started, its descendants, and its session: where it was killed, its children live on."""
    tree: list[psutil.Process] = []
    try:
        leader = psutil.Process(about["pid"])
        if leader.create_time() != about["born"]:  # the number is another's by now, so the session is empty
            return []
        tree = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        pass
    return tree + [p for p in psutil.process_iter() if p not in tree and _session(p.pid) == about["pid"]]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _any_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _free(name: str, port: int) -> None:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            raise InputError("the port is taken", where=f"--{name}-port", value=port, valid="a free port",
                             next=f"make up UP='--{name}-port {port + 1}'") from None  # fmt: skip


def _wait(home: Path, name: str, url: str, about: dict[str, Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    print(f"{name} answers", flush=True)
                    return
        except OSError:
            time.sleep(0.5)
        if not _same(about):
            break
    log = home / "stack" / f"{name}.log"
    raise TransientError(f"{name} does not answer", where=str(log), value=log.read_text(errors="replace")[-1500:],
                         next="make down, then make up")  # fmt: skip


def _page(home: Path, tracking: str, ports: dict[str, int], www: Path) -> None:
    """The page of links; reports are linked into the folder it is served from."""
    www.mkdir(parents=True, exist_ok=True)
    reports = www / "reports"
    if not reports.is_symlink():
        reports.symlink_to(Path("..", "..", "reports"), target_is_directory=True)  # a copied home shows its own
    lake = Lake(home / "lake")
    days = lake.run_dates()
    last = str(days[-1]) if days else None
    a, m = f"http://127.0.0.1:{ports['airflow']}", f"http://127.0.0.1:{ports['mlflow']}"
    report = f"reports/{last}/report.html"
    rows = [
        ("reports/", "All reports", "a folder a night, those of nights to come as well"),
        (f"{a}/dags/nightly", "The night", "Airflow: graph, runs, logs; trigger it for a date of your own"),
        (f"{a}/dags/training", "Training", "Airflow: weekly, and when the night says that it is due"),
        (f"{a}/assets", "Assets", "what a team's own DAG can wait for, as gold.recommendations"),
        (f"{m}/#/models", "Models", "MLflow: every version, its metrics, which one is champion"),
        (f"{m}/#/experiments", "Experiments", "MLflow: every training, its settings and curves"),
    ]
    if last and (www / report).is_file():
        rows.insert(0, (report, f"Report of {last}", "what was published, for whom, how good, how fresh"))
    links = "\n".join(f'<li><a href="{html.escape(u)}">{html.escape(t)}</a><span>{html.escape(d)}</span></li>'
                      for u, t, d in rows)  # fmt: skip
    commands = [f"mmrec tables --home {home}", f"mmrec verify --home {home}",
                f'mmrec sql --home {home} "select * from latest_recommendations limit 5"']  # fmt: skip
    words = "\n".join(html.escape(c) for c in commands)
    summary = f"{len(days)} nights, the last of {last}" if days else "no night yet"
    (www / "index.html").write_text(_HTML.format(home=html.escape(str(home)), links=links, words=words,
                                                 summary=summary, tracking=html.escape(tracking)))  # fmt: skip


_HTML = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mmrec</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 46rem; margin: 3rem auto; padding: 0 1rem; }}
 h1 {{ font-size: 1.5rem; margin: 0; }} p {{ color: #4b5563; margin: .25rem 0 1.5rem; }}
 ul {{ list-style: none; padding: 0; border-top: 1px solid #e5e7eb; }}
 li {{ display: grid; grid-template-columns: 13rem 1fr; gap: 1rem; padding: .6rem 0;
       border-bottom: 1px solid #e5e7eb; }}
 a {{ color: #1d4ed8; font-weight: 600; }} span {{ color: #4b5563; }}
 pre {{ background: #f3f4f6; padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; font-size: .85rem; }}
</style>
<h1>mmrec</h1><p>{summary}; home <code>{home}</code></p>
<ul>
{links}
</ul>
<p>In a terminal:</p>
<pre>{words}</pre>
</html>
"""


if __name__ == "__main__":
    try:
        app()
    except MmrecError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
