"""Small shops for tests: `Items` and `Log` from plain rows, and the films beside the project."""

import csv
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mmrec.models.data import Items, Log

DAY = 86_400_000_000
NEVER = np.iinfo(np.int64).max


def make_items(n, *, available=None, withdrawn=None, content=None, present=None):
    """`n` items; on offer from the beginning of time unless told."""
    content = content or {}
    return Items(
        ids=np.array([f"i{i:05d}" for i in range(n)], object),
        content=content,
        present=present or {m: v.any(1) for m, v in content.items()},
        available_us=np.full(n, -1, np.int64) if available is None else np.asarray(available, np.int64),
        withdrawn_us=np.full(n, NEVER, np.int64) if withdrawn is None else np.asarray(withdrawn, np.int64),
        category=np.full(n, "", object),
    )


def make_log(rows, n_users=None):
    """`Log` of (user, item, day[, day of delivery]) rows in any order."""
    rows = [(r[0], r[1], r[2], r[3] if len(r) > 3 else r[2]) for r in rows]
    table = np.array(rows, np.float64).reshape(-1, 4)
    user, item = table[:, 0].astype(np.int32), table[:, 1].astype(np.int32)
    ts, delivered = (table[:, 2] * DAY).astype(np.int64), (table[:, 3] * DAY).astype(np.int64)
    order = np.lexsort((item, ts, user))
    users = n_users or int(user.max(initial=-1)) + 1
    return Log(
        user_ids=np.array([f"u{u:05d}" for u in range(users)], object),
        event_types=("view",),
        user=user[order],
        item=item[order],
        ts_us=ts[order],
        weight=np.ones(len(rows), np.float32),
        event=np.zeros(len(rows), np.int16),
        available_us=delivered[order],
    )


def random_shop(seed, users=12, n=30, rows=240, days=100.0):
    """Random items with two modalities, and a log with repeats, equal times, late deliveries and late items."""
    rng = np.random.default_rng(seed)
    content = {m: rng.standard_normal((n, d)).astype(np.float32) for m, d in (("image", 5), ("text", 4))}
    for vectors in content.values():
        vectors[rng.random(n) < 0.2] = 0
    available = np.where(rng.random(n) < 0.8, -1, rng.integers(0, int(days), n) * DAY)
    when = np.floor(rng.random(rows) * days * 2) / 2
    late = np.where(rng.random(rows) < 0.1, rng.integers(1, 20, rows), 0)
    table = zip(rng.integers(0, users, rows), rng.integers(0, n, rows), when, when + late, strict=True)
    return make_items(n, available=available, content=content), make_log(list(table), users)


@cache
def films():
    """MovieLens small: every rating is an interaction, a film is on offer from the beginning."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("TEST_DATA_ROOT", beside)) / "movielens-small" / "ratings.csv"
    if not path.exists():
        pytest.skip(f"the films are not at {path}")
    with path.open(newline="") as file:
        rows = [(r["userId"], r["movieId"], int(r["timestamp"])) for r in csv.DictReader(file)]
    users = {u: i for i, u in enumerate(sorted({r[0] for r in rows}))}
    movies = {m: i for i, m in enumerate(sorted({r[1] for r in rows}))}
    log = make_log([(users[u], movies[m], t / 86_400) for u, m, t in rows])
    return make_items(len(movies)), log
