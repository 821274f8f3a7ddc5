"""A published night made again: what its lists were made of, packed as the night packed it, under any rules.

In: settings, tables, a published date. Out: `Remade`; its folder of shared parts is there as long as it is looked at.
Trade-off: the catalogue is encoded anew, some seconds for 100,000 items; users' vectors are those that are stored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmrec import canary
from mmrec.bundle import bundle as bundles
from mmrec.config import Config
from mmrec.context import published
from mmrec.errors import InputError
from mmrec.lake import commit
from mmrec.lake.manifest import Manifest
from mmrec.lake.store import Lake
from mmrec.recommend.arms import CANARY, MAIN, served_by
from mmrec.recommend.packed import Job, Packed, opened, pack
from mmrec.recommend.rules import Rule
from mmrec.recommend.score import item_side
from mmrec.recommend.sketch import sketches

_GROUPS = "silver.item_groups"


@dataclass(frozen=True)
class Remade:
    """A night of which lists can be made again, for the users of one arm.

    Attributes:
        run_id: of the night. manifest: of a canary's arm, as if it served everybody. users: gold.user_sequences
            ascending by user_id, with a column `vector` where the model has vectors. items: gold.item_features
            ascending by item_id.
    """

    config: Config
    lake: Lake
    day: date
    run_id: str
    manifest: Manifest
    model: bundles.Bundle
    users: pa.Table
    items: pa.Table

    def some(self, users: pa.Table, most: int | None) -> pa.Table:
        """At most so many of some users, the same ones whoever asks; None: all."""
        if most is None or users.num_rows <= most:
            return users
        key = [sha256(u.encode()).digest() for u in users["user_id"].to_pylist()]
        return users.take(pa.array(sorted(sorted(range(len(key)), key=key.__getitem__)[:most])))

    @contextmanager
    def packed(
        self, rules: list[Rule], diversity: dict[str, Any] | None = None, candidates: dict[str, Any] | None = None
    ) -> Iterator[Packed]:
        """What its lists are made of, under some rules, and with other aims or generators than the night's, if any are
        given."""
        m, config = self.manifest, self.config
        for name, given in (("diversity", diversity), ("candidates", candidates)):
            if given is not None:
                m = replace(m, config=m.config | {name: given})
        side = item_side(self.model, self.items, self.lake, m.tables, device=config.device, threads=config.threads)
        job = Job.of(m, self.model, config.device, config.threads)
        job = replace(job, run_id=self.run_id, rules=[r.record() for r in rules])
        sketch_NV = sketches(self.lake, m, self.items)
        with tempfile.TemporaryDirectory() as folder:
            yield opened(str(pack(Path(folder), job, self.items, side, self._groups(), sketch_NV)))

    def _groups(self) -> dict[str, str]:
        version = self.manifest.tables.get(_GROUPS)
        if version is None:
            return {}
        found = self.lake.arrow(_GROUPS, version, columns=["item_id", "group_id"])
        return dict(zip(*(c.to_pylist() for c in found.columns), strict=True))


def remade(config: Config, lake: Lake, when: date | None = None, user: str | None = None) -> Remade:
    """The night of a published date; None: the newest.

    Args:
        user: whose arm; None: of the main arm.

    Raises: InputError: no such night, or one of before there were rules.
    """
    m = night = published(lake, when)
    when, run_id, split = m.day, m.run_id, m.config.get(canary.KEY)
    trial = canary.of_manifest(m)
    arm = CANARY if trial is not None and user is not None and served_by(CANARY, split, [user])[0] else MAIN
    if trial is not None and arm == CANARY:
        m = trial
    if "rules" not in m.config:
        raise InputError("this night is of before there were rules", where=f"run_date {when}", value=m.run_id,
                         valid="a night of this version of mmrec", next=f"mmrec run --date {when} --force")  # fmt: skip
    for name in ("gold.user_sequences", "gold.item_features"):
        if commit.published_run_id(lake, name, when) != run_id:
            raise InputError("another run of this date has replaced the features of the published one", where=name,
                             value=str(when), valid=f"features of run {run_id}",
                             next=f"mmrec run --date {when} --force")  # fmt: skip
    model = bundles.load(config.bundles / m.model_version, m.model_digest)
    users = lake.day("gold.user_sequences", when).sort_by("user_id")
    users = users.filter(pa.array(served_by(arm, split, users["user_id"].to_pylist())))
    if model.kind in ("two_tower", "factors"):
        vectors = lake.day("gold.user_vectors", when, columns=["user_id", "vector"]).combine_chunks()
        at = pc.index_in(users["user_id"], value_set=vectors["user_id"].combine_chunks())
        users = users.append_column("vector", vectors["vector"].take(at))
    items = lake.day("gold.item_features", when).sort_by("item_id")
    if m is not night:
        items = canary.items_for(config, lake, night, m, items)
    return Remade(config, lake, when, run_id, m, model, users, items)
