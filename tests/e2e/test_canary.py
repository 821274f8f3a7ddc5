"""A night of two arms: each user's list is that of the version that serves them, as if it served everybody."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from datetime import date, timedelta
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrec import config
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import seal
from mmrec.chosen import compared
from mmrec.errors import InputError
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.recommend.arms import CANARY, served_by
from tests.conftest import Lived, mmrec, serve

DAY, NEXT = "2026-03-06", "2026-03-07"
SHARE = 0.4
Row = dict[str, Any]


@pytest.fixture(scope="module")
def made(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose version 1 serves, and whose version 2 is the same model over popularity of another half-life."""
    home = tmp_path_factory.mktemp("canary") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    cfg = config.load(home)
    made = home / "made"
    shutil.copytree(cfg.bundles / "1", made)
    about = json.loads((made / "bundle.json").read_text())
    seal(made, about | {"half_life_days": 3.0})
    client = server.client(cfg)
    run = client.create_run(server.experiment(cfg, "mmrec/train"))
    assert registry.register(cfg, made, run.info.run_id, about) == "2"
    serve(cfg, "1")
    return home


def night(home: Path, day: str, *more: str) -> Row:
    return json.loads(mmrec("run", "--home", str(home), "--date", day, "--no-train", "--json", *more).stdout)


def rows(home: Path, day: str) -> dict[str, list[Row]]:
    """User -> rows of the list, but for what tells run from run."""
    found: dict[str, list[Row]] = defaultdict(list)
    table = Lake(home / "lake").day("gold.recommendations", date.fromisoformat(day))
    for r in table.drop_columns(["run_id", "arm"]).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist():
        found[r["user_id"]].append(r)
    return dict(found)


@pytest.fixture(scope="module")
def alone(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Row]]]:
    """Version -> lists of the night that it serves alone."""
    found = {}
    for version in ("1", "2"):
        home = tmp_path_factory.mktemp(f"alone{version}") / "home"
        shutil.copytree(made, home, symlinks=True)
        serve(config.load(home), version)
        night(home, DAY)
        found[version] = rows(home, DAY)
    return found


@pytest.fixture(scope="module")
def home(made: Path, alone: dict[str, dict[str, list[Row]]]) -> Path:
    """The home itself, after a night of both; `alone` are copies of what it was before."""
    said = mmrec("models", "promote", "2", "--share", str(SHARE), "--override", "a test", "--home", str(made)).stdout
    assert "version 2 serves 40% of the users from the next planned night on, in place of version 1" in " ".join(said.split())
    told = night(made, DAY)
    assert (told["model_version"], set(told["counts"]["recommend"]) & {"model", "canary"}) == ("1", {"model", "canary"})
    return made


def arm_of(user: str) -> str:
    return "2" if served_by(CANARY, {"version": "2", "share": SHARE}, [user])[0] else "1"


def test_every_list_is_that_of_the_version_that_serves_its_user(home: Path, alone: dict[str, dict[str, list[Row]]]) -> None:
    both = rows(home, DAY)
    assert both.keys() == alone["1"].keys()
    assert {arm_of(u) for u in both} == {"1", "2"}
    for user, own in both.items():
        assert own == alone[arm_of(user)][user], user
    assert any(alone["1"][u] != alone["2"][u] for u in both if arm_of(u) == "2"), "the two versions say the same"
    arms = Lake(home / "lake").day("gold.recommendations", date.fromisoformat(DAY), columns=["user_id", "arm", "model_version"]).to_pylist()
    assert {(r["arm"], r["model_version"]) for r in arms} == {("main", "1"), ("canary", "2")}
    assert all((r["model_version"] == "2") == (arm_of(r["user_id"]) == "2") for r in arms)


def test_the_night_is_replayed_and_every_check_holds(home: Path) -> None:
    assert night(home, DAY, "--replay")["replayed"]
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]
    page = (home / "reports" / DAY / "report.html").read_text()
    assert "a canary that serves 40% of them" in page


def test_a_users_row_is_explained_by_the_version_that_made_it(home: Path, alone: dict[str, dict[str, list[Row]]]) -> None:
    for version in ("1", "2"):
        user = next(u for u in sorted(alone["1"]) if arm_of(u) == version and len(alone["1"][u]) == 20)
        first = rows(home, DAY)[user][0]
        told = json.loads(mmrec("explain", user, first["item_id"], "--date", DAY, "--home", str(home), "--json").stdout)
        assert told["score"] == first["score"]
        seen = Lake(home / "lake").day("gold.user_sequences", date.fromisoformat(DAY)).to_pylist()
        own = next(r for r in seen if r["user_id"] == user)
        items = Lake(home / "lake").day("gold.item_features", date.fromisoformat(DAY), columns=["item_id"])["item_id"].to_pylist()
        listed = {r["item_id"] for r in rows(home, DAY)[user]}
        item = next(i for i in sorted(items) if i not in listed and i not in own["seen_item_ids"])
        why = json.loads(mmrec("why-not", user, item, "--date", DAY, "--home", str(home), "--json").stdout)
        assert why["fell"] == "outranked"
        assert why["rank"] > 20
        assert why["score"] <= why["last_score"] == rows(home, DAY)[user][-1]["score"]
    segments = json.loads(mmrec("segments", "country", "--date", DAY, "--home", str(home), "--json").stdout)["segments"]
    assert sum(s["users"] for s in segments) <= sum(arm_of(u) == "1" for u in alone["1"])


def test_reasons_are_studied_on_the_users_of_the_main_arm(home: Path) -> None:
    told = json.loads(mmrec("explain", "--users", "40", "--date", DAY, "--home", str(home), "--json").stdout)
    assert told["model_version"] == "1"
    assert 0 < told["users"] <= sum(arm_of(u) == "1" for u in rows(home, DAY))


def naive(home: Path, days: list[str]) -> dict[str, list[tuple[str, float, float]]]:
    """Arm -> (user, ndcg@10, hit) of who chose something new, by loops."""
    lake = Lake(home / "lake")
    runs = [Manifest.from_json(r["manifest"]) for r in lake.arrow("ops.runs").to_pylist()]
    moments = {m.run_date: m.moment for m in runs}
    events = lake.arrow("silver.interactions").to_pylist()
    by: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for day, end in zip(days, [moments[d] for d in days[1:]] + [moments[days[-1]] + timedelta(days=1)], strict=True):
        offered = set(lake.day("gold.item_features", date.fromisoformat(day), columns=["item_id"])["item_id"].to_pylist())
        for user in lake.day("gold.user_sequences", date.fromisoformat(day)).to_pylist():
            new = {e["item_id"] for e in events if e["user_id"] == user["user_id"] and moments[day] <= e["event_ts"] < end}
            new = (new & offered) - set(user["seen_item_ids"])
            own = rows(home, day).get(user["user_id"])
            if not new or not own:
                continue
            gained = sum(1 / log2(r["rank"] + 1) for r in own if r["rank"] <= 10 and r["item_id"] in new)
            ideal = sum(1 / log2(k + 1) for k in range(1, min(10, len(new)) + 1))
            arm = {"1": "main", "2": "canary"}[arm_of(user["user_id"])]
            by[arm, user["user_id"]].append((gained / ideal, float(gained > 0)))
    found: dict[str, list[tuple[str, float, float]]] = {"main": [], "canary": []}
    for (arm, user), values in sorted(by.items()):
        found[arm].append((user, float(np.mean([v[0] for v in values])), float(np.mean([v[1] for v in values]))))
    return found


@pytest.mark.deep
def test_arms_are_compared_by_what_their_users_chose_and_the_canary_ends_in_one_command(home: Path) -> None:
    night(home, NEXT)
    told = json.loads(mmrec("models", "canary", "--home", str(home), "--json").stdout)
    want = naive(home, [DAY, NEXT])
    assert (told["version"], told["share"], told["nights"]) == ("2", SHARE, 2)
    for arm, people in want.items():
        assert people, "nobody of this arm chose anything"
        assert told["arms"][arm]["users"] == len(people)
        # a mean of doubles, summed in another order
        assert told["arms"][arm]["ndcg@10"] == pytest.approx(np.mean([p[1] for p in people]), abs=1e-12)
        assert told["arms"][arm]["hits"] == pytest.approx(np.mean([p[2] for p in people]), abs=1e-12)
    assert told["difference"] == pytest.approx(told["arms"]["canary"]["ndcg@10"] - told["arms"]["main"]["ndcg@10"])
    assert told["lo"] <= told["difference"] <= told["hi"]
    said = " ".join(mmrec("models", "canary", "--home", str(home)).stdout.split())
    assert "version 2 serves 40% of the users, 2 nights so far: canary less main" in said
    mmrec("models", "rollback", "--why", "enough", "--home", str(home))
    assert "no version serves a share" in mmrec("models", "canary", "--home", str(home), ok=(2,)).stderr
    planned = json.loads(mmrec("plan", "--home", str(home), "--date", "2026-03-08", "--json").stdout)
    assert "canary" not in planned.get("plan", planned)["config"]
    # a share of few users may be nobody, which is no fault
    mmrec("models", "promote", "2", "--share", "0.000001", "--override", "a test", "--home", str(home))
    said = mmrec("models", "list", "--home", str(home)).stdout
    assert "canary 0%" in said
    told = night(home, "2026-03-08")
    assert told["published"]
    assert told["counts"]["recommend"].keys() & {"model", "canary"} == {"model"}
    (home / "bundles" / "2" / "item_map.json").write_text("[]")
    stopped = " ".join(mmrec("plan", "--home", str(home), "--date", "2026-03-09", ok=(3,)).stderr.split())
    assert "version 2, which serves a share of the users, can't score" in stopped
    assert "mmrec models rollback" in stopped


def test_a_canary_no_night_has_served_says_so(made: Path, lived: Lived) -> None:
    with pytest.raises(InputError, match="no version serves a share"):
        compared(Lake(lived.home / "lake"))
