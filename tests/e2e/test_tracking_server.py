"""A shop whose MLflow is a server of its own, over PostgreSQL: trainings are handed over, aliases set there count."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mmrec.bundle.registry import NAME
from mmrec.lake.store import Lake
from tests.conftest import Lived, mmrec
from tests.soak.airflow import Postgres
from tests.waiting import free_port, until


class Server:
    """`mlflow server` on a loopback port, which keeps artifacts itself."""

    def __init__(self, folder: Path, store: str) -> None:
        self.artifacts, self.url = folder / "artifacts", f"http://127.0.0.1:{free_port()}"
        self.log = (folder / "mlflow.log").open("w")
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--artifacts-destination", str(self.artifacts),
                   "--host", "127.0.0.1", "--port", self.url.rsplit(":", 1)[1], "--workers", "1"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)

    def answers(self) -> bool:
        return bool(urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    postgres = Postgres(folder)
    postgres.start()
    made = Server(folder, postgres.url)
    try:
        until("MLflow answers", made.answers, 120)
        yield made
    finally:
        made.stop()
        postgres.stop()


@pytest.fixture(scope="module")
def home(lived: Lived, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained home that nobody has told its server of."""
    home = tmp_path_factory.mktemp("remote") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    (home / "mlflow.db").unlink()
    shutil.rmtree(home / "mlartifacts")
    for name in ("registered", "decided"):
        for told in (home / "training").glob(f"*/{name}.json"):
            told.unlink()
    text = (home / "mmrec.toml").read_text()
    (home / "mmrec.toml").write_text(text.replace("# mlflow_uri = ", f'mlflow_uri = "{server.url}"'))
    return home


def asked(home: Path, *words: str) -> Any:
    return json.loads(mmrec("models", *words, "--home", str(home), "--json").stdout)


def test_a_training_is_handed_to_the_server_with_its_files_and_an_alias_set_there_counts(home: Path, server: Server) -> None:
    told = asked(home, "reconcile")
    ((day, of_it),) = told["caught_up"].items()
    version = of_it["register"]["model_version"]
    assert told["answers"]
    client = MlflowClient(server.url)
    run = client.get_run(client.get_model_version(NAME, version).run_id)
    assert (run.info.status, run.data.tags["run_date"]) == ("FINISHED", day)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert list(server.artifacts.rglob("item_encoder.onnx"))
    assert list(server.artifacts.rglob("rolling-ndcg.png"))
    rows = asked(home, "list")
    assert [r["version"] for r in rows] == [version, "0"]
    serves = [r["version"] for r in rows if r["serves"]]
    assert client.get_registered_model(NAME).aliases["champion"] == serves[0] == version
    client.delete_registered_model_alias(NAME, "champion")
    assert asked(home, "reconcile")["restored"]
    assert client.get_registered_model(NAME).aliases["champion"] == version
    assert not (home / "mlflow.db").exists()
    assert not (home / "mlartifacts").exists()


def test_a_night_is_planned_while_the_server_is_gone(home: Path, server: Server) -> None:
    server.stop()
    planned = json.loads(mmrec("plan", "--home", str(home), "--date", "2026-03-06", "--json").stdout)
    told = planned.get("plan", planned)
    assert told["registry"] == {"model_version": told["model_version"], "answers": False}
    assert told["model_version"] != "0"
    assert len(Lake(home / "lake").arrow("ops.serving")) >= 1
