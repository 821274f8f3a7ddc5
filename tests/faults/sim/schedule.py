"""Actors on a fake clock: who goes on next, who is paused for hours, who is killed; all drawn from one seed.

In: a seed, a regime (how often things go wrong), works. Out: interleavings that a seed repeats exactly.
An actor is a greenlet that runs real code and stops at points (store.py). A killed actor is never resumed, so none of
its handlers run while anybody looks; at the end of the world they are unwound with every effect shut.
Trade-off: one thread, so what happens inside one call of the store is one event; where such a call may end half done,
the store says so itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

# later than the machine's clock, which the tables' own log entries are stamped with: files are stamped by this one
EPOCH = datetime(2040, 3, 1, tzinfo=UTC)
HOUR = 3600.0
_CUTS = (0.0, 0.0, 0.004)


class Violation(AssertionError):
    """Something was seen that no order of events allows."""


@dataclass(frozen=True)
class Regime:
    """How often, at a point that is visited: `fault` of the store, `kill`, `pause` for hours; `stick`: the same actor
    goes on; `pause_h`: longest pause. `cut`: the power goes, once a world at most."""

    fault: float = 0.0
    kill: float = 0.0
    pause: float = 0.0
    stick: float = 0.0
    pause_h: float = 12.0
    cut: float = 0.0

    @classmethod
    def drawn(cls, rng: Random) -> Regime:
        """A regime of its own for each world: faults of one kind are not hidden behind those of another."""
        return cls(rng.choice((0, 0.01, 0.04)), rng.choice((0, 0.002, 0.01)), rng.choice((0, 0.002, 0.01)),
                   rng.choice((0, 0.5, 0.9)), cut=rng.choice(_CUTS))  # fmt: skip


@dataclass(eq=False)
class Actor:
    name: str
    greenlet: greenlet
    wake: float
    lost: Callable[[str], None] | None = None
    dead: bool = False
    hurt: int = 0  # faults of the store it met
    intent: Any = None  # what it is writing, see oracle.py
    at: str = "its beginning"
    was_paused: bool = False


@dataclass
class World:
    """One run of actors.

    Attributes: step: actors resumed so far. now: seconds since EPOCH. events: the last 30.
    """

    seed: int
    regime: Regime = Regime()
    tell: Callable[[str], None] | None = None
    step: int = 0
    now: float = 0.0
    calm: bool = False
    dense: bool = False  # every call is a point: for sweeps over all of them
    inside: bool = False  # a real call of the store is being made
    running: Actor | None = None
    broken: BaseException | None = None
    calls: int = 0  # calls of the store that may fail
    fault_at: tuple[int, str] | None = None  # (which of them, "before" or "after" its effect): fails, whatever is drawn
    on_cut: Callable[[], None] | None = None  # what a loss of power does to the disk
    before_jump: Callable[[], None] | None = None  # called before the clock goes on by more than ten minutes
    actors: list[Actor] = field(default_factory=list)
    graveyard: list[Actor] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # kills, pauses, faults
    events: deque[str] = field(default_factory=lambda: deque(maxlen=30))

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self._trace = hashlib.sha256()
        self._hub = getcurrent()
        self._last: Actor | None = None

    @property
    def clock(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now)

    @property
    def trace(self) -> str:
        """Digest of every event so far."""
        return self._trace.hexdigest()[:16]

    def note(self, text: str) -> None:
        line = f"{self.step:6} {self.clock:%d %H:%M:%S} {self.running.name if self.running else '-'}: {text}"
        self._trace.update(line.encode())
        self.events.append(line)
        if self.tell:
            self.tell(line)

    def spawn(
        self, name: str, work: Callable[[], Any], *, after: float = 0.0, lost: Callable[[str], None] | None = None
    ) -> Actor:
        """An actor that begins `after` seconds from now; `lost` is called when it was killed or paused."""

        def live() -> None:
            try:
                work()
            except GreenletExit:
                raise
            except BaseException as error:
                self.broken = self.broken or error

        actor = Actor(name, greenlet(live, self._hub), self.now + after, lost)
        self.actors.append(actor)
        return actor

    def current(self) -> Actor | None:
        """The actor that asks; None: not an actor, or within a call that is being made."""
        actor = self.running
        return actor if actor is not None and not self.inside and getcurrent() is actor.greenlet else None

    def point(self, what: str, share: float = 1.0) -> None:
        """The actor stops here, or in `share` of the cases; others go on, and hours may pass."""
        actor = self.running
        assert actor is not None
        if actor.dead:
            raise GreenletExit
        if share < 1 and not self.dense and self.rng.random() >= share:
            return
        actor.at = what
        self._hub.switch()
        if actor.dead:
            raise GreenletExit

    def sleep(self, seconds: float) -> None:
        assert self.running is not None
        self.running.wake = self.now + seconds
        self.point(f"sleep {seconds:.1f} s")

    def fails(self, when: str, share: float = 1.0) -> bool:
        """Whether the store fails the running actor now; `share`: of the regime's faults."""
        if self.fault_at == (self.calls, when) and self.running is not None:
            self.running.hurt += 1
            return True
        if self.calm or not self.regime.fault or self.running is None:
            return False
        failed = self.rng.random() < self.regime.fault * share
        self.running.hurt += failed
        self.counts["faults"] += failed
        return failed

    def turn(self) -> bool:
        """Resume one actor; False: nobody is left."""
        if not self.actors:
            return False
        ready = [a for a in self.actors if a.wake <= self.now]
        if not ready:
            wake = min(a.wake for a in self.actors)
            if self.before_jump and wake - self.now > 600:
                self.before_jump()
            self.now = wake
            ready = [a for a in self.actors if a.wake <= self.now]
        stays = self._last in ready and self.rng.random() < self.regime.stick
        self.resume(self._last if stays and self._last else self.rng.choice(ready))
        return True

    def resume(self, actor: Actor) -> None:
        """Let `actor` go on to its next point; then perhaps it is killed or paused there."""
        self.step += 1
        self.now += self.rng.random() * 4
        self.running = self._last = actor
        try:
            actor.greenlet.switch()
            if self.broken:
                raise self.broken
            if actor.greenlet.dead:
                self.actors.remove(actor)
                return
            self.note(actor.at)
            if self.calm:
                return
            fate = self.rng.random()
            if self.regime.cut and not self.counts["power_cuts"] and self.rng.random() < self.regime.cut:
                self.counts["power_cuts"] += 1
                self.running = None
                self.cut()
            elif fate < self.regime.kill:
                self.kill(actor)
            elif fate < self.regime.kill + self.regime.pause and not actor.was_paused:
                self.pause(actor, self.rng.uniform(1, self.regime.pause_h) * HOUR)
        finally:
            self.running = None

    def cut(self) -> None:
        """The power goes: everybody is killed, and what the disk had not been told to keep may be lost."""
        self.note("the power goes")
        gone, self.actors = self.actors, []
        for actor in gone:
            # who had not begun yet is begun by its schedule, which the machine has on disk
            if actor.greenlet:
                actor.dead = True
                self.graveyard.append(actor)
            else:
                self.actors.append(actor)
        if self.on_cut:
            self.on_cut()
        for actor in gone:
            if actor.dead and actor.lost:
                actor.lost("killed")

    def kill(self, actor: Actor) -> None:
        """kill -9 at the point where it stands: no handler runs."""
        self.note(f"killed at {actor.at}")
        self.counts["kills"] += 1
        actor.dead = True
        self.actors.remove(actor)
        self.graveyard.append(actor)
        if actor.lost:
            actor.lost("killed")

    def pause(self, actor: Actor, seconds: float) -> None:
        """Nobody hears of it for `seconds`; it is taken for dead, and wakes."""
        self.note(f"paused for {seconds / HOUR:.1f} h at {actor.at}")
        self.counts["pauses"] += 1
        actor.wake, actor.was_paused = self.now + seconds, True
        if actor.lost:
            actor.lost("silent")

    def drain(self, most: int = 20_000) -> None:
        """No more faults: everybody comes to an end. Violation: somebody does not within `most` steps."""
        self.calm = True
        for _ in range(most):
            if not self.turn():
                return
        raise Violation(f"not at an end after {most} steps without a fault: {[a.name for a in self.actors]}")

    def close(self) -> None:
        """Unwind whoever was killed, with every effect shut; after this nothing of the world is held."""
        self.inside, self.tell = False, None
        for actor in self.graveyard + self.actors:
            actor.dead = True
            self.running = actor
            if not actor.greenlet.dead:
                actor.greenlet.throw(GreenletExit)
        self.running = None
        self.actors.clear()
        self.graveyard.clear()
