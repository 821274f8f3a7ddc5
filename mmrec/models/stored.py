"""Rivals as they are stored and served: arrays, and what they make of a history.

In: a fitted popularity, ALS, BPR, LightGCN, EASE, item-kNN or user-kNN. Out: a `Stored` of two files, JSON and
safetensors, nothing pickled; scores of the items it knows, those with a train row. No torch.
Of the first four ("factors") a user and an item are vectors, and a score is their dot product. Of the others ("sparse")
a user is some rows of a sparse matrix, weighted: of EASE and item-kNN those of the history's items, of user-kNN those
of the nearest users; a score is a column's sum.
Trade-off: EASE keeps 200 weights an item of as many as there are items; user-kNN keeps who had what, user ids hashed,
so that a night needs nothing else, and a bundle of it holds what people did.

Shape legend: B histories, M known items, N items of a day, R rows of a matrix, D vector size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import sparse
from threadpoolctl import threadpool_limits

from mmrec.errors import InputError
from mmrec.models.baselines import Recommender, train_matrix
from mmrec.models.data import Fold, Items, Log
from mmrec.models.factors import ALS, BPR
from mmrec.models.neighbours import near_users

FACTORS, SPARSE = ("popularity", "als", "bpr", "lightgcn"), ("ease", "item_knn", "user_knn")
_EASE_KEPT = 200  # weights an item
_CELLS = 1 << 22  # scores, or neighbours, at a time
_JSON, _ARRAYS = "stored.json", "stored.safetensors"


@dataclass(frozen=True)
class Stored:
    """See the module.

    Attributes:
        name: the model's. ids: the M items it knows, ascending. arrays, numbers: what `store` took from the model.
    """

    name: str
    ids: list[str]
    arrays: dict[str, np.ndarray]
    numbers: dict[str, float]

    @property
    def kind(self) -> str:
        """Of the bundle: "factors" or "sparse"."""
        return "factors" if self.name in FACTORS else "sparse"

    @cached_property
    def place(self) -> dict[str, int]:
        """Item id -> its place among the known ones."""
        return {item: n for n, item in enumerate(self.ids)}

    def histories(self, item_ids: Sequence[Sequence[str]]) -> sparse.csr_matrix:
        """(B, M) float32: 1 where a history holds an item; items that are not known are left out."""
        rows = [sorted({self.place[i] for i in ids if i in self.place}) for ids in item_ids]
        ptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        flat = np.array([i for r in rows for i in r], np.int64)
        return sparse.csr_matrix((np.ones(len(flat), np.float32), flat, ptr), shape=(len(rows), len(self.ids)))

    # factors

    @cached_property
    def item_MD(self) -> np.ndarray:
        """(M, D) float32: the items' side of the dot product."""
        a = self.arrays
        return np.concatenate([a["item"], a["bias"][:, None]], 1) if self.name == "bpr" else a["item"]

    def users(self, h_BM: sparse.csr_matrix) -> np.ndarray:
        """(B, D) float32: the users' side; zeros of an empty history, but that popularity asks for none."""
        if self.name == "popularity":
            return np.ones((h_BM.shape[0], 1), np.float32)
        if self.name == "lightgcn":
            made = (h_BM @ self.arrays["history"]) / np.sqrt(np.maximum(np.diff(h_BM.indptr), 1))[:, None]
            return made.astype(np.float32)
        # on one thread: the order of sums, and so a user's bits, may depend on how many there are
        with threadpool_limits(1, user_api="blas"):
            made = self._fitted.fold_in(h_BM)
        return (made if self.name == "als" else np.concatenate([made, np.ones((len(made), 1))], 1)).astype(np.float32)

    @cached_property
    def _fitted(self) -> ALS | BPR:
        item_MK, n = self.arrays["item"].astype(np.float64), self.numbers
        made: Any
        if self.name == "als":
            made = ALS(item_MK.shape[1], alpha=n["alpha"], reg=n["reg"])
            made.item_NK, made.gram_KK = item_MK, item_MK.T @ item_MK + made.reg * np.eye(made.factors)
        else:
            made = BPR(item_MK.shape[1], reg=n["reg"])
            made.item_NK, made.bias_N = item_MK, self.arrays["bias"].astype(np.float64)
            made.mean_K, made.mean_bias = self.arrays["mean"], n["mean_bias"]
        return made

    # sparse

    @cached_property
    def matrix_RM(self) -> sparse.csr_matrix:
        """(R, M) float32: what a weighted sum of rows makes scores of."""
        data, indices, ptr = (self.arrays[f"matrix.{part}"] for part in ("data", "indices", "ptr"))
        return sparse.csr_matrix((data, indices, ptr), shape=(len(ptr) - 1, len(self.ids)))

    @cached_property
    def _had_MR(self) -> sparse.csr_matrix:
        return self.matrix_RM.T.tocsr()

    @cached_property
    def _row(self) -> dict[int, int]:
        return {key: n for n, key in enumerate(self.arrays["owner"].tolist())}

    def weights(self, h_BM: sparse.csr_matrix, user_ids: Sequence[str]) -> sparse.csr_matrix:
        """(B, R) float32: the rows of `matrix_RM` that a user is made of; `user_ids` are who asks."""
        if self.name != "user_knn":
            return h_BM
        own_B = np.array([self._row.get(key, -1) for key in _hashed(user_ids).tolist()], np.int64)
        return near_users(h_BM, own_B, self._had_MR, np.diff(self.matrix_RM.indptr), int(self.numbers["k"]))

    def sums(
        self, h_BM: sparse.csr_matrix, user_ids: Sequence[str], matrix_RN: sparse.csr_matrix
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """(users, their (b, N) float32 sums of rows), a few users at a time, in order.

        -inf where nothing speaks: all of a user without a row, and of neighbours what none of them has.

        Args:
            matrix_RN: `matrix_RM`, or its columns in the order of a day's items.
        """
        step = max(1, _CELLS // max(*matrix_RN.shape, 1))
        for rows in (slice(s, min(s + step, h_BM.shape[0])) for s in range(0, h_BM.shape[0], step)):
            weight_BR = self.weights(h_BM[rows], user_ids[rows])
            out = (weight_BR @ matrix_RN).toarray().astype(np.float32)
            out[np.diff(weight_BR.indptr) == 0] = -np.inf
            if self.name != "ease":
                out[out == 0] = -np.inf
            yield rows, out

    # both

    def score(self, h_BM: sparse.csr_matrix, user_ids: Sequence[str]) -> np.ndarray:
        """(B, M) float32, as a night ranks: vectors are rounded to fp32, their products are summed in fp64."""
        if self.kind == "factors":
            return (self.users(h_BM).astype(np.float64) @ self.item_MD.astype(np.float64).T).astype(np.float32)
        out = np.zeros(h_BM.shape, np.float32)
        for rows, found in self.sums(h_BM, user_ids, self.matrix_RM):
            out[rows] = found
        return out

    def save(self, folder: Path) -> None:
        """Write both files."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"name": self.name, "ids": self.ids, "numbers": self.numbers}
        (folder / _JSON).write_text(json.dumps(about, sort_keys=True))
        save_file({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, folder / _ARRAYS)

    @classmethod
    def load(cls, folder: Path) -> Stored:
        """What `save` wrote."""
        about = json.loads((folder / _JSON).read_text())
        return cls(about["name"], about["ids"], load_file(folder / _ARRAYS), about["numbers"])


def store(model: Recommender, items: Items, log: Log, fold: Fold) -> Stored:
    """A fitted model as it is stored.

    Args:
        items, log, fold: what it was fitted on.

    Raises: InputError: a model of another kind.
    """
    m: Any = model
    known_N = np.zeros(items.n, bool)
    known_N[log.item[fold.train]] = True
    arrays: dict[str, np.ndarray]
    numbers: dict[str, float] = {}
    if m.name == "popularity":
        arrays = {"item": m.score_N[known_N][:, None]}
    elif m.name == "als":
        arrays, numbers = {"item": m.item_NK[known_N].astype(np.float32)}, {"alpha": m.alpha, "reg": m.reg}
    elif m.name == "bpr":
        arrays = {"item": m.item_NK[known_N].astype(np.float32), "bias": m.bias_N[known_N].astype(np.float32),
                  "mean": m.mean_K}  # fmt: skip
        numbers = {"reg": m.reg, "mean_bias": m.mean_bias}
    elif m.name == "lightgcn":
        arrays = {"item": m.offer_ND[known_N], "history": m.history_ND[known_N]}
    elif m.name in ("ease", "item_knn"):
        whole_NN = m.top(_EASE_KEPT) if m.name == "ease" else m.sim
        arrays = _matrix(whole_NN[known_N][:, known_N])
    elif m.name == "user_knn":
        x_UN = train_matrix(log, fold, items.n)[:, known_N]
        user_R = np.flatnonzero(np.diff(x_UN.indptr))
        arrays, numbers = _matrix(x_UN[user_R]) | {"owner": _hashed(log.user_ids[user_R])}, {"k": m.k}
    else:
        raise InputError("this model is not stored as arrays", value=m.name, valid=[*FACTORS, *SPARSE])
    return Stored(m.name, [str(i) for i in items.ids[known_N]], arrays, {k: float(v) for k, v in numbers.items()})


def _matrix(x: sparse.csr_matrix) -> dict[str, np.ndarray]:
    x = x.tocsr()
    return {"matrix.data": x.data.astype(np.float32), "matrix.indices": x.indices.astype(np.int32),
            "matrix.ptr": x.indptr.astype(np.int64)}  # fmt: skip


def _hashed(user_ids: Sequence[str]) -> np.ndarray:
    """(B,) int64: who somebody is, where ids would be too much said."""
    digests = (hashlib.sha256(str(u).encode()).digest()[:8] for u in user_ids)
    return np.array([int.from_bytes(d, "big", signed=True) for d in digests], np.int64)
