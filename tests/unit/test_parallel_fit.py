"""Processes that train one model together: the losses of one, by torchrun and by `train.processes`, and what fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from shops import DAY, make_items, make_log, random_shop
from test_engine import CPU, TINY, begun, shop, weights

from mmrec.errors import InputError, QualityError, TransientError
from mmrec.models.splits import rolling
from mmrec.train import checkpoint as keeping
from mmrec.train import parallel
from mmrec.train.fit import Champion

# dropout off: each process draws its own, over windows of its own. Losing parts is a hash of the item, and stays on.
EXACT = replace(TINY, dropout=0.0, epochs=4, schedule=4, patience=9)
CLOSE = 1e-5  # fp32, sums in another order, carried through the steps by Adam


def alone(recipe: Any, vals: bool = True) -> tuple[Champion, list[tuple[int, float]], int | None]:
    told: list[tuple[int, float]] = []
    model, (items, log, fold, some) = begun(recipe, stepped=lambda n, loss: told.append((n, loss)))
    best = model.train(items, log, fold, some if vals else [], CPU)
    return model, told, best


def both(recipe: Any, state: Path, stepped: Any) -> tuple[Any, ...]:
    model, whole = begun(recipe, state=state, stepped=stepped, processes=2)
    return model, *whole


def test_two_processes_of_torchrun_have_the_losses_of_one(tmp_path: Path) -> None:
    recipe = replace(EXACT, accumulate=2, ema=0.5, own_negatives=True)
    one, told, best = alone(recipe)
    assert len(told) >= 20
    model, whole = begun(recipe, stepped=lambda _n, _loss: None)
    parallel.put_job(tmp_path, model, *whole)
    assert not [p for p in tmp_path.iterdir() if p.suffix not in {".json", ".npz", ".safetensors"}]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "-m", "mmrec.train.parallel", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [line for line in lines if "targets" in line]
    assert [s["targets"] for s in steps] == [n for n, _ in told]
    np.testing.assert_allclose([s["loss"] for s in steps], [loss for _, loss in told], atol=CLOSE, rtol=0)
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "end.json").read_text()) == {"best": best}
    end = load_file(tmp_path / "end.safetensors")
    for name, value in weights(one).items():
        # where a gradient is nothing but rounding, Adam's step is of its sign: a step or two apart
        torch.testing.assert_close(end[name], value, rtol=0, atol=2 * recipe.lr)
        assert (end[name] - value).abs().median() < CLOSE


def test_a_fit_of_two_processes_goes_on_after_one_was_killed_and_gives_the_model_of_one(
    tmp_path: Path,
) -> None:
    # long enough for a process to be killed before its end, though it runs ahead of who listens
    recipe, state, told, rest = replace(EXACT, epochs=18, schedule=18, every=6), tmp_path / "state", [], []
    one, steps, best = alone(recipe)

    def stepped(n: int, loss: float) -> None:
        told.append((n, loss))
        if len(told) == 20:  # in the second epoch
            workers = psutil.Process().children()
            assert len(workers) == 2
            workers[1].send_signal(signal.SIGKILL)

    with pytest.raises(TransientError, match="ended before its time"):
        parallel.hand_over(*both(recipe, state, stepped))
    assert not psutil.Process().children()
    assert (state / keeping._FILE).is_file()
    model, *whole = both(recipe, state, lambda n, loss: rest.append((n, loss)))
    assert parallel.hand_over(model, *whole) == best
    assert 0 < len(rest) < len(steps), "what the first epoch did is not done again"
    np.testing.assert_allclose(told, steps[: len(told)], atol=CLOSE, rtol=0)
    np.testing.assert_allclose(rest, steps[-len(rest) :], atol=CLOSE, rtol=0)
    assert [r["epoch"] for r in model.curves] == [r["epoch"] for r in one.curves]
    np.testing.assert_allclose([r["loss"] for r in model.curves], [r["loss"] for r in one.curves], atol=CLOSE, rtol=0)
    items, log, fold, _ = whole
    want, got = (m.sequence_scores(items, log, fold, slice(0, fold.n_cases)) for m in (one, model))
    assert np.median(np.abs(got - want)) < 1e-3 * want.std()


def test_an_error_of_the_loop_is_raised_as_it_is_by_one() -> None:
    model, whole = begun(replace(EXACT, lr=1e36, warmup=1), processes=1)  # one tells it as two would, in half the time
    with pytest.raises(QualityError, match="not a number") as found:
        parallel.hand_over(model, *whole)
    assert found.value.next == "lower the recipe's lr"


def test_what_a_listener_raises_stops_the_processes_and_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_folder: Path, _rank: int, _size: int, _port: int) -> subprocess.Popen[str]:
        code = "import time; print('{\"targets\": 3, \"loss\": 0.5}', flush=True); time.sleep(600)"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stepped(n: int, loss: float) -> None:
        raise ValueError(f"no more after {n}, {loss}")

    monkeypatch.setattr(parallel, "_start", start)
    model, whole = begun(EXACT, stepped=stepped, processes=2)
    with pytest.raises(ValueError, match=r"no more after 3, 0\.5"):
        parallel.hand_over(model, *whole)
    assert not psutil.Process().children()


def test_a_process_leaves_when_whoever_began_is_gone(tmp_path: Path) -> None:
    model, whole = begun(EXACT)
    parallel.put_job(tmp_path, model, *whole)
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "mmrec.train.parallel", str(tmp_path), parallel._TIED]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=os.environ | place, timeout=60)
    assert done.returncode == 1
    assert not (tmp_path / "end.json").exists()


def test_too_few_gpus_are_said_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(parallel, "_start", lambda *_: pytest.fail("started"))
    items, log, fold, _ = shop()
    with pytest.raises(InputError, match=r"train\.processes = 1"):
        Champion(EXACT, device="cuda", processes=2).fit(items, log, fold)


def test_a_job_holds_the_data_to_the_bit(tmp_path: Path) -> None:
    items, log = random_shop(3, users=9, n=12, rows=90)
    items = replace(items, group=np.arange(items.n) // 2, category=np.array(["é"] * items.n, object))
    *vals, fold = rolling(log, items, 100 * DAY, days=20, cuts=2, min_history=1)
    for some, none in (((items, log, fold, vals), False), ((make_items(3), make_log([(0, 1, 2), (0, 2, 3)]), fold, []), True)):
        model, _ = begun(TINY, whole=None)
        parallel.put_job(tmp_path, model, *some)
        job, *got, folds = parallel._job(tmp_path)
        for want, made in zip((*some[:2], some[2], *some[3]), (*got, *folds), strict=True):
            assert isinstance(want, type(made))
            for name, value in vars(made).items():
                _equal(value, getattr(want, name))
        assert job["item_map"] == model.item_map
        assert (got[0].group is None) is none


def _equal(one: Any, other: Any) -> None:
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            _equal(one[key], other[key])
    elif isinstance(other, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert (one == other).all()
    else:
        assert one == other or list(one) == list(other)
