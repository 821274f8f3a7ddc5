"""A night that lets things come again: clicked ones at once, bought ones after two weeks."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest

from mmrec import config
from mmrec.lake.store import Lake
from mmrec.whynot import why_not
from tests.conftest import NIGHTS, Lived, mmrec

WHEN = str(date.fromisoformat(NIGHTS[-1]) + timedelta(1))
RULES = """\
rules:
  - name: looked-at
    repeat: {}
    after: 0
    events: [view, click]
  - name: bought
    repeat: {}
    after: 14
"""


@pytest.fixture(scope="module")
def again(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Lived:
    home = tmp_path_factory.mktemp("again") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    (home / "rules.yaml").write_text(RULES)
    night = json.loads(mmrec("run", "--home", str(home), "--date", WHEN, "--no-train", "--json").stdout)
    return Lived(home, [night])


def test_what_comes_again_was_had_as_the_rules_say_and_each_row_names_one(again: Lived) -> None:
    lake, day = Lake(again.home / "lake"), date.fromisoformat(WHEN)
    users = {r["user_id"]: r for r in lake.day("gold.user_sequences", day).to_pylist()}
    lists = lake.day("gold.recommendations", day).to_pylist()
    repeated = [r for r in lists if r["item_id"] in users[r["user_id"]]["seen_item_ids"]]
    assert len(repeated) > 20
    assert {r["rule"] for r in repeated} <= {"looked-at", "bought"}
    assert all(r["rule"] is None for r in lists if r not in repeated)
    moment = config.load(again.home) and max(u for r in users.values() for u in [r["event_us"][-1] + r["gap_s"][-1] * 10**6] if r["event_us"])
    for r in repeated:
        own = users[r["user_id"]]
        for item, kind, us in zip(own["item_ids"], own["event_types"], own["event_us"], strict=True):
            if item == r["item_id"]:
                assert kind in ("view", "click") or moment + 10**6 - us >= 14 * 86_400 * 10**6


def test_every_promise_holds_the_tables_count_them_and_the_night_is_repeated(again: Lived, tmp_path: Path) -> None:
    assert [c for c in again.json("verify")["checks"] if not c["ok"]] == []
    (counted,) = again.sql(f"select sum(placed)::int n from ops_rule_drops where run_date = '{WHEN}' and kind = 'repeat'")
    (listed,) = again.sql(f"select count(*)::int n from recommendations where run_date = '{WHEN}' and rule in ('looked-at', 'bought')")
    assert counted == listed
    home = tmp_path / "home"
    shutil.copytree(again.home, home, symlinks=True)
    assert again.nights[0]["counts"]["publish"]["content_hash"] in mmrec("run", "--home", str(home), "--date", WHEN, "--replay", "--json").stdout


def test_why_not_says_what_was_done_with_it_and_that_no_rule_lets_it_come_again(again: Lived) -> None:
    cfg, lake = config.load(again.home), Lake(again.home / "lake")
    offered = set(lake.day("gold.item_features", date.fromisoformat(WHEN))["item_id"].to_pylist())
    users = lake.day("gold.user_sequences", date.fromisoformat(WHEN)).to_pylist()
    kinds = [k for u in users for k in u["event_types"]]
    bought = next(k for k in sorted(set(kinds)) if k not in ("view", "click"))
    user, item = next((u["user_id"], i) for u in users for i, k, g in zip(u["item_ids"], u["event_types"], u["gap_s"], strict=True)
                      if k == bought and i in offered and i == u["item_ids"][-1])  # fmt: skip
    told = why_not(cfg, lake, user, item)
    assert told["fell"] == "seen"
    assert f"({bought} on 20" in told["says"]
    assert "no rule lets it come again yet" in told["says"]


def test_what_a_user_hides_is_in_no_list_and_why_not_says_so(again: Lived) -> None:
    cfg, lake, day = config.load(again.home), Lake(again.home / "lake"), date.fromisoformat(WHEN)
    asked = {r["user_id"]: r["wishes"] for r in lake.day("gold.user_sequences", day).to_pylist() if r["wishes"]}
    assert asked, "the built-in world's users ask for something"
    items = {r["item_id"]: r["categories"] for r in lake.day("gold.item_features", day).to_pylist()}
    lists = lake.day("gold.recommendations", day).to_pylist()
    for user, wishes in asked.items():
        hidden = {i for i, cs in items.items() if f"hide item={i}" in wishes or any(f"hide category={c}" in wishes for c in cs or ())}
        assert not hidden & {r["item_id"] for r in lists if r["user_id"] == user}
        seen = next(u["seen_item_ids"] for u in lake.day("gold.user_sequences", day).to_pylist() if u["user_id"] == user)
        for item in sorted(hidden - set(seen))[:1]:
            told = why_not(cfg, lake, user, item)
            assert (told["fell"], told["says"][:17]) == ("wish", "the user hides it")
    moving = {u for u, wishes in asked.items() if any(not w.startswith("hide ") for w in wishes)}
    assert {r["user_id"] for r in lists if r["ranked"] is not None} <= moving


def test_the_rules_are_told_in_words(again: Lived) -> None:
    said = {r["name"]: r["says"] for r in again.json("rules", "check")}
    assert said == {"looked-at": "everything again, 0 days after view or click", "bought": "everything again, 14 days after any event"}
