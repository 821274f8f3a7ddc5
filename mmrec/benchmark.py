"""`mmrec benchmark`: one recipe on published sets, beside what papers report of them.

In: a folder of sequences and, if there, of item descriptions, in the form that published benchmarks share. Out:
recall and ndcg at 5, 10, 20 on validation and test, over seeds, with intervals; published rows; what each part adds; if
asked, the same numbers of every rival, fitted here.
Everything is chosen on validation; test is read once, when all fits are done.
Trade-off: nothing of a home is used or left behind, so a set is read and its texts are encoded anew each time (half a
minute for 12,000 items); and what is fitted stays in memory until the last fit is done, of EASE a dense square.

Shape legend: C cases, K places of a list.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import metrics
from mmrec.cold import cold_study, hideable
from mmrec.encoding import text_of
from mmrec.errors import InputError
from mmrec.evaluate.protocols import CaseMetrics, Scorer, evaluate
from mmrec.evaluate.published import published
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.models.data import Fold, Items, Log, events_a_user
from mmrec.models.splits import leave_one_out
from mmrec.models.tables import NEVER, log_from
from mmrec.worlds.sources import Delivery

KS = (5, 10, 20)
_HISTORY = 50  # events that published numbers look at
_TOLD = tuple(f"{m}@{k}" for k in KS for m in ("recall", "ndcg"))
_TEXTS = 1024  # encoded between two looks at the clock
Tell = Callable[[str, int, int], None]


def benchmark(
    name: str, root: Path, cache: Path, tell: Tell, *, seeds: Sequence[int] = (0, 1, 2), recipe: str = "default",
    threads: int = 2, ablation: bool = True, test: bool = True, rivals: bool = False,
    cold: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Fit, choose and measure.

    Args:
        name: what published rows are looked up by. root: folder of sequences.txt and, if there, items.jsonl.
        cache: where encoders are kept. seeds: one fit of the whole each, all reported. recipe: a name, or FILE.toml.
        ablation: also fit without content, for what it adds. test: read the test split; False while a recipe is being
            worked on.
        rivals: fit them, too, which takes long; those that a seed decides once a seed, the others once.
        cold: also hide a tenth of the items and rank them, two more fits; see cold.py.

    Returns: test, validation: metric -> mean over seeds, and `interval`: metric -> [low, high], 95% over users;
        by_seed; seeds; minutes (of one fit, mean) and total_minutes; published; ablation: name -> metric -> mean, on
        validation and test; rivals: name -> split -> metric -> mean over its fits, `minutes` of a fit, `fits` and
        `settings`, EASE with all its weights; cold: see cold.py, None where not asked; settings; what was chosen.

    Raises: InputError: no such folder or recipe, rows that can't be read.
    """
    import torch

    from mmrec.train.fit import Champion
    from mmrec.train.recipe import recipe_named

    settings = recipe_named(recipe, "--recipe", "mmrec benchmark NAME --source FOLDER")
    torch.set_num_threads(threads)
    begun = time.monotonic()
    items, log = read(root, cache, threads, tell)
    if cold:
        hideable(items)
    views = {"full": items} | ({"id": replace(items, content={}, present={})} if ablation and items.content else {})
    validation = leave_one_out(log, items, validation=True)
    # the protocol's histories; the pace is known before, for the time left
    settings = replace(settings, context=min(settings.context, _HISTORY), length=min(settings.length, _HISTORY))
    settings = settings.fixed(settings.pace(events_a_user(log, validation.train)))
    fits: list[tuple[str, Any]] = []
    minutes = []
    total = len(seeds) * len(views) * settings.epochs
    for seed in seeds:
        for label, view in views.items():
            done, since = len(fits) * settings.epochs, time.monotonic()

            def told(_what: str, row: dict[str, Any], done: int = done) -> None:
                tell("benchmark: epochs", done + row["epoch"], total)

            fits.append((label, Champion(settings, seed, told).fit(view, log, validation, [validation])))
            if label == "full":
                minutes.append((time.monotonic() - since) / 60)
    others = _rivals(items, log, validation, seeds, tell) if rivals else {}
    folds = {"validation": validation} | ({"test": leave_one_out(log, items)} if test else {})
    found: dict[tuple[str, str], list[CaseMetrics]] = {}
    for n, (label, model) in enumerate(fits):
        tell("benchmark: lists", n, len(fits))
        for split, fold in folds.items():
            for row, scorer in _rows(label, model, views[label], log, fold, ablation).items():
                got = evaluate(model, views[label], log, fold, scorer=scorer, lists=False)
                found.setdefault((row, split), []).append(_at(got, fold))
    tell("benchmark: lists", len(fits), len(fits))
    for n, (rival, made) in enumerate(others.items()):
        tell(f"benchmark: lists of {rival}", n, len(others))
        for split, fold in folds.items():
            found[rival, split] = [_at(evaluate(m, items, log, fold, lists=False), fold) for m, _ in made]
    epochs = count(1)
    hidden = cold_study(items, log, settings, seed=seeds[0], progress=lambda *_: tell(
        "benchmark: epochs with items hidden", next(epochs), 2 * settings.epochs)) if cold else None  # fmt: skip
    best = _named("full", bool(items.content), True)
    return {
        "name": name,
        **{split: _summary(found[best, split]) for split in folds},
        "seeds": list(seeds),
        "minutes": round(float(np.mean(minutes)), 2),
        "total_minutes": round((time.monotonic() - begun) / 60, 2),
        "published": published(name),
        "ablation": {row: {split: _means(found[row, split]) for split in folds}
                     for row in dict.fromkeys(row for row, _ in found if row not in others)},
        "rivals": {rival: {split: _means(found[rival, split]) for split in folds}
                   | {"minutes": round(float(np.mean([spent for _, spent in made])), 2), "fits": len(made),
                      "settings": repr(made[0][0])} for rival, made in others.items()},
        "cold": hidden,
        "chosen": [model.chosen for label, model in fits if label == "full"],
        "settings": {"recipe": recipe, "threads": threads, "users": log.n_users, "items": items.n,
                     "interactions": len(log.user), "content": sorted(items.content)},
    }  # fmt: skip


def _rows(label: str, model: Any, items: Items, log: Log, fold: Fold, ablation: bool) -> dict[str, Scorer | None]:
    """Rows that one fit gives: the whole, and its sequence tower alone."""
    text = bool(items.content)
    made: dict[str, Scorer | None] = {_named(label, text, True): None}
    if ablation:
        made[_named(label, text, False)] = lambda cases: model.sequence_scores(items, log, fold, cases)
    return made


def _rivals(
    items: Items, log: Log, fold: Fold, seeds: Sequence[int], tell: Tell
) -> dict[str, list[tuple[Any, float]]]:
    """name -> (model, minutes) of its fits; without content-NN where nothing is described, and without EASE where it
    can't be solved."""
    from mmrec.models.ease import MAX_ITEMS
    from mmrec.models.rivals import STOPPED, published_rivals

    can = {"content_nn": bool(items.content), "ease": items.n <= MAX_ITEMS}
    todo = [(name, model) for n, seed in enumerate(seeds) for name, model in published_rivals(seed).items()
            if (n == 0 or hasattr(model, "seed")) and can.get(name, True)]  # fmt: skip
    made: dict[str, list[tuple[Any, float]]] = {}
    for n, (name, model) in enumerate(todo):
        tell(f"benchmark: fit of {name}", n, len(todo))
        since = time.monotonic()
        fitted = model.fit(items, log, fold, *([[fold]] if name in STOPPED else []))
        made.setdefault(name, []).append((fitted, (time.monotonic() - since) / 60))
    return made


def _named(label: str, text: bool, blend: bool) -> str:
    return "id" + " +text" * (label == "full" and text) + " +blend" * blend


def read(root: Path, cache: Path, threads: int, tell: Tell) -> tuple[Items, Log]:
    """A folder of sequences as dense views, texts encoded.

    Raises: InputError: a row that can't be read.
    """
    from mmrec.worlds.amazon import Amazon

    kinds = {d.kind: d for d in Amazon(root).deliveries()}
    events, rows = (_table(kinds[k]) for k in ("interactions", "items"))
    rows = rows.sort_by("item_id")
    categories = [json.loads(c or "[]") for c in rows["categories"].to_pylist()]
    texts = [text_of({"title": t, "categories": c, "text": None})
             for t, c in zip(rows["title"].to_pylist(), categories, strict=True)]  # fmt: skip
    group = {text: n for n, text in enumerate(dict.fromkeys(t for t in texts if t))}
    items = Items(
        ids=np.array(rows["item_id"].to_pylist(), object),
        available_us=_us(rows["available_at"]),
        withdrawn_us=np.full(rows.num_rows, NEVER),
        category=np.array([(c or [""])[0] for c in categories], object),
        # described in the same words: the same thing listed twice
        group=np.array([group[t] if t else len(group) + n for n, t in enumerate(texts)], np.int64),
        **_text(texts, cache, threads, tell),
    )
    events = events.append_column("event_us", pa.array(_us(events["event_ts"])))
    events = events.append_column("available_us", pa.array(_us(events["available_at"])))
    events = events.set_column(events.column_names.index("weight"), "weight", events["weight"].cast(pa.float32()))
    return items, log_from(events, items)


def _text(texts: list[str | None], cache: Path, threads: int, tell: Tell) -> dict[str, dict[str, np.ndarray]]:
    """`content` and `present` of items; neither where nothing has a text."""
    from mmrec.content.encoders import encoder

    distinct = sorted({t for t in texts if t}, key=lambda t: (len(t), t))
    if not distinct:
        return {"content": {}, "present": {}}
    model, parts = encoder("minilm", cache, threads=threads), []
    for start in range(0, len(distinct), _TEXTS):
        tell("benchmark: texts", start, len(distinct))
        parts.append(model.encode(distinct[start : start + _TEXTS])[0])
    tell("benchmark: texts", len(distinct), len(distinct))
    vector = np.concatenate(parts)
    at = {t: n for n, t in enumerate(distinct)}
    place = np.array([at[t] if t else -1 for t in texts])
    present = place >= 0
    return {"content": {"text": np.where(present[:, None], vector[place], 0).astype(np.float32)},
            "present": {"text": present}}  # fmt: skip


def _table(delivery: Delivery) -> pa.Table:
    made = pa.Table.from_batches(delivery.read())
    bad = made.filter(pc.is_valid(made["parse_error"]))
    if bad.num_rows:
        row = bad.slice(0, 1).to_pylist()[0]
        raise InputError(
            "a row can't be read",
            where=f"{delivery.file}, line {row['line']}",
            value=row["raw"],
            valid=row["parse_error"],
            next="mend the file: a benchmark leaves nothing out",
        )
    return made


def _us(moments: pa.ChunkedArray) -> np.ndarray:
    parsed = pc.strptime(moments, "%Y-%m-%dT%H:%M:%SZ", "us")
    return parsed.cast(pa.int64()).to_numpy()


def _at(got: CaseMetrics, fold: Fold) -> CaseMetrics:
    """The same lists measured at the protocol's own K."""
    return replace(got, values=metrics.ranking(got.ranked, fold.target_ptr, fold.target_item, KS))


def _means(parts: Sequence[CaseMetrics]) -> dict[str, float]:
    """metric -> mean over seeds."""
    return {m: round(float(np.mean([p.mean(m) for p in parts])), 4) for m in _TOLD}


def _summary(parts: Sequence[CaseMetrics]) -> dict[str, Any]:
    """Means over seeds, each seed's own, and the interval over users of the mean over seeds."""
    interval = {}
    for m in _TOLD:
        each = np.mean([p.values[m] for p in parts], 0)
        _, low, high = paired_bootstrap(each, np.zeros_like(each), parts[0].user)
        interval[m] = [round(low, 4), round(high, 4)]
    by_seed = [{m: round(p.mean(m), 4) for m in _TOLD} for p in parts]
    return _means(parts) | {"interval": interval, "by_seed": by_seed}
