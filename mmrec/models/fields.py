"""Several contents of one modality that an item has (title and description, many pictures), pooled to one vector.

In: content keys of items, vectors of contents, what was chosen. Out: which contents stand for an item, and its vector.
Whoever joins vectors to items does it by this: training, scoring, baselines, neighbours. A choice is part of what a
model was trained on and stands in its bundle.
Trade-off: each content is encoded and kept whatever is chosen, so that another choice costs a training and no encoding.

Shape legend: M contents, N items, D vector size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mmrec.errors import InputError

# what stands for an item where nothing was chosen, and in bundles of before there was a choice
USUAL = {"text": "joined", "image": "first"}
_POOLS = {"joined": "first", "separate": "mean", "first": "first", "mean": "mean"}
_BLOCK = 4096  # items pooled at a time
_NOTHING = 1e-9  # a sum of unit vectors below this times their number points nowhere


def pooling(choices: Mapping[str, str], modality: str) -> str:
    """How contents of `modality` are pooled, "first" or "mean", under `choices`, modality -> choice.

    Raises: InputError: no such choice.
    """
    choice = choices.get(modality, USUAL.get(modality, "first"))
    if choice not in _POOLS:
        raise InputError("no such choice of fields", where=f"fields of {modality}", value=choice, valid=list(_POOLS),
                         next="edit content in mmrec.toml")  # fmt: skip
    return _POOLS[choice]


def contents(one: Iterable[str | None], several: Iterable[Sequence[str | None] | None]) -> list[list[str]]:
    """(N,) content keys that stand for items, in order, each once.

    Args:
        one: (N,) the key of an item's one content, or None. several: (N,) its keys, None within for what is not there;
            None: it has but the one.
    """
    return [list(dict.fromkeys(k for k in (o,) if k)) if s is None else list(dict.fromkeys(k for k in s if k))
            for o, s in zip(one, several, strict=True)]  # fmt: skip


def pool_fields(emb_MD: np.ndarray, fields: Sequence[Sequence[int]], how: str) -> tuple[np.ndarray, np.ndarray]:
    """One vector an item. A row's bits depend on its own fields alone.

    Args:
        emb_MD: vectors of contents. fields: (N,) rows of `emb_MD` that an item has, in order; none: it has no vector.
        how: "first": the first of them. "mean": the mean of their unit vectors, made as long as they are on average,
            so of length 1 where they are; a single one stays as it is, a vector of zeros counts as none.

    Returns: (N, D) float32, zero where an item has nothing; (N,) bool, whether it has a vector.

    Raises: InputError: another `how`, vectors that are no matrix, a row that is not there.
    """
    if how not in ("first", "mean"):
        raise InputError("no such pooling of fields", where="pool_fields", value=how, valid=("first", "mean"),
                         next="edit content in mmrec.toml")  # fmt: skip
    asked = [row for own in fields for row in own]
    if emb_MD.ndim != 2 or (asked and not 0 <= min(asked) <= max(asked) < len(emb_MD)):
        raise InputError("fields and vectors don't fit", where="pool_fields", valid="rows of an (M, D) matrix",
                         value=(emb_MD.shape, min(asked, default=0), max(asked, default=0)),
                         next="pass the rows of vectors that are there")  # fmt: skip
    first_N = np.array([own[0] if len(own) else -1 for own in fields], np.int64)
    there_N = first_N >= 0
    out_ND = np.zeros((len(fields), emb_MD.shape[1]), np.float32)
    out_ND[there_N] = emb_MD[first_N[there_N]]
    if how == "mean":
        many = [n for n, own in enumerate(fields) if len(own) > 1]
        for start in range(0, len(many), _BLOCK):
            at = many[start : start + _BLOCK]
            out_ND[at], there_N[at] = _mean(emb_MD, [fields[n] for n in at])
    return out_ND, there_N


def _mean(emb_MD: np.ndarray, fields: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    sum_ND = np.zeros((len(fields), emb_MD.shape[1]))
    length_N, count_N = np.zeros(len(fields)), np.zeros(len(fields))
    for place in range(max(map(len, fields))):  # of fields, not of items: few
        at = [n for n, own in enumerate(fields) if len(own) > place]
        vector_BD = emb_MD[[fields[n][place] for n in at]].astype(np.float64)
        norm_B = np.linalg.norm(vector_BD, axis=1)
        sum_ND[at] += vector_BD / np.where(norm_B > 0, norm_B, 1)[:, None]
        length_N[at] += norm_B
        count_N[at] += norm_B > 0
    norm_N = np.linalg.norm(sum_ND, axis=1)
    there_N = norm_N > _NOTHING * np.maximum(count_N, 1)
    scale_N = np.where(there_N, length_N / np.maximum(count_N, 1) / np.where(there_N, norm_N, 1), 0)
    return (sum_ND * scale_N[:, None]).astype(np.float32), there_N
