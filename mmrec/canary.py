"""A version that serves a share of the users: its part of a night.

In: a manifest that names a canary. Out: the manifest and the items as if the canary served everybody.
Trade-off: popularity of another half-life is counted anew by the engine, some seconds a night, and stands in no table.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from mmrec.config import Config
from mmrec.features import asof, windows
from mmrec.lake.manifest import Manifest
from mmrec.lake.session import session
from mmrec.lake.store import Lake

KEY = "canary"
OF_A_BUNDLE = ("half_life_days", "text_fields", "diversity", "candidates", "second_stage")  # settings that follow it


def of_manifest(m: Manifest) -> Manifest | None:
    """What a night would read if its canary served everybody; None: it has none."""
    told = m.config.get(KEY)
    if told is None:
        return None
    config = {k: v for k, v in m.config.items() if k != KEY and k not in OF_A_BUNDLE} | told["config"]
    return replace(m, model_version=told["version"], model_digest=told["digest"], encoders=told["encoders"],
                   config=config)  # fmt: skip


def items_for(config: Config, lake: Lake, m: Manifest, trial: Manifest, items: pa.Table) -> pa.Table:
    """gold.item_features of a night as its canary asks for them: popularity has a half-life of its own, which
    validation chose; `items` are the night's, ascending by id."""
    half_life = trial.config["half_life_days"]
    if half_life == m.config["half_life_days"]:
        return items
    spark = session(config.engine, config.spark)
    frames = {k: lake.frame(spark, f"silver.{k}", m.tables[f"silver.{k}"]) for k in ("interactions", "items")}
    seen, offered = asof.interactions(frames["interactions"], m.moment), asof.items(frames["items"], m.moment)
    made = windows.item_features(seen, offered, m.day, m.moment, half_life, m.run_id)
    rows = made.select("item_id", name := "popularity_micro").toArrow()
    at = pc.index_in(items["item_id"].combine_chunks(), value_set=rows["item_id"].combine_chunks())
    return items.set_column(items.column_names.index(name), name, rows[name].take(at))
