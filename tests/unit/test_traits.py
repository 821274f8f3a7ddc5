"""Traits and sources against naive oracles: what is counted, what it says of items, and that a night sees what a fold did."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, random_shop

from mmrec.bundle.bundle import Bundle
from mmrec.models import traits as room
from mmrec.models.data import Fold, Items, Log
from mmrec.models.pairs import FEATURES, Facts, features
from mmrec.models.sources import Sources
from mmrec.models.splits import rolling
from mmrec.models.traits import WORDS_US, Traits, Who, traits_of
from mmrec.recommend.second import Second
from mmrec.topk.exact import TopK

WORDS = ("lantern", "kettle", "tent", "novel", "ox")


def known_shop(seed: int, users: int = 14, n: int = 18, rows: int = 400) -> tuple[Items, Log, Sources]:
    """A random shop whose users have attributes and friends, and whose events have contexts and words."""
    items, log = random_shop(seed, users, n, rows)
    rng = np.random.default_rng(seed + 1)
    contexts = [None, *(json.dumps({"device": d}) for d in ("phone", "desktop"))]
    words = [" ".join(rng.choice(WORDS, 2)) if rng.random() < 0.3 else None for _ in log.user]
    log = replace(log, context=np.array([contexts[i] for i in rng.integers(0, 3, len(log.user))], object),
                  text=np.array([*words, None], object)[:-1])  # fmt: skip
    attributes = [None if rng.random() < 0.2 else json.dumps({"land": "xy"[int(rng.integers(2))]}) for _ in range(users)]
    friends = {u: sorted(rng.choice(users, 3, replace=False).tolist()) for u in range(users) if rng.random() < 0.8}
    entities = [[f"maker={i % 4}", "made_in=here"] if i % 5 else None for i in range(n)]
    return items, log, Sources(attributes, friends, entities, 30, 5)


def folds_of(items: Items, log: Log) -> list[Fold]:
    return [f for f in rolling(log, items, 100 * DAY, days=20, cuts=2, min_history=2) if f.n_cases]


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_LEAST", 3)


def test_traits_are_named_by_their_kind_each_once() -> None:
    found = traits_of('{"age": 30, "land": "de", "tags": ["b", "a"], "score": 0.5, "none": null}', '{"device": "phone"}',
                      ["Lovely KETTLE, a kettle! 22 ox", None])  # fmt: skip
    assert found == ["attributes/age=30", "attributes/land=de", "attributes/tags=a", "attributes/tags=b",
                     "context/device=phone", "reviews/kettle", "reviews/lovely"]  # fmt: skip
    assert traits_of(None, None) == traits_of("{}", None, []) == []


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_choices_are_counted_under_the_traits_of_their_moment(seed: int) -> None:
    items, log, sources = known_shop(seed)
    fold = folds_of(items, log)[0]
    rows = np.flatnonzero(fold.train).tolist()
    want: Counter[tuple[str, int]] = Counter()
    everybody: Counter[int] = Counter()
    for u in range(log.n_users):
        own = [r for r in rows if log.user[r] == u]
        had: set[int] = set()
        for n, r in enumerate(own):
            if int(log.item[r]) in had:
                continue
            had.add(int(log.item[r]))
            everybody[int(log.item[r])] += 1
            texts = [log.text[q] for q in own[:n] if log.ts_us[r] - log.ts_us[q] < WORDS_US]
            for trait in traits_of(sources.attributes_U[u], log.context[own[n - 1]] if n else None, texts):
                want[trait, int(log.item[r])] += 1
    made = sources.counted(log, fold, items.n)
    assert made.all_N.tolist() == [everybody[i] for i in range(items.n)]
    got = {(name, i): int(v) for name, row in zip(made.names, made.chosen_TN.toarray(), strict=True)
           for i, v in enumerate(row) if v and not name.startswith("noise/")}  # fmt: skip
    assert got == {key: v for key, v in want.items() if key[0] in made.names}
    many = Counter({t: sum(v for (name, _), v in want.items() if name == t) for t, _ in want})
    for t, n in many.items():
        rare = n < 3
        assert (t in made.names) != rare or t.startswith("reviews/"), "a word may be grammar, too"


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.booleans())
def test_lift_and_likes_are_what_their_words_say(seed: int, some: bool) -> None:
    items, log, sources = known_shop(seed)
    made = sources.counted(log, folds_of(items, log)[0], items.n)
    rng = np.random.default_rng(seed)
    sketch = rng.integers(-80, 80, (items.n, 64)).astype(np.int8)
    offer = rng.random(items.n) < 0.8 if some else np.ones(items.n, bool)
    lift, likes = made.tables(sketch, offer if some else None)
    chosen, every = made.chosen_TN.toarray(), made.all_N
    total = sum(int(every[i]) for i in range(items.n) if offer[i])
    mean = sum((every[i] * sketch[i].astype(float) for i in range(items.n) if offer[i]), np.zeros(64)) / max(total, 1)
    for t in range(len(made.names)):
        under = sum(int(chosen[t, i]) for i in range(items.n) if offer[i])
        own = sum((chosen[t, i] * (sketch[i].astype(float) - mean) for i in range(items.n) if offer[i]), np.zeros(64)) / max(under, 1)
        spread = sum(float(every[i] * ((sketch[i].astype(float) - mean) ** 2).sum()) for i in range(items.n) if offer[i]) / total
        own = own * max(0.0, 1 - spread * (1 / max(under, 1) - 1 / total) / max(float(own @ own), 1e-9))
        due = [under * every[i] / total * offer[i] for i in range(items.n)]
        beyond = sum(((chosen[t, i] - e) ** 2 - e * (1 - under / total)) / e for i, e in enumerate(due) if e)
        m = min(max(sum(due) / max(beyond, 1e-9), 1), 1e6)
        for i in range(items.n):
            if offer[i]:
                assert lift[t, i] == pytest.approx(math.log((chosen[t, i] + m) / (due[i] + m)), abs=1e-5)
            else:
                assert lift[t, i] == 0
            # a mean sketch is rounded to 1/256: 64 columns of at most 127 may each be off by half of that
            assert likes[t, i] == pytest.approx(float(own @ sketch[i]) / 127**2, abs=64 * 127 / 512 / 127**2)
    assert not made.tables(None)[1].any()


def test_what_is_kept_in_a_bundle_is_read_for_other_items(tmp_path: Path) -> None:
    items, log, sources = known_shop(3)
    made = sources.counted(log, folds_of(items, log)[0], items.n)
    made.save(tmp_path, items.ids)
    same = Traits.load(tmp_path, items.ids)
    assert same.names == made.names
    assert (same.chosen_TN != made.chosen_TN).nnz == 0
    assert np.array_equal(same.all_N, made.all_N)
    fewer = ["a new one", *items.ids[::-2]]
    other = Traits.load(tmp_path, fewer)
    assert other.all_N.tolist() == [0, *made.all_N[::-2].tolist()]
    assert np.array_equal(other.chosen_TN.toarray()[:, 1:], made.chosen_TN.toarray()[:, ::-2])
    before = (tmp_path / room.FILE).read_bytes()
    made.save(tmp_path, items.ids)
    assert (tmp_path / room.FILE).read_bytes() == before
    assert {n.split("/")[0] for n in made.of_kinds(["context", "reviews"]).names} <= {"context", "reviews"}


def test_the_commonest_words_are_grammar_and_rare_ones_say_nothing() -> None:
    names = ["reviews/the", "reviews/kettle", "reviews/once", "context/device=phone"]
    trait = np.repeat([0, 1, 2, 3], [40, 20, 1, 40])
    made = Traits.of(names, trait, np.zeros(len(trait), np.int64), np.array([50]), 40)
    assert made.names == ("context/device=phone", "reviews/kettle")
    assert (made.fields, made.field_T.tolist()) == (("context/device", "reviews"), [0, 1])


def users_of(log: Log, fold: Fold, sources: Sources, ids: np.ndarray, length: int) -> pa.Table:
    """Rows of gold.user_sequences as the features station makes them of the cases' users, one user at a time."""
    rows: list[dict[str, Any]] = []
    for c in range(fold.n_cases):
        user = int(fold.case_user[c])
        own = fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]][-length:]
        had: dict[int, dict[int, int]] = {}
        for friend in sources.friends.get(user, ()):
            for r in np.flatnonzero(fold.train & (log.user == friend)):
                if fold.case_at_us[c] - log.ts_us[r] <= sources.social_days * DAY:
                    seen = had.setdefault(int(log.item[r]), {})
                    seen[friend] = max(seen.get(friend, 0), int(log.ts_us[r]))
        order = sorted(had, key=lambda i: (-len(had[i]), -max(had[i].values()), ids[i]))
        rows.append({"attributes": sources.attributes_U[user] or "{}", "contexts": [log.context[r] for r in own],
                     "texts": [log.text[r] for r in own], "event_us": [int(log.ts_us[r]) for r in own],
                     "social_item_ids": [ids[i] for i in order[: sources.social_items]] or None})  # fmt: skip
    kinds = {"attributes": pa.string(), "contexts": pa.list_(pa.string()), "texts": pa.list_(pa.string()),
             "event_us": pa.list_(pa.int64()), "social_item_ids": pa.list_(pa.string())}  # fmt: skip
    return pa.table({name: pa.array([r[name] for r in rows], kind) for name, kind in kinds.items()})


@pytest.mark.parametrize("seed", range(6))
def test_a_night_sees_of_users_and_items_what_a_fold_saw(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, log, sources = known_shop(seed)
    fold = folds_of(items, log)[-1]
    rng = np.random.default_rng(seed)
    sketch = rng.integers(-80, 80, (items.n, 64)).astype(np.int8)
    priced = [json.dumps({"price": float(rng.gamma(2, 20)), "colour": "xyz"[i % 3]}) for i in range(items.n)]
    declared = {"items.price": "log", "items.colour": "target 2", "users.land": "vocabulary 5", "context.device": "hash 4",
                "context.hour": "cyclic 24", "context.weekday": "vocabulary 7"}  # fmt: skip
    sources = replace(sources, attributes_N=priced, declared=declared)
    made = sources.counted(log, fold, items.n).of_kinds(["attributes", "context", "reviews"])
    facts = Facts.of_fold(items, log, fold, sketch)
    columns = sources.columns(log, fold, facts.popularity_N)
    assert columns is not None
    facts = facts.knowing(made, sources.entities_N, fold.catalogue).telling(columns, priced, checked=False)
    there = slice(0, fold.n_cases)
    who = sources.who(log, fold, there, made, 9, columns)
    made.save(tmp_path, items.ids)
    columns.save(tmp_path)
    # the night has what is on offer alone
    offer = np.flatnonzero(fold.catalogue)
    place = np.full(items.n, -1)
    place[offer] = np.arange(len(offer))
    day = pa.table({"item_id": items.ids[offer], "categories": [[] for _ in offer], "n_users": [0] * len(offer),
                    "n_30d": [0] * len(offer), "n_90d": [0] * len(offer), "available_us": items.available_us[offer],
                    "entities": pa.array([sources.entities_N[i] for i in offer], pa.list_(pa.string())),
                    "attributes": [priced[i] for i in offer]})  # fmt: skip
    monkeypatch.setattr("mmrec.recommend.second.session", lambda *_: None)
    told = {"features": list(facts.names), "sources": ["attributes", "columns"], "columns": columns.fingerprint}
    second = Second.over(Bundle(tmp_path, "", {"second_stage": told}), 5, day, sketch[offer], fold.fit_at_us)
    theirs = second.who(users_of(log, fold, sources, items.ids, 9))
    assert theirs is not None
    item_SC = np.stack([rng.permutation(offer)[:8] for _ in range(fold.n_cases)]).astype(np.int32)
    score_SC = np.sort(rng.standard_normal(item_SC.shape).astype(np.float32))[:, ::-1].copy()
    hist = [log.item[fold.hist_row[a:z]][-9:] for a, z in zip(fold.hist_ptr[:-1], fold.hist_ptr[1:], strict=True)]
    hist = [h[fold.catalogue[h]] for h in hist]
    ptr = np.cumsum([0, *map(len, hist)])
    ours = features(facts, item_SC, score_SC, (ptr, np.concatenate(hist)), who)
    night = features(second.facts, place[item_SC].astype(np.int32), score_SC, (ptr, place[np.concatenate(hist)]), theirs)
    assert second.facts.names == facts.names
    assert facts.names[len(FEATURES) :] == ("friends", "entities", "attributes/land", "attributes/land_like", "context/device",
                                            "context/device_like", "reviews", "reviews_like", *columns.names)  # fmt: skip
    assert np.array_equal(ours[..., len(FEATURES) :], night[..., len(FEATURES) :])
    assert (ours[..., len(FEATURES) :] != 0).any((0, 1)).sum() >= 12, "what is drawn at random says little"


def test_friends_and_entities_are_what_their_words_say() -> None:
    items, log, sources = known_shop(5)
    fold = folds_of(items, log)[-1]
    made = sources.counted(log, fold, items.n)
    facts = Facts.of_fold(items, log, fold, None).knowing(made, sources.entities_N)
    who = Who(np.zeros(2, np.int64), np.zeros(0, np.int32), np.array([0, 3]), np.array([4, 7, 1], np.int32))
    top = TopK(np.array([[1, 2, 7, 5]], np.int32), np.zeros((1, 4), np.float32), 0, 0)
    history = (np.array([0, 3]), np.array([6, 6, 11]))
    x = features(facts, top.item, top.score, history, who)[0]
    assert x[:, facts.names.index("friends")].tolist() == pytest.approx([1 / 2, 0, 1 / math.log2(3), 0])
    many = Counter(e for own in sources.entities_N for e in own or ())
    count = Counter(e for i in (6, 6, 11) for e in sources.entities_N[i] or ())
    want = [sum(math.log((count[e] + 1) / (3 * many[e] / items.n + 1)) for e in sources.entities_N[i] or ()) for i in (1, 2, 7, 5)]
    assert x[:, facts.names.index("entities")].tolist() == pytest.approx(want, rel=1e-6)
