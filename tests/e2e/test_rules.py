"""Nights under rules.yaml, typed as a person types them: looked at first, published, asked about, repeated; and refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from mmrec import config
from mmrec.lake.store import Lake
from mmrec.verify import verify
from mmrec.whynot import why_not
from tests.conftest import mmrec, share_encoders

FIRST, SECOND, THIRD = "2026-03-02", "2026-03-03", "2026-03-04"
RULES = """\
rules:
  - name: recalled
    exclude: {{item: [{recalled}]}}
  - name: not-there
    exclude: {{category: {aisle}}}
    users: {{country: {country}}}
  - name: variety
    cap: {{}}
    each: category
    most: 3
  - name: dear
    quota: {{price: {{at_least: 60}}}}
    least: 2
  - name: window
    pin: {{item: {window}}}
    place: 1
    users: {{user: {user}}}
  - name: over
    exclude: {{category: [aisle 1, aisle 2]}}
    until: 2026-03-03
"""
Row = dict[str, Any]


@dataclass(frozen=True)
class Ruled:
    """A home with a night without rules and one with. `user`: one whom all of them hold for."""

    home: Path
    user: str
    aisle: str
    recalled: str
    window: str
    before: Row
    checked: list[Row]
    night: Row

    def json(self, *words: str) -> Any:
        return json.loads(mmrec(*words, "--home", str(self.home), "--json").stdout)

    def day(self, name: str, when: str = SECOND) -> list[Row]:
        return Lake(self.home / "lake").day(f"gold.{name}", date.fromisoformat(when)).to_pylist()

    def list_of(self, user: str, when: str = SECOND) -> list[Row]:
        return sorted((r for r in self.day("recommendations", when) if r["user_id"] == user), key=lambda r: r["rank"])

    def why_not(self, item: str) -> Row:
        return self.json("why-not", self.user, item)


def dear(item: Row) -> bool:
    return json.loads(item["attributes"]).get("price", 0) >= 60


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> Ruled:
    home = tmp_path_factory.mktemp("ruled") / "home"
    mmrec("init", "--home", str(home), "--source", "builtin", "--size", "tiny")
    share_encoders(home, encoders_cache)
    mmrec("run", "--home", str(home), "--date", FIRST, "--no-train")
    lake, day = Lake(home / "lake"), date.fromisoformat(FIRST)
    lists = lake.day("gold.recommendations", day).sort_by([("user_id", "ascending"), ("rank", "ascending")]).to_pylist()
    users = {r["user_id"]: json.loads(r["attributes"]) for r in lake.day("gold.user_sequences", day).to_pylist()}
    aisles = {r["item_id"]: next(iter(r["categories"] or ()), None) for r in lake.day("gold.item_features", day).to_pylist()}
    user = next(u for u in sorted(users) if "country" in users[u])
    own = [r["item_id"] for r in lists if r["user_id"] == user]
    recalled = next(i for i in own if aisles[i])
    aisle = aisles[recalled]
    window = next(i for i in reversed(own) if aisles[i] not in (None, aisle))
    (home / "rules.yaml").write_text(RULES.format(recalled=recalled, aisle=aisle, country=users[user]["country"], window=window, user=user))
    words = ("--home", str(home), "--json")
    before = json.loads(mmrec("rules", "preview", "--all", *words).stdout)
    checked = json.loads(mmrec("rules", "check", *words).stdout)
    night = json.loads(mmrec("run", "--date", SECOND, "--no-train", *words).stdout)
    return Ruled(home, user, aisle, recalled, window, before, checked, night)


def test_check_tells_each_rules_line_and_reach(ruled: Ruled) -> None:
    found = {r["name"]: r for r in ruled.checked}
    assert [(r["name"], r["line"], r["kind"]) for r in ruled.checked] == [
        ("recalled", 2, "exclude"), ("not-there", 4, "exclude"), ("variety", 7, "cap"), ("dear", 11, "quota"), ("window", 14, "pin"), ("over", 18, "exclude")]  # fmt: skip
    users, items = ruled.day("user_sequences", FIRST), ruled.day("item_features", FIRST)
    assert [found[n]["items"] for n in ("recalled", "variety", "window")] == [1, len(items), 1]
    assert [found[n]["users"] for n in ("recalled", "variety", "window")] == [len(users), len(users), 1]
    assert found["not-there"]["items"] == sum(ruled.aisle in (r["categories"] or ()) for r in items)
    assert found["dear"]["items"] == sum(dear(r) for r in items)
    assert 1 <= found["not-there"]["users"] < len(users)
    assert [r["in_force"] for r in ruled.checked] == [True] * 5 + [False]
    told = mmrec("rules", "check", "--home", str(ruled.home), "--date", FIRST).stdout
    assert "6 rules, no contradiction" in told


def test_preview_tells_what_would_change_and_writes_nothing(ruled: Ruled) -> None:
    told = ruled.before
    assert (told["run_date"], told["for_date"]) == (FIRST, SECOND)
    assert [r["name"] for r in told["rules"]] == ["recalled", "not-there", "variety", "dear", "window"]
    rules = {r["name"]: r for r in told["rules"]}
    assert rules["recalled"]["rows_now"] == sum(r["item_id"] == ruled.recalled for r in ruled.day("recommendations", FIRST)) > 0
    assert rules["recalled"]["rows_then"] == rules["not-there"]["rows_then"] == 0
    assert (rules["window"]["placed"], rules["window"]["rows_then"]) == (1, 1)
    assert 0 < told["changed"] <= told["users"] == len(ruled.day("user_sequences", FIRST))
    assert told["lists"]
    for each in told["lists"]:
        now = {r["item_id"]: r["rank"] for r in ruled.list_of(each["user_id"], FIRST)}
        assert all(now[r["item_id"]] == r["rank"] for r in each["went"])
        assert not {r["item_id"] for r in each["came"]} & set(now)


def test_a_preview_of_no_rule_in_force_changes_nothing(ruled: Ruled, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(ruled.home, home, symlinks=True)
    for text in ("rules: []\n", "rules:\n- name: over\n  exclude: {category: aisle 1}\n  until: 2026-03-01\n"):
        (home / "rules.yaml").write_text(text)
        told = json.loads(mmrec("rules", "preview", "--date", THIRD, "--home", str(home), "--json").stdout)
        assert (told["rules"], told["users"] > 0) == ([], True)


def test_the_lists_keep_the_rules(ruled: Ruled) -> None:
    rows, items = ruled.day("recommendations"), {r["item_id"]: r for r in ruled.day("item_features")}
    assert ruled.recalled in items
    assert all(r["item_id"] != ruled.recalled for r in rows)
    own = ruled.list_of(ruled.user)
    assert (own[0]["item_id"], own[0]["source"], own[0]["rule"], own[0]["score"], own[0]["place"]) == (ruled.window, "rule", "window", 0, None)
    assert all(ruled.aisle not in (items[r["item_id"]]["categories"] or ()) for r in own)
    assert any(ruled.aisle in (items[r["item_id"]]["categories"] or ()) for r in rows)
    by_user: dict[str, list[Row]] = {}
    for r in rows:
        by_user.setdefault(r["user_id"], []).append(items[r["item_id"]])
    had = {r["user_id"]: r["seen_item_ids"] for r in ruled.day("user_sequences")}
    for user, each in by_user.items():
        aisles = Counter(r["categories"][0] for r in each if r["categories"])
        assert max(aisles.values()) <= 3
        if sum(dear(r) for r in each) < 2:  # then nothing on offer could have met it
            others = [r for i, r in items.items() if dear(r) and r not in each and i not in (*had[user], ruled.recalled)]
            assert all(ruled.aisle in r["categories"] or aisles[next(iter(r["categories"]), None)] == 3 for r in others)
    assert sum(sum(dear(r) for r in each) >= 2 for each in by_user.values()) > len(by_user) // 2
    drops = {r["rule"]: r for r in ruled.json("sql", f"select * from ops_rule_drops where run_date = '{SECOND}'")}
    passed = Counter(rule for r in rows for rule, n in zip(r["passed"] or (), r["passed_n"] or (), strict=True) for _ in range(n))
    assert {n: r["passed"] for n, r in drops.items() if r["passed"]} == passed
    assert passed["variety"] > 0
    assert {n: r["placed"] for n, r in drops.items() if r["placed"]} == Counter(r["rule"] for r in rows if r["rule"])


def test_why_not_follows_an_item_to_where_it_fell(ruled: Ruled) -> None:
    told = ruled.why_not(ruled.window)
    assert (told["fell"], told["rank_in_list"], told["rule"]) == ("listed", 1, "window")
    (row,) = (r for r in ruled.day("user_sequences") if r["user_id"] == ruled.user)
    items = {r["item_id"]: r for r in ruled.day("item_features")}
    had = next(i for i in row["seen_item_ids"] if i in items)
    assert ruled.why_not(had)["fell"] == "seen"
    told = ruled.why_not(ruled.recalled)  # which not-there, further down, would bar as well
    assert (told["fell"], told["rule"], told["line"]) == ("rule", "recalled", 2)
    assert "recalled (line 2)" in told["says"]
    barred = next(i for i, r in items.items() if ruled.aisle in (r["categories"] or ()) and i not in (*row["seen_item_ids"], ruled.recalled))
    told = ruled.why_not(barred)
    assert (told["fell"], told["rule"], told["line"]) == ("rule", "not-there", 4)
    lake = Lake(ruled.home / "lake")
    gone = next(i for i in lake.arrow("silver.items", where=pc.field("withdrawn_at").is_valid())["item_id"].to_pylist() if i not in items)
    told = ruled.why_not(gone)
    assert (told["fell"], told["says"][:20]) == ("not_on_offer", "it was not on offer:")
    for words, what in (((ruled.user, "nothing"), "no such item"), (("nobody", ruled.window), "this user has no list")):
        refused = mmrec("why-not", *words, "--home", str(ruled.home), ok=(2,))
        assert what in refused.stderr
        assert "next:" in refused.stderr
    refused = mmrec("why-not", ruled.user, ruled.window, "--home", str(ruled.home), "--date", THIRD, ok=(2,))
    assert "never published" in refused.stderr
    told = mmrec("why-not", ruled.user, ruled.window, "--home", str(ruled.home), "--date", FIRST).stdout
    assert "it is in the list at rank" in " ".join(told.split())


@pytest.mark.deep
def test_every_item_fell_somewhere_and_what_was_passed_over_is_what_the_list_says(ruled: Ruled) -> None:
    (row,) = (r for r in ruled.day("user_sequences") if r["user_id"] == ruled.user)
    cfg, lake = config.load(ruled.home), Lake(ruled.home / "lake")
    own = ruled.list_of(ruled.user)
    fell: dict[str, list[Row]] = {}
    for item in sorted(r["item_id"] for r in ruled.day("item_features")):
        told = why_not(cfg, lake, ruled.user, item)
        fell.setdefault(told["fell"], []).append(told)
    assert set(fell) <= {"listed", "seen", "rule", "twin", "outranked", "unranked"}
    assert {t["item_id"]: t["rank_in_list"] for t in fell["listed"]} == {r["item_id"]: r["rank"] for r in own}
    assert {t["item_id"] for t in fell["seen"]} <= set(row["seen_item_ids"])
    over = Counter(t["rule"] for t in fell["rule"] if "passed it over" in t["says"])
    twins = len(fell.get("twin", []))
    said = Counter(rule for r in own for rule, n in zip(r["passed"] or (), r["passed_n"] or (), strict=True) for _ in range(n))
    barred = sum(t["rule"] == "not-there" for t in fell["rule"])
    assert {n: c for n, c in said.items() if n not in ("twin", "not-there")} == over
    assert over["variety"] > 0
    assert said["not-there"] <= barred
    assert said["twin"] == twins
    assert fell["outranked"]
    last = min(r["score"] for r in own if r["source"] == "model" and not r["rule"])
    assert all(t["score"] <= last and t["source"] == "model" and t["rank"] > 0 for t in fell["outranked"])
    # ranks are of one ranking, free of rules
    ranks = sorted((t["rank"], -t["score"]) for kind in ("rule", "twin", "outranked") for t in fell.get(kind, []) if "rank" in t)
    assert len({r for r, _ in ranks}) == len(ranks)
    assert [s for _, s in ranks] == sorted(s for _, s in ranks)
    # through the command line, one of each
    for one in (fell["outranked"][0], next(t for t in fell["rule"] if t["rule"] == "variety")):
        assert ruled.why_not(one["item_id"]) == one


def test_contradictory_rules_publish_nothing(ruled: Ruled, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(ruled.home, home, symlinks=True)
    text = (home / "rules.yaml").read_text()
    (home / "rules.yaml").write_text(text + f"  - name: wanted\n    boost: {{item: {ruled.recalled}}}\n    places: 3\n")
    for words in (("run", "--date", THIRD, "--no-train"), ("rules", "check"), ("rules", "preview")):
        refused = mmrec(*words, "--home", str(home), ok=(2,))
        assert "rules.yaml line 2 (recalled) and line 21 (wanted)" in refused.stderr
        assert "mmrec rules check" in refused.stderr
    lake = Lake(home / "lake")
    assert [str(d) for d in lake.run_dates()] == [FIRST, SECOND]
    assert lake.day("gold.recommendations", date.fromisoformat(THIRD)).num_rows == 0
    assert [c for c in verify(config.load(home)) if not c["ok"]] == []
    (home / "rules.yaml").unlink()
    refused = mmrec("rules", "check", "--home", str(home), ok=(2,))
    assert "there are no rules" in refused.stderr


def test_a_night_is_repeated_under_the_rules_it_was_made_under(ruled: Ruled, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(ruled.home, home, symlinks=True)
    (home / "rules.yaml").write_text("rules:\n- name: other\n  exclude: {category: aisle 3}\n")
    words = ("--home", str(home), "--json")
    again = json.loads(mmrec("run", "--date", SECOND, "--replay", *words).stdout)
    text = json.dumps(again)
    assert ruled.night["counts"]["publish"]["content_hash"] in text
    assert [c for c in json.loads(mmrec("verify", *words).stdout)["checks"] if not c["ok"]] == []
    told = json.loads(mmrec("why-not", ruled.user, ruled.recalled, *words).stdout)
    assert (told["fell"], told["rule"]) == ("rule", "recalled")
