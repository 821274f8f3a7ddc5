"""What MLflow is told of a training that ended: a run, a registered version.

In: files of a training (state.json, metrics.json, machine.json, its sealed bundle). Out: a run with settings, tables,
curves, numbers, the machine's load and plots; the bundle as its artifact; a version, once for each digest.
A training asks no server: all of this is done after it, and again by whoever comes next, if a server is down.
Trade-off: while a training runs, MLflow's page does not show it; its progress is on the terminal.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from filelock import FileLock

import mmrec
from mmrec import schema
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import SEAL, Bundle
from mmrec.bundle.card import FILE
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.holding import login

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

_MACHINE = "machine.json"
_DESCRIBED = 5000  # characters that MLflow keeps of a description
_DIGEST = "mmrec.sha256"  # tag of a run: the bundle it is of
_EVERY_S = 10.0
_AT_ONCE = 900  # numbers of a call; MLflow takes a thousand


@contextmanager
def watched(folder: Path, every_s: float = _EVERY_S) -> Iterator[None]:
    """Write the machine's load meanwhile to `machine.json`: what MLflow's own monitors see, at moments."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_of_gpus()]
    rows: list[dict[str, float]] = []
    ended = threading.Event()

    def look() -> None:
        row = {"at_ms": int(time() * 1000)}
        for monitor in monitors:
            monitor.collect_metrics()
            row |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        rows.append(row)

    def on() -> None:
        monitors[0].collect_metrics()  # the processor's load is that since a thread last asked
        monitors[0].clear_metrics()
        while not ended.wait(every_s):
            look()
        look()

    thread = threading.Thread(target=on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MACHINE).write_text(json.dumps(rows))


def recorded(config: Config, folder: Path, bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Make the run and the version, or complete them. Returns: their ids.

    Args:
        folder: of the training. rows: of ops.metrics.

    Raises: TransientError: the server does not answer; what it knows by then is completed by the next call.
    """
    state = json.loads((folder / "state.json").read_text())
    with FileLock(folder / "register.lock"), server.answering(config, telling=True):
        client = server.client(config)
        run = _run(config, client, state, bundle)
        _numbers(client, run, state, folder, rows, ended_ms := int((bundle.folder / SEAL).stat().st_mtime * 1000))
        with server.patient():
            client.log_artifacts(run, str(bundle.folder), "bundle")
            for name, figure in _plots(rows):
                client.log_figure(run, figure, f"plots/{name}.png")
        summary = (bundle.folder / FILE).read_text(encoding="utf-8")[:_DESCRIBED]
        version = registry.register(config, bundle.folder, run, bundle.about | {"summary": summary})
        if client.get_run(run).info.status != "FINISHED":
            client.set_terminated(run, end_time=ended_ms)
    return run, version


def _run(config: Config, client: MlflowClient, state: Mapping[str, Any], bundle: Bundle) -> str:
    """The run of this bundle, made on first use."""
    experiment = server.experiment(config, "mmrec/train")
    found = client.search_runs([experiment], f"tags.`{_DIGEST}` = '{bundle.digest}'")
    inputs = _inputs(config, state["tables"], bundle.about["as_of"])
    if found:
        if not found[0].inputs.dataset_inputs:
            client.log_inputs(found[0].info.run_id, inputs)
        return str(found[0].info.run_id)
    tags = {"run_date": state["run_date"], "as_of": bundle.about["as_of"], "mmrec": mmrec.__version__}
    tags |= {f"table.{n}": str(v) for n, v in state["tables"].items()}
    tags |= {f"encoder.{m}": v for m, v in state["encoders"].items()}
    tags |= {f"fields.{m}": v for m, v in state["fields"].items()}
    tags |= {f"left_out.{what}": str(n) for what, n in state["left_out"].items()}
    tags |= {"mlflow.user": _user(), "mlflow.source.name": f"mmrec train --date {state['run_date']}",
             "mlflow.source.type": "JOB"}  # fmt: skip
    tags |= {_DIGEST: bundle.digest, "mlflow.note.content": (bundle.folder / FILE).read_text(encoding="utf-8")}
    name = f"train {state['run_date']}"
    with server.patient():  # an answer that came too late would be asked for once more
        run = str(client.create_run(experiment, tags=tags, run_name=name, start_time=state["began_ms"]).info.run_id)
    client.log_inputs(run, inputs)
    return run


def _user() -> str:
    with suppress(InputError):  # a container's user may have no name
        return login()
    return "mmrec"


def _numbers(
    client: MlflowClient, run: str, state: Mapping[str, Any], folder: Path, rows: Sequence[Mapping[str, Any]],
    at_ms: int,
) -> None:  # fmt: skip
    """Told twice it is the same: a number's moment is that of the bundle's seal."""
    from mlflow.entities import Metric, Param

    settings = state["settings"]["recipe"] | {f"chosen.{k}": v for k, v in state["chosen"]["rolling"].items()}
    settings |= {"seed": state["settings"]["train"]["seed"], "model": state["model"]}
    client.log_batch(run, params=[Param(k, str(v)) for k, v in sorted(settings.items())])
    told = [Metric(key, row[key], at_ms, row["epoch"]) for row in state["curves"] for key in ("loss", "tokens_per_s")]
    shown = [r for r in rows if r["split"] in ("test", "gate") and "@" in r["metric"] and r["slice"] == "all"]
    told += [Metric(f"{r['protocol']}/{r['model']}/{r['metric'].replace('@', '_at_')}", r["value"], at_ms, 0)
             for r in shown]  # fmt: skip
    watch = json.loads((folder / _MACHINE).read_text()) if (folder / _MACHINE).is_file() else []
    told += [Metric(f"system/{name}", value, int(row["at_ms"]), step)
             for step, row in enumerate(watch) for name, value in row.items() if name != "at_ms"]  # fmt: skip
    for start in range(0, len(told), _AT_ONCE):
        client.log_batch(run, metrics=told[start : start + _AT_ONCE])


def _inputs(config: Config, tables: Mapping[str, int], as_of: str) -> list[Any]:
    """The tables that were learned from, each at its version, as MLflow's own datasets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    def made(name: str, version: int) -> Any:
        columns = [{"name": c.name, "type": c.type} for c in schema.table(name).columns]
        source = {"path": str(config.lake.joinpath(*name.split("."))), "version": version}
        more = json.dumps({"mlflow_colspec": columns}), json.dumps({"as_of": as_of})
        about = Dataset(name, f"version {version}", "delta_table", json.dumps(source), *more)
        return DatasetInput(about, [InputTag("mlflow.data.context", "training")])

    return [made(name, version) for name, version in sorted(tables.items())]


def _plots(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """ndcg@10 of every model by protocol, and by how much the version is ahead of each other one, with intervals."""
    from matplotlib.figure import Figure

    of_it = [r for r in rows if r["metric"] == "ndcg@10" and r["split"] in ("test", "gate")]
    for protocol in sorted({r["protocol"] for r in of_it}):
        mine = [r for r in of_it if r["protocol"] == protocol]
        value = sorted((r["value"], r["model"], r["n"]) for r in mine if r["slice"] == "all")
        place = [m for _, m, _ in value]
        ahead = [r for r in mine if r["slice"].removeprefix("vs_") in place and r["slice"] != "all"]
        ahead.sort(key=lambda r: place.index(r["slice"].removeprefix("vs_")))
        figure = Figure(figsize=(9, 0.7 + 0.35 * max(len(value), len(ahead))), layout="constrained")
        left, right = figure.subplots(1, 2)
        bars = left.barh([m for _, m, _ in value], [v for v, _, _ in value],
                         color=["C0" if m == "champion" else "0.7" for _, m, _ in value])  # fmt: skip
        left.bar_label(bars, fmt="%.4f", padding=3)
        left.margins(x=0.2)
        left.set_title(f"{protocol}: ndcg@10, {max((n for *_, n in value), default=0)} cases", fontsize=10)
        for y, r in enumerate(ahead):
            right.plot([r["lo"], r["hi"]], [y, y], color="C0" if r["lo"] > 0 else "C3" if r["hi"] < 0 else "0.5")
            right.plot(r["value"], y, "o", color="k", markersize=4)
        right.set_yticks(range(len(ahead)), [r["slice"].removeprefix("vs_") for r in ahead])
        right.axvline(0, color="k", linewidth=0.8)
        right.margins(y=0.15)
        right.set_title("champion is ahead of, with 95% interval", fontsize=10)
        yield f"{protocol}-ndcg", figure


def _of_gpus() -> list[Any]:
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [GPUMonitor()]
    except (ImportError, RuntimeError):  # as MLflow says it: no library for it, or no device
        return []
