"""Ingest: what a source delivered goes into bronze, once.

In: a `Source`. Out: new rows of bronze.<kind>, bronze.media, bronze.files; every value as it came.
A file is read again only when its bytes changed; of a file that grew, only the rows that are new are added,
because a row is known by its own hash and its count within the file.
Trade-off: a changed file is parsed whole to find its new rows; the hashes of all known rows are held in
memory (100 bytes a row), which a shop with 10^8 rows replaces by dated files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import named, schema
from mmrec.errors import QualityError
from mmrec.files import is_url
from mmrec.lake import evolve
from mmrec.lake.commit import fence, work_id, write
from mmrec.lake.store import Lake
from mmrec.worlds import drift
from mmrec.worlds.remote import Fetch, Nowhere, Remote
from mmrec.worlds.sources import Delivery, Source, row_hash

_KINDS = ("items", "users", "interactions", "relations", "impressions", "wishes")
_NEW_COLUMNS = 100  # of a delivery, that are recorded


def ingest(
    lake: Lake,
    source: Source,
    *,
    min_share: float = 0.0,
    gone: tuple[str, ...] = (),
    fetch: Fetch | None = None,
    now: datetime | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, int]:
    """Read every delivery of `source` that is not in bronze yet.

    Args:
        min_share: a delivery with fewer rows than this share of the median delivery of its kind is collapsed.
        gone: columns that the source delivers no more, as "items.text"; see drift.py.
        fetch: gets media that are named by URL, also those that an earlier night missed; None: no host is allowed.
        now: wall clock to stamp (default: the clock); metadata only.
        progress: called with (file, rows).

    Returns: counts: files, rows (read from new files), and new rows per kind, media; new_columns: columns of files that
        no table has, recorded in ops.schema_changes; mended: items whose medium an earlier night could not get;
        quarantined: items' media by URL that did not come, and why.

    Raises:
        QualityError: a delivery is empty, collapsed or has drifted; nothing of it was kept.
    """
    stamp = now or datetime.now(UTC)
    counts: Counter[str] = Counter()
    run_id = "ingest-" + hashlib.sha256(source.name.encode()).hexdigest()[:8]
    pinned = {k: fence(lake, f"bronze.{k}") for k in (*_KINDS, "files", "media")}
    files = lake.arrow("bronze.files").to_pylist()
    known_files = {(f["source"], f["file"], f["kind"], f["sha256"]) for f in files}
    known_media = set(lake.arrow("bronze.media", columns=["sha256"]).column("sha256").to_pylist())
    media = _Media(source, known_media)
    ledger: list[dict[str, Any]] = []
    fresh: dict[str, list[pa.Table]] = {}
    strange: list[dict[str, Any]] = []
    deliveries = [(d, _file_sha256(d)) for d in source.deliveries()]
    if not deliveries:
        raise QualityError(
            "the source has delivered nothing",
            where=f"source {source.name}",
            value="no file",
            valid="dated folders, or files that mmrec-source.toml names (docs/sources.md)",
            next="mmrec ingest --date D, when there are some",
        )
    for kind in _KINDS:
        todo = [
            (d, sha) for d, sha in deliveries if d.kind == kind and (source.name, d.file, kind, sha) not in known_files
        ]
        known = _known(lake, f"bronze.{kind}") if todo else set()
        told = [f["ingested_at"] for f in files if (f["source"], f["kind"]) == (source.name, kind)
                and not f["file"].startswith("repair/")]  # fmt: skip
        left = _left(lake, f"bronze.{kind}", source.name, max(told, default=None)) if todo else set()
        earlier = [f["layout"] for f in sorted(files, key=lambda f: (f["ingested_at"], f["file"]))
                   if (f["source"], f["kind"]) == (source.name, kind) and f["layout"]]  # fmt: skip
        for delivery, sha in todo:
            drift.readable(delivery.file, delivery.path)
            waited = len(left)
            rows, table = _read(delivery, kind, source.name, known, left, stamp, media)
            new_rows = table.num_rows + waited - len(left)
            if delivery.layout:
                new = drift.new_columns(delivery.layout, delivery.file, earlier, gone)
                strange += _unknown(lake, source.name, kind, new)
            usual = [f["rows"] for f in files if f["kind"] == kind and not f["file"].startswith("repair/")]
            _collapsed(delivery, rows, usual, min_share)
            fresh.setdefault(kind, []).append(table)
            ledger.append({"source": source.name, "file": delivery.file, "sha256": sha, "kind": kind,
                           "bytes": delivery.path.stat().st_size, "rows": rows, "new_rows": new_rows,
                           "layout": delivery.layout.to_json() if delivery.layout else None,
                           "ingested_at": stamp})  # fmt: skip
            counts["files"] += 1
            counts["rows"] += rows
            counts[kind] += new_rows
            if progress:
                progress(delivery.file, rows)
    run_id = work_id(run_id, [(f["file"], f["kind"], f["sha256"]) for f in ledger])
    if recorded := evolve.record(lake, {(r["table_name"], r["column_name"]): r for r in strange}.values(), stamp):
        counts["new_columns"] = recorded
    # media first: an item row in bronze then always finds its bytes
    done = write(lake, "bronze.media", media.table(), run_id=run_id, pinned=pinned["media"])
    counts["media"] = done.rows
    remote = Remote(lake, source.name, fetch or Nowhere(), run_id, pinned["media"] + done.changed, known_media)
    if "items" in fresh:
        fresh["items"] = [remote.filled(table) for table in fresh["items"]]
    if fetch and (came := remote.mended(stamp)):
        rows_of, entry = came
        fresh.setdefault("items", []).append(rows_of)
        ledger.append(entry)
        run_id = work_id(run_id, entry["sha256"])
        counts["mended"] = rows_of.num_rows
    counts["media"] += remote.count
    if told_of := remote.tell():
        counts["quarantined"] = told_of
    for kind, tables in fresh.items():
        write(lake, f"bronze.{kind}", pa.concat_tables(tables), run_id=run_id, pinned=pinned[kind])
    t = schema.table("bronze.files")
    # last: a kill before this line only means that the files are looked at again, and add nothing
    write(lake, "bronze.files", pa.Table.from_pylist(ledger, t.arrow), run_id=run_id, pinned=pinned["files"])
    return dict(counts)


def _unknown(lake: Lake, source: str, kind: str, new: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of ops.schema_changes about columns that no table has."""
    version = lake.version(f"bronze.{kind}")
    # a name that can't be stored is told as far as it can; keys that are data would be a row each without an end
    about = {"source": source, "table_name": f"bronze.{kind}", "change": "source_column", "before": ""}
    return [about | {"column_name": name.encode(errors="replace").decode(), "after": shape, "table_version": version}
            for name, shape in sorted(new.items())[:_NEW_COLUMNS]]  # fmt: skip


class _Media:
    """Bytes that item rows name, each content once."""

    def __init__(self, source: Source, known: set[str]) -> None:
        self.source, self.known = source, known
        self.rows: list[dict[str, Any]] = []

    def of(self, text: str | None, modality: str) -> list[str | None]:
        """Hashes of what a row names in its column `modality`; None where there are no bytes."""
        return [self._sha256(reference, modality) for reference in named.references(modality, text)]

    def _sha256(self, reference: str, modality: str) -> str | None:
        if is_url(reference):  # they are asked for when every delivery has been judged
            return None
        data = self.source.media(reference)
        if data is None:
            return None
        sha = hashlib.sha256(data).hexdigest()
        if sha not in self.known:
            self.known.add(sha)
            self.rows.append({"sha256": sha, "modality": modality, "bytes": data, "source": self.source.name,
                              "uri": reference})  # fmt: skip
        return sha

    def table(self) -> pa.Table:
        rows, self.rows = self.rows, []
        return pa.Table.from_pylist(rows, schema.table("bronze.media").arrow)


def _known(lake: Lake, name: str) -> set[tuple[str, int]]:
    rows = lake.arrow(name, columns=["row_hash", "occurrence"])
    return set(zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True))


def _left(lake: Lake, name: str, source: str, since: datetime | None) -> set[tuple[str, int]]:
    """Rows of an ingest that died before its files got on the ledger: to the ledger they are new."""
    where = ds.field("source") == source
    if since is not None:
        where &= ds.field("ingested_at") > since
    rows = lake.arrow(name, columns=["row_hash", "occurrence", "file"], where=where).to_pylist()
    return {(r["row_hash"], r["occurrence"]) for r in rows if not r["file"].startswith("repair/")}


def _read(
    delivery: Delivery, kind: str, source: str, known: set[tuple[str, int]], left: set[tuple[str, int]],
    stamp: datetime, media: _Media,
) -> tuple[int, pa.Table]:  # fmt: skip
    t = schema.table(f"bronze.{kind}")
    raw = [c.name for c in t.columns[: t.arrow.get_field_index("available_at")]]
    hashed = [n for n in raw if not n.endswith("_sha256")] + ["available_at", "raw", "parse_error"]
    seen: Counter[str] = Counter()
    rows = 0
    tables = [t.arrow.empty_table()]
    for batch in delivery.read():
        rows += batch.num_rows
        columns = {n: batch.column(n).to_pylist() for n in hashed if n in batch.schema.names}
        if delivery.available_at is not None:
            own = columns.get("available_at") or [None] * batch.num_rows
            columns["available_at"] = [v or delivery.available_at.isoformat() for v in own]
        none: list[Any] = [None] * batch.num_rows
        values = list(zip(*(columns.get(n, none) for n in hashed), strict=True))
        hashes = [row_hash(kind, v) for v in values]
        keep, occurrences = [], []
        for i, h in enumerate(hashes):
            n = seen[h]
            seen[h] += 1
            if (h, n) not in known:
                known.add((h, n))
                keep.append(i)
                occurrences.append(n)
            else:
                left.discard((h, n))
        lines = batch.column("line").to_pylist()
        out: dict[str, list[Any]] = {n: [columns.get(n, none)[i] for i in keep] for n in hashed}
        if kind == "items":
            for m, columns_of in named.COLUMNS.items():
                found = [named.hashes(m, media.of(text, m)) for text in out[m]]
                out |= {c: [h[c] for h in found] for c in columns_of}
        out |= {"source": [source] * len(keep), "file": [delivery.file] * len(keep), "line": [lines[i] for i in keep],
                "row_hash": [hashes[i] for i in keep], "occurrence": occurrences,
                "ingested_at": [stamp] * len(keep)}  # fmt: skip
        tables.append(pa.table({n: pa.array(out[n], t.arrow.field(n).type) for n in t.arrow.names}, schema=t.arrow))
    return rows, pa.concat_tables(tables)


def _file_sha256(delivery: Delivery) -> str:
    with delivery.path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _collapsed(delivery: Delivery, rows: int, before: list[int], min_share: float) -> None:
    if delivery.kind != "interactions":
        return
    if rows == 0:
        raise QualityError(
            "a delivery is empty",
            where=delivery.file,
            value=0,
            valid="at least one row",
            next="deliver the file again, then mmrec ingest",
        )
    # a bulk history and daily files differ by design: the median of at least three is the measure
    usual = sorted(before)[len(before) // 2] if len(before) >= 3 else 0
    if rows < min_share * usual:
        raise QualityError(
            "a delivery collapsed",
            where=delivery.file,
            value=rows,
            valid=f"at least {min_share:.0%} of the usual {usual} rows",
            next="deliver the file again, or lower source.min_share in mmrec.toml",
        )
