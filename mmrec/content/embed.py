"""The embed step: content that has no vector yet gets one.

In: silver.items, bronze.media, the texts of silver.interactions if asked, encoders. Out: new rows of
gold.item_embeddings, one a content and encoder version; refusals, missing media and items without any content in
ops.quarantine, one row an item and medium, so that a shop can mend its picture.
Each batch is encoded and committed, so a kill loses one batch at most; a catalogue without anything new costs one look.
Trade-off: a refused content is cached as refused, so a broken picture is looked at once, not every night.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.content.earlier import Unfed
from mmrec.content.encoders import Encoder
from mmrec.content.pending import TEXT, FieldsOf, Pending, TextOf
from mmrec.files import is_url
from mmrec.lake.commit import fence, work_id, write
from mmrec.lake.store import Lake
from mmrec.named import COLUMNS, media

_NAME = "gold.item_embeddings"
_Refused = dict[tuple[str, str], str]  # (modality, content) -> why


def embed(
    lake: Lake,
    encoders: Sequence[Encoder],
    *,
    run_id: str,
    text_of: TextOf,
    fields_of: FieldsOf | None = None,
    prints: Sequence[Encoder] = (),
    progress: Callable[[str, int, int], None] | None = None,
    parts: int = 1,
    comments: bool = False,
) -> dict[str, Any]:
    """Encode what is new.

    Args:
        encoders: one a modality, or several: each version is a cache of its own. The last one of a modality says what
            is refused.
        text_of: silver.items row -> the text that is encoded, the one features hash; None: it has none.
        fields_of: the same row -> texts that are encoded beside that one, each as a content of its own; None: none are.
        prints: fingerprints, encoded before and counted under their own names; what they refuse is nobody's fault. Of
            an item they take its whole text and its first picture.
        progress: called with (modality or fingerprint, done, of).
        comments: the texts of interactions wait to be encoded as well.
        parts: how many work on a batch side by side: it is so many times as large.

    Returns: counts: per modality new contents, refused ones, and calls of the encoder where there were any; rows that
        went to quarantine; `unfed`, where there are any: encoder versions that have contents waiting and can't be
        opened, each with `modality`, `version`, `waiting`, `reason`.

    Raises: Fenced: another embed was faster; worth doing again.
    """
    counts: Counter[str] = Counter()
    refused: _Refused = {}
    unfed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mmrec-embed-") as folder:
        named = [(e.version.split("/")[0], e) for e in prints] + [(e.modality, e) for e in encoders]
        for n, (name, encoder) in enumerate(named):
            own = Path(folder) / str(n)
            own.mkdir()
            is_print = n < len(prints)
            pinned = fence(lake, _NAME)  # before what is known is read: whoever adds to it meanwhile is noticed
            pending = Pending(lake, encoder.modality, encoder.version, text_of, own, comments and not is_print,
                              fields_of=fields_of, first=is_print)  # fmt: skip
            unfed += _encode(lake, name, encoder, run_id, pending, pinned, counts, progress, parts)
            if is_print:
                continue
            where = (ds.field("encoder_version") == encoder.version) & ds.field("refused").is_valid()
            known = lake.arrow(_NAME, columns=["content_sha256", "refused"], where=where)
            refused = {key: why for key, why in refused.items() if key[0] != encoder.modality}
            refused |= {(encoder.modality, sha): why for sha, why in zip(*(c.to_pylist() for c in known), strict=True)}
    counts["quarantined"] = _quarantine(lake, {e.modality for e in encoders}, refused, text_of, run_id)
    return dict(counts) | ({"unfed": unfed} if unfed else {})


def _encode(
    lake: Lake,
    name: str,
    encoder: Encoder,
    run_id: str,
    pending: Pending,
    pinned: int,
    counts: Counter[str],
    progress: Callable[[str, int, int], None] | None,
    parts: int,
) -> list[dict[str, Any]]:
    """Feed one encoder; returns what `embed` tells of it if it can't be opened."""
    counts[f"{name}_new"] += 0
    done = 0
    for shas, raw in pending.batches(parts):
        try:
            vectors, reasons = encoder.encode(raw)
        except Unfed as error:
            return [{"modality": encoder.modality, "version": encoder.version, "waiting": len(pending),
                     "reason": str(error)}]  # fmt: skip
        finite = np.isfinite(vectors).all(1)
        why = [w or (None if ok else "not_finite: the encoder gave no number")
               for w, ok in zip(reasons, finite, strict=True)]  # fmt: skip
        work = work_id(run_id, encoder.version, shas)
        write(lake, _NAME, _rows(encoder, shas, vectors, why), run_id=work, pinned=pinned)
        pinned += 1
        done += len(shas)
        counts[f"{name}_new"] += len(shas)
        counts[f"{name}_calls"] += 1
        counts[f"{name}_refused"] += sum(w is not None for w in why)
        if progress:
            progress(name, done, len(pending))
    return []


def _rows(encoder: Encoder, shas: list[str], emb_BD: np.ndarray, why: list[str | None]) -> pa.Table:
    good = np.array([w is None for w in why])
    offsets = np.concatenate([[0], np.cumsum(good * encoder.dim)]).astype(np.int32)
    columns = {
        "content_sha256": pa.array(shas, pa.string()),
        "encoder_version": pa.array([encoder.version] * len(shas), pa.string()),
        "modality": pa.array([encoder.modality] * len(shas), pa.string()),
        "dim": pa.array(np.where(good, encoder.dim, 0), pa.int32()),
        "embedding": pa.ListArray.from_arrays(offsets, emb_BD[good].astype(np.float32).ravel()),
        "refused": pa.array(why, pa.string()),
    }
    wanted = schema.table(_NAME).arrow
    return pa.table([columns[n].cast(wanted.field(n).type) for n in wanted.names], schema=wanted)


def _quarantine(lake: Lake, modalities: set[str], refused: _Refused, text_of: TextOf, run_id: str) -> int:
    pinned = fence(lake, "ops.quarantine")
    key = ("row_hash", "occurrence", "rule")
    have = lake.arrow("ops.quarantine", columns=list(key), where=ds.field("table_name") == "bronze.media")
    known = set(zip(*(have[c].to_pylist() for c in key), strict=True))
    found = {tuple(row[c] for c in key): row for row in _faults(lake, modalities, refused, text_of)}
    rows = [row for own, row in found.items() if own not in known]
    table = pa.Table.from_pylist(rows, schema.table("ops.quarantine").arrow)
    work = work_id(run_id, [[row[c] for c in key] for row in rows])
    return write(lake, "ops.quarantine", table, run_id=work, pinned=pinned).rows


def _faults(lake: Lake, modalities: set[str], refused: _Refused, text_of: TextOf) -> list[dict[str, Any]]:
    """Rows of ops.quarantine about every item without content, each missing medium and each refused one."""
    bad = {m: pa.array([sha for kind, sha in refused if kind == m], pa.string()) for m in COLUMNS}
    found: list[dict[str, Any]] = []

    def note(row: dict[str, Any], rule: str, why: str, raw: str, place: int = 0) -> None:
        about = {"table_name": "bronze.media", "source": row["source"], "row_hash": row["row_hash"], "line": 0}
        found.append(about | {"rule": rule, "reason": why[:200], "raw": raw, "file": raw, "occurrence": place})

    columns = ["item_id", *TEXT, *COLUMNS, *(c for made in COLUMNS.values() for c in made), "source", "row_hash"]
    for batch in lake.batches("silver.items", columns=columns):
        absent = pc.and_(*(pc.is_null(batch[f"{m}_sha256"]) for m in COLUMNS))
        look = absent
        for m in sorted(modalities & set(COLUMNS)):
            one, *several = COLUMNS[m]
            promised = pc.and_(pc.is_valid(batch[m]), pc.is_null(batch[one]))
            look = pc.or_(look, pc.or_(promised, pc.is_in(batch[one].cast(pa.string()), bad[m])))
            for column in several:
                look = pc.or_(look, _odd(batch[column].cast(pa.list_(pa.string())), bad[m]))
        for row in batch.filter(look).to_pylist():
            if not (text_of(row) or row["image_sha256"] or row["audio_sha256"]):
                why = "an item without text, picture or sound: only behaviour can place it"
                note(row, "no_content", why, row["item_id"])
            for m in sorted(modalities & set(COLUMNS)):
                for place, (named, sha) in enumerate(media(row, m)):
                    if sha is None and is_url(named):
                        continue  # ingest has said why
                    why = "missing: the source has no such file" if sha is None else refused.get((m, sha), "")
                    if why:
                        note(row, f"{m}_{why.split(':')[0].strip().replace(' ', '_')}", why, named, place)
    return found


def _odd(lists: pa.ListArray, bad: pa.Array) -> pa.Array:
    """Bool, of each list: whether an entry is null or one of `bad`."""
    entries = pc.list_flatten(lists)
    rows = pc.list_parent_indices(lists).filter(pc.or_(pc.is_null(entries), pc.is_in(entries, bad)))
    found = np.zeros(len(lists), bool)
    found[rows.to_numpy()] = True
    return pa.array(found)
