"""Near-duplicates: items that are the same thing listed twice, found by content alone.

In: items, the content they have in each modality, vectors of contents. Out: who is a twin of whom, in groups.
Two items are twins where every modality that both have is alike, and one is. Alike is content of equal bytes, or
content whose vectors pass a bound of cosine in every kind of vector that the modality has.
Groups do not chain: a member is a twin of its group's first item, not of another member's twin.
Candidates are items that share a content, or bits of random projections of a vector, so that nobody compares all pairs
(Charikar, Similarity Estimation Techniques from Rounding Algorithms, STOC 2002, section 3).
Trade-off: a pair close to its bound may be missed (one in a hundred among 20,000 items), a pair that is found is
checked exactly; up to 31 items, all pairs are.

Shape legend: N items, M contents, D vector size, P pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_BANDS = 24
_CROWD = 32  # of a bucket, each is compared with so many that follow it
_FULL = 16  # items that a bucket is made for
_BLOCK = 1 << 13  # pairs compared at a time: 84 MB of vectors of 1,280


@dataclass(frozen=True)
class Kind:
    """One kind of vector of a modality's contents: `emb_MD` beside their hashes; alike from cosine `bound` on."""

    modality: str
    shas: Sequence[str]
    emb_MD: np.ndarray
    bound: float


@dataclass(frozen=True)
class Twin:
    """`item` is like `first`, the first item by id of its group, in `modalities`; `similarity`: the least cosine of
    those, 1 where bytes are equal."""

    item: str
    first: str
    modalities: tuple[str, ...]
    similarity: float


def twins(
    ids: Sequence[str], keys: Mapping[str, Sequence[str | None]], kinds: Sequence[Kind], seed: int = 0
) -> list[Twin]:
    """Groups of near-duplicates.

    Args:
        ids: (N,) item ids, distinct. keys: modality -> (N,) hash of the item's content, None where it has none.
        kinds: vectors; a content without one is alike to equal bytes alone. A modality may have several kinds.
        seed: of the projections.

    Returns: one entry an item of a group of two or more, the first one included, by group and item.
    """
    order = sorted(range(len(ids)), key=ids.__getitem__)
    equal: dict[tuple[str | None, ...], list[int]] = defaultdict(list)  # items that are the same to the byte
    for i in order:
        own = tuple(k[i] for k in keys.values())
        equal[own if any(own) else (*own, ids[i])].append(i)
    head = [same[0] for same in equal.values()]
    code = {m: _codes([k[i] for i in head]) for m, k in keys.items()}
    vectors = [(kind, *_rows(kind, [keys[kind.modality][i] for i in head])) for kind in kinds]
    like: dict[int, list[tuple[int, tuple[str, ...], float]]] = defaultdict(list)
    for a, b, modalities, similarity in _judged(_candidates(code, vectors, seed), code, vectors):
        like[b].append((a, modalities, similarity))
    members: dict[int, list[Twin]] = {}
    joined: set[int] = set()
    for b, same in enumerate(equal.values()):
        near = sorted(a for a in like[b] if a[0] not in joined)
        own = tuple(m for m, k in keys.items() if k[head[b]] is not None)
        if near:
            joined.add(b)
            a, modalities, similarity = near[0]
            members[a] += [Twin(ids[i], ids[head[a]], modalities, similarity) for i in same]
        else:
            members[b] = [Twin(ids[i], ids[head[b]], own, 1.0) for i in same]
    return [twin for group in members.values() if len(group) > 1 for twin in sorted(group, key=lambda t: t.item)]


def _codes(keys: Sequence[str | None]) -> np.ndarray:
    """(N,) int64, equal where content is equal, -1 where there is none."""
    known: dict[str, int] = {}
    return np.array([-1 if k is None else known.setdefault(k, len(known)) for k in keys], np.int64)


def _rows(kind: Kind, keys: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, and (N,) the row of each item's content, -1 where it has no vector."""
    at = {sha: m for m, sha in enumerate(kind.shas)}
    unit = kind.emb_MD / np.maximum(np.linalg.norm(kind.emb_MD, axis=1, keepdims=True), 1e-12)
    return unit.astype(np.float32), np.array([at.get(k, -1) if k else -1 for k in keys], np.int64)


def _candidates(
    code: Mapping[str, np.ndarray], vectors: Sequence[tuple[Kind, np.ndarray, np.ndarray]], seed: int
) -> np.ndarray:
    """(P, 2) distinct pairs a < b worth a look."""
    parts = [_in_buckets(c) for c in code.values()]
    for n, (_, unit_MD, row_N) in enumerate(vectors):
        rng = np.random.default_rng([seed, n])
        # centred: vectors of one encoder share a direction, and bits that all share tell nothing
        centre_D = unit_MD.sum(0, dtype=np.float64).astype(np.float32) / np.float32(max(1, len(unit_MD)))
        bits = max(0, int(np.log2(max(1, len(row_N)) / _FULL)))
        for _ in range(_BANDS if bits else 1):
            planes = rng.standard_normal((unit_MD.shape[1], bits)).astype(np.float32)
            bucket_M = ((unit_MD @ planes) > centre_D @ planes) @ (1 << np.arange(bits, dtype=np.int64))
            parts.append(_in_buckets(np.where(row_N >= 0, np.append(bucket_M, -1)[row_N], -1)))
    return np.unique(np.concatenate(parts), axis=0) if parts else np.zeros((0, 2), np.int64)


def _in_buckets(bucket_N: np.ndarray) -> np.ndarray:
    """(P, 2) pairs a < b that share a bucket other than -1; in a crowd, each with those that follow it."""
    order = np.argsort(bucket_N, kind="stable")
    order = order[bucket_N[order] >= 0]
    held = bucket_N[order]
    parts = []
    for step in range(1, _CROWD + 1):
        same = np.flatnonzero(held[:-step] == held[step:])
        if not len(same):
            break
        parts.append(np.stack([order[same], order[same + step]], 1))
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)


def _judged(
    pairs: np.ndarray, code: Mapping[str, np.ndarray], vectors: Sequence[tuple[Kind, np.ndarray, np.ndarray]]
) -> Iterator[tuple[int, int, tuple[str, ...], float]]:
    for start in range(0, len(pairs), _BLOCK):
        a, b = pairs[start : start + _BLOCK].T
        good, some = np.ones(len(a), bool), np.zeros(len(a), bool)
        least = np.ones(len(a))
        shared = {}
        for modality, c in code.items():
            both = (c[a] >= 0) & (c[b] >= 0)
            equal = both & (c[a] == c[b])
            near, cosine = np.ones(len(a), bool), np.ones(len(a))
            mine = [v for v in vectors if v[0].modality == modality]
            for kind, unit_MD, row in mine:
                there = (row[a] >= 0) & (row[b] >= 0)
                value = np.full(len(a), -1.0)
                value[there] = np.einsum("pd,pd->p", unit_MD[row[a[there]]], unit_MD[row[b[there]]])
                near &= value >= kind.bound
                cosine = np.minimum(cosine, value)
            alike = equal | (both & near if mine else np.zeros(len(a), bool))
            good &= ~both | alike
            some |= alike
            least = np.where(alike & ~equal, np.minimum(least, cosine), least)
            shared[modality] = alike
        for p in np.flatnonzero(good & some):
            modalities = tuple(m for m in sorted(shared) if shared[m][p])
            yield int(a[p]), int(b[p]), modalities, round(float(least[p]), 6)
