"""A night that a trained model serves: whatever the gate thinks of a model of so small a shop, it is crowned by hand."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mmrec import config, promotion, served
from mmrec.bundle import registry
from mmrec.bundle.bundle import load
from mmrec.lake.maintain import maintain
from mmrec.lake.store import Lake
from tests.conftest import Lived, mmrec, serve

DAY = "2026-03-06"


def test_a_trained_model_serves_a_night_that_replays_and_keeps_every_promise(lived: Lived, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    version = lived.nights[0]["counts"]["training"]["register"]["model_version"]
    serve(config.load(home), version)
    night = json.loads(mmrec("run", "--home", str(home), "--date", DAY, "--no-train", "--json").stdout)
    assert night["published"]
    assert night["model_version"] == version
    assert night["lists"] == night["users"] == 60
    served = Lived(home, [night])
    rows = served.sql("select source, count(*) n, count(distinct reason) r from latest_recommendations group by 1")
    by = {r["source"]: r for r in rows}
    assert by["model"]["n"] > 0.9 * sum(r["n"] for r in rows)
    assert by["model"]["r"] > 20
    vectors = served.sql(f"select count(*) n, count(distinct len(vector)) d from user_vectors where run_date = '{DAY}'")[0]
    assert vectors == {"n": 60, "d": 1}
    told = served.json("run", "--date", DAY, "--replay")
    assert told["content_hash"] == night["counts"]["publish"]["content_hash"]
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]


def test_a_night_is_scored_with_vectors_that_the_settings_no_longer_ask_for(lived: Lived, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    version = lived.nights[0]["counts"]["training"]["register"]["model_version"]
    bundle = load(home / "bundles" / version)
    assert bundle.encoder_names == {"text": "minilm", "image": "efficientnet-lite0", "audio": "logmel"}
    serve(config.load(home), version)
    # the settings have no use for texts and sounds any more; the champion has
    text = (home / "mmrec.toml").read_text()
    for modality, name in (("text", "minilm"), ("audio", "logmel")):
        assert text.count(f'# {modality} = "{name}"') == 1
        text = text.replace(f'# {modality} = "{name}"', f'{modality} = ""')
    (home / "mmrec.toml").write_text(text)
    night = json.loads(mmrec("run", "--home", str(home), "--date", DAY, "--no-train", "--json").stdout)
    assert night["model_version"] == version
    counts = night["counts"]["embed"]
    assert counts["text_new"] > 0
    assert "unfed" not in counts
    lake = Lake(home / "lake")
    offered = lake.day("gold.item_features", datetime.fromisoformat(DAY).date(), columns=["text_sha256"])["text_sha256"]
    rows = lake.arrow("gold.item_embeddings", columns=["content_sha256", "encoder_version"]).to_pylist()
    assert {s for s in offered.to_pylist() if s} <= {r["content_sha256"] for r in rows if r["encoder_version"] == bundle.encoders["text"]}

    def maintained() -> dict[str, int]:
        cfg = config.load(home)
        told = maintain(cfg, now=datetime.now(UTC) + timedelta(days=8), needed=lambda: served.needed(cfg))
        assert not [t["refused"] for t in told if t["refused"]]
        return next(t["unneeded"] for t in told if t["table"] == "gold.item_embeddings")

    assert [v.split("/")[0] for v in maintained()] == ["words"], "no text of the settings is left for it"
    assert promotion.rollback(config.load(home), by="ann")["model_version"] == registry.ZERO
    assert set(maintained()) == {bundle.encoders["text"], bundle.encoders["audio"]}
    again = Lived(home, [night])
    told = again.json("run", "--date", DAY, "--replay")
    assert told["content_hash"] == night["counts"]["publish"]["content_hash"]
    assert again.json("verify", "--deep")["ok"]
