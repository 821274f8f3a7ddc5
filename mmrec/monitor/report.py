"""report.html: one page that says whether last night's lists can be trusted, for a reader who knows nothing.

In: a lake, a run_date, what the run measured about itself. Out: one self-contained file: no script, no link, no
font or picture from elsewhere; a content policy in the page forbids them, and the template escapes every value.
Trade-off: the page is drawn from tables alone and holds copies of a few small pictures, so it can be mailed and
read years later, and it never changes after the night. Those of items that are alike take a megabyte at most: what
finds no room is a card of text.
"""

from __future__ import annotations

import base64
import io
import json
import os
import warnings
from collections.abc import Callable
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from jinja2 import Environment, FunctionLoader, StrictUndefined
from PIL import Image

from mmrec import schema
from mmrec.lake.store import Lake
from mmrec.monitor import charts, health
from mmrec.monitor.decisions import decisions
from mmrec.monitor.quality import metric_text, quality, signed
from mmrec.monitor.show import plain, user_pages

_NIGHTS = 30  # past nights a chart goes back
_HISTORY, _OFFERED = 6, 10  # pictures a user
_PICTURE = (160, 240)  # twice the size on the page, pixels
_POSTER = (96, 144)  # of the items that are alike, which are many
_POSTERS = 1_000_000  # bytes of all of those, as they stand on the page
_MAX_PIXELS = 20_000_000
_PRICED = {
    "ndcg@10": "what users then chose, in the first ten places, higher places counting more",
    "recall@10": "share of what they then chose that stands in the first ten places",
    "diversity@10": "how unlike each other the items of one list are, 0 to 1",
    "mix@10": "how far a list's mix of categories is from its user's own; 0: the same",
    "novelty@10": "how little known the offered items are, in bits",
    "coverage@10": "share of the catalogue that stands in some first ten",
}
_Still = Callable[[bytes, tuple[int, int]], bytes]


def write_report(
    lake: Lake,
    run_date: date,
    folder: Path,
    *,
    zone: str = "UTC",
    seconds: dict[str, float] | None = None,
    versions: dict[str, int],
    example_users: int = 6,
    curves: list[dict[str, Any]] | None = None,
    alike: dict[str, Any] | None = None,
    diversity: dict[str, str] | None = None,
    still: _Still = lambda data, size: data,
) -> Path:
    """Write `<folder>/report.html`, whole or not at all.

    Args:
        seconds: station -> wall time of this run; None: the page says that it wasn't measured.
        versions: table -> version that the night read (the manifest's); what isn't named is read as it is now.
        example_users: users shown with pictures, spread evenly over the lengths of histories.
        curves: one row an epoch of the served model's training: epoch, loss, val_ndcg@10 (or ndcg).
        alike: `picks`: rows of item_id, kind, users, since, and `near`, modality -> rows of item_id, similarity, same;
            `measures`: rows of modality, items, of, k, shared, chance, difference, lo, hi, jaccard, jaccard_chance.
        diversity: `kind` in words, and `unpriced`, why it was not measured what it costs; None: there is none.
        still: (a medium's bytes, a size in pixels) -> a picture file that stands for it, as a frame does for a video;
            without it a video has no picture.

    Returns: the file's path. What has not been measured yet is said to be missing, and what makes it appear.
    """
    night = _night(lake, run_date)
    stale = _rows(lake, "ops.freshness", ds.field("run_date") == run_date)
    past = _past_nights(lake, run_date, night)
    page = {
        "run_date": run_date,
        "zone": zone,
        "night": night,
        "fresh": sorted(stale, key=lambda r: r["table_name"]),
        "quality": quality(_rows(lake, "ops.metrics", ds.field("run_date") <= run_date), night["model_version"]),
        "training": _training(curves),
        "decisions": decisions(lake, run_date),
        "intake": _intake(lake, versions),
        "quarantine": _quarantine(lake),
        "health": past,
        "rules": _rules(lake, run_date, night["run_id"]),
        "diversity": diversity and _diversity(lake, run_date, diversity),
        "reasons": _reasons(lake, night["model_version"]),
        "seconds": _seconds(seconds),
        "users": _examples(lake, run_date, zone, versions, example_users, still) if night["lists"] else [],
        "alike": _alike(lake, alike or {"picks": [], "measures": []}, still),
        "tables": [(t.name, t.view, t.grain) for t in schema.TABLES.values() if t.layer in ("gold", "ops")],
    }
    env = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # not by path: under spark-submit the package is a zip
        loader=FunctionLoader(lambda name: resources.files("mmrec.monitor").joinpath(name).read_text(encoding="utf-8")),
    )
    env.filters |= {
        "plain": lambda v: plain(str(v)),
        "count": lambda v: f"{v:,.0f}",
        "age": _age,
        "percent": lambda v: f"{100 * v:.1f}%",
        "day": _day,
        "month": lambda d: f"{d.day} {d:%B %Y}",
    }
    text = env.get_template("report.html").render(page)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "report.html"
    part = target.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)
    return target


def _rows(lake: Lake, name: str, where: ds.Expression | None = None) -> list[dict[str, Any]]:
    return lake.arrow(name, where=where).to_pylist() if lake.exists(name) else []


def _night(lake: Lake, run_date: date) -> dict[str, Any]:
    """Size and identity of the published lists."""
    lists = lake.day("gold.recommendations", run_date, columns=["user_id", "arm", "model_version", "run_id", "rank"])
    ran = lists.filter(pc.equal(lists["arm"], "main"))["model_version"]
    found: dict[str, Any] = {"lists": 0, "rows": lists.num_rows, "model_version": None, "run_id": None, "k": 0,
                             "items": 0, "known": 0, "finished_at": None, "content_hash": None, "canary": None,
                             "tried": 0,
                             "served": max((d for d in lake.run_dates() if d < run_date), default=None)}  # fmt: skip
    if not lists.num_rows:
        return found
    run_id = lists["run_id"][0].as_py()
    found |= {"lists": pc.count_distinct(lists["user_id"]).as_py(), "run_id": run_id,
              "model_version": ran[0].as_py() if len(ran) else None, "k": pc.max(lists["rank"]).as_py(),
              "tried": pc.count_distinct(lists.filter(pc.equal(lists["arm"], "canary"))["user_id"]).as_py(),
              "items": lake.day("gold.item_features", run_date, columns=["run_date"]).num_rows,
              "known": lake.day("gold.user_sequences", run_date, columns=["run_date"]).num_rows}  # fmt: skip
    for record in _rows(lake, "ops.runs", ds.field("run_id") == run_id):
        found |= {"finished_at": record["finished_at"], "content_hash": record["content_hash"]}
        config = json.loads(record["manifest"]).get("config", {})
        found |= {"k": config.get("k", found["k"]), "canary": config.get("canary")}
    return found


def _past_nights(lake: Lake, run_date: date, night: dict[str, Any]) -> dict[str, Any]:
    """Tonight's counts, and charts of what they were on earlier nights."""
    if not night["lists"]:
        return {"tonight": {}, "sources": [], "charts": []}
    rows = _rows(lake, "ops.metrics", (ds.field("protocol") == "night") & (ds.field("run_date") <= run_date))
    published = {
        r["run_date"]: r["run_id"]
        for r in sorted(_rows(lake, "ops.runs", ds.field("run_date") <= run_date), key=lambda r: r["table_version"])
    }
    of_published = {r["run_date"] for r in rows if r["run_id"] == published.get(r["run_date"])}
    rows = [r for r in rows if r["run_id"] == published.get(r["run_date"]) or r["run_date"] not in of_published]
    if run_date not in of_published:  # not recorded yet, or recorded by an earlier run of this date
        rows = [r for r in rows if r["run_date"] != run_date]
        made = health.night_metrics(lake, run_date, night["run_id"], night["model_version"], night["k"])
        rows += made.to_pylist()
    nights = sorted({r["run_date"] for r in rows})[-_NIGHTS:]
    value = {(r["run_date"], r["slice"], r["metric"]): r for r in rows}
    tonight = {m: r for (d, s, m), r in value.items() if d == run_date and s == "all"}
    sources = sorted(
        {s.removeprefix("source=") for _, s, m in value if m == "row_share"}, key=lambda s: (s != "model", s)
    )
    labels = [_day(d, short=True) for d in nights]
    drawn = []
    for metric, title in (("churn@10", "Churn of the first ten places"), ("coverage@10", "Catalogue coverage")):
        series = [value[d, "all", metric]["value"] if (d, "all", metric) in value else None for d in nights]
        if sum(v is not None for v in series) > 1:
            drawn.append((title, charts.lines(f"{title} by night", labels, [(title, series)], _percent, _percent)))
    if len(nights) > 1:
        shares = [(s, [value.get((d, f"source={s}", "row_share"), {"value": 0.0})["value"] for d in nights])
                  for s in sources]  # fmt: skip
        drawn.append(("Where rows came from", charts.columns("Source of rows by night", labels, shares, _percent)))
    mix = [(s, value.get((run_date, f"source={s}", "row_share"), {"value": 0.0})["value"]) for s in sources]
    return {"tonight": tonight, "sources": mix, "charts": drawn}


def _training(curves: list[dict[str, Any]] | None) -> list[tuple[str, Any]]:
    """Charts of loss and validation ndcg over epochs, of the last fit where several follow each other."""
    rows = list(curves or [])
    for i in range(len(rows) - 1, 0, -1):
        if rows[i].get("epoch", 0) <= rows[i - 1].get("epoch", 0):
            rows = rows[i:]
            break
    labels = [str(r.get("epoch", i + 1)) for i, r in enumerate(rows)]
    drawn = []
    for title, names in (("Training loss", ("loss",)), ("Validation ndcg@10", ("val_ndcg@10", "ndcg@10", "ndcg"))):
        values = [next((float(r[n]) for n in names if r.get(n) is not None), None) for r in rows]
        if any(v is not None for v in values):
            form = _number if title.startswith("Validation") else (lambda v: f"{v:.3g}")
            chart = charts.lines(f"{title} by epoch", labels, [(title, values)], form, "{:g}".format, from_zero=False)
            drawn.append((title, chart))
    return drawn


def _intake(lake: Lake, versions: dict[str, int]) -> list[dict[str, Any]]:
    """Rows delivered, kept and in quarantine, by kind; a row that was brought back is kept."""
    made = []
    for kind in (*schema.DELIVERED, "media"):
        bronze, silver = f"bronze.{kind}", f"silver.{kind}"
        if lake.exists(bronze):
            delivered = lake.dataset(bronze).count_rows()
            of_it = ds.field("table_name") == bronze
            held = lake.arrow("ops.quarantine", columns=["row_hash", "occurrence"], where=of_it)
            bad, kept = held.group_by(["row_hash", "occurrence"]).aggregate([]).num_rows, None
            if silver in schema.TABLES:
                rows = lake.dataset(silver, versions.get(silver))
                kept = rows.count_rows()
                once = held.filter(pc.equal(held["occurrence"], 0))["row_hash"].unique()
                bad -= rows.count_rows(filter=ds.field("row_hash").isin(once)) if len(once) else 0
            made.append({"kind": kind, "delivered": delivered, "kept": kept, "bad": bad})
    return made


def _quarantine(lake: Lake) -> list[dict[str, Any]]:
    return _rows_of(lake, "ops.quarantine", ["table_name", "rule"])


def _rows_of(lake: Lake, name: str, by: list[str]) -> list[dict[str, Any]]:
    """Number of rows by some columns, most first."""
    if not lake.exists(name):
        return []
    counts = lake.arrow(name, columns=by).group_by(by).aggregate([([], "count_all")]).to_pylist()
    rows = [{**{c: r[c] for c in by}, "rows": r["count_all"]} for r in counts]
    return sorted(rows, key=lambda r: (-r["rows"], *(r[c] for c in by)))


def _rules(lake: Lake, run_date: date, run_id: str | None) -> list[dict[str, Any]]:
    """What the rules of the published run did, in the file's order; twins last, if there were any."""
    rows = _rows(lake, "ops.rule_drops", (ds.field("run_date") == run_date) & (ds.field("run_id") == (run_id or "")))
    told = [r for r in rows if r["kind"] != "twin" or r["passed"]]
    return sorted(told, key=lambda r: (r["kind"] in ("twin", "withdrawn"), r["line"]))


def _reasons(lake: Lake, version: str | None) -> list[dict[str, Any]]:
    """How often what a model's reasons name first is what its score loses most without; a row a way to choose it."""
    where = (ds.field("protocol") == "reasons") & (ds.field("model_version") == (version or ""))
    rows = _rows(lake, "ops.metrics", where & (ds.field("metric") == "first"))
    return [r for name in ("contributions", "nearest", "most_recent") for r in rows if r["model"] == name]


def _diversity(lake: Lake, run_date: date, about: dict[str, str]) -> dict[str, Any]:
    """What diversity costs and brings: rows of metric, without, with, and the difference's interval, if it has one."""
    where = (ds.field("protocol") == "price") & (ds.field("slice") == about["kind"])
    value = {(r["metric"], r["model"]): r for r in
             _rows(lake, "ops.metrics", (ds.field("run_date") == run_date) & where)}  # fmt: skip
    told: dict[str, Any] = {"kind": about["kind"], "unpriced": about.get("unpriced"), "rows": [], "users": 0}
    if not value:
        return told
    rows = []
    for metric, about in _PRICED.items():
        if (metric, "with") in value:
            change = value.get((metric, "difference"))
            found = {m: value[metric, m]["value"] for m in ("without", "with")}
            fine = metric in ("diversity@10", "mix@10")
            both = {m: f"{v:.3f}" if fine else metric_text(metric, v) for m, v in found.items()}
            interval = f"{signed(change['lo'])} to {signed(change['hi'])}" if change else None
            rows.append({"metric": metric, "about": about, "interval": interval} | both)
    return told | {"rows": rows, "users": next(iter(value.values()))["n"]}


def _seconds(seconds: dict[str, float] | None) -> dict[str, Any] | None:
    spent = {k: v for k, v in (seconds or {}).items() if k != "total"}
    if not spent:
        return None
    longest = max(spent, key=lambda k: spent[k])
    rows = [(k, float(v), k == longest) for k, v in spent.items()]
    total = (seconds or {}).get("total", sum(spent.values()))
    return {"total": total, "chart": charts.bars("Seconds by step", rows, lambda v: f"{v:.1f} s")}


def _examples(
    lake: Lake, day: date, zone: str, versions: dict[str, int], n: int, still: _Still
) -> list[dict[str, Any]]:
    """Users spread evenly over the lengths of histories, with what they did and what they are offered."""
    listed = lake.day("gold.recommendations", day, columns=["user_id"])["user_id"].unique()
    known = lake.day("gold.user_sequences", day, columns=["user_id", "n_interactions"])
    known = known.filter(pc.is_in(known["user_id"], listed))
    ids = known.sort_by([("n_interactions", "ascending"), ("user_id", "ascending")])["user_id"].to_pylist()
    ids = ids or sorted(listed.to_pylist())
    chosen = [ids[len(ids) * (2 * i + 1) // (2 * n)] for i in range(n)] if len(ids) > n else ids
    length = dict(zip(known["user_id"].to_pylist(), known["n_interactions"].to_pylist(), strict=True))
    shown = []
    for page in user_pages(lake, chosen, day, zone, versions=versions, last=10 * _HISTORY):
        once: dict[str, dict[str, Any]] = {}
        for row in page.history:
            once.setdefault(row["item_id"], row)
        shown.append({"user_id": page.user_id, "attributes": page.attributes, "interests": page.interests,
                      "n": length.get(page.user_id, 0), "history": list(once.values())[:_HISTORY],
                      "slate": page.slate[:_OFFERED]})  # fmt: skip
    wanted = {r["image_sha256"] for u in shown for r in (*u["history"], *u["slate"]) if r["image_sha256"]}
    pictures = _pictures(lake, wanted, still)
    for user in shown:
        for row in (*user["history"], *user["slate"]):
            row["picture"] = pictures.get(row["image_sha256"])
    return shown


def _alike(lake: Lake, alike: dict[str, Any], still: _Still) -> dict[str, Any]:
    """The same, each row with its title, picture, categories and which of them it has in common with the pick."""
    ids = {i for p in alike["picks"] for i in (p["item_id"], *(r["item_id"] for n in p["near"].values() for r in n))}
    columns = ["item_id", "title", "categories", "image_sha256", "available_at", "row_hash"]
    mine = ds.field("item_id").isin(pa.array(sorted(ids), pa.string()))
    known = lake.arrow("silver.items", columns=columns, where=mine)
    about = {r["item_id"]: r for r in
             known.sort_by([("available_at", "ascending"), ("row_hash", "ascending")]).to_pylist()}  # fmt: skip
    pictures = _pictures(lake, {r["image_sha256"] for r in about.values() if r["image_sha256"]}, still, _POSTER)
    room = _POSTERS

    def told(row: dict[str, Any], pick: dict[str, Any] | None = None) -> dict[str, Any]:
        nonlocal room
        own, theirs = about[row["item_id"]], (about[pick["item_id"]]["categories"] or ()) if pick else ()
        picture = pictures.get(own["image_sha256"])
        room -= len(picture or "")
        return row | {"title": plain(own["title"] or ""), "picture": picture if room >= 0 else None,
                      "categories": [(plain(c), c in theirs) for c in own["categories"] or () if c]}  # fmt: skip

    picks = [told(p) | {"near": {m: [told(r, p) for r in rows] for m, rows in p["near"].items()}}
             for p in alike["picks"]]  # fmt: skip
    for p in picks:
        p["pictured"] = any(r["picture"] for r in (p, *(r for rows in p["near"].values() for r in rows)))
    return alike | {"picks": picks}


def _pictures(
    lake: Lake, wanted: set[str], still: _Still, size: tuple[int, int] = _PICTURE
) -> dict[str, str]:
    """sha256 -> data URI of a small copy. What can't be decoded safely has none."""
    made: dict[str, str] = {}
    if not wanted or not lake.exists("bronze.media"):
        return made
    mine = ds.field("sha256").isin(sorted(wanted)) & (ds.field("modality") == "image")
    for batch in lake.batches("bronze.media", columns=["sha256", "bytes"], where=mine):
        for row in batch.to_pylist():
            small = _thumbnail(still(row["bytes"], size), size)
            if small is not None:
                made[row["sha256"]] = "data:image/jpeg;base64," + base64.b64encode(small).decode()
    return made


def _thumbnail(data: bytes, size: tuple[int, int]) -> bytes | None:
    """Decoded and encoded anew, so that nothing of the delivered file but its pixels reaches the page."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF"))
            if image.width * image.height > _MAX_PIXELS:
                return None
            image.draft("RGB", size)
            small = image.convert("RGB")
            small.thumbnail(size)
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80, optimize=True)
            return out.getvalue()
    except Exception:  # decoders raise whatever they like on hostile bytes
        return None


def _number(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 or abs(value * 100 - round(value * 100)) < 1e-9 else f"{value:.1%}"


def _day(day: date, short: bool = False) -> str:
    return f"{day.day} {day:%b}" if short else f"{day.day} {day:%b %Y}"


def _age(hours: float | None) -> str:
    """An age in words a person would use."""
    if hours is None:
        return "never delivered"
    if hours < 72:
        return f"{hours:.0f} hours"
    return f"{hours / 24:,.0f} days" if hours < 24 * 730 else f"{hours / 24 / 365.25:.1f} years"
