"""Vectors of encoder versions that nobody needs go in one fenced commit; no other row does, and no promised version ends."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec import schema
from mmrec.config import Config, MaintainConfig, load
from mmrec.content.embed import embed
from mmrec.content.encoders import encoder
from mmrec.errors import InputError, TransientError
from mmrec.lake import commit, compact, log
from mmrec.lake.maintain import maintain
from mmrec.lake.store import Lake
from tests.conftest import mmrec
from tests.unit import test_embed as shop
from tests.unit.test_lake import race

CACHE, DAY = "gold.item_embeddings", timedelta(days=1)
Rows = Counter[tuple[str, str]]  # (version, content)


@pytest.fixture
def home(tmp_path: Path) -> Config:
    made = load(tmp_path / "home")
    for name in shop.TABLES:
        Lake(made.lake).create(name)
    return made


@pytest.fixture
def lake(home: Config) -> Lake:
    return Lake(home.lake)


def vectors(version: str, *contents: str) -> pa.Table:
    rows = [{"content_sha256": c, "encoder_version": version, "modality": "text", "dim": 2, "embedding": [float(len(c)), 0.5]} for c in contents]
    return pa.Table.from_pylist([{"refused": None} | r for r in rows], schema.table(CACHE).arrow)


def put(lake: Lake, *parts: pa.Table, **more: Any) -> None:
    for part in parts:
        commit.write(lake, CACHE, part, run_id="r", pinned=commit.fence(lake, CACHE), **more)


def held(lake: Lake, version: int | None = None) -> Rows:
    rows = lake.arrow(CACHE, version, columns=["encoder_version", "content_sha256"])
    return Counter(zip(*(c.to_pylist() for c in rows.columns), strict=True))


def tidy(home: Config, *needed: str, days: float = 8, dry_run: bool = False, **more: Any) -> dict[str, Any]:
    """What maintenance `days` from now does to the cache; files are put together from `min_files` on."""
    config = home.model_copy(update={"maintain": MaintainConfig(**{"min_files": 10**6} | more)})
    (told,) = maintain(config, CACHE, dry_run=dry_run, now=datetime.now(UTC) + days * DAY, needed=lambda: needed)
    return told


def of(rows: Rows, *versions: str) -> Rows:
    return Counter({row: n for row, n in rows.items() if row[0] in versions})


def files(lake: Lake) -> set[str]:
    return set(pa.table(lake.handle(CACHE).get_add_actions(flatten=True))["path"].to_pylist())


def ago(lake: Lake, days: int) -> None:
    """Make every commit of the cache `days` older."""
    for entry in (lake.path(CACHE) / "_delta_log").glob("*.json"):
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        for line in lines:
            if "commitInfo" in line:
                line["commitInfo"]["timestamp"] -= days * 86_400_000
        entry.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for copy in lake.path(CACHE).rglob(f"_entry-{entry.stem}-*"):
            copy.unlink()
        at = (datetime.now(UTC) - days * DAY).timestamp()
        os.utime(entry, (at, at))


def mixed(home: Config) -> Lake:
    """Versions a, b, c: a file with all three, and one each of a and of b; nine rows."""
    lake = Lake(home.lake)
    put(lake, vectors("a", "1", "22"), vectors("b", "1", "333"), vectors("c", "1"))
    assert tidy(home, "a", "b", "c", min_files=2)["compacted"]["into"] == 1
    put(lake, vectors("a", "4444", "5"), vectors("b", "5", "6"))
    return lake


def test_what_nobody_needs_goes_and_every_other_row_stays_as_it_was(home: Config) -> None:
    lake = mixed(home)
    before, version, whole = held(lake), lake.version(CACHE), lake.arrow(CACHE)
    told = tidy(home, "b", "c")
    assert (told["unneeded"], told["refused"]) == ({"a": 4}, None)
    assert held(lake) == of(before, "b", "c")
    left = [r for r in whole.to_pylist() if r["encoder_version"] != "a"]
    assert Counter(map(repr, lake.arrow(CACHE).to_pylist())) == Counter(map(repr, left))
    assert held(lake, version) == before, "the version before it stays readable"
    assert lake.version(CACHE) == version + 1, "one commit"
    assert commit.fence(lake, CACHE) == 6
    assert tidy(home, "b", "c")["unneeded"] == {}
    assert log.damage(lake.path(CACHE), CACHE, all_of_it=True) == []


def test_files_without_such_rows_are_left_alone_and_only_mixed_ones_are_written_again(home: Config) -> None:
    lake = mixed(home)
    before = files(lake)
    tidy(home, "b", "c")
    new = files(lake) - before
    assert len(new) == 1
    assert len(before & files(lake)) == 1, "the file that holds b alone"
    stage = lake.path(CACHE) / next(iter(new)).split("/")[0]
    assert json.loads((stage / "_stage.json").read_text())["run_id"] == compact.RUN_ID
    assert not (stage / "_delta_log").exists()


def test_files_that_hold_nothing_else_go_without_a_new_one(home: Config, lake: Lake) -> None:
    put(lake, vectors("a", "1"), vectors("b", "1"), vectors("a", "2"))
    before = files(lake)
    assert tidy(home, "b")["unneeded"] == {"a": 2}
    assert files(lake) < before
    assert held(lake) == Counter({("b", "1"): 1})
    assert tidy(home)["unneeded"] == {"b": 1}
    assert (held(lake), files(lake)) == (Counter(), set())
    put(lake, vectors("a", "1"))
    assert held(lake) == Counter({("a", "1"): 1})


def test_a_version_that_was_given_rows_within_the_grace_stays_though_its_old_rows_are_old(home: Config, lake: Lake) -> None:
    put(lake, vectors("old", "1"), vectors("new", "1"))
    for days, goes in ((6.9, {}), (7.1, {"new": 1, "old": 1})):
        assert tidy(home, days=days, dry_run=True)["unneeded"] == goes
    assert tidy(home, days=20, grace_days=21)["unneeded"] == {}
    # entries say when they were made, and so does the disk: the later counts
    entry = lake.path(CACHE) / "_delta_log" / f"{lake.version(CACHE):020}.json"
    at = (datetime.now(UTC) + 5 * DAY).timestamp()
    os.utime(entry, (at, at))
    assert tidy(home, days=8)["unneeded"] == {"old": 1}
    assert held(lake) == Counter({("new", "1"): 1})


def test_files_that_were_put_together_do_not_make_their_versions_young(home: Config, lake: Lake) -> None:
    put(lake, vectors("a", "1"), vectors("b", "1"), vectors("a", "2"))
    ago(lake, 10)
    assert tidy(home, "a", "b", days=0, min_files=2)["compacted"]["files"] == 3
    assert tidy(home, "b", days=0)["unneeded"] == {"a": 2}
    assert held(lake) == Counter({("b", "1"): 1})


def test_a_dry_run_tells_and_changes_nothing_and_without_the_question_nothing_goes(home: Config) -> None:
    lake = mixed(home)
    before = (lake.version(CACHE), held(lake), set(lake.path(CACHE).rglob("*")))
    assert tidy(home, "c", dry_run=True)["unneeded"] == {"a": 4, "b": 4}
    assert (lake.version(CACHE), held(lake), set(lake.path(CACHE).rglob("*"))) == before
    (told,) = maintain(home, CACHE, now=datetime.now(UTC) + 8 * DAY)
    assert (told["unneeded"], held(lake)) == ({}, before[1])


def test_the_command_asks_the_settings_and_tells_a_program_and_a_person(home: Config) -> None:
    lake = mixed(home)
    own = encoder("minilm", home.cache).version
    put(lake, vectors(own, "1"))
    ago(lake, 10)
    words, before = ("maintain", "--home", str(home.home), "--table", CACHE), held(lake)
    shown = re.sub(r"[\s│]+", " ", mmrec(*words, "--dry-run").stdout)
    assert "4 vectors of a, 4 vectors of b, 1 vectors of c" in shown
    assert held(lake) == before
    (told,) = json.loads(mmrec(*words, "--json").stdout)["tables"]
    assert told["unneeded"] == {"a": 4, "b": 4, "c": 1}
    assert held(lake) == of(before, own)
    assert json.loads(mmrec(*words, "--json").stdout)["tables"][0]["unneeded"] == {}


@pytest.mark.parametrize("error", [InputError("a bundle is gone", where="here", next="do this"), TransientError("no answer")])
def test_where_it_is_not_known_what_is_needed_the_table_is_refused_and_left_as_it_is(home: Config, error: Exception) -> None:
    def unknown() -> set[str]:
        raise error

    lake = mixed(home)
    before = (lake.version(CACHE), held(lake))
    told = {t["table"]: t for t in maintain(home, now=datetime.now(UTC) + 8 * DAY, needed=unknown)}
    assert "not known which encoder versions are needed" in told[CACHE]["refused"]
    assert str(error).split("\n")[0] in told[CACHE]["refused"]
    assert (lake.version(CACHE), held(lake)) == before
    assert [n for n, t in told.items() if t["refused"]] == [CACHE]


def test_an_embed_that_commits_before_it_is_not_lost_and_nothing_goes_this_time(home: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = mixed(home)
    before, real, came = held(lake), compact._same, list[str]()

    def meanwhile(*args: Any) -> None:
        real(*args)
        if not came:
            came.append("embed")
            put(lake, vectors("a", "new"), vectors("b", "new"))

    monkeypatch.setattr(compact, "_same", meanwhile)
    told = tidy(home, "b", "c")
    assert (told["unneeded"], told["refused"]) == ({}, None)
    assert held(lake) == before + Counter({("a", "new"): 1, ("b", "new"): 1})
    assert not list(lake.path(CACHE).glob("stage-maintain-*/_delta_log"))
    assert tidy(home, "b", "c")["unneeded"] == {"a": 5}
    assert held(lake) == of(before, "b", "c") + Counter({("b", "new"): 1})


def test_an_embed_that_looked_before_it_is_fenced_off_and_looks_again(home: Config, lake: Lake) -> None:
    # the settings went back to a version whose vectors are just about to go: half known, half new
    shop.items(lake, {"id": "1", "text": "hat"}, {"id": "2", "text": "shoe"})
    shop.run(lake, shop.Counter("text", "a"), shop.Counter("text", "b"))
    shop.items(lake, {"id": "3", "text": "bag"})
    goes = list[dict[str, int]]()

    def maintained() -> None:
        if not goes:
            goes.append(tidy(home, "b")["unneeded"])

    back, turns = shop.Counter("text", "a", also=maintained), list[str]()

    def work() -> dict[str, Any]:
        turns.append("turn")
        return embed(lake, [back], run_id="embed-2", text_of=lambda row: row["text"])

    counts = commit.again(work)
    assert goes == [{"a": 2}]
    assert (len(turns), counts["text_new"]) == (2, 3)
    assert {sha for v, sha in shop.stored(lake) if v == "a"} == {shop.sha(t) for t in ("hat", "shoe", "bag")}
    assert {sha for v, sha in shop.stored(lake) if v == "b"} == {shop.sha(t) for t in ("hat", "shoe")}


def test_a_writer_whose_transaction_was_already_asked_for_commits_after_it_once(home: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = mixed(home)
    before, real, calls = held(lake), DeltaTable.create_write_transaction, list[str]()

    def late(handle: DeltaTable, *args: Any, **more: Any) -> None:
        calls.append("asked")
        if len(calls) == 1:
            assert tidy(home, "b", "c")["unneeded"] == {"a": 4}
        real(handle, *args, **more)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", late)
    with pytest.raises(commit.Fenced, match="another run committed first"):
        put(lake, vectors("b", "late"))
    assert held(lake) == of(before, "b", "c")
    put(lake, vectors("b", "late"))
    assert held(lake) == of(before, "b", "c") + Counter({("b", "late"): 1})


@pytest.mark.parametrize("min_files", [2, 10**6], ids=["files put together too", "these alone"])
def test_maintenances_at_once_double_nothing_and_lose_nothing_else(home: Config, min_files: int) -> None:
    lake = mixed(home)
    before = held(lake)
    jobs: list[Any] = [partial(tidy, home, "b", "c", min_files=min_files) for _ in range(3)]
    ends = race(jobs)
    assert not [e for e in ends if isinstance(e, Exception)], ends
    assert {"a": 4} in [e["unneeded"] for e in ends]  # type: ignore[index]
    assert held(lake) == of(before, "b", "c")


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("needed", [("b", "c"), ()], ids=["files are written again", "files go"])
def test_an_answer_that_never_came_leaves_the_rows_whole(home: Config, monkeypatch: pytest.MonkeyPatch, lost: str, needed: tuple[str, ...]) -> None:
    lake = mixed(home)
    before, real = held(lake), DeltaTable.create_write_transaction

    def unheard(*args: Any, **more: Any) -> None:
        if lost == "after":
            real(*args, **more)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(DeltaTable, "create_write_transaction", unheard)
        if lost == "before":
            with pytest.raises(TransientError):
                tidy(home, *needed)
            assert held(lake) == before
        else:
            assert "a" in tidy(home, *needed)["unneeded"]
            assert held(lake) == of(before, *needed)
    tidy(home, *needed)
    assert held(lake) == of(before, *needed)


def test_an_embed_and_a_compaction_in_the_way_of_files_that_go_are_not_taken_for_ones_own_commit(home: Config, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lake, vectors("a", "1"), vectors("b", "1"))
    real, calls = DeltaTable.create_write_transaction, list[str]()

    def late(handle: DeltaTable, *args: Any, **more: Any) -> None:
        calls.append("asked")
        if len(calls) == 1:
            put(lake, vectors("b", "2"))
            assert tidy(home, "a", "b", min_files=2)["compacted"]["into"] == 1
        real(handle, *args, **more)

    monkeypatch.setattr(DeltaTable, "create_write_transaction", late)
    assert tidy(home, "b")["unneeded"] == {}
    assert held(lake) == Counter({("a", "1"): 1, ("b", "1"): 1, ("b", "2"): 1})


def test_a_file_that_lost_a_needed_row_is_never_committed(home: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = mixed(home)
    before, real = (lake.version(CACHE), held(lake)), compact._rows

    def wrong(*args: Any) -> Any:
        for batch in real(*args):
            yield batch.slice(1)

    monkeypatch.setattr(compact, "_rows", wrong)
    assert "other rows than it read" in tidy(home, "b", "c")["refused"]
    assert (lake.version(CACHE), held(lake)) == before
    assert len(list(lake.path(CACHE).glob("stage-maintain-*"))) == 1, "of the files put together before"


STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(0, 9)),
    st.tuples(st.just("compact")),
    st.tuples(st.just("forget"), st.sets(st.sampled_from("abc"))),
)


@settings(max_examples=int(os.environ.get("TEST_FORGET_EXAMPLES", "12")), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, min_size=3, max_size=9))
def test_in_whatever_order_the_cache_holds_what_a_set_of_rows_would(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]]) -> None:
    home = load(tmp_path_factory.mktemp("any") / "home")
    lake, rows = Lake(home.lake), set[tuple[str, str]]()
    lake.create(CACHE)
    was: dict[int, set[tuple[str, str]]] = {}
    for what, *how in steps:
        if what == "put":
            row = (how[0], str(how[1]))
            if row not in rows:
                put(lake, vectors(*row))
                rows.add(row)
        elif what == "compact":
            tidy(home, "a", "b", "c", min_files=2)
        else:
            (needed,) = how
            told = tidy(home, *needed)
            assert told["unneeded"] == {v: n for v in "abc" if v not in needed and (n := sum(r[0] == v for r in rows))}
            rows = {r for r in rows if r[0] in needed}
        was[lake.version(CACHE)] = set(rows)
        assert held(lake) == Counter(rows)
    for version, right in was.items():
        assert held(lake, version) == Counter(right)
