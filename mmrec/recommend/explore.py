"""Places of a list that are drawn, so that the shop learns what it can't know from what it always shows.

In: lists that were chosen longer than they are shown: the rows a model fills, and behind them a pool. Out: lists of K,
in which evenly spread places are draws from the pool, each with the probability of its draw.
The pool keeps the same rules, together with the rows before it, so every draw from it does. Its items are dealt to the
drawn places like cards, and each place draws one of its own: so a draw's probability is exact, whatever the
others drew.
Trade-off: drawn places are the same in every list, not drawn themselves; in exchange what is not drawn has
probability one.

Shape legend: B users, K places of a list, E drawn ones, M rows chosen (K - E, then E pools of J), N items.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from hashlib import blake2b

import numpy as np

from mmrec.recommend.walk import Lists
from mmrec.topk.compiled import jit
from mmrec.topk.threads import share

_FEW = 256  # users that are not worth a thread


@dataclass(frozen=True)
class Exploration:
    """How much is drawn, and from what.

    Attributes:
        k: places of a list. share: of them that are drawn, rounded. pool: candidates of a drawn place. by: "uniform",
            all alike; "uncertainty", in proportion to 1 / sqrt(1 + interactions): what little is known of. ends: where
            pools end: "places", with as many candidates as there are rows to choose, whether rules pass some of them
            over or not; "rows", with as many rows, as in nights of an earlier release.
    """

    k: int
    share: float = 0.0
    pool: int = 10
    by: str = "uniform"
    ends: str = "rows"
    places_E: np.ndarray = field(init=False, compare=False)

    def __post_init__(self) -> None:
        drawn = min(int(self.k * self.share + 0.5), self.k - 1)
        at = np.array([(e + 1) * self.k // drawn - 1 for e in range(drawn)], np.int64)
        object.__setattr__(self, "places_E", at)

    @property
    def kept(self) -> int:
        """Rows that are not drawn."""
        return self.k - len(self.places_E)

    @property
    def chosen(self) -> int:
        """Rows to choose."""
        return self.kept + len(self.places_E) * self.pool

    @property
    def enough(self) -> int | None:
        """Rows that are enough, once `chosen` candidates were looked at; None: all of them."""
        return self.k if self.ends == "places" else None

    def behind(self, place: np.ndarray) -> np.ndarray:
        """Where among the rows that are not drawn a row of a place of the list is; of a drawn place, the next, or the
        last."""
        return np.minimum(place - np.searchsorted(self.places_E, place), self.kept - 1)

    def weights(self, n_interactions: np.ndarray) -> np.ndarray:
        """(N,) float64: how readily an item is drawn."""
        if self.by == "uniform":
            return np.ones(len(n_interactions))
        return 1 / np.sqrt(1.0 + n_interactions)


def deal(
    made: Lists, how: Exploration, users: list[str], day: date, weight_N: np.ndarray
) -> tuple[Lists, np.ndarray, np.ndarray]:
    """Lists of K from chosen rows.

    Args:
        made: (B, M) of `how.chosen` rows. users: (B,) ids, which with the day are the seed. weight_N: as of `weights`.

    Returns: the lists, a drawn row with a place of 0, no rule, and not of the model; (B, K) float64, the probability
        with which a row is where it is: 1 of what is not drawn; (B, K - E) int32, where a row that is not drawn went.
    """
    b = len(users)
    out, chance_BK = Lists.room(b, how.k), np.empty((b, how.k))
    moved_BM = np.zeros((b, how.kept), np.int32)

    def part(some: slice) -> None:
        out.clear(some)
        chance_BK[some] = 1
        m, o = (vars(of.of(some)).values() for of in (made, out))
        _deal(*m, how.kept, how.places_E, _seeds(day, users[some]), weight_N, *o, chance_BK[some], moved_BM[some])

    share(b, _FEW, part)
    return out, chance_BK, moved_BM


def _seeds(day: date, users: list[str]) -> np.ndarray:
    """(B,) uint64: of BLAKE2b of the day, a bar and the user."""
    begun, digests = blake2b(f"{day}|".encode(), digest_size=8), []
    for user in users:
        one = begun.copy()
        one.update(user.encode())
        digests.append(one.digest())
    return np.frombuffer(b"".join(digests), "<u8")


@jit
def _deal(
    item_BM, score_BM, model_BM, place_BM, rule_BM, ranked_BM, kept, places_E, seed_B, weight_N, out_item, out_score,
    out_model, out_place, out_rule, out_ranked, chance_BK, moved_BM,
):  # fmt: skip
    b_all, wide = item_BM.shape
    k, drawn = out_item.shape[1], len(places_E)
    for b in range(b_all):
        m, e, here = 0, 0, 0
        for p in range(k):
            if e < drawn and places_E[e] == p:
                e += 1
                total = 0.0
                for w in range(kept + e - 1, wide, drawn):
                    if item_BM[b, w] >= 0:
                        total += weight_N[item_BM[b, w]]
                if total <= 0:
                    continue
                left = total * _uniform(seed_B[b], e)
                pick = -1
                for w in range(kept + e - 1, wide, drawn):
                    if item_BM[b, w] >= 0:
                        pick = w
                        left -= weight_N[item_BM[b, w]]
                        if left < 0:
                            break
                out_item[b, here], out_score[b, here] = item_BM[b, pick], score_BM[b, pick]
                out_model[b, here], out_place[b, here], out_rule[b, here] = False, 0, -1
                chance_BK[b, here] = weight_N[item_BM[b, pick]] / total
                here += 1
            elif m < kept:
                if item_BM[b, m] >= 0:
                    moved_BM[b, m] = here
                    out_item[b, here], out_score[b, here] = item_BM[b, m], score_BM[b, m]
                    out_model[b, here], out_place[b, here] = model_BM[b, m], place_BM[b, m]
                    out_rule[b, here], out_ranked[b, here] = rule_BM[b, m], ranked_BM[b, m]
                    here += 1
                m += 1


@jit
def _uniform(seed, n):
    """A number in [0, 1) of a seed and a counter: SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
    number generators", figure 17), its upper 53 bits."""
    z = seed + np.uint64(n) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) / 9007199254740992.0
