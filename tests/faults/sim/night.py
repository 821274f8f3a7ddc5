"""The stations of a simulated night, which pin, stage, audit and commit through the lake's own functions.

In: a plan's date. Out: a manifest, features, a staged list, a published one with its record, as mmrec/night.py makes them;
rows of a test's size stand for features and scores. A list's rows say what their run read, so that each list that lands
is held against what its plan pinned.
Trade-off: what a station does outside of the lake (engine, models, reports) is not here; whole nights are killed elsewhere.
"""

from __future__ import annotations

import hashlib
from datetime import date
from pathlib import Path
from random import Random

import pyarrow as pa

from mmrec import schema
from mmrec.lake import commit, stage
from mmrec.lake.audit import audit
from mmrec.lake.content import content_hash
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from tests.faults.sim.oracle import Intent, Oracle, Rows
from tests.faults.sim.schedule import World
from tests.faults.sim.tables import EMBEDDINGS, LIST, RUNS, SILVER, VECTORS, table_of

GRACE_DAYS = 1  # of maintenance


class Stations:
    """What a night does, station by station.

    Attributes: completes: see `_settled`; a test leaves it out to see it found.
    """

    completes = True

    def __init__(self, world: World, oracle: Oracle, lake: Lake) -> None:
        self.world, self.oracle, self.lake = world, oracle, lake
        self.rng: Random = world.rng
        self.runs: dict[str, tuple[Manifest, bool]] = {}  # run_id -> its plan, whether it was forced
        self.staged: dict[str, float] = {}  # stage -> when it was written
        self.planned: dict[str, float] = {}  # run_id -> when its manifest was written last
        oracle.landed = self._landed

    def see(self, lake: Lake, name: str, version: int) -> pa.Table:
        table = lake.arrow(name, version)
        self.oracle.reads(name, version, table)
        return table

    def _settled(self, lake: Lake, day: date) -> str:
        run_id = commit.published_run_id(lake, LIST, day)
        if self.completes:
            self._record(lake, self.runs[str(run_id)][0])  # its night may have died before it told of itself
        return "settled"

    def _open(self, attempt: int = 1) -> Lake:
        lake = Lake(self.lake.root)
        lake.stamp = {"attempt": str(attempt)}
        return lake

    def _plan(self, lake: Lake, day: date, force: bool) -> Manifest:
        fences = {n: commit.fence(lake, n, day) for n in (VECTORS, LIST)}
        for name in fences:
            lake.pin(name)
        m = Manifest(
            run_date=str(day), as_of=f"{day}T00:00:00+00:00", tables={n: lake.pin(n) for n in (SILVER, EMBEDDINGS)},
            model_version="0", model_digest="d", encoders={}, config={"min_share": 0.5}, fences=fences, code="1",
        )  # fmt: skip
        forced = force or self.runs.get(m.run_id, (m, False))[1]
        self.runs[m.run_id] = (m, forced)
        m.save(self.lake.root.parent / "runs")
        self.planned[m.run_id] = self.world.now
        self.world.note(f"plans run {m.run_id}")
        return m

    def _features(self, lake: Lake, m: Manifest) -> None:
        about = self._about(*(self.see(lake, n, v) for n, v in m.tables.items()))
        rows = [{"run_date": m.day, "user_id": f"u{n}", "vector": [float(n), float(int(about[:4], 16))],
                 "model_version": m.model_version, "run_id": m.run_id} for n in range(2)]  # fmt: skip
        commit.write(lake, VECTORS, table_of(VECTORS, rows), run_id=m.run_id, pinned=m.fences[VECTORS], partition=m.day)

    def _recommend(self, lake: Lake, m: Manifest) -> Path:
        about = self._about(*(self.see(lake, n, v) for n, v in m.tables.items()))
        users = sorted(lake.day(VECTORS, m.day)["user_id"].to_pylist())
        rows = [{"run_date": m.day, "arm": "main", "user_id": u, "rank": n, "item_id": f"i{n}", "score": 1.0 / n,
                 "source": "model", "reason": about, "propensity": 1.0, "model_version": m.model_version,
                 "run_id": m.run_id} for u in users for n in (1, 2)]  # fmt: skip
        staged = stage.stage(lake, LIST, table_of(LIST, rows), m.run_id)
        staged.sync()
        self.staged[staged.folder.name] = self.world.now
        return staged.folder

    def _publish(self, lake: Lake, m: Manifest, pointer: Path) -> str:
        told = "published already"
        if commit.published_run_id(lake, LIST, m.day) != m.run_id:
            self._own_features(lake, m)
            staged = stage.find(LIST, pointer)
            found = commit.fence(lake, LIST, m.day)
            if staged:
                audited = audit(lake, staged, partition=str(m.day), previous_rows=4, min_share=0.5)
                done = commit.adopt(lake, audited, run_id=m.run_id, pinned=m.fences[LIST], partition=m.day, metadata={})
                told = "published" if done.changed else "published already"
            elif commit.published_run_id(lake, LIST, m.day) != m.run_id:
                if found != m.fences[LIST]:
                    raise commit.Fenced("another run of this date was faster, and what this one staged was dropped")
                waited = self.world.now - self.staged[pointer.name]
                if waited < GRACE_DAYS * 86_400:
                    self.oracle.wrong(f"{pointer.name} waited {waited:.0f} s and is gone")
                return "told: there is nothing staged to publish"
        self._record(lake, m)
        return told

    def _own_features(self, lake: Lake, m: Manifest) -> None:
        if commit.published_run_id(lake, VECTORS, m.day) != m.run_id:
            raise commit.Fenced("another run of this date has replaced the features of this one")

    def _record(self, lake: Lake, m: Manifest) -> None:
        rows = lake.day(LIST, m.day)
        record = {"run_id": m.run_id, "run_date": m.day, "manifest": m.to_json(), "content_hash": content_hash(rows, LIST),
                  "model_version": "0", "users": 2, "rows": rows.num_rows, "table_version": 0,
                  "finished_at": self.world.clock}  # fmt: skip

        def once() -> None:
            pinned = commit.fence(lake, RUNS)
            if m.run_id not in lake.arrow(RUNS, columns=["run_id"])["run_id"].to_pylist():
                commit.write(lake, RUNS, table_of(RUNS, [record]), run_id=m.run_id, pinned=pinned)

        commit.again(once)

    def _about(self, *inputs: pa.Table) -> str:
        keys = sorted(
            str(k)
            for t in inputs
            for k in t.column(t.column_names[-1] if "row_hash" in t.column_names else 0).to_pylist()
        )
        return hashlib.sha256("|".join(keys).encode()).hexdigest()[:12]

    def _landed(self, i: Intent, rows: Rows) -> None:
        """A write is in: its list is of what its plan pinned, replaces nothing unasked, and the latest one is not older."""
        if i.table != LIST:
            return
        manifest, forced = self.runs[i.run_id]
        models = self.oracle.models
        tables = []
        for name, version in manifest.tables.items():
            columns = schema.table(name).arrow.names
            found = models[name].rows(version)
            tables.append(pa.table({c: [row[n] for row in found] for n, c in enumerate(columns)}))
        about = self._about(*tables)
        where = schema.table(LIST).arrow.get_field_index
        if any(
            (r[where("run_id")], r[where("reason")], str(r[where("run_date")])) != (i.run_id, about, i.partition)
            for r in rows
        ):
            self.oracle.wrong(f"{LIST} {i.partition}: the list of run {i.run_id} is not what its plan makes")
        if not forced and len(models[LIST].runs[i.partition]) > 1:
            self.oracle.wrong(f"{LIST} {i.partition}: published again by run {i.run_id}, and nobody asked for it")
