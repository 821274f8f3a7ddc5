"""What a catalogue without anything new costs: `python -m tests.soak.catalogue --items 100000 --out FILE`.

In: how many items, each with a text of its own and every fiftieth with a picture. Out: seconds of `mmrec embed` for the
whole command, first with everything new, then with nothing; an AssertionError where the second one called an encoder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmrec.worlds.render import KINDS, picture, text
from tests.soak.evidence import keep

DAY = "2026-03-01"
PICTURED = 50


def deliver(folder: Path, items: int) -> None:
    """A day of a shop: one file of items, their pictures."""
    rng = np.random.default_rng(0)
    (folder / DAY / "media").mkdir(parents=True)
    with (folder / DAY / "items.jsonl").open("w") as file:
        for n in range(items):
            title, words = text(n % KINDS, n, rng)
            row: dict[str, Any] = {"item_id": f"i{n:07d}", "title": title, "text": words, "categories": ["all"]}
            if n % PICTURED == 0:
                row["image"] = f"media/{n}.png"
                (folder / DAY / row["image"]).write_bytes(picture(n % KINDS, rng))
            file.write(json.dumps(row) + "\n")


def mmrec(*words: str) -> tuple[dict[str, Any], float]:
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "mmrec", *words, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), round(time.monotonic() - begun, 2)


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--items", type=int, default=100_000)
    words.add_argument("--out", type=Path)
    asked = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, source = str(Path(folder) / "home"), Path(folder) / "shop"
        deliver(source, asked.items)
        mmrec("init", "--home", home, "--source", "files", "--root", str(source))
        for step in ("ingest", "validate"):
            mmrec(step, "--home", home, "--date", "2026-03-02")
        first, first_s = mmrec("embed", "--home", home, "--date", "2026-03-02")
        again, again_s = mmrec("embed", "--home", home, "--date", "2026-03-03")
    assert again["text_new"] == again["image_new"] == again.get("text_calls", 0) == again.get("image_calls", 0) == 0, again
    assert first["text_new"] == asked.items, first
    told = {"items": asked.items, "first": first, "first_s": first_s, "again": again, "again_s": again_s}
    print(json.dumps(keep(told, ["tests.soak.catalogue", f"--items {asked.items}"], asked.out)))


if __name__ == "__main__":
    main()
