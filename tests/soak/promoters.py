"""Two that promote at once: `python -m tests.soak.promoters [--rounds N] [--out FILE]`.

In: an empty lake. Out: figures as JSON; an AssertionError where a round has not exactly one winner.
In each round two processes read what serves, wait for each other, and ask at the same moment that their version serve; who
is outrun puts a refusal on record. In the end changes are numbered without a gap, one a round, and every request is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import tempfile
import time
from pathlib import Path
from typing import Any

from mmrec.bundle.serving import Outrun, Served, ask, serving
from mmrec.config import Config
from mmrec.lake.maintain import maintain
from mmrec.lake.store import Lake
from tests.soak.evidence import keep

NAME, EACH = "ops.serving", 50  # rounds between two maintenances


def promoter(root: str, version: str, rounds: int, meet: Any, out: Any) -> None:
    """Rounds that it won."""
    lake, won = Lake(Path(root)), []
    for n in range(rounds):
        seen = serving(lake)
        meet.wait()
        try:
            ask(lake, seen, "promoted", Served(version, f"sha-{version}", None), asked_by=version, through="command")
            won.append(n)
        except Outrun as error:
            ask(lake, serving(lake), "refused", Served(version, "", None), asked_by=version, through="command", said=error.what)
        meet.wait()
    out.put((version, won))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rounds", type=int, default=1000)
    asked.add_argument("--out", type=Path)
    told = asked.parse_args()
    spawn, begun, won = mp.get_context("spawn"), time.monotonic(), {"1": 0, "2": 0}
    with tempfile.TemporaryDirectory() as folder:
        config = Config(home=Path(folder))
        lake = Lake(config.lake)
        lake.create(NAME)
        for start in range(0, told.rounds, EACH):
            rounds = min(EACH, told.rounds - start)
            meet, out = spawn.Barrier(2), spawn.Queue()
            both = [spawn.Process(target=promoter, args=(str(config.lake), v, rounds, meet, out)) for v in won]
            for p in both:
                p.start()
            ended = dict(out.get(timeout=600) for _ in both)
            for p in both:
                p.join()
            assert sorted(n for rounds_won in ended.values() for n in rounds_won) == list(range(rounds)), ended
            for v, rounds_won in ended.items():
                won[v] += len(rounds_won)
            maintain(config, NAME)
            print(f"{start + rounds} of {told.rounds} rounds, won {won}", flush=True)
        rows = lake.arrow(NAME).to_pylist()
        assert sorted(r["change"] for r in rows if r["change"]) == list(range(1, told.rounds + 1))
        assert sum(r["action"] == "refused" for r in rows) == told.rounds
        assert len({r["request"] for r in rows}) == len(rows) == 2 * told.rounds
    figures = {"rounds": told.rounds, "won": won, "requests": len(rows), "seconds": round(time.monotonic() - begun, 1)}
    print(json.dumps(keep(figures, ["tests.soak.promoters", "--rounds", str(told.rounds)], told.out), indent=1))


if __name__ == "__main__":
    main()
