"""Is the model good: the newest evaluation of ops.metrics, arranged for reading.

In: rows of ops.metrics, the served model's version. Out: per protocol a table of models, differences with intervals,
slices, what each modality and each source adds, and the share of the oracle; None before the first evaluation.
Trade-off: the words that judge ("better", "no clear difference") come from the 95% interval alone, so a model that
is ahead by luck is not called better.
"""

from __future__ import annotations

from typing import Any

from mmrec.monitor import charts

_MODELS = {
    "champion": "what was trained: mmrec's model of behaviour, text, pictures and sound, or what train.model names",
    "second_stage": "champion with the first of its ranking put in order by its second stage, docs/second-stage.md",
    "ease": "a linear item-to-item model of behaviour (Steck, WWW 2019)",
    "item_knn": "items that the same people chose",
    "user_knn": "what people with much the same history chose",
    "content_nn": "items that look, sound or read like the history; no behaviour",
    "popularity": "the same popular items for everybody",
    "random": "any order",
    "oracle": "ranks by the tastes that the built-in world drew; the best that can be reached",
}
_PROTOCOLS = {
    "rolling": (
        "Rolling windows in time",
        "Fitted on everything before a day, asked what each user chose in the weeks after it; the nightly situation. "
        "Several such days, pooled.",
    ),
    "per_user": (
        "The last part of every user's history",
        "Each user's earlier interactions are known, their last ones are asked for. Reaches users whom a cut in time "
        "misses, and lets a model know other users' futures, so it flatters every model alike.",
    ),
}
_METRICS = {
    "ndcg@10": "hits in the first ten places, higher places counting more; 1 is a perfect list",
    "recall@10": "share of what the user chose next that stands in the first ten places",
    "mrr@10": "one over the place of the first hit",
    "ndcg@20": "as ndcg@10, of twenty places",
    "recall@20": "as recall@10, of twenty places",
    "coverage@10": "share of the catalogue that stands in some first ten; neither high nor low is good by itself",
    "novelty@10": "how little known the offered items are, in bits",
    "diversity@10": "how unlike each other the items of one list are, 0 to 1",
}
_RANKED = ("ndcg@10", "recall@10", "mrr@10", "ndcg@20", "recall@20")
_JUDGED = ("ndcg@10", "recall@10")
_SLICES = {
    "cold_items": "only items nobody had touched before the cut, ranked among themselves",
    "cold_users": "the quarter of users with the shortest histories",
    "missing_text": "chosen items that have no text",
    "missing_image": "chosen items that have no picture",
    "missing_audio": "chosen items that have no sound",
}
_SOURCES = {
    "attributes": "what users of the same attributes chose",
    "context": "what was chosen from the same device or place",
    "reviews": "what was chosen after the same words",
    "social": "what friends had lately",
    "knowledge": "what the relations of items say",
    "noise": "a coin's toss for each user, put in: what a source costs that says nothing",
}
_PARTS = {"text": "text", "image": "pictures", "audio": "sound", "id": "item identity (behaviour)"}


def quality(rows: list[dict[str, Any]], served: str | None) -> dict[str, Any] | None:
    """Arrange one evaluation.

    Args:
        rows: ops.metrics up to the night. served: model_version of the night's lists.

    Returns: run_date, version, is_served, protocols (main one first), headline, glossaries; of the newest evaluation
        of the served version, else of the newest one; None where nothing has been evaluated.
    """
    tested = [r for r in rows if r["split"] == "test"]
    if not tested:
        return None
    mine = [r["run_date"] for r in tested if r["model_version"] == served and r["model"] == "champion"]
    when = max(mine) if mine else max(r["run_date"] for r in tested)
    chosen: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    # where a day has several evaluations, the served version's rows win, then the greatest version's
    for r in sorted(tested, key=lambda r: (r["model_version"] == served, r["model_version"])):
        if r["run_date"] == when:
            chosen[r["protocol"], r["slice"], r["model"], r["metric"]] = r
    versions = {r["model_version"] for r in chosen.values() if r["model"] == "champion"}
    names = sorted({p for p, *_ in chosen}, key=lambda p: (p not in _PROTOCOLS, list(_PROTOCOLS).index(p)
                                                           if p in _PROTOCOLS else 0, p))  # fmt: skip
    protocols = [_protocol(p, {k[1:]: r for k, r in chosen.items() if k[0] == p}) for p in names]
    models = {m["model"] for p in protocols for m in p["models"]}
    shown = {c for p in protocols for c in p["columns"]}
    return {
        "run_date": when,
        "version": ", ".join(sorted(versions)) or None,
        "is_served": served in versions,
        "protocols": protocols,
        "headline": _headline(protocols[0]),
        "models": [(m, text) for m, text in _MODELS.items() if m in models],
        "metrics": [(m, text) for m, text in _METRICS.items() if m in shown],
    }


def _protocol(name: str, rows: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any]:
    title, about = _PROTOCOLS.get(name, (name, ""))
    value = {key: r["value"] for key, r in rows.items()}
    models = _order({m for s, m, _ in rows if s == "all"}, value)
    columns = [c for c in _METRICS if any(("all", m, c) in value for m in models)]
    best = {
        c: max((value[("all", m, c)] for m in models if m != "oracle" and ("all", m, c) in value), default=None)
        for c in _RANKED
    }
    table = [
        {
            "model": m,
            "cells": [
                (metric_text(c, value.get(("all", m, c))),
                 c in _RANKED and m != "oracle" and len(models) > 1 and value.get(("all", m, c)) == best[c])
                for c in columns
            ],
        }
        for m in models
    ]  # fmt: skip
    main = next((c for c in _RANKED if c in columns), None)
    drawn = [(m, value[("all", m, main)], m == "champion") for m in models if ("all", m, main) in value]
    return {
        "name": name,
        "title": title,
        "about": about,
        "n": max((r["n"] for (s, m, c), r in rows.items() if s == "all" and c == main), default=0),
        "columns": columns,
        "models": table,
        "main": main,
        "values": value,
        "chart": charts.bars(f"{main} by model", drawn, lambda v: f"{v:.4f}") if drawn else None,
        "differences": _differences(rows),
        "slices": _slices(rows, models),
        "modalities": _modalities(value),
        "sources": _sources(rows),
        "oracle": _oracle(value, models),
    }


def _order(models: set[str], value: dict[tuple[str, str, str], float]) -> list[str]:
    """Best first by ndcg@10, the oracle at the end: it is a bound, not a rival."""
    return sorted(models, key=lambda m: (m == "oracle", -value.get(("all", m, "ndcg@10"), -1.0), m))


def _differences(rows: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any] | None:
    found = []
    for (part, model, metric), r in rows.items():
        if part.startswith("vs_") and model == "champion" and metric in _JUDGED:
            found.append({"against": part.removeprefix("vs_"), "metric": metric, "value": r["value"], "lo": r["lo"],
                          "hi": r["hi"], "verdict": _verdict(r["lo"], r["hi"])})  # fmt: skip
    found.sort(key=lambda d: (_JUDGED.index(d["metric"]), d["value"], d["against"]))
    drawn = [(f"against {d['against']}", d["value"], d["lo"], d["hi"])
             for d in found if d["metric"] == _JUDGED[0] and d["lo"] is not None and d["hi"] is not None]  # fmt: skip
    if not found:
        return None
    chart = charts.intervals(f"{_JUDGED[0]}: champion less another model", drawn, signed) if drawn else None
    return {"rows": found, "chart": chart}


def _verdict(lo: float | None, hi: float | None) -> str:
    if lo is None or hi is None:
        return "no interval stored"
    return "better" if lo > 0 else "worse" if hi < 0 else "no clear difference"


def _slices(rows: dict[tuple[str, str, str], dict[str, Any]], models: list[str]) -> dict[str, Any] | None:
    names = sorted(
        {s for s, *_ in rows if s != "all" and not s.startswith(("vs_", "without_", "with_"))},
        key=lambda s: (list(_SLICES).index(s) if s in _SLICES else len(_SLICES), s),
    )
    if not names:
        return None
    metric = next((m for m in _JUDGED if any((names[0], x, m) in rows for x in models)), _JUDGED[0])
    have = [m for m in models if any((s, m, metric) in rows for s in names)]
    table = []
    for s in names:
        cells = [rows.get((s, m, metric)) for m in have]
        top = max((c["value"] for c, m in zip(cells, have, strict=True) if c and m != "oracle"), default=None)
        table.append(
            {"slice": s, "label": s.replace("_", " "), "about": _SLICES.get(s, ""),
             "n": max((c["n"] for c in cells if c), default=0),
             "cells": [(metric_text(metric, c["value"]) if c else "–",
                        bool(c) and m != "oracle" and top > 0 and c["value"] == top)
                       for c, m in zip(cells, have, strict=True)]}
        )  # fmt: skip
    return {"metric": metric, "models": have, "rows": table}


def _modalities(value: dict[tuple[str, str, str], float]) -> dict[str, Any] | None:
    """The champion with one modality masked, against itself with all of them."""
    masked = sorted(
        {s for s, m, c in value if s.startswith("without_") and m == "champion" and c in _JUDGED},
        key=lambda s: (list(_PARTS).index(s[8:]) if s[8:] in _PARTS else len(_PARTS), s),
    )
    columns = [c for c in _JUDGED if ("all", "champion", c) in value]
    if not masked or not columns:
        return None
    table = []
    for s in masked:
        cells = []
        for c in columns:
            part, whole = value.get((s, "champion", c)), value["all", "champion", c]
            change = (part - whole) / whole if part is not None and whole else None
            cells.append((metric_text(c, part), "–" if change is None else f"{change:+.1%}".replace("-", "−")))
        table.append({"label": _PARTS.get(s[8:], s[8:].replace("_", " ")), "cells": cells})
    whole = [metric_text(c, value["all", "champion", c]) for c in columns]
    drawn = [("everything", value["all", "champion", columns[0]], True)]
    drawn += [(f"without {_PARTS.get(s[8:], s[8:]).split(' (')[0]}", value[s, "champion", columns[0]], False)
              for s in masked if (s, "champion", columns[0]) in value]  # fmt: skip
    chart = charts.bars(f"{columns[0]} of the champion with one modality masked", drawn, lambda v: f"{v:.4f}")
    return {"columns": columns, "whole": whole, "rows": table, "chart": chart}


def _sources(rows: dict[tuple[str, str, str], dict[str, Any]]) -> dict[str, Any] | None:
    """The second stage against itself as it is when it is fitted without one source, or with noise put in."""
    metric, table = _JUDGED[0], []
    whole = rows.get(("all", "second_stage", metric))
    for source, about in _SOURCES.items():
        part = f"{'with' if source == 'noise' else 'without'}_{source}"
        rival, found = (rows.get((s, "second_stage", metric)) for s in (part, f"vs_{part}"))
        if whole is None or rival is None or found is None or found["lo"] is None or found["hi"] is None:
            continue
        worth = -found["value"] if source == "noise" else found["value"]
        lo, hi = (-found["hi"], -found["lo"]) if source == "noise" else (found["lo"], found["hi"])
        share = worth / whole["value"] if whole["value"] else 0.0
        table.append({"label": part.replace("_", " "), "about": about, "value": metric_text(metric, rival["value"]),
                      "worth": worth, "lo": lo, "hi": hi, "share": f"{share:+.1%}".replace("-", "−"),
                      "verdict": _verdict(lo, hi)})  # fmt: skip
    if not table or whole is None:
        return None
    drawn = [(r["label"], r["worth"], r["lo"], r["hi"]) for r in table]
    return {"metric": metric, "whole": metric_text(metric, whole["value"]), "rows": table,
            "chart": charts.intervals(f"{metric}: what each source brings", drawn, signed)}  # fmt: skip


def _oracle(value: dict[tuple[str, str, str], float], models: list[str]) -> dict[str, Any] | None:
    columns = [c for c in _JUDGED if value.get(("all", "oracle", c), 0) > 0]
    if not columns:
        return None
    shares = [(m, [value.get(("all", m, c), 0.0) / value["all", "oracle", c] for c in columns])
              for m in models if m != "oracle"]  # fmt: skip
    drawn = [(m, s[0], m == "champion") for m, s in shares]
    return {
        "columns": columns,
        "rows": [(m, [f"{v:.1%}" for v in s]) for m, s in shares],
        "chart": charts.bars(f"Share of the oracle's {columns[0]}", drawn, lambda v: f"{v:.0%}"),
        "champion": next((s[0] for m, s in shares if m == "champion"), None),
    }


def _headline(protocol: dict[str, Any]) -> dict[str, Any] | None:
    """The one comparison a newcomer asks for: is it better than showing everybody the same?"""
    value, metric = protocol["values"], protocol["main"]
    mine, popular = value.get(("all", "champion", metric)), value.get(("all", "popularity", metric))
    if metric is None or mine is None or popular is None:
        return None
    known = protocol["differences"]["rows"] if protocol["differences"] else []
    worst = [d for d in known if d["metric"] == metric and d["verdict"] in ("worse", "no clear difference")]
    found = next((d for d in known if d["against"] == "popularity" and d["metric"] == metric), None)
    return {
        "metric": metric,
        "champion": f"{mine:.4f}",
        "popularity": f"{popular:.4f}",
        "ratio": mine / popular if popular else None,
        "interval": f"{signed(found['lo'])} to {signed(found['hi'])}" if found and found["lo"] is not None else None,
        "verdict": found["verdict"] if found else None,
        "not_beaten": [(d["against"], d["verdict"]) for d in worst
                       if d["against"] not in ("popularity", "second_stage")],
        "oracle": protocol["oracle"]["champion"] if protocol["oracle"] else None,
    }


def metric_text(metric: str, value: float | None) -> str:
    """A metric in the digits that mean something."""
    if value is None:
        return "–"
    if metric.startswith("coverage"):
        return f"{value:.1%}"
    return f"{value:.2f}" if metric.startswith(("novelty", "diversity")) else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference with its sign, a true minus."""
    return f"{value:+.4f}".replace("-", "−")
