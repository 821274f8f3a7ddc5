"""The simulator at length: `python -m tests.soak.simulator [--steps N] [--seed S] [--replay] [--out FILE]`.

In: a seed, a number of steps. Out: figures as JSON, with the rate and the time left on the way; where a promise does not
hold, the seed of the world, its step and its last 30 events, and exit code 1.
`--replay` repeats the one world of the seed and prints each of its events.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.faults.sim.schedule import Violation
from tests.faults.simulator import fast_folder, simulate
from tests.soak.evidence import keep

EVERY_S = 30.0  # between two lines of progress


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", action="store_true", help="the one world of the seed, event by event")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    last = time.monotonic()

    def progress(steps: int, seconds: float) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY_S:
            last = time.monotonic()
            left = (asked.steps - steps) * seconds / steps
            print(f"{steps:,} steps, {steps / seconds:.0f} a second, {left / 60:.0f} minutes left", flush=True)

    with fast_folder() as folder:
        try:
            if asked.replay:
                told = simulate(asked.seed, 1, folder=folder, tell=print)
            else:
                told = simulate(asked.seed, asked.steps, folder=folder, progress=progress)
        except Violation as error:
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(told))
    keep(told, ["tests.soak.simulator", *(sys.argv[1:] if words is None else words)], asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
