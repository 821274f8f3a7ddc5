"""Gold tables as Airflow's assets, so that a team's own DAG can run when a table has been written.

In: names of stations. Out: assets, one a gold table that they write, named as the table; and `ops.training_due`.
    DAG(..., schedule=[Asset("gold.recommendations", "x-mmrec://gold/recommendations")])
Trade-off: the scheme begins with `x-`, which Airflow takes as it is; for any other it loads all providers to look for
one that knows it, 60 ms in every parse of a DAG file.
"""

from __future__ import annotations

from airflow.sdk import Asset, AssetAlias

from mmrec.steps import step

# an outlet that is an asset gets an event whenever its task succeeds; one that is an alias, only when it is given one
TRAINING_DUE = Asset("ops.training_due", "x-mmrec://ops/training_due", group="mmrec")
TRAINING_ALIAS = AssetAlias("ops.training_due.reasons", group="mmrec")


def table_asset(name: str) -> Asset:
    """The asset of a table."""
    return Asset(name, f"x-mmrec://{name.replace('.', '/')}", group="mmrec")


def outlets(steps: tuple[str, ...]) -> list[Asset | AssetAlias]:
    """What the stations write that others may wait for."""
    gold = dict.fromkeys(t for name in steps for t in step(name).writes if t.startswith("gold."))
    return [table_asset(t) for t in gold] + ([TRAINING_ALIAS] if "monitor" in steps else [])
