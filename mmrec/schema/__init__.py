"""Every table mmrec owns: name, grain, columns, key, CHECKs, partition, write mode, owning step.

In: nothing. Out: `TABLES` and `table(name)`; Arrow schemas, Spark DDL, the data dictionary and the test
factories are derived from them, so a column exists here or nowhere.
Trade-off: one module a layer, so a column is found by its table's first name.
"""

from __future__ import annotations

import hashlib

from mmrec.errors import InputError
from mmrec.schema.bronze import BRONZE
from mmrec.schema.gold import GOLD
from mmrec.schema.kinds import Column, Mode, Table
from mmrec.schema.ops import OPS
from mmrec.schema.rules import TESTS, Rule
from mmrec.schema.silver import SILVER

__all__ = ["DELIVERED", "TABLES", "Column", "Mode", "Rule", "Table", "features_fingerprint", "rules", "table"]

_LATER = ("texts_sha256", "images_sha256", "attributes", "wishes", "social_item_ids", "entities", "contexts",
          "texts")  # fmt: skip
TABLES: dict[str, Table] = {t.name: t for t in (*BRONZE, *SILVER, *GOLD, *OPS)}
# the kinds of rows that sources deliver: each is bronze.<kind> and silver.<kind>
DELIVERED = tuple(t.name.removeprefix("silver.") for t in SILVER if t.step == "validate")


def table(name: str) -> Table:
    """The table called `name` ("gold.recommendations"); InputError names the tables there are."""
    try:
        return TABLES[name]
    except KeyError:
        raise InputError(
            "no such table", where="schema", value=name, valid=sorted(TABLES), next="mmrec tables"
        ) from None


def rules(name: str) -> list[tuple[Column, Rule]]:
    """What a delivered row must keep to come into silver table `name`, in the order of judgement; none of tables that
    no row is delivered for."""
    t = table(name)
    if t.step != "validate" or t.layer != "silver":
        return []
    delivered = table(name.replace("silver", "bronze"))
    order, place = list(TESTS), delivered.arrow.get_field_index
    found = [(c, r) for c in (*delivered.columns, *t.columns) for r in c.rules]
    return sorted(found, key=lambda f: (order.index(f[1].test), place(f[0].name)))


def features_fingerprint() -> str:
    """Digest of the definitions that training and scoring share: names and types of the feature tables.

    Nullable columns that came later are left out: which keys of several contents a model takes, and whether it knows
    entities, stands in its bundle, and one that was trained before they came takes none; no model reads an item's
    attributes, a user's wishes or what friends had.
    """
    tables = [table(n) for n in ("gold.user_sequences", "gold.item_features", "gold.item_embeddings")]
    early = [[c for c in t.columns if c.name not in _LATER or not c.nullable] for t in tables]
    shared = [", ".join(f"`{c.name}` {c.type}" for c in columns) for columns in early]
    return hashlib.sha256("|".join(shared).encode()).hexdigest()[:16]
