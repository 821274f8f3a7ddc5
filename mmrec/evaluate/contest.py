"""A version beside its rivals on the days before it was trained: the numbers that the gate decides over.

In: a window, and everything that ranked its cases. Out: a `Contest`, kept in the version's bundle as one Parquet file;
rows of ops.metrics.
A version itself was refitted on these days, so a stand-in is asked: the same settings, fitted on what was there
before them. A bundle that served is asked as it is, if it knows nothing of them. Nobody is asked twice: two versions of
the same days are compared by what each bundle has kept.
Trade-off: the window lies inside the last test windows. It decides one yes or no a version, and test numbers of what
was promoted are that much too good.

Shape legend: C cases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmrec.evaluate.protocols import Scorer, evaluate, evaluate_parts, restrict
from mmrec.evaluate.significance import paired_bootstrap
from mmrec.models.data import Fold, Items, Log

FILE = "gate.parquet"
METRIC, K = "ndcg@10", 10
SELF = "champion"  # as in ops.metrics: the version itself

@dataclass(frozen=True)
class Contest:
    """What a version's stand-in and its rivals made of the same cases.

    Attributes:
        since, until: the window. cases: a row a ranker, slice (all, cold_items) and user: ndcg@10, and of the slice all
            the first ten items. lists: ranker -> numbers of its lists as a whole, as of `CaseMetrics.lists`.
        unmeasured: version that serves, served or waits -> why it could not be asked.
    """

    ROWS: ClassVar[pa.Schema] = pa.schema([
        ("ranker", pa.string()), ("slice", pa.string()), ("user_id", pa.string()), (METRIC, pa.float64()),
        ("item_ids", pa.list_(pa.string())),
    ])  # fmt: skip
    since: datetime
    until: datetime
    cases: pa.Table
    lists: dict[str, dict[str, float]]
    unmeasured: dict[str, str] = field(default_factory=dict)

    @property
    def rankers(self) -> list[str]:
        return list(self.lists)

    def of(self, ranker: str, part: str = "all") -> pa.Table:
        """Rows of a ranker and slice, by user."""
        here = pc.and_(pc.equal(self.cases["ranker"], ranker), pc.equal(self.cases["slice"], part))
        return self.cases.filter(here).sort_by("user_id")

    def save(self, folder: Path) -> None:
        """Write `gate.parquet`."""
        about = {"since": self.since.isoformat(), "until": self.until.isoformat(), "lists": self.lists,
                 "unmeasured": self.unmeasured}  # fmt: skip
        pq.write_table(self.cases.replace_schema_metadata({"contest": json.dumps(about)}), folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Contest | None:
        """What `save` wrote; None: a bundle of an earlier release."""
        if not (folder / FILE).is_file():
            return None
        table = pq.ParquetFile(folder / FILE).read()
        about = json.loads(table.schema.metadata[b"contest"])
        since, until = (datetime.fromisoformat(about[n]) for n in ("since", "until"))
        return cls(since, until, table.replace_schema_metadata(None), about["lists"], about["unmeasured"])

    def with_rows_of(self, other: Contest, name: str) -> Contest | None:
        """With another version's own stand-in as a ranker `name`; None: it was asked for other days, or other users."""
        theirs = other.of(SELF)
        if (other.since, other.until) != (self.since, self.until) or theirs["user_id"] != self.of(SELF)["user_id"]:
            return None
        own = other.cases.filter(pc.equal(other.cases["ranker"], SELF))
        named = own.set_column(0, "ranker", pa.array([name] * own.num_rows, pa.string()))
        lists = self.lists | {name: other.lists[SELF]}
        return replace(self, cases=pa.concat_tables([self.cases, named]), lists=lists)

    def turned(self, version: str, own: str) -> Contest | None:
        """The same as `version` sees it, which was asked beside this one, `own`; None: it was not."""
        names = {version_named(version): SELF, SELF: version_named(own)}
        if version_named(version) not in self.lists:
            return None
        lists = {names.get(r, r): told for r, told in self.lists.items()}
        rankers = pa.array([names.get(r, r) for r in self.cases["ranker"].to_pylist()], pa.string())
        return replace(self, cases=self.cases.set_column(0, "ranker", rankers),
                       lists={SELF: lists.pop(SELF)} | lists)  # fmt: skip

    def difference(self, ranker: str, part: str = "all", samples: int = 2000) -> tuple[float, float, float, int] | None:
        """ndcg@10 of the version less that of another ranker: mean, 95% interval, cases; None: not a case, or one of
        the two was not asked."""
        own, other = self.of(SELF, part), self.of(ranker, part)
        if not own.num_rows or own["user_id"] != other["user_id"]:
            return None
        a, b = (t[METRIC].to_numpy() for t in (own, other))
        return (*paired_bootstrap(a, b, np.arange(len(a)), samples), len(a))

    def churn(self, ranker: str) -> float:
        """Mean share of a ranker's first ten items that are not among the version's, over users with any."""
        pairs = zip(*(self.of(r)["item_ids"].to_pylist() for r in (ranker, SELF)), strict=True)
        gone = [1 - len(set(theirs) & set(own)) / len(theirs) for theirs, own in pairs if theirs]
        return float(np.mean(gone)) if gone else 0.0

    def rows(self, samples: int) -> list[dict[str, Any]]:
        """As rows of ops.metrics, but for the run and version they belong to: means, numbers of lists, differences to
        each rival with their intervals, churn against each version."""
        out = []
        for ranker in self.rankers:
            for part in pc.unique(self.cases["slice"]).to_pylist():
                value = self.of(ranker, part)[METRIC].to_numpy()
                if len(value):
                    out.append(_row(part, ranker, METRIC, float(value.mean()), len(value)))
            n = self.of(ranker).num_rows
            out += [_row("all", ranker, m, float(v), n) for m, v in self.lists[ranker].items() if n]
        for rival in self.rankers[1:]:
            found = self.difference(rival, samples=samples)
            if found is None:
                continue
            mean, lo, hi, n = found
            out.append(_row(f"vs_{rival}", SELF, METRIC, mean, n) | {"lo": lo, "hi": hi})
            if is_version(rival):
                out.append(_row(f"vs_{rival}", SELF, f"churn@{K}", self.churn(rival), n))
        return out


def measure(
    items: Items, log: Log, fold: Fold, rankers: Mapping[str, tuple[Any, Callable[[Fold], Scorer] | None]],
    since: datetime, until: datetime, unmeasured: dict[str, str],
) -> Contest:  # fmt: skip
    """Ask every ranker for every case of a window, once.

    Args:
        rankers: name -> a fitted model, and what scores a fold in its place, if anything does; the version itself
            first, as `SELF`.
    """
    cold = fold.cold_items(items, log)
    part = restrict(fold, cold, cold)
    parts = {"cold_items": part} if part.n_cases else {}
    tables, lists = [Contest.ROWS.empty_table()], {}
    for name, (model, of) in rankers.items():
        if of is None:
            found = evaluate_parts(model, items, log, fold, parts)
        else:  # it says what is best of a catalogue, so it is asked for each
            found = {"all": evaluate(model, items, log, fold, scorer=of(fold))}
            found |= {at: evaluate(model, items, log, f, scorer=of(f), lists=False) for at, f in parts.items()}
        lists[name] = found["all"].lists
        for where, result in found.items():
            shown = [[str(items.ids[i]) for i in row if i >= 0] for row in result.ranked[:, :K]]
            kept = where == "all" and (name == SELF or is_version(name))
            n = len(result.user)
            tables.append(pa.table({
                "ranker": [name] * n, "slice": [where] * n, "user_id": [str(log.user_ids[u]) for u in result.user],
                METRIC: result.values[METRIC], "item_ids": shown if kept else [None] * n,
            }, Contest.ROWS))  # fmt: skip
    return Contest(since, until, pa.concat_tables(tables), lists, unmeasured)


def version_named(version: str) -> str:
    """The name of a version that is a ranker beside another."""
    return f"version_{version}"


def is_version(ranker: str) -> bool:
    return ranker.startswith("version_")


def _row(part: str, model: str, metric: str, value: float, n: int) -> dict[str, Any]:
    return {"split": "gate", "slice": part, "model": model, "metric": metric, "value": value, "n": n, "lo": None,
            "hi": None}  # fmt: skip
