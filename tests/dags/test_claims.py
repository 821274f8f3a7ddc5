"""One run a date: claims against a naive table, in races of processes, and after crashes."""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.errors import TransientError
from mmrec.flow import claims

DAY, HOUR = date(2026, 3, 2), timedelta(hours=1)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def holder(home: Path, day: date = DAY) -> str | None:
    path = home / "runs" / "claims" / f"{day}.json"
    return json.loads(path.read_text())["owner"] if path.exists() else None


def test_a_claim_names_its_owner_and_time_and_has_a_folder_of_its_own(tmp_path: Path) -> None:
    scratch = claims.claim(tmp_path, DAY, "nightly/one", max_age=HOUR, now=NOON)
    assert json.loads((tmp_path / "runs/claims/2026-03-02.json").read_text()) == {
        "owner": "nightly/one",
        "since": "2026-03-02T12:00:00+00:00",
    }
    assert scratch.is_dir()
    assert scratch.parent == tmp_path / "runs" / "scratch"
    assert len(scratch.name) == len("2026-03-02-12345678")


def test_a_held_date_is_refused_with_who_holds_it_and_how_to_free_it_and_is_worth_a_retry(tmp_path: Path) -> None:
    claims.claim(tmp_path, DAY, "nightly/one", max_age=HOUR, now=NOON)
    with pytest.raises(TransientError) as caught:
        claims.claim(tmp_path, DAY, "backfill/two", max_age=HOUR, now=NOON + HOUR)
    assert caught.value.exit_code == 75
    for part in ("nightly/one", "since 2026-03-02T12:00:00+00:00", f"rm {tmp_path / 'runs/claims/2026-03-02.json'}"):
        assert part in str(caught.value)
    claims.claim(tmp_path, DAY + timedelta(days=1), "backfill/two", max_age=HOUR, now=NOON)  # another date is free


def test_a_claim_older_than_a_run_may_last_is_taken_over_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = claims.claim(tmp_path, DAY, "gone", max_age=HOUR, now=NOON)
    claims.claim(tmp_path, DAY, "new", max_age=HOUR, now=NOON + HOUR + timedelta(seconds=1))
    assert holder(tmp_path) == "new"
    assert not old.exists()
    assert "the claim of gone is older than 1:00:00 and is taken over" in caplog.text
    assert not claims.release(tmp_path, DAY, "gone")  # a zombie's teardown frees nothing
    assert holder(tmp_path) == "new"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": "x"}', '{"owner": "x", "since": "yesterday"}'])
def test_a_claim_that_is_no_claim_holds_the_date_until_it_is_old(tmp_path: Path, content: str) -> None:
    path = tmp_path / "runs/claims/2026-03-02.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(TransientError, match="unreadable"):
        claims.claim(tmp_path, DAY, "me", max_age=HOUR)
    claims.claim(tmp_path, DAY, "me", max_age=HOUR, now=datetime.now(UTC) + 2 * HOUR)
    assert holder(tmp_path) == "me"


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["claim", "release", "wait"]), st.sampled_from("abc"), st.integers(0, 1), st.integers(0, 90)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_any_sequence_of_claims_releases_and_waits_agrees_with_a_table_of_who_holds_what_since_when(
    actions: list[tuple[str, str, int, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home, now, table = Path(folder), NOON, {}
        for what, owner, offset, minutes in actions:
            day = DAY + timedelta(days=offset)
            if what == "wait":
                now += timedelta(minutes=minutes)
            elif what == "release":
                mine = table.get(day, (None,))[0] == owner
                assert claims.release(home, day, owner) == mine
                if mine:
                    del table[day]
            else:
                other, since = table.get(day, (owner, now))
                if other != owner and now - since <= HOUR:
                    with pytest.raises(TransientError, match=f"'{other}, since"):
                        claims.claim(home, day, owner, max_age=HOUR, now=now)
                else:
                    assert claims.claim(home, day, owner, max_age=HOUR, now=now).is_dir()
                    table[day] = (owner, now)
            for d in (DAY, DAY + timedelta(days=1)):
                assert holder(home, d) == table.get(d, (None,))[0]
        for day, (owner, _) in table.items():
            assert claims.scratch(home, day, owner).is_dir()


RACER = """
import sys, time
from datetime import date, timedelta
from pathlib import Path
from mmrec.errors import TransientError
from mmrec.flow.claims import claim
home, me = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True); sys.stdin.readline()
won = []
for n in range(40):
    try:
        claim(home, date(2026, 1, 1) + timedelta(days=n), me, max_age=timedelta(seconds=60)); won.append(n)
    except TransientError:
        pass
print(*won)
"""


@pytest.mark.parametrize("stale", [False, True])
def test_of_processes_that_claim_forty_dates_at_once_exactly_one_has_each_also_when_all_take_over(
    tmp_path: Path, stale: bool
) -> None:
    if stale:
        for n in range(40):
            day = date(2026, 1, 1) + timedelta(days=n)
            claims.claim(tmp_path, day, "gone", max_age=HOUR, now=datetime.now(UTC) - timedelta(days=2))
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), f"racer-{n}"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True) for n in range(4)]  # fmt: skip
    for r in racers:
        assert r.stdout is not None
        r.stdout.readline()
    for r in racers:
        assert r.stdin is not None
        r.stdin.write("\n")
        r.stdin.flush()
    won = {n: sorted(map(int, r.communicate()[0].split())) for n, r in enumerate(racers)}
    assert sorted(n for dates in won.values() for n in dates) == list(range(40))
    for n, dates in won.items():
        assert {holder(tmp_path, date(2026, 1, 1) + timedelta(days=d)) for d in dates} <= {f"racer-{n}"}


def test_cleaning_removes_what_is_older_than_a_day_and_keeps_what_a_living_run_uses(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    fresh = claims.claim(tmp_path, DAY, "fresh", max_age=HOUR, now=now)
    stale = claims.claim(tmp_path, DAY + timedelta(days=1), "stale", max_age=HOUR, now=now - timedelta(days=2))
    lost = tmp_path / "runs" / "scratch" / "2026-01-01-00000000"
    lost.mkdir()
    later = now + timedelta(hours=20)
    assert claims.clean(tmp_path, older=timedelta(days=1), now=later) == ["2026-03-03.json"]
    assert fresh.exists()
    assert lost.exists()  # twenty hours old
    later = now + timedelta(days=1, minutes=1)
    gone = claims.clean(tmp_path, older=timedelta(days=1), now=later)
    assert sorted(gone) == sorted(["2026-03-02.json", fresh.name, stale.name, lost.name])
    assert list((tmp_path / "runs" / "scratch").iterdir()) == []
