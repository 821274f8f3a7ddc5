"""The station publish: the last look at staged lists, their one commit, and the run's record.

In: a `Night` whose lists are staged. Out: the day's lists, a row of ops.runs. A retry, a late attempt and a run that
another one overtook are told apart by fences and by who published.
Trade-off: what is staged is read again from the disk, twice: once to look at it, once for its content hash.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mmrec import schema
from mmrec.context import Night
from mmrec.errors import InputError
from mmrec.holding import let_through
from mmrec.lake import commit, content, stage
from mmrec.lake.audit import audit
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.withdrawn import recorded, withdrawn, without

if TYPE_CHECKING:
    from mmrec.recommend.ruling import Ruling

GROUPS = "silver.item_groups"


def twins(night: Night) -> pa.Table | None:
    """item_id and group_id of who is listed twice, as planned; None: the manifest is of before that was known."""
    version = night.manifest.tables.get(GROUPS)
    return None if version is None else night.lake.arrow(GROUPS, version, columns=["item_id", "group_id"])


def twins_on_offer(night: Night) -> int:
    """How many items on offer have a twin on offer."""
    listed = twins(night)
    if listed is None:
        return 0
    here = night.out.day("gold.item_features", night.manifest.day, columns=["item_id"])["item_id"]
    groups = listed.filter(pc.is_in(listed["item_id"], value_set=here.combine_chunks()))["group_id"].value_counts()
    return sum(g["counts"] for g in groups.to_pylist() if g["counts"] > 1)


def ruling_of(lake: Lake, m: Manifest) -> Ruling:
    """The rules of a run over its date's items, from features that `lake` holds."""
    from mmrec.recommend.rules import of_records
    from mmrec.recommend.ruling import Ruling

    columns = ["item_id", "title", "categories", "attributes"]
    items = lake.day("gold.item_features", m.day, columns=columns).sort_by("item_id")
    return Ruling(of_records(m.config.get("rules") or []), items, m.moment)


def _own_features(night: Night) -> None:
    """A list is published beside the features it was made of, or not at all.

    Raises: Fenced: another run of the date has replaced them."""
    m = night.manifest
    for name in ("gold.user_sequences", "gold.item_features"):
        found = commit.published_run_id(night.out, name, m.day)
        if found != m.run_id:
            raise commit.Fenced(
                "another run of this date has replaced the features of this one",
                where=f"{name} run_date={m.day}",
                value=found,
                valid=m.run_id,
                next=f"mmrec run --date {m.day}",
            )


def _commit_staged(night: Night, staged: stage.Stage) -> None:
    from mmrec.recommend.again import COLUMNS, pairs
    from mmrec.recommend.check import check_slates
    from mmrec.recommend.wishes import Wishes, hidden_pairs

    m = night.manifest
    ruling = ruling_of(night.out, m) if m.config.get("rules") else None
    told = ["user_id", "seen_item_ids", *(["attributes"] if ruling else [])]
    told += ["item_ids", *COLUMNS] if ruling and ruling.repeats else []
    told += ["wishes"] if m.config.get("wishes") else []
    users = night.out.day("gold.user_sequences", m.day, columns=told)
    items = night.out.day("gold.item_features", m.day, columns=["item_id", "categories", "attributes"])
    gone = withdrawn(night)
    first, staged = staged, without(night, staged, gone)
    items = items.filter(pc.invert(pc.is_in(items["item_id"], value_set=pa.array(gone, pa.string()))))
    kept = {} if ruling is None else ruling.tables(users) | {"again": pairs(users, ruling)}
    if m.config.get("wishes"):
        kept["hidden"] = hidden_pairs(users, Wishes(items.sort_by("item_id"), 0, 0))
    try:
        before = [d for d in night.out.run_dates() if d < m.day]
        previous = night.out.day(staged.table, before[-1], columns=["rank"]).num_rows if before else 0
        least = m.config["min_share"]
        checked = audit(night.out, staged, partition=str(m.day), previous_rows=previous, min_share=least)
        check_slates([staged.folder / f.path for f in staged.files], users, items, m.config["k"], twins(night),
                     kept)  # fmt: skip
        let_through(night, ruling, users)
        commit.adopt(
            night.out,
            checked,
            run_id=m.run_id,
            pinned=night.fence(staged.table),
            partition=m.day,
            metadata={"model_version": m.model_version},
        )
    except BaseException:
        if staged is not first:
            staged.discard()
        raise
    if staged is not first:
        first.discard()


def publish(night: Night) -> dict[str, Any]:
    """Look at the staged lists once more, then make them the day's one commit."""
    m, name = night.manifest, "gold.recommendations"
    if m.late:
        return {"late": m.late, "changed": False}
    done = commit.published_run_id(night.out, name, m.day) == m.run_id
    if not done:
        pointer = night.folder / "stage.json"
        folder = stage.waiting(pointer)
        _own_features(night)
        staged = folder and stage.find(name, folder)
        found = commit.fence(night.out, name, m.day)  # before the look at who published: it may be this very run
        if staged:
            _commit_staged(night, staged)
            pointer.unlink(missing_ok=True)
        elif commit.published_run_id(night.out, name, m.day) == m.run_id:
            done = True  # another attempt of this run was faster
        elif found != night.fence(name):
            raise commit.Fenced(
                "another run of this date was faster, and what this one staged was dropped",
                where=f"{name} run_date={m.day}",
                value=f"fence {found}",
                valid=f"fence {night.fence(name)}, as it was planned",
                next=f"mmrec run --date {m.day}",
            )
        else:
            raise InputError(
                "there is nothing staged to publish",
                where=f"run_date {m.day}, run {m.run_id}",
                value=f"{folder.name} is gone" if folder else None,
                valid="a stage that recommend left and maintenance has not taken",
                next=f"mmrec recommend --date {m.day}",
            )
    version = night.out.version(name)
    digest = content.content_hash(lambda columns: night.out.day(name, m.day, version, columns), name)
    users = night.out.day(name, m.day, version, ["user_id"])["user_id"]
    known = night.out.arrow("ops.runs", columns=["run_id"]).column(0).to_pylist()
    gone = recorded(night)
    counts = {
        "rows": len(users),
        "users": pc.count_distinct(users).as_py(),
        "content_hash": digest,
        "changed": not done,
        "withdrawn": len(gone),
    }
    if m.run_id not in known:
        record = {
            "run_id": m.run_id,
            "run_date": m.day,
            "manifest": m.to_json(),
            "content_hash": digest,
            "model_version": m.model_version,
            "users": counts["users"],
            "rows": counts["rows"],
            "table_version": version,
            "withdrawn": gone or None,
            "finished_at": datetime.now(UTC),
        }
        row = pa.Table.from_pylist([record], schema.table("ops.runs").arrow)
        commit.append(night.out, "ops.runs", row, m.run_id)
    return counts
