"""What sources delivered, as it came: every value a string, nothing rejected.

In: nothing. Out: `BRONZE`. Trade-off: a row costs its text twice (here, and typed in silver); it can be replayed.
"""

from __future__ import annotations

from mmrec.schema.kinds import Table
from mmrec.schema.kinds import column as _c
from mmrec.schema.rules import rule as _r

_TS, _STR, _STRS = "TIMESTAMP", "STRING", "ARRAY<STRING>"

# What each kind of source row carries, as strings; silver gives them their types. Hashes of media are ingest's.
_RAW: dict[str, tuple[str, ...]] = {
    "interactions": ("user_id", "item_id", "event_type", "event_ts", "weight", "context", "text"),
    "items": ("item_id", "valid_from", "withdrawn_at", "title", "text", "categories", "attributes", "image",
              "image_sha256", "images_sha256", "audio", "audio_sha256"),
    "users": ("user_id", "withdrawn_at", "attributes"),
    "relations": ("kind", "subject_id", "relation", "object_id"),
    "impressions": ("impression_id", "user_id", "item_id", "shown_at", "surface", "rank", "run_id", "arm",
                    "propensity"),
    "wishes": ("user_id", "wish", "field", "value", "wished_at", "withdrawn_at"),
}  # fmt: skip

_MADE = {"images_sha256": "of each picture that image lists, in order, null where it has no bytes; null: it lists none"}


def _bronze(kind: str) -> Table:
    return Table(
        f"bronze.{kind}",
        f"one delivered row of {kind}, as it came",
        f"Raw {kind}: every value a string, nothing rejected; silver is made from it.",
        "ingest",
        "append_new",
        ("row_hash", "occurrence"),
        (
            *(_c(n, _STR if n != "images_sha256" else _STRS, _MADE.get(n, "as delivered"), nullable=True)
              for n in _RAW[kind]),
            _c("available_at", _STR, "delivery time as the source gives it, ISO 8601 in UTC", nullable=True),
            _c("raw", _STR, "the row as text, where it could not be parsed or mends another", nullable=True),
            _c("parse_error", _STR, "why the row could not be parsed; null if it could", _r("parsed"), nullable=True),
            _c("source", _STR, "name of the source"),
            _c("file", _STR, "file within the source"),
            _c("line", "BIGINT", "line or record number within the file, from 1"),
            _c("row_hash", _STR, "sha256 of the kind and the row's values, whatever file it came in"),
            _c("occurrence", "INT", "0 for the first such row within its file, 1 for the second, ...", _r("first")),
            _c("ingested_at", _TS, "wall clock of the ingest; no feature reads it", meta=True),
        ),
        {"occurrence_from_0": "occurrence >= 0", "line_from_1": "line >= 1"},
    )


BRONZE = (
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
            _c("layout", _STR, "column -> shape of its values, JSON; null where not known", nullable=True),
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
)  # fmt: skip
