"""Lists of items and of segments: against loops over pairs, and by the command line on a night that a model served."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec import config, lists
from mmrec.errors import InputError
from mmrec.lake.store import Lake
from mmrec.recommend.shared import of_segments, similar
from tests.conftest import Lived, mmrec, serve

DAY = "2026-03-06"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 40))
def test_an_items_list_is_the_nearest_by_cosine_without_itself(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    item = rng.integers(-3, 4, (n, 5)).astype(np.float32)
    item[rng.random(n) < 0.1] = np.nan
    asked = rng.integers(0, n, 4)
    found = similar(item, asked, k)
    for q, a in enumerate(asked):
        unit = item.astype(np.float64) / np.maximum(np.linalg.norm(item.astype(np.float64), axis=1), 1e-30)[:, None]
        unit = unit.astype(np.float32).astype(np.float64)
        score = {i: np.float32(unit[a] @ unit[i]) for i in range(n) if i != a and np.isfinite(item[[a, i]]).all()}
        got = [i for i in found.item[q].tolist() if i >= 0]
        assert len(got) == min(k, len(score))
        assert a not in got
        # the oracle sums in another order: scores within a rounding of fp32
        np.testing.assert_allclose([score[i] for i in got], sorted(score.values(), reverse=True)[: len(got)], atol=3e-7)
        np.testing.assert_allclose(found.score[q][: len(got)], [score[i] for i in got], atol=3e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 4))
def test_a_segments_list_is_by_the_mean_score_of_its_users(seed: int, n_users: int, n_segments: int) -> None:
    rng = np.random.default_rng(seed)
    user, item = rng.normal(size=(n_users, 4)).astype(np.float32), rng.normal(size=(25, 4)).astype(np.float32)
    user[rng.random(n_users) < 0.2, 1] = np.inf
    segment = rng.integers(-1, n_segments, n_users)
    found, users = of_segments(user, segment, n_segments, item, 6)
    for s in range(n_segments):
        mine = user[(segment == s) & np.isfinite(user).all(1)].astype(np.float64)
        assert users[s] == len(mine)
        if not len(mine):
            assert (found.item[s] == -1).all()
            continue
        mean = (mine @ item.T.astype(np.float64)).mean(0)
        # a mean vector is rounded to fp32 before it scores
        np.testing.assert_allclose(found.score[s], np.sort(mean)[::-1][:6], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(mean[found.item[s]], found.score[s], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def served(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose newest night a trained model served."""
    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    serve(config.load(home), lived.nights[0]["counts"]["training"]["register"]["model_version"])
    mmrec("run", "--home", str(home), "--date", DAY, "--no-train")
    return home


def test_the_commands_tell_of_items_and_segments_of_a_served_night(served: Path) -> None:
    lake = Lake(served / "lake")
    items = lake.day("gold.item_features", date.fromisoformat(DAY)).sort_by("item_id")
    one = items["item_id"][3].as_py()
    told = json.loads(mmrec("similar", one, "--home", str(served), "--k", "7", "--json").stdout)
    assert told["item_id"] == one
    assert [r["rank"] for r in told["similar"]] == list(range(1, 8))
    assert one not in {r["item_id"] for r in told["similar"]}
    score = [r["score"] for r in told["similar"]]
    assert score == sorted(score, reverse=True)
    assert score[0] <= 1 + 1e-6
    told = json.loads(mmrec("segments", "country", "--home", str(served), "--json").stdout)
    rows = told["segments"]
    size = [r["users"] for r in rows]
    assert size == sorted(size, reverse=True)
    people = lake.day("gold.user_sequences", date.fromisoformat(DAY), columns=["user_id", "attributes"])
    countries = [json.loads(a).get("country") for a in people["attributes"].to_pylist()]
    assert {r["segment"] for r in rows} == {c for c in countries if c}
    # who has no history has no vector, and counts nowhere
    assert all(r["users"] <= countries.count(r["segment"]) for r in rows)
    assert sum(size) > 0.7 * len([c for c in countries if c])
    assert all(len(r["list"]) == 10 for r in rows)
    assert one in mmrec("similar", one, "--home", str(served)).stdout
    assert "users" in mmrec("segments", "country", "--home", str(served)).stdout


def test_what_is_not_there_is_said_with_what_is(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, lake = config.load(served), Lake(served / "lake")
    with pytest.raises(InputError, match="not on offer") as caught:
        lists.similar(cfg, lake, ["nothing"], 3)
    assert caught.value.value == "nothing"
    with pytest.raises(InputError, match="no user has this attribute") as caught:
        lists.segments(cfg, lake, "shoe_size", 3)
    assert "country" in caught.value.valid
    with pytest.raises(InputError, match="never published") as caught:
        lists.similar(cfg, lake, ["i"], 3, date(2020, 1, 1))
    assert DAY in caught.value.valid
    monkeypatch.setattr(lists, "item_side", lambda *_, **__: None)  # as of a popularity and of a sparse bundle
    with pytest.raises(InputError, match="has no vectors"):
        lists.segments(cfg, lake, "country", 3)
