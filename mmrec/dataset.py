"""What models are learned from: a home's behaviour, items and contents as of a run_date, and windows to judge them on.

In: silver and the embedding cache at their versions of now. Out: dense views, validation and test folds, the fold of
the refit.
Trade-off: all of it is in memory, read once a process.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec import dates
from mmrec.context import Night
from mmrec.errors import QualityError
from mmrec.lake.session import session
from mmrec.models import splits
from mmrec.models.data import Fold, Items, Log
from mmrec.models.knowledge import Knowledge
from mmrec.models.sources import Sources
from mmrec.models.tables import items_from, log_from
from mmrec.served import encoders

_RELATIONS, _USERS = "silver.relations", "silver.users"


@dataclass(frozen=True)
class Data:
    """What is learned from: dense views as of a run_date, and where they came from.

    Attributes:
        rows: of the items, in their order: item_id, the keys of their contents, and their entities.
        knowledge: of their entities; None: the settings ask for none, or nothing is known.
        sources: what is known of users beside behaviour; None: no second stage looks at it.
        fields: modality -> which of an item's contents are its own, see models/fields.py.
        left_out: suspects and interactions that `train.exclude_suspects` kept out; empty where it is off.
    """

    items: Items
    log: Log
    rows: pa.Table
    tables: dict[str, int]
    encoders: dict[str, str]
    fields: dict[str, str]
    knowledge: Knowledge | None = None
    sources: Sources | None = None
    left_out: dict[str, int] = field(default_factory=dict)


def dataset(night: Night) -> Data:
    """Interactions, items and embeddings as of the run_date, read once a process."""
    if not hasattr(night, "_data"):
        from mmrec.features import asof
        from mmrec.features.windows import content_text, fields_of
        from mmrec.lake.content import text_key

        lake, spark, as_of = night.lake, session(night.config.engine, night.config.spark), night.as_of
        stage = night.config.second_stage
        wide = bool(stage.depth and (stage.sources or stage.columns))
        names = ("silver.interactions", "silver.items", "silver.item_groups", "gold.item_embeddings", _RELATIONS,
                 *([_USERS] if wide else []))  # fmt: skip
        # one that is made again may be of before models knew entities
        tables = {n: lake.pin(n) for n in names} if night.again is None else {
            n: night.again.tables[n] for n in names if n != _RELATIONS or n in night.again.tables}  # fmt: skip
        seen = asof.interactions(lake.frame(spark, "silver.interactions", tables["silver.interactions"]), as_of)
        rows, left_out = seen.toArrow(), {}
        if night.config.train.exclude_suspects:
            from mmrec.features import suspects

            # of this moment, not of the table: tonight's are found after training
            found = suspects.suspects(seen, night.config.suspects.model_dump(), night.run_date, "train").toArrow()
            kept = suspects.without(rows, found)
            left_out = {"suspects": pc.count_distinct(found["user_id"]).as_py(),
                        "interactions": rows.num_rows - kept.num_rows}  # fmt: skip
            rows = kept
        known = asof.items(lake.frame(spark, "silver.items", tables["silver.items"]), as_of, on_offer=False).toArrow()
        entities: dict[str, list[str]] = {}
        if _RELATIONS in tables:
            linked = asof.entities(lake.frame(spark, _RELATIONS, tables[_RELATIONS]), as_of).toArrow()
            entities = dict(zip(*(linked[c].to_pylist() for c in ("item_id", "entities")), strict=True))
        own = [entities.get(i) for i in known["item_id"].to_pylist()]
        known = known.append_column("entities", pa.array(own, pa.list_(pa.string())))
        knowledge = Knowledge.fit(own, night.config.content.knowledge)
        texts = list(zip(*(known[c].to_pylist() for c in ("title", "categories", "text")), strict=True))
        whole = pa.array([text_key(content_text(*t)) for t in texts], pa.string())
        apart = pa.array([[text_key(f) for f in fields_of(*t)] or None for t in texts], pa.list_(pa.string()))
        known = known.append_column("text_sha256", whole).append_column("texts_sha256", apart)
        for column, source in (("available_us", "valid_from"), ("withdrawn_us", "withdrawn_at")):
            known = known.append_column(column, _micros(known[source]))
        if not wide and night.config.source.size != "rich":  # whose oracle reads what users wrote
            rows = rows.drop_columns(["context", "text"])
        for column, source in (("event_us", "event_ts"), ("available_us", "available_at")):
            rows = rows.append_column(column, _micros(rows[source]))
        versions = {e.modality: e.version for e in encoders(night.config)}
        vectors = lake.arrow("gold.item_embeddings", tables["gold.item_embeddings"])
        versions = {m: v for m, v in versions.items() if v in set(vectors["encoder_version"].unique().to_pylist())}
        twins = lake.arrow("silver.item_groups", tables["silver.item_groups"], columns=["item_id", "group_id"])
        groups, fields = dict(zip(*(c.to_pylist() for c in twins), strict=True)), night.config.content.fields
        items = items_from(known, vectors, versions, groups, fields, knowledge)
        keys = [c for c in known.column_names if c in ("item_id", "entities", "attributes") or c.endswith("_sha256")]
        about = known.select(keys).sort_by("item_id")
        log = log_from(rows, items)
        sources = _sources(night, tables, log, about) if wide else None
        night._data = Data(items, log, about, tables, versions, fields, knowledge, sources, left_out)  # type: ignore[attr-defined]
    return night._data  # type: ignore[attr-defined]


def _sources(night: Night, tables: dict[str, int], log: Log, about: pa.Table) -> Sources:
    """What is known of the users of a log, as of the run_date. `about`: the items, in their order."""
    from mmrec.features import asof

    spark, as_of, asked = session(night.config.engine, night.config.spark), night.as_of, night.config.candidates
    users = asof.users(night.lake.frame(spark, _USERS, tables[_USERS]), as_of).toArrow()
    edges = asof.edges(night.lake.frame(spark, _RELATIONS, tables[_RELATIONS]), as_of).toArrow()
    told = dict(zip(*(users[c].to_pylist() for c in ("user_id", "attributes")), strict=True))
    place = {str(user): u for u, user in enumerate(log.user_ids)}
    friends: dict[int, list[int]] = {}
    for one, other in sorted(zip(*(edges[c].to_pylist() for c in ("subject_id", "object_id")), strict=True)):
        if one in place and other in place:
            friends.setdefault(place[one], []).append(place[other])
    return Sources([told.get(str(u)) for u in log.user_ids], friends, about["entities"].to_pylist(), asked.social_days,
                   asked.depth, about["attributes"].to_pylist(), night.config.second_stage.columns)  # fmt: skip


def folds(night: Night, data: Data) -> dict[str, tuple[list[Fold], list[Fold]]]:
    """protocol -> (validation folds, test folds)."""
    e, end = night.config.evaluate, dates.micros(night.as_of)
    both = splits.rolling(data.log, data.items, end, days=e.rolling_days, cuts=2 * e.rolling_cuts,
                          min_history=e.min_history)  # fmt: skip
    cut = end - e.rolling_cuts * e.rolling_days * 86_400_000_000
    rolling = ([f for f in both if f.fit_at_us < cut], [f for f in both if f.fit_at_us >= cut])
    share = {"share": e.per_user_share, "min_history": e.min_history}
    per_user = [[splits.per_user(data.log, data.items, validation=v, **share)] for v in (True, False)]
    made = {"rolling": rolling, "per_user": (per_user[0], per_user[1])}
    made = {p: ([f for f in v if f.n_cases], [f for f in t if f.n_cases]) for p, (v, t) in made.items()}
    if any(not v or not t for v, t in made.values()):
        raise QualityError(
            "there is too little history to evaluate a model",
            where=f"run_date {night.run_date}",
            value={p: [len(v), len(t)] for p, (v, t) in made.items()},
            valid="at least one validation and one test window with a case in each protocol",
            next="mmrec run --no-train",
        )
    return made


def everything(data: Data, night: Night) -> Fold:
    """Every interaction as train, nobody asked: the fold of the refit."""
    n = len(data.log.user)
    empty, start = np.zeros(0, np.int64), np.zeros(1, np.int64)
    train, offer = np.ones(n, bool), np.ones(data.items.n, bool)
    nobody = empty.astype(np.int32)
    return Fold("refit", train, dates.micros(night.as_of), nobody, empty, start, empty, start, nobody, offer)


def _micros(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
