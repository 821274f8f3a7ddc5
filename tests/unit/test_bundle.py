"""Bundles sealed, altered and installed; a real registry that crowns them; sessions on the device that was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.bundle import registry, server
from mmrec.bundle.bundle import install, load, seal
from mmrec.config import Config
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.ort import session
from tests.conftest import serve


def _graph() -> bytes:
    """Some hundred bytes that a bundle may hold."""
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, 8]) for n in "xy")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    made = onnx.helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(np.arange(512, dtype=np.float32).reshape(64, 8)[:1], "w")])
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


FILES = {"item_map.json": b'["a", "b"]', "item_encoder.onnx": _graph(), "deep/curves.json": b"[]", "empty": b""}
ABOUT = {"kind": "two_tower", "encoders": {"text": "toy-1"}}


def built(folder: Path, **about: Any) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    seal(folder, ABOUT | about)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose text was read."""
    read: list[str] = []
    honest = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: (read.append(self.name), honest(self, *a, **k))[1])
    return read


def test_what_was_sealed_is_what_is_loaded_and_the_name_of_the_folder_does_not_matter(tmp_path: Path) -> None:
    one, two = load(built(tmp_path / "one")), load(built(tmp_path / "two"))
    assert one.about == ABOUT
    assert (one.kind, one.encoders) == ("two_tower", {"text": "toy-1"})
    assert one.digest == two.digest
    assert load(one.folder, two.digest) == one
    assert load(built(tmp_path / "three", comment="another")).digest != one.digest


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_one_flipped_bit_anywhere_is_refused_by_the_name_of_its_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = built(tmp_path_factory.mktemp("bundle"))
    whole = tree(folder)
    name = data.draw(st.sampled_from(sorted(n for n in whole if n not in ("digest.json", "empty"))))
    at, bit = data.draw(st.integers(0, len(whole[name]) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(whole[name])
    changed[at] ^= 1 << bit
    (folder / name).write_bytes(changed)
    with pytest.raises(QualityError, match="altered") as refused:
        load(folder)
    assert refused.value.value == [name]


ALTERED: list[tuple[str, Callable[[Path], Any], list[str]]] = [
    ("added", lambda f: (f / "model.pkl").write_bytes(b"x"), ["model.pkl"]),
    ("added empty and deep", lambda f: (f / "deep" / "x").touch(), ["deep/x"]),
    ("lost", lambda f: (f / "item_map.json").unlink(), ["item_map.json"]),
    ("lost, bundle.json", lambda f: (f / "bundle.json").unlink(), ["bundle.json"]),
    ("lost, empty", lambda f: (f / "empty").unlink(), ["empty"]),
    ("renamed", lambda f: (f / "empty").rename(f / "void"), ["empty", "void"]),
    ("swapped", lambda f: ((f / "empty").write_bytes(b"[]"), (f / "deep" / "curves.json").write_bytes(b"")),
     ["deep/curves.json", "empty"]),
    ("truncated", lambda f: (f / "item_encoder.onnx").write_bytes(b""), ["item_encoder.onnx"]),
    ("longer", lambda f: (f / "item_map.json").write_bytes(FILES["item_map.json"] + b"\n"), ["item_map.json"]),
    ("a seal in another folder", lambda f: (f / "deep" / "digest.json").write_text("{}"), ["deep/digest.json"]),
]  # fmt: skip


@pytest.mark.parametrize(("alter", "named"), [a[1:] for a in ALTERED], ids=[a[0] for a in ALTERED])
def test_files_altered_since_the_seal_are_named_before_any_is_parsed(
    alter: Callable[[Path], Any], named: list[str], tmp_path: Path, unread: list[str]
) -> None:
    folder = built(tmp_path / "b")
    alter(folder)
    unread.clear()
    with pytest.raises(QualityError, match="altered") as refused:
        load(folder)
    assert refused.value.value == named
    assert unread == ["digest.json"]


def test_a_shallow_look_reads_what_bundle_json_says_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(tmp_path / "b", encoder_names={"text": "toy"})
    whole, opened, honest = load(folder), list[str](), Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self.name), honest(self, *a, **k))[1])
    assert load(folder, whole.digest, deep=False) == whole
    assert set(opened) == {"digest.json", "bundle.json"}
    assert (whole.encoders, whole.encoder_names) == ({"text": "toy-1"}, {"text": "toy"})
    assert load(built(tmp_path / "old")).encoder_names == {}
    with pytest.raises(QualityError, match="altered"):
        load(folder, "0" * 64, deep=False)


@pytest.mark.parametrize("name", ["bundle.json", "digest.json"])
@pytest.mark.parametrize("how", ["changed", "lost", "another's"])
def test_a_shallow_look_believes_neither_an_altered_bundle_json_nor_an_altered_seal(tmp_path: Path, name: str, how: str) -> None:
    folder = built(tmp_path / "b")
    registered = load(folder).digest
    if how == "changed":
        (folder / name).write_text((folder / name).read_text().replace("e", "E"))
    elif how == "lost":
        (folder / name).unlink()
    else:
        shutil.copy(built(tmp_path / "other", encoders={"text": "another"}) / name, folder / name)
    with pytest.raises((QualityError, InputError), match=r"altered|no bundle"):
        load(folder, registered, deep=False)


def test_a_bundle_sealed_again_is_not_the_one_that_was_registered(tmp_path: Path) -> None:
    folder = built(tmp_path / "b")
    registered = load(folder).digest
    (folder / "item_map.json").write_bytes(b'["b", "a"]')
    seal(folder, ABOUT)
    with pytest.raises(QualityError, match="altered") as refused:
        load(folder, registered)
    assert refused.value.valid == registered


EDITED = [lambda s: "", lambda s: "not json", lambda s: "[]", lambda s: "{}", lambda s: '{"sha256": null, "files": null}',
          lambda s: json.dumps(s | {"sha256": "0" * 64}), lambda s: json.dumps(s | {"files": {}}),
          lambda s: json.dumps(s | {"files": s["files"] | {"empty": "0" * 64}})]  # fmt: skip


@pytest.mark.parametrize("edit", EDITED, ids=range(len(EDITED)))
def test_an_edited_seal_is_refused_by_its_name(edit: Callable[[Any], str], tmp_path: Path) -> None:
    folder = built(tmp_path / "b")
    seal_file = folder / "digest.json"
    seal_file.write_text(edit(json.loads(seal_file.read_text())))
    with pytest.raises(QualityError, match=r"digest\.json"):
        load(folder)


@pytest.mark.parametrize("kind", ["pickle", "", None])
def test_another_kind_of_bundle_is_neither_sealed_nor_written(kind: str | None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind of bundle") as refused:
        seal(tmp_path / "b", {"kind": kind})
    assert "two_tower" in str(refused.value)
    assert not (tmp_path / "b").exists()


def test_a_folder_without_a_seal_is_no_bundle(tmp_path: Path) -> None:
    folder = built(tmp_path / "b")
    (folder / "digest.json").unlink()
    for where in (folder, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="no bundle"):
            load(where)


def test_a_bundle_is_installed_whole_in_the_place_of_another_and_of_a_dead_attempt(tmp_path: Path) -> None:
    new, target = built(tmp_path / "new", name="new"), tmp_path / "home" / "7"
    built(target, name="old")
    (target.with_name("7.part") / "half").mkdir(parents=True)
    assert install(new, target) == target
    assert tree(target) == tree(new)
    assert [p.name for p in target.parent.iterdir()] == ["7"]


@pytest.mark.parametrize("dies", ["copytree", "altered", "replace"])
def test_an_install_that_fails_leaves_the_bundle_that_was_there(
    dies: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, target = built(tmp_path / "new", name="new"), built(tmp_path / "home" / "7", name="old")
    before = tree(target)

    honest = Path.replace

    def die(path: Any, *_: Any, **__: Any) -> Any:
        if dies == "replace" and not path.name.endswith(".part"):
            return honest(path, *_)
        raise OSError("no space left on device")

    if dies == "altered":
        (new / "item_map.json").write_bytes(b"[]")
    else:
        monkeypatch.setattr(*{"copytree": (shutil, "copytree", die), "replace": (Path, "replace", die)}[dies])
    with pytest.raises((OSError, QualityError)):
        install(new, target)
    monkeypatch.undo()
    assert tree(target) == before
    assert load(target).about["name"] == "old"


# the registry


@pytest.fixture
def config(blank: Path, tmp_path: Path) -> Config:
    made = Config(home=tmp_path / "home")
    made.home.mkdir()
    shutil.copy(blank, made.home / "mlflow.db")
    return made


def day(n: int) -> datetime:
    return datetime(2026, 3, n, tzinfo=UTC)


def registered(config: Config, as_of: datetime, name: str = "") -> str:
    about = ABOUT | {"as_of": as_of.isoformat(), "name": name}
    made = built(config.home / "made", **about)
    client = server.client(config)
    run = client.create_run(client.get_experiment_by_name("t").experiment_id)
    version = registry.register(config, made, run.info.run_id, about | {"summary": "s"})
    shutil.rmtree(made)
    return version


def aliases(config: Config) -> dict[str, str]:
    return {k: str(v) for k, v in server.client(config).get_registered_model(registry.NAME).aliases.items()}


def test_a_registered_version_waits_as_challenger_and_its_bundle_is_on_disk(config: Config) -> None:
    assert registry.challenger(config) is None
    version = registered(config, day(1), "first")
    assert registry.challenger(config) == version
    kept = load(config.bundles / version)
    assert kept.about["name"] == "first"
    made = server.client(config).get_model_version(registry.NAME, version)
    assert made.tags["sha256"] == kept.digest
    assert made.tags["as_of"] == day(1).isoformat()
    assert registry.champion(config)[1] == registry.ZERO
    second = registered(config, day(2))
    assert aliases(config) == {"challenger": second}


def test_crowns_move_from_challenger_to_champion_to_previous(config: Config) -> None:
    first = registered(config, day(1))
    assert serve(config, first) == registry.ZERO
    assert aliases(config) == {"champion": first}
    second = registered(config, day(2))
    assert aliases(config) == {"champion": first, "challenger": second}
    assert serve(config, second) == first
    assert aliases(config) == {"champion": second, "previous": first}
    assert serve(config, second) == second
    assert aliases(config) == {"champion": second, "previous": first}
    third = registered(config, day(3))
    # taking an older one back leaves the challenger waiting
    assert serve(config, first) == second
    assert aliases(config) == {"champion": first, "previous": second, "challenger": third}
    assert registry.champion(config) == (load(config.bundles / first), first)


def test_what_is_served_is_what_an_alias_names_the_champion_last(config: Config) -> None:
    assert registry.served(config) == []
    digest = {registered(config, day(n), f"m{n}"): n for n in (1, 2, 3, 4)}
    one, two, three, four = digest
    sealed = {v: load(config.bundles / v).digest for v in digest}

    def served(*versions: str) -> bool:
        return registry.served(config) == [(v, sealed[v]) for v in versions]

    assert served(four)
    serve(config, one)
    assert served(four, one)
    serve(config, two)
    assert served(four, one, two)
    serve(config, four)
    assert served(two, four), "one that was crowned and replaced is not served any more"
    client = server.client(config)
    client.set_registered_model_alias(registry.NAME, "challenger", four)
    client.set_registered_model_alias(registry.NAME, "somebody", three)
    assert served(two, four), "of one with two aliases the later counts"


def test_a_registry_that_does_not_answer_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = Config(home=tmp_path / "home", mlflow_uri="http://user:secret@127.0.0.1:9")
    with pytest.raises(TransientError, match="MLflow does not answer") as told:
        registry.served(made)
    assert told.value.where == "127.0.0.1:9"
    assert "secret" not in str(told.value)


def test_a_backtest_takes_the_newest_promoted_version_that_knew_nothing_later(config: Config) -> None:
    versions = [registered(config, day(n)) for n in (4, 8, 12, 16)]
    for v in (versions[0], versions[1], versions[3]):
        serve(config, v)
    asked = {n: registry.champion(config, day(n))[1] for n in (3, 4, 7, 8, 15, 16, 30)}
    one, two, four = versions[0], versions[1], versions[3]
    # the third was never promoted; a model of an as_of may serve that very as_of
    assert asked == {3: registry.ZERO, 4: one, 7: one, 8: two, 15: two, 16: four, 30: four}
    serve(config, two)
    assert registry.champion(config, day(30))[1] == two
    assert registry.champion(config)[1] == two
    assert registry.champion(config, day(9))[0].about["as_of"] == day(8).isoformat()


def test_an_altered_champion_is_refused_and_one_that_is_gone_is_said(config: Config) -> None:
    version = registered(config, day(1))
    serve(config, version)
    folder = config.bundles / version
    (folder / "item_map.json").write_bytes(b"[]")
    with pytest.raises(QualityError, match=r"item_map\.json"):
        registry.champion(config)
    seal(folder, ABOUT)
    with pytest.raises(QualityError, match="altered"):
        registry.champion(config, day(2))
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="not on this disk"):
        registry.champion(config)


def test_an_old_version_that_is_gone_from_the_disk_does_not_stop_a_night_of_the_champion(config: Config) -> None:
    first, second = registered(config, day(1)), registered(config, day(5))
    serve(config, first)
    serve(config, second)
    shutil.rmtree(config.bundles / first)
    assert registry.champion(config, day(9))[1] == second
    with pytest.raises(InputError, match="not on this disk"):
        registry.champion(config, day(3))


def test_an_altered_bundle_is_not_registered(config: Config) -> None:
    made = built(config.home / "made")
    (made / "empty").write_bytes(b"x")
    with pytest.raises(QualityError, match="altered"):
        registry.register(config, made, "run", {"as_of": "x"})
    assert registry.challenger(config) is None
    assert not config.bundles.exists()


def test_a_home_without_a_registry_is_served_popularity_and_given_none(tmp_path: Path) -> None:
    config = Config(home=tmp_path / "home")
    found, version = registry.champion(config, day(1))
    assert (found.kind, version, found.encoders) == ("popularity", registry.ZERO, {})
    assert registry.challenger(config) is None
    assert registry.served(config) == []
    assert [p.name for p in config.home.iterdir()] == ["bundles"]
    before = tree(config.home)
    assert registry.champion(config)[0] == found
    assert tree(config.home) == before
    (config.bundles / "0" / "bundle.json").write_text("{}")
    with pytest.raises(QualityError, match="altered"):
        registry.champion(config)


def test_a_tag_is_written_where_its_readers_look_and_cut_to_what_fits(config: Config) -> None:
    version = registered(config, day(1))
    registry.tag(config, version, "gate", "held: " + "x" * 9000)
    told = server.client(config).get_model_version(registry.NAME, version).tags["gate"]
    assert told == ("held: " + "x" * 9000)[:5000]


# sessions


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    made = onnx.helper.make_graph([node], "g", [value("x", 1, ["n"])], [value("y", 1, ["n"])])
    onnx.save(onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_a_session_runs_on_the_processor_that_was_asked_for(graph: Path) -> None:
    opened = session(graph, "cpu", threads=1)
    assert opened.get_providers() == ["CPUExecutionProvider"]
    assert opened.get_session_options().intra_op_num_threads == 1
    np.testing.assert_array_equal(opened.run(None, {"x": np.arange(3, dtype=np.float32)})[0], [0, 2, 4])


@pytest.mark.parametrize("device", ["gpu", "CPU", "", "mps"])
def test_an_unknown_device_is_refused_with_those_there_are(device: str, graph: Path) -> None:
    with pytest.raises(InputError, match="no such device") as refused:
        session(graph, device)
    assert "cpu, cuda" in str(refused.value)


def test_cuda_that_falls_back_to_the_processor_is_an_error_and_not_slow(graph: Path) -> None:
    silent = ort.InferenceSession(str(graph), providers=["CUDAExecutionProvider"])
    if silent.get_providers()[0] == "CUDAExecutionProvider":
        assert session(graph, "cuda").get_providers()[0] == "CUDAExecutionProvider"
        return
    with pytest.raises(InputError, match="can't be used") as refused:
        session(graph, "cuda")
    assert "CPUExecutionProvider is active" in str(refused.value)
