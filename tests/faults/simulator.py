"""Runs of the simulator: seed after seed, each a world of its own, until enough steps are made.

In: a seed, a number of steps. Out: figures, or a `Violation` that names the seed, the step and the last 30 events.
`python -m tests.soak.simulator --seed S --replay` repeats the world of a seed, event by event.
Trade-off: a world is a few days of a small shop, so that a failing seed is a few hundred events to read.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.sim.schedule import Regime, Violation, World
from tests.faults.sim.shop import Shop
from tests.faults.sim.store import faulty
from tests.faults.sim.tables import short_retention, template


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A temporary folder in memory where the machine has one: what is tested is the order of events, not a disk."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="mmrec-sim-", dir=memory if memory.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def shop(
    folder: Path, seed: int, regime: Regime | None = None, tell: Callable[[str], None] | None = None
) -> Iterator[Shop]:
    """A fresh shop whose calls of the store are intercepted; a Violation in it tells its last events."""
    given = folder / "template"
    if not given.is_dir():
        template(given)
    world = World(seed, regime or Regime.drawn(Random(f"regime {seed}")), tell)
    root = folder / "home"
    made = Shop(world, root, given)
    try:
        with faulty(world, made.oracle), short_retention():
            try:
                yield made
            except Exception as error:
                told = "\n".join(world.events)
                raise Violation(
                    f"seed {seed}, step {world.step}: {type(error).__name__}: {error}\n{world.regime}\nthe last events:\n{told}\n"
                    f"again: python -m tests.soak.simulator --seed {seed} --replay"
                ) from error
            finally:
                world.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def simulate(
    seed: int, steps: int, *, folder: Path, tell: Callable[[str], None] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Worlds of seed, seed + 1, ... until `steps` steps are made; at least one.

    Args:
        tell: called with each event. progress: called with (steps, seconds) after each world.

    Returns: figures: seeds, steps, steps_s, commits, fenced, reads, kills, pauses, faults, trace.

    Raises: Violation.
    """
    told: Counter[str] = Counter()
    begun, n, trace = time.perf_counter(), 0, ""
    while not n or told["steps"] < steps:
        with shop(folder, seed + n, tell=tell) as made:
            made.days()
            while made.world.turn():
                pass
            made.drain()
            world = made.world
            told.update({"steps": world.step, **made.oracle.seen, **world.counts})
            trace = world.trace
        n += 1
        if progress:
            progress(told["steps"], time.perf_counter() - begun)
    seconds = time.perf_counter() - begun
    return {
        "seed": seed,
        "worlds": n,
        **told,
        "seconds": round(seconds, 1),
        "steps_s": round(told["steps"] / seconds),
        "trace": trace,
    }
