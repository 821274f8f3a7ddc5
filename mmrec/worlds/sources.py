"""Sources: what a shop delivers, as batches of strings, never losing a row.

In: a folder and a name for its layout. Out: `Delivery` objects in a stable order, and the bytes of media.
A row that can't be parsed comes out too, with `raw` and `parse_error`; nothing is judged here, that is validate's.
Trade-off: sources are parsed in Python, a line at a time where quotes are about: engines stop at the first bad
line, and a row that vanishes is worse than a second of parsing.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from mmrec.config import Config
from mmrec.errors import InputError, QualityError
from mmrec.worlds.drift import Layout

SPECS = ("builtin", "files", "movielens-small", "movielens-25m", "movielens-32m", "movielens-latest", "amazon")
_BATCH = 50_000
_MAX_MEDIA = 50 * 1024 * 1024


@dataclass(frozen=True)
class Delivery:
    """One file of one kind.

    Attributes:
        kind: one of schema.DELIVERED.
        file: path within the source. path: the real file.
        available_at: the file's own delivery time, for rows that carry none; None: rows carry it or do without.
        read: yields batches of string columns (the kind's raw columns, available_at, raw, parse_error) and `line`.
        layout: filled by `read`, judged by drift.py; None where the form is the publisher's own.
    """

    kind: str
    file: str
    path: Path
    available_at: datetime | None
    read: Callable[[], Iterator[pa.RecordBatch]]
    layout: Layout | None = None


class Source(Protocol):
    """Where deliveries come from."""

    name: str

    def deliveries(self) -> list[Delivery]: ...

    def media(self, reference: str) -> bytes | None: ...


def open_source(spec: str, root: Path | None, cache: Path) -> Source:
    """The source called `spec`: "files", "movielens-small" or another MovieLens size, "amazon"."""
    if spec == "files":
        from mmrec.worlds.files import FilesSource

        return FilesSource(_folder(root, spec))
    if spec.startswith("movielens-"):
        from mmrec.worlds.movielens import MovieLens, download

        return MovieLens(spec, root or download(spec, cache))
    if spec == "amazon":
        from mmrec.worlds.amazon import Amazon

        return Amazon(_folder(root, spec))
    raise InputError("no such source", where="source.spec", value=spec, valid=SPECS, next="mmrec init --help")


def media_bytes(root: Path, reference: str) -> bytes | None:
    """Bytes of `root / reference`; None where there is no such file, or where the reference leaves the folder."""
    if "://" in reference or "\0" in reference:
        return None
    path = root / reference
    try:
        inside = path.resolve().is_relative_to(root.resolve())
        if not inside or not path.is_file() or path.stat().st_size > _MAX_MEDIA:
            return None
        return path.read_bytes()
    except OSError:
        return None


def records(path: Path, delimiter: str | None = None) -> Iterator[tuple[int, str, str | None]]:
    """Lines of a UTF-8 text file: (line number, text, error); bad bytes and a quote left open at a torn end are errors.

    With a delimiter, a quoted field may hold line breaks if that makes one csv record of at most 100 lines; a quote
    that doesn't costs its own line.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    torn = bool(data) and not data.endswith(b"\n")
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    i = 0
    while i < len(lines):
        start, raw = i, lines[i].removesuffix(b"\r")
        i += 1
        if delimiter and raw.count(b'"') % 2:
            for j in range(i, min(i + 100, len(lines))):
                if lines[j].count(b'"') % 2:
                    joined = b"\n".join([raw, *(x.removesuffix(b"\r") for x in lines[i : j + 1])])
                    if _is_one(joined, delimiter):
                        raw, i = joined, j + 1
                    break
        try:
            text, error = raw.decode(), None
        except UnicodeDecodeError as bad:
            text, error = raw.decode(errors="replace"), f"byte {bad.start} is not UTF-8"
        if not error and torn and i == len(lines):
            error = "torn" if raw.count(b'"') % 2 else None
        yield start + 1, text, error


def csv_rows(
    path: Path, delimiter: str = ",", heard: Callable[[list[str]], None] | None = None
) -> Iterator[tuple[int, dict[str, str] | None, str, str | None]]:
    """Rows of a csv with a header: (line, values by column, raw text, error); values are None where it has an error.

    `heard` is told the header before the first row; it is not called for an empty file.
    """
    source = records(path, delimiter)
    head = next(source, None)
    if head is None:
        return
    try:
        header = next(csv.reader([head[1]], delimiter=delimiter), [])
    except csv.Error as error:
        raise QualityError(
            f"the header can't be read: {error}",
            where=path.name,
            value=head[1][:80],
            valid="names of columns in one line",
            next="deliver it again, then mmrec ingest",
        ) from None
    if heard:
        heard(header)
    csv.field_size_limit(2**31 - 1)
    for line, text, bad in source:
        error, fields = bad, []
        if not error:
            try:
                fields = _fields(text, delimiter)
                if len(fields) != len(header):
                    error = f"{len(fields)} fields, the header has {len(header)}"
            except csv.Error as wrong:
                error = f"not csv: {wrong}"
        yield line, None if error else dict(zip(header, fields, strict=True)), text, error


def _is_one(record: bytes, delimiter: str) -> bool:
    try:
        return bool(_fields(record.decode(errors="replace"), delimiter))
    except csv.Error:
        return False


def _fields(text: str, delimiter: str) -> list[str]:
    if '"' not in text:
        return text.split(delimiter)
    rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    if len(rows) != 1:
        raise csv.Error("more than one record")
    return rows[0]


def jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | None, str, str | None]]:
    """Rows of a file of JSON objects, one a line: (line, object, raw text, error)."""
    # a JSON record never spans lines, whatever its quotes look like
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, raw in enumerate(data[:-1] if data and not data[-1] else data, 1):
        text = raw.decode(errors="replace").rstrip("\r")
        try:
            value = json.loads(raw)
            error = None if isinstance(value, dict) else "not a JSON object"
        except (ValueError, RecursionError) as wrong:
            value, error = None, f"not JSON: {wrong}"
        yield number, None if error else value, text, error


def batches(
    kind: str,
    rows: Iterator[tuple[int, dict[str, Any] | None, str, str | None]],
    convert: Callable[[dict[str, Any]], dict[str, str | None]],
) -> Iterator[pa.RecordBatch]:
    """Arrow batches of converted rows; where `convert` fails, the row keeps its text and says why."""
    from mmrec import schema

    names = [c.name for c in schema.table(f"bronze.{kind}").columns]
    names = [n for n in names[: names.index("source")] if not n.endswith("_sha256")]
    out: list[dict[str, Any]] = []
    fields = pa.schema([*(pa.field(n, pa.string()) for n in names), pa.field("line", pa.int64())])
    for line, values, text, bad in rows:
        made: dict[str, Any] = {"line": line}
        error = bad
        if values is not None:
            try:
                made |= _writable(convert(values))
            except (KeyError, ValueError, TypeError, OverflowError) as wrong:
                error = f"{type(wrong).__name__}: {wrong}"
        if error:
            made |= {"raw": text, "parse_error": error}
        out.append(made)
        if len(out) >= _BATCH:
            yield pa.RecordBatch.from_pylist(out, fields)
            out = []
    if out:
        yield pa.RecordBatch.from_pylist(out, fields)


def row_hash(kind: str, values: Iterable[str | None]) -> str:
    """sha256 of a row, whatever file it came in: its values as delivered, in the schema's order up to parse_error."""
    # lengths in front of values: no two rows run together to the same text
    text = "".join("-" if v is None else f"{len(v)}:{v}" for v in values)
    return hashlib.sha256(f"{kind}|{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _writable(row: dict[str, Any]) -> dict[str, Any]:
    for value in row.values():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{value!r} is no text")
        (value or "").encode()  # half of a surrogate pair, which JSON can name, can't be stored
    return row


def _folder(root: Path | None, spec: str) -> Path:
    if root is None or not root.is_dir():
        raise InputError(
            "the source folder does not exist",
            where="source.root",
            value=str(root),
            valid="a folder",
            next=f"mmrec init --source {spec} --root FOLDER",
        )
    return root


def open_configured(config: Config) -> Source:
    """The source that a home's settings name; the built-in world delivers files like any shop."""
    spec = "files" if config.source.spec == "builtin" else config.source.spec
    return open_source(spec, config.source_root, config.cache)
