"""Do text vectors mean something where the text doesn't name the categories: title and plot alone, encoded anew.

    python -m tests.soak.plots --home HOME

In: a home. Out: a line of JSON a kind of text, by the measure of `mmrec neighbours --meaning`. The home is only read.
Trade-off: every text of the catalogue is encoded once more, into a lake that is thrown away.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from mmrec.config import load
from mmrec.content.embed import embed
from mmrec.content.neighbours import Neighbours
from mmrec.encoding import text_of
from mmrec.evaluate.meaning import meaning
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.served import encoders


def bare(row: dict[str, Any]) -> str | None:
    """The text of an item without its categories."""
    return text_of(row | {"categories": []})


def with_plot(row: dict[str, Any]) -> str | None:
    """The same; None for an item that has a title alone."""
    return bare(row) if row["text"] else None


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("--home", type=Path, required=True)
    config = load(words.parse_args().home)
    encoder = next(e for e in encoders(config) if e.modality == "text")
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "lake")
        lake.create_all()
        rows = Lake(config.lake).arrow("silver.items")
        commit.write(lake, "silver.items", rows, run_id="plots", pinned=commit.fence(lake, "silver.items"))
        embed(lake, [encoder], run_id="plots", text_of=bare)
        for what in (bare, with_plot):
            near = Neighbours(lake, modality="text", version=encoder.version, text_of=what).apart(10)
            found = meaning(near.categories, near.content_N, near.asked_Q, near.near_QK)
            print(json.dumps({"what": what.__name__} | found), flush=True)


if __name__ == "__main__":
    main()
