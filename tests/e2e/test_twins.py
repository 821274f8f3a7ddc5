"""Nights over a tiny world in which popular items are listed twice: no list holds both, and nights of before twins were
known are what they were."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from mmrec import config, promotion
from mmrec.bundle import registry
from mmrec.context import Night, call
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.run import replay
from mmrec.verify import verify
from tests.conftest import mmrec, share_encoders

pytestmark = pytest.mark.deep

FIRST, SECOND, OLD = "2026-03-02", "2026-03-03", "2026-03-04"
GROUPS, LISTS = "silver.item_groups", "gold.recommendations"
Twice = tuple[Path, tuple[str, ...], list[dict[str, Any]]]
KNOWN = "no list offers an item beside its twin"


def plant(folder: Path) -> tuple[str, ...]:
    """Give the six most popular of the items that a quarter of the users had a twin that as many others had."""
    rows = list(csv.DictReader((folder / "interactions.csv").open(newline="")))
    items = {r["item_id"]: r for line in (folder / "items.jsonl").read_text().splitlines() if (r := json.loads(line))["title"]}
    fans: dict[str, set[str]] = {}
    for row in rows:
        if row["item_id"] in items and "Renewed" not in items[row["item_id"]]["title"]:
            fans.setdefault(row["item_id"], set()).add(row["user_id"])
    chosen = sorted((i for i in fans if len(fans[i]) <= 15), key=lambda i: (-len(fans[i]), i))[:6]
    with (folder / "items.jsonl").open("a") as file:
        for item in chosen:
            row = items[item]
            picture = Image.open(folder / row["image"])
            out = io.BytesIO()
            picture.resize((96, 96), Image.Resampling.BICUBIC).convert("RGB").save(out, "JPEG", quality=80)
            (folder / f"media/twin-{item}.jpg").write_bytes(out.getvalue())
            file.write(json.dumps(row | {"item_id": f"twin-{item}", "title": row["title"].upper() + "!", "image": f"media/twin-{item}.jpg"}) + "\n")
    with (folder / "interactions.csv").open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        for item in chosen:
            # others than its own fans, so that it is as popular as it
            others = sorted({r["user_id"] for r in rows if r["user_id"].startswith("u")} - fans[item])[: len(fans[item])]
            mine = next(r for r in rows if r["item_id"] == item and r["user_id"] in fans[item])
            writer.writerows(mine | {"item_id": f"twin-{item}", "user_id": user} for user in others)
    return tuple(chosen)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> Twice:
    """A home, the items that are listed twice in it, and its two nights, the first of which trained."""
    home = tmp_path_factory.mktemp("twice") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    share_encoders(home, encoders_cache)
    mmrec("steps", "world", "--home", str(home), "--date", FIRST)
    (history,) = (p for p in (home / "source").iterdir() if (p / "items.jsonl").is_file())
    chosen = plant(history)
    nights = [json.loads(mmrec("run", "--home", str(home), "--date", day, "--json", *more).stdout)
              for day, more in ((FIRST, ["--train"]), (SECOND, []))]  # fmt: skip
    return home, chosen, nights


def lists(home: Path, day: str) -> dict[str, list[str]]:
    rows = Lake(home / "lake").day(LISTS, date.fromisoformat(day)).sort_by([("user_id", "ascending"), ("rank", "ascending")])
    found: dict[str, list[str]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["user_id"], []).append(row["item_id"])
    return found


def together(home: Path, day: str, chosen: tuple[str, ...]) -> int:
    return sum({item, f"twin-{item}"} <= set(offered) for offered in lists(home, day).values() for item in chosen)


def check(home: Path) -> dict[str, Any]:
    found = verify(config.load(home))
    assert [f for f in found if not f["ok"] and f["check"] != KNOWN] == []
    return next(f for f in found if f["check"] == KNOWN)


def test_who_is_listed_twice_is_known_and_no_list_holds_both(twice: Twice) -> None:
    home, chosen, nights = twice
    rows = {r["item_id"]: r for r in Lake(home / "lake").arrow(GROUPS).to_pylist()}
    for item in chosen:
        assert rows[item]["group_id"] == rows[f"twin-{item}"]["group_id"] == item
        assert rows[f"twin-{item}"]["modalities"] == ["audio", "image", "text"]
        assert 0.5 < rows[f"twin-{item}"]["similarity"] < 1
    assert all(n["published"] and n["lists"] == n["users"] for n in nights)
    lake = Lake(home / "lake")
    for day in (FIRST, SECOND):
        offered = lists(home, day)
        assert together(home, day, chosen) == 0
        # as long as there are things that the user has not seen
        of_day = set(lake.day("gold.item_features", date.fromisoformat(day))["item_id"].to_pylist())
        for user in lake.day("gold.user_sequences", date.fromisoformat(day)).to_pylist():
            new = {rows[i]["group_id"] if i in rows else i for i in of_day - set(user["seen_item_ids"])}
            assert len(offered[user["user_id"]]) == min(20, len(new))
        assert any(item in own or f"twin-{item}" in own for own in offered.values() for item in chosen), "nothing was kept apart"
    assert check(home) == {"check": KNOWN, "ok": True, "detail": "2 dates; of 0 no groups are kept"}


def test_a_night_pins_the_groups_and_is_replayed_to_the_same_bytes(twice: Twice) -> None:
    home, _, nights = twice
    lake = Lake(home / "lake")
    recorded = {r["run_id"]: r for r in lake.arrow("ops.runs").to_pylist()}
    for day, night in zip((FIRST, SECOND), nights, strict=True):
        own = recorded[night["run_id"]]
        assert json.loads(own["manifest"])["tables"][GROUPS] == lake.version(GROUPS)
        assert replay(config.load(home), date.fromisoformat(day), lambda *_: None)["content_hash"] == own["content_hash"]


def test_a_catalogue_that_did_not_change_is_not_looked_at_again(twice: Twice) -> None:
    home, _, _ = twice
    code = ("from mmrec.content import duplicates\n"
            "def twins(*_): raise AssertionError('computed again')\n"
            "duplicates.twins = twins\nfrom mmrec.cli import main\nmain()\n")  # fmt: skip
    version = Lake(home / "lake").version(GROUPS)
    done = subprocess.run([sys.executable, "-c", code, "embed", "--home", str(home), "--date", SECOND, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["groups"] >= 6
    assert Lake(home / "lake").version(GROUPS) == version


def test_a_planted_pair_in_a_published_list_is_found(twice: Twice, tmp_path: Path) -> None:
    home, chosen, _ = twice
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    lake, day = Lake(tmp_path / "home" / "lake"), date.fromisoformat(SECOND)
    rows, pair = lake.day(LISTS, day).to_pylist(), {a: b for i in chosen for a, b in ((i, f"twin-{i}"), (f"twin-{i}", i))}
    one = next(r for r in rows if r["item_id"] in pair)
    other = next(r for r in rows if r["user_id"] == one["user_id"] and r["item_id"] not in pair)
    planted = [r | {"item_id": pair[one["item_id"]]} if r is other else r for r in rows]
    table = pa.Table.from_pylist(planted, lake.arrow(LISTS).schema)
    commit.write(lake, LISTS, table, run_id="planted", pinned=commit.fence(lake, LISTS, day), partition=day)
    found = {f["check"]: f for f in verify(config.load(tmp_path / "home"))}
    assert found[KNOWN] == {"check": KNOWN, "ok": False, "detail": "1 exceptions"}


def test_a_manifest_of_before_twins_were_known_gives_lists_as_they_were_and_is_replayed(
    twice: Twice, tmp_path: Path
) -> None:
    home, chosen, _ = twice
    shutil.copytree(home, tmp_path / "home", symlinks=True)
    cfg = config.load(tmp_path / "home")
    while registry.state(cfg).stack:  # by popularity alone the two stand side by side for many, whatever was trained
        promotion.rollback(cfg, by="a test")
    night = Night(cfg, date.fromisoformat(SECOND) + timedelta(days=1))
    for name in ("world", "ingest", "validate", "embed", "plan"):
        call(name, night)
    tables = {n: v for n, v in night.manifest.tables.items() if n != GROUPS}
    night.planned(replace(night.manifest, tables=tables, code="0.0.9"))
    for name in ("features", "recommend", "publish"):
        call(name, night)
    assert together(cfg.home, OLD, chosen) > 0, "the twins are not popular enough to prove anything"
    told = replay(cfg, night.run_date, lambda *_: None)
    recorded = {r["run_id"]: r["content_hash"] for r in night.lake.arrow("ops.runs").to_pylist()}
    assert told["content_hash"] == recorded[night.manifest.run_id]
    assert check(cfg.home)["detail"] == "2 dates; of 1 no groups are kept"
    # planned again, the same night keeps them apart
    call("plan", night)
    assert GROUPS in night.manifest.tables
    for name in ("features", "recommend", "publish"):
        call(name, night)
    assert together(cfg.home, OLD, chosen) == 0
