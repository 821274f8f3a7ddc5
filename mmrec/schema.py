"""Every table mmrec owns: name, grain, columns, key, CHECKs, partition, write mode, owning step.

In: nothing. Out: `TABLES` and `table(name)`; Arrow schemas, Spark DDL, the data dictionary and the test
factories are derived from them, so a column exists here or nowhere.
Trade-off: column types are the few that Delta, Arrow, Spark, Sail and DuckDB all read the same way; nested
attributes are JSON strings with sorted keys rather than maps, because a map has no canonical order to hash.

Words used below: grain says what one row is; `meta` columns describe the run that wrote a row and are left
out of the content hash; retention is how long a pinned version stays readable.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pyarrow as pa

from mmrec.errors import InputError

Mode = Literal["replace_partition", "append_new", "replace_all"]

_ARROW: dict[str, pa.DataType] = {
    "STRING": pa.string(),
    "INT": pa.int32(),
    "BIGINT": pa.int64(),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "BINARY": pa.binary(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "ARRAY<STRING>": pa.list_(pa.string()),
    "ARRAY<BIGINT>": pa.list_(pa.int64()),
    "ARRAY<FLOAT>": pa.list_(pa.float32()),
}


@dataclass(frozen=True)
class Column:
    """One column. `type` is Spark DDL; `meta` marks run metadata, left out of the content hash."""

    name: str
    type: str
    comment: str
    nullable: bool = False
    meta: bool = False

    @property
    def arrow(self) -> pa.Field:
        return pa.field(self.name, _ARROW[self.type], self.nullable)


@dataclass(frozen=True)
class Table:
    """One table; `checks` maps a constraint's name to a SQL condition that every row meets."""

    name: str
    grain: str
    comment: str
    step: str
    mode: Mode
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    checks: dict[str, str] = field(default_factory=dict)
    partition: str | None = None
    retention_days: int = 3650

    @cached_property
    def arrow(self) -> pa.Schema:
        return pa.schema([c.arrow for c in self.columns])

    @property
    def ddl(self) -> str:
        """Spark DDL of the columns, without constraints."""
        return ", ".join(f"`{c.name}` {c.type}" for c in self.columns)

    @property
    def layer(self) -> str:
        return self.name.split(".")[0]

    @property
    def view(self) -> str:
        """The short name that `mmrec sql` gives it: bare for gold and silver, prefixed for the rest."""
        layer, name = self.name.split(".")
        return name if layer in ("silver", "gold") else f"{layer}_{name}"

    @property
    def content_columns(self) -> list[str]:
        return [c.name for c in self.columns if not c.meta]


def _c(name: str, type: str, comment: str, **flags: bool) -> Column:
    return Column(name, type, comment, **flags)


_TS, _STR = "TIMESTAMP", "STRING"

# What each kind of source row carries, as strings; silver gives them their types.
_RAW: dict[str, tuple[str, ...]] = {
    "interactions": ("user_id", "item_id", "event_type", "event_ts", "weight", "context", "text"),
    "items": ("item_id", "valid_from", "withdrawn_at", "title", "text", "categories", "attributes", "image",
              "image_sha256", "audio", "audio_sha256"),
    "users": ("user_id", "withdrawn_at", "attributes"),
    "relations": ("kind", "subject_id", "relation", "object_id"),
    "impressions": ("impression_id", "user_id", "item_id", "shown_at", "surface", "rank", "run_id", "arm",
                    "propensity"),
}  # fmt: skip


def _bronze(kind: str) -> Table:
    return Table(
        f"bronze.{kind}",
        f"one delivered row of {kind}, as it came",
        f"Raw {kind}: every value a string, nothing rejected; silver is made from it.",
        "ingest",
        "append_new",
        ("row_hash", "occurrence"),
        (
            *(_c(n, _STR, "as delivered", nullable=True) for n in _RAW[kind]),
            _c("available_at", _STR, "delivery time as the source gives it, ISO 8601 in UTC", nullable=True),
            _c("raw", _STR, "the row as text, kept where it could not be parsed", nullable=True),
            _c("parse_error", _STR, "why the row could not be parsed; null if it could", nullable=True),
            _c("source", _STR, "name of the source"),
            _c("file", _STR, "file within the source"),
            _c("line", "BIGINT", "line or record number within the file, from 1"),
            _c("row_hash", _STR, "sha256 of the kind and the row's values, whatever file it came in"),
            _c("occurrence", "INT", "0 for the first such row within its file, 1 for the second, ..."),
            _c("ingested_at", _TS, "wall clock of the ingest; no feature reads it", meta=True),
        ),
        {"occurrence_from_0": "occurrence >= 0", "line_from_1": "line >= 1"},
    )


def _origin() -> tuple[Column, ...]:
    return (
        _c("source", _STR, "name of the source"),
        _c("row_hash", _STR, "the bronze row this one was made from"),
    )


_LIST = (
    _c("user_id", _STR, "external user id"),
    _c("rank", "INT", "position in the slate, 1 is best"),
    _c("item_id", _STR, "external item id"),
)

_ALL = (
    *(_bronze(kind) for kind in _RAW),
    Table(
        "bronze.files", "one delivered file at one content", "What ingest has read, so that it reads it once.",
        "ingest", "append_new", ("source", "file", "kind", "sha256"),
        (
            _c("source", _STR, "name of the source"),
            _c("file", _STR, "path within the source"),
            _c("sha256", _STR, "of the file's bytes"),
            _c("kind", _STR, "what the rows are"),
            _c("bytes", "BIGINT", "size in bytes"),
            _c("rows", "BIGINT", "rows read, malformed ones included"),
            _c("new_rows", "BIGINT", "rows not seen in an earlier delivery"),
            _c("ingested_at", _TS, "wall clock of the ingest", meta=True),
        ),
        {"rows_from_0": "rows >= 0"},
    ),
    Table(
        "bronze.media", "one distinct picture or sound", "Media bytes by content hash, equal content once.",
        "ingest", "append_new", ("sha256",),
        (
            _c("sha256", _STR, "of the bytes"),
            _c("modality", _STR, "image or audio, as the source says"),
            _c("bytes", "BINARY", "the file as delivered, unchecked"),
            _c("source", _STR, "name of the source"),
            _c("uri", _STR, "where it was first found within the source"),
        ),
        {"modality_known": "modality IN ('image', 'audio')"},
    ),
    Table(
        "silver.interactions", "one delivery of one user's event on one item",
        "Checked interactions. A later delivery of the same event is a correction: read through the as-of "
        "reader, which keeps one row an event.",
        "validate", "append_new", ("row_hash",),
        (
            _c("user_id", _STR, "external user id"),
            _c("item_id", _STR, "external item id, known in silver.items"),
            _c("event_type", _STR, "view, click, purchase, rating, tag, ..."),
            _c("event_ts", _TS, "when it happened, UTC"),
            _c("available_at", _TS, "when the source delivered it, UTC; event_ts where it has none"),
            _c("weight", "DOUBLE", "strength as the source gives it: a rating, a quantity, else 1"),
            _c("context", _STR, "JSON object, keys sorted: device, place, surface, ..."),
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
            _c("item_id", _STR, "external item id"),
            _c("available_at", _TS, "when the source delivered this version, UTC"),
            _c("valid_from", _TS, "from when the item is on offer, UTC"),
            _c("withdrawn_at", _TS, "from when it no longer is, UTC; null: still on offer", nullable=True),
            _c("title", _STR, "display name, may be empty"),
            _c("text", _STR, "description", nullable=True),
            _c("categories", "ARRAY<STRING>", "most important first"),
            _c("attributes", _STR, "JSON object, keys sorted"),
            _c("image", _STR, "picture as the source names it", nullable=True),
            _c("image_sha256", _STR, "its bytes in bronze.media; null: not found", nullable=True),
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
            _c("user_id", _STR, "external user id"),
            _c("available_at", _TS, "when the source delivered this version, UTC"),
            _c("withdrawn_at", _TS, "when the user left, UTC; null: still here", nullable=True),
            _c("attributes", _STR, "JSON object, keys sorted: age band, country, ..."),
            *_origin(),
        ),
        {"user_named": "user_id <> ''"},
    ),
    Table(
        "silver.relations", "one delivery of one edge",
        "Knowledge triples (item, relation, entity) and social edges (user, relation, user).",
        "validate", "append_new", ("row_hash",),
        (
            _c("kind", _STR, "item: a knowledge triple; user: a social edge"),
            _c("subject_id", _STR, "item id or user id"),
            _c("relation", _STR, "genre, maker, follows, ..."),
            _c("object_id", _STR, "entity name or user id"),
            _c("available_at", _TS, "when the source delivered it, UTC"),
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
            _c("impression_id", _STR, "the source's id of the showing"),
            _c("user_id", _STR, "external user id"),
            _c("item_id", _STR, "external item id"),
            _c("shown_at", _TS, "when, UTC"),
            _c("available_at", _TS, "when the source delivered it, UTC"),
            _c("surface", _STR, "page or placement"),
            _c("rank", "INT", "position shown, 1 is best"),
            _c("run_id", _STR, "the run whose slate it was; null: not from mmrec", nullable=True),
            _c("arm", _STR, "experiment arm"),
            _c("propensity", "DOUBLE", "probability with which the item got this place; null: unknown",
               nullable=True),
            *_origin(),
        ),
        {"rank_from_1": "rank >= 1", "propensity_is_share":
            "propensity IS NULL OR (propensity >= 0 AND propensity <= 1)"},
    ),
    Table(
        "gold.item_embeddings", "one content at one encoder version", "Embedding cache, by content hash.",
        "embed", "append_new", ("content_sha256", "encoder_version"),
        (
            _c("content_sha256", _STR, "of the media bytes, or of the text in UTF-8"),
            _c("encoder_version", _STR, "names weights, preprocessing and dtype"),
            _c("modality", _STR, "text, image or audio"),
            _c("dim", "INT", "length of the vector; 0 where the content was refused"),
            _c("embedding", "ARRAY<FLOAT>", "the vector; empty where the content was refused"),
            _c("refused", _STR, "why it could not be encoded; null if it could", nullable=True),
        ),
        {"modality_known": "modality IN ('text', 'image', 'audio')", "dim_from_0": "dim >= 0"},
    ),
    Table(
        "gold.user_sequences", "one user as of one run_date",
        "A user's last interactions in time order, whole-history seen items, and windowed counts.",
        "features", "replace_partition", ("run_date", "user_id"),
        (
            _c("run_date", "DATE", "the day the features are made for"),
            _c("user_id", _STR, "external user id"),
            _c("item_ids", "ARRAY<STRING>", "the last items, oldest first"),
            _c("event_types", "ARRAY<STRING>", "their event types"),
            _c("event_us", "ARRAY<BIGINT>", "their times, microseconds UTC since 1970"),
            _c("gap_s", "ARRAY<BIGINT>", "seconds to the next one, of the last one to as_of"),
            _c("weight_micro", "ARRAY<BIGINT>", "their weights in millionths"),
            _c("seen_item_ids", "ARRAY<STRING>", "every item of the whole history, ascending"),
            _c("n_interactions", "BIGINT", "events in the whole history"),
            _c("n_7d", "BIGINT", "events in the 7 days before as_of"),
            _c("n_30d", "BIGINT", "events in the 30 days before as_of"),
            _c("n_90d", "BIGINT", "events in the 90 days before as_of"),
            _c("attributes", _STR, "the user's attributes as of run_date, JSON"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"user_named": "user_id <> ''", "counts": "n_7d >= 0 AND n_7d <= n_30d AND n_30d <= n_90d"},
        partition="run_date", retention_days=400,
    ),
    Table(
        "gold.item_features", "one item on offer as of one run_date",
        "Behaviour counts beside references to content: the fusion of both.",
        "features", "replace_partition", ("run_date", "item_id"),
        (
            _c("run_date", "DATE", "the day the features are made for"),
            _c("item_id", _STR, "external item id"),
            _c("title", _STR, "display name as of run_date"),
            _c("categories", "ARRAY<STRING>", "most important first"),
            _c("text_sha256", _STR, "content key of title, categories and text", nullable=True),
            _c("image_sha256", _STR, "content key of the picture", nullable=True),
            _c("audio_sha256", _STR, "content key of the sound", nullable=True),
            _c("n_interactions", "BIGINT", "events in the whole history"),
            _c("n_users", "BIGINT", "distinct users in the whole history"),
            _c("n_7d", "BIGINT", "events in the 7 days before as_of"),
            _c("n_30d", "BIGINT", "events in the 30 days before as_of"),
            _c("n_90d", "BIGINT", "events in the 90 days before as_of"),
            _c("popularity_micro", "BIGINT",
               "decayed count of users' latest events, millionths: each halves every half-life"),
            _c("available_us", "BIGINT", "valid_from, microseconds UTC since 1970"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"item_named": "item_id <> ''", "counts": "n_7d >= 0 AND n_7d <= n_30d AND n_30d <= n_90d",
         "popularity_from_0": "popularity_micro >= 0"},
        partition="run_date", retention_days=400,
    ),
    Table(
        "gold.user_vectors", "one user as of one run_date and model", "User vectors the slates were scored with.",
        "recommend", "replace_partition", ("run_date", "user_id"),
        (
            _c("run_date", "DATE", "the day the list is for"),
            _c("user_id", _STR, "external user id"),
            _c("vector", "ARRAY<FLOAT>", "user side of the dot product"),
            _c("model_version", _STR, "bundle that made it"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"user_named": "user_id <> ''"},
        partition="run_date", retention_days=90,
    ),
    Table(
        "gold.recommendations", "one place of one user's slate on one day",
        "The nightly lists. The greatest run_date is the view latest_recommendations.",
        "publish", "replace_partition", ("run_date", "arm", "user_id", "rank"),
        (
            _c("run_date", "DATE", "the shop's local day the list is for"),
            _c("arm", _STR, "experiment arm, main where none runs"),
            *_LIST,
            _c("score", "FLOAT", "what the list is ordered by, comparable within one user and source"),
            _c("source", _STR, "model, or fallback:popularity"),
            _c("reason", _STR, "why it is there, in words for the user"),
            _c("propensity", "DOUBLE", "probability with which the item got this place"),
            _c("model_version", _STR, "bundle that scored it"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"rank_from_1": "rank >= 1", "score_is_number": "NOT isnan(score)",
         "propensity_is_share": "propensity > 0 AND propensity <= 1", "user_named": "user_id <> ''",
         "item_named": "item_id <> ''"},
        partition="run_date", retention_days=400,
    ),
    Table(
        "ops.quarantine", "one rule that one row broke",
        "What was kept out, why, and the row itself. A row that is mended later stays on record here.",
        "validate", "append_new", ("table_name", "row_hash", "occurrence", "rule"),
        (
            _c("table_name", _STR, "bronze table of the row, or bronze.media"),
            _c("rule", _STR, "name of the rule"),
            _c("reason", _STR, "what was wrong, with the value"),
            _c("raw", _STR, "the row as JSON, or its text"),
            _c("source", _STR, "name of the source"),
            _c("file", _STR, "file within the source"),
            _c("line", "BIGINT", "line within the file, 0 where there is none"),
            _c("row_hash", _STR, "key of the row in its bronze table"),
            _c("occurrence", "INT", "key of the row in its bronze table"),
        ),
        {"rule_named": "rule <> ''"},
    ),
    Table(
        "ops.runs", "one run", "Every night that ran: its manifest, outcome and content hash.",
        "publish", "append_new", ("run_id",),
        (
            _c("run_id", _STR, "digest of the manifest"),
            _c("run_date", "DATE", "the day the lists are for"),
            _c("manifest", _STR, "what the run read, JSON"),
            _c("content_hash", _STR, "sha256 over gold.recommendations of the day, metadata left out"),
            _c("model_version", _STR, "champion of the run"),
            _c("users", "BIGINT", "users with a list"),
            _c("rows", "BIGINT", "rows published"),
            _c("table_version", "BIGINT", "version of gold.recommendations the commit made"),
            _c("finished_at", _TS, "wall clock", meta=True),
        ),
        {"rows_from_1": "rows >= 1"},
    ),
    Table(
        "ops.metrics", "one number", "Offline metrics of models, and counts of nights.",
        "monitor", "append_new", ("run_date", "model_version", "model", "protocol", "split", "slice", "metric"),
        (
            _c("run_date", "DATE", "the day it was measured for"),
            _c("model_version", _STR, "bundle, or night for counts of a night"),
            _c("model", _STR, "champion, popularity, item_knn, ease, content_nn, oracle, ..."),
            _c("protocol", _STR, "rolling, per_user, night"),
            _c("split", _STR, "validation or test; none for counts"),
            _c("slice", _STR, "all, cold_items, cold_users, missing_image, without_text, ..."),
            _c("metric", _STR, "recall@10, ndcg@10, ..."),
            _c("value", "DOUBLE", "mean over users"),
            _c("n", "BIGINT", "cases it is the mean of"),
            _c("lo", "DOUBLE", "95% interval by user bootstrap; null where none was asked", nullable=True),
            _c("hi", "DOUBLE", "95% interval by user bootstrap; null where none was asked", nullable=True),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"value_is_number": "NOT isnan(value)"},
    ),
    Table(
        "ops.freshness", "one table at one run_date", "How old each night's inputs were.",
        "monitor", "replace_partition", ("run_date", "table_name"),
        (
            _c("run_date", "DATE", "the night"),
            _c("table_name", _STR, "input table"),
            _c("version", "BIGINT", "version the night read"),
            _c("rows", "BIGINT", "rows available as of run_date"),
            _c("latest_available_at", _TS, "newest delivery as of run_date", nullable=True),
            _c("age_hours", "DOUBLE", "as_of less the newest delivery", nullable=True),
            _c("stale", "BOOLEAN", "older than config allows"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        partition="run_date",
    ),
    Table(
        "ops.promotions", "one decision of the gate", "Who became champion or was held, and the numbers.",
        "promote", "append_new", ("model_version", "decided_for"),
        (
            _c("model_version", _STR, "the challenger"),
            _c("decided_for", "DATE", "run_date of the decision"),
            _c("decision", _STR, "promoted or held"),
            _c("reason", _STR, "every rule and its numbers, in words"),
            _c("champion_before", _STR, "the champion it met"),
            _c("numbers", _STR, "JSON of the metrics compared"),
            _c("decided_at", _TS, "wall clock", meta=True),
        ),
        {"decision_known": "decision IN ('promoted', 'held')"},
    ),
)  # fmt: skip

TABLES: dict[str, Table] = {t.name: t for t in _ALL}


def table(name: str) -> Table:
    """The table called `name` ("gold.recommendations"); InputError names the tables there are."""
    try:
        return TABLES[name]
    except KeyError:
        raise InputError(
            "no such table", where="schema", value=name, valid=sorted(TABLES), next="mmrec tables"
        ) from None


def features_fingerprint() -> str:
    """Digest of the definitions that training and scoring share: names and types of the feature tables."""
    shared = [table(n).ddl for n in ("gold.user_sequences", "gold.item_features", "gold.item_embeddings")]
    return hashlib.sha256("|".join(shared).encode()).hexdigest()[:16]
