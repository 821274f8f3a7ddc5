"""One active run a run_date: who works on a date says so in a file, and gets a folder for what is needed meanwhile.

In: home, run_date, owner (the DAG run's id). Out: `<home>/runs/claims/<run_date>.json` and a folder below
`<home>/runs/scratch`. A claim is read, judged and written under one lock; it is in place whole or not at all.
Trade-off: a claim is a courtesy that saves two runs from doing the same work; what keeps a date from being published
twice is the fence of the commit. So a claim that is too old is simply taken over.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from mmrec.errors import TransientError
from mmrec.files import put

log = logging.getLogger(__name__)


def claim(home: Path, run_date: date, owner: str, *, max_age: timedelta, now: datetime | None = None) -> Path:
    """Claim `run_date` for `owner` and return its scratch folder; the same owner may claim again.

    Args:
        max_age: a claim older than this is taken over, and that is logged.

    Raises: TransientError: another owner holds it.
    """
    now = now or datetime.now(UTC)
    with _locked(home) as folder:
        path = folder / f"{run_date}.json"
        holder, since = _read(path)
        if holder not in (None, owner) and now - since <= max_age:
            raise TransientError(
                "another run works on this date",
                where=f"run_date {run_date}, {path}",
                value=f"{holder}, since {since.isoformat(timespec='seconds')}",
                valid="one run a date at a time",
                next=f"wait for it, or stop it in Airflow; if it is gone: rm {path}",
            )
        if holder not in (None, owner):
            log.warning("run_date %s: the claim of %s is older than %s and is taken over", run_date, holder, max_age)
            shutil.rmtree(scratch(home, run_date, str(holder)), ignore_errors=True)
        put(path, json.dumps({"owner": owner, "since": now.isoformat()}))
    made = scratch(home, run_date, owner)
    made.mkdir(parents=True, exist_ok=True)
    return made


def release(home: Path, run_date: date, owner: str) -> bool:
    """Remove the claim, where `owner` holds it, and the owner's scratch folder. Returns whether there was a claim."""
    with _locked(home) as folder:
        path = folder / f"{run_date}.json"
        held = _read(path)[0] == owner
        if held:
            path.unlink()
    shutil.rmtree(scratch(home, run_date, owner), ignore_errors=True)
    return held


def clean(home: Path, *, older: timedelta, now: datetime | None = None) -> list[str]:
    """Remove claims and scratch folders older than `older`; returns their names."""
    now = now or datetime.now(UTC)
    gone = []
    with _locked(home) as folder:
        kept = set()
        for path in sorted(folder.glob("*.json")):
            holder, since = _read(path)
            if now - since > older:
                path.unlink()
                gone.append(path.name)
            elif holder is not None:
                kept.add(scratch(home, date.fromisoformat(path.stem), holder).name)
        for used in sorted((home / "runs" / "scratch").glob("*")):
            # a run writes into folders of its own below, so their times count as well
            times = [p.lstat().st_mtime for p in (used, *used.glob("*"))]
            if used.name not in kept and now - datetime.fromtimestamp(max(times), UTC) > older:
                shutil.rmtree(used, ignore_errors=True)
                gone.append(used.name)
    return gone


def scratch(home: Path, run_date: date, owner: str) -> Path:
    """The folder for temporary files of `owner`'s work on `run_date`; short, for sockets are made in it."""
    return home / "runs" / "scratch" / f"{run_date}-{hashlib.sha256(owner.encode()).hexdigest()[:8]}"


@contextmanager
def _locked(home: Path) -> Iterator[Path]:
    folder = home / "runs" / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _read(path: Path) -> tuple[str | None, datetime]:
    """Owner and time of a claim; no owner: there is none. A file that isn't a claim is held by nobody known."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["owner"]), datetime.fromisoformat(found["since"]).astimezone(UTC)
    except FileNotFoundError:
        return None, datetime.max.replace(tzinfo=UTC)
    except (ValueError, KeyError, TypeError):
        return "(unreadable)", datetime.fromtimestamp(path.stat().st_mtime, UTC)
