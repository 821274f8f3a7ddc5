"""What has no vector yet: contents of items, each once, in an order that batches like.

In: silver.items, bronze.media, silver.interactions if its texts are asked for, gold.item_embeddings, an encoder's
modality and version. Out: batches of (hashes, raw contents). Texts come longest first, so that rows of one batch are of
one length and the time left is not flattered; media come as they lie on the disk, so that each file is read at most
once, and files without anything new are not.
Memory is bounded whatever the catalogue's size: hashes and texts that wait are DuckDB's, on disk where they are many.
Trade-off: texts that wait are written down once more; in exchange they can be sorted without being held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec.errors import QualityError
from mmrec.lake.content import text_key
from mmrec.lake.store import Lake
from mmrec.named import COLUMNS

TextOf = Callable[[dict[str, Any]], str | None]
FieldsOf = Callable[[dict[str, Any]], list[str]]

TEXT = ("title", "categories", "text")
_MOST, _BYTES = 1024, 64 << 20  # contents and raw bytes of a batch
_WANTED = pa.schema([("sha", pa.string()), ("raw", pa.binary())])


class Pending:
    """Contents of `modality` without a row at `version`. `len()` is their number."""

    def __init__(
        self, lake: Lake, modality: str, version: str, text_of: TextOf, folder: Path, comments: bool = False,
        *, fields_of: FieldsOf | None = None, first: bool = False,
    ) -> None:  # fmt: skip
        """`folder` holds what waits, and belongs to this object alone; `comments`: texts of interactions wait too.

        `fields_of`: silver.items row -> texts that wait beside its whole text. `first`: of an item's contents its whole
        text and its first picture alone.
        """
        self.lake, self.modality = lake, modality
        self.con = duckdb.connect(str(folder / f"{modality}.db"))
        for setting in ("memory_limit = '512MB'", "threads = 2", "enable_progress_bar = false"):
            self.con.execute(f"SET {setting}")
        named = _wanted(lake, modality, text_of, comments, fields_of, first)
        wanted = pa.RecordBatchReader.from_batches(_WANTED, named)
        known = lake.batches(
            "gold.item_embeddings", columns=["content_sha256"], where=ds.field("encoder_version") == version
        )
        have = pa.RecordBatchReader.from_batches(pa.schema([("content_sha256", pa.string())]), _plain(known))
        self.con.register("wanted", wanted)
        self.con.register("have", have)
        self.con.execute("CREATE TEMP TABLE known AS SELECT content_sha256 AS sha FROM have")
        self.con.execute(
            "CREATE TABLE todo AS SELECT sha, any_value(raw) AS raw FROM wanted ANTI JOIN known USING (sha) GROUP BY 1"
        )
        self.con.unregister("wanted")
        self.con.unregister("have")
        self.n = self.con.execute("SELECT count(*) FROM todo").fetchall()[0][0]

    def __len__(self) -> int:
        return int(self.n)

    def batches(self, parts: int = 1) -> Iterator[tuple[list[str], list[Any]]]:
        """Each pending content once, at most 1,024 and 64 MB at a time for each of `parts`, and 256 MB for all.

        Raises: QualityError: an item names a medium that bronze.media does not hold.
        """
        if not self.n:
            return
        shas: list[str] = []
        raws: list[Any] = []
        size = count = 0
        for sha, raw in self._texts() if self.modality == "text" else self._media():
            if shas and (len(shas) == parts * _MOST or size + len(raw) > min(parts, 4) * _BYTES):
                yield shas, raws
                shas, raws, size = [], [], 0
            shas.append(sha)
            raws.append(raw.decode() if self.modality == "text" else raw)
            size, count = size + len(raw), count + 1
        if shas:
            yield shas, raws
        if count < self.n:
            raise QualityError(
                "items name media that are not there",
                where="bronze.media",
                value=f"{self.n - count} of {self.n} are missing",
                valid="a row for every image_sha256, audio_sha256 and entry of images_sha256 of silver.items",
                next="mmrec verify --deep",
            )

    def _texts(self) -> Iterator[tuple[str, bytes]]:
        reader = self.con.execute("SELECT sha, raw FROM todo ORDER BY octet_length(raw) DESC, sha")
        while rows := reader.fetchmany(_MOST):
            yield from rows

    def _media(self) -> Iterator[tuple[str, bytes]]:
        options = ds.ParquetFragmentScanOptions(use_buffered_stream=True, pre_buffer=False)
        for fragment in self.lake.dataset("bronze.media").get_fragments():
            held = fragment.to_table(columns=["sha256"])
            self.con.register("held", held)
            found = self.con.execute("SELECT sha256 FROM held SEMI JOIN todo ON sha256 = sha").fetchall()
            self.con.unregister("held")
            if not found:
                continue
            # a few rows at a time: a row may hold many megabytes
            for batch in fragment.to_batches(
                columns=["sha256", "bytes"], filter=ds.field("sha256").isin([sha for (sha,) in found]),
                batch_size=64, batch_readahead=1, fragment_readahead=0, fragment_scan_options=options,
            ):  # fmt: skip
                yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)


def _wanted(
    lake: Lake, modality: str, text_of: TextOf, comments: bool, fields_of: FieldsOf | None, first: bool
) -> Iterator[pa.RecordBatch]:
    if modality == "text":
        apart = fields_of if fields_of and not first else lambda row: []
        for batch in lake.batches("silver.items", columns=list(TEXT)):
            yield _texts_of([t for row in batch.to_pylist() for t in (text_of(row), *apart(row)) if t])
        if comments:
            said = ds.field("text").is_valid()
            for batch in lake.batches("silver.interactions", columns=["text"], where=said):
                yield _texts_of(sorted(set(batch.column(0).to_pylist()) - {""}))
        return
    one, *several = COLUMNS[modality][: 1 if first else None]
    for batch in lake.batches("silver.items", columns=[one, *several], where=ds.field(one).is_valid()):
        shas = batch.column(0).cast(pa.string())
        for column in several:
            further = pc.drop_null(pc.list_flatten(batch.column(column).cast(pa.list_(pa.string()))))
            shas = pa.concat_arrays([shas, further])
        yield pa.record_batch([shas, pa.nulls(len(shas), pa.binary())], schema=_WANTED)


def _texts_of(texts: list[str]) -> pa.RecordBatch:
    shas, raws = [text_key(t) for t in texts], [t.encode() for t in texts]
    return pa.record_batch([pa.array(shas, pa.string()), pa.array(raws, pa.binary())], schema=_WANTED)


def _plain(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield pa.record_batch([batch.column(0).cast(pa.string())], names=["content_sha256"])
