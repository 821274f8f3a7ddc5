"""The two frames of a night's features, from the silver tables it pinned.

In: events and frames of silver tables, a moment, the night's settings. Out: frames of gold.user_sequences and
gold.item_features.
Trade-off: nothing is computed here; each frame is computed where it is staged.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from pyspark.sql import DataFrame

from mmrec.features import asof, sequences, windows


def fused(
    events: DataFrame, silver: Mapping[str, DataFrame], run_date: date, as_of: datetime, settings: Mapping[str, Any],
    run_id: str, text_fields: str = "joined",
) -> dict[str, DataFrame]:  # fmt: skip
    """Table -> frame.

    Args:
        events: what asof.events gives for `as_of`.
        silver: items, users; relations and wishes, where the night reads any.
        settings: sequence_length and half_life_days; candidates, where lists ask who is linked; entities, where models
            know of them; rules, where there are any.
        text_fields: see windows.item_features.
    """
    users, left = (asof.users(silver["users"], as_of, here=here) for here in (True, False))
    theirs = events.join(left.select("user_id"), "user_id", "left_anti")  # who left gets no list
    wishes = asof.wishes(silver["wishes"], as_of) if "wishes" in silver else None
    social = None
    if "social" in (settings.get("candidates") or {}).get("generators", ()):
        edges = asof.edges(silver["relations"], as_of)
        social = sequences.social(theirs, edges, as_of, settings["candidates"])
    entities = asof.entities(silver["relations"], as_of) if settings.get("entities") else None
    return {
        "gold.user_sequences": sequences.user_sequences(
            theirs, users, run_date, as_of, settings["sequence_length"], run_id, wishes, social
        ),
        "gold.item_features": windows.item_features(
            events, asof.items(silver["items"], as_of), run_date, as_of, settings["half_life_days"], run_id,
            text_fields, attributes="rules" in settings, entities=entities,
        ),
    }  # fmt: skip
