"""Scores of chosen pairs of a user and an item, as the model of a published night has them, in gold.pair_scores.

In: settings, tables, a file of pairs, a published date. Out: rows of gold.pair_scores, each pair of a night once.
A score is the one that ranks lists, before rules, a second stage, diversity and draws; rank is its place among all that
was on offer, what the user has had already among it.
Trade-off: a user's whole ranking is made for a rank that is exact, so many pairs of few users are cheap, and one pair
each of many users costs more than their lists did.

Shape legend: P pairs, Q those of one user, K places of a ranking, N items on offer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mmrec import schema
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.lake import commit, evolve
from mmrec.lake.store import Lake
from mmrec.remade import Remade, remade
from mmrec.topk.seen import Seen

NAME = "gold.pair_scores"
_COLUMNS = ("user_id", "item_id")
_GATHERED = 2**21  # places of rankings at a time
_KINDS = {".csv": pyarrow.csv.read_csv, ".parquet": pq.read_table}


def scored(
    config: Config, lake: Lake, file: Path, when: date | None, tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Score every pair of a file and append what is not there yet.

    Args:
        file: .csv or .parquet with user_id and item_id; other columns are not read. when: a published run_date; None:
            the newest.

    Returns: run_date; model_versions; pairs (distinct), scored, added; rows of gold.pair_scores, in the file's order,
        of which why says what has no score.

    Raises: InputError: no such night; a file that can't be read, without rows, or with a pair that names nobody.
    """
    asked = _pairs(file)
    made = remade(config, lake, when)
    there = pc.is_in(asked["user_id"], lake.day("gold.user_sequences", made.day, columns=["user_id"])["user_id"])
    nobody, left = asked.filter(pc.invert(there)), asked.filter(there)
    blank = np.full(nobody.num_rows, "the night knew no such user", object)
    found = [_rows(made, nobody, np.zeros(len(blank)), np.zeros(len(blank), np.int64), blank)]
    total = len(left["user_id"].unique())
    while left.num_rows:  # an arm at a time
        made = remade(config, lake, when, left["user_id"][0].as_py())
        mine = pc.is_in(left["user_id"], made.users["user_id"])
        before = total - len(left["user_id"].unique())
        found += _of_arm(made, left.filter(mine), lambda n, before=before: tell("score", before + n, total))
        left = left.filter(pc.invert(mine))
    rows = pa.concat_tables(found)
    rows = rows.take(pc.sort_indices(pc.index_in(_key(rows, asked), _key(asked, asked))))
    evolve.absorb(lake)  # a home of an earlier release has no such table
    added = commit.append(lake, NAME, rows, f"{rows['run_id'][0].as_py()}-pairs")
    return {"run_date": str(rows["run_date"][0].as_py()), "pairs": rows.num_rows, "added": added,
            "model_versions": sorted(set(rows["model_version"].to_pylist())),
            "scored": rows.num_rows - rows["score"].null_count, "rows": rows.to_pylist()}  # fmt: skip


def _key(rows: pa.Table, among: pa.Table) -> pa.Array:
    """int64: a number of its own for each pair of `among`; no text stands between ids that could be in them."""
    ids = {c: among[c].unique() for c in _COLUMNS}
    user, item = (pc.index_in(rows[c], ids[c]).combine_chunks().cast(pa.int64()) for c in _COLUMNS)
    return pc.add(pc.multiply(user, len(ids["item_id"])), item)


def _pairs(file: Path) -> pa.Table:
    """user_id and item_id of a file, each pair once, in its order."""
    if file.suffix not in _KINDS:
        raise InputError("pairs come as CSV or Parquet", where="mmrec score FILE", value=str(file), valid=list(_KINDS),
                         next="mmrec score pairs.csv")  # fmt: skip
    if not file.is_file():
        raise InputError("no such file", where="mmrec score FILE", value=str(file), valid="a file of pairs",
                         next="mmrec score pairs.csv")  # fmt: skip
    kinds = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
    try:
        more = {"convert_options": kinds} if file.suffix == ".csv" else {}
        rows = _KINDS[file.suffix](file, **more)
        rows = rows.select(_COLUMNS).cast(pa.schema([(c, pa.string()) for c in _COLUMNS]))
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise InputError("the pairs can't be read", where=str(file), value=str(error).split("\n")[0][:120],
                         valid="columns user_id and item_id", next=f"edit {file}") from None  # fmt: skip
    if not rows.num_rows:
        raise InputError("there are no pairs", where=str(file), value=0, valid="a row or more", next=f"edit {file}")
    for name in _COLUMNS:
        empty = pc.indices_nonzero(pc.equal(pc.fill_null(rows[name], ""), ""))
        if len(empty):
            raise InputError("a pair names nobody, or nothing", where=f"{file}: row {empty[0].as_py() + 1}: {name}",
                             value="", valid=f"a {name}", next=f"edit {file}")  # fmt: skip
    first = np.unique(_key(rows, rows).to_numpy(), return_index=True)[1]
    return rows.take(np.sort(first))


def _of_arm(made: Remade, asked: pa.Table, tell: Callable[[int], None]) -> list[pa.Table]:
    """Rows of gold.pair_scores of pairs whose users are of one arm."""
    users = made.users.filter(pc.is_in(made.users["user_id"], asked["user_id"])).combine_chunks()
    found = []
    with made.packed([]) as packed:
        items, size = packed.items["item_id"].combine_chunks(), packed.items.num_rows
        step = max(1, _GATHERED // size)
        for start in range(0, users.num_rows, step):
            some = users.slice(start, step)
            scorer = packed.scored(some)
            if scorer is None:
                raise InputError("a popularity model scores no pairs", where=f"run_date {made.day}",
                                 value=made.manifest.model_version, valid="a night of a trained model",
                                 next="mmrec models list")  # fmt: skip
            best = scorer.best(slice(0, some.num_rows), slice(None), size, _nothing(some.num_rows))
            who = some["user_id"].combine_chunks()
            mine = asked.filter(pc.is_in(asked["user_id"], who))
            whom_P = pc.index_in(mine["user_id"], who).to_numpy()
            at_P = pc.index_in(mine["item_id"], items).fill_null(-1).to_numpy()
            place_P, score_P = np.zeros(len(at_P), np.int64), np.zeros(len(at_P))
            for b in range(some.num_rows):
                own_Q = np.flatnonzero((whom_P == b) & (at_P >= 0))
                place_N = np.full(size, -1)
                ranked_K = best.item[b][best.item[b] >= 0]
                place_N[ranked_K] = np.arange(len(ranked_K))
                place_P[own_Q] = place_N[at_P[own_Q]] + 1
                score_P[own_Q] = best.score[b, place_N[at_P[own_Q]]]
            silent_P = (best.item[:, 0] < 0)[whom_P]
            why_P = np.select(
                [at_P < 0, silent_P, place_P == 0],
                ["it was not on offer", "the model knows nothing of the user", "the model does not know the item"], "",
            )  # fmt: skip
            found.append(_rows(made, mine, score_P, place_P, why_P))
            tell(min(start + step, users.num_rows))
    return found


def _nothing(users: int) -> Seen:
    return np.zeros(users + 1, np.int64), np.zeros(0, np.int32)


def _rows(made: Remade, pairs: pa.Table, score_P: np.ndarray, rank_P: np.ndarray, why_P: np.ndarray) -> pa.Table:
    n, none = pairs.num_rows, rank_P == 0
    m = made.manifest
    columns = {"run_date": pa.repeat(pa.scalar(made.day), n), "user_id": pairs["user_id"], "item_id": pairs["item_id"],
               "score": pa.array(score_P, pa.float64(), mask=none), "rank": pa.array(rank_P, pa.int64(), mask=none),
               "why": pa.array(why_P.tolist(), pa.string(), mask=~none),
               "model_version": pa.repeat(m.model_version, n), "run_id": pa.repeat(made.run_id, n)}  # fmt: skip
    t = schema.table(NAME)
    return pa.table(columns).select(t.arrow.names).cast(t.arrow)
