"""The last look at a model, on what it made of the day's users, before its lists are published.

In: staged rows of gold.recommendations, the day's histories and user vectors, the items' side (packed.py).
Out: the numbers measured, or a QualityError naming each fault:
    nan       most users or items that the model should speak for are not numbers
    constant  most users' scores are all equal
    one_item  nearly everybody's first item is the same, and no hit
    flipped   what people had scores below what they had not
Of popularity everybody rightly has the same list: it is asked for numbers alone. What a rule moved is not the model's.
Trade-off: it stops a broken model, not a poor one, which the gate judges; of orders some hundred users tell.

Shape legend: B users, N items, P items of a history, D vector size, E entries of all histories of a batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec.errors import QualityError
from mmrec.lake.bounded import bounded
from mmrec.lake.joined import joined
from mmrec.lake.stage import Stage
from mmrec.lake.store import Lake
from mmrec.recommend.histories import flat, rows_of
from mmrec.recommend.packed import Packed
from mmrec.recommend.scorers import Sums, Vectors
from mmrec.recommend.slate import MODEL

# A sound model has a number for everyone it knows; a few broken rows cost a few lists, which fall back to popularity.
_NAN = 0.5  # share of users, or of items
# Ties are common in the lists of a neighbourhood model of a small shop, lists of nothing but ties are not.
_CONSTANT = 0.5  # share of users
_EQUAL = 1e-6  # what fp32 can't tell apart, relative to the greater score
# Few users agree by chance. Where popularity says most, a hit rightly leads the list of everyone who has not had it.
_ONE_ITEM, _ONE_ITEM_USERS, _HITS = 0.9, 50, 3  # share of users, of so many; places among the popular
# Sound models of the built-in world have .70 (a sequence model of ids) to .99, their negatives .01 to .30.
_FLIPPED, _ERRORS = 0.4, 2.0  # mean AUC, not reached even with so many standard errors more
_FEWEST = 20  # users of whom a share or a mean says something
_DRAWN = 500  # users whose scores of all items are looked at: a standard error of some .01
_CELLS = 1 << 20  # scores at a time
_READ = ("user_id", "item_ids", "vector")
_NOBODY = pa.table({"user_id": pa.array([], pa.string()), "item_ids": pa.array([], pa.list_(pa.string()))})
Sources = Mapping[str, tuple[int, Sequence[str]]]


def check_model(lake: Lake, staged: Stage, run_date: date, shared: Packed, sources: Sources) -> dict[str, float]:
    """Check the model that an arm's staged lists were made with.

    Args:
        shared: what every part of that arm's scoring shared.
        sources: table -> (version, columns) that the lists were made from.

    Returns: nan_users, nan_items, constant, one_item (shares), one_item_place (that item's among the popular), auc,
        auc_error; each only where there is something to measure it on.

    Raises: QualityError with `report["faults"]` and `report["measured"]`.
    """
    if shared.job.kind == "popularity" or not shared.items.num_rows:
        return {}
    found, drawn = _walked(lake, run_date, shared, sources)
    scored = shared.scored(drawn)
    found |= _unnumbered(shared, scored)
    # one column is popularity's, in the same order for everybody
    if shared.side is None or shared.side.item_vec.shape[1] > 1:
        found |= _listed(staged, shared) | ({} if scored is None else _ordered(shared, scored, drawn))
    if faults := _faults(found):
        raise QualityError(
            "the model is broken: " + "; ".join(f"{name}: {told}" for name, told in faults.items()),
            where=f"gold.recommendations run_date={run_date}, staged, model version {shared.job.model_version}",
            value=found,
            valid=f"nan_* to {_NAN}, constant to {_CONSTANT}, one_item to {_ONE_ITEM}, auc from {_FLIPPED}",
            next=f"mmrec models rollback, or mmrec learn --date {run_date}",
            report={"faults": faults, "measured": found},
        )
    return found


def _walked(lake: Lake, run_date: date, shared: Packed, sources: Sources) -> tuple[dict[str, float], pa.Table]:
    """Who of all users has no numbers; whose scores are looked at: of two known events on offer or more."""
    asked = {name: (at, [c for c in columns if c in _READ]) for name, (at, columns) in sources.items()}
    ids, known_N, spoken, silent, drawn = shared.items["item_id"].combine_chunks(), _known(shared), 0, 0, _NOBODY
    for batch in joined(lake, run_date, asked, None):
        users = shared.mine(pa.Table.from_batches([batch]))
        if not users.num_rows:
            continue
        history = rows_of(users["item_ids"], ids)
        known_B = np.diff(history.kept((history.at >= 0) & known_N[history.at]).ptr)
        if shared.side is not None:
            finite_B = np.isfinite(flat(users["vector"])[1].to_numpy().reshape(len(known_B), -1)).all(1)
            spoken, silent = spoken + int((known_B > 0).sum()), silent + int(((known_B > 0) & ~finite_B).sum())
            known_B = np.where(finite_B, known_B, 0)
        drawn = pa.concat_tables([drawn, users.filter(pa.array(known_B > 1))], promote_options="default")
        lot = [zlib.crc32(u.encode()) for u in drawn["user_id"].to_pylist()]
        drawn = drawn.take(np.argsort(lot, kind="stable")[:_DRAWN])
    return ({"nan_users": silent / spoken} if spoken else {}), drawn


def _known(shared: Packed) -> np.ndarray:
    """(N,) bool: items that the model has met; of a model that is content alone, those it has content of."""
    if shared.side is None:
        return shared.scored(_NOBODY).speaks_N  # type: ignore[union-attr]
    met_N = ~shared.side.cold
    return met_N if met_N.any() else np.isfinite(shared.side.item_in).all(1)


def _unnumbered(shared: Packed, scored: Vectors | Sums | None) -> dict[str, float]:
    """Which items have no numbers; of a sparse matrix, also which users drawn: most of their sums are none."""
    if not isinstance(scored, Sums):
        known_ND = shared.side.item_vec[_known(shared)]  # type: ignore[union-attr]
        return {"nan_items": float((~np.isfinite(known_ND).all(1)).mean())} if len(known_ND) else {}
    m, silent = scored.matrix_RN, []
    held_N, bad_N = (np.bincount(m.indices[of], minlength=m.shape[1]) for of in (slice(None), ~np.isfinite(m.data)))
    for _, score_BN in _scores(scored):
        told_BN, odd_BN = (score_BN != 0) & (score_BN != -np.inf), np.isnan(score_BN) | (score_BN == np.inf)
        silent += (odd_BN.sum(1) > told_BN.sum(1) / 2).tolist()
    shares = {"nan_users": silent, "nan_items": (bad_N > held_N / 2)[held_N > 0]}
    return {name: float(np.mean(of)) for name, of in shares.items() if len(of)}


def _listed(staged: Stage, shared: Packed) -> dict[str, float]:
    """What lists show, of users for whom the model filled at least half of one: less may be all there is."""
    if not (files := [str(staged.folder / f.path) for f in staged.files]):
        return {}
    shown = shared.job.k if shared.draws is None else shared.draws.kept
    with bounded() as con:
        con.from_parquet(files, hive_partitioning=False).create_view("lists")
        rows = con.execute(
            """SELECT first, count(*) AS n, sum(count(*)) OVER (), sum(count(*) FILTER (WHERE same)) OVER ()
               FROM (SELECT min_by(item_id, rank) AS first,
                            max(score) - min(score) <= $equal * greatest(abs(max(score)), abs(min(score))) AS same
                     FROM lists WHERE source = $model AND rule IS NULL AND arm = $arm
                     GROUP BY user_id HAVING count(*) >= $least)
               GROUP BY first ORDER BY n DESC, first LIMIT 1""",
            {"equal": _EQUAL, "model": MODEL, "arm": shared.job.arm,
             "least": max(2, shown / 2)}).fetchall()  # fmt: skip
    first, most, users, same = rows[0] if rows else ("", 0, 0, 0)
    found = {"constant": int(same) / int(users)} if users >= _FEWEST else {}
    if users >= _ONE_ITEM_USERS:
        liked_N, its = shared.items["popularity_micro"].to_numpy(), pc.index(shared.items["item_id"], first).as_py()
        ahead_N = (liked_N >= liked_N[its]) & (True if shared.ruling is None else shared.ruling.allowed_N)
        found |= {"one_item": int(most) / int(users), "one_item_place": float(ahead_N.sum())}
    return found


def _ordered(shared: Packed, scored: Vectors | Sums, drawn: pa.Table) -> dict[str, float]:
    """Mean over users of the AUC of what they had against all else that may be offered, and its standard error."""
    may_N = scored.speaks_N if scored.allowed_N is None else scored.speaks_N & scored.allowed_N
    place_N = np.cumsum(may_N) - 1
    history = rows_of(drawn["item_ids"], shared.items["item_id"].combine_chunks())
    aucs: list[float] = []
    for rows, score_BN in _scores(scored):
        for u, score_N in enumerate(score_BN[:, may_N], rows.start):
            at = history.at[history.ptr[u] : history.ptr[u + 1]]
            had_P = np.unique(place_N[at[(at >= 0) & may_N[at]]])
            # a neighbourhood says nothing of an item by itself, so one alone is no evidence
            if 1 < len(had_P) < len(score_N) and not np.isnan(score_N).any():
                aucs.append(_auc(score_N, had_P))
    n = len(aucs)
    return {"auc": float(np.mean(aucs)), "auc_error": float(np.std(aucs) / n**0.5)} if n >= _FEWEST else {}


def _auc(score_N: np.ndarray, had_P: np.ndarray) -> float:
    """How probably one of P has a greater score than one of the others; a tie counts half."""
    ascending_N, p = np.sort(score_N), len(had_P)
    below_P, to_P = (np.searchsorted(ascending_N, score_N[had_P], side) for side in ("left", "right"))
    return float((((below_P + to_P + 1) / 2).sum() - p * (p + 1) / 2) / (p * (len(score_N) - p)))


def _scores(scored: Vectors | Sums) -> Iterator[tuple[slice, np.ndarray]]:
    """(users, their (b, N) scores), a few users at a time, in order; of a blend that re-ranks, what its lists show."""
    if isinstance(scored, Sums):
        yield from scored.stored.sums(scored.history_UM, scored.user_ids, scored.matrix_RN)
        return
    n, users = len(scored.item_ND), len(scored.user_UD)
    for start in range(0, users, step := max(1, _CELLS // n)):
        rows = slice(start, min(start + step, users))
        with np.errstate(invalid="ignore", over="ignore"):
            score_BN = scored.user_UD[rows] @ scored.item_ND.T
        if scored.how is not None and scored.cold_N is not None:  # its candidates lead, in their order
            seen = np.zeros(len(score_BN) + 1, np.int64), np.zeros(0, np.int32)  # by nobody
            top = scored.best(rows, slice(None), min(n, scored.how.depth * len(scored.how.members)), seen)
            b, at = np.nonzero(top.item >= 0)
            score_BN[b, top.item[b, at]] = np.fmax.reduce(score_BN, axis=None) + top.item.shape[1] - at
        yield rows, score_BN


def _faults(found: dict[str, float]) -> dict[str, str]:
    """Name -> what is wrong, in words; not what another fault brings with it."""
    if (nan := max((found.get(f"nan_{of}", 0.0), of) for of in ("users", "items")))[0] > _NAN:
        return {"nan": f"{nan[0]:.0%} of the {nan[1]} it knows are not numbers"}
    if found.get("constant", 0.0) > _CONSTANT:
        return {"constant": f"all scores of {found['constant']:.0%} of the users are equal"}
    faults = {}
    if found.get("one_item", 0.0) > _ONE_ITEM and found["one_item_place"] > _HITS:
        faults["one_item"] = f"{found['one_item']:.0%} of the users have the same first item"
    if "auc" in found and found["auc"] + _ERRORS * found["auc_error"] < _FLIPPED:
        faults["flipped"] = f"what people had scores above the rest in {found['auc']:.0%} of pairs, not in most"
    return faults
