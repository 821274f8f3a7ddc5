"""A night whose lists are to be diverse: what it publishes, what that cost a week before, and where an item went."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mmrec import config, metrics
from mmrec.errors import InputError, QualityError
from mmrec.lake.store import Lake
from mmrec.recommend.check import check_slates
from mmrec.recommend.slate import MODEL, chosen
from mmrec.recommend.vary import Aims, Variety
from mmrec.remade import remade
from mmrec.tradeoff import tradeoff
from mmrec.whynot import why_not
from tests.conftest import NIGHTS, Lived, mmrec

WHEN = str(date.fromisoformat(NIGHTS[-1]) + timedelta(1))
STRENGTH, PLACES, POOL, K = 0.6, 8, 30, 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Diverse:
    """A home of whose nights the last aimed at diversity; its settings tell nothing of it any more."""

    home: Path
    night: Row

    @property
    def lake(self) -> Lake:
        return Lake(self.home / "lake")

    def json(self, *words: str) -> Any:
        return json.loads(mmrec(*words, "--home", str(self.home), "--json").stdout)

    def lists(self) -> dict[str, list[Row]]:
        out: dict[str, list[Row]] = {}
        rows = self.lake.day("gold.recommendations", date.fromisoformat(WHEN))
        for r in rows.sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist():
            out.setdefault(r["user_id"], []).append(r)
        return out


@pytest.fixture(scope="module")
def diverse(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Diverse:
    home = tmp_path_factory.mktemp("diverse") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("STRENGTH", STRENGTH), ("PLACES", PLACES), ("POOL", POOL), ("CALIBRATION", 0.1)):
            patch.setenv(f"MMREC_DIVERSITY__{name}", str(value))
        night = json.loads(mmrec("run", "--home", str(home), "--date", WHEN, "--no-train", "--json").stdout)
    return Diverse(home, night)


def test_lists_are_the_models_ranking_put_in_another_order(diverse: Diverse) -> None:
    """The first places are the formula's own, checked on every list against the ranking before it; the rest follow."""
    night = remade(config.load(diverse.home), diverse.lake)
    assert str(night.day) == WHEN
    moved = 0
    wishing = {r["user_id"] for r in night.users.to_pylist() if r["wishes"]}
    for user, rows in diverse.lists().items():
        if user in wishing:  # what they ask for moves things again
            continue
        ranked = [r["ranked"] for r in rows if r["source"] == MODEL]
        assert all(r is not None for r in ranked)
        assert all(r["ranked"] is None for r in rows if r["source"] != MODEL)
        assert ranked[:1] in ([1], []) or night.manifest.config["diversity"]["calibration"], "the first is like nothing"
        assert ranked[PLACES:] == sorted(ranked[PLACES:]), "behind the chosen places the model's order stands"
        assert all(1 <= r <= POOL for r in ranked[:PLACES])
        scores = [r["score"] for r in sorted(rows, key=lambda r: r["ranked"] or 0) if r["source"] == MODEL]
        assert scores == sorted(scores, reverse=True)
        moved += ranked != sorted(ranked)
    assert moved > 50


def test_they_are_less_alike_and_nearer_to_their_users_own_mix(diverse: Diverse) -> None:
    told = tradeoff(config.load(diverse.home, diversity={"strength": STRENGTH, "calibration": 0.1, "places": 10}), diverse.lake)
    without, own = told["kinds"][:2]
    assert (without["kind"], own["kind"]) == ("none", f"mmr {STRENGTH}, calibration of category 0.1")
    assert without["cost"]["ndcg@10"] == (0, 0, 0)
    assert own["diversity@10"] > without["diversity@10"]
    assert own["mix@10"] < without["mix@10"]
    for kind in told["kinds"]:
        mean, low, high = kind["cost"]["ndcg@10"]
        assert low <= mean <= high
        assert mean == pytest.approx(kind["ndcg@10"] - without["ndcg@10"], abs=1e-12)  # means of differences, rounded


def test_a_price_is_what_users_then_chose_counted_by_hand(diverse: Diverse) -> None:
    told = tradeoff(config.load(diverse.home), diverse.lake)
    night = remade(config.load(diverse.home), diverse.lake, date.fromisoformat(told["run_date"]))
    start, end = night.manifest.moment, night.manifest.moment + timedelta(7)
    offered = {i: n for n, i in enumerate(night.items["item_id"].to_pylist())}
    seen = dict(zip(*(night.users[c].to_pylist() for c in ("user_id", "seen_item_ids")), strict=True))
    wanted: dict[str, set[str]] = {}
    for r in diverse.lake.arrow("silver.interactions").to_pylist():
        if start <= r["event_ts"] < end and r["item_id"] in offered and r["item_id"] not in seen.get(r["user_id"], [r["item_id"]]):
            wanted.setdefault(r["user_id"], set()).add(r["item_id"])
    assert told["users"] == len(wanted) > 10
    lists = diverse.lake.day("gold.recommendations", night.day).sort_by("rank")  # of a night without diversity
    ranked = np.array([(lists.filter(pc.equal(lists["user_id"], u))["item_id"].to_pylist() + [None] * 10)[:10] for u in sorted(wanted)])
    places = np.array([[offered.get(i, -1) for i in row] for row in ranked])
    ptr = np.cumsum([0, *(len(wanted[u]) for u in sorted(wanted))])
    truth = metrics.ranking(places, ptr, np.array([offered[i] for u in sorted(wanted) for i in sorted(wanted[u])]), (10,))
    assert told["kinds"][0]["ndcg@10"] == pytest.approx(truth["ndcg@10"].mean(), abs=1e-12)
    assert told["kinds"][0]["recall@10"] == pytest.approx(truth["recall@10"].mean(), abs=1e-12)


def test_the_report_and_the_tables_tell_the_price_once(diverse: Diverse) -> None:
    rows = [r for r in diverse.lake.arrow("ops.metrics").to_pylist() if r["protocol"] == "price"]
    kind = f"mmr {STRENGTH}, calibration of category 0.1"
    assert {(str(r["run_date"]), r["slice"]) for r in rows} == {(WHEN, kind)}
    by = {(r["model"], r["metric"]): r for r in rows}
    assert len(by) == len(rows) == 14
    assert by["with", "diversity@10"]["value"] > by["without", "diversity@10"]["value"]
    gap = by["difference", "ndcg@10"]
    assert gap["lo"] <= gap["value"] <= gap["hi"]
    page = (diverse.home / "reports" / WHEN / "report.html").read_text()
    assert f"What diversity costs, and brings ({kind})" in page


def test_every_promise_holds_and_the_night_is_repeated_whatever_is_set_now(diverse: Diverse, tmp_path: Path) -> None:
    assert [c for c in diverse.json("verify")["checks"] if not c["ok"]] == []
    home = tmp_path / "home"
    shutil.copytree(diverse.home, home, symlinks=True)
    again = json.loads(mmrec("run", "--home", str(home), "--date", WHEN, "--replay", "--json").stdout)
    assert diverse.night["counts"]["publish"]["content_hash"] in json.dumps(again)


def test_the_last_look_knows_an_order_that_is_no_ranking(diverse: Diverse, tmp_path: Path) -> None:
    lake, day = diverse.lake, date.fromisoformat(WHEN)
    rows, users, items = (lake.day(n, day) for n in ("gold.recommendations", "gold.user_sequences", "gold.item_features"))
    at = rows.schema.get_field_index("ranked")
    planted = rows.set_column(at, "ranked", pc.subtract(pa.scalar(100, pa.int32()), rows["ranked"]))
    for name, table in (("as-it-is", rows), ("planted", planted)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert check_slates([tmp_path / "as-it-is.parquet"], users, items, K) == len(diverse.lists())
    with pytest.raises(QualityError) as caught:
        check_slates([tmp_path / "planted.parquet"], users, items, K)
    assert set(caught.value.report["faults"]) == {"order"}


def test_why_not_says_that_others_came_first(diverse: Diverse) -> None:
    cfg, lake = config.load(diverse.home), diverse.lake
    night = remade(cfg, lake)
    gaps = {user: [n for n in range(1, max(r["ranked"] or 0 for r in rows)) if n not in {r["ranked"] for r in rows}]
            for user, rows in diverse.lists().items() if len(rows) == K and not any(r["passed"] for r in rows)}  # fmt: skip
    user, skipped = next((u, gap) for u, gap in gaps.items() if gap)
    with night.packed([]) as packed:
        row = night.users.filter(pc.equal(night.users["user_id"], user))
        whole = chosen(row, packed.items, packed.scored(row), packed.items.num_rows, None, None).lists.item_BK[0]
    item = night.items["item_id"][int(whole[skipped[0] - 1])].as_py()
    told = why_not(cfg, lake, user, item)
    assert (told["fell"], told["rank"]) == ("diversity", skipped[0])
    assert told["nearest"] in {r["item_id"] for r in diverse.lists()[user]}
    assert 0 < told["similarity"] <= 1.01
    assert f"the model ranks it {skipped[0]}, and diversity put others first" in told["says"]
    said = mmrec("why-not", user, item, "--home", str(diverse.home)).stdout
    assert "diversity put others first" in " ".join(said.split())


@pytest.mark.deep
def test_a_night_before_any_that_can_be_judged_says_so_and_goes_on(lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    later = str(date.fromisoformat(NIGHTS[-1]) + timedelta(40))
    monkeypatch.setenv("MMREC_DIVERSITY__STRENGTH", "0.3")
    mmrec("run", "--home", str(home), "--date", later, "--no-train")
    assert "Not measured yet: " in (home / "reports" / later / "report.html").read_text()
    with pytest.raises(InputError, match="nobody of this night chose anything new"):
        tradeoff(config.load(home), Lake(home / "lake"), date.fromisoformat(later))


def test_settings_that_leave_nothing_to_relevance_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave less than a tenth to relevance") as caught:
        config.load(tmp_path, diversity={"strength": 0.5, "calibration": 0.5})
    assert "diversity" in str(caught.value.where)


def test_divergence_is_nought_for_a_list_of_the_users_own_mix() -> None:
    items = pa.table({"item_id": ["a", "b", "c", "d"], "categories": [["x"], ["x", "y"], ["y"], []]})
    mix = Variety.over(Aims(calibration=0.1), items, None)
    history = np.array([0, 2, 3], np.int64), np.array([0, 2, 3], np.int32)
    assert mix.divergence(np.array([[1, -1], [0, 1]]), history) == pytest.approx(0, abs=1e-12)
    one = mix.divergence(np.array([[0, -1], [3, -1]]), history)  # half of the mix is y, the list has none of it
    assert one == pytest.approx(0.5 * np.log(0.5 / (0.99 + 0.005)) + 0.5 * np.log(0.5 / 0.005))
