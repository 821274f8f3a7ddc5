"""The stations of the night, each a thin function from a `Night` to counts; the rooms do the work.

In: a `Night` (settings, run_date, lakes). Out: counts for the log; tables and files are the result.
Stations before `plan` are idempotent by source digest and content hash; those after it read only the manifest.
Trade-off: stations of one process share an engine session and nothing else, so that each can also be run alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import mmrec
from mmrec import alike, canary, follows, late
from mmrec.context import Night
from mmrec.encoding import unfed
from mmrec.errors import InputError, QualityError
from mmrec.files import put
from mmrec.lake import commit, stage
from mmrec.lake.manifest import Manifest
from mmrec.lake.session import session
from mmrec.lake.spread import map_arrow
from mmrec.lake.store import Lake
from mmrec.models.fields import USUAL
from mmrec.publish import GROUPS, ruling_of, twins, twins_on_offer
from mmrec.withdrawn import recorded

SILVER = ("items", "users", "interactions", "relations", "impressions", "wishes")
TARGETS = ("gold.user_sequences", "gold.item_features", "gold.user_profiles", "gold.user_vectors",
           "gold.recommendations", "ops.freshness")  # fmt: skip


def world(night: Night) -> dict[str, Any]:
    """Let the built-in world deliver every day before run_date; other sources deliver by themselves."""
    source = night.config.source
    if source.spec != "builtin":
        return {}
    from mmrec.worlds.builtin import World

    published = set(night.lake.run_dates())

    def shown(day: date) -> pa.Table | None:
        return night.lake.day("gold.recommendations", day) if day in published else None

    return {"days": World(source.seed, source.size).catch_up(night.config.source_root, night.run_date, shown)}


def ingest(night: Night) -> dict[str, Any]:
    """See worlds/ingest.py."""
    from mmrec.content.fetch import Fetcher
    from mmrec.worlds import ingest as room
    from mmrec.worlds.sources import open_configured

    source = night.config.source
    # before reading: what comes while we read is of the next night
    overdue = late.missing(*late.expected(night.config, night.run_date))
    put(_overdue(night), json.dumps(overdue))
    opened = open_configured(night.config)
    fetch = Fetcher(source.media_hosts, minutes=source.media_minutes) if source.media_hosts else None
    counts = commit.again(
        lambda: room.ingest(
            night.lake,
            opened,
            min_share=source.min_share,
            gone=source.gone,
            fetch=fetch,
            progress=lambda file, rows: night.progress(f"ingest {file}", rows, 0),
        )
    )
    if fetch:
        fetch.close()
    return counts | ({"late": overdue} if overdue else {})


def _overdue(night: Night) -> Path:
    """Which expected files had not come when the date was last ingested."""
    return night.config.runs / f"late-{night.run_date}.json"


def validate(night: Night) -> dict[str, Any]:
    """Bronze to silver: every bronze row that is in neither silver nor quarantine gets its place."""
    from mmrec.features import verdicts

    lake, spark = night.lake, session(night.config.engine, night.config.spark)
    earliest, latest = verdicts.bounds(lake, night.config.source.earliest)
    share = night.config.source.max_bad_share
    counts: dict[str, Any] = {}
    for kind in SILVER:  # another writer of the same table may be faster
        counts |= commit.again(partial(_validate, lake, spark, kind, earliest, latest, share))
    return counts


def _validate(
    lake: Lake, spark: Any, kind: str, earliest: datetime, latest: datetime, max_bad_share: float
) -> dict[str, int]:
    from mmrec.features import silver, verdicts

    found = verdicts.judge(lake, spark, kind, silver.pending, earliest, latest)
    silver.bearable(kind, found.good, found.bad, max_bad_share)
    return verdicts.keep(lake, found)


def plan(night: Night) -> dict[str, Any]:
    """Pin table versions, model, settings and fences; the manifest's digest is the run_id."""
    from mmrec.bundle.registry import champion
    from mmrec.promotion import reconcile
    from mmrec.recommend import rules
    from mmrec.review import reviewed

    lake, config = night.lake, night.config
    pinned = [*(f"silver.{k}" for k in SILVER), GROUPS, "gold.item_embeddings"]
    followed = reconcile(config)
    bundle, version = champion(config, night.as_of)
    ruled = [r.record() for r in reviewed(lake, rules.read(config.rules)) if r.holds(night.run_date)]
    drawn = {"explore": config.explore.model_dump() | {"ends": "places"}} if config.explore.share else {}
    fences = {n: commit.fence(lake, n, night.run_date) for n in TARGETS}
    for name in TARGETS:  # a fence, too, must be there after the power went
        lake.pin(name)
    manifest = Manifest(
        run_date=str(night.run_date),
        as_of=night.as_of.isoformat(),
        tables={n: lake.pin(n) for n in pinned},
        model_version=version,
        model_digest=bundle.digest,
        encoders=bundle.encoders,
        config=config.night.model_dump()
        | drawn
        | follows.of_bundle(config, bundle, night.run_date)
        | follows.of_canary(config, night.as_of, night.run_date)
        | {"zone": config.zone, "entities": True, "suspects": config.suspects.model_dump(), "rules": ruled,
           "reasons": config.reasons.model_dump(exclude={"studied"}), "wishes": config.wishes.model_dump()},
        fences=fences,
        code=mmrec.__version__,
        late=json.loads(_overdue(night).read_text()) if _overdue(night).is_file() else [],
    )
    night.planned(manifest)
    told = {"registry": followed} if not followed["answers"] or followed.keys() & {"asked", "restored"} else {}
    return {"run_id": manifest.run_id} | asdict(manifest) | told


def features(night: Night) -> dict[str, Any]:
    """Write the day's features of users and items from the pinned silver tables, and who is suspect."""
    from mmrec.features import asof, fused, suspects
    from mmrec.lake.scratch import kept

    m, lake = night.manifest, night.lake
    if m.late:
        return {"late": m.late}
    spark = session(night.config.engine, night.config.spark)
    kinds = ["items", "users"]
    settings = _looked_at(m)
    if fused.asked_social(settings) or m.config.get("entities"):
        kinds.append("relations")
    if "silver.wishes" in m.tables:  # a manifest of an earlier release pins none
        kinds.append("wishes")
    silver = {k: lake.frame(spark, f"silver.{k}", m.tables[f"silver.{k}"]) for k in kinds}
    delivered = lake.frame(spark, "silver.interactions", m.tables["silver.interactions"])
    seen = asof.events(delivered, m.moment, fused.asked_about(settings))
    with kept(night.out, "gold.user_sequences", seen, m.run_id) as events:
        made = fused.fused(events, silver, m.day, m.moment, settings, m.run_id, _text_fields(m))
        counts = {
            name: commit.write(
                night.out,
                name,
                frame,
                run_id=m.run_id,
                pinned=night.fence(name),
                partition=m.day,
            ).rows
            for name, frame in made.items()
        }
        if "suspects" in m.config:  # a manifest of an earlier release has no bounds
            found = suspects.suspects(events, m.config["suspects"], m.day, m.run_id).toArrow()
            commit.append(night.out, "ops.suspects", found, m.run_id)
            counts["ops.suspects"] = found.num_rows
    return counts


def recommend(night: Night) -> dict[str, Any]:
    """Score every user against every item on offer and stage the lists; nothing is visible yet."""
    from mmrec.features.fused import asked_social
    from mmrec.recommend import generators, second, spread
    from mmrec.recommend.again import COLUMNS
    from mmrec.recommend.arms import MAIN
    from mmrec.recommend.packed import opened
    from mmrec.recommend.sane import check_model
    from mmrec.recommend.tally import tally
    from mmrec.recommend.wishes import COLUMN

    m, config, out = night.manifest, night.config, night.out
    if m.late:
        return {"late": m.late}
    items = out.day("gold.item_features", m.day).sort_by("item_id")
    if not items.num_rows:
        raise QualityError(
            "no item is on offer",
            where=f"gold.item_features run_date={m.day}",
            value=0,
            valid="at least one item",
            next="mmrec tables silver.items",
        )
    packed = _packed(night, items)
    people = out.day("gold.user_sequences", m.day, columns=["user_id"])
    # a share of few users may be nobody
    arms = [a for a in opened(packed).arms if a.job.canary is None or a.mine(people).num_rows]
    sides = [a.side.item_vec for a in arms if a.side is not None]
    users = out.version("gold.user_sequences")
    history = ("user_id", "item_ids", "event_types", "gap_s", "weight_micro")
    ruled = m.config.get("rules") or []
    asked = ("user_id", "item_ids", "seen_item_ids", *(("attributes",) if ruled else ()),
             *(COLUMNS if any(r["kind"] == "repeat" for r in ruled) else ()),
             *((COLUMN,) if m.config.get("wishes") else ()),
             *((generators.COLUMN,) if asked_social(m.config) else ()))  # fmt: skip
    if any(a.job.second_stage for a in arms):
        asked = tuple(dict.fromkeys((*asked, *second.COLUMNS)))
    sources: dict[str, Any] = {"gold.user_sequences": (users, asked)}

    def made(what: str, of: dict[str, Any], fn: Any, name: str) -> Any:
        return map_arrow(out, config.engine, config.spark, m.day, of, partial(fn, packed), name,
                         partial(night.progress, what))  # fmt: skip

    if sides:
        name = "gold.user_vectors"
        if commit.published_run_id(out, name, m.day) != m.run_id:  # else an attempt that was cut off got so far
            rows = made("user vectors", {"gold.user_sequences": (users, history)}, spread.vectors_of, name)
            commit.write(out, name, rows, run_id=m.run_id, pinned=night.fence(name), partition=m.day)
        sources[name] = (out.version(name), ("user_id", "vector"))
    lists = made("lists", sources, spread.lists_of, "gold.recommendations")
    staged = stage.stage(out, "gold.recommendations", lists, m.run_id)
    counts: dict[str, Any] = tally(out, staged, m.day, m.config["k"], sides, sources)
    try:
        for arm in arms:
            name = "model" if arm.job.arm == MAIN else canary.KEY
            counts[name] = check_model(out, staged, m.day, arm, sources)
    except QualityError as error:
        if not night.replayed:  # what was published is made again, whatever is thought of it by now
            staged.discard()
            raise
        counts[name] = error.report["measured"]
    finally:
        shutil.rmtree(packed)
    staged.sync()  # the pointer below is on the disk for good: what it points at must be there before it
    put(night.folder / "stage.json", json.dumps({"folder": str(staged.folder), "counts": counts}))
    return counts


def _packed(night: Night, items: pa.Table) -> str:
    """The folder of what every part of the scoring shares, the canary's in it, if there is one."""
    from mmrec.bundle import bundle as bundles
    from mmrec.recommend.arms import CANARY
    from mmrec.recommend.packed import Job, pack
    from mmrec.recommend.score import item_side
    from mmrec.recommend.sketch import sketches

    m, config = night.manifest, night.config
    listed = twins(night)
    groups = None if listed is None else dict(zip(*(c.to_pylist() for c in listed), strict=True))

    def of(m: Manifest, rows: pa.Table, folder: Path, **more: Any) -> str:
        model = bundles.load(config.bundles / m.model_version, m.model_digest)
        side = item_side(model, rows, night.lake, m.tables, device=config.device, threads=config.threads)
        job = replace(Job.of(m, model, config.device, config.threads), run_id=night.manifest.run_id, **more)
        return str(pack(folder, job, rows, side, groups, sketches(night.lake, m, rows)))

    folder = (night.folder / f"scoring-{night.attempt}").absolute()
    trial = canary.of_manifest(m)
    if trial is None:
        return of(m, items, folder)
    told = {c: m.config[canary.KEY][c] for c in ("version", "share")}
    theirs = canary.items_for(config, night.lake, m, trial, items)
    beside = of(trial, theirs, folder / canary.KEY, arm=CANARY, canary=told)
    return of(m, items, folder, canary=told | {"folder": beside})


def _looked_at(m: Manifest) -> dict[str, Any]:
    """A night's settings, its second stage with all that the canary's looks at, too: features are made for both."""
    trial = canary.of_manifest(m)
    own, other = (c.get("second_stage") or {} for c in (m.config, {} if trial is None else trial.config))
    sources = {*own.get("sources", ()), *other.get("sources", ())}
    return m.config | ({"second_stage": other | own | {"sources": sorted(sources)}} if sources else {})


def _text_fields(m: Manifest) -> str:
    """Which texts have keys in features: "separate" where the model or its canary looks at them so; the other passes
    over what it does not ask for."""
    trial = canary.of_manifest(m)
    told = {x.config.get("text_fields", USUAL["text"]) for x in (m, *([] if trial is None else [trial]))}
    return max(told, key=lambda fields: fields != USUAL["text"])


def monitor(night: Night) -> dict[str, Any]:
    """Counts of the night, freshness of its inputs and of the latest list, alerts, and report.html.

    Raises: QualityError: sources were late, so nothing was published; everything else is written.
    """
    from mmrec.content.sandbox import Sandbox
    from mmrec.content.video import still
    from mmrec.faithful import studied
    from mmrec.monitor import alerts, health, report
    from mmrec.recommend.drops import rule_drops
    from mmrec.recommend.vary import Aims
    from mmrec.tradeoff import priced

    m, lake = night.manifest, night.lake
    fresh = health.freshness(lake, m.tables, m.day, m.moment, night.config.max_age_hours, m.run_id)
    fresh = pa.concat_tables([fresh, alerts.of_lists(lake, m)])
    commit.again(
        lambda: commit.write(
            lake,
            "ops.freshness",
            fresh,
            run_id=m.run_id,
            pinned=commit.fence(lake, "ops.freshness", m.day),
            partition=m.day,
        )
    )
    commit.append(lake, "ops.alerts", alerts.alerts(fresh, m, unfed(night)), m.run_id)
    if m.late:
        raise alerts.nothing_published(m, night.lake.run_dates())
    if "rules" in m.config:
        drops = rule_drops(lake, m.day, ruling_of(lake, m), twins_on_offer(night), len(recorded(night)), m.run_id)
        commit.append(lake, "ops.rule_drops", drops, m.run_id)
    numbers = health.night_metrics(lake, m.day, m.run_id, m.model_version, m.config["k"])
    commit.append(lake, "ops.metrics", numbers, m.run_id)
    diversity = None
    if "diversity" in m.config:
        diversity = {"kind": str(Aims.of(m.config["diversity"]))}
        try:
            commit.append(lake, "ops.metrics", priced(night.config, lake, m), m.run_id)
        except InputError as error:  # no night to judge yet, or nobody came back: the report says so
            diversity["unpriced"] = str(error).split("\n")[0]
    if "reasons" in m.config:
        commit.append(lake, "ops.metrics", studied(night.config, lake, m), m.run_id)
    with Sandbox() as box:
        path = report.write_report(
            lake,
            m.day,
            night.config.home / "reports" / str(m.day),
            zone=night.config.zone,
            seconds=getattr(night, "seconds", None),
            versions=m.tables,
            curves=_curves(night),
            alike=alike.page(night),
            diversity=diversity,
            still=partial(still, box),
        )
    return {
        "report": str(path),
        "stale": pc.sum(fresh["stale"]).as_py() or 0,
        "training_due": due(night),
    }


def due(night: Night) -> str | None:
    """Why a model should be trained before the next night; see train/due.py."""
    from mmrec.train.due import training_due

    served = night.manifest.model_version if night.replayed or night.is_planned else None
    return training_due(night.config, night.lake, night.run_date, served)


def _curves(night: Night) -> list[dict[str, Any]] | None:
    path = night.config.bundles / night.manifest.model_version / "curves.json"
    return json.loads(path.read_text()) if path.is_file() else None
