"""What a reader is told of who serves: the newest requests, and what the gate saw of the newest version.

In: ops.serving, ops.promotions. Out: rows for the report's page.
Trade-off: of the gate's numbers only the newest decision's are drawn; those of others stand in the tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

import pyarrow.dataset as ds

from mmrec.lake.store import Lake
from mmrec.monitor.quality import metric_text, signed

_NEWEST = 10
_RIVALS = ("champion", "popularity", "item_knn")
_BESIDE = {
    "coverage@10": "share of the catalogue that stands in some first ten; too little is held",
    "popularity_bias@10": "how popular what it lists is, beside what people choose; too much is held",
    "ms_per_user": "milliseconds to score a user",
    "bytes": "size of the version on disk, bytes",
}


def decisions(lake: Lake, run_date: date) -> dict[str, Any]:
    """`requests`: the newest first: asked_at, action, model_version, before, by, why, said, share; `gate`: of the
    newest decision with numbers up to a night, or None: model_version, before, decision, cases, rivals (name, value,
    difference, interval, verdict), beside (name, about, own, champion), also: name -> number in words."""
    rows = lake.arrow("ops.serving").to_pylist() if lake.exists("ops.serving") else []
    rows.sort(key=lambda r: r["asked_at"], reverse=True)
    requests = [{c: r[c] for c in ("asked_at", "action", "model_version", "before", "why", "said", "overridden",
                                   "share")}
                | {"by": f"{r['asked_by']}, {r['through']}"} for r in rows[:_NEWEST]]  # fmt: skip
    where = ds.field("decided_for") <= run_date
    decided = lake.arrow("ops.promotions", where=where).to_pylist() if lake.exists("ops.promotions") else []
    newest = max((r for r in decided if "challenger" in json.loads(r["numbers"])),
                 key=lambda r: (r["decided_for"], r["decided_at"]), default=None)  # fmt: skip
    return {"requests": requests, "gate": newest and _gate(newest, json.loads(newest["numbers"]))}


def _gate(row: Mapping[str, Any], numbers: Mapping[str, float]) -> dict[str, Any]:
    rivals = []
    for name in (n for n in _RIVALS if f"{n}/difference" in numbers):
        lo, hi = numbers[f"{name}/lo"], numbers[f"{name}/hi"]
        rivals.append({
            "name": f"version {row['champion_before']}, which served" if name == "champion" else name,
            "value": metric_text("ndcg@10", numbers[name]), "difference": signed(numbers[f"{name}/difference"]),
            "interval": f"{signed(lo)} to {signed(hi)}",
            "verdict": "better" if lo > 0 else "worse" if hi < 0 else "unclear",
        })  # fmt: skip
    beside = [{"name": name, "about": about, "own": _text(name, numbers[f"challenger/{name}"]),
               "champion": _text(name, numbers[f"champion/{name}"])}
              for name, about in _BESIDE.items() if f"champion/{name}" in numbers]  # fmt: skip
    also = {}
    if "churn@10" in numbers:
        also["of a list's first ten are others than the champion's"] = f"{numbers['churn@10']:.0%}"
    if "cold_items/difference" in numbers:
        also[f"ndcg@10 of cold items against the champion, {numbers['cold_items/cases']:.0f} users"] = signed(
            numbers["cold_items/difference"])  # fmt: skip
    return {"model_version": row["model_version"], "before": row["champion_before"], "decision": row["decision"],
            "reason": row["reason"], "decided_for": row["decided_for"], "cases": int(numbers["cases"]),
            "value": metric_text("ndcg@10", numbers["challenger"]), "rivals": rivals, "beside": beside,
            "also": also}  # fmt: skip


def _text(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "bytes" else f"{value:.2f}" if name == "ms_per_user" else metric_text(name, value)
