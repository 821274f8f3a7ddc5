"""Knowledge of items as vectors: the entities that an item is linked to (its maker, its genre, an actor), factorised.

In: each item's entities, as `relation=entity`. Out: a vector an entity, and of any item the sum of its entities', of
length one. Beside text and pictures it is one more modality: the towers, the linear head and likeness take it as they
take those, and likeness is the term e.k of r_ui = u.i + b_u + b_i + e.k, e being the mean k of the user's history.
The matrix of items and entities, weighed by how rare an entity is (idf; Sparck Jones, 1972), is cut to its strongest
directions (latent semantic analysis; Deerwester et al., JASIS 1990): entities that go together come to lie together.
Trade-off: what a relation means is learned from behaviour by those who take the vectors, not here; no relation is
walked further than one step.

Shape legend: N items, E entities, D vector size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

KNOWLEDGE = "knowledge"  # the modality's name
FILE = "knowledge.parquet"
_LEAST = 2  # items that an entity must link: one alone says nothing of another
_POWERS = 5  # power iterations of the decomposition


@dataclass(frozen=True)
class Knowledge:
    """Vectors of entities.

    Attributes:
        names: entities, ascending. vector_ED: float32.
    """

    names: tuple[str, ...]
    vector_ED: np.ndarray

    @classmethod
    def fit(cls, entities: Sequence[Sequence[str] | None], d: int, seed: int = 0) -> Self | None:
        """Vectors of size `d` or less, as many as there are entities; None: no entity links two items.

        Args:
            entities: (N,) of each item; none or None: nothing is known of it. seed: of the decomposition.
        """
        many = Counter(e for own in entities for e in set(own or ()))
        names = tuple(sorted(e for e, n in many.items() if n >= _LEAST))
        if not names or d < 1:
            return None
        idf_E = np.log(len(entities) / np.array([many[e] for e in names])) + 1
        x_NE = _counts(entities, names) @ sparse.diags(idf_E)
        length_N = np.sqrt(np.asarray(x_NE.multiply(x_NE).sum(1)).ravel())
        x_NE = sparse.diags(1 / np.where(length_N > 0, length_N, 1)) @ x_NE
        if len(names) <= d:
            return cls(names, np.diag(idf_E).astype(np.float32))
        from sklearn.utils.extmath import randomized_svd  # for training alone: it takes a while to load

        _, _, across_DE = randomized_svd(x_NE.tocsr(), min(d, *x_NE.shape), n_iter=_POWERS, random_state=seed)
        return cls(names, (across_DE * idf_E).T.astype(np.float32))

    def vectors(self, entities: Sequence[Sequence[str] | None]) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) float32 of length one, zero where nothing is known of an item; (N,) bool, where something is."""
        sum_ND = np.asarray(_counts(entities, self.names) @ self.vector_ED.astype(np.float64))
        length_N = np.linalg.norm(sum_ND, axis=1)
        present_N = length_N > 1e-9
        return (sum_ND / np.where(present_N, length_N, 1)[:, None]).astype(np.float32), present_N

    def save(self, folder: Path) -> None:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.vector_ED.ravel()), self.vector_ED.shape[1])
        pq.write_table(pa.table({"entity": pa.array(self.names, pa.string()), "vector": vectors}), folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote."""
        rows = pq.read_table(folder / FILE)
        vector = rows["vector"].combine_chunks()
        flat = vector.flatten().to_numpy(zero_copy_only=False)
        return cls(tuple(rows["entity"].to_pylist()), flat.reshape(rows.num_rows, -1))


def _counts(entities: Sequence[Sequence[str] | None], names: Sequence[str]) -> sparse.csr_matrix:
    """(N, E): 1 where an item has an entity."""
    at = {name: n for n, name in enumerate(names)}
    own = [sorted({at[e] for e in row or () if e in at}) for row in entities]
    ptr = np.concatenate([[0], np.cumsum([len(row) for row in own])]).astype(np.int64)
    index = np.array([e for row in own for e in row], np.int64)
    return sparse.csr_matrix((np.ones(len(index)), index, ptr), shape=(len(own), len(names)))
