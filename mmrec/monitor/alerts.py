"""What a person should know of a night: late sources, stale inputs and lists, encoders that can't be opened any more.

In: a night's manifest, its freshness, what its embed step could not feed. Out: rows of ops.alerts, the freshness of the
latest list, and the error that ends a night without lists.
Trade-off: an alert is a row and a red task, nothing more; who is called is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from mmrec import dates, schema
from mmrec.errors import QualityError
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.monitor.health import REQUIRED


def of_lists(lake: Lake, m: Manifest) -> pa.Table:
    """One row of ops.freshness: how old the list is that users get on the manifest's run_date."""
    version = lake.version("gold.recommendations")
    latest = max((d for d in lake.run_dates() if d <= m.day), default=None)
    rows = lake.day("gold.recommendations", latest, version, ["rank"]).num_rows if latest else 0
    made_for = dates.as_of(latest, m.config["zone"]) if latest else None
    age = (m.moment - made_for).total_seconds() / 3600 if made_for else None
    row = {"run_date": m.day, "table_name": "gold.recommendations", "version": version, "rows": rows,
           "latest_available_at": made_for, "age_hours": age, "stale": latest != m.day, "run_id": m.run_id}  # fmt: skip
    return pa.Table.from_pylist([row], schema.table("ops.freshness").arrow)


def alerts(fresh: pa.Table, m: Manifest, unfed: Iterable[dict[str, Any]] = ()) -> pa.Table:
    """Rows of ops.alerts of a night.

    Args:
        fresh: its rows of ops.freshness. unfed: encoder versions that it could not feed, as `embed` tells them.
    """
    found = [("late_source", late, f"nothing matched {late} when the night read its sources") for late in m.late]
    found += [("unfed_encoder", u["version"], f"a served model needs it, and {u['waiting']} contents "
               f"({u['modality']}) wait for it: {u['reason']}") for u in unfed]  # fmt: skip
    for row in fresh.to_pylist():
        if row["stale"] and row["table_name"] == "gold.recommendations":
            found.append(("stale_list", row["table_name"], f"users get a list of {_of(row)}"))
        elif row["stale"] and row["table_name"] in REQUIRED:
            found.append(("stale_input", row["table_name"], f"its newest delivery is of {_of(row)}"))
    rows = [{"run_date": m.day, "kind": kind, "subject": subject, "message": message, "run_id": m.run_id,
             "raised_at": datetime.now(UTC)} for kind, subject, message in found]  # fmt: skip
    return pa.Table.from_pylist(rows, schema.table("ops.alerts").arrow)


def nothing_published(m: Manifest, published: list[date]) -> QualityError:
    """The end of a night whose sources were late."""
    stays = [d for d in published if d <= m.day]
    return QualityError(
        "sources were late: nothing is published for this date"
        + (f", the list of {stays[-1]} stays and is marked stale" if stays else ""),
        where=f"run_date {m.day}",
        value=m.late,
        valid="every pattern of source.expect matches a file that isn't empty",
        next=f"mmrec run --date {m.day}, once they are there",
        report={"late": m.late},
    )


def _of(row: dict) -> str:
    moment = row["latest_available_at"]
    return (
        f"{moment:%Y-%m-%d %H:%M} UTC, {row['age_hours']:.0f} hours before as_of"
        if moment
        else "no date: there is none"
    )
