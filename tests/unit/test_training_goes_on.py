"""The train station of a home: what a killed training keeps, for how long, and who may start it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from shops import DAY, random_shop

from mmrec import config, learn
from mmrec.dataset import Data
from mmrec.errors import InputError
from mmrec.train import checkpoint, loop
from mmrec.train import fit as room
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES

TINY = replace(RECIPES["small"], d=8, epochs=2, schedule=2, context=8, length=12, tokens=64, negatives=16, rank=12, lam=20.0)
FITS = ["rolling-validation", "rolling-0", "per_user-validation", "per_user-0", "gate", "final"]


class Kill(BaseException):
    """Stands for a kill: nobody catches it."""


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A night whose data is read already; steps are counted by fit."""
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    for search in ("blend", "blend_cold"):  # what takes the most of a small fit, and is no part of this
        monkeypatch.setattr(room, search, lambda *_: {})
    config.write(tmp_path, {"threads": 1, "train": {"recipe": "tiny"}, "evaluate": {"rolling_days": 20, "rolling_cuts": 1, "rolling_fits": 1, "min_history": 2}})
    items, log = random_shop(0, users=40, n=40, rows=900)
    made = SimpleNamespace(config=config.load(tmp_path), run_date=date(1970, 4, 11), as_of=datetime.fromtimestamp(100 * DAY / 1e6, UTC),
                           progress=lambda *_: None, _data=Data(items, log, pa.table({"item_id": []}), {}, {}, {}), steps=[], kill_at=None, again=None)  # fmt: skip
    honest_fit, honest_step = Champion.fit, loop._Fit._step

    def fit(self: Champion, *given: Any) -> Champion:
        made.steps.append(0)
        return honest_fit(self, *given)

    def step(self: Any, given: Any) -> float:
        if sum(made.steps) == made.kill_at:
            raise Kill
        made.steps[-1] += 1
        return honest_step(self, given)

    monkeypatch.setattr(Champion, "fit", fit)
    monkeypatch.setattr(loop._Fit, "_step", step)
    return made


def train(night: Any, kill_at: int | None = None) -> list[int]:
    """Steps of each fit that was begun."""
    night.steps, night.kill_at = [], kill_at
    if kill_at is None:
        assert learn.train(night)["fits"] == len(FITS)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "_EVERY_S", 0.0)  # every step is saved
            with pytest.raises(Kill):
                learn.train(night)
    return night.steps


def models(night: Any) -> dict[str, bytes]:
    folder = learn._folder(night)
    return {f.parent.name: f.read_bytes() for f in folder.glob("*/model.safetensors")}


def test_a_killed_training_goes_on_and_gives_the_same_models(night: Any) -> None:
    whole = train(night)
    want = models(night)
    assert sorted(want) == sorted(FITS)
    assert train(night) == whole, "a training that ended is done anew"
    folder = learn._folder(night)
    for fits in (1, 4):
        (folder / "state.json").unlink()
        for name in FITS[fits:]:
            (folder / name / "ended").unlink()
        begun = train(night, whole[fits] // 2)
        assert begun == [whole[fits] // 2]
        assert not (folder / "state.json").exists()
        # of the fit under way the rest, of those after it all, of those before it nothing
        assert train(night) == [whole[fits] - whole[fits] // 2, *whole[fits + 1 :]]
        assert models(night) == want
        assert not list(folder.rglob("*.part"))
        assert {p.name for p in folder.rglob("*") if p.is_dir()} == set(FITS)


def test_what_was_kept_for_other_inputs_is_not_used(night: Any) -> None:
    whole = train(night)
    want = models(night)
    data, folder = night._data, learn._folder(night)
    (folder / "state.json").unlink()
    night._data = replace(data, log=replace(data.log, weight=data.log.weight * np.float32(2)))
    assert train(night) == whole
    other = models(night)
    assert all(other[name] != want[name] for name in FITS)
    # killed with the one, gone on with the other
    (folder / "state.json").unlink()
    night._data = data
    assert train(night, 3) == [3]
    night._data = replace(data, log=replace(data.log, weight=data.log.weight * np.float32(2)))
    assert not (folder / FITS[0] / "ended").exists()
    assert train(night) == whole[:1], "the other four had ended"
    assert models(night) == other


def test_a_station_that_torchrun_started_says_what_to_do(night: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"train\.processes = 2"):
        learn.train(night)
    monkeypatch.setenv("WORLD_SIZE", "1")
    train(night)


def test_settings_of_device_and_processes_reach_the_fit(night: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, Any]] = []

    def fit(self: Champion, *_: Any) -> Champion:
        seen.append((self.device, self.processes, self.state))
        raise Kill

    monkeypatch.setattr(Champion, "fit", fit)
    settings = night.config.model_dump()
    settings["train"] |= {"processes": 3}
    night.config = config.load(Path(settings.pop("home")), train=settings["train"], device="cuda")
    with pytest.raises(Kill):
        learn.train(night)
    assert seen == [("cuda", 3, learn._folder(night) / FITS[0] / "under-way")]
