"""A night whose lists have places for what other generators bring: who brought what, checked against the day's tables."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from mmrec import config
from mmrec.bundle import registry
from mmrec.dates import micros
from mmrec.errors import InputError
from mmrec.follows import of_bundle
from mmrec.lake.store import Lake
from mmrec.recommend.generators import NAMES
from mmrec.recommend.slate import FALLBACK, MODEL
from mmrec.remade import remade
from mmrec.whynot import why_not
from tests.conftest import NIGHTS, Lived, mmrec

WHEN = str(date.fromisoformat(NIGHTS[-1]) + timedelta(1))
EVERY, K = 3, 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Mixed:
    """A home of whose nights the last asked other generators; its settings tell nothing of it any more."""

    home: Path
    night: Row

    @property
    def lake(self) -> Lake:
        return Lake(self.home / "lake")

    def lists(self) -> dict[str, list[Row]]:
        out: dict[str, list[Row]] = {}
        rows = self.lake.day("gold.recommendations", date.fromisoformat(WHEN))
        for r in rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist():
            out.setdefault(r["user_id"], []).append(r)
        return out


@pytest.fixture(scope="module")
def mixed(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    home = tmp_path_factory.mktemp("mixed") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_CANDIDATES__GENERATORS", json.dumps(NAMES))
        patch.setenv("MMREC_CANDIDATES__EVERY", str(EVERY))
        night = json.loads(mmrec("run", "--home", str(home), "--date", WHEN, "--no-train", "--json").stdout)
    return Mixed(home, night)


def test_every_third_place_is_brought_by_the_generators_in_turn(mixed: Mixed) -> None:
    night = remade(config.load(mixed.home), mixed.lake)
    assert str(night.day) == WHEN
    wishing = {r["user_id"] for r in night.users.to_pylist() if r["wishes"]}
    items = {r["item_id"]: r for r in night.items.to_pylist()}
    linked = {r["user_id"]: r["social_item_ids"] or [] for r in night.users.to_pylist()}
    counts: Counter[str] = Counter()
    for user, rows in mixed.lists().items():
        counts.update(r["source"] for r in rows)
        for r in rows:
            assert r["ranked"] is not None or r["source"] == FALLBACK
            if r["source"] == "new":
                assert micros(night.manifest.moment) - items[r["item_id"]]["available_us"] < 14 * 86_400_000_000
            if r["source"] == "social":
                assert r["item_id"] in linked[user]
        if user in wishing or any(r["passed"] for r in rows):  # what they ask for, or a twin, moves things again
            continue
        if rows[0]["source"] == MODEL:
            assert {r["rank"] for r in rows if r["source"] in NAMES} == set(range(EVERY, len(rows) + 1, EVERY))
        own = [r["ranked"] for r in rows if r["source"] == MODEL]
        assert own == sorted(own)
    assert set(NAMES) <= set(counts)
    assert counts[MODEL] > counts["content"] > 0


def test_friends_items_are_those_of_a_plain_count(mixed: Mixed) -> None:
    night = remade(config.load(mixed.home), mixed.lake)
    end, start = night.manifest.moment, night.manifest.moment - timedelta(30)
    seen = [r for r in mixed.lake.arrow("silver.interactions").to_pylist() if start <= r["event_ts"] < end and r["available_at"] < end]
    follows: dict[str, set[str]] = {}
    for r in mixed.lake.arrow("silver.relations").to_pylist():
        if r["kind"] == "user" and r["available_at"] < end:
            follows.setdefault(r["subject_id"], set()).add(r["object_id"])
    for row in night.users.to_pylist()[::37]:
        had = {r["item_id"] for r in seen if r["user_id"] in follows.get(row["user_id"], ())}
        assert set(row["social_item_ids"] or ()) <= had
        assert len(row["social_item_ids"] or ()) == min(50, len(had))


def test_every_promise_holds_and_the_night_is_repeated_whatever_is_set_now(mixed: Mixed, tmp_path: Path) -> None:
    told = json.loads(mmrec("verify", "--home", str(mixed.home), "--json").stdout)
    assert [c for c in told["checks"] if not c["ok"]] == []
    home = tmp_path / "home"
    shutil.copytree(mixed.home, home, symlinks=True)
    again = json.loads(mmrec("run", "--home", str(home), "--date", WHEN, "--replay", "--json").stdout)
    assert mixed.night["counts"]["publish"]["content_hash"] in json.dumps(again)


def test_why_not_says_that_others_have_its_place(mixed: Mixed) -> None:
    cfg, lake = config.load(mixed.home), mixed.lake
    night = remade(cfg, lake)
    wishing = {r["user_id"] for r in night.users.to_pylist() if r["wishes"]}
    user, rows = next((u, rows) for u, rows in mixed.lists().items() if u not in wishing and rows[0]["source"] == MODEL
                      and len(rows) == K and not any(r["passed"] for r in rows))  # fmt: skip
    with night.packed([]) as packed:
        row = night.users.filter(pc.equal(night.users["user_id"], user))
        whole = packed.scored(row).best(slice(0, 1), slice(None), K, _seen(row, packed)).item[0]
    listed = {r["item_id"] for r in rows}
    gone = [i for i in (night.items["item_id"][int(at)].as_py() for at in whole) if i not in listed]
    told = why_not(cfg, lake, user, gone[0])
    assert told["fell"] == "generators"
    assert "are what other generators brought" in told["says"]
    brought = next(r for r in rows if r["source"] in NAMES)
    assert f"({brought['source']})" in why_not(cfg, lake, user, brought["item_id"])["says"]


def _seen(row: Any, packed: Any) -> Any:
    from mmrec.recommend.histories import rows_of

    found = rows_of(row["seen_item_ids"], packed.items["item_id"].combine_chunks())
    kept = found.kept(found.at >= 0)
    return kept.ptr, kept.at


def test_what_a_model_can_not_bring_is_refused_before_the_night(lived: Lived, tmp_path: Path) -> None:
    cfg = config.load(lived.home, candidates={"generators": ["item_to_item"]})
    bundle, _ = registry.champion(cfg)
    assert of_bundle(cfg, bundle, date(2026, 3, 6))["candidates"]["generators"] == ("item_to_item",)
    plain = type(bundle)(bundle.folder, bundle.digest, bundle.about | {"kind": "sparse"})
    with pytest.raises(InputError, match="no vectors of items") as caught:
        of_bundle(cfg, plain, date(2026, 3, 6))
    assert "candidates.generators" in str(caught.value.where)
    with pytest.raises(InputError, match="named twice"):
        config.load(tmp_path, candidates={"generators": ["new", "new"]})


def test_what_a_generator_would_bring_is_what_users_then_chose_counted_by_hand(mixed: Mixed) -> None:
    told = json.loads(mmrec("candidates", "--home", str(mixed.home), "--json").stdout)
    by = {r["name"]: r for r in told["generators"]}
    night = remade(config.load(mixed.home), mixed.lake, date.fromisoformat(told["run_date"]))
    asked = "social" in (night.manifest.config.get("candidates") or {}).get("generators", ())
    assert next(iter(by)) == "model"
    assert set(by) == {"model", "all of them", *NAMES}
    assert ("recall" in by["social"]) == asked
    assert by["model"]["difference"] == {"ndcg@10": [0, 0, 0], "recall@10": [0, 0, 0]}
    start, end = night.manifest.moment, night.manifest.moment + timedelta(7)
    offered = {r["item_id"]: r["popularity_micro"] for r in night.items.to_pylist()}
    seen = dict(zip(*(night.users[c].to_pylist() for c in ("user_id", "seen_item_ids")), strict=True))
    wanted: dict[str, set[str]] = {}
    for r in mixed.lake.arrow("silver.interactions").to_pylist():
        if start <= r["event_ts"] < end and r["item_id"] in offered and r["item_id"] not in seen.get(r["user_id"], [r["item_id"]]):
            wanted.setdefault(r["user_id"], set()).add(r["item_id"])
    assert told["users"] == len(wanted) > 10
    order = sorted(offered, key=lambda i: (-offered[i], i))
    recall = [len(items & {*[i for i in order if i not in seen[u]][:50]}) / len(items) for u, items in wanted.items()]
    assert by["popular"]["recall"] == pytest.approx(sum(recall) / len(recall), abs=1e-12)
    for name, row in by.items():
        if "recall" in row:
            assert 0 <= row["new"] <= row["recall"] <= 1
            assert row["new"] == 0 or name != "model"
        if "ndcg@10" in row:
            mean, low, high = row["difference"]["ndcg@10"]
            assert low <= mean <= high
            assert mean == pytest.approx(row["ndcg@10"] - by["model"]["ndcg@10"], abs=1e-12)
    assert "with each 5th place given away" in " ".join(mmrec("candidates", "--home", str(mixed.home)).stdout.split())


def test_the_report_says_how_true_reasons_are_once_a_model_version(mixed: Mixed) -> None:
    rows = [r for r in mixed.lake.arrow("ops.metrics").to_pylist() if r["protocol"] == "reasons"]
    first = {r["model"]: r for r in rows if r["metric"] == "first"}
    assert set(first) == {"contributions", "nearest", "most_recent"}
    assert len({r["model_version"] for r in rows}) == 1
    assert first["contributions"]["value"] > first["nearest"]["value"]
    assert first["contributions"]["lo"] <= first["contributions"]["value"] <= first["contributions"]["hi"]
    assert "Are the reasons true" in (mixed.home / "reports" / WHEN / "report.html").read_text()
