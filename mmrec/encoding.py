"""Which encoders a home has, what they are given, and the embed station.

In: settings, tables. Out: rows of gold.item_embeddings. The work is content's; the text that stands for an item is
features', and the two rooms meet here.
Trade-off: encoders are made anew at each call and open their graphs when a row needs them, so naming them is free.
"""

from __future__ import annotations

from typing import Any

from mmrec.config import Config
from mmrec.context import Night
from mmrec.lake import commit


def encoders(config: Config) -> list[Any]:
    """The encoders that config names, ready to encode; see content/encoders.py."""
    from mmrec.content.encoders import encoder

    names = {m: getattr(config.night, m) for m in ("text", "image", "audio")}
    where = config.cache / "encoders"
    return [encoder(name, where, config.device, config.threads, m) for m, name in names.items() if name]


def embed(night: Night) -> dict[str, Any]:
    """See content/embed.py."""
    from mmrec.content import embed as room

    ready = encoders(night.config)
    run_id = f"embed-{night.run_date}"
    return commit.again(
        lambda: room.embed(night.lake, ready, run_id=run_id, text_of=text_of, progress=night.progress)
    )


def text_of(row: dict[str, Any]) -> str | None:
    """The text of a row of silver.items that is hashed and encoded: title, categories, text; None where it has none."""
    from mmrec.features.windows import content_text

    return content_text(row["title"], row["categories"], row["text"])
