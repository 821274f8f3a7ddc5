"""Nights with drawn places: what they cost is said in each row, and what a list that was never shown would have earned is
told by them without bias."""

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
import pytest

from mmrec import config
from mmrec.lake.store import Lake
from mmrec.recommend.explore import Exploration
from mmrec.recommend.slate import DRAWN, Stamp, slates
from mmrec.remade import remade
from mmrec.worlds.builtin import World
from tests.conftest import mmrec, share_encoders

FIRST, SECOND = "2026-03-02", "2026-03-03"
LISTS, K, DRAWN_AT = "gold.recommendations", 20, [5, 10, 15, 20]
Row = dict[str, Any]


@dataclass(frozen=True)
class Explored:
    """A home of two nights that drew a fifth of each list; settings tell nothing of it any more."""

    home: Path
    nights: list[Row]

    def json(self, *words: str) -> Any:
        return json.loads(mmrec(*words, "--home", str(self.home), "--json").stdout)

    def day(self, when: str = FIRST) -> pa.Table:
        return Lake(self.home / "lake").day(LISTS, date.fromisoformat(when)).sort_by([("user_id", "ascending"), ("rank", "ascending")])


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> Explored:
    home = tmp_path_factory.mktemp("explored") / "home"
    mmrec("init", "--home", str(home), "--source", "builtin", "--size", "tiny")
    share_encoders(home, encoders_cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_EXPLORE__SHARE", "0.2")
        nights = [json.loads(mmrec("run", "--home", str(home), "--date", day, "--no-train", "--json").stdout) for day in (FIRST, SECOND)]
    return Explored(home, nights)


def test_a_fifth_of_each_list_is_drawn_and_each_row_says_how_probably(explored: Explored) -> None:
    for day in (FIRST, SECOND):
        rows = explored.day(day).to_pylist()
        by: dict[str, list[Row]] = {}
        for r in rows:
            by.setdefault(r["user_id"], []).append(r)
        full = [own for own in by.values() if len(own) == K]
        assert len(full) > 50
        for own in full:
            assert [r["rank"] for r in own if r["source"] == DRAWN] == DRAWN_AT
        assert all(r["propensity"] == 1 for r in rows if r["source"] != DRAWN)
        lake, when = Lake(explored.home / "lake"), date.fromisoformat(day)
        offered = set(lake.day("gold.item_features", when)["item_id"].to_pylist())
        users, pools = lake.day("gold.user_sequences", when).to_pylist(), pools_of(explored, day)
        for user in users:
            hidden = {w.removeprefix("hide item=") for w in user["wishes"] or ()}  # the built-in world hides items alone
            left = len(offered - set(user["seen_item_ids"]) - hidden) - (K - len(DRAWN_AT))  # dealt to four places, ten each at most
            sizes = [len(pools.get((user["user_id"], e), ())) for e in range(4)]
            assert all(n <= min(10, max(0, (left + 3 - e) // 4)) for e, n in enumerate(sizes))
            assert [r["propensity"] for r in by[user["user_id"]] if r["source"] == DRAWN] == [1 / n for n in sizes if n]
            assert all(r["item_id"] in pools[user["user_id"], DRAWN_AT.index(r["rank"])] for r in by[user["user_id"]] if r["source"] == DRAWN)
        assert all((r["place"], r["rule"], r["passed"]) == (None, None, None) for r in rows if r["source"] == DRAWN)
        moving = {u["user_id"] for u in users if any(not w.startswith("hide ") for w in u["wishes"] or ())}
        scores = [[r["score"] for r in own if r["source"] == "model"] for own in full if own[0]["user_id"] not in moving]
        assert all(s == sorted(s, reverse=True) for s in scores)


def test_everything_promised_holds_and_a_night_is_repeated_whatever_is_set_now(explored: Explored, tmp_path: Path) -> None:
    assert [c for c in explored.json("verify")["checks"] if not c["ok"]] == []
    home = tmp_path / "home"
    shutil.copytree(explored.home, home, symlinks=True)
    again = json.loads(mmrec("run", "--home", str(home), "--date", SECOND, "--replay", "--json").stdout)
    assert explored.nights[1]["counts"]["publish"]["content_hash"] in json.dumps(again)
    assert [c for c in json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["checks"] if not c["ok"]] == []


def test_what_was_shown_comes_back_with_its_probability(explored: Explored) -> None:
    lake = Lake(explored.home / "lake")
    listed = {(r["run_id"], r["user_id"], r["rank"], r["item_id"]): r["propensity"] for r in explored.day().to_pylist()}
    shown = lake.arrow("silver.impressions").to_pylist()
    assert {r["run_id"] for r in shown} == {explored.nights[0]["run_id"]}
    assert all(r["propensity"] == listed[r["run_id"], r["user_id"], r["rank"], r["item_id"]] for r in shown)
    drawn = [r for r in shown if r["propensity"] < 1]
    assert len(drawn) > 20
    assert {r["rank"] for r in drawn} <= set(DRAWN_AT)


def pools_of(explored: Explored, when: str) -> dict[tuple[str, int], list[str]]:
    """User and which drawn place -> its pool: a longer list's rows behind those that are not drawn, as far as a ranking
    goes that is as long as that list."""
    how = Exploration(K, 0.2, 10)
    night = remade(config.load(explored.home), Lake(explored.home / "lake"), date.fromisoformat(when))
    with night.packed([]) as packed:
        stamp = Stamp(night.day, packed.job.run_id, packed.job.model_version)
        longer = slates(night.users, packed.items, packed.scored(night.users), how.chosen, stamp, {}, packed.group_N, packed.ruling, None,
                        None, packed.reasons, packed.wishes)  # fmt: skip
        rows = pa.Table.from_batches(longer).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()
    pools: dict[tuple[str, int], list[str]] = {}
    for r in rows:
        if r["rank"] > how.kept and (r["rank"] <= K or r["place"] <= how.chosen):
            pools.setdefault((r["user_id"], (r["rank"] - 1 - how.kept) % len(how.places_E)), []).append(r["item_id"])
    return pools


@dataclass(frozen=True)
class Logged:
    """Drawn places of many days. `match`: whether the policy that was never shown would have shown the same."""

    chance: np.ndarray
    match: np.ndarray
    reward: np.ndarray
    truth: float

    def estimate(self, chance: np.ndarray | float) -> tuple[float, float, float]:
        """What that policy earns a place, and its 95% interval, each match weighed by one over its probability."""
        each = self.match * self.reward / chance
        mean, wide = each.mean(), 1.96 * each.std(ddof=1) / len(each) ** 0.5
        return mean, mean - wide, mean + wide


def logged(explored: Explored, how: Exploration, seed: int, n_days: int) -> Logged:
    """The night's lists drawn again for many days; people click as the world's truth says. The policy that was never
    shown has the item with the least id of a place's pool."""
    cfg, lake = config.load(explored.home), Lake(explored.home / "lake")
    night = remade(cfg, lake, date.fromisoformat(FIRST))
    world = World(cfg.source.seed, cfg.source.size)
    ids, names = night.items["item_id"].to_pylist(), night.users["user_id"].to_pylist()
    odds_UN = world.oracle_scores(names, ids, night.manifest.moment)
    click_UN = 0.05 + 0.55 / (1 + np.exp(-(odds_UN - np.median(odds_UN, 1, keepdims=True)) / 2))
    user_at, item_at = ({x: n for n, x in enumerate(xs)} for xs in (names, ids))
    with night.packed([]) as packed:
        scored = packed.scored(night.users)

        def rows(k: int, day: date, draws: Exploration | None) -> pa.Table:
            stamp = Stamp(day, packed.job.run_id, packed.job.model_version)
            made = slates(night.users, packed.items, scored, k, stamp, {}, packed.group_N, packed.ruling, draws, None,
                          packed.reasons, packed.wishes)  # fmt: skip
            return pa.Table.from_batches(made).sort_by([("user_id", "ascending"), ("rank", "ascending")])

        if how == packed.draws:
            assert rows(K, night.day, how).to_pylist() == explored.day().to_pylist(), "these are the published lists"
        days = [rows(K, night.day + timedelta(n), how) for n in range(n_days)]
    rng, found, pools = np.random.default_rng(seed), [], pools_of(explored, FIRST)
    for table in days:
        drawn = table.filter(pc.equal(table["source"], DRAWN))
        for user, rank, item, chance in zip(*(drawn[c].to_pylist() for c in ("user_id", "rank", "item_id", "propensity")), strict=True):
            pool = pools[user, DRAWN_AT.index(rank)]
            assert item in pool
            target, click_N = min(pool), click_UN[user_at[user]]
            found.append((chance, item == target, rng.random() < click_N[item_at[item]], click_N[item_at[target]]))
    chance, match, reward, value = (np.array(x, float) for x in zip(*found, strict=True))
    return Logged(chance, match, reward, float(value.mean()))


@pytest.mark.parametrize("by", ["uniform", "uncertainty"])
def test_draws_tell_what_a_list_that_was_never_shown_would_have_earned(explored: Explored, by: str) -> None:
    how = Exploration(K, 0.2, 10, by, "places")
    log = logged(explored, how, seed=7, n_days=60)
    assert len(log.chance) > 10_000
    mean, low, high = log.estimate(log.chance)
    print(f"{by}: {len(log.chance)} places, truth {log.truth:.4f}, estimate {mean:.4f}, 95% {low:.4f} to {high:.4f}")
    assert low < log.truth < high
    assert high - low < 0.3 * log.truth, "it is an interval that says something"
    # the weights of all are 1 in the mean, as those of a distribution are
    assert abs((log.match / log.chance).mean() - 1) < 4 * (log.match / log.chance).std() / len(log.chance) ** 0.5
    assert (np.isclose(log.chance, 1 / how.pool).mean() > 0.5) == (by == "uniform")
    for wrong in (1.0, 1 / (2 * how.pool)):
        mean, low, high = log.estimate(wrong)
        assert not low < log.truth < high, "with other probabilities it would tell something else"


def test_a_night_of_popularity_alone_scores_no_pairs(explored: Explored, tmp_path: Path) -> None:
    first = explored.day(SECOND).to_pylist()[0]
    (tmp_path / "pairs.csv").write_text(f"user_id,item_id\n{first['user_id']},{first['item_id']}\n")
    done = mmrec("score", str(tmp_path / "pairs.csv"), "--home", str(explored.home), ok=(2,))
    assert "a popularity model scores no pairs" in done.stderr
