"""`mmrec models`: what is told of versions is what registry, tables and bundles say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmrec import config
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import seal
from mmrec.errors import InputError, QualityError
from mmrec.lake.store import Lake
from mmrec.versions import compared, listed, shown
from tests.conftest import NIGHTS, Lived, mmrec


@pytest.fixture(scope="module")
def home(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of a trained version, and of one that is registered beside it, differs by a setting and was never measured."""
    home = tmp_path_factory.mktemp("models") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    cfg = config.load(home)
    (version,) = [v for v, _ in registry.served(cfg)]
    made = home / "made"
    shutil.copytree(cfg.bundles / version, made)
    (made / "gate.parquet").unlink()
    about = json.loads((made / "bundle.json").read_text())
    about["config"] = about["config"] | {"base": -1.0}
    seal(made, about)
    client = server.client(cfg)
    run = client.create_run(server.experiment(cfg, "mmrec/train"))
    registry.register(cfg, made, run.info.run_id, about)
    return home


def asked(home: Path, *words: str) -> Any:
    return json.loads(mmrec("models", *words, "--home", str(home), "--json").stdout)


def test_all_versions_are_listed_with_who_serves_and_who_waits(home: Path) -> None:
    rows = asked(home, "list")
    lake = Lake(home / "lake")
    assert [r["version"] for r in rows] == ["2", "1", "0"]
    assert [r["aliases"] for r in rows] == [["challenger"], ["champion"], []]
    assert [r["serves"] for r in rows] == [False, True, False]
    ran = lake.arrow("ops.runs").to_pylist()  # other tests may have asked this home for more nights
    assert [r["nights"] for r in rows] == [sum(n["model_version"] == r["version"] for n in ran) for r in rows]
    assert rows[1]["nights"] >= len(NIGHTS)
    assert rows[1]["last_night"] == NIGHTS[-1]
    assert (rows[1]["gate"], rows[0]["gate"]) == ("promoted", None)
    key = ("1", "rolling", "test", "all", "champion", "ndcg@10")
    columns = ("model_version", "protocol", "split", "slice", "model", "metric")
    (want,) = [r for r in lake.arrow("ops.metrics").to_pylist() if tuple(r[c] for c in columns) == key]
    assert rows[1]["ndcg@10"] == want["value"]
    assert (rows[2]["kind"], rows[2]["ndcg@10"]) == ("popularity", None)
    said = " ".join(mmrec("models", "list", "--home", str(home)).stdout.split())
    assert "challenger" in said


def test_a_version_is_shown_by_its_number_or_its_alias(home: Path) -> None:
    told = asked(home, "show", "champion")
    assert told == asked(home, "show", "1")
    assert told["about"]["config"]["base"] != -1
    assert set(told["metrics"]) == {"rolling", "per_user", "gate"}
    assert {"champion", "popularity", "item_knn"} <= set(told["metrics"]["rolling"])
    assert {"bundle.json", "item_encoder.onnx", "model-card.md", "user_encoder.onnx"} <= set(told["files"])
    card = (home / "bundles" / "1" / "model-card.md").read_text()
    assert f"| champion | {told['metrics']['rolling']['champion']['ndcg@10']:.4f} |" in card
    described = server.client(config.load(home)).get_model_version(registry.NAME, "1").description
    assert described == card[:5000]
    assert [d["decision"] for d in told["decisions"]] == ["promoted"]
    assert "gate for" in mmrec("models", "show", "1", "--home", str(home)).stdout


def test_two_versions_differ_where_they_do_and_nowhere_else(home: Path) -> None:
    told = asked(home, "compare", "1", "challenger")
    assert list(told["differs"]) == ["config"]
    assert [c["base"] == -1 for c in told["differs"]["config"]] == [False, True]
    assert told["metrics"] == [], "nobody has read a test window with the second"
    said = mmrec("models", "compare", "1", "2", "--home", str(home)).stdout
    assert "config of 2" in said
    assert "no test numbers" in " ".join(said.split())
    assert told["same_days"] is None
    assert "never asked for the same days" in " ".join(said.split())
    same = asked(home, "compare", "1", "champion")
    assert same["differs"] == {}
    assert all(r["difference"] == 0 for r in same["metrics"])
    assert same["metrics"]
    assert all(same["same_windows"].values())
    assert [same["same_days"][c] for c in ("difference", "lo", "hi", "churn")] == [0, 0, 0, 0]
    assert same["same_days"]["cases"] >= 30


def test_what_is_not_there_or_was_altered_is_refused(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy, symlinks=True)
    cfg, lake = config.load(copy), Lake(copy / "lake")
    with pytest.raises(InputError, match="no such version") as caught:
        shown(cfg, lake, "7")
    assert "champion" in str(caught.value)
    graph = cfg.bundles / "1" / "item_encoder.onnx"
    bytes_ = bytearray(graph.read_bytes())
    bytes_[len(bytes_) // 2] ^= 1
    graph.write_bytes(bytes_)
    with pytest.raises(QualityError, match="altered") as altered:
        shown(cfg, lake, "champion")
    assert "item_encoder.onnx" in str(altered.value)
    shutil.rmtree(cfg.bundles / "2")
    assert [r["on_disk"] for r in listed(cfg, lake)] == [False, True, True]
    with pytest.raises(InputError, match="not on this disk"):
        compared(cfg, lake, "1", "2")
    assert "not on this disk: version 2" in mmrec("models", "list", "--home", str(copy)).stdout


def test_a_home_without_a_registry_has_version_zero_and_gets_no_registry_by_asking(tmp_path: Path) -> None:
    home = tmp_path / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    assert [r["version"] for r in asked(home, "list")] == ["0"]
    assert not (home / "mlflow.db").exists()


def test_a_run_in_mlflow_names_the_tables_it_learned_from_at_their_versions(home: Path) -> None:
    client = server.client(config.load(home))
    run = client.get_run(client.get_model_version(registry.NAME, "1").run_id)
    told = asked(home, "show", "1")["about"]["data_versions"]
    assert {d.dataset.name: d.dataset.digest for d in run.inputs.dataset_inputs} == {n: f"version {v}" for n, v in told.items()}
    assert {d.dataset.source_type for d in run.inputs.dataset_inputs} == {"delta_table"}
    assert {(t.key, t.value) for d in run.inputs.dataset_inputs for t in d.tags} == {("mlflow.data.context", "training")}


@pytest.fixture
def own(home: Path, tmp_path: Path) -> Path:
    """A home of its own, whose version 1 serves."""
    copy = tmp_path / "own"
    shutil.copytree(home, copy, symlinks=True)
    return copy


def serves(home: Path) -> tuple[str, dict[str, str]]:
    rows = asked(home, "list")
    aliases = {a: r["version"] for r in rows for a in r["aliases"]}
    return registry.state(config.load(home)).version, aliases


def test_what_the_gate_holds_is_not_promoted_unless_somebody_says_why_and_rolls_back_in_one_command(own: Path) -> None:
    held = mmrec("models", "promote", "challenger", "--home", str(own), ok=(3,))
    assert "it was never measured on the days before its training" in held.stderr
    assert "--override WHY" in held.stderr
    assert serves(own) == ("1", {"champion": "1", "challenger": "2"})
    said = mmrec("models", "promote", "2", "--override", "tried by hand", "--by", "ann", "--home", str(own)).stdout
    assert "version 2 serves" in said
    assert serves(own) == ("2", {"champion": "2", "previous": "1"})
    rows = [r for r in Lake(own / "lake").arrow("ops.serving").sort_by("asked_at").to_pylist() if r["model_version"] == "2"]
    assert [(r["action"], r["overridden"], r["why"]) for r in rows] == [("refused", False, ""), ("promoted", True, "tried by hand")]
    back = json.loads(mmrec("models", "rollback", "--why", "it was a try", "--home", str(own), "--json").stdout)
    assert (back["model_version"], back["before"]) == ("1", "2")
    assert serves(own) == ("1", {"champion": "1"})
    assert "serves already" in mmrec("models", "promote", "champion", "--home", str(own), ok=(2,)).stderr


def test_a_night_is_planned_with_what_the_lake_says_and_puts_back_an_alias_that_the_gate_refuses(own: Path) -> None:
    server.client(config.load(own)).set_registered_model_alias(registry.NAME, "champion", "2")
    planned = json.loads(mmrec("plan", "--home", str(own), "--date", "2026-03-06", "--json").stdout)
    told = planned.get("plan", planned)
    assert told["model_version"] == "1"
    assert told["registry"]["asked"]["decision"] == "held"
    assert serves(own)[1]["champion"] == "1"
    assert mmrec("models", "reconcile", "--home", str(own)).stdout == "version 1 serves\n"
    server.client(config.load(own)).set_registered_model_alias(registry.NAME, "champion", "2")
    said = " ".join(mmrec("models", "reconcile", "--home", str(own)).stdout.split())
    assert "version 2 was given the alias champion in MLflow: held" in said
    assert "put back version 1 serves" in said


@pytest.mark.deep
def test_a_version_is_trained_again_to_the_same_numbers_and_files_and_the_home_is_as_before(lived: Lived, home: Path) -> None:
    before = {p: p.read_bytes() for f in ("runs", "bundles") for p in sorted((home / f).rglob("*")) if p.is_file()}
    versions = Lake(home / "lake").versions()
    told = json.loads(mmrec("models", "reproduce", "1", "--home", str(home), "--json").stdout)
    assert told["largest"] <= 1e-6, told["where"]
    assert told["missing"] == 0
    table = Lake(home / "lake").arrow("ops.metrics").to_pylist()
    assert told["numbers"] == sum(r["model_version"] == "1" and r["protocol"] in ("rolling", "per_user", "gate")
                                 and r["metric"] != "ms_per_user" for r in table) > 100  # fmt: skip
    # the same threads and processor: graphs and maps are the same to the byte; what names the run in MLflow is not
    assert {"item_encoder.onnx", "user_encoder.onnx", "item_map.json", "gate.parquet"} <= set(told["same_files"])
    assert {p: p.read_bytes() for f in ("runs", "bundles") for p in sorted((home / f).rglob("*")) if p.is_file()} == before
    assert Lake(home / "lake").versions() == versions
    assert not (home / "training" / "again-1").exists()


def test_a_version_whose_recipe_is_another_by_now_or_that_does_not_say_its_settings_is_not_trained_again(own: Path) -> None:
    folder = own / "bundles" / "1"
    about = json.loads((folder / "bundle.json").read_text())
    key = sorted(about["settings"]["recipe"])[0]
    was, about["settings"]["recipe"][key] = about["settings"]["recipe"][key], 12345
    seal(folder, about)
    said = mmrec("models", "reproduce", "1", "--home", str(own), ok=(2,)).stderr
    assert "the recipe of this name is another by now" in said
    assert f"value: '{key} {was}'" in said
    assert f"valid: {key} 12345" in said
    del about["settings"]
    seal(folder, about)
    assert "does not say its settings" in mmrec("models", "reproduce", "1", "--home", str(own), ok=(2,)).stderr


@pytest.mark.deep
def test_a_training_takes_another_recipe_for_once_and_recipes_say_which_was_measured(home: Path) -> None:
    """`small` is the only one that trained here; a file's first training is not registered, so nothing is measured."""
    (home / "recipes").mkdir(exist_ok=True)
    (home / "recipes" / "short.toml").write_text('start = "small"\nepochs = 1\n')
    (home / "recipes" / "torn.toml").write_text('start = "small"\nepoch = 1\n')
    settings = (home / "mmrec.toml").read_text()
    shutil.rmtree(home / "training", ignore_errors=True)
    told = json.loads(mmrec("train", "--home", str(home), "--date", NIGHTS[3], "--recipe", "short", "--json").stdout)
    assert (told["recipe"], told["chosen"]["epochs"]) == ("short", 1)
    state = json.loads((home / "training" / NIGHTS[3] / "state.json").read_text())
    assert state["settings"]["recipe"]["epochs"] == 1
    assert (home / "mmrec.toml").read_text() == settings
    rows = {r["name"]: r for r in json.loads(mmrec("recipes", "--home", str(home), "--json").stdout)}
    assert list(rows) == ["default", "small", "short", "torn"]
    assert rows["short"]["changed"]["epochs"] == 1
    assert rows["short"]["file"] == str(home / "recipes" / "short.toml")
    assert "epoch" in rows["torn"]["wrong"]
    measured = {name: r["version"] for name, r in rows.items()}
    assert measured == {"default": None, "small": "1", "short": None, "torn": None}
    (first,) = [r for r in listed(config.load(home), Lake(home / "lake")) if r["version"] == "1"]
    assert rows["small"]["ndcg@10"] == first["ndcg@10"]
    assert rows["small"]["minutes"] > 0


def test_a_recipe_that_is_not_there_is_refused_with_those_that_are(home: Path) -> None:
    done = mmrec("train", "--home", str(home), "--date", NIGHTS[3], "--recipe", "brave", ok=(2,))
    assert all(word in done.stderr for word in ("brave", "default", "small", "mmrec recipes"))
