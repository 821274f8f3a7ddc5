"""What an encoder takes to be alike: the items whose content lies nearest to an item's own.

In: silver.items, gold.item_embeddings, an encoder's modality and version, asked items. Out: their nearest items, by
cosine descending, then item id ascending.
An item with several pictures, or with texts apart, is seen as models are told: see models/fields.py.
Vectors are read a piece at a time and only the best so far are kept, so memory holds the vectors of some thousand asked
items and all their places, not the catalogue's vectors.
Trade-off: every vector of the version is looked at, which is exact and takes a second for 100,000 of them.

Shape legend: Q asked items, N items, B contents of a piece, M items of a piece, D vector size, K places.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec.content.pending import FieldsOf, TextOf
from mmrec.errors import InputError, QualityError
from mmrec.lake.content import text_key
from mmrec.lake.store import Lake
from mmrec.models.fields import contents, pool_fields
from mmrec.named import COLUMNS
from mmrec.topk.exact import select

_ITEMS, _VECTORS = "silver.items", "gold.item_embeddings"
_CELLS = 4_000_000  # scores held at a time
_ROWS, _ASKED = 8192, 4096  # contents of a piece and items asked for at once, at most


@dataclass(frozen=True)
class Apart:
    """Items that have a vector and categories, and which of them lie nearest to some of them.

    Attributes:
        items: N ids, ascending. categories: N sets, none empty. content_N: int64, equal where the bytes are equal.
        asked_Q: int64 positions in `items`, ascending.
        near_QK: int64 positions of items of other content, nearest first; -1 in empty places, which come last.
    """

    items: list[str]
    categories: list[frozenset[str]]
    content_N: np.ndarray
    asked_Q: np.ndarray
    near_QK: np.ndarray


class Neighbours:
    """The items of a lake as one encoder sees them, each in its newest version, those withdrawn left out."""

    def __init__(
        self, lake: Lake, *, modality: str, version: str, text_of: TextOf, fields_of: FieldsOf | None = None,
        pool: str = "first",
    ) -> None:  # fmt: skip
        """`modality`: text, image or audio. `version`: the encoder version to compare by. `text_of`, `fields_of`: as
        for `embed`. `pool`: of several contents, see models/fields.py."""
        self.lake, self.modality, self.version, self.pool = lake, modality, version, pool
        self.items = _newest(lake, modality, text_of, fields_of)
        self._pooled: dict[str, list[str]] = {}  # key of several contents -> theirs
        self._resolve()
        self.live = sorted(item for item, row in self.items.items() if row["key"] and not row["withdrawn"])

    def of(self, asked: Sequence[str], k: int = 10, *, passing_over: bool = False) -> dict[str, list[dict[str, Any]]]:
        """The `k` items nearest to each asked one; one that is withdrawn may be asked for.

        Args:
            asked: item ids. passing_over: leave out asked items that have no vector, instead of refusing them.

        Returns: item -> rows of item_id, title, similarity (cosine, six decimals), same (its content is equal).

        Raises:
            InputError: no such item, or it has no such content. QualityError: its content has no vector.
        """
        if passing_over:
            asked = [item for item in asked if item in self.items and self.items[item]["key"]]
        keys = [self._key(item) for item in asked]
        own = self._own(keys)
        if passing_over:
            asked, keys = [i for i, key in zip(asked, keys, strict=True) if key in own], [k for k in keys if k in own]
        for item, key in zip(asked, keys, strict=True):
            if key not in own:
                self._refuse(item, key)
        if not asked:
            return {}
        at = {item: n for n, item in enumerate(self.live)}
        self_Q = [at.get(item, -1) for item in asked]
        near_QK, score_QK = self._best(np.array([own[key] for key in keys]), self.live, self_Q, range(len(asked)), k)
        found = {}
        for q, item in enumerate(asked):
            rows = found[item] = []
            for n, score in zip(near_QK[q].tolist(), score_QK[q].tolist(), strict=True):
                if n >= 0:
                    row = self.items[self.live[n]]
                    rows.append({"item_id": self.live[n], "title": row["title"], "similarity": round(score, 6),
                                 "same": row["key"] == keys[q]})  # fmt: skip
        return found

    def apart(self, k: int = 10, *, most: int | None = None, seed: int = 0) -> Apart:
        """The `k` nearest among items that have a vector and categories, those of equal content left out.

        Args:
            most: items to ask for, drawn with `seed` where there are more; None: all.
        """
        encoded = self.lake.batches(_VECTORS, columns=["content_sha256"], where=self._where())
        have = {sha for batch in encoded for sha in batch.column(0).cast(pa.string()).to_pylist()} | {*self._pooled}
        names = [i for i in self.live if self.items[i]["categories"] and self.items[i]["key"] in have]
        keys = [self.items[i]["key"] for i in names]
        asked_Q = np.arange(len(names))
        if most is not None and most < len(names):
            asked_Q = np.sort(np.random.default_rng(seed).choice(len(names), most, replace=False))
        near_QK = np.full((len(asked_Q), k), -1, np.int64)
        sharing = _positions(keys)
        for start in range(0, len(asked_Q), _ASKED):
            some = [keys[n] for n in asked_Q[start : start + _ASKED]]
            own = self._own(some)
            equal = [(n, q) for q, key in enumerate(some) for n in sharing[key]]
            near, _ = self._best(np.array([own[key] for key in some]), names, *zip(*equal, strict=True), k)
            near_QK[start : start + _ASKED] = near
        content_N = np.unique(keys, return_inverse=True)[1].astype(np.int64)
        return Apart(names, [self.items[i]["categories"] for i in names], content_N, asked_Q, near_QK)

    def _best(
        self, own_QD: np.ndarray, names: list[str], left_out: Sequence[int], of: Sequence[int], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(Q, K) positions in `names`, which ascend, and cosines; position `left_out[i]` is none of row `of[i]`'s."""
        sharing = _positions([self.items[name]["key"] for name in names])
        out_P, row_P = np.array(left_out, np.int64), np.array(of, np.int64)
        best_QK = np.full((len(own_QD), k), -1, np.int64)
        score_QK = np.full((len(own_QD), k), -np.inf, np.float32)
        for shas, unit_BD in self._vectors(max(1, _CELLS // len(own_QD))):
            here = sorted((n, b) for b, sha in enumerate(shas) for n in sharing.get(sha, ()))
            if not here:
                continue
            at_M, content_M = np.array(here).T
            # six decimals are what float32 vectors can tell; ties are of those, and float32 keeps them apart
            score_QB = np.clip(own_QD @ unit_BD.T, -1, 1).round(6).astype(np.float32)
            score_QM = score_QB[:, content_M]
            place_P = np.minimum(np.searchsorted(at_M, out_P), len(at_M) - 1)
            is_here_P = at_M[place_P] == out_P
            score_QM[row_P[is_here_P], place_P[is_here_P]] = -np.inf
            piece = select(score_QM, k)
            both = np.concatenate([best_QK, np.where(piece.item >= 0, at_M[piece.item], -1)], 1)
            scores = np.concatenate([score_QK, piece.score], 1)
            first = np.lexsort((both, -scores), axis=1)[:, :k]
            best_QK, score_QK = np.take_along_axis(both, first, 1), np.take_along_axis(scores, first, 1)
        return best_QK, score_QK

    def _resolve(self) -> None:
        """Give items of several contents one key: that of the first that has a vector, or one for all that have."""
        several = [row for row in self.items.values() if len(row["contents"]) > 1]
        wanted = pa.array(sorted({sha for row in several for sha in row["contents"]}), pa.string())
        have: set[str] = set()
        for batch in self.lake.batches(_VECTORS, columns=["content_sha256"], where=self._where()) if several else ():
            shas = batch.column(0).cast(pa.string())
            have.update(shas.filter(pc.is_in(shas, wanted)).to_pylist())
        for row in several:
            there = [sha for sha in row["contents"] if sha in have]
            if there:
                row["key"] = there[0]
            if self.pool == "mean" and len(there) > 1:
                row["key"] = "+".join(sorted(there))  # in any order they are the same content
                self._pooled[row["key"]] = sorted(there)

    def _own(self, keys: list[str]) -> dict[str, np.ndarray]:
        """Contents that have a vector -> it, of length 1."""
        found: dict[str, np.ndarray] = {}
        for shas, unit_BD in self._vectors(_CELLS, keys):
            found.update(zip(shas, unit_BD, strict=True))
        return found

    def _where(self, keys: list[str] | None = None) -> ds.Expression:
        mine = (ds.field("encoder_version") == self.version) & (ds.field("dim") > 0)
        if keys is None:
            return mine
        return mine & ds.field("content_sha256").isin(pa.array(sorted(set(keys)), pa.string()))

    def _vectors(self, rows: int, keys: list[str] | None = None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Contents, and several as one, and their vectors of length 1, at most `rows` at a time."""
        step = min(rows, _ROWS)
        yield from self._single(step, keys)
        pooled = sorted(self._pooled.keys() if keys is None else self._pooled.keys() & set(keys))
        for start in range(0, len(pooled), step):
            names = pooled[start : start + step]
            found: dict[str, np.ndarray] = {}
            for shas, unit_BD in self._single(step, [sha for name in names for sha in self._pooled[name]]):
                found.update(zip(shas, unit_BD, strict=True))
            at = {sha: n for n, sha in enumerate(found)}
            fields = [[at[sha] for sha in self._pooled[name]] for name in names]
            yield names, _unit(pool_fields(np.array(list(found.values())), fields, self.pool)[0])

    def _single(self, step: int, keys: list[str] | None) -> Iterator[tuple[list[str], np.ndarray]]:
        for batch in self.lake.batches(_VECTORS, columns=["content_sha256", "embedding"], where=self._where(keys)):
            for start in range(0, batch.num_rows, step):
                part = batch.slice(start, step)
                flat = part.column(1).flatten().to_numpy(zero_copy_only=False)
                yield part.column(0).cast(pa.string()).to_pylist(), _unit(flat.reshape(part.num_rows, -1))

    def _key(self, item: str) -> str:
        if item not in self.items:
            close = difflib.get_close_matches(item, self.items, 3) or sorted(self.items)[:3]
            raise InputError("no such item", where=_ITEMS, value=item, valid=[*close, "..."],
                             next=f"mmrec neighbours {close[0]}" if close else "mmrec run --date D")  # fmt: skip
        if self.items[item]["key"] is None:
            raise InputError(f"the item has no {self.modality}", where=f"{_ITEMS} item_id={item}",
                             value=self.modality, valid="a modality that it has",
                             next=f"mmrec neighbours {item} --modality text")  # fmt: skip
        return self.items[item]["key"]

    def _refuse(self, item: str, key: str) -> None:
        mine = (ds.field("encoder_version") == self.version) & (ds.field("content_sha256") == key)
        rows = self.lake.arrow(_VECTORS, columns=["refused"], where=mine).to_pylist()
        why = rows[0]["refused"] if rows else "it was not encoded yet"
        raise QualityError(f"the item's {self.modality} has no vector: {why}", where=f"{_VECTORS} item_id={item}",
                           value=self.version, valid="an encoded content", next="mmrec embed --date D")  # fmt: skip


def _unit(vectors_BD: np.ndarray) -> np.ndarray:
    vectors_BD = vectors_BD.astype(np.float64)
    return vectors_BD / np.maximum(np.linalg.norm(vectors_BD, axis=1, keepdims=True), 1e-12)


def _newest(lake: Lake, modality: str, text_of: TextOf, fields_of: FieldsOf | None) -> dict[str, dict[str, Any]]:
    columns = ["item_id", "available_at", "row_hash", "withdrawn_at", "title", "categories", "text"]
    columns += COLUMNS.get(modality, ())
    rows = lake.arrow(_ITEMS, columns=columns).sort_by([("available_at", "ascending"), ("row_hash", "ascending")])
    newest: dict[str, dict[str, Any]] = {}
    for batch in rows.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            if modality == "text":
                key = text_key(text_of(row) or None)
                several = [text_key(t) for t in fields_of(row)] if fields_of else []
            else:
                key, several = row[f"{modality}_sha256"], row.get(f"{modality}s_sha256")
            (own,) = contents([key], [several or None])
            newest[row["item_id"]] = {"title": row["title"], "key": key, "contents": own,
                                      "withdrawn": row["withdrawn_at"] is not None,
                                      "categories": frozenset(c for c in row["categories"] or () if c)}  # fmt: skip
    return newest


def _positions(keys: Sequence[str]) -> dict[str, list[int]]:
    """Where each of `keys` stands."""
    found: dict[str, list[int]] = {}
    for n, key in enumerate(keys):
        found.setdefault(key, []).append(n)
    return found
