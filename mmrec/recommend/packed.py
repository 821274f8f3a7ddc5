"""What every part of a night's scoring shares, in a folder that any machine opens once.

In: the day's items, their vectors, who is listed twice, rules, where the bundle is. Out: `pack` writes the folder,
`opened` reads it: the sides of the dot product or the sums, twins, the ruling.
Trade-off: machines find the folder and the bundle by path, so a cluster shares the home's file system; in exchange the
catalogue crosses no wire more than once a process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from mmrec.bundle import bundle as bundles
from mmrec.dates import micros
from mmrec.lake.manifest import Manifest
from mmrec.models.data import group_codes
from mmrec.models.pairs import COLUMNS as PAIRS
from mmrec.recommend.arms import MAIN, served_by
from mmrec.recommend.contributions import Tower
from mmrec.recommend.explore import Exploration
from mmrec.recommend.generators import Generators
from mmrec.recommend.histories import flat
from mmrec.recommend.reasons import Reasons
from mmrec.recommend.rules import of_records
from mmrec.recommend.ruling import Ruling
from mmrec.recommend.score import ItemSide, known_weigher, sums_over
from mmrec.recommend.scorers import Sums, Vectors
from mmrec.recommend.second import Second
from mmrec.recommend.vary import Aims, Variety
from mmrec.recommend.wishes import Wishes
from mmrec.topk.rerank import Rerank

_SIDE = ("item_in", "item_vec", "cold")
_RULED = ("categories", "attributes")
_SKETCH = "sketch.npy"
_KEYS = ("rules", "explore", "diversity", "reasons", "wishes", "candidates", "second_stage")


@dataclass(frozen=True)
class Job:
    """What a part of the users is scored with; `kind` and `blend` are the bundle's, see topk/rerank.py; `rules`:
    records of those in force, None: of a night before there were any; `explore`: of explore.py, None: nothing is
    drawn; `diversity`: of vary.py, None: rankings stay as they are; `candidates`: of generators.py, None: the model
    brings everything; `reasons`: language, and how many rows of a list have numbers, None: of a night before there were
    any; `wishes`: places that a user's wish moves an item, None: of a night before users had any;
    `second_stage`: depth and the contents it looks at, None: there is none; `arm`: whose users these are; `canary`:
    version and share, and for the main arm the canary's folder, None: there is none."""

    bundle: str
    digest: str
    device: str
    threads: int
    k: int
    run_date: str
    run_id: str
    model_version: str
    kind: str = "two_tower"
    blend: dict[str, Any] | None = None
    rules: list[dict[str, Any]] | None = None
    explore: dict[str, Any] | None = None
    diversity: dict[str, Any] | None = None
    reasons: dict[str, Any] | None = None
    wishes: dict[str, Any] | None = None
    candidates: dict[str, Any] | None = None
    as_of: str | None = None
    second_stage: dict[str, Any] | None = None
    arm: str = MAIN
    canary: dict[str, Any] | None = None

    @classmethod
    def of(cls, m: Manifest, model: bundles.Bundle, device: str, threads: int) -> Job:
        """What a manifest says, and a loaded bundle."""
        about = {name: m.config.get(name) for name in _KEYS}
        return cls(str(model.folder.absolute()), m.model_digest, device, threads, m.config["k"], m.run_date, m.run_id,
                   m.model_version, model.kind, model.about.get("blend"), **about, as_of=m.as_of)  # fmt: skip


def pack(
    folder: Path, job: Job, items: pa.Table, side: ItemSide | None, groups: Mapping[str, str] | None = None,
    sketch_NV: np.ndarray | None = None,
) -> Path:  # fmt: skip
    """Write what every part needs.

    Args:
        items: gold.item_features of the day, ascending by item_id. side: None where the bundle has no vectors.
        groups: item id -> group id of items that are listed twice, on offer or not; None: not known.
        sketch_NV: of sketch.py; None: no content is looked at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    more = _RULED if job.rules or job.diversity or job.wishes else ("categories",) if job.reasons else ()
    more += ("n_interactions",) if job.explore or job.diversity else ()
    sources = (job.second_stage or {}).get("sources") or ()
    looks = (*(("entities",) if sources else ()), *(("attributes",) if "columns" in sources else ()))
    wanted = ((*PAIRS, *looks) if job.second_stage else (), ("available_us",) if job.candidates else ())
    more = tuple(dict.fromkeys((*more, *wanted[0], *wanted[1])))
    catalogue = items.select(["item_id", "title", "popularity_micro", *more])
    codes = group_codes(items["item_id"].to_pylist(), groups or {})
    if len(np.unique(codes)) < len(codes):  # else nobody on offer has a twin
        catalogue = catalogue.append_column("group", pa.array(codes, pa.int64()))
    feather.write_feather(catalogue, folder / "items.arrow")
    if sketch_NV is not None:
        np.save(folder / _SKETCH, sketch_NV, allow_pickle=False)
    for name in _SIDE:
        (folder / f"{name}.npy").unlink(missing_ok=True)
        if side is not None:
            np.save(folder / f"{name}.npy", getattr(side, name), allow_pickle=False)
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    return folder


@dataclass(frozen=True)
class Packed:
    """An opened folder."""

    folder: Path

    @cached_property
    def job(self) -> Job:
        return Job(**json.loads((self.folder / "job.json").read_text()))

    @cached_property
    def items(self) -> pa.Table:
        return feather.read_table(self.folder / "items.arrow")

    @cached_property
    def side(self) -> ItemSide | None:
        """None where the bundle has no vectors."""
        if not (self.folder / "item_vec.npy").is_file():
            return None
        return ItemSide(*(np.load(self.folder / f"{n}.npy", allow_pickle=False) for n in _SIDE))

    @cached_property
    def bundle(self) -> bundles.Bundle:
        return bundles.load(Path(self.job.bundle), self.job.digest)

    @cached_property
    def group_N(self) -> np.ndarray | None:
        """(N,) int64, equal for twins; None: nobody on offer has one."""
        return self.items["group"].to_numpy() if "group" in self.items.column_names else None

    @cached_property
    def ruling(self) -> Ruling | None:
        if self.job.rules is None:
            return None
        as_of = None if self.job.as_of is None else datetime.fromisoformat(self.job.as_of)
        return Ruling(of_records(self.job.rules), self.items, as_of)

    @cached_property
    def draws(self) -> Exploration | None:
        return Exploration(self.job.k, **self.job.explore) if self.job.explore else None

    @cached_property
    def sketch_NV(self) -> np.ndarray | None:
        """Of sketch.py; None where no content is looked at."""
        file = self.folder / _SKETCH
        return np.load(file, allow_pickle=False) if file.is_file() else None

    @cached_property
    def variety(self) -> Variety | None:
        if not self.job.diversity:
            return None
        return Variety.over(Aims.of(self.job.diversity), self.items, self.sketch_NV)

    @cached_property
    def others(self) -> Generators | None:
        if not self.job.candidates:
            return None
        assert self.job.as_of is not None
        item_ND = None if self.side is None else self.side.item_vec
        return Generators.over(self.job.candidates, self.items, datetime.fromisoformat(self.job.as_of), self.sketch_NV,
                               item_ND, self._allowed_N, self.job.device)  # fmt: skip

    @cached_property
    def second(self) -> Second | None:
        """None: the model's ranking is the only one."""
        job = self.job
        if not job.second_stage:
            return None
        assert job.as_of is not None
        looks = bool(job.second_stage["encoders"])  # else it was trained without contents, whatever diversity looks at
        return Second.over(self.bundle, job.second_stage["depth"], self.items, self.sketch_NV if looks else None,
                           micros(datetime.fromisoformat(job.as_of)))  # fmt: skip

    @cached_property
    def reasons(self) -> Reasons | None:
        """None: of a night before reasons had numbers."""
        job, side, weigher = self.job, self.side, None
        if job.reasons is None:
            return None
        if job.kind == "two_tower" and side is not None:
            weigher = Tower.of(self.bundle.about, side.item_in, side.item_vec)
        elif job.kind in ("factors", "sparse"):
            weigher = known_weigher(self.bundle, self.items)
        return Reasons(self.items, job.reasons["language"], job.reasons["rows"], weigher)

    @cached_property
    def wishes(self) -> Wishes | None:
        """Of the first two lists' lengths and a bit: what lies behind can't come in, moved or not."""
        if self.job.wishes is None:
            return None
        places = self.job.wishes["places"]
        return Wishes(self.items, places, 2 * self.job.k + places)

    @property
    def arms(self) -> list[Packed]:
        """Itself, and its canary, if it has one."""
        folder = (self.job.canary or {}).get("folder")
        return [self] if folder is None else [self, opened(folder)]

    def mine(self, users: pa.Table) -> pa.Table:
        """The users of its arm."""
        if self.job.canary is None:
            return users
        return users.filter(pa.array(served_by(self.job.arm, self.job.canary, users["user_id"].to_pylist())))

    def scored(self, users: pa.Table) -> Vectors | Sums | None:
        """What rows of gold.user_sequences, with a column `vector` where the bundle has vectors, are scored with; None:
        a popularity bundle, or nobody."""
        if self.job.kind == "sparse":
            return replace(self._sums(users), allowed_N=self._allowed_N)
        if self.side is None or not users.num_rows:
            return None
        user_UD = flat(users["vector"])[1].to_numpy().astype(np.float32).reshape(users.num_rows, -1)
        return self._nobody.of(user_UD)

    @property
    def _allowed_N(self) -> np.ndarray | None:
        return None if self.ruling is None else self.ruling.allowed_N

    @cached_property
    def _nobody(self) -> Vectors:
        side = self.side
        assert side is not None
        wide = side.item_vec.shape[1]
        return Vectors(np.zeros((0, wide), np.float32), side.item_vec, wide > 1, Rerank.of(self.job.blend), side.cold,
                       self.job.device, self._allowed_N)  # fmt: skip

    @cached_property
    def _sums(self) -> Callable[[pa.Table], Sums]:
        return sums_over(self.bundle, self.items)


@lru_cache(maxsize=2)  # of one night and its canary: a backfill has many
def opened(folder: str) -> Packed:
    """The folder that `pack` wrote."""
    return Packed(Path(folder))
