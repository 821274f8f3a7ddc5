"""Rows that kept every rule, with types, one a delivery; and what content alone says of the catalogue.

In: nothing. Out: `SILVER`. A column's rules stand beside it: another one is a word more in its line.
Trade-off: history is kept, so readers go through features/asof.py.
"""

from __future__ import annotations

from mmrec.schema.kinds import Column, Table
from mmrec.schema.kinds import column as _c
from mmrec.schema.rules import rule as _r

_TS, _STR = "TIMESTAMP", "STRING"
_GIVEN, _TIME, _DATED, _IN_RANGE = _r("not_blank"), _r("moment"), _r("dated"), _r("in_range")
_NUMBER, _OBJECT, _ITEM = _r("number"), _r("object"), _r("known", "silver.items")

def _origin() -> tuple[Column, ...]:
    return (
        _c("source", _STR, "name of the source"),
        _c("row_hash", _STR, "the bronze row this one was made from"),
    )


SILVER = (
    Table(
        "silver.interactions", "one delivery of one user's event on one item",
        "Checked interactions. A later delivery of the same event is a correction: read through the as-of "
        "reader, which keeps one row an event.",
        "validate", "append_new", ("row_hash",),
        (
            _c("user_id", _STR, "external user id", _GIVEN),
            _c("item_id", _STR, "external item id, known in silver.items", _GIVEN, _ITEM),
            _c("event_type", _STR, "view, click, purchase, rating, tag, ...", _GIVEN),
            _c("event_ts", _TS, "when it happened, UTC", _GIVEN, _TIME, _IN_RANGE),
            _c("available_at", _TS, "when the source delivered it, UTC; event_ts where it has none", _TIME, _IN_RANGE,
               stand_in="event_ts"),
            _c("weight", "DOUBLE", "strength as the source gives it: a rating, a quantity, else 1", _NUMBER, default=1),
            _c("context", _STR, "JSON object, keys sorted: device, place, surface, ...", _OBJECT, default="{}"),
            _c("text", _STR, "the user's own words: review, comment, tag", nullable=True),
            *_origin(),
        ),
        {"user_named": "user_id <> ''", "item_named": "item_id <> ''", "event_named": "event_type <> ''",
         "weight_is_number": "NOT isnan(weight)"},
    ),
    Table(
        "silver.items", "one version of one item", "The catalogue's history, read through the as-of reader.",
        "validate", "append_new", ("row_hash",),
        (
            _c("item_id", _STR, "external item id", _GIVEN),
            _c("available_at", _TS, "when the source delivered this version, UTC", _TIME, _DATED,
               stand_in="valid_from"),
            _c("valid_from", _TS, "from when the item is on offer, UTC", _TIME, stand_in="available_at"),
            _c("withdrawn_at", _TS, "from when it no longer is, UTC; null: still on offer", _TIME, nullable=True),
            _c("title", _STR, "display name, may be empty", default=""),
            _c("text", _STR, "description", nullable=True),
            _c("categories", "ARRAY<STRING>", "most important first", _r("names")),
            _c("attributes", _STR, "JSON object, keys sorted", _OBJECT, default="{}"),
            _c("image", _STR, "picture as the source names it; a JSON list of several", nullable=True),
            _c("image_sha256", _STR, "its bytes in bronze.media, of several the first found; null: none",
               nullable=True),
            _c("images_sha256", "ARRAY<STRING>",
               "of each picture that image lists, in order, null where not found; null: it lists none", nullable=True),
            _c("audio", _STR, "sound as the source names it", nullable=True),
            _c("audio_sha256", _STR, "its bytes in bronze.media; null: not found", nullable=True),
            *_origin(),
        ),
        {"item_named": "item_id <> ''"},
    ),
    Table(
        "silver.users", "one version of one user", "Known users and their attributes.",
        "validate", "append_new", ("row_hash",),
        (
            _c("user_id", _STR, "external user id", _GIVEN),
            _c("available_at", _TS, "when the source delivered this version, UTC", _TIME, _DATED),
            _c("withdrawn_at", _TS, "when the user left, UTC; null: still here", _TIME, nullable=True),
            _c("attributes", _STR, "JSON object, keys sorted: age band, country, ...", _OBJECT, default="{}"),
            *_origin(),
        ),
        {"user_named": "user_id <> ''"},
    ),
    Table(
        "silver.relations", "one delivery of one edge",
        "Knowledge triples (item, relation, entity) and social edges (user, relation, user).",
        "validate", "append_new", ("row_hash",),
        (
            _c("kind", _STR, "item: a knowledge triple; user: a social edge",
               _r("one_of", "item", "user", name="unknown_kind")),
            _c("subject_id", _STR, "item id or user id", _GIVEN),
            _c("relation", _STR, "genre, maker, follows, ...", _GIVEN),
            _c("object_id", _STR, "entity name or user id", _GIVEN),
            _c("available_at", _TS, "when the source delivered it, UTC", _TIME, _DATED),
            *_origin(),
        ),
        {"kind_known": "kind IN ('item', 'user')", "subject_named": "subject_id <> ''",
         "object_named": "object_id <> ''"},
    ),
    Table(
        "silver.impressions", "one item shown once to one user",
        "What was shown. What followed is the view impression_outcomes.",
        "validate", "append_new", ("row_hash",),
        (
            _c("impression_id", _STR, "the source's id of the showing", _GIVEN),
            _c("user_id", _STR, "external user id", _GIVEN),
            _c("item_id", _STR, "external item id", _GIVEN, _ITEM),
            _c("shown_at", _TS, "when, UTC", _GIVEN, _TIME, _IN_RANGE),
            _c("available_at", _TS, "when the source delivered it, UTC", _TIME, _IN_RANGE, stand_in="shown_at"),
            _c("surface", _STR, "page or placement", default=""),
            _c("rank", "INT", "position shown, 1 is best", _r("numeral"), _r("whole", 1, name="bad_rank")),
            _c("run_id", _STR, "the run whose slate it was; null: not from mmrec", nullable=True),
            _c("arm", _STR, "experiment arm", default="main"),
            _c("propensity", "DOUBLE", "probability with which the item got this place; null: unknown",
               _NUMBER, _r("within", 0, 1, name="bad_propensity"), nullable=True),
            *_origin(),
        ),
        {"rank_from_1": "rank >= 1", "propensity_is_share":
            "propensity IS NULL OR (propensity >= 0 AND propensity <= 1)"},
    ),
    Table(
        "silver.wishes", "one delivery of one user's wish",
        "What users themselves asked for: hidden items, less or more of something. A later delivery of the same field "
        "and value replaces the wish: read through the as-of reader.",
        "validate", "append_new", ("row_hash",),
        (
            _c("user_id", _STR, "external user id", _GIVEN),
            _c("wish", _STR, "hide: never; less; more", _r("one_of", "hide", "less", "more", name="unknown_wish")),
            _c("field", _STR, "what value is of: item, category, or the name of an item's attribute", default="item"),
            _c("value", _STR, "item id, category, or value of the attribute", _GIVEN),
            _c("wished_at", _TS, "when the user asked for it, UTC", _GIVEN, _TIME, _IN_RANGE),
            _c("withdrawn_at", _TS, "when the user took it back, UTC; null: it holds", _TIME, nullable=True),
            _c("available_at", _TS, "when the source delivered it, UTC", _TIME, _IN_RANGE, stand_in="wished_at"),
            *_origin(),
        ),
        {"wish_known": "wish IN ('hide', 'less', 'more')", "user_named": "user_id <> ''", "field_named": "field <> ''",
         "value_named": "value <> ''"},
    ),
    Table(
        "silver.item_groups", "one item that is listed twice or more",
        "Near-duplicates: items of one group are the same thing by content alone. A list offers one of them.",
        "embed", "replace_all", ("item_id",),
        (
            _c("item_id", _STR, "external item id"),
            _c("group_id", _STR, "the group's first item by id; every item of the group is like it"),
            _c("modalities", "ARRAY<STRING>", "in which it is like the first item: audio, image, text"),
            _c("similarity", "DOUBLE", "the least cosine of those; 1 where content is equal, and of the first item"),
        ),
        {"item_named": "item_id <> ''", "group_named": "group_id <> ''",
         "similarity_is_cosine": "similarity > 0 AND similarity <= 1"},
    ),
)  # fmt: skip
