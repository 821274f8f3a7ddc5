"""`mmrec bench slate`: what rules, diversity and drawn places cost beside the search that they are done over.

In: sizes. Out: seconds of the search alone (`kernel_s`), of lists without anything (`plain_s`), with twins and rules
of every kind (`ruled_s`), with diversity as well (`varied_s`), with drawn places as well (`whole_s`), and `share`: what
all of it and the fallback add, in kernels. Users come in blocks, as a night has them; the sides take turns at each.
Apart from them, `reasons_s`: sentences, items of the history and parts of the score, of all lists.
Before the clock, lists of the first users must be those of a plain walk down the whole ranking, put in order by the
formula's own words, item for item and cause for cause.
Trade-off: rules that reach every user, a quarter of them and a tenth; a rule that kept nearly all of the catalogue from
many would cost more searches.

Shape legend: U users, N items, D columns, K places.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from mmrec.errors import QualityError
from mmrec.models.sketch import sketched
from mmrec.recommend.choose import Chosen, Find, Terms, choose
from mmrec.recommend.contributions import Tower
from mmrec.recommend.explore import Exploration, deal
from mmrec.recommend.histories import Rows
from mmrec.recommend.reasons import Reasons
from mmrec.recommend.rules import of_records
from mmrec.recommend.ruling import TWIN, Ruling
from mmrec.recommend.scorers import Vectors
from mmrec.recommend.vary import Aims, Variety
from mmrec.topk.catalogue import Catalogue
from mmrec.topk.exact import search
from mmrec.topk.seen import Seen, of_rows, of_users

_BLOCK, _SEEN, _CHECKED, _TWINS = 8192, 50, 64, 0.02
_AIMS, _SHARE, _DAY = Aims("mmr", 0.3), 0.05, date(2026, 1, 1)
_CONTENT = 32  # columns; items of a category are alike
_AGES, _KINDS = ("0-17", "18-34", "35-54", "55+"), 50
_LANDS = ("nl", "de", "fr", "it", "es", "pl", "be", "at", "se", "pt")
RULES: list[dict[str, Any]] = [
    {"name": "recalled", "kind": "exclude", "items": {"category": ["c7", "c8"]}},
    {"name": "minors", "kind": "exclude", "items": {"price": {"at_least": 80}}, "users": {"age": ["0-17"]}},
    {"name": "region", "kind": "exclude", "items": {"category": ["c3"]}, "users": {"land": ["nl"]}},
    {"name": "season", "kind": "boost", "items": {"category": ["c1"]}, "places": 8},
    {"name": "variety", "kind": "cap", "each": "category", "most": 10},
    {"name": "cheap", "kind": "quota", "items": {"price": {"below": 10}}, "least": 5},
    {"name": "window", "kind": "pin", "items": {"item": ["i0000042"]}, "place": 1},
]
_Tell = Callable[[str, int, int], None]


def bench(
    rounds: int, tell: _Tell, *, users: int = 100_000, items: int = 100_000, k: int = 100, dim: int = 64
) -> dict[str, Any]:
    """Seconds of the sides, medians over rounds.

    Returns: users, items, dim, k, rounds, rules, diversity, drawn (places a list), kernel_s, plain_s, ruled_s,
        varied_s, whole_s, reasons_s; share (of the kernel's time, that whole lists take beyond the kernel), and
        plain_share, ruled_share, varied_share; passed (candidates a ruled list), mismatches.

    Raises: QualityError: a list is not the plain walk's.
    """
    shop = _Shop(users, items, k, dim)
    tell("bench slate: check", 0, rounds)
    wrong = shop.mismatches(_CHECKED)
    if wrong:
        raise QualityError("lists are not those of a plain walk", where="bench slate", value=f"{wrong} lists",
                           valid="0", next="mmrec verify")  # fmt: skip
    sides: dict[str, Callable[[slice], Any]] = {"kernel": shop.kernel, "plain": shop.plain, "ruled": shop.ruled,
                                                "varied": shop.varied, "whole": shop.whole}  # fmt: skip
    spent: dict[str, list[float]] = {name: [] for name in sides}
    starts = range(0, users, _BLOCK)
    for n in range(rounds):
        took = dict.fromkeys(sides, 0.0)
        for at, start in enumerate(starts):
            tell("bench slate", n * len(starts) + at, rounds * len(starts))
            for m in range(len(sides)):  # block by block: what else the machine does in a minute meets all sides alike
                name = list(sides)[(n + at + m) % len(sides)]
                begun = time.perf_counter()
                sides[name](slice(start, min(start + _BLOCK, users)))
                took[name] += time.perf_counter() - begun
        for name, seconds in took.items():
            spent[name].append(seconds)
        spent.setdefault("reasons", []).append(sum(shop.reasons(slice(start, min(start + _BLOCK, users)))
                                                   for start in range(0, users, _BLOCK)))  # fmt: skip
    middle = {name: statistics.median(s) for name, s in spent.items()}
    some = min(users, _BLOCK)
    return {
        "users": users, "items": items, "dim": dim, "k": k, "rounds": rounds, "rules": [r["name"] for r in RULES],
        "diversity": str(_AIMS), "drawn": len(shop.draws.places_E),
        **{f"{name}_s": round(s, 4) for name, s in middle.items()},
        **{"share" if name == "whole" else f"{name}_share": round((s - middle["kernel"]) / middle["kernel"], 3)
           for name, s in middle.items() if name not in ("kernel", "reasons")},
        "passed": round(int(shop.ruled(slice(0, some)).passed[:, 4].sum()) / some, 2), "mismatches": wrong,
    }  # fmt: skip


class _Shop:
    """Made-up users and items; a fiftieth of the items have a twin."""

    def __init__(self, users: int, items: int, k: int, dim: int) -> None:
        rng = np.random.default_rng(0)
        self.k, self.n = k, items
        self.user_UD, item_ND = (rng.standard_normal((n, dim)).astype(np.float32) for n in (users, items))
        seen_UW = np.sort(rng.integers(0, items, (users, _SEEN)), axis=1)
        first = np.concatenate([np.ones((users, 1), bool), seen_UW[:, 1:] != seen_UW[:, :-1]], 1)
        ptr = np.concatenate([[0], np.cumsum(first.sum(1))]).astype(np.int64)
        self.seen: Seen = ptr, seen_UW[first].astype(np.int32)
        self.group_N = np.where(rng.random(items) < _TWINS, rng.integers(0, items, items), np.arange(items))
        self.kind_N = kinds = rng.integers(0, _KINDS, items)
        prices = np.round(rng.uniform(3, 99, items), 2)
        table = pa.table({
            "item_id": [f"i{n:07}" for n in range(items)], "title": pa.nulls(items, pa.string()),
            "categories": [[f"c{c}"] for c in kinds], "attributes": [json.dumps({"price": float(p)}) for p in prices],
        })  # fmt: skip
        self.ids = pa.array([f"u{n:07}" for n in range(users)])
        self.about = pa.array([json.dumps({"age": _AGES[a], "land": _LANDS[c]}) for a, c in zip(
            rng.integers(0, len(_AGES), users), rng.integers(0, len(_LANDS), users), strict=True)])  # fmt: skip
        self.ruling = Ruling(of_records(RULES), table)
        content_NV = rng.standard_normal((_KINDS, _CONTENT))[kinds] + rng.standard_normal((items, _CONTENT))
        self.sketch_NV = sketched([content_NV])
        self.variety = Variety.over(_AIMS, table, self.sketch_NV)
        self.draws, self.weight_N = Exploration(k, _SHARE, ends="places"), np.ones(items)
        text = (dim - 4) // 3
        sequence = dim - 4 - 2 * text
        item_in = rng.standard_normal((items, dim - 4)).astype(np.float32)
        tower = Tower(item_in, item_ND, sequence, text, (("text", text),), 10.0, 0.1, _SEEN, _SEEN)
        self.said, self.vectors = Reasons(table, rows=10, weigher=tower), Vectors(self.user_UD, item_ND)
        self.all, self.left = Catalogue(item_ND), Catalogue(item_ND, self.ruling.allowed_N)
        self.liked = Catalogue(rng.gamma(0.3, 20, (items, 1)).astype(np.float32), self.ruling.allowed_N)

    def find(self, catalogue: Catalogue, block: slice, rows: np.ndarray, wide: int, seen: Seen) -> Any:
        return search(self.user_UD[block][rows], catalogue, wide, seen=seen)

    def popular(self, rows: np.ndarray, wide: int, seen: Seen) -> Any:
        return search(np.ones((len(rows), 1), np.float32), self.liked, wide, seen=seen)

    def kernel(self, block: slice) -> Any:
        return search(self.user_UD[block], self.all, self.k, seen=of_rows(self.seen, block))

    def plain(self, block: slice) -> Chosen:
        find = partial(self.find, self.all, block)
        return choose(find, self.popular, block.stop - block.start, Terms(self.k, self.n), of_rows(self.seen, block),
                      self.vectors.apart)  # fmt: skip

    def ruled(
        self, block: slice, tell: bool = False, find: Find | None = None, k: int | None = None,
        asked: int | None = None, enough: int | None = None,
    ) -> Chosen:  # fmt: skip
        law = self.ruling.law(self.ids[block.start : block.stop], self.about[block.start : block.stop])
        terms = Terms(k or self.k, self.n, law, self.group_N, asked, tell, enough)
        find = find or partial(self.find, self.left, block)
        return choose(find, self.popular, block.stop - block.start, terms, of_rows(self.seen, block),
                      self.vectors.apart)  # fmt: skip

    def varied(
        self, block: slice, tell: bool = False, k: int | None = None, asked: int | None = None,
        enough: int | None = None,
    ) -> Chosen:  # fmt: skip
        """Histories are what was seen."""
        own = of_rows(self.seen, block)

        def find(rows: np.ndarray, wide: int, seen: Seen) -> Any:
            found = self.find(self.left, block, rows, max(wide, _AIMS.pool), seen)
            return self.variety.varied(found, wide, of_users(own, rows))

        return self.ruled(block, tell, find, k, asked, enough)

    def whole(self, block: slice) -> Any:
        made = self.varied(block, k=self.draws.chosen, asked=self.draws.kept, enough=self.draws.enough)
        return deal(made.lists, self.draws, self.ids[block.start : block.stop].to_pylist(), _DAY, self.weight_N)

    def reasons(self, block: slice) -> float:
        """Seconds."""
        lists = self.plain(block).lists
        history = Rows(*of_rows(self.seen, block))
        users = pa.table({"user_id": self.ids[block.start : block.stop]})
        begun = time.perf_counter()
        self.said.columns(lists, users, history, self.vectors.some(block))
        return time.perf_counter() - begun

    def mismatches(self, users: int) -> int:
        """How many of the first lists differ from a plain walk's."""
        block = slice(0, min(users, len(self.ids)))
        made = self.varied(block, tell=True)
        whole = search(self.user_UD[block], self.left, self.n, seen=of_rows(self.seen, block)).item
        wrong = 0
        for b in range(block.stop):
            got = [int(i) for i in made.lists.item_BK[b] if i >= 0]
            over = [(int(x[2]), self.ruling.names[x[3]]) for x in made.passed[made.passed[:, 0] == b]]
            want, passed = self._walk(b, self._order([int(i) for i in whole[b] if i >= 0], b))
            wrong += got != want or over != passed
        return wrong

    def _order(self, ranked: list[int], b: int) -> list[int]:
        """A ranking in the order that MMR gives its first places, the plain way."""
        pool = ranked[: _AIMS.pool]
        score = self.user_UD[b].astype(np.float64) @ self.left.item_ND[pool].astype(np.float64).T
        score = score.astype(np.float32).astype(np.float64)
        relevance = (score - score.min()) / (score.max() - score.min())
        content = self.sketch_NV[pool].astype(np.float64)
        alike = np.maximum(content @ content.T, 0) / 127**2
        taken: list[int] = []
        for _ in range(_AIMS.places):
            near = alike[:, taken].max(1) if taken else np.zeros(len(pool))
            value = (1 - _AIMS.strength) * relevance - _AIMS.strength * near
            value[taken] = -np.inf
            taken.append(int(value.argmax()))
        first = [pool[p] for p in taken]
        return first + [i for i in ranked if i not in set(first)]

    def _walk(self, b: int, ranking: list[int]) -> tuple[list[int], list[tuple[int, str]]]:
        """The list of a user the plain way: RULES, read by a person."""
        about = json.loads(self.about[b].as_py())
        had = set(self.seen[1][self.seen[0][b] : self.seen[0][b + 1]].tolist())
        meant = dict(zip((r["name"] for r in RULES), self.ruling.meant_RN.tolist(), strict=True))

        def barred(i: int) -> str | None:
            if meant["minors"][i] and about["age"] == "0-17":
                return "minors"
            return "region" if meant["region"][i] and about["land"] == "nl" else None

        pinned = 42 not in had and not meant["recalled"][42] and barred(42) is None
        out: list[int] = [42] if pinned else []
        passed: list[tuple[int, str]] = []
        kept = 0
        lifted = sorted((p - 8 if meant["season"][i] else p, not meant["season"][i], p) for p, i in enumerate(ranking))
        for *_, p in lifted:
            i = ranking[p]
            if len(out) == self.k:
                break
            if pinned and i == 42:
                continue
            cause = barred(i)
            if cause is None and any(self.group_N[i] == self.group_N[j] for j in out):
                cause = TWIN
            if cause is None and sum(self.kind_N[i] == self.kind_N[j] for j in out) >= 10:
                cause = "variety"
            open_ = 5 - sum(meant["cheap"][j] for j in out)
            if cause is None and not meant["cheap"][i] and 0 < open_ >= self.k - len(out):
                cause = "cheap"
            if cause is None:
                out.append(i)
                kept = len(passed)
            else:
                passed.append((i, cause))
        return out, passed[:kept]
