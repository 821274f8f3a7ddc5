"""What a second stage sees of a (user, item) pair: the one place where its features are named and reckoned.

In: the first candidates of users' rankings with the first stage's scores, users' histories, what is known of items as
of a moment. Out: (S, C, F) float32, for training and for a night alike.
`Facts` of a fold are made of its train rows, those of a night of gold.item_features: the same counts at two doors.
    score       the first stage's, standardised over the user's pool
    place       log(1 + place in the first stage's ranking, from 0)
    popularity  log(1 + users), less the mean of the pool
    trend       log(1 + 3 x events of 30 days) - log(1 + events of 90 days)
    cold        1 where nobody has had the item
    near        cosine of its content to the sum of the user's last 20
    nearest     greatest cosine of its content to one of the user's last 5, from 0
    category    share of the user's history that is of the item's first category
    history     log(1 + events of the user's history)
    age         log(1 + days since the item came on offer)
and what a shop knows beside behaviour, each zero where it does not:
    <field>     sum of the item's lift under the user's traits of a field: attributes/country, context/device, reviews;
                see traits.py
    <field>_like    sum of what those who have them like of its content
    friends     1 / log2(1 + place) of the item among those that friends had lately, places from 1
    entities    sum over the item's entities of log((n_e + 1) / (e_e + 1)): of the user's last 20 those that have the
                entity, and those that would by chance
    columns/<name>  numbers of declared columns: of the user, of the user's last event, of the item; see columns.py
Of the field `noise`, a coin's toss for a user, no model is served: it shows what a source costs that says nothing.
A history is the last events that features keep, of items on offer, because a night has no sketch of any other.
Trade-off: numbers and no learned vectors: what the first stage's vectors know of a pair is in its score alone.

Shape legend: S users, C candidates of a pool, F features, N items, V columns of a sketch, G categories, T traits,
E entities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from mmrec.models.columns import Columns
from mmrec.models.data import Fold, Items, Log
from mmrec.models.sketch import ONE, WIDE
from mmrec.models.traits import Traits, Who
from mmrec.topk.compiled import jit
from mmrec.topk.seen import Seen

FEATURES = ("score", "place", "popularity", "trend", "cold", "near", "nearest", "category", "history", "age")
_KNOWN = {"friends": "social", "entities": "knowledge"}  # features of a source each, before those of fields
COLUMNS = ("categories", "n_users", "n_30d", "n_90d", "available_us")  # of gold.item_features
_DAY = 86_400_000_000
_NEAR, _NEAREST = 20, 5  # latest events


@dataclass(frozen=True)
class Facts:
    """What is known of N items as of a moment.

    Attributes:
        sketch_NV: (N, 64) int8, zeros without content. category_N: (N,) int32, equal for equal first categories, -1 of
            none. popularity_N, trend_N, cold_N, age_N: (N,) float64, see the module.
    """

    sketch_NV: np.ndarray
    category_N: np.ndarray
    popularity_N: np.ndarray
    trend_N: np.ndarray
    cold_N: np.ndarray
    age_N: np.ndarray
    known: Known | None = None
    told: tuple[tuple[str, ...], np.ndarray] | None = None  # names of declared columns, and (N, F) of items'

    def telling(self, columns: Columns, items: Sequence[str | None], checked: bool = True) -> Facts:
        """With declared columns; `items`: (N,) JSON objects. Raises: QualityError: as `Columns.items`."""
        return replace(self, told=(columns.names, columns.items(items, checked)))

    def knowing(
        self, traits: Traits, entities: Sequence[Sequence[str] | None], offer_N: np.ndarray | None = None
    ) -> Facts:
        """With what traits and entities say.

        Args:
            entities: (N,) `relation=entity` of items. offer_N: (N,) bool, items on offer, which are what is counted;
                None: all.
        """
        return replace(self, known=Known.of(traits, entities, self.sketch_NV, offer_N))

    @property
    def names(self) -> tuple[str, ...]:
        """(F,) of features, in the order of `features`."""
        known = () if self.known is None else self.known.features
        return (*FEATURES, *known, *(self.told[0] if self.told is not None else ()))

    @classmethod
    def of_day(cls, items: pa.Table, at_us: int, sketch_NV: np.ndarray | None) -> Facts:
        """Of a night: gold.item_features with `COLUMNS`; `at_us`: its as_of; no sketch: no content is known."""
        first = [(c or [""])[0] or "" for c in items["categories"].to_pylist()]
        users_N, month_N, quarter_N, since_N = (items[c].to_numpy() for c in COLUMNS[1:])
        return cls._made(sketch_NV, first, users_N, month_N, quarter_N, at_us - since_N)

    @classmethod
    def of_fold(cls, items: Items, log: Log, fold: Fold, sketch_NV: np.ndarray | None) -> Facts:
        """Of a fold: its train rows, as of the moment that its fit may know of."""
        rows = np.flatnonzero(fold.train)
        item, age_us = log.item[rows], fold.fit_at_us - log.ts_us[rows]
        pairs = np.unique(log.user[rows].astype(np.int64) * items.n + item) % items.n
        users_N = np.bincount(pairs, minlength=items.n)
        month_N, quarter_N = (np.bincount(item[age_us <= days * _DAY], minlength=items.n) for days in (30, 90))
        return cls._made(sketch_NV, items.category, users_N, month_N, quarter_N, fold.fit_at_us - items.available_us)

    @classmethod
    def _made(
        cls, sketch_NV: np.ndarray | None, first: Sequence[str] | np.ndarray, users_N: np.ndarray, month_N: np.ndarray,
        quarter_N: np.ndarray, since_N: np.ndarray,
    ) -> Facts:  # fmt: skip
        known: dict[str, int] = {"": -1}
        category_N = np.array([known.setdefault(c, len(known) - 1) for c in first], np.int32)
        sketch_NV = np.zeros((len(category_N), WIDE), np.int8) if sketch_NV is None else sketch_NV
        users_N, month_N, quarter_N = (x.astype(np.float64) for x in (users_N, month_N, quarter_N))
        return cls(np.ascontiguousarray(sketch_NV), category_N, np.log1p(users_N),
                   np.log1p(3 * month_N) - np.log1p(quarter_N), (users_N == 0).astype(np.float64),
                   np.log1p(np.maximum(since_N.astype(np.float64), 0) / _DAY))  # fmt: skip


@dataclass(frozen=True)
class Known:
    """What traits and entities say of N items.

    Attributes:
        names: (T,) of traits. features: of what is known. at_T: (T,) int64, the feature of the lift of each trait; what
            is liked is behind it. lift_TN, likes_TN: (T, N) float32.
        ptr, entity: CSR, (N + 1,) int64 and int32, entities of items. share_E: (E,) float64, of items that have it.
    """

    names: tuple[str, ...]
    features: tuple[str, ...]
    at_T: np.ndarray
    lift_TN: np.ndarray
    likes_TN: np.ndarray
    ptr: np.ndarray
    entity: np.ndarray
    share_E: np.ndarray

    @classmethod
    def of(
        cls, traits: Traits, entities: Sequence[Sequence[str] | None], sketch_NV: np.ndarray,
        offer_N: np.ndarray | None = None,
    ) -> Known:  # fmt: skip
        """See `Facts.knowing`."""
        own = [sorted(set(e or ())) for e in entities]
        offered = [e for e, on in zip(own, offer_N, strict=True) if on] if offer_N is not None else own
        many = Counter(e for mine in offered for e in mine)
        at = {e: n for n, e in enumerate(sorted(many))}
        share_E = np.array([many[e] / len(offered) for e in at])
        places = [[at[e] for e in mine if e in at] for mine in own]
        ptr = np.concatenate([[0], np.cumsum([len(p) for p in places])]).astype(np.int64)
        tables = traits.tables(sketch_NV if sketch_NV.any() else None, offer_N)
        flat = np.array([e for mine in places for e in mine], np.int32)
        told = cls.named(traits)
        at_T = len(FEATURES) + len(_KNOWN) + 2 * traits.field_T
        return cls(traits.names, told, at_T, *tables, ptr, flat, share_E)

    @staticmethod
    def named(traits: Traits) -> tuple[str, ...]:
        """`features` of counts of traits."""
        return (*_KNOWN, *(f"{field}{part}" for field in traits.fields for part in ("", "_like")))


def source_of(name: str) -> str | None:
    """The source of a feature: attributes, context, reviews, social, knowledge, columns, noise; None: behaviour, or
    content."""
    return None if name in FEATURES else _KNOWN.get(name) or name.removesuffix("_like").split("/", 1)[0]


def features(
    facts: Facts, item_SC: np.ndarray, score_SC: np.ndarray, history: Seen, who: Who | None = None
) -> np.ndarray:
    """(S, C, F) float32 in the order of `facts.names`, zeros of empty places, and of what is not known of the users.

    Args:
        item_SC, score_SC: the first places of rankings, -1 in empty ones, which come last. history: (S + 1,) and places
            in the catalogue, the latest last. A user's numbers depend on nobody else's.
    """
    out_SCF = np.zeros((*item_SC.shape, len(facts.names)), np.float32)
    codes = int(facts.category_N.max(initial=-1)) + 1
    _fill(item_SC, score_SC, np.asarray(history[0], np.int64), np.asarray(history[1], np.int32), facts.sketch_NV,
          facts.category_N, facts.popularity_N, facts.trend_N, facts.cold_N, facts.age_N, codes, out_SCF)  # fmt: skip
    if facts.known is not None and who is not None:
        k = facts.known
        _know(item_SC, np.asarray(history[0], np.int64), np.asarray(history[1], np.int32), who.trait_ptr, who.trait,
              who.friend_ptr, who.friend, k.at_T, k.lift_TN, k.likes_TN, k.ptr, k.entity, k.share_E,
              len(FEATURES), out_SCF)  # fmt: skip
    if facts.told is not None and who is not None and who.told_SF is not None:
        (names, told_NF), there_SC1 = facts.told, item_SC[..., None] >= 0
        out_SCF[..., -len(names) : out_SCF.shape[2] - told_NF.shape[1]] = who.told_SF[:, None] * there_SC1
        out_SCF[..., out_SCF.shape[2] - told_NF.shape[1] :] = told_NF[item_SC] * there_SC1
    return out_SCF


@jit
def _know(
    item_SC, hist_ptr, hist, trait_ptr, trait, friend_ptr, friend, at_T, lift_TN, likes_TN, ptr, entity, share_E,
    friends, out_SCF
):  # fmt: skip
    count_E = np.zeros(len(share_E), np.int64)
    for s in range(len(item_SC)):
        last = hist_ptr[s + 1]
        first = max(hist_ptr[s], last - _NEAR)
        for h in range(first, last):
            for e in range(ptr[hist[h]], ptr[hist[h] + 1]):
                count_E[entity[e]] += 1
        for c in range(item_SC.shape[1]):
            item = item_SC[s, c]
            if item < 0:
                break
            for t in range(trait_ptr[s], trait_ptr[s + 1]):
                out_SCF[s, c, at_T[trait[t]]] += lift_TN[trait[t], item]
                out_SCF[s, c, at_T[trait[t]] + 1] += likes_TN[trait[t], item]
            for f in range(friend_ptr[s], friend_ptr[s + 1]):
                if friend[f] == item:
                    out_SCF[s, c, friends] = 1.0 / np.log2(f - friend_ptr[s] + 2.0)
                    break
            shared = 0.0
            for e in range(ptr[item], ptr[item + 1]):
                shared += np.log((count_E[entity[e]] + 1) / ((last - first) * share_E[entity[e]] + 1))
            out_SCF[s, c, friends + 1] = shared
        for h in range(first, last):
            for e in range(ptr[hist[h]], ptr[hist[h] + 1]):
                count_E[entity[e]] = 0


@jit
def _fill(
    item_SC, score_SC, hist_ptr, hist, sketch_NV, category_N, popularity_N, trend_N, cold_N, age_N, codes, out_SCF
):  # fmt: skip
    # twenty sketches' sums, and their products with one, are whole numbers that 32 bits hold
    taste_V, count_G = np.empty(WIDE, np.int32), np.zeros(codes, np.int64)
    for s in range(len(item_SC)):
        n, first, last = 0, hist_ptr[s], hist_ptr[s + 1]
        score, known = 0.0, 0.0
        while n < item_SC.shape[1] and item_SC[s, n] >= 0:
            score += np.float64(score_SC[s, n])
            known += popularity_N[item_SC[s, n]]
            n += 1
        if n == 0:
            continue
        score, known, spread = score / n, known / n, 0.0
        for c in range(n):
            spread += (np.float64(score_SC[s, c]) - score) ** 2
        spread = np.sqrt(spread / n)
        taste_V[:] = 0
        for e in range(max(first, last - _NEAR), last):
            for v in range(WIDE):
                taste_V[v] += np.int32(sketch_NV[hist[e], v])
        square = np.int32(0)
        for v in range(WIDE):
            square += taste_V[v] * taste_V[v]
        long = ONE * np.sqrt(np.float64(square))
        for e in range(first, last):
            if category_N[hist[e]] >= 0:
                count_G[category_N[hist[e]]] += 1
        for c in range(n):
            item = item_SC[s, c]
            near, nearest = np.int32(0), np.int32(0)
            for v in range(WIDE):
                near += taste_V[v] * np.int32(sketch_NV[item, v])
            for e in range(max(first, last - _NEAREST), last):
                like = np.int32(0)
                for v in range(WIDE):
                    like += np.int32(sketch_NV[item, v]) * np.int32(sketch_NV[hist[e], v])
                nearest = max(nearest, like)
            own = category_N[item]
            out_SCF[s, c, 0] = (np.float64(score_SC[s, c]) - score) / spread if spread > 0 else 0.0
            out_SCF[s, c, 1] = np.log1p(c)
            out_SCF[s, c, 2] = popularity_N[item] - known
            out_SCF[s, c, 3] = trend_N[item]
            out_SCF[s, c, 4] = cold_N[item]
            out_SCF[s, c, 5] = near / long if long > 0 else 0.0
            out_SCF[s, c, 6] = nearest / (ONE * ONE)
            out_SCF[s, c, 7] = count_G[own] / (last - first) if own >= 0 and last > first else 0.0
            out_SCF[s, c, 8] = np.log1p(last - first)
            out_SCF[s, c, 9] = age_N[item]
        for e in range(first, last):
            if category_N[hist[e]] >= 0:
                count_G[category_N[hist[e]]] = 0
