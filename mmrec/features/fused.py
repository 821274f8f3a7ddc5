"""The frames of a night's features, from the silver tables it pinned.

In: events and frames of silver tables, a moment, the night's settings. Out: frames of gold.user_sequences,
gold.item_features and gold.user_profiles.
Trade-off: nothing is computed here; each frame is computed where it is staged.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mmrec.features import asof, profiles, sequences, windows


def fused(
    events: DataFrame, silver: Mapping[str, DataFrame], run_date: date, as_of: datetime, settings: Mapping[str, Any],
    run_id: str, text_fields: str = "joined",
) -> dict[str, DataFrame]:  # fmt: skip
    """Table -> frame.

    Args:
        events: what asof.events gives for `as_of`.
        silver: items, users; relations and wishes, where the night reads any.
        settings: sequence_length and half_life_days; interests, where any are derived; candidates and second_stage,
            where they are on; entities, where models know of them; rules, where there are any.
        text_fields: see windows.item_features.
    """
    users = asof.users(silver["users"], as_of, everyone=True)
    wishes = asof.wishes(silver["wishes"], as_of) if "wishes" in silver else None
    social, asked = None, asked_social(settings)
    if asked is not None:
        left = users.where(F.col("left")).select("user_id")  # what they had is no hint for those they were linked to
        theirs = events.join(left, "user_id", "left_anti")
        social = sequences.social(theirs, asof.edges(silver["relations"], as_of), as_of, asked)
    entities = asof.entities(silver["relations"], as_of) if settings.get("entities") else None
    made = {
        "gold.user_sequences": sequences.user_sequences(
            events, users, run_date, as_of, settings["sequence_length"], run_id, wishes, social,
            bool(asked_about(settings)),
        ),
        "gold.item_features": windows.item_features(
            events, asof.items(silver["items"], as_of), run_date, as_of, settings["half_life_days"], run_id,
            text_fields, attributes="rules" in settings, entities=entities,
        ),
    }  # fmt: skip
    if settings.get("interests"):
        known = asof.items(silver["items"], as_of, on_offer=False)
        made["gold.user_profiles"] = profiles.user_profiles(
            events, users, known, run_date, settings["interests"], run_id, entities
        )
    return made


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
