"""Reasons of a real night, typed as a person types them: one row's account, the study, another language, a repetition."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mmrec.config import load
from mmrec.faithful import _without, study
from mmrec.lake.store import Lake
from tests.conftest import NIGHTS, Lived, mmrec

Row = dict[str, Any]


def rows_of(home: Path, when: str = NIGHTS[-1]) -> list[Row]:
    rows = Lake(home / "lake").day("gold.recommendations", date.fromisoformat(when)).to_pylist()
    return sorted(rows, key=lambda r: (r["user_id"], r["rank"]))


@pytest.fixture(scope="module")
def rows(lived: Lived) -> list[Row]:
    return rows_of(lived.home)


def test_the_first_rows_of_the_model_have_numbers_and_name_what_the_user_had(lived: Lived, rows: list[Row]) -> None:
    had = {r["user_id"]: set(r["seen_item_ids"]) for r in Lake(lived.home / "lake").day("gold.user_sequences", date.fromisoformat(NIGHTS[-1])).to_pylist()}
    told = [r for r in rows if r["parts"]]
    assert told
    for r in rows:
        assert (r["parts"] is not None) == (r["source"] == "model" and r["rank"] <= 10)
        for names, shares in ((r["because"], r["because_share"]), (r["parts"], r["parts_share"])):
            assert (names is None) == (shares is None)
            assert len(names or ()) == len(shares or ())
            assert shares is None or (shares == sorted(shares, reverse=True) and min(shares) > 0)
            assert all(round(s, 3) == s for s in shares or ())
        assert set(r["because"] or ()) <= had[r["user_id"]]
        assert len(r["because"] or ()) <= 3
    assert all(sum(r["parts_share"]) == pytest.approx(1, abs=1e-9) for r in told)
    assert sum(r["because"] is not None for r in told) > len(told) * 0.9
    assert {p for r in told for p in r["parts"]} <= {"behaviour", "popularity", "text", "image", "audio"}


def test_one_row_is_explained_as_it_was_published(lived: Lived, rows: list[Row]) -> None:
    row = next(r for r in rows if r["because"])
    told = lived.json("explain", row["user_id"], row["item_id"])
    assert [(b["item_id"], b["share"]) for b in told["because"]] == list(zip(row["because"], row["because_share"], strict=True))
    assert [(p["part"], p["share"]) for p in told["parts"]] == list(zip(row["parts"], row["parts_share"], strict=True))
    assert (told["rank"], told["says"], told["rule"]) == (row["rank"], row["reason"], None)
    assert told["because"][0]["title"] in told["says"]
    shown = " ".join(mmrec("explain", row["user_id"], row["item_id"], "--home", str(lived.home)).stdout.split())
    assert told["says"] in shown
    assert "the score: " in shown
    last = next(r for r in rows if r["rank"] == 11)
    assert "no numbers are told of this row" in mmrec("explain", last["user_id"], last["item_id"], "--home", str(lived.home)).stdout


@pytest.mark.parametrize(("words", "said"), [
    (("nobody", "i00001"), "this user has no list"), (("{user}", "nothing"), "this item is not in the user's list"),
    (("{user}",), "a row is a user and an item"), (("{user}", "i00001", "--users", "3"), "a row is a user and an item"),
    (("--date", "2020-01-01"), "never published"),
])  # fmt: skip
def test_a_question_that_has_no_answer_is_told_what_would_have_one(lived: Lived, rows: list[Row], words: tuple[str, ...], said: str) -> None:
    refused = mmrec("explain", *(w.format(user=rows[0]["user_id"]) for w in words), "--home", str(lived.home), ok=(2,))
    for part in (said, "where:", "value:", "valid:", "next:"):
        assert part in refused.stderr


def test_what_is_named_is_what_the_score_would_lose_most_without(lived: Lived, rows: list[Row]) -> None:
    found = lived.json("explain", "--users", "12")
    by = found["by"]
    assert (found["users"], found["seed"]) == (12, 0)
    assert 0 < found["rows"] <= 120
    assert by["contributions"]["drop"] <= found["drop"]["greatest"]
    assert found["drop"]["random"] < by["contributions"]["drop"]
    assert by["contributions"]["first"] > max(by["most_recent"]["first"], 1 / found["history"])
    assert by["contributions"]["first"] >= by["nearest"]["first"]
    assert by["contributions"]["rank_correlation"] > 0.7
    told: list[tuple[str, int, int]] = []
    again = study(load(lived.home), Lake(lived.home / "lake"), 12, tell=lambda *words: told.append(words))
    # a seed draws the same users; the last digits may depend on the processor's threads
    assert {c: v for c, v in again.items() if c != "by"} == {c: v if c != "drop" else pytest.approx(v) for c, v in found.items() if c != "by"}
    assert {name: pytest.approx(r, abs=1e-3) for name, r in found["by"].items()} == again["by"]
    assert told == [("users", 8, 12), ("users", 12, 12)]
    assert study(load(lived.home), Lake(lived.home / "lake"), 12, seed=1) != found


def test_a_history_without_an_item_has_its_gap_in_the_one_before() -> None:
    row = {"item_ids": ["a", "b", "a", "c", "b"], "event_types": list("vwxyz"), "gap_s": [1, 2, 3, 4, 5], "weight_micro": [1, 2, 3, 4, 5]}
    assert _without(row, "b") == {"item_ids": ["a", "a", "c"], "event_types": ["v", "x", "y"], "gap_s": [3, 3, 9], "weight_micro": [1, 3, 4]}
    assert _without(row, "a")["gap_s"] == [5, 4, 5], "before the first there is nothing"


@pytest.mark.deep
def test_another_language_changes_words_alone_and_is_repeated(lived: Lived, rows: list[Row], tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    words = [sys.executable, "-m", "mmrec", "run", "--date", NIGHTS[-1], "--home", str(home), "--json"]
    german = os.environ | {"MMREC_REASONS__LANGUAGE": "de"}
    made = json.loads(subprocess.run([*words, "--force", "--no-train"], env=german, capture_output=True, text=True, check=True).stdout)
    there = rows_of(home)
    aside = ("reason", "run_id")
    assert [{c: v for c, v in r.items() if c not in aside} for r in there] == [{c: v for c, v in r.items() if c not in aside} for r in rows]
    assert all(r["reason"].startswith("wegen ") for r in there if r["because"])
    # the manifest says the language, whatever the settings say by now
    again = json.loads(mmrec("run", "--date", NIGHTS[-1], "--replay", "--home", str(home), "--json").stdout)
    assert made["counts"]["publish"]["content_hash"] in json.dumps(again)
    refused = subprocess.run(words, env=os.environ | {"MMREC_REASONS__LANGUAGE": "tlh"}, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "MMREC_REASONS__LANGUAGE" in refused.stderr
