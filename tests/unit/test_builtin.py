"""The built-in world: as hard as it says, the same every time, complete, and dirty on purpose."""

import csv
import json
import zlib
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmrec.errors import InputError
from mmrec.evaluate.protocols import evaluate
from mmrec.models.baselines import Popularity
from mmrec.models.data import Items, Log
from mmrec.models.neighbours import ItemKNN
from mmrec.models.splits import rolling
from mmrec.models.tables import items_from, log_from
from mmrec.worlds import builtin
from mmrec.worlds.builtin import PARTS, World
from mmrec.worlds.state import State

US = 1_000_000


def dense(folder: Path, world: World) -> tuple[Items, Log]:
    """Items and choices of the history, read from the files a shop would deliver; bad rows left out."""
    day = sorted(p for p in folder.iterdir() if p.is_dir() and (p / "interactions.csv").is_file())[0]
    lines = [json.loads(x) for x in (day / "items.jsonl").read_text().splitlines() if x.startswith("{")]
    n = world.n_items(world.first_run_date)
    ids = sorted({r["item_id"] for r in lines if str(r.get("item_id", "")).startswith("i")})
    born = [datetime.combine(world.born(int(i[1:])), datetime.min.time(), UTC) for i in ids]
    items = items_from(pa.table({"item_id": ids, "categories": [[""]] * len(ids),
                                 "available_us": [int(b.timestamp()) * US for b in born],
                                 "withdrawn_us": pa.array([None] * len(ids), pa.int64())}),
                       pa.table({"encoder_version": pa.array([], pa.string())}), {})  # fmt: skip
    rows = []
    with (day / "interactions.csv").open() as file:
        for r in csv.DictReader(file):
            try:
                at = datetime.fromisoformat(r["event_ts"])
                if r["event_type"] == "view" and 2025 < at.year < 2027 and r["user_id"] and r["item_id"] in ids:
                    rows.append((r["user_id"], r["item_id"], "view", int(at.timestamp() * US)))
            except (TypeError, ValueError, KeyError):
                continue
    user, item, kind, ts = zip(*dict.fromkeys(rows), strict=True)
    table = pa.table({"user_id": user, "item_id": item, "event_type": kind, "event_us": ts, "available_us": ts,
                      "weight": [1.0] * len(ts)})  # fmt: skip
    assert n >= len(ids)
    return items, log_from(table, items)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_as_hard_as_it_says(seed: int, tmp_path: Path) -> None:
    """Shares of the oracle's ndcg@10 on the last nine days: popularity at most .4, item-kNN and any one part .7."""
    world = World(seed, "small")
    world.write_history(tmp_path)
    items, log = dense(tmp_path, world)
    end = int(datetime.combine(world.first_run_date, datetime.min.time(), UTC).timestamp()) * US
    ids = [str(i) for i in items.ids]
    number = np.array([int(i[1:]) for i in ids])
    kinds = world._kinds(int(number.max()) + 1)[number]
    sums: dict[str, list[tuple[float, int]]] = {}
    for fold in rolling(log, items, end, days=3, cuts=3):
        at = datetime.fromtimestamp(fold.case_at_us[0] / US, UTC)
        users = [str(log.user_ids[u]) for u in fold.case_user]
        last = [ids[log.item[fold.hist_row[fold.hist_ptr[c + 1] - 1]]] for c in range(fold.n_cases)]
        truth = world.oracle_scores(users, ids, at, last)
        taste = world._taste(at.date())[[int(u[1:]) for u in users]]
        rankers = {"oracle": lambda c, t=truth: t[c]}
        for p, name in enumerate(PARTS[:3]):  # what a perfect reader of one medium would know
            own = taste[:, p][:, kinds[:, p]]
            rankers[name] = lambda c, o=own: o[c]
        models = {"popularity": Popularity(30), "item_knn": ItemKNN(100)}
        for name, scorer in rankers.items():
            result = evaluate(Popularity(), items, log, fold, scorer=scorer, lists=False)
            sums.setdefault(name, []).append((result.mean("ndcg@10"), fold.n_cases))
        for name, model in models.items():
            result = evaluate(model.fit(items, log, fold), items, log, fold, lists=False)
            sums.setdefault(name, []).append((result.mean("ndcg@10"), fold.n_cases))
    mean = {name: float(np.average([v for v, _ in r], weights=[n for _, n in r])) for name, r in sums.items()}
    share = {name: value / mean["oracle"] for name, value in mean.items()}
    assert mean["oracle"] > 0.25
    assert share["popularity"] <= 0.4, share
    assert share["item_knn"] <= 0.7, share
    assert max(share[p] for p in PARTS[:3]) <= 0.7, share


def folder_digest(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): zlib.crc32(p.read_bytes()) for p in sorted(folder.rglob("*"))
            if p.is_file() and p.suffix != ".npz"}  # fmt: skip


def test_the_same_seed_writes_the_same_bytes_day_after_day(tmp_path: Path) -> None:
    worlds = [(World(4, "tiny"), tmp_path / name) for name in ("one", "two")]
    for world, folder in worlds:
        world.write_history(folder)
        world.write_day(folder, world.first_run_date)
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    other = World(5, "tiny")
    other.write_history(tmp_path / "three")
    assert folder_digest(tmp_path / "three") != folder_digest(tmp_path / "one")


def test_every_kind_of_row_is_delivered_and_some_are_bad(tmp_path: Path) -> None:
    world = World(0, "tiny")
    counts = world.write_history(tmp_path)
    last = str(date(2026, 3, 1))
    names = {p.name for p in (tmp_path / last).iterdir()}
    assert {"interactions.csv", "items.jsonl", "users.jsonl", "relations.csv", "media"} <= names
    assert counts
    assert all(v > 0 for k, v in counts.items() if k != "impressions")
    rows = (tmp_path / last / "relations.csv").read_text()
    assert "maker" in rows
    assert "made_in" in rows
    assert "user" in rows
    text = (tmp_path / last / "interactions.csv").read_text()
    assert '""device"": ' in text
    assert "makes me think of" in text


def test_the_slate_of_the_day_before_is_clicked_with_position_bias(tmp_path: Path) -> None:
    world = World(1, "small")
    world.write_history(tmp_path)
    day = world.first_run_date
    # the best thirty of each user in an order that has nothing to do with how much they are wanted
    ids = [f"i{i:05d}" for i in range(world.n_items(day))]
    score = world.oracle_scores(world.user_ids, ids, datetime.combine(day, datetime.min.time(), UTC))
    rng = np.random.default_rng(0)
    place_of: dict[tuple[str, str], int] = {}
    for u, user in enumerate(world.user_ids):
        for place, i in enumerate(rng.permutation(np.argsort(-score[u])[:30])[:10]):
            place_of[user, ids[i]] = place
    slate = pa.table({"user_id": [u for u, _ in place_of], "item_id": [i for _, i in place_of],
                      "rank": [p + 1 for p in place_of.values()], "run_id": ["r"] * 3000, "arm": ["main"] * 3000,
                      "propensity": [1.0] * 3000})  # fmt: skip
    world.write_day(tmp_path, day, slate)
    with (tmp_path / str(day) / "impressions.csv").open() as file:
        shown = list(csv.DictReader(file))
    opened = {r["user_id"] for r in shown}
    assert 110 < len(opened) < 190
    assert len(shown) == 10 * len(opened)
    followed = np.zeros(10, int)
    with (tmp_path / str(day) / "interactions.csv").open() as file:
        for r in csv.DictReader(file):
            if r["event_type"] == "view" and '"surface": "home"' in (r["context"] or ""):
                followed[place_of[r["user_id"], r["item_id"]]] += 1
    assert followed[:3].sum() > 2 * followed[7:].sum() > 0


def test_some_users_ask_for_less_or_more_of_a_category_or_hide_what_they_were_shown(tmp_path: Path) -> None:
    world = World(0, "small")
    world.write_history(tmp_path)
    slate = pa.table({"user_id": [u for u in world.user_ids for _ in range(3)], "item_id": ["i00003", "i00001", "i00002"] * 300, "rank": [1, 2, 3] * 300})
    days = [world.first_run_date - timedelta(days=1) + n * timedelta(days=1) for n in range(6)]
    for day in days[1:]:
        world.write_day(tmp_path, day, slate)
    rows = []
    for day in days:
        with (tmp_path / str(day) / "wishes.csv").open() as file:
            rows += [(day, r) for r in csv.DictReader(file)]
        with (tmp_path / str(day) / "impressions.csv").open() as file:
            shown = {(r["user_id"], r["item_id"], r["shown_at"][:10]) for r in csv.DictReader(file)}
        hidden = [r for d, r in rows if d == day and r["field"] == "item"]
        assert {(r["user_id"], r["value"], r["wished_at"][:10]) for r in hidden} <= shown
        assert bool(hidden) == (day != days[0])
        assert {r["available_at"][:10] for d, r in rows if d == day and d != days[0]} <= {str(day)}
    assert {(r["wish"], r["field"]) for _, r in rows} == {("hide", "item"), ("less", "category"), ("more", "category")}
    with (tmp_path / str(days[0]) / "items.jsonl").open() as file:
        aisles = {c for line in file for c in json.loads(line)["categories"]}
    assert {r["value"] for _, r in rows if r["field"] == "category"} <= aisles
    assert 20 <= len({r["user_id"] for _, r in rows}) <= 30
    # what is taken back was asked for in a row before it, and comes when it is taken back
    given = {(r["user_id"], r["value"], r["wished_at"]) for _, r in rows if not r["withdrawn_at"]}
    back = [r for _, r in rows if r["withdrawn_at"]]
    assert 5 < len(back) < len(given) / 3
    assert all((r["user_id"], r["value"], r["wished_at"]) in given and r["wished_at"] < r["withdrawn_at"] == r["available_at"] for r in back)


def test_what_users_ask_for_changes_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    World(0, "tiny").write_history(tmp_path / "with")
    monkeypatch.setattr(builtin, "wishes", lambda *_: [])
    World(0, "tiny").write_history(tmp_path / "without")
    name = "2026-03-01/wishes.csv"
    assert folder_digest(tmp_path / "with") != folder_digest(tmp_path / "without")
    (tmp_path / "without" / name).write_bytes((tmp_path / "with" / name).read_bytes())
    assert folder_digest(tmp_path / "with") == folder_digest(tmp_path / "without")


def test_an_unknown_size_is_named() -> None:
    with pytest.raises(InputError, match="no such size") as error:
        World(0, "huge")
    assert "tiny" in str(error.value)


def test_in_the_rich_world_every_signal_draws_choices_and_the_oracle_knows_them() -> None:
    """Of what was chosen, the share that each signal speaks for is half as large again as of what was on offer."""
    world = World(3, "rich")
    signals, state = world.signals, State.empty(world.size.users)
    assert signals is not None
    chosen, offered = Counter[str](), Counter[str]()
    told, n_told = 0.0, 0
    for d in range(25):
        day = world.first_day + timedelta(days=d)
        n = world.n_items(day)
        state.grow(n)
        friends, had, recent = state.lately(day)[world.follows_UF].any(1), state.day_UN > 0, state.recent_UR.copy()
        wants = [state.wants(u, day) for u in range(world.size.users)]
        seen: set[int] = set()
        rows = sorted(world.simulate(day, state, None)["interactions"], key=lambda r: r["event_ts"])
        kinds, maker = world._kinds(n), np.array([world._maker(i) for i in range(n)])
        for r in rows:
            u, i = int(r["user_id"][1:]), int(r["item_id"][1:])
            if d < 10 or r["event_type"] != "view" or u in seen:
                continue
            seen.add(u)  # what came first that day is of the state before it
            marks = {"country": signals.hits_NC[:n, world.country_U[u]], "device": signals.hits_ND[:n, signals.device_U(day)[u]], "friends": friends[u],
                     "maker": np.isin(maker, maker[recent[u][recent[u] >= 0]]), "word": kinds[:, 0] == wants[u]}  # fmt: skip
            free = ~had[u]
            for name, mark in marks.items():
                if (mark & free).any():
                    chosen[name] += int(mark[i])
                    offered[name] += float((mark & free).sum() / free.sum())  # type: ignore[assignment]
            beside = world.beside(np.arange(n), recent[u], friends[u], wants[u])
            score = world._utility(day, n)[u] + beside if n_told < 150 else None
            if score is not None:
                told += float((score[free] > score[i]).mean())
                n_told += 1
    assert all(chosen[name] > 1.5 * offered[name] > 5 for name in ("country", "device", "friends", "maker", "word")), (chosen, offered)
    assert told / n_told < 0.1, "what is chosen stands high in what the world says is wanted"
