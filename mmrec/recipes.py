"""Recipes as a person picks one: what each changes, and what it reached and cost in this home.

In: mmrec's recipes and the home's files, registered versions, ops tables. Out: a row a recipe. Nothing is written.
Trade-off: what a recipe reached elsewhere says little of this shop's data, so only this home's trainings are told; one
that never trained here is not measured.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pyarrow.dataset as ds

from mmrec import versions
from mmrec.config import Config
from mmrec.errors import InputError
from mmrec.lake.store import Lake
from mmrec.learn import CHAIN
from mmrec.train.recipe import RECIPES, Recipe, recipe_named


def recipes(config: Config, lake: Lake) -> list[dict[str, Any]]:
    """mmrec's recipes and the home's, by name.

    Returns: name; file (None: mmrec's own); next: whether the next training takes it; changed: field -> value, where
        it is not `default`'s; wrong: why it can't be used, or None; version, as_of, ndcg@10 (of rolling test windows)
        and minutes (of all stations of that training) of the newest version that was trained with it as it is now, and
        measured: None where there is none.
    """
    known = versions.listed(config, lake)
    trained = [v for v in known if v["on_disk"] and v["kind"] == "two_tower" and v["ndcg@10"] is not None]
    made = {v["version"]: versions.shown(config, lake, v["version"])["about"].get("settings") for v in trained}
    files = {f.stem: f for f in sorted(config.recipes.glob("*.toml")) if f.stem not in RECIPES}
    rows = []
    for name in [*RECIPES, *files]:
        row: dict[str, Any] = {"name": name, "file": str(files[name]) if name in files else None,
                               "next": config.train.model == "champion" and config.train.recipe == name,
                               "changed": {}, "wrong": None, "version": None, "as_of": None, "ndcg@10": None,
                               "minutes": None}  # fmt: skip
        rows.append(row)
        try:
            fields = asdict(recipe_named(name, "recipes", "mmrec recipes", config.recipes))
        except InputError as error:
            row["wrong"] = f"{error.what} ({error.where}): {error.value}"
            continue
        usual = asdict(RECIPES["default"])
        row["changed"] = {k: v for k, v in fields.items() if v != usual[k]}
        told = json.loads(json.dumps(fields))
        same = (v for v in trained if made[v["version"]] and Recipe.recorded(made[v["version"]]["recipe"]) == told)
        if (newest := next(same, None)) is not None:
            row |= {k: newest[k] for k in ("version", "as_of", "ndcg@10")}
            row["minutes"] = _minutes(lake, newest["version"])
    return rows


def _minutes(lake: Lake, version: str) -> float | None:
    """Of the stations that made a version, each as it ended last; None: they are not on record."""
    days = lake.arrow("ops.metrics", columns=["run_date"], where=ds.field("model_version") == version)
    if not days.num_rows:
        return None
    of_it = (ds.field("run_date") == days["run_date"][0]) & ds.field("step").isin(CHAIN)
    rows = lake.arrow("ops.steps", where=of_it).sort_by("finished_at").to_pylist()
    last = {r["step"]: r["seconds"] for r in rows}
    return round(sum(last.values()) / 60, 2) if last else None
