"""What MLflow is told of a training, once, and what waits where it does not answer; models that its users open by name."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from shops import random_shop

from mmrec import learn, promotion, recorded, schema
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import Bundle, load, seal
from mmrec.bundle.mlmodel import describe
from mmrec.config import Config
from mmrec.errors import InputError, TransientError
from mmrec.evaluate.contest import Contest
from mmrec.holding import login
from mmrec.lake.store import Lake
from mmrec.models.splits import per_user
from mmrec.ort import session
from mmrec.train.export import export
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES
from tests.conftest import serve

DAY = date(2026, 3, 10)
AS_OF = datetime(2026, 3, 10, tzinfo=UTC)
NOWHERE = "http://127.0.0.1:9"


def row(model: str, value: float, protocol: str = "rolling", part: str = "all", **more: Any) -> dict[str, Any]:
    about = {"run_date": str(DAY), "model_version": "", "protocol": protocol, "split": "gate" if protocol == "gate" else "test",
             "slice": part, "model": model, "metric": "ndcg@10", "value": value, "n": 40, "lo": None, "hi": None, "run_id": ""}  # fmt: skip
    return about | more


ROWS = [row("champion", 0.3), row("popularity", 0.1), row("champion", 0.2, part="vs_popularity", lo=0.1, hi=0.3),
        row("champion", 0.31, "gate"), row("champion", 0.4, part="cold_items"), row("champion", 0.9, metric="coverage@10")]  # fmt: skip


def trained(config: Config, day: date = DAY, **about: Any) -> Path:
    """The folder of a training that ended, up to its export."""
    folder = config.home / "training" / str(day)
    with recorded.watched(folder, every_s=0.01):
        until = time.monotonic() + 0.2  # a processor's load is counted in hundredths of a second
        while time.monotonic() < until:
            pass
    made = folder / "bundle"
    made.mkdir()
    (made / "item_map.json").write_text("[]")
    (made / "model-card.md").write_text(f"# A model of {day}")
    Contest(AS_OF, AS_OF, Contest.ROWS.empty_table(), {}).save(made)
    told = {"kind": "two_tower", "name": "champion", "encoders": {}, "as_of": f"{day}T00:00:00+00:00", "features": schema.features_fingerprint()}
    seal(made, told | about)
    state = {"run_date": str(day), "model": "champion", "chosen": {"rolling": {"epochs": 3}}, "tables": {"silver.items": 2}, "encoders": {"text": "t/1"},
             "fields": {"text": "joined"}, "left_out": {"suspects": 4}, "began_ms": 1_700_000_000_000,
             "curves": [{"epoch": e, "loss": 1 / e, "tokens_per_s": 100.0} for e in (1, 2, 3)],
             "settings": {"recipe": {"d": 8}, "train": {"seed": 5}}}  # fmt: skip
    for name, content in (("state.json", state), ("metrics.json", ROWS), ("costs.json", [row("champion", 0.5, "gate", metric="ms_per_user")])):
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def config(tmp_path: Path, blank: Path) -> Config:
    home = tmp_path / "home"
    Lake(home / "lake").create_all()
    shutil.copy(blank, home / "mlflow.db")
    return Config(home=home)


def versions(config: Config) -> dict[str, str]:
    """Version -> digest."""
    return {str(v.version): v.tags["sha256"] for v in server.client(config).search_model_versions(f"name = '{registry.NAME}'")}


def silent(*_: Any) -> None:
    """Nobody is told."""


def test_a_run_holds_settings_tables_curves_numbers_load_plots_and_the_bundle(config: Config) -> None:
    folder = trained(config)
    bundle = load(folder / "bundle")
    run_id, version = recorded.recorded(config, folder, bundle, ROWS)
    assert versions(config) == {version: bundle.digest}
    client = server.client(config)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name, run.info.start_time) == ("FINISHED", f"train {DAY}", 1_700_000_000_000)
    assert run.data.params == {"d": "8", "chosen.epochs": "3", "seed": "5", "model": "champion"}
    assert {k: run.data.tags[k] for k in ("run_date", "table.silver.items", "encoder.text", "fields.text", "left_out.suspects", "mmrec.sha256")} == {
        "run_date": str(DAY), "table.silver.items": "2", "encoder.text": "t/1", "fields.text": "joined", "left_out.suspects": "4", "mmrec.sha256": bundle.digest}  # fmt: skip
    assert (run.data.tags["mlflow.user"], run.data.tags["mlflow.source.name"]) == (login(), f"mmrec train --date {DAY}")
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.tags["mlflow.note.content"] == f"# A model of {DAY}"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    own = {k: v for k, v in run.data.metrics.items() if "/" in k and not k.startswith("system/")}
    assert own == {"rolling/champion/ndcg_at_10": 0.3, "rolling/popularity/ndcg_at_10": 0.1, "rolling/champion/coverage_at_10": 0.9,
                   "gate/champion/ndcg_at_10": 0.31}  # fmt: skip
    load_of = client.get_metric_history(run_id, "system/system_memory_usage_megabytes")
    assert len(load_of) >= 3
    assert all(m.value > 100 for m in load_of)
    assert [m.timestamp for m in load_of] == sorted(m.timestamp for m in load_of)
    assert max(m.value for m in client.get_metric_history(run_id, "system/cpu_utilization_percentage")) > 0
    (told,) = run.inputs.dataset_inputs
    assert (told.dataset.name, told.dataset.digest) == ("silver.items", "version 2")
    assert {f.path for f in client.list_artifacts(run_id, "plots")} == {"plots/gate-ndcg.png", "plots/rolling-ndcg.png"}
    assert {f.path.split("/")[-1] for f in client.list_artifacts(run_id, "bundle")} == {p.name for p in bundle.folder.iterdir()}
    # what MLflow keeps is a bundle that the same digest seals
    assert load(Path(client.download_artifacts(run_id, "bundle")), bundle.digest).about == bundle.about


@pytest.mark.parametrize("at", ["log_inputs", "log_batch", "log_artifacts", "log_figure", "create_model_version", "set_registered_model_alias", "set_terminated"])
def test_cut_off_anywhere_it_is_completed_to_one_run_and_one_version(config: Config, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    folder = trained(config)
    bundle = load(folder / "bundle")

    def cut(*_: Any, **__: Any) -> None:
        raise MlflowException("gone")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, at, cut)
        with pytest.raises(TransientError, match="MLflow does not answer"):
            recorded.recorded(config, folder, bundle, ROWS)
    run_id, version = recorded.recorded(config, folder, bundle, ROWS)
    assert recorded.recorded(config, folder, bundle, ROWS) == (run_id, version)
    assert versions(config) == {version: bundle.digest}
    client = server.client(config)
    assert [r.info.run_id for r in client.search_runs([server.experiment(config, "mmrec/train")])] == [run_id]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert registry.challenger(config) == version
    assert load(config.bundles / version).digest == bundle.digest
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 1
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [1, 2, 3], "told twice, it is the same"


def test_what_is_wrong_with_what_is_told_is_not_called_silence(config: Config) -> None:
    folder = trained(config)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"chosen": {"rolling": {"a name with $ in it": 1}}}))
    with pytest.raises(MlflowException, match="a name with"):
        recorded.recorded(config, folder, load(folder / "bundle"), ROWS)


def test_trainings_that_a_server_did_not_answer_wait_and_are_handed_over_oldest_first(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    days = [DAY, date(2026, 3, 17)]
    for day in reversed(days):
        trained(config, day)
    dead = config.model_copy(update={"mlflow_uri": NOWHERE})
    told = learn.caught_up(dead, silent)
    assert list(told) == [str(DAY)], "who does not answer once is not asked again"
    assert told[str(DAY)]["waits"].startswith(f"MLflow does not answer ({NOWHERE})")
    assert versions(config) == {}
    assert list(learn.caught_up(config, silent, DAY)) == ["2026-03-17"]
    assert list(told := learn.caught_up(config, silent)) == [str(DAY)]
    assert told[str(DAY)]["register"]["model_version"] == "2"
    assert told[str(DAY)]["promote"]["decision"] == "held"
    rows = Lake(config.lake).arrow("ops.metrics").to_pylist()
    assert {r["model_version"] for r in rows} == {"1", "2"}
    assert sum(r["metric"] == "ms_per_user" for r in rows) == 2
    assert learn.caught_up(config, silent) == {}
    assert learn.caught_up(dead, silent) == {}


def test_a_training_that_was_registered_and_then_cut_off_is_put_before_the_gate_by_the_next(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(config)

    def cut(*_: Any, **__: Any) -> None:
        raise TransientError("gone", where="here")

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "reconcile", cut)
        told = learn.caught_up(config, silent)[str(DAY)]
    assert (told["register"]["model_version"], "promote" in told, "waits" in told) == ("1", False, True)
    # a later one has the alias by then
    trained(config, date(2026, 3, 17))
    assert learn.caught_up(config, silent, DAY)["2026-03-17"]["promote"]["model_version"] == "2"
    told = learn.caught_up(config, silent)[str(DAY)]
    assert set(told) == {"promote"}
    assert (told["promote"]["model_version"], told["promote"]["decision"]) == ("1", "held")
    # cut off behind the decision: it is written down, not made once more
    (config.home / "training" / str(DAY) / "decided.json").unlink()
    assert learn.caught_up(config, silent)[str(DAY)]["promote"] == told["promote"]
    asked = Lake(config.lake).arrow("ops.serving").to_pylist()
    assert [r["model_version"] for r in sorted(asked, key=lambda r: r["asked_at"])] == ["2", "1"]
    assert {r["model_version"] for r in Lake(config.lake).arrow("ops.promotions").to_pylist()} == {"1", "2"}


def test_what_serves_and_what_knows_fewer_days_is_not_asked_to_serve(config: Config) -> None:
    trained(config, date(2026, 3, 17))
    learn.caught_up(config, silent)
    serve(config, "1")
    trained(config)
    assert learn.caught_up(config, silent)[str(DAY)]["promote"] == {
        "model_version": "2", "decision": "none", "reason": "version 1 serves, which knows newer days"}  # fmt: skip
    newer = trained(config, date(2026, 3, 24))
    run, version = recorded.recorded(config, newer, load(newer / "bundle"), ROWS)
    (newer / "registered.json").write_text(json.dumps({"model_version": version, "mlflow_run": run}))
    serve(config, version)  # somebody was faster
    told = learn.caught_up(config, silent)["2026-03-24"]["promote"]
    assert (told["decision"], told["reason"]) == ("none", "it serves already")


def test_one_that_cannot_be_handed_over_says_so_and_holds_up_nobody(config: Config) -> None:
    broken = trained(config)
    (broken / "bundle" / "item_map.json").write_text("[1]")
    trained(config, date(2026, 3, 17))
    (config.home / "training" / "notes").mkdir()
    (config.home / "training" / "notes" / "costs.json").write_text("[]")
    told = learn.caught_up(config, silent)
    assert "item_map.json" in told[str(DAY)]["failed"] or "altered" in told[str(DAY)]["failed"]
    assert told["2026-03-17"]["promote"]["decision"] == "held"
    assert set(told) == {str(DAY), "2026-03-17"}


def test_a_registry_that_counts_anew_is_refused_and_left_as_it_was(config: Config, blank: Path) -> None:
    folder = trained(config)
    recorded.recorded(config, folder, load(folder / "bundle"), ROWS)
    before = load(config.bundles / "1").digest
    shutil.copy(blank, config.home / "mlflow.db")
    other = trained(config, date(2026, 3, 17))
    with pytest.raises(InputError, match="counts versions anew"):
        recorded.recorded(config, other, load(other / "bundle"), ROWS)
    assert load(config.bundles / "1").digest == before
    assert versions(config) == {}


def test_what_is_not_ready_or_of_an_earlier_release_or_a_repeated_training_is_left_alone(config: Config) -> None:
    folder = trained(config)
    (folder / "costs.json").unlink()
    shutil.copytree(trained(config, date(2026, 3, 11)), config.home / "training" / "again-1")
    (config.home / "training" / "2026-03-11" / "bundle" / "digest.json").unlink()
    assert learn.caught_up(config, silent) == {}


# opened by name


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    items, log = random_shop(2, users=20, n=30, rows=400)
    recipe = replace(RECIPES["small"], d=8, epochs=1, schedule=1, context=8, length=12, tokens=64, negatives=16, rank=12)
    fold = per_user(log, items)
    model = Champion(recipe, seed=1).fit(items, log, fold)
    folder = tmp_path_factory.mktemp("graphs") / "bundle"
    spec = export(model, items, log, fold, folder)
    describe(folder, AS_OF)
    seal(folder, spec | {"kind": "two_tower", "as_of": AS_OF.isoformat(), "encoders": {}})
    return load(folder)


def test_a_version_is_opened_in_mlflow_by_its_name_and_answers_as_its_graph(graphs: Bundle, config: Config) -> None:
    client = server.client(config)
    run = client.create_run(server.experiment(config, "mmrec/train"))
    client.log_artifacts(run.info.run_id, str(graphs.folder), "bundle")
    registry.register(config, graphs.folder, run.info.run_id, graphs.about)
    mlflow.set_tracking_uri(config.tracking)
    opened = mlflow.pyfunc.load_model(f"models:/{registry.NAME}@challenger")
    example = opened.input_example
    graph = session(graphs.folder / "user_encoder.onnx", "cpu", 1)
    assert list(example) == [i.name for i in graph.get_inputs()]
    got, want = opened.predict(example)["user_vec"], graph.run(["user_vec"], example)[0]
    # two sessions, one with other threads: fp32 sums in another order
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert {i.name: i.type.str for i in opened.metadata.signature.inputs} == {n: v.dtype.str for n, v in example.items()}
    assert mlflow.onnx.load_model(f"models:/{registry.NAME}/1").graph.output[0].name == "user_vec"


def test_the_same_graph_and_moment_are_described_in_the_same_bytes(graphs: Bundle) -> None:
    files = ("MLmodel", "input_example.json")
    before = [(graphs.folder / f).read_bytes() for f in files]
    describe(graphs.folder, AS_OF)
    assert [(graphs.folder / f).read_bytes() for f in files] == before
