"""Nights with a second stage, through the command line: what is trained, published, measured, refused and explained."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from mmrec import config
from mmrec.bundle.bundle import load
from mmrec.lake.store import Lake
from mmrec.recommend.slate import MODEL
from mmrec.remade import remade
from mmrec.whynot import why_not
from tests.conftest import NIGHTS, Lived, mmrec, serve

TRAINED, WHEN, VARIED = NIGHTS[-1], *(str(date.fromisoformat(NIGHTS[-1]) + timedelta(n)) for n in (1, 2))
DEPTH = 40
Row = dict[str, Any]


@dataclass(frozen=True)
class Staged:
    """A home whose champion has a second stage, after a night with it; `version`: the champion's."""

    home: Path
    version: str
    learned: Row
    night: Row

    @property
    def lake(self) -> Lake:
        return Lake(self.home / "lake")

    def json(self, *words: str) -> Any:
        return json.loads(mmrec(*words, "--home", str(self.home), "--json").stdout)

    def lists(self, when: str = WHEN) -> dict[str, list[Row]]:
        out: dict[str, list[Row]] = {}
        rows = self.lake.day("gold.recommendations", date.fromisoformat(when))
        for r in rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist():
            out.setdefault(r["user_id"], []).append(r)
        return out


@pytest.fixture(scope="module")
def staged(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    home = tmp_path_factory.mktemp("staged") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    text = (home / "mmrec.toml").read_text()
    assert text.count("# depth = 0") == 1
    assert text.count("# columns = {}") == 1
    text = text.replace("# columns = {}", 'columns = { "items.price" = "log", "context.hour" = "cyclic 24" }')
    text = re.sub(r"(?m)^# sources = .*", 'sources = ["context", "social"]', text)  # each costs a fit more
    (home / "mmrec.toml").write_text(text.replace("# depth = 0", f"depth = {DEPTH}"))
    learned = json.loads(mmrec("learn", "--home", str(home), "--date", TRAINED, "--json").stdout)
    version = learned["register"]["model_version"]
    serve(config.load(home), version)  # whatever the gate thinks of a model of so small a shop
    night = json.loads(mmrec("run", "--home", str(home), "--date", WHEN, "--no-train", "--json").stdout)
    return Staged(home, version, learned, night)


def test_its_graph_is_sealed_with_the_bundle_and_says_what_it_sees(staged: Staged) -> None:
    bundle = load(staged.home / "bundles" / staged.version)
    told = bundle.about["second_stage"]
    assert (bundle.folder / "second.onnx").is_file()
    assert told["depth"] == DEPTH
    assert told["features"][:2] == ["score", "place"]
    assert told["cases"] > 0
    assert told["parity"] < 1e-4
    assert staged.night["model_version"] == staged.version
    assert staged.night["counts"]["plan"]["config"]["second_stage"]["depth"] == DEPTH


def test_the_shops_own_columns_are_sealed_with_it_and_ranked_beside_all_features(staged: Staged) -> None:
    bundle = load(staged.home / "bundles" / staged.version)
    told = bundle.about["second_stage"]
    columns = {f for f in told["features"] if f.startswith("columns/")}
    assert columns == {"columns/items.price", "columns/context.hour: sine", "columns/context.hour: cosine"}
    assert told["sources"] == ["columns", "context", "social"]
    assert (bundle.folder / "columns.json").is_file()
    found = staged.json("features", "rank", "--date", TRAINED)
    assert [r["name"] for r in found["features"]] != told["features"]
    assert {r["name"] for r in found["features"]} == set(told["features"])
    assert found["depth"] == DEPTH
    lost = [r["permutation"][0] for r in found["features"]]
    assert lost == sorted(lost, reverse=True)
    assert [r["name"] for r in found["features"] if r["leak"]] == []


def test_lists_carry_the_models_own_place_and_score(staged: Staged) -> None:
    moved = 0
    wishing = {r["user_id"] for r in remade(config.load(staged.home), staged.lake).users.to_pylist() if r["wishes"]}
    for user, rows in staged.lists().items():
        own = [r for r in rows if r["source"] == MODEL]
        assert all(r["ranked"] is not None for r in own)
        assert all(r["ranked"] is None for r in rows if r["source"] != MODEL)
        scores = [r["score"] for r in sorted(own, key=lambda r: r["ranked"])]
        assert scores == sorted(scores, reverse=True)
        assert user in wishing or all(r["ranked"] <= DEPTH for r in own)
        moved += [r["ranked"] for r in own] != sorted(r["ranked"] for r in own)
    assert moved > 10 or load(staged.home / "bundles" / staged.version).about["second_stage"]["epochs"] == [0] * 5


def test_a_night_made_again_by_hand_has_its_order(staged: Staged) -> None:
    night = remade(config.load(staged.home), staged.lake)
    ids = night.items["item_id"].to_pylist()
    row = night.users.slice(0, 1)
    user, seen = row["user_id"][0].as_py(), set(row["seen_item_ids"][0].as_py())
    with night.packed([]) as packed:
        scored, second = packed.scored(row), packed.second
        assert second is not None
        had = np.array([n for n, i in enumerate(ids) if i in seen], np.int32)
        top = scored.best(slice(0, 1), slice(0, 1), DEPTH, (np.array([0, len(had)]), had))
        own = [ids.index(i) for i in row["item_ids"][0].as_py() if i in set(ids)]
        made = second.ranked(top, 5, (np.array([0, len(own)]), np.array(own, np.int32)), second.who(row))
    if not any(r["passed"] or r["rule"] for r in staged.lists()[user]) and not row["wishes"][0].as_py():
        assert [r["item_id"] for r in staged.lists()[user]][:5] == [ids[i] for i in made.item[0]]


def test_every_promise_holds_and_the_night_is_repeated_byte_for_byte(staged: Staged, tmp_path: Path) -> None:
    assert [c for c in staged.json("verify")["checks"] if not c["ok"]] == []
    home = tmp_path / "home"
    shutil.copytree(staged.home, home, symlinks=True)
    (home / "mmrec.toml").write_text((home / "mmrec.toml").read_text().replace(f"depth = {DEPTH}", "depth = 0"))
    told = json.loads(mmrec("run", "--home", str(home), "--date", WHEN, "--replay", "--json").stdout)
    assert told["content_hash"] == staged.night["counts"]["publish"]["content_hash"]


def test_the_test_windows_were_read_with_it_and_without(staged: Staged) -> None:
    rows = [r for r in staged.lake.arrow("ops.metrics").to_pylist() if r["model_version"] == staged.version and r["split"] == "test"]
    by = {(r["protocol"], r["slice"], r["model"], r["metric"]): r for r in rows}
    own, twice = (by["rolling", "all", name, "ndcg@10"] for name in ("champion", "second_stage"))
    gap = by["rolling", "vs_second_stage", "champion", "ndcg@10"]
    assert own["n"] == twice["n"] == gap["n"]
    assert gap["value"] == pytest.approx(own["value"] - twice["value"], abs=1e-12)
    assert gap["lo"] <= gap["value"] <= gap["hi"]
    assert not any(r["model"] == "second_stage" and r["protocol"] == "per_user" for r in rows)
    assert staged.learned["evaluate"]["rolling"]["second_stage"]["ndcg@10"] == round(twice["value"], 4)
    assert "second_stage" in (staged.home / "reports" / WHEN / "report.html").read_text()


def test_a_model_without_one_is_refused_when_the_night_is_planned(lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    serve(config.load(home), lived.nights[0]["counts"]["training"]["register"]["model_version"])
    monkeypatch.setenv("MMREC_SECOND_STAGE__DEPTH", str(DEPTH))
    done = mmrec("run", "--home", str(home), "--date", WHEN, "--no-train", ok=(2,))
    said = " ".join(done.stderr.split())
    assert "ask for a second stage that the model does not have" in said
    assert f"mmrec learn --date {WHEN}" in said
    monkeypatch.setenv("MMREC_TRAIN__MODEL", "ease")
    done = mmrec("train", "--home", str(home), "--date", WHEN, ok=(2,))
    assert "a second stage is fitted over mmrec's own model alone" in " ".join(done.stderr.split())


@pytest.mark.deep
def test_with_diversity_places_and_scores_stay_the_models_and_why_not_knows_who_moved_it(staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(staged.home, home, symlinks=True)
    with monkeypatch.context() as patch:
        patch.setenv("MMREC_DIVERSITY__STRENGTH", "0.5")
        patch.setenv("MMREC_DIVERSITY__POOL", "30")
        night = json.loads(mmrec("run", "--home", str(home), "--date", VARIED, "--no-train", "--json").stdout)
    varied = replace(staged, home=home, night=night)
    for rows in varied.lists(VARIED).values():
        own = sorted((r for r in rows if r["source"] == MODEL), key=lambda r: r["ranked"])
        assert [r["score"] for r in own] == sorted((r["score"] for r in own), reverse=True)
    assert [c for c in varied.json("verify")["checks"] if not c["ok"]] == []
    cfg, again = config.load(home), remade(config.load(home), varied.lake)
    fell: dict[str, tuple[str, str]] = {}
    for user, rows in list(varied.lists(VARIED).items())[:6]:
        gone = {r["item_id"] for r in rows} | set(again.users.filter(pc.equal(again.users["user_id"], user))["seen_item_ids"][0].as_py())
        for item in [i for i in again.items["item_id"].to_pylist() if i not in gone][:4]:
            fell.setdefault(why_not(cfg, varied.lake, user, item)["fell"], (user, item))
    assert set(fell) <= {"second_stage", "diversity", "outranked", "wish", "twin", "rule"}
    said = mmrec("why-not", *fell["second_stage"], "--home", str(home)).stdout
    assert "and its second stage" in " ".join(said.split())
