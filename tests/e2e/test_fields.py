"""Nights over a tiny world in which items have several pictures, texts are taken apart and makers are known: what a model was
trained on is what its nights are scored with, whatever the settings say since."""

import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from mmrec import config
from mmrec.bundle.bundle import load
from mmrec.lake.store import Lake
from tests.conftest import Lived, mmrec, serve, share_encoders

FIRST, SECOND = "2026-03-02", "2026-03-03"
CHOSEN = {"text": "separate", "image": "mean"}


def plant(folder: Path) -> int:
    """Every third item with a picture lists the next such item's as its second, and one that is not there as its third."""
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines() if line.startswith("{")]
    own = [r for r in rows if r.get("image") and (folder / r["image"]).is_file()]
    for n, row in enumerate(own[:-1:3]):
        row["image"] = [row["image"], f"media/more-{n}.png", "media/gone.png"]
        other = own[3 * n + 1]["image"]
        shutil.copy(folder / other, folder / row["image"][1])
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return len(own[:-1:3])


@pytest.mark.deep
def test_a_model_of_pooled_fields_serves_nights_that_replay_after_the_settings_moved_on(tmp_path: Path, encoders_cache: Path) -> None:
    home = tmp_path / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    share_encoders(home, encoders_cache)
    mmrec("steps", "world", "--home", str(home), "--date", FIRST)
    (history,) = (p for p in (home / "source").iterdir() if (p / "items.jsonl").is_file())
    planted = plant(history)
    usual = (home / "mmrec.toml").read_text()
    chosen = usual.replace('# text_fields = "joined"', 'text_fields = "separate"').replace('# images = "first"', 'images = "mean"')
    chosen = chosen.replace("# knowledge = 0", "knowledge = 8")
    (home / "mmrec.toml").write_text(chosen)
    first = json.loads(mmrec("run", "--home", str(home), "--date", FIRST, "--json", "--train").stdout)
    version = first["counts"]["training"]["register"]["model_version"]
    assert load(home / "bundles" / version).fields == load(home / "bundles" / version).about["fields"] == CHOSEN
    assert load(home / "bundles" / version).about["content_dims"]["knowledge"] == 8
    lived = Lived(home, [first])
    assert lived.sql("select count(*) n from ops_quarantine where rule = 'image_missing' and occurrence = 2")[0]["n"] == planted
    item = lived.sql("select item_id from items where images_sha256 is not null order by 1 limit 1")[0]["item_id"]
    assert lived.json("neighbours", item, "--modality", "image")
    # the settings go back; the champion stays what it was trained on, and new texts are encoded for it
    serve(config.load(home), version)
    (home / "mmrec.toml").write_text(usual)
    night = json.loads(mmrec("run", "--home", str(home), "--date", SECOND, "--json", "--no-train").stdout)
    assert (night["model_version"], night["published"]) == (version, True)
    lake = Lake(home / "lake")
    rows = lake.day("gold.item_features", date.fromisoformat(SECOND)).to_pylist()
    apart = {sha for r in rows for sha in r["texts_sha256"] or ()}
    assert apart
    assert sum(r["images_sha256"] is not None for r in rows) > 0
    vectors = lake.arrow("gold.item_embeddings", columns=["content_sha256"])["content_sha256"].to_pylist()
    assert apart | {sha for r in rows for sha in r["images_sha256"] or () if sha} <= set(vectors)
    assert sum(r["entities"] is not None for r in rows) == len(rows) > 0
    made_of = {p for r in lake.day("gold.recommendations", date.fromisoformat(SECOND))["parts"].to_pylist() for p in r or ()}
    assert made_of == {"behaviour", "text", "image", "audio", "knowledge", "popularity"}
    told = lived.json("run", "--date", SECOND, "--replay")
    assert told["content_hash"] == night["counts"]["publish"]["content_hash"]
    assert lived.json("verify")["ok"]
