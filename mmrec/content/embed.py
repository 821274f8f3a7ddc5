"""The embed step: content that has no vector yet gets one.

In: silver.items, bronze.media, encoders. Out: new rows of gold.item_embeddings, one a content and encoder
version; refusals, missing media and items without any content in ops.quarantine, one row an item, so that a shop can
mend its picture.
Trade-off: a refused content is cached as refused, so a broken picture is looked at once, not every night.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.content.encoders import Encoder
from mmrec.lake.commit import fence, work_id, write
from mmrec.lake.store import Lake

_BATCH = 512  # contents encoded between two commits' worth of progress
_COMMIT = 4096  # contents a commit


def embed(
    lake: Lake,
    encoders: Sequence[Encoder],
    *,
    run_id: str,
    text_of: Callable[[dict[str, Any]], str | None],
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, int]:
    """Encode what is new.

    Args:
        encoders: at most one a modality.
        text_of: silver.items row -> the text that is encoded, the one features hash; None: it has none.
        progress: called with (modality, done, of).

    Returns: counts: per modality new contents and refused ones; missing media.
    """
    columns = ["item_id", "title", "categories", "text", "image", "image_sha256", "audio", "audio_sha256", "source",
               "row_hash"]  # fmt: skip
    items = lake.arrow("silver.items", columns=columns).to_pylist()
    counts: Counter[str] = Counter()
    refused: dict[tuple[str, str], str] = {}
    for encoder in encoders:
        contents = _contents(items, encoder.modality, text_of)
        have = lake.arrow(
            "gold.item_embeddings",
            columns=["content_sha256", "refused"],
            where=ds.field("encoder_version") == encoder.version,
        )
        known = dict(zip(have.column(0).to_pylist(), have.column(1).to_pylist(), strict=True))
        refused |= {(encoder.modality, sha): why for sha, why in known.items() if why}
        todo = sorted(sha for sha in contents if sha not in known)
        counts[f"{encoder.modality}_new"] = len(todo)
        done = 0
        queue = iter(todo)
        while chunk := list(islice(queue, _COMMIT)):
            pinned = fence(lake, "gold.item_embeddings")
            rows = []
            for shas, raw in _media(lake, encoder.modality, chunk, contents):
                vectors, reasons = encoder.encode(raw)
                finite = np.isfinite(vectors).all(1)
                for sha, vector, why, ok in zip(shas, vectors, reasons, finite, strict=True):
                    why = why or (None if ok else "not_finite: the encoder gave no number")
                    rows.append({"content_sha256": sha, "encoder_version": encoder.version,
                                 "modality": encoder.modality, "dim": 0 if why else encoder.dim,
                                 "embedding": [] if why else vector, "refused": why})  # fmt: skip
                    if why:
                        refused[encoder.modality, sha] = why
                        counts[f"{encoder.modality}_refused"] += 1
                done += len(shas)
                if progress:
                    progress(encoder.modality, done, len(todo))
            table = pa.Table.from_pylist(rows, schema.table("gold.item_embeddings").arrow)
            work = work_id(run_id, encoder.version, chunk)
            write(lake, "gold.item_embeddings", table, run_id=work, pinned=pinned)
    bare = {row["row_hash"] for row in items if not (text_of(row) or row["image_sha256"] or row["audio_sha256"])}
    counts["quarantined"] = _quarantine(lake, items, {e.modality for e in encoders}, refused, bare, run_id)
    return dict(counts)


def _contents(
    items: list[dict[str, Any]], modality: str, text_of: Callable[[dict[str, Any]], str | None]
) -> dict[str, Any]:
    """Content hash -> the text itself, or None for media, whose bytes are read when needed."""
    if modality == "text":
        texts = (text_of(row) for row in items)
        return {hashlib.sha256(t.encode()).hexdigest(): t for t in texts if t}
    return {row[f"{modality}_sha256"]: None for row in items if row[f"{modality}_sha256"]}


def _media(
    lake: Lake, modality: str, shas: list[str], contents: dict[str, Any]
) -> Iterator[tuple[list[str], list[Any]]]:
    for start in range(0, len(shas), _BATCH):
        part = shas[start : start + _BATCH]
        if modality == "text":
            yield part, [contents[s] for s in part]
            continue
        found = lake.arrow("bronze.media", columns=["sha256", "bytes"], where=ds.field("sha256").isin(part))
        data = dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))
        yield part, [data[s] for s in part]


def _quarantine(
    lake: Lake,
    items: list[dict[str, Any]],
    modalities: set[str],
    refused: dict[tuple[str, str], str],
    bare: set[str],
    run_id: str,
) -> int:
    pinned = fence(lake, "ops.quarantine")
    have = lake.arrow("ops.quarantine", columns=["row_hash", "rule"], where=ds.field("table_name") == "bronze.media")
    known = set(zip(have.column(0).to_pylist(), have.column(1).to_pylist(), strict=True))
    found: list[tuple[dict[str, Any], str, str, str]] = []
    for row in items:
        if row["row_hash"] in bare:
            why = "an item without text, picture or sound: only behaviour can place it"
            found.append((row, "no_content", why, row["item_id"]))
        for modality in sorted(modalities & {"image", "audio"}):
            reference, sha = row[modality], row[f"{modality}_sha256"]
            if reference is None:
                continue
            why = "missing: the source has no such file" if sha is None else refused.get((modality, sha), "")
            if why:
                found.append((row, f"{modality}_{why.split(':')[0].strip().replace(' ', '_')}", why, reference))
    rows = [{"table_name": "bronze.media", "rule": rule, "reason": why[:200], "raw": raw, "source": row["source"],
             "file": raw, "line": 0, "row_hash": row["row_hash"], "occurrence": 0}
            for row, rule, why, raw in found if (row["row_hash"], rule) not in known]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema.table("ops.quarantine").arrow)
    work = work_id(run_id, [(r["row_hash"], r["rule"]) for r in rows])
    return write(lake, "ops.quarantine", table, run_id=work, pinned=pinned).rows
