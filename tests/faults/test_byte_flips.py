"""Flipped bits and cut files: in the lake each is found or harmless; in a source each row is kept, quarantined, or the step stops."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from mmrec import schema
from mmrec.config import Config
from mmrec.errors import MmrecError, QualityError
from mmrec.lake import commit
from mmrec.lake.content import content_hash
from mmrec.lake.repair import repair
from mmrec.lake.store import Lake
from mmrec.night import Night, ingest, validate
from mmrec.run import make_home
from mmrec.verify import verify
from tests.faults.sweep import D1, D2, LIST, NOON, USERS, people, slates

SEED = 0
FLIPS = {"data": 60, "log": 150, "record": 30, "source": 5}


@dataclass(frozen=True)
class Small:
    """A home whose lake holds two days of lists, one of them replaced, and two appends of users."""

    config: Config
    lake: Lake

    def contents(self) -> dict[str, Any]:
        """What readers and writers see: rows by table, rows by day, versions, fences."""
        return {
            "rows": {n: content_hash(self.lake.arrow(n), n) for n in (LIST, USERS)},
            "days": {d: content_hash(self.lake.day(LIST, d), LIST) for d in self.lake.run_dates()},
            "versions": {n: self.lake.version(n) for n in (LIST, USERS)},
            "fences": [commit.fence(self.lake, n, d) for n, d in ((LIST, D1), (LIST, D2), (USERS, None))],
        }

    def seen(self, clean: dict[str, Any]) -> str:
        """same, refused, or the fault: what else was read, or an error that is not mmrec's."""
        try:
            return "same" if (now := self.contents()) == clean else f"another table: {[k for k in clean if now[k] != clean[k]]}"
        except MmrecError:
            return "refused"
        except Exception as error:
            return f"loud, {type(error).__name__}"

    def verified(self) -> str:
        try:
            bad = [f["check"] for f in verify(self.config, deep=True) if not f["ok"]]
        except Exception as error:
            return f"crashes, {type(error).__name__}: {str(error)[:80]}"
        return f"found: {bad[0]}" if bad else "holds"

    def files(self, pattern: str) -> list[Path]:
        return sorted(p for n in (LIST, USERS) for p in self.lake.path(n).glob(pattern))

    def entries(self, name: str) -> list[Path]:
        return sorted((self.lake.path(name) / "_delta_log").glob("*.json"))


def delivered(users: pa.Table) -> pa.Table:
    """The bronze rows that `users` were made from."""
    about = {"file": "users.jsonl", "line": 1, "occurrence": 0, "ingested_at": NOON, "available_at": str(NOON)}
    return pa.Table.from_pylist([{k: v for k, v in row.items() if k != "available_at"} | about for row in users.to_pylist()], schema.table("bronze.users").arrow)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    config = make_home(tmp_path_factory.mktemp("flips") / "home", size="tiny")
    lake = Lake(config.lake)
    for day, run_id, shift in ((D1, "first", 0), (D2, "other", 5000), (D1, "night", 1000)):
        commit.write(lake, LIST, slates(day, run_id, shift), run_id=run_id, pinned=commit.fence(lake, LIST, day), partition=day)
    for n in range(2):
        users = people(200 * n, 200)
        commit.write(lake, "bronze.users", delivered(users), run_id=f"people{n}", pinned=commit.fence(lake, "bronze.users"))
        commit.write(lake, USERS, users, run_id=f"people{n}", pinned=commit.fence(lake, USERS))
    runs = [{"run_id": r, "run_date": d, "manifest": "{}", "content_hash": content_hash(lake.day(LIST, d), LIST), "model_version": "0", "users": 50, "rows": 200,
             "table_version": lake.version(LIST), "finished_at": NOON} for r, d in (("night", D1), ("other", D2))]  # fmt: skip
    commit.write(lake, "ops.runs", pa.Table.from_pylist(runs, schema.table("ops.runs").arrow), run_id="runs", pinned=0)
    return Small(config, lake)


_clock = [2_000_000_000 * 10**9]


def put(path: Path, data: bytes) -> None:
    """Replace the bytes; a file's state is known by its times, and a test is faster than a clock."""
    path.write_bytes(data)
    _clock[0] += 1_000_000
    os.utime(path, ns=(_clock[0], _clock[0]))


@contextmanager
def altered(path: Path, data: bytes) -> Iterator[None]:
    whole = path.read_bytes()
    assert data != whole
    put(path, data)
    try:
        yield
    finally:
        put(path, whole)


def flip(data: bytes, rng: Random) -> tuple[int, bytes]:
    at = rng.randrange(len(data))
    return at, data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def test_the_small_lake_is_whole_to_begin_with(small: Small) -> None:
    assert small.verified() == "holds"
    assert small.seen(small.contents()) == "same"


def test_a_flipped_bit_or_a_cut_in_a_data_file_is_found_by_verify_deep(small: Small, tried: Callable[[str, object], None]) -> None:
    rng, found, wrong, clean = Random(SEED), Counter[str](), [], small.contents()
    files = [p for p in small.files("stage-*/**/*.parquet") if any(str(p).endswith(u) for n in (LIST, USERS) for u in small.lake.handle(n).file_uris())]
    assert len(files) == 4
    for n in range(FLIPS["data"]):
        path = rng.choice(files)
        whole = path.read_bytes()
        at, data = flip(whole, rng) if n % 6 else (cut := rng.randrange(len(whole)), whole[:cut])
        with altered(path, data):
            seen, checked = small.seen(clean), small.verified()
        found[f"reader: {seen}; verify --deep {checked}"] += 1
        if not checked.startswith("found"):
            wrong.append(f"{path.name} at {at}: reader {seen}, verify {checked}")
    tried("flips and cuts in data files", dict(found))
    assert not wrong, "\n".join(wrong)
    assert small.contents() == clean


def test_a_flipped_bit_in_a_log_entry_is_found_or_changes_nothing(small: Small, tried: Callable[[str, object], None]) -> None:
    rng, found, wrong, clean = Random(SEED), Counter[str](), [], small.contents()
    entries = [*small.entries(LIST), *small.entries(USERS)]
    for _ in range(FLIPS["log"]):
        path = rng.choice(entries)
        at, data = flip(path.read_bytes(), rng)
        with altered(path, data):
            seen = small.seen(clean)
            checked = "not asked" if seen in ("same", "refused") else small.verified()
        found[f"reader: {seen}; verify {checked.split(':')[0]}"] += 1
        if seen not in ("same", "refused") and not checked.startswith("found"):
            wrong.append(f"{path.parents[1].name} {path.name} at {at} ({data[max(0, at - 30) : at + 30]!r}): reader {seen}, verify {checked}")
    tried("flips in log entries", dict(found))
    assert not wrong, "\n".join(wrong)
    assert small.contents() == clean


def cuts(data: bytes) -> list[int]:
    """Every length of the newest entry that is less than its own, and each end of a line among them."""
    return list(range(len(data)))


@pytest.mark.parametrize("name", [LIST, USERS])
def test_a_newest_log_entry_that_is_empty_or_cut_at_any_byte_is_never_read_as_an_empty_or_another_table(small: Small, name: str, tried: Callable[[str, object], None]) -> None:
    clean, found, wrong = small.contents(), Counter[str](), []
    path = small.entries(name)[-1]
    whole = path.read_bytes()
    lines = {n for n, c in enumerate(whole) if c == 10} | {n + 1 for n, c in enumerate(whole) if c == 10}
    for at in cuts(whole):
        with altered(path, whole[:at]):
            try:
                rows = small.lake.arrow(name)
                seen = "same" if content_hash(rows, name) == clean["rows"][name] else f"{rows.num_rows} rows of another table"
            except QualityError as error:
                seen = "refused" if path.name in str(error) else f"an error that does not name {path.name}: {error}"
            except Exception as error:
                seen = f"{type(error).__name__}"
        found[seen] += 1
        if seen not in ("same", "refused") or (seen == "same" and at < len(whole.rstrip())):
            wrong.append(f"cut at {at} of {len(whole)}{', an end of a line' if at in lines else ''}: {seen}")
    tried(f"cuts of the newest log entry of {name}", dict(found))
    assert not wrong, "\n".join(wrong[:20])
    assert found["refused"] >= 1000


@pytest.mark.parametrize("name", [LIST, USERS])
def test_any_log_entry_that_is_empty_zeroed_or_gone_is_refused_found_and_put_back_where_its_writer_left_a_copy(small: Small, name: str) -> None:
    clean, entries, wrong = small.contents(), small.entries(name), []
    for path in entries:
        whole = path.read_bytes()
        for what, data in (("empty", b""), ("zeroed", bytes(len(whole))), ("cut in half", whole[: len(whole) // 2]), ("gone", None)):
            if data is None and path == entries[-1]:
                continue  # a newest entry that is gone without a trace is the table of the day before
            if data is None:
                path.unlink()
            else:
                put(path, data)
            try:
                small.lake.arrow(name)
                wrong.append(f"{path.name} {what}: is read")
            except QualityError as error:
                if path.name not in str(error):
                    wrong.append(f"{path.name} {what}: {error}")
            if (checked := small.verified()) != "found: logs are whole":
                wrong.append(f"{path.name} {what}: verify {checked}")
            mended = [r for r in repair(small.lake) if r.mended]
            if mended:
                assert path.read_bytes() == whole
            elif b'"run_id"' in whole:
                wrong.append(f"{path.name} {what}: a write's entry is not put back")
            else:
                put(path, whole)
            assert small.seen(clean) == "same", (path.name, what)
    assert not wrong, "\n".join(wrong)


def test_a_flipped_bit_in_what_a_writer_recorded_of_its_stage_never_breaks_verify_or_a_reader(small: Small, tried: Callable[[str, object], None]) -> None:
    rng, found, wrong, clean = Random(SEED), Counter[str](), [], small.contents()
    records = [*small.files("stage-*/_stage.json"), *small.files("stage-*/_entry-*.json")]
    assert len(records) == 10
    for _ in range(FLIPS["record"]):
        path = rng.choice(records)
        at, data = flip(path.read_bytes(), rng)
        with altered(path, data):
            seen, checked = small.seen(clean), small.verified()
        found[f"reader {seen}; verify {checked.split(':')[0]}"] += 1
        if seen != "same" or not (checked == "holds" or checked.startswith("found")):
            wrong.append(f"{path.name} at {at} ({data[max(0, at - 30) : at + 30]!r}): reader {seen}, verify {checked}")
    tried("flips in records of stages", dict(found))
    assert not wrong, "\n".join(wrong)


# sources

KINDS = ("interactions", "items", "users")
HEAD = ["user_id", "item_id", "event_type", "event_ts", "available_at", "weight", "context", "text"]


def delivery(day: date, rng: Random) -> dict[str, bytes]:
    """A clean day: 12 items, 10 users, 60 interactions; no two days share a row."""
    at = f"{day}T00:00:00Z"
    items = [json.dumps({"item_id": f"i{n}", "title": f"Thing {n} of {day}", "available_at": at, "valid_from": at, "categories": ["a", "b"], "attributes": {"n": n}}) for n in range(12)]
    users = [json.dumps({"user_id": f"u{n}", "available_at": at, "attributes": {"of": str(day)}}) for n in range(10)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEAD)
    for n in range(60):
        when = f"{day}T{rng.randrange(24):02}:{n:02}:00Z"
        rows.writerow([f"u{rng.randrange(10)}", f"i{rng.randrange(12)}", "view", when, when, "1.5", '{"place": "home"}' if n % 7 == 0 else "", "fine, really" if n % 5 == 0 else ""])
    return {"interactions.csv": text.getvalue().encode(), "items.jsonl": ("\n".join(items) + "\n").encode(), "users.jsonl": ("\n".join(users) + "\n").encode()}


def damages(rng: Random) -> Iterator[tuple[str, str, Callable[[bytes], bytes]]]:
    """(file, what, how)."""
    for file in ("interactions.csv", "items.jsonl", "users.jsonl"):
        for n in range(FLIPS["source"]):
            yield file, f"flip {n}", lambda data: flip(data, rng)[1]
        for n in range(3):
            yield file, f"cut {n}", lambda data: data[: rng.randrange(len(data))]
        yield file, "empty", lambda data: b""
        yield file, "zeroed", lambda data: bytes(len(data))
        yield file, "noise", lambda data: rng.randbytes(len(data)).replace(b"\r", b"?")
        yield file, "in UTF-16", lambda data: data.decode().encode("utf-16")
        yield file, "a hole of zeros", lambda data: data[:200] + bytes(100) + data[300:]
        yield file, "the first line twice", lambda data: data.split(b"\n", 1)[0] + b"\n" + data
        yield file, "cut by its first half", lambda data: data[len(data) // 2 :]


def lines(file: str, data: bytes) -> int:
    """Rows that a file holds, counted by nothing but its line ends: a clean day has no quoted line break, a flip makes none."""
    body = data.split(b"\n")
    count = len(body) - (body[-1] == b"")
    return max(0, count - 1) if file.endswith(".csv") else count


@pytest.mark.deep
def test_a_corrupt_or_truncated_source_file_is_quarantined_or_the_step_stops(tmp_path: Path, spark: Any, engine: str, tried: Callable[[str, object], None]) -> None:
    rng, root = Random(SEED), tmp_path / "source"
    root.mkdir()
    config = make_home(tmp_path / "home", source="files", root=root).model_copy(update={"engine": engine})
    text = config.home / "mmrec.toml"
    lake, found, wrong, expected = Lake(config.lake), Counter[str](), [], Counter[str]()
    day = date(2026, 1, 1)
    cases = [("interactions.csv", "nothing", lambda data: data)] * 3 + list(damages(rng))
    for file, what, how in cases:
        day += timedelta(days=1)
        folder = root / str(day)
        folder.mkdir()
        clean = delivery(day, rng)
        given = clean | {file: how(clean[file])}
        for name, data in given.items():
            (folder / name).write_bytes(data)
        night = Night(config, day + timedelta(days=1))
        try:
            ingest(night)
            found["read"] += 1
        except MmrecError as error:
            if file not in str(error):
                wrong.append(f"{file} {what}: the error does not name the file: {error}")
            found[f"stopped: {error.what.splitlines()[0][:60]}"] += 1
            (folder / file).write_bytes(clean[file])  # delivered again
            given = clean
            ingest(night)
        except Exception as error:
            wrong.append(f"{file} {what}: {type(error).__name__}: {error}")
            (folder / file).write_bytes(clean[file])
            given = clean
            ingest(night)
        ledger = {Path(r["file"]).name: r["rows"] for r in lake.arrow("bronze.files").to_pylist() if r["file"].startswith(str(day))}
        for name, data in given.items():
            n = lines(name, data)
            if ledger.get(name) != n:
                wrong.append(f"{name}, {what}: {n} rows in, {ledger.get(name)} in bronze")
            expected[name.split(".")[0]] += n
    assert text.is_file()
    validate(Night(config, day + timedelta(days=1)))
    counts = {}
    for kind in KINDS:
        bronze = lake.arrow(f"bronze.{kind}", columns=["row_hash", "occurrence"]).to_pylist()
        kept = Counter(lake.arrow(f"silver.{kind}", columns=["row_hash"])["row_hash"].to_pylist())
        bad = {(r["row_hash"], r["occurrence"]) for r in lake.arrow("ops.quarantine").to_pylist() if r["table_name"] == f"bronze.{kind}"}
        neither = [r for r in bronze if not (r["occurrence"] == 0 and r["row_hash"] in kept) and (r["row_hash"], r["occurrence"]) not in bad]
        both = [r for r in bronze if r["occurrence"] == 0 and r["row_hash"] in kept and (r["row_hash"], 0) in bad]
        counts[kind] = f"{len(bronze)} = {sum(kept.values())} kept + {len(bad)} quarantined"
        if neither or both or max(kept.values()) > 1 or len(bronze) != sum(kept.values()) + len(bad):
            wrong.append(f"{kind}: {counts[kind]}; {len(neither)} in neither, {len(both)} in both")
        if len(bronze) != expected[kind]:
            wrong.append(f"{kind}: {expected[kind]} rows in, {len(bronze)} in bronze")
    tried("damaged source files", f"{len(cases) - 3}, {dict(found)}; {counts}")
    assert not wrong, "\n".join(wrong)
    assert sum(found.values()) == len(cases)


def test_a_carriage_return_within_the_header_of_a_source_file_stops_the_step_or_costs_its_rows(tmp_path: Path) -> None:
    root, day = tmp_path / "source", date(2026, 1, 2)
    (root / str(day)).mkdir(parents=True)
    config = make_home(tmp_path / "home", source="files", root=root)
    for name, data in delivery(day, Random(SEED)).items():
        (root / str(day) / name).write_bytes(data.replace(b"event_type", b"event\rtype", 1))
    night = Night(config, day + timedelta(days=1))
    try:
        ingest(night)
    except MmrecError as stopped:
        text = str(stopped)
    else:
        text = str([r["file"] for r in Lake(config.lake).arrow("bronze.interactions").to_pylist() if r["parse_error"]])
    assert "interactions.csv" in text
