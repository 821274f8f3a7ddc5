"""A night that a rival serves, by the real command line: its lists are those of the rival's own scores."""

import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from mmrec import config, dataset
from mmrec.bundle.bundle import load
from mmrec.context import Night
from mmrec.lake.store import Lake
from mmrec.models.ease import EASE
from mmrec.topk.exact import select
from tests.conftest import NIGHTS, Lived, mmrec, serve

pytestmark = pytest.mark.deep

DAY = "2026-03-06"


def test_ease_is_trained_judged_registered_and_serves_a_night_of_its_own_lists(lived: Lived, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    text = (home / "mmrec.toml").read_text()
    assert text.count('# model = "champion"') == 1
    (home / "mmrec.toml").write_text(text.replace('# model = "champion"', 'model = "ease"'))
    told = json.loads(mmrec("learn", "--home", str(home), "--date", NIGHTS[-1], "--json").stdout)
    version = told["register"]["model_version"]
    assert told["promote"]["decision"] in ("promoted", "held")
    settings = config.load(home)
    bundle = load(home / "bundles" / version)
    assert (bundle.kind, bundle.about["name"], bundle.encoders) == ("sparse", "ease", {})
    mine = Lived(home, [])
    measured = mine.sql(f"select distinct model, slice from ops_metrics where model_version = '{version}' and split = 'test'")
    assert {r["model"] for r in measured if r["slice"] == "all"} == {
        "champion", "popularity", "item_knn", "user_knn", "ease", "content_nn", "oracle"}  # fmt: skip
    assert not [r for r in measured if r["slice"].startswith("without_")], "it has no parts to hide"
    serve(settings, version)  # whatever the gate thinks of a model of so small a shop
    night = json.loads(mmrec("run", "--home", str(home), "--date", DAY, "--no-train", "--json").stdout)
    assert (night["published"], night["model_version"], night["lists"]) == (True, version, 60)
    then = Night(config.load(home), date.fromisoformat(NIGHTS[-1]))
    data = dataset.dataset(then)
    every = dataset.everything(data, then)
    model = EASE(bundle.about["config"]["lam"]).fit(data.items, data.log, every)
    assert data.items.n <= 200, "what is stored of a row is all of it"
    lake, day = Lake(home / "lake"), date.fromisoformat(DAY)
    offered = set(lake.day("gold.item_features", day)["item_id"].to_pylist())
    ids = [str(i) for i in data.items.ids]
    knows_N = np.isin(np.arange(len(ids)), data.log.item) & np.array([i in offered for i in ids])
    rows = lake.day("gold.recommendations", day).to_pylist()
    twins = {r["item_id"]: r["group_id"] for r in lake.arrow("silver.item_groups").to_pylist()}
    compared = 0
    for user in lake.day("gold.user_sequences", day).to_pylist():
        if user["wishes"]:  # what they ask for moves things
            continue
        listed = sorted((r for r in rows if r["user_id"] == user["user_id"] and r["source"] == "model"), key=lambda r: r["rank"])
        had = sorted({data.items.index[i] for i in user["item_ids"] if i in data.items.index and np.isin(data.items.index[i], data.log.item)})
        if not had:
            assert not listed
            continue
        h_N = np.zeros((1, len(ids)), np.float32)
        h_N[0, had] = 1
        own_N = np.asarray(h_N @ model.out if model.x_RN is None else (h_N @ model.x_RN.T) @ model.out)[0]
        seen = [data.items.index[i] for i in user["seen_item_ids"] if i in data.items.index]
        found = select(own_N[None], len(ids), seen=(np.array([0, len(seen)]), np.array(seen, np.int32)), allowed=knows_N)
        # the whole ranking, of two that are one thing the better
        groups: set[str] = set()
        want = []
        for i, s in zip(found.item[0], found.score[0], strict=True):
            kind = twins.get(ids[i], ids[i]) if i >= 0 else ""
            if i >= 0 and kind not in groups:
                groups.add(kind)
                want.append((ids[i], s))
        assert [r["item_id"] for r in listed] == [i for i, _ in want[: len(listed)]]
        # EASE's own score is summed densely, the stored one over what is there: both in fp32
        np.testing.assert_allclose([r["score"] for r in listed], [s for _, s in want[: len(listed)]], atol=1e-5)
        assert len(listed) == min(settings.night.k, len(want))
        compared += len(listed)
    assert compared > 500
    said = {r["reason"] for r in rows if r["source"] == "model"}
    assert len(said) > 20
    assert all(r.startswith("because of ") for r in said)
    assert "because of" in mmrec("show", rows[0]["user_id"], "--home", str(home)).stdout
    assert mine.json("run", "--date", DAY, "--replay")["content_hash"] == night["counts"]["publish"]["content_hash"]
    assert mine.json("verify")["ok"]
