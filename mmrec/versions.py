"""Model versions as a person asks for them: which there are, what each is, and how two differ.

In: the registry, bundles on disk, ops tables. Out: rows and documents for a table or a program. Nothing is written.
A version's numbers are those of its own training's test windows; two versions are comparable where windows and
cases are the same, and `compare` says whether they are.
Trade-off: every version's bundle.json is read, some milliseconds each; graphs and arrays are not.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pyarrow.dataset as ds

from mmrec import promotion
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import Bundle, load
from mmrec.config import Config
from mmrec.errors import InputError, QualityError
from mmrec.evaluate.contest import version_named
from mmrec.lake.store import Lake

_METRICS = ("ndcg@10", "recall@10", "recall@20", "coverage@10")
_SHOWN = ("rolling", "per_user")
_DIFFER = ("name", "kind", "as_of", "config", "encoders", "fields", "features", "data_versions", "code", "blend",
           "second_stage", "settings")  # fmt: skip


def listed(config: Config, lake: Lake) -> list[dict[str, Any]]:
    """All registered versions and version 0, the newest first: version, serves (as the lake says), share (of the users
    that it serves as a canary; None: it is none), aliases, name, kind, as_of, sha256, on_disk, ndcg@10 (of rolling test
    windows; None where it was not measured), gate (its newest decision), nights (published with it, for all users),
    last_night."""
    registered, state = _registered(config), registry.state(config)
    now, trial = state.version, None if state.trial is None else state.trial.version
    nights: dict[str, list[str]] = {}
    for row in lake.arrow("ops.runs", columns=["model_version", "run_date"]).to_pylist():
        nights.setdefault(row["model_version"], []).append(str(row["run_date"]))
    decided = _decisions(lake)
    where = _of(_METRICS[:1]) & (ds.field("protocol") == "rolling")
    ndcg = {r["model_version"]: r["value"] for r in lake.arrow("ops.metrics", where=where).to_pylist()}
    rows = []
    for version in sorted(registered, key=int, reverse=True):
        tags, aliases = registered[version]["tags"], sorted(registered[version]["aliases"])
        bundle = _bundle(config, version)
        digest = tags.get("sha256") or (bundle.digest if bundle else None)
        about = bundle.about if bundle else {}
        rows.append({
            "version": version, "serves": version == now, "share": state.share if version == trial else None,
            "aliases": aliases, "name": about.get("name"),
            "kind": about.get("kind", tags.get("kind")), "as_of": about.get("as_of"), "sha256": digest,
            "on_disk": bundle is not None, "ndcg@10": ndcg.get(version),
            "gate": decided.get(version, {}).get("decision"), "nights": len(nights.get(version, [])),
            "last_night": max(nights.get(version, []), default=None),
        })  # fmt: skip
    return rows


def shown(config: Config, lake: Lake, version: str) -> dict[str, Any]:
    """What is known of a version: the row of `listed`, and about (bundle.json), metrics: protocol -> model -> metric ->
    value of test windows, and of the days that the gate looks at; decisions of the gate, files of the bundle with their
    digests.

    Raises: InputError: no such version, or its bundle is not on this disk. QualityError: that was altered since it was
        sealed.
    """
    row = _row(config, lake, version)
    version = row["version"]
    bundle = load(config.bundles / version, row["sha256"])
    sealed = json.loads((bundle.folder / "digest.json").read_text())["files"]
    rows = lake.arrow("ops.promotions", where=ds.field("model_version") == version).sort_by("decided_at").to_pylist()
    return row | {"about": bundle.about, "metrics": _metrics(lake, version), "files": sealed,
                  "decisions": [{c: str(r[c]) for c in ("decided_for", "decision", "reason", "champion_before")}
                                for r in rows]}  # fmt: skip


def compared(config: Config, lake: Lake, one: str, other: str) -> dict[str, Any]:
    """How two versions differ: versions; same_days: by how much one is ahead of the other on days that they, or their
    stand-ins, did not know (since, until, ahead, of, difference, lo, hi, cases, churn), None where there are none;
    same_windows (whether their test numbers are of the same cases, by protocol); metrics: rows of protocol, metric,
    model, one, other, difference; differs: field of bundle.json -> both values, of mappings what differs.

    Raises: InputError: no such version, or not on this disk.
    """
    rows = [_row(config, lake, v) for v in (one, other)]
    one, other = (r["version"] for r in rows)
    told = {v: load(config.bundles / v, deep=False).about for v in (one, other)}
    first, second = (_metrics(lake, v) for v in (one, other))
    found = []
    for protocol in _SHOWN:
        for model in ("champion", "second_stage", "popularity", "item_knn"):
            a, b = (m.get(protocol, {}).get(model, {}) for m in (first, second))
            both = {metric: (a[metric], b[metric]) for metric in _METRICS if metric in a and metric in b}
            found += [{"protocol": protocol, "model": model, "metric": metric, "one": x, "other": y,
                       "difference": y - x} for metric, (x, y) in both.items()]  # fmt: skip
    cases = {v: _cases(lake, v) for v in (one, other)}
    same = {p: cases[one].get(p) == cases[other].get(p) and _ends(told[one]) == _ends(told[other])
            for p in _SHOWN if p in cases[one] or p in cases[other]}  # fmt: skip
    differs = {f: list(_apart(told[one].get(f), told[other].get(f))) for f in _DIFFER
               if told[one].get(f) != told[other].get(f)}  # fmt: skip
    return {"versions": rows, "same_days": _same_days(config, one, other), "same_windows": same, "metrics": found,
            "differs": differs}  # fmt: skip


def _same_days(config: Config, one: str, other: str) -> dict[str, Any] | None:
    """The newer beside the older, as the gate would see them."""
    for ahead, behind in ((other, one), (one, other)):
        try:
            served, bundle = registry.of_version(config, behind), load(config.bundles / ahead)
        except (InputError, QualityError):
            continue
        contest = promotion.met(config, bundle, served)
        found = contest.difference(version_named(behind)) if contest is not None and served is not None else None
        if contest is not None and found is not None:
            mean, lo, hi, cases = found
            return {"since": contest.since.isoformat(), "until": contest.until.isoformat(), "ahead": ahead,
                    "of": behind, "difference": mean, "lo": lo, "hi": hi, "cases": cases,
                    "churn": contest.churn(version_named(behind))}  # fmt: skip
    return None


def _apart(one: Any, other: Any) -> tuple[Any, Any]:
    """Two values that differ; of mappings, only what does."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return one, other
    keys = [k for k in {**one, **other} if one.get(k) != other.get(k)]
    both = {k: _apart(one.get(k), other.get(k)) for k in keys}
    mine, theirs = ({k: pair[n] for k, pair in both.items() if k in of} for n, of in enumerate((one, other)))
    return mine, theirs


def numbered(config: Config, version: str) -> str:
    """The number of a version that may be named by an alias.

    Raises: InputError: no such version.
    """
    if version.isdigit():
        return version
    known = _registered(config)
    found = next((v for v, told in known.items() if version in told["aliases"]), None)
    if found is None:
        raise InputError("no such version", where="mmrec models", value=version,
                         valid=[v for n, told in known.items() for v in (n, *told["aliases"])],
                         next="mmrec models list")  # fmt: skip
    return found


def _registered(config: Config) -> dict[str, dict[str, Any]]:
    """Version -> tags and aliases; version 0 is on disk only."""
    found: dict[str, dict[str, Any]] = {registry.ZERO: {"tags": {}, "aliases": []}}
    if config.mlflow_uri is None and not (config.home / "mlflow.db").is_file():
        return found  # asking would make one
    c = server.client(config)
    for v in c.search_model_versions(f"name = '{registry.NAME}'"):
        found[str(v.version)] = {"tags": dict(v.tags), "aliases": []}
    for model in c.search_registered_models(filter_string=f"name = '{registry.NAME}'"):
        for alias, version in model.aliases.items():
            found.get(str(version), {"aliases": []})["aliases"].append(alias)
    return found


def _row(config: Config, lake: Lake, version: str) -> dict[str, Any]:
    rows = listed(config, lake)
    row = next((r for r in rows if version == r["version"] or version in r["aliases"]), None)
    if row is None:
        raise InputError("no such version", where="mmrec models", value=version,
                         valid=[v for r in rows for v in (r["version"], *r["aliases"])],
                         next="mmrec models list")  # fmt: skip
    if not row["on_disk"]:
        raise InputError("this version's bundle is not on this disk", where=str(config.bundles / row["version"]),
                         value=f"version {row['version']}", valid=[r["version"] for r in rows if r["on_disk"]],
                         next="mmrec models list")  # fmt: skip
    return row


def _bundle(config: Config, version: str) -> Bundle | None:
    with suppress(InputError, QualityError):
        return load(config.bundles / version, deep=False)
    return None


def _of(metrics: tuple[str, ...]) -> Any:
    return ((ds.field("split") == "test") & (ds.field("slice") == "all") & (ds.field("model") == "champion")
            & ds.field("metric").isin(metrics))  # fmt: skip


def _metrics(lake: Lake, version: str) -> dict[str, dict[str, dict[str, float]]]:
    split = ds.field("split").isin(["test", "gate"])
    where = (ds.field("model_version") == version) & split & (ds.field("slice") == "all")
    out: dict[str, dict[str, dict[str, float]]] = {}
    for r in lake.arrow("ops.metrics", where=where).to_pylist():
        out.setdefault(r["protocol"], {}).setdefault(r["model"], {})[r["metric"]] = r["value"]
    return out


def _cases(lake: Lake, version: str) -> dict[str, int]:
    """Protocol -> cases of its test numbers."""
    where = (ds.field("model_version") == version) & _of(_METRICS[:1])
    return {r["protocol"]: r["n"] for r in lake.arrow("ops.metrics", where=where).to_pylist()}


def _ends(about: dict[str, Any]) -> Any:
    """Windows are counted back from as_of, over one version of the interactions."""
    return about.get("as_of"), (about.get("data_versions") or {}).get("silver.interactions")


def _decisions(lake: Lake) -> dict[str, dict[str, Any]]:
    """Version -> the newest decision of the gate."""
    rows = lake.arrow("ops.promotions").sort_by("decided_at").to_pylist()
    return {r["model_version"]: r for r in rows}
