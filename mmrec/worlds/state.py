"""What the built-in world keeps between its days.

In: a folder, a day. Out: who had what, as it was at the day's end.
Trade-off: every day's state is a file of its own, so that any day can be written again.

Shape legend: U users, N items, R last choices.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from uuid import uuid4

import numpy as np

from mmrec.errors import InputError
from mmrec.worlds.signals import RECENT, SOCIAL_DAYS, WANTS_DAYS


class State:
    """Who has had what on which day (ordinals, 0: never), everybody's last choices (-1: none), and the theme they want
    until when."""

    def __init__(self, day_UN: np.ndarray, recent_UR: np.ndarray, want_U: np.ndarray, until_U: np.ndarray) -> None:
        self.day_UN, self.recent_UR, self.want_U, self.until_U = day_UN, recent_UR, want_U, until_U

    @classmethod
    def empty(cls, users: int) -> State:
        nothing = np.full(users, -1, np.int64)
        return cls(np.zeros((users, 0), np.int32), np.full((users, RECENT), -1, np.int64), nothing, nothing.copy())

    @property
    def last(self) -> np.ndarray:
        """(U,) everybody's last item, -1: none."""
        return self.recent_UR[:, -1]

    def grow(self, n: int) -> None:
        more = n - self.day_UN.shape[1]
        self.day_UN = np.concatenate([self.day_UN, np.zeros((len(self.day_UN), more), np.int32)], 1)

    def choose(self, user: int, item: int, day: date) -> None:
        self.day_UN[user, item] = day.toordinal()
        self.recent_UR[user] = [*self.recent_UR[user, 1:], item]

    def wish(self, user: int, theme: int, day: date) -> None:
        self.want_U[user], self.until_U[user] = theme, day.toordinal() + WANTS_DAYS

    def wants(self, user: int, day: date) -> int:
        """A theme; -1: none."""
        return int(self.want_U[user]) if self.until_U[user] >= day.toordinal() else -1

    def lately(self, day: date) -> np.ndarray:
        """(U, N) bool: what users had in the days before."""
        return (self.day_UN < day.toordinal()) & (self.day_UN >= day.toordinal() - SOCIAL_DAYS)

    def save(self, folder: Path, day: date) -> None:
        target = folder / "world"
        target.mkdir(exist_ok=True)
        part = target / f"{day}.{uuid4().hex[:8]}.part"  # another run may read it, or write the same
        with part.open("wb") as file:
            np.savez_compressed(file, **vars(self))
        part.replace(target / f"{day}.npz")

    @classmethod
    def load(cls, folder: Path, day: date) -> State:
        path = folder / "world" / f"{day}.npz"
        if not path.is_file():
            raise InputError(
                "the day before was never written",
                where=str(folder),
                value=str(day),
                valid="days in a row, after write_history",
                next="mmrec world --date D",
            )
        with np.load(path, allow_pickle=False) as saved:
            return cls(**saved)
