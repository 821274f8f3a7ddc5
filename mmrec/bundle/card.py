"""A version's model card: what it is, what it learned from, how good it is, in a page of Markdown.

In: what bundle.json will say, rows of ops.metrics of its training. Out: text; it is sealed with the bundle, and stands
as the version's description in MLflow (Mitchell et al., FAT* 2019, "Model cards for model reporting").
Trade-off: it says what a training knows; what a version did since stands in ops.runs and ops.promotions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_METRICS = ("ndcg@10", "recall@10", "recall@20", "coverage@10")
_PROTOCOLS = {"rolling": ("test", "Rolling windows in time"),
              "per_user": ("test", "The last part of every user's history"),
              "gate": ("gate", "The days before it was trained, which the gate looks at")}  # fmt: skip
FILE = "model-card.md"


def card(about: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        about: as of bundle.json. rows: of ops.metrics (protocol, split, slice, model, metric, value, n), any order.
    """
    lines = [f"# {about['name']} as of {str(about.get('as_of') or 'the beginning')[:10]}", "",
             f"{_kind(about['kind'])} It is refitted on everything known before that moment, with settings that"
             " validation windows chose; the numbers below are of fits that had not seen their test windows, each read"
             " once.", ""]  # fmt: skip
    lines += _numbers(list(rows))
    lines += ["## What it learned from", "",
              *_bullets({f"table {n}": f"version {v}" for n, v in (about.get("data_versions") or {}).items()}),
              *_bullets({f"encoder of {m}": v for m, v in (about.get("encoders") or {}).items()}),
              *_bullets({"features": about.get("features"), "mmrec": about.get("code")}), ""]  # fmt: skip
    lines += ["## Settings that validation chose", "", *_bullets(about.get("config") or {}), ""]
    if about.get("second_stage"):
        told = about["second_stage"]
        fit = {c: told.get(c) for c in ("depth", "cases", "epochs", "loss", "parity")}
        lines += ["## Second stage", "", *_bullets(fit), ""]
    lines += ["## What to keep in mind", "",
              "- Users chose from what they were shown: test windows flatter what resembles the lists of then.",
              "- Of new users and items the slices `cold_users` and `cold_items` of `ops.metrics` tell.",
              f"- ONNX against torch: {about.get('parity') or 'not compared'}.", ""]  # fmt: skip
    return "\n".join(lines)


def _kind(kind: str) -> str:
    return {"two_tower": "Two encoders and a dot product: histories and items, by behaviour and content.",
            "factors": "A vector a user and an item.", "sparse": "A sparse matrix of items, summed over a history.",
            "popularity": "Decayed counts, the same for everybody."}[kind]  # fmt: skip


def _numbers(rows: list[Mapping[str, Any]]) -> list[str]:
    out = []
    for protocol, (split, title) in _PROTOCOLS.items():
        mine = [r for r in rows if (r["protocol"], r["split"], r["slice"]) == (protocol, split, "all")]
        by: dict[str, dict[str, float]] = {}
        for r in mine:
            by.setdefault(r["model"], {})[r["metric"]] = r["value"]
        shown = [m for m in _METRICS if any(m in values for values in by.values())]
        if not shown:
            continue
        cases = next((r["n"] for r in mine if r["model"] == "champion" and r["metric"] == "ndcg@10"), None)
        out += [f"## {title}", "", f"{cases} cases." if cases else "", "",
                f"| model | {' | '.join(shown)} |", f"|---|{'---|' * len(shown)}"]  # fmt: skip
        best = sorted(by, key=lambda m: (-by[m].get("ndcg@10", 0), m))
        out += [f"| {m} | {' | '.join(f'{by[m][x]:.4f}' if x in by[m] else '' for x in shown)} |" for m in best]
        out.append("")
    return out


def _bullets(values: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in sorted(values.items()) if value not in (None, {}, [])]
