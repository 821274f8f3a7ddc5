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
        settings: sequence_length and half_life_days; candidates and second_stage, where they are on; entities, where
            models know of them; rules, where there are any.
        text_fields: see windows.item_features.
    """
    users, left = (asof.users(silver["users"], as_of, here=here) for here in (True, False))
    theirs = events.join(left.select("user_id"), "user_id", "left_anti")  # who left gets no list
    wishes = asof.wishes(silver["wishes"], as_of) if "wishes" in silver else None
    social, asked = None, asked_social(settings)
    if asked is not None:
        social = sequences.social(theirs, asof.edges(silver["relations"], as_of), as_of, asked)
    entities = asof.entities(silver["relations"], as_of) if settings.get("entities") else None
    return {
        "gold.user_sequences": sequences.user_sequences(
            theirs, users, run_date, as_of, settings["sequence_length"], run_id, wishes, social,
            bool(asked_about(settings)),
        ),
        "gold.item_features": windows.item_features(
            events, asof.items(silver["items"], as_of), run_date, as_of, settings["half_life_days"], run_id,
            text_fields, attributes="rules" in settings, entities=entities,
        ),
    }  # fmt: skip


def asked_social(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """social_days and depth of what friends had, where a generator or the second stage asks for it; None: none does."""
    candidates, stage = settings.get("candidates") or {}, settings.get("second_stage") or {}
    if "social" in candidates.get("generators", ()):
        return candidates
    return stage["social"] if "social" in stage.get("sources", ()) else None


def asked_about(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns of events that tell of the user, where the second stage looks at them."""
    asked = (settings.get("second_stage") or {}).get("sources", ())
    return ("context", "text") if {"context", "reviews", "columns"} & set(asked) else ()
