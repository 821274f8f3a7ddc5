"""Encoder versions stay fed as long as a served bundle names them, then they go: a real lake, a real registry, real models."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from mmrec import encoding, schema, served
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import seal
from mmrec.config import Config, MaintainConfig, load
from mmrec.content import earlier, hub, hub_export
from mmrec.content.earlier import Earlier, Unfed
from mmrec.content.encoders import encoder
from mmrec.content.hub import describe
from mmrec.context import Night
from mmrec.errors import InputError, QualityError
from mmrec.lake.maintain import maintain
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.monitor.alerts import alerts
from tests.conftest import mmrec, serve
from tests.unit import test_embed as shop
from tests.unit.test_bundle import aliases
from tests.unit.test_hub import SMALL, random, tokenizer

DAY, CACHE = date(2026, 3, 2), "gold.item_embeddings"
LOGMEL = "logmel"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's first delivery in silver, and a registry without a model: both take seconds."""
    home = tmp_path_factory.mktemp("world") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    mmrec("steps", "world", "ingest", "validate", "--home", str(home), "--date", str(DAY))
    server.client(load(home)).create_experiment("t")
    return home


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny text models in folders, `a` and `b`, and their graphs in `cache`."""
    root = tmp_path_factory.mktemp("models")
    bert = tf.BertConfig(vocab_size=300, max_position_embeddings=64, **SMALL)
    random(tf.BertModel(bert)).save_pretrained(root / "a")
    tokenizer(root / "a")
    shutil.copytree(root / "a", root / "b")
    change(root / "b")
    for name in "ab":
        said = dataclasses.replace(describe(str(root / name), root / "cache", "text"), dtype="int8")
        hub_export.export(said, hub._place(said, root / "cache"))
    return root


def change(folder: Path) -> None:
    """One bit of a model's weights."""
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


class Shop:
    """A home whose settings name the text model `model`; "" for none."""

    def __init__(self, home: Path, models: Path) -> None:
        self.home, self.models = home, models
        self.lake = Lake(home / "lake")
        self.new = 0
        self.known = {m: describe(str(models / m), models / "cache", "text", dtype="best").version for m in "ab"}

    def config(self, model: str, **more: Any) -> Config:
        text = str(self.models / model) if model else ""
        return load(self.home, night={"text": text, "image": "", "audio": ""} | more, maintain=MaintainConfig(min_files=2))

    def version(self, model: str) -> str:
        return self.known[model]

    def delivers(self, n: int = 1) -> None:
        self.new += n
        shop.items(self.lake, *({"id": f"new{i}", "text": f"a new thing, number {i}"} for i in range(self.new - n, self.new)))

    def embed(self, model: str) -> dict[str, Any]:
        return encoding.embed(Night(self.config(model), DAY))

    def rows(self) -> dict[str, int]:
        """Model -> contents that have its vector; each once."""
        rows = self.lake.arrow(CACHE, columns=["content_sha256", "encoder_version"]).to_pylist()
        assert len({(r["content_sha256"], r["encoder_version"]) for r in rows}) == len(rows)
        names = {self.version(m): m for m in "ab"}
        return dict(Counter(names.get(r["encoder_version"], r["encoder_version"]) for r in rows))

    def trains(self, model: str, *, named: bool = True, **encoders: str) -> str:
        """A sealed bundle of `model`'s version, registered as challenger; `named`: it says how its encoder is opened."""
        config = self.config(model)
        about: dict[str, Any] = {"kind": "two_tower", "as_of": datetime(2026, 3, 1, tzinfo=UTC).isoformat()}
        about["encoders"] = encoders or {"text": self.version(model)}
        if named:
            about["encoder_names"] = config.encoder_names
        about["nth"] = len(list(config.bundles.glob("*")))  # a bundle of the same digest would be the version that it was
        seal(self.home / "made", about)
        client = server.client(config)
        run = client.create_run(client.get_experiment_by_name("t").experiment_id)
        made = registry.register(config, self.home / "made", run.info.run_id, about)
        shutil.rmtree(self.home / "made")
        return made

    def crowns(self, *models: str) -> None:
        for model in models:
            serve(self.config(model), self.trains(model))

    def maintains(self, model: str, *, days: float = 8, **more: Any) -> dict[str, Any]:
        config = self.config(model)
        (told,) = maintain(config, CACHE, now=datetime.now(UTC) + timedelta(days=days), needed=lambda: served.needed(config), **more)
        assert told["refused"] is None
        return {m: n for m in "ab" if (n := told["unneeded"].get(self.known[m]))}


@pytest.fixture
def home(world: Path, models: Path, tmp_path: Path) -> Shop:
    shutil.copytree(world, tmp_path / "home")
    shutil.copytree(models / "a", tmp_path / "models" / "a")
    shutil.copytree(models / "b", tmp_path / "models" / "b")
    for link in (tmp_path / "models" / "cache", tmp_path / "home" / "cache" / "encoders"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(models / "cache")
    return Shop(tmp_path / "home", tmp_path / "models")


def test_a_version_is_fed_while_it_is_champion_then_previous_and_goes_when_no_alias_names_it(home: Shop) -> None:
    n = home.embed("a")["text_new"]
    assert n > 20
    home.crowns("a")
    # the settings move on: the new encoder is fed with everything, the champion's with what is new
    assert home.embed("b")["text_new"] == n
    home.delivers(2)
    assert (home.embed("b")["text_new"], home.rows()) == (4, {"a": n + 2, "b": n + 2})
    # one of the new encoder waits, then serves: the old one is its predecessor
    home.trains("b")
    assert home.maintains("b") == {}
    serve(home.config("b"), aliases(home.config("b"))["challenger"])
    home.delivers()
    assert (home.embed("b")["text_new"], home.rows()) == (2, {"a": n + 3, "b": n + 3})
    assert home.maintains("b") == {}
    # its successor has a successor: it is fed no more, and goes after the grace
    home.crowns("b")
    assert set(aliases(home.config("b"))) == {"champion", "previous"}
    pinned, before = home.lake.version(CACHE), home.rows()
    home.delivers()
    assert (home.embed("b")["text_new"], home.rows()) == (1, {"a": n + 3, "b": n + 4})
    assert home.maintains("b", days=6) == {}
    assert home.maintains("b", dry_run=True) == {"a": n + 3}
    assert home.rows() == {"a": n + 3, "b": n + 4}
    assert home.maintains("b") == {"a": n + 3}
    assert home.rows() == {"b": n + 4}
    assert home.lake.arrow(CACHE, pinned).num_rows == sum(before.values()), "what a manifest pinned is there"
    assert home.maintains("b") == {}
    counts = home.embed("b")
    assert (counts["text_new"], "unfed" in counts) == (0, False)


def test_one_who_takes_an_old_model_back_gets_its_vectors_again(home: Shop) -> None:
    home.embed("a")
    home.crowns("a", "b", "b")
    home.embed("b")
    n = home.rows()["b"]
    assert home.maintains("b") == {"a": n}
    serve(home.config("b"), "1")
    assert (home.embed("b")["text_new"], home.rows()) == (n, {"a": n, "b": n})


def test_a_challenger_that_waits_keeps_its_version_fed(home: Shop) -> None:
    home.embed("a")
    home.trains("a")
    home.embed("b")
    home.delivers()
    assert home.embed("b")["text_new"] == 2
    assert home.maintains("b") == {}
    assert served.needed(home.config("b")) == {home.version("a"), home.version("b")}


def test_of_a_modality_the_encoder_of_the_settings_comes_last_and_each_version_once(home: Shop) -> None:
    home.crowns("b", "a")  # champion a, previous b
    home.trains("b", text=home.version("b"), audio="logmel/0")
    a, b = home.version("a"), home.version("b")
    assert [(e.modality, e.version) for e in served.fed(home.config("a"))] == [("text", b), ("text", a), ("audio", "logmel/0")]
    assert [e.version for e in served.fed(home.config("b"))] == [a, b, "logmel/0"]
    logmel = encoder(LOGMEL, home.models)
    assert [e.version for e in served.fed(home.config("b", audio=LOGMEL))] == [a, b, "logmel/0", logmel.version]
    # where the settings have none, the champion's says what is refused
    assert [e.version for e in served.fed(home.config(""))] == [b, a, "logmel/0"]
    assert [type(e) for e in served.fed(home.config(""))] == [Earlier] * 3


def test_what_is_refused_is_what_the_encoder_of_the_settings_refuses(home: Shop) -> None:
    logmel = encoder(LOGMEL, home.models)
    serve(home.config(""), home.trains("", audio="old/1"))
    strict, kind = shop.Counter("audio", "old/1"), shop.Counter("audio", logmel.version)
    kind.encode = lambda raw: (strict.encode(raw)[0] + 1, [None] * len(raw))  # type: ignore[method-assign]
    shop.items(home.lake, {"id": "x", "audio": b"broken", "text": "t"})
    ready = served.fed(home.config("", audio=LOGMEL))
    assert [e.version for e in ready] == [strict.version, kind.version]
    shop.run(home.lake, *({strict.version: strict, kind.version: kind}[e.version] for e in ready))
    rules = {r["rule"] for r in home.lake.arrow("ops.quarantine").to_pylist() if r["row_hash"] == "row x"}
    assert rules == set()
    shop.run(home.lake, kind, strict)
    assert "audio_truncated" in {r["rule"] for r in home.lake.arrow("ops.quarantine").to_pylist() if r["row_hash"] == "row x"}


def gone(home: Shop) -> str:
    shutil.rmtree(home.models / "a")
    return "a can't be opened: no such folder"


def changed(home: Shop) -> str:
    data = json.loads((home.models / "a" / "config.json").read_text())
    (home.models / "a" / "config.json").write_text(json.dumps(data | {"layer_norm_eps": 0.5}))
    return "a is another version now, bert/"


@pytest.mark.parametrize("harm", [gone, changed])
def test_an_encoder_that_can_not_be_opened_any_more_does_not_stop_the_night_and_is_told(home: Shop, harm: Callable[[Shop], str]) -> None:
    n, version = home.embed("a")["text_new"], home.version("a")
    home.crowns("a")
    shutil.copytree(home.models / "a", home.models / "kept")
    says = harm(home)
    # nothing waits for it: nobody looks
    assert "unfed" not in home.embed("b")
    home.delivers(3)
    counts, night = home.embed("b"), Night(home.config("b"), DAY)
    (told,) = counts["unfed"]
    assert {k: v for k, v in told.items() if k != "reason"} == {"modality": "text", "version": version, "waiting": 3}
    assert says in told["reason"]
    assert counts["text_new"] == 3, "the other one's"
    assert encoding.unfed(night) == [told]
    (row,) = alerts(schema.table("ops.freshness").arrow.empty_table(), manifest(), encoding.unfed(night)).to_pylist()
    assert (row["kind"], row["subject"]) == ("unfed_encoder", version)
    assert "3 contents (text) wait for it" in row["message"]
    assert says in row["message"]
    assert home.embed("b")["unfed"] == [told], "again: the same"
    # it is needed all the same, and is fed once it is back
    assert version in served.needed(home.config("b"))
    shutil.rmtree(home.models / "a", ignore_errors=True)
    (home.models / "kept").rename(home.models / "a")
    assert "unfed" not in home.embed("b")
    assert encoding.unfed(night) == []
    assert home.rows() == {"a": n + 3, "b": n + 3}


def manifest() -> Manifest:
    return Manifest(str(DAY), "2026-03-02T00:00:00+00:00", {}, "1", "d", {}, {"zone": "UTC"}, {}, "1")


def test_a_bundle_that_does_not_say_how_its_encoder_is_opened_is_fed_by_that_of_the_settings_or_not_at_all(home: Shop) -> None:
    serve(home.config("a"), home.trains("a", named=False))
    assert [type(e).__name__ for e in served.fed(home.config("a"))] == ["HubModel"]
    assert "unfed" not in home.embed("a")
    home.delivers()
    (told,) = home.embed("b")["unfed"]
    assert told["version"] == home.version("a")
    assert "does not say how it is opened" in told["reason"]
    assert home.maintains("b") == {}, "a served model needs it"


def test_a_version_is_opened_by_whichever_name_of_a_served_bundle_still_leads_to_it(home: Shop) -> None:
    home.embed("a")
    home.crowns("a")
    (home.models / "a").rename(home.models / "moved")
    moved = home.config("moved")
    assert served.encoders(moved)[0].version == served.fed(home.config("b"))[0].version, "a folder that moves keeps its version"
    seal(home.home / "made", {"kind": "two_tower", "as_of": None, "encoders": {"text": served.encoders(moved)[0].version}, "encoder_names": moved.encoder_names})
    client = server.client(moved)
    run = client.create_run(client.get_experiment_by_name("t").experiment_id)
    registry.register(moved, home.home / "made", run.info.run_id, {"as_of": None})
    home.delivers()
    assert "unfed" not in encoding.embed(Night(home.config("b"), DAY))
    assert [e.names for e in served.fed(home.config("b")) if isinstance(e, Earlier)] == [[str(home.models / "moved"), str(home.models / "a")]]


def test_an_encoder_is_opened_when_the_first_content_waits_and_once(home: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    home.embed("a")
    home.crowns("a")
    home.embed("b")
    opened, real = list[str](), earlier.encoder
    monkeypatch.setattr(earlier, "encoder", lambda name, *how: (opened.append(name), real(name, *how))[1])
    home.embed("b")
    assert opened == []
    home.delivers(1100)  # two batches
    assert home.embed("b")["text_new"] == 2200
    assert opened == [str(home.models / "a")]


def test_without_a_registry_none_is_made_and_the_settings_alone_say_what_is_fed_and_needed(home: Shop) -> None:
    (home.home / "mlflow.db").unlink()
    config = home.config("a")
    assert [e.version for e in served.fed(config)] == [home.version("a")]
    assert served.needed(config) == {home.version("a")}
    assert not (home.home / "mlflow.db").exists()


@pytest.mark.parametrize("harm", ["gone", "altered"])
def test_a_served_bundle_that_is_not_whole_is_passed_over_by_the_night_and_stops_what_deletes(home: Shop, harm: str) -> None:
    home.embed("a")
    home.crowns("a")
    home.embed("b")
    folder = home.home / "bundles" / "1"
    if harm == "gone":
        shutil.rmtree(folder)
    else:
        (folder / "bundle.json").write_text((folder / "bundle.json").read_text().replace("bert/", "bart/"))
    config, rows = home.config("b"), home.rows()
    assert [e.version for e in served.fed(config)] == [home.version("b")]
    with pytest.raises((InputError, QualityError)):
        served.needed(config)
    told = json.loads(mmrec("maintain", "--home", str(home.home), "--table", CACHE, "--json", ok=(3,)).stdout)["tables"]
    assert "not known which encoder versions are needed" in told[0]["refused"]
    assert home.rows() == rows


def test_the_encoder_of_the_settings_still_stops_the_night_when_it_can_not_be_opened(home: Shop) -> None:
    shutil.rmtree(home.models / "a")
    with pytest.raises(InputError, match="no such folder"):
        home.embed("a")


def test_an_earlier_version_is_itself_or_nothing(models: Path) -> None:
    cache, name = models / "cache", str(models / "a")
    whole = encoder(name, cache, modality="text")
    again = Earlier("text", whole.version, [str(models / "nowhere"), str(models / "b"), name], cache)
    assert (again.dim, again.encode(["hat"])[0].tolist()) == (whole.dim, whole.encode(["hat"])[0].tolist())
    for names, says in (([], "does not say"), ([str(models / "b")], "another version now"), (["minilm-l6"], "no such encoder")):
        with pytest.raises(Unfed, match=says):
            Earlier("text", whole.version, names, cache).encode(["hat"])
