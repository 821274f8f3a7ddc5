"""Which model serves: the state that changes leave against a naive stack, and one winner of every race."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec.bundle.serving import ZERO, Outrun, Served, Serving, ask, serving
from mmrec.lake.store import Lake

DAY = datetime(2026, 3, 1, tzinfo=UTC)
WHO = {"asked_by": "ann", "through": "command"}
NAME = "ops.serving"


def made(version: str, day: int | None = 0) -> Served:
    return Served(version, f"sha-{version}", None if day is None else DAY + timedelta(days=day))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serving") / "lake"
    Lake(root).create(NAME)
    return root


@pytest.fixture
def lake(bare: Path, tmp_path: Path) -> Lake:
    shutil.copytree(bare, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def test_a_home_without_the_table_has_made_no_change_and_the_first_makes_it(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    assert (serving(lake), serving(lake).version, serving(lake).previous) == (Serving(), ZERO, ZERO)
    assert not lake.exists(NAME)
    row = ask(lake, serving(lake), "promoted", made("3"), **WHO)
    assert (row["change"], row["before"]) == (1, ZERO)
    assert serving(lake) == Serving(1, (made("3"),))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["1", "2", "3", "try", "back", "refused"]), max_size=7))
def test_the_state_is_that_of_a_stack_and_a_rollback_goes_back_as_far_as_there_were_versions(bare: Path, tmp_path: Path, asked: list[str]) -> None:
    shutil.rmtree(tmp_path / "lake", ignore_errors=True)
    shutil.copytree(bare, tmp_path / "lake")
    lake, stack, states, trial = Lake(tmp_path / "lake"), [], [Serving()], None
    for word in asked:
        now = serving(lake)
        if word == "refused":
            assert ask(lake, now, "refused", made("9"), said="no", **WHO)["change"] is None
            continue
        if word == "try":
            trial = made("8", 8)
            ask(lake, now, "promoted", trial, share=0.25, **WHO)
        elif word == "back":
            if not stack and trial is None:
                continue
            if trial is None:
                stack.pop()
            trial = None
            ask(lake, now, "rolled_back", stack[-1] if stack else None, **WHO)
        else:
            trial = None
            stack.append(made(word, int(word)))
            ask(lake, now, "promoted", stack[-1], **WHO)
        states.append(Serving(len(states), tuple(stack), trial, 0.0 if trial is None else 0.25))
        assert serving(lake) == states[-1]
        assert (serving(lake).version, serving(lake).previous) == tuple(([ZERO, ZERO] + [s.version for s in stack])[:-3:-1])
    assert [serving(lake, n) for n in range(len(states))] == states
    assert lake.arrow(NAME).num_rows == sum(w == "refused" for w in asked) + len(states) - 1


def test_a_night_of_the_past_takes_the_newest_that_served_and_knew_nothing_later() -> None:
    now = Serving(4, (made("1", 2), made("2", 4), made("7", None), made("5", 9)))
    assert [s.version if (s := now.known_at(DAY + timedelta(days=d))) else None for d in (9, 8, 20)] == ["5", "7", "5"]
    older = Serving(3, (made("1", 2), made("2", 4), made("5", 9)))
    asked = {d: (s.version if (s := older.known_at(DAY + timedelta(days=d))) else None) for d in (1, 2, 3, 4, 8, 9)}
    assert asked == {1: None, 2: "1", 3: "1", 4: "2", 8: "2", 9: "5"}
    assert older.known_at(None) == made("5", 9)
    assert Serving().known_at(None) is None


def test_a_change_over_a_state_that_is_not_the_newest_is_refused_and_leaves_nothing(lake: Lake) -> None:
    old = serving(lake)
    ask(lake, old, "promoted", made("1"), **WHO)
    version = lake.version(NAME)
    with pytest.raises(Outrun, match="another change was made first") as told:
        ask(lake, old, "promoted", made("2"), **WHO)
    assert "version 1 serves" in str(told.value)
    assert lake.version(NAME) == version
    ask(lake, old, "refused", made("2"), said="too late", **WHO)  # a refusal changes nothing, so it is never too late
    assert serving(lake) == Serving(1, (made("1"),))


def race(lake: Lake, rounds: int) -> list[int]:
    """Winners of each round of two that ask at once, over the state that both have seen."""
    won: list[int] = []
    for _ in range(rounds):
        seen, start, out = serving(lake), threading.Barrier(2), []

        def one(version: str, seen: Serving = seen, start: threading.Barrier = start, out: list[str] = out) -> None:
            own = Lake(lake.root)
            start.wait()
            try:
                ask(own, seen, "promoted", made(version), **WHO)
                out.append(version)
            except Outrun:
                ask(own, serving(own), "refused", made(version), said="outrun", **WHO)

        both = [threading.Thread(target=one, args=(v,)) for v in ("1", "2")]
        for t in both:
            t.start()
        for t in both:
            t.join()
        assert [s.version for s in serving(lake).stack[-1:]] == out[:1]
        won.append(len(out))
    return won


def test_of_two_that_ask_at_once_exactly_one_changes_what_serves_and_both_are_on_record(lake: Lake) -> None:
    rounds = 12
    assert race(lake, rounds) == [1] * rounds
    rows = lake.arrow(NAME).to_pylist()
    assert sorted(r["change"] for r in rows if r["change"]) == list(range(1, rounds + 1))
    assert sum(r["action"] == "refused" for r in rows) == rounds
    assert len({r["request"] for r in rows}) == 2 * rounds
