"""Media that item rows name by URL: fetched once each, the items' rows pointed to them, or the reason on record.

In: new rows of bronze.items, those of earlier nights whose media are owed, and `Fetch`, which does the fetching.
Out: the rows with hashes of their media; new rows of bronze.media, a commit every 64 MB, and of ops.quarantine.
Which URL gave which bytes is in bronze.items and bronze.media: what stands there is never fetched again, so a URL is
taken to name the same picture for good. A refusal that may pass is tried again the next night; what comes then is in a
row of its own that mends the item's, a microsecond later than it and before any other version.
Trade-off: a server that puts another picture at an old URL isn't noticed; in exchange a night asks for new ones only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.dataset as ds

from mmrec import schema
from mmrec.files import is_url
from mmrec.lake.commit import Fenced, fence, work_id, write
from mmrec.lake.store import Lake
from mmrec.named import COLUMNS, hashes, media, references
from mmrec.worlds.sources import row_hash

_BYTES = 64 << 20  # of fetched media that are held before they are committed


class Fetch(Protocol):
    """Called with a URL: (its bytes, "") or (None, "code: detail"); `passing`: codes that another night may lift."""

    @property
    def passing(self) -> frozenset[str]: ...

    def __call__(self, url: str, /) -> tuple[bytes | None, str]: ...


class Nowhere:
    """A `Fetch` to which no host is allowed."""

    passing = frozenset({"host_not_allowed"})

    def __call__(self, url: str, /) -> tuple[bytes | None, str]:
        return None, "host_not_allowed: nothing is fetched here; source.media_hosts names hosts for the nights"


class Remote:
    """Media by URL of one ingest. `pinned` is the fence of bronze.media; `count` is how many media were added."""

    def __init__(self, lake: Lake, source: str, fetch: Fetch, run_id: str, pinned: int, known: set[str]) -> None:
        """`known`: hashes in bronze.media; what is added is added to it."""
        self.lake, self.source, self.fetch, self.run_id, self.pinned = lake, source, fetch, run_id, pinned
        self.known, self.count = known, 0
        self._sha: dict[str, str] | None = None
        self._why: dict[str, str] = {}
        self._held: list[dict[str, Any]] = []
        self._verdicts: list[dict[str, Any]] = []

    def filled(self, rows: pa.Table) -> pa.Table:
        """New rows of bronze.items, with hashes where a URL gave bytes. Raises: Fenced: another ingest was faster."""
        wanted = [m for m in COLUMNS if any(is_url(n) for text in rows[m].to_pylist() for n in references(m, text))]
        if not wanted:
            return rows
        for m in wanted:
            wide = rows.select([m, *COLUMNS[m], "source", "row_hash", "occurrence"])
            made = [self._filled(row, m) for row in wide.to_pylist()]
            for c in COLUMNS[m]:
                at, field = rows.schema.get_field_index(c), rows.schema.field(c)
                rows = rows.set_column(at, field, pa.array([h[c] for h in made], field.type))
        self._commit()
        return rows

    def mended(self, stamp: datetime) -> tuple[pa.Table, dict[str, Any]] | None:
        """Rows of bronze.items for media of earlier nights that came now, and the entry of bronze.files; None: none.

        Raises: Fenced: as above.
        """
        t = schema.table("bronze.items").arrow
        made = []
        for row in self._owed():
            found: dict[str, Any] = {}
            for m, places in row.pop("owed").items():
                found |= self._filled(row, m, places)
            if _bytes(row | found) > _bytes(row):
                made.append(row | found)
        self._commit()
        if not made:
            return None
        text = "".join(f"{row['raw']}\n" for row in made)
        digest = hashlib.sha256(text.encode()).hexdigest()
        file = f"repair/{digest[:16]}/items.jsonl"
        told = {"source": self.source, "file": file, "sha256": digest, "kind": "items", "bytes": len(text.encode()),
                "rows": len(made), "new_rows": len(made), "layout": None, "ingested_at": stamp}  # fmt: skip
        values = [n for n in t.names[: t.names.index("source")] if not n.endswith("_sha256")]
        fresh = [row | {"file": file, "line": n, "row_hash": row_hash("items", [row[v] for v in values]),
                        "ingested_at": stamp} for n, row in enumerate(made, 1)]  # fmt: skip
        return pa.Table.from_pylist(fresh, t), told

    def tell(self) -> int:
        """Put on record why there are no bytes, once for each item, medium and reason. Returns: how many are new."""
        if not self._verdicts:
            return 0
        pinned = fence(self.lake, "ops.quarantine")
        have = self._recorded()
        found = {(v["row_hash"], v["occurrence"], v["rule"]): v for v in self._verdicts}
        fresh = {key: v for key, v in found.items() if key not in have}
        rows = pa.Table.from_pylist(list(fresh.values()), schema.table("ops.quarantine").arrow)
        return write(self.lake, "ops.quarantine", rows, run_id=work_id(self.run_id, sorted(fresh)), pinned=pinned).rows

    def _filled(self, row: dict[str, Any], modality: str, places: set[int] | None = None) -> dict[str, Any]:
        """The row's hashes, with those that its URLs gave (at `places`; None: at all)."""
        shas = []
        for n, (url, sha) in enumerate(media(row, modality)):
            asked = is_url(url) and not row["occurrence"] and (places is None or n in places)
            shas.append(self._one(row, modality, n, url) if asked and sha is None else sha)
        return hashes(modality, shas)

    def _one(self, row: dict[str, Any], modality: str, place: int, url: str) -> str | None:
        if self._sha is None:
            self._sha = _fetched(self.lake)
        if url not in self._sha and url not in self._why:
            data, why = self.fetch(url)
            if data is None:
                self._why[url] = why
            else:
                self._sha[url] = self._add(url, modality, data)
        if url in self._sha:
            return self._sha[url]
        why = self._why[url]
        self._verdicts.append({"table_name": "bronze.media", "rule": f"{modality}_url_{why.split(':')[0]}",
                               "reason": why[:200], "raw": url, "file": url, "source": row["source"], "line": 0,
                               "row_hash": row["row_hash"], "occurrence": place})  # fmt: skip
        return None

    def _add(self, url: str, modality: str, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        if sha not in self.known:
            self.known.add(sha)
            self._held.append({"sha256": sha, "modality": modality, "bytes": data, "source": self.source, "uri": url})
            if sum(len(r["bytes"]) for r in self._held) >= _BYTES:
                self._commit()
        return sha

    def _commit(self) -> None:
        rows, self._held = self._held, []
        if not rows:
            return
        table = pa.Table.from_pylist(rows, schema.table("bronze.media").arrow)
        work = work_id(self.run_id, [r["sha256"] for r in rows])
        done = write(self.lake, "bronze.media", table, run_id=work, pinned=self.pinned)
        if not done.changed:
            raise Fenced("another ingest fetched the same media", where="bronze.media")
        self.pinned += 1
        self.count += len(rows)

    def _recorded(self) -> set[tuple[str, int, str]]:
        rows = self.lake.arrow("ops.quarantine", columns=["row_hash", "occurrence", "rule"],
                               where=ds.field("table_name") == "bronze.media")  # fmt: skip
        return set(zip(*(rows[c].to_pylist() for c in ("row_hash", "occurrence", "rule")), strict=True))

    def _owed(self) -> Iterator[dict[str, Any]]:
        """Rows that would mend those of bronze.items whose media may come now; `owed` says which."""
        columns = ["row_hash", "occurrence", "raw", *COLUMNS, *(c for made in COLUMNS.values() for c in made)]
        rows = self.lake.arrow("bronze.items", columns=columns, where=ds.field("source") == self.source).to_pylist()
        mended = {_mends(r["raw"]) for r in rows}
        told = ((h, n, *rule.partition("_url_")) for h, n, rule in self._recorded())
        judged = {(h, m, n) for h, n, m, url, code in told if url and code not in self.fetch.passing}
        owed = {}
        for r in rows:
            due: dict[str, set[int]] = {}
            for m in COLUMNS:
                for n, (url, sha) in enumerate(media(r, m)):
                    if is_url(url) and not sha and (r["row_hash"], m, n) not in judged:
                        due.setdefault(m, set()).add(n)
            if due and not r["occurrence"] and r["row_hash"] not in mended:
                owed[r["row_hash"]] = due
        if not owed:
            return
        where = ds.field("row_hash").isin(list(owed)) & (ds.field("occurrence") == 0)
        for row in sorted(self.lake.arrow("bronze.items", where=where).to_pylist(), key=lambda r: str(r["row_hash"])):
            known = row["available_at"] or row["valid_from"]
            later = _later(known)
            if later is None or row["parse_error"]:
                continue  # validate keeps it out; there is nothing to mend
            raw = json.dumps({"row_hash": row["row_hash"], "available_at": later}, separators=(",", ":"))
            row |= {"available_at": later, "valid_from": row["valid_from"] or known, "raw": raw}
            yield row | {"owed": owed[row["row_hash"]]}


def _fetched(lake: Lake) -> dict[str, str]:
    """URL -> hash of its bytes, as far as the lake knows."""
    found: dict[str, str] = {}
    for batch in lake.batches("bronze.media", columns=["uri", "sha256"]):
        found |= {u: s for u, s in zip(batch["uri"].to_pylist(), batch["sha256"].to_pylist(), strict=True) if is_url(u)}
    for batch in lake.batches("bronze.items", columns=[*COLUMNS, *(c for made in COLUMNS.values() for c in made)]):
        for row in batch.to_pylist():
            for m in COLUMNS:
                found |= {u: s for u, s in media(row, m) if s and is_url(u)}
    return found


def _bytes(row: dict[str, Any]) -> int:
    """How many of the media that a row names have bytes."""
    return sum(sha is not None for m in COLUMNS for _, sha in media(row, m))


def _mends(raw: str | None) -> str | None:
    """Hash of the row that a row's `raw` says it mends."""
    return raw.split('"', 4)[3] if raw and raw.startswith('{"row_hash":"') else None


def _later(text: str | None) -> str | None:
    """The next moment that the engines can tell from this one; None: it is none."""
    try:
        moment = datetime.fromisoformat(text or "") + timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
