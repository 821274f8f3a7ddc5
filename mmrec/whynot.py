"""Where an item fell on its way into a user's list.

In: settings, tables, a user, an item, a published date. Out: one answer, with a sentence for people.
The user's list is made again as the night made it, and the item is followed down to where it was left behind.
Trade-off: the catalogue is encoded anew, and the user's whole ranking is made: seconds for 100,000 items.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.lake.store import Lake
from mmrec.recommend.again import pairs
from mmrec.recommend.choose import Chosen
from mmrec.recommend.packed import Packed
from mmrec.recommend.rules import Rule, of_records
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.slate import DRAWN, FALLBACK, MODEL, chosen
from mmrec.recommend.wishes import Wishes
from mmrec.recommend.worded import worded
from mmrec.remade import Remade, remade


def why_not(config: Config, lake: Lake, user: str, item: str, when: date | None = None) -> dict[str, Any]:
    """Where an item fell on its way into a user's list.

    Args:
        when: a published run_date; None: the newest.

    Returns: run_date, user_id, item_id, title, fell: listed, not_on_offer, withdrawn, seen, wish, rule, twin,
        second_stage, diversity, generators, outranked or unranked; says: a sentence; and what is known of rank (in the
        model's own ranking, free of rules, of everything on offer that the user has not had), score and source,
        list_length and last_score of the list, rule and line, twin, and nearest and similarity: what is most like it of
        what the list has.

    Raises: InputError: no such night, user, or item.
    """
    made = remade(config, lake, when, user)
    row = made.users.filter(pc.equal(made.users["user_id"], user))
    if not row.num_rows:
        raise InputError("this user has no list", where=f"gold.user_sequences run_date={made.day}", value=user,
                         valid=f"one of {made.users.num_rows}, as {made.users['user_id'][0]}",
                         next="mmrec sql 'select user_id from user_sequences'")  # fmt: skip
    told: dict[str, Any] = {"run_date": str(made.day), "user_id": user, "item_id": item}
    at = pc.index(made.items["item_id"], item).as_py()
    if at < 0:
        return told | _not_offered(made, item)
    told["title"] = made.items["title"][at].as_py()
    where = ds.field("user_id") == user
    listed = lake.day("gold.recommendations", made.day).filter(where).sort_by("rank").to_pylist()
    found = next((r for r in listed if r["item_id"] == item), None)
    if found:
        by = f", put there by rule {found['rule']}" if found["rule"] else ""
        return told | {"fell": "listed", "rank_in_list": found["rank"], "score": found["score"], "rule": found["rule"],
                       "says": f"it is in the list at rank {found['rank']} ({found['source']}){by}"}  # fmt: skip
    force = of_records(made.manifest.config.get("rules") or [])
    if item in row["seen_item_ids"][0].as_py():
        again = pairs(row, Ruling(force, made.items, made.manifest.moment))
        if item not in again["item_id"].to_pylist():
            return told | {"fell": "seen", "says": _seen(row, item, force)}
    if item in _taken_out(lake, made.run_id):
        return told | {"fell": "withdrawn", "says": "it left the shop after the lists were made and before they were"
                                                    " published"}  # fmt: skip
    hides = _asked_for(made, row, at, "hide")
    if hides:
        return told | {"fell": "wish", "says": f"the user hides it: {hides[0]}"}
    return told | _fell(made, row, at, force, listed)


def _taken_out(lake: Lake, run_id: str) -> list[str]:
    rows = lake.arrow("ops.runs", where=ds.field("run_id") == run_id, columns=["withdrawn"])["withdrawn"].to_pylist()
    return (rows[0] if rows else None) or []


def _seen(row: pa.Table, item: str, force: list[Rule]) -> str:
    """The last thing that the user did with it, if it is remembered, and whether any rule lets things come again."""
    events = zip(*(row[c][0].as_py() for c in ("item_ids", "event_types", "event_us")), strict=True)
    did = [(us, kind) for i, kind, us in events if i == item]
    when = f" ({max(did)[1]} on {datetime.fromtimestamp(max(did)[0] / 1e6, UTC):%Y-%m-%d})" if did else ""
    repeats = [r for r in force if r.kind == "repeat"]
    told = "no rule lets it come again yet" if repeats else "a list holds only what is new to its user"
    return f"the user has had it{when}: {told}"


def _asked_for(made: Remade, row: pa.Table, at: int, wish: str) -> list[str]:
    """A user's wishes of a kind that are about an item."""
    if not made.manifest.config.get("wishes"):
        return []
    wishes = Wishes(made.items, 0, 0)
    return [e for e in row["wishes"][0].as_py() or () if e.startswith(f"{wish} ") and at in wishes.meant(e)]


def _not_offered(made: Remade, item: str) -> dict[str, Any]:
    columns = ["title", "valid_from", "withdrawn_at", "available_at"]
    rows = made.lake.arrow("silver.items", made.manifest.tables["silver.items"], columns=columns,
                      where=ds.field("item_id") == item).sort_by("available_at").to_pylist()  # fmt: skip
    if not rows:
        raise InputError("no such item", where="silver.items", value=item, valid="an item that a source delivered",
                         next="mmrec sql 'select item_id, title from items'")  # fmt: skip
    known = [r for r in rows if r["available_at"] < made.manifest.moment]
    if not known:
        return {"title": rows[-1]["title"], "fell": "not_on_offer",
                "says": f"it was not on offer: it came on {rows[0]['available_at']:%Y-%m-%d}, after the night"}
    last = known[-1]
    gone = last["withdrawn_at"] is not None and last["withdrawn_at"] < made.manifest.moment
    why = f"withdrawn on {last['withdrawn_at']:%Y-%m-%d}" if gone else f"on offer from {last['valid_from']:%Y-%m-%d}"
    return {"title": last["title"], "fell": "not_on_offer", "says": f"it was not on offer: {why}"}


def _fell(made: Remade, row: pa.Table, at: int, force: list[Rule], listed: list[dict[str, Any]]) -> dict[str, Any]:
    """Where an item on offer fell that the user has not had."""
    ranked = [r for r in listed if r["source"] != DRAWN]
    told: dict[str, Any] = {"list_length": len(listed), "last_score": ranked[-1]["score"] if ranked else None}
    with made.packed([]) as packed:  # the whole ranking, of which nobody rules anything
        whole = chosen(row, packed.items, packed.scored(row), packed.items.num_rows, None, None)
    (place,) = (whole.lists.item_BK[0] == at).nonzero()
    source = FALLBACK
    if len(place):
        source = MODEL if whole.lists.model_BK[0, place[0]] else FALLBACK
        told |= {"rank": int(place[0]) + 1, "score": float(whole.lists.score_BK[0, place[0]]), "source": source}
    with made.packed(force) as packed:
        ruling = packed.ruling
        assert ruling is not None
        law = ruling.law(row["user_id"].combine_chunks(), row["attributes"].combine_chunks())
        cause = int(ruling.cause_N[at])  # what is kept from everybody has left the catalogue before a class's rules
        if cause < 0:
            cause = int(law.fate_CN[law.class_B[0], at, 0])
        if cause >= 0:
            r = force[cause]
            return told | {"fell": "rule", "rule": r.name, "line": r.line,
                           "says": f"rule {r.name} (line {r.line}) keeps it out: {worded(r)}"}  # fmt: skip
        draws = None if packed.draws is None else (packed.draws, made.day)
        again = chosen(row, packed.items, packed.scored(row), packed.job.k, packed.group_N, ruling, draws,
                       packed.variety, packed.wishes, packed.others, packed.second)  # fmt: skip
        for _, above, _, why, _ in again.passed[again.passed[:, 2] == at].tolist():
            if why == len(force):
                twin = _twin_in(packed, again, at)
                return told | {"fell": "twin", "twin": twin,
                               "says": f"it is the same thing as {twin}, which is in the list"}  # fmt: skip
            r = force[why]
            return told | {"fell": "rule", "rule": r.name, "line": r.line,
                           "says": f"rule {r.name} (line {r.line}) passed it over above rank {above + 1}: "
                                   f"{worded(r)}"}  # fmt: skip
        if source == MODEL and again.lists.ranked_BK.any():
            n = packed.items.num_rows
            ranking = chosen(row, packed.items, packed.scored(row), n, None, None).lists.item_BK[0].tolist()
            brought_BK = again.told_apart()
            others = 0 if brought_BK is None else int(((brought_BK >= 0) & (again.lists.item_BK >= 0)).sum())
            if ranking.index(at) < np.where(again.lists.model_BK, again.lists.ranked_BK, 0).max():
                less = _asked_for(made, row, at, "less")
                if less:
                    return told | {"fell": "wish", "says": f"the model ranks it {ranking.index(at) + 1}, and the user "
                                                           f"wants less of it: {less[0]}"}  # fmt: skip
                after = _put_lower(packed, row, again, at)
                if after is not None:
                    return told | {"fell": "second_stage", "says": f"the model ranks it {ranking.index(at) + 1}, and "
                                                                   f"its second stage {after}"}  # fmt: skip
                if packed.variety:
                    return told | _put_behind(packed, again, at, ranking.index(at) + 1)
            if others and ranking.index(at) < packed.job.k:
                return told | {"fell": "generators",
                               "says": f"the model ranks it {ranking.index(at) + 1}, and {others} of the list's "
                                       f"{len(listed)} places are what other generators brought"}  # fmt: skip
    if "rank" not in told:
        return told | {"fell": "unranked", "says": "neither the model nor popularity ranks it"}
    end = f"; the list ends at {ranked[-1]['score']:.4g}" if ranked and ranked[-1]["source"] == source else ""
    drawn = f", {len(listed) - len(ranked)} of them drawn" if len(ranked) < len(listed) else ""
    return told | {"fell": "outranked",
                   "says": f"{source} ranks it {told['rank']} of {packed.items.num_rows} with a score of "
                           f"{told['score']:.4g}, and the list has {len(listed)} places{drawn}{end}"}  # fmt: skip


def _put_lower(packed: Packed, row: pa.Table, made: Chosen, at: int) -> int | None:
    """The second stage's rank of an item that it puts behind all of the list; None: it doesn't, or there is none."""
    if packed.second is None:
        return None
    items = packed.items
    whole = chosen(row, items, packed.scored(row), items.num_rows, None, None, second=packed.second)
    ranking = whole.lists.item_BK[0].tolist()
    brought_BK = made.told_apart()
    own_K = (made.lists.ranked_BK[0] > 0) & (True if brought_BK is None else brought_BK[0] < 0)
    listed = made.lists.item_BK[0][own_K].tolist()
    after = ranking.index(at)
    return after + 1 if after > max((ranking.index(i) for i in listed), default=after) else None


def _put_behind(packed: Packed, made: Chosen, at: int, rank: int) -> dict[str, Any]:
    """Of an item that the model ranks above something in the list."""
    variety = packed.variety
    assert variety is not None
    here = [i for i in made.lists.item_BK[0].tolist() if i >= 0]
    like = variety.sketch_NV[here].astype(int) @ variety.sketch_NV[at].astype(int) / 127**2
    near, best = packed.items["item_id"][here[int(like.argmax())]].as_py(), float(like.max())
    known = f"; of what the list has, {near} is most like it ({best:.2f})" if variety.aims.looks and best > 0 else ""
    return {"fell": "diversity", "nearest": near if known else None, "similarity": best if known else None,
            "says": f"the model ranks it {rank}, and diversity put others first{known}"}  # fmt: skip


def _twin_in(packed: Packed, made: Chosen, at: int) -> str:
    group_N = packed.group_N
    assert group_N is not None
    (mate,) = [i for i in made.lists.item_BK[0].tolist() if i >= 0 and group_N[i] == group_N[at]]
    return packed.items["item_id"][mate].as_py()
