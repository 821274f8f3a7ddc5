"""The built-in world's own truth, as a scorer: what no model can know, and the bound of what one can reach.

In: a source, dense views. Out: a scorer as protocols have them.
Trade-off: it knows tastes and what was chosen last, not chance: some of what people choose nobody could foretell.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import numpy as np

from mmrec.config import SourceConfig
from mmrec.models.data import Fold, Items, Log
from mmrec.worlds.builtin import World
from mmrec.worlds.render import NOUNS
from mmrec.worlds.signals import RECENT, SOCIAL_DAYS, WANTS_DAYS

_DAY = 86_400_000_000


def oracle(source: SourceConfig, items: Items, log: Log) -> Callable[[Fold, slice], np.ndarray] | None:
    """(fold, slice of cases) -> (B, N) float32; None for other sources."""
    if source.spec != "builtin":
        return None
    generator = World(source.seed, source.size)
    ids = [str(i) for i in items.ids]
    beside = _Beside(generator, items, log)

    def score(fold: Fold, cases: slice) -> np.ndarray:
        out_BN = np.zeros((cases.stop - cases.start, len(ids)), np.float32)
        moments = fold.case_at_us[cases]
        for moment in np.unique(moments):
            rows = np.flatnonzero(moments == moment)
            users = [str(log.user_ids[u]) for u in fold.case_user[cases][rows]]
            newest = log.item[fold.hist_row[fold.hist_ptr[1:][cases][rows] - 1]]
            last = [ids[i] for i in newest]
            more = partial(beside.of, int(moment)) if generator.signals is not None else None
            out_BN[rows] = generator.oracle_scores(users, ids, datetime.fromtimestamp(moment / 1e6, UTC), last, more)
        return out_BN

    return score


class _Beside:
    """What `World.beside` asks of a user at a moment, read from the log, which then has texts."""

    def __init__(self, world: World, items: Items, log: Log) -> None:
        self.world, self.log = world, log
        self.number_N = np.array([int(str(i)[1:]) if str(i)[1:].isdigit() else 0 for i in items.ids])
        self.place = {str(u): n for n, u in enumerate(log.user_ids)}

    def of(self, at_us: int, user: str) -> np.ndarray:
        """(N,) log-odds."""
        world, log, day = self.world, self.log, at_us // _DAY
        own, friends_N = self._rows(user, at_us), np.zeros(len(self.number_N), bool)
        for friend in world.follows_UF[int(user[1:])]:
            rows = self._rows(world.user_ids[friend], at_us)
            age = day - log.ts_us[rows] // _DAY
            friends_N[log.item[rows[(age > 0) & (age <= SOCIAL_DAYS)]]] = True
        _, first = np.unique(log.item[own], return_index=True)  # a view, a click, a purchase are one choice
        recent = self.number_N[log.item[own[np.sort(first)]]][-RECENT:]
        assert log.text is not None
        said = [r for r in own.tolist() if log.text[r]]
        want = -1
        if said and day - log.ts_us[said[-1]] // _DAY <= WANTS_DAYS:
            want = next((n for n, noun in enumerate(NOUNS) if log.text[said[-1]].endswith(f" {noun}.")), -1)
        return world.beside(self.number_N, recent, friends_N, want)

    def _rows(self, user: str, at_us: int) -> np.ndarray:
        if user not in self.place:
            return np.zeros(0, np.int64)
        rows = np.arange(*self.log.ptr[self.place[user] :][:2])
        return rows[self.log.ts_us[rows] < at_us]
