"""The engine of a fit: steps that depend on their number alone, averages, precision, checkpoints, what memory holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shops import DAY, make_items, make_log, random_shop
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmrec.errors import InputError, QualityError
from mmrec.models import losses
from mmrec.models.data import Fold, Items, Log
from mmrec.models.losses import sampled_softmax
from mmrec.models.splits import leave_one_out, rolling
from mmrec.train import checkpoint as keeping
from mmrec.train import loop, measure
from mmrec.train.batches import Batch, Batches, ahead
from mmrec.train.checkpoint import Checkpoint, fingerprint
from mmrec.train.device import autocast, device_named
from mmrec.train.feed import Feed, Negatives, Part
from mmrec.train.fit import Champion
from mmrec.train.inputs import Tensors, history
from mmrec.train.recipe import RECIPES, Recipe

TINY = replace(RECIPES["small"], d=8, epochs=3, schedule=3, context=8, length=12, tokens=64, negatives=16, rank=12, lam=20.0)
CPU = torch.device("cpu")
Shop = tuple[Items, Log, Fold, list[Fold]]


def shop(seed: int = 0) -> Shop:
    items, log = random_shop(seed, users=40, n=40, rows=900)
    *vals, fold = rolling(log, items, 100 * DAY, days=20, cuts=3, min_history=2)
    return items, log, fold, list(vals)


def begun(recipe: Recipe, seed: int = 1, whole: Shop | None = None, **more: Any) -> tuple[Champion, Shop]:
    """A champion whose towers are made and not yet trained."""
    items, log, fold, vals = whole or shop()
    torch.manual_seed(seed)
    model = Champion(recipe, seed, **more)
    model._sides(items, log, fold)
    model._build(len(model.item_map), len(log.event_types))
    return model, (items, log, fold, vals)


def feed_of(recipe: Recipe, **more: Any) -> Feed:
    model, (items, log, fold, _) = begun(recipe)
    return Feed(log, fold.train, model._tensors(items), recipe, seed=1, **more)


def tensors_of(part: Part) -> list[torch.Tensor]:
    index, content, present = part.items
    rest = [v for v in vars(part).values() if isinstance(v, torch.Tensor)]
    return [index, *content.values(), *present.values(), *part.side, *rest]


def weights(model: Champion) -> dict[str, torch.Tensor]:
    return model._state()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# draws


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 50), st.sampled_from([7, (3, 5)]))
def test_negatives_are_numpys_own_weighted_choice_and_never_what_has_no_weight(seed: int, n: int, shape: Any) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.random(n) * (rng.random(n) < 0.5)
    weight[rng.integers(n)] = 1.0
    made = Negatives(weight)
    drawn = made.draw(np.random.default_rng(seed), shape)
    assert (drawn == np.random.default_rng(seed).choice(n, shape, p=weight / weight.sum())).all()
    # at either end of the numbers a generator gives
    for u in (0.0, 1 - 2**-53):
        assert weight[made.draw(type("Fixed", (), {"random": lambda _, shape, u=u: np.full(shape, u)})(), 3)].all()


@pytest.mark.parametrize("more", [{}, {"accumulate": 3}, {"own_negatives": True}, {"loss": "full"}, {"loss": "gbce"}])
def test_any_step_can_be_made_without_those_before_it(more: dict[str, Any]) -> None:
    recipe = replace(TINY, **more)
    whole = list(feed_of(recipe).epoch(2))
    assert len(whole) > 2
    assert len({s.seed for s in whole}) == len(whole)
    for start in range(len(whole)):
        rest = list(feed_of(recipe).epoch(2, whole[start].number))
        assert [s.number for s in rest] == [s.number for s in whole[start:]]
        for one, other in zip(rest, whole[start:], strict=True):
            assert (one.seed, one.targets, len(one.parts)) == (other.seed, other.targets, len(other.parts))
            for a, b in zip(one.parts, other.parts, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))
    # another epoch, another seed: other draws
    assert feed_of(recipe).seed == 1
    assert not {s.seed for s in whole} & {s.seed for s in feed_of(recipe).epoch(3)}


@pytest.mark.parametrize("own", [False, True])
def test_processes_share_a_steps_windows_and_agree_on_its_negatives_and_losses_of_parts(own: bool) -> None:
    recipe = replace(TINY, accumulate=2, own_negatives=own)
    alone = list(feed_of(recipe).epoch(0))
    shares = [list(feed_of(recipe, rank=n, size=3).epoch(0)) for n in range(3)]
    for step, *parts in zip(alone, *shares, strict=True):
        assert {s.targets for s in parts} == {step.targets}
        assert len({s.seed for s in parts}) == 3, "each draws dropout of its own"
        dealt = [p for s in parts for p in s.parts]

        def asked(part: Part) -> list[tuple[int, ...]]:
            drawn = part.negative_id_S if own else part.negative_id_S.expand(len(part.target_id_T), -1)
            return [(int(t), *map(int, row)) for t, row in zip(part.target_id_T, drawn, strict=True)]

        assert sorted(a for p in dealt for a in asked(p)) == sorted(a for p in step.parts for a in asked(p))
        # an item that two of them need has lost the same in both
        lost = [{int(i): tuple(float(v[at]) for v in (p.items[0], *p.items[2].values())) for at, i in enumerate(ids)}
                for p in (*dealt, *step.parts) for ids in [_items(p)]]  # fmt: skip
        both = [(a[i], b[i]) for a in lost for b in lost for i in a.keys() & b.keys() if a is not b and i >= 0]
        assert len(both) > 20
        assert all(a == b for a, b in both)


def _items(part: Part) -> list[int]:
    """Catalogue indices of what a part encodes, where targets and negatives tell."""
    known = dict(zip(part.target_T.tolist(), part.target_id_T.tolist(), strict=True))
    known |= dict(zip(part.negative_S.ravel().tolist(), part.negative_id_S.ravel().tolist(), strict=True))
    return [known.get(n, -1 - n) for n in range(len(part.items[0]))]


def test_parts_are_dropped_at_their_rate_by_item_and_step_and_never_all() -> None:
    n = 4000
    rng = np.random.default_rng(0)
    there = {"image": rng.random(n) < 0.7, "text": rng.random(n) < 0.7}
    made = Tensors(np.arange(1, n + 1), {m: np.ones((n, 2), np.float32) for m in there}, there)
    rows = np.sort(rng.permutation(n)[:3000])
    index, _, present = made.take(rows, 0.25, (0, 3, 7, 2))
    some = np.flatnonzero(rng.random(3000) < 0.1)
    again = made.take(rows[some], 0.25, (0, 3, 7, 2))
    assert torch.equal(again[0], index[some])
    assert all(torch.equal(again[2][m], present[m][some]) for m in there)
    other = made.take(rows, 0.25, (0, 3, 8, 2))
    assert not torch.equal(other[0], index)
    # five standard errors of 3,000 draws
    had = {m: torch.from_numpy(v[rows]) for m, v in there.items()}
    for m in there:
        assert abs(float((present[m][had[m]] == 0).float().mean()) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    content = sum(present.values()) > 0
    assert (index[~content] > 0).all()
    assert abs(float((index[content] == 0).float().mean()) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    # one part's loss says nothing of another's
    both = had["image"] & had["text"]
    a, b = (present[m][both].numpy() for m in there)
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(int(both.sum()))
    assert made.take(rows, 0.0, (0, 0, 0, 2))[0].tolist() == (rows + 1).tolist()


# batches


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12))
def test_histories_are_the_last_rows_of_each_case(seed: int, length: int, at_least: int) -> None:
    items, log = random_shop(seed, users=9, rows=60)
    fold = leave_one_out(log, items)
    cases = np.random.default_rng(seed).permutation(fold.n_cases)[: fold.n_cases // 2]
    for some in (slice(0, fold.n_cases), slice(1, 3), cases, slice(0, 0)):
        rows, there = history(fold, some, length, at_least)
        assert rows.shape == there.shape
        for row, ok, c in zip(rows, there, np.arange(fold.n_cases)[some], strict=True):
            own = fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]][-length:].tolist()
            assert row.tolist() == [-1] * (len(row) - len(own)) + own
            assert ok.tolist() == (row >= 0).tolist()


def test_a_batch_takes_as_many_lines_of_python_whatever_it_holds() -> None:
    def lines(times: int) -> tuple[int, int]:
        log = make_log([(u, (u + d) % 50, d) for u in range(40 * times) for d in range(9)])
        tensors = Tensors(np.arange(1, 51), {}, {})
        recipe = replace(TINY, tokens=320 * times, context=16)
        feed, ran, made = Feed(log, np.ones(len(log.user), bool), tensors, recipe, seed=0), 0, 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal ran
            if "mmrec" not in frame.f_code.co_filename:
                return None
            ran += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in feed._steps(0, 0):
                made += 1
        finally:
            sys.settrace(before)
        return made, ran

    one, ten = lines(1), lines(10)
    assert one[0] == ten[0] == 1
    assert one[1] == ten[1] > 20


def test_six_of_seven_tokens_of_batches_of_beautys_lengths_are_real() -> None:
    # inputs of its users: a third has two, a fifth three, then two in s squared; the set itself has 0.875
    rng = np.random.default_rng(0)
    share = np.array([0, 0, 0.32, 0.19, *(2 / np.arange(4, 200) ** 2)])
    sizes = 1 + rng.choice(len(share), 10_000, p=share / share.sum())
    log = make_log([(u, int(i), d) for u, n in enumerate(sizes) for d, i in enumerate(rng.integers(0, 500, n))])
    r = RECIPES["default"].fixed(RECIPES["default"].pace(8.0))
    made = list(Batches(log, np.ones(len(log.user), bool), context=r.context, tokens=r.tokens, seed=0).epoch(0))
    real, places = sum(int((b.rows_BL >= 0).sum()) for b in made), sum(b.rows_BL.size for b in made)
    assert real == int((sizes - 1).sum())
    assert real / places > 6 / 7
    # padded to the context, not even one of five would be
    assert real / (len(sizes) * r.context) < 1 / 5
    assert Batches(log, np.ones(len(log.user), bool), context=r.context, tokens=r.tokens, seed=0).count(0) == len(made)


def test_what_is_made_ahead_comes_in_order_raises_here_and_stops_when_nobody_asks() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("in the thread")

    assert list(ahead(iter(range(20)))) == list(range(20))
    made = ahead(failing())
    assert next(made) == 1
    with pytest.raises(ValueError, match="in the thread"):
        next(made)
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    running = threading.active_count()
    made = ahead(endless())
    assert [next(made), next(made)] == [1, 2]
    made.close()
    assert threading.active_count() == running
    assert taken < 20


# steps


def gradients(fit: loop._Fit, parts: list[Part], total: int) -> list[torch.Tensor]:
    fit.optimiser.zero_grad()
    for part in parts:
        (fit._loss(part) * len(part.asked_T) / total).backward()
    return [p.grad.clone() for p in fit.parameters if p.grad is not None]


@pytest.mark.parametrize("loss", ["sampled", "full", "gbce"])
def test_a_step_of_several_batches_is_one_on_the_joined_batch(loss: str) -> None:
    recipe = replace(TINY, accumulate=3, dropout=0.0, loss=loss)
    model, (items, log, fold, _) = begun(recipe)
    towers = nn.ModuleDict({"item": model.item_tower, "user": model.user_tower})
    fit = loop._Fit(towers, log, fold.train, model._tensors(items), recipe, 1, loop.World())
    batches = list(fit.feed.batches.epoch(0))[:3]
    width = max(b.rows_BL.shape[1] for b in batches)

    def wide(x: np.ndarray, fill: Any) -> np.ndarray:
        return np.pad(x, ((0, 0), (width - x.shape[1], 0)), constant_values=fill)

    joined = Batch(*(np.concatenate([wide(getattr(b, name), fill) for b in batches])
                     for name, fill in (("rows_BL", -1), ("next_BL", -1), ("asked_BL", False))))  # fmt: skip
    step, whole = fit.feed._step(0, 0, batches), fit.feed._step(0, 0, [joined])
    assert len(step.parts) == 3
    assert len(whole.parts) == 1
    assert step.targets == whole.targets == int(joined.asked_BL.sum())
    one, other = (gradients(fit, s.parts, s.targets) for s in (step, whole))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # fp32, sums in another order
    # and the loss that is told is the joined one's
    before = [p.detach().clone() for p in fit.parameters]
    told = fit._step(step)
    fit._put(before)
    assert told == pytest.approx(fit._loss(whole.parts[0]).item(), rel=1e-5)


@pytest.mark.parametrize("validated", [False, True])
def test_the_moving_average_is_its_formula_and_is_what_is_validated_and_kept(validated: bool) -> None:
    recipe = replace(TINY, ema=0.8, patience=9)
    model, (items, log, fold, _) = begun(recipe)
    towers = nn.ModuleDict({"item": model.item_tower, "user": model.user_tower})
    mean, steps = [p.detach().double().clone() for p in towers.parameters()], 0
    seen: list[list[torch.Tensor]] = []

    def stepped(_n: int, _loss: float) -> None:
        nonlocal steps
        decay = min(0.8, (1 + steps) / (10 + steps))
        for m, p in zip(mean, towers.parameters(), strict=True):
            m.mul_(decay).add_((1 - decay) * p.detach().double())
        steps += 1

    values = iter([0.1, 0.3, 0.2])

    def validate() -> float:
        now = [p.detach().clone() for p in towers.parameters()]
        for a, b in zip(now, mean, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
        seen.append(now)
        return next(values)

    best = loop.train(towers, log, fold.train, model._tensors(items), recipe, seed=1, told=lambda _: None,
                      validate=validate if validated else None, stepped=stepped)  # fmt: skip
    assert steps > 20
    if validated:
        assert best == 2
        assert all(torch.equal(a, b) for a, b in zip(seen[1], towers.parameters(), strict=True))
    else:
        for a, b in zip(towers.parameters(), mean, strict=True):
            torch.testing.assert_close(a.detach().double(), b, rtol=1e-5, atol=1e-6)
    plain, _ = begun(replace(recipe, ema=0.0))
    assert same(weights(plain), weights(begun(recipe)[0])), "the beginnings are the same"


def losses_of(recipe: Recipe, **more: Any) -> list[float]:
    told: list[float] = []
    model, (items, log, fold, _) = begun(recipe, stepped=lambda _n, loss: told.append(loss), **more)
    model.train(items, log, fold, [], CPU)
    assert all(p.dtype == torch.float32 for p in model.item_tower.parameters())
    return told


def test_bf16_learns_on_a_cpu_as_fp32_does_and_auto_is_fp32_there() -> None:
    recipe = replace(TINY, dropout=0.0, d=16, epochs=8, schedule=8, weight_decay=0.0)
    full, half, auto = (losses_of(replace(recipe, precision=p)) for p in ("fp32", "bf16", "auto"))
    assert auto == full
    assert half != full
    assert len(full) > 20
    # eight bits of mantissa: 2^-8 of logits of a few units, averaged over a step's targets
    np.testing.assert_allclose(half[:20], full[:20], rtol=0.02)
    assert np.isfinite(half).all()
    assert np.mean(half[-9:]) < np.mean(half[:9])


def test_the_device_is_the_configured_one_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cpu") == device_named("cpu", 3) == CPU
    with pytest.raises(InputError, match="no such device"):
        device_named("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"can't be used for training"):
        device_named("cuda")
    with pytest.raises(InputError, match=r"can't be used for training"):
        Champion(TINY, device="cuda").fit(*shop()[:3])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_named("cuda", n) for n in (0, 1)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(InputError, match=r"train\.processes = 2"):
        device_named("cuda", 2)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(("precision", "device", "has", "half"), [
    ("auto", "cpu", True, False), ("bf16", "cpu", False, True), ("fp32", "cuda", True, False),
    ("auto", "cuda", True, True), ("auto", "cuda", False, False),
])  # fmt: skip
def test_precision_is_the_recipes_and_auto_follows_the_gpu(
    precision: str, device: str, has: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: has)
    made = autocast(precision, torch.device(device))
    assert isinstance(made, torch.autocast) is half
    assert not half or made.fast_dtype == torch.bfloat16


@pytest.mark.parametrize("more", [{"precision": "fp8"}, {"ema": 1.0}, {"ema": -0.1}, {"accumulate": 0}])
def test_a_recipe_that_asks_for_what_there_is_not_is_refused_before_the_first_step(more: dict[str, Any]) -> None:
    (name,) = more
    with pytest.raises(InputError, match=f"no such {name}"):
        losses_of(replace(TINY, **more), progress=lambda *_: pytest.fail("an epoch"))


def test_gradients_of_rows_that_threads_share_are_added_up_in_one_order() -> None:
    at = torch.randint(50, (4096,), generator=torch.Generator().manual_seed(0))
    share_KD = torch.randn(4096, 64, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    torch.set_num_threads(max(4, threads))
    try:
        found = []
        for _ in range(30):
            vector_ND = torch.ones(50, 64, requires_grad=True)
            (loop._rows(vector_ND, at) * share_KD).sum().backward()
            found.append(vector_ND.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found)
    wanted_ND = torch.zeros(50, 64, dtype=torch.float64).index_add_(0, at, share_KD.double())
    torch.testing.assert_close(found[0].double(), wanted_ND, rtol=1e-4, atol=1e-4)


# checkpoints


def fitted(folder: Path, recipe: Recipe, stop_at: int | None = None, every_s: float = 0.0) -> tuple[Champion, list[int]]:
    """The loop with a checkpoint a step, stopped by an error after some steps; and the steps that were done."""
    done: list[int] = []

    def stepped(n: int, _loss: float) -> None:
        done.append(n)
        if len(done) == stop_at:
            raise KeyboardInterrupt

    model, (items, log, fold, vals) = begun(recipe, state=folder, stepped=stepped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping, "_EVERY_S", every_s)
        try:
            best = model.train(items, log, fold, vals, CPU)
        except KeyboardInterrupt:
            assert len(done) == stop_at
        else:
            model.chosen["epochs"] = best
    return model, done


RICH = replace(TINY, ema=0.5, accumulate=2, every=1, patience=9, dropout=0.3, part_dropout=0.3)


def told_of(model: Champion) -> list[tuple[Any, ...]]:
    return [(r["epoch"], r["loss"], r["val_ndcg@10"]) for r in model.curves]


@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_a_fit_stopped_after_any_step_goes_on_to_the_same_bits(tmp_path: Path, every_s: float) -> None:
    whole, done = fitted(tmp_path / "whole", RICH)
    assert len(done) > 15
    for at in range(1, len(done) + 1):
        folder = tmp_path / str(at)
        fitted(folder, RICH, at, every_s)
        model, rest = fitted(folder, RICH, None, every_s)
        assert same(weights(model), weights(whole))
        assert told_of(model) == told_of(whole)
        assert model.chosen == whole.chosen
        # what was saved is not done again: at most the step that was under way, or the epoch's
        again = at + len(rest) - len(done)
        assert again == 1 if every_s == 0 else 1 <= again <= len(done) // 3 + 1


def test_a_fit_that_ended_goes_on_to_its_end_at_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    whole, _ = fitted(tmp_path, RICH)
    again, done = fitted(tmp_path, RICH)
    assert done == []
    assert same(weights(again), weights(whole))
    items, log, fold, vals = shop()
    model = Champion(replace(RICH, epochs=1), 1, state=tmp_path).fit(items, log, fold, vals)
    assert not tmp_path.exists()
    assert same(weights(model), weights(Champion(replace(RICH, epochs=1), 1).fit(items, log, fold, vals)))


_KILLED = """
import sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads({threads})
import test_engine as room
room.keeping._EVERY_S = 0.0
model, whole = room.begun(room.RICH, state=room.Path({folder!r}), stepped=lambda n, loss: print(n, flush=True))
model.train(*whole, room.CPU)
print("ended", flush=True)
"""


def test_a_process_that_is_killed_in_an_epoch_is_gone_on_from_to_the_same_bits(tmp_path: Path) -> None:
    whole, done = fitted(tmp_path / "whole", RICH)
    code = _KILLED.format(here=str(Path(__file__).parent), threads=torch.get_num_threads(), folder=str(tmp_path / "state"))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(len(done) // 2):  # in the middle of the second epoch, whatever is being written
            assert process.stdout.readline().strip().isdigit()
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    model, rest = fitted(tmp_path / "state", RICH)
    assert 0 < len(rest) <= len(done) - len(done) // 2 + 1
    assert same(weights(model), weights(whole))
    assert told_of(model) == told_of(whole)


def test_a_checkpoint_of_another_fit_is_as_good_as_none_and_is_replaced(tmp_path: Path) -> None:
    alone, done = fitted(tmp_path / "alone", RICH)
    fitted(tmp_path / "state", replace(RICH, lr=1e-3), 9)
    model, rest = fitted(tmp_path / "state", RICH)
    assert len(rest) == len(done)
    assert same(weights(model), weights(alone))
    items, log, fold, vals = shop()
    made = Champion(RICH, 1)
    base = made.fingerprint(items, log, fold, vals)
    assert base == made.fingerprint(*shop())
    later = replace(log, ts_us=log.ts_us + (np.arange(len(log.ts_us)) == 5))
    shown = replace(items, content=items.content | {"text": items.content["text"] * 2})
    others = [(items, later, fold, vals), (shown, log, fold, vals), (items, log, replace(fold, train=~fold.train), vals),
              (items, log, fold, vals[:1]), (items, log, fold, [])]  # fmt: skip
    found = {base, *(made.fingerprint(*o) for o in others), Champion(RICH, 2).fingerprint(items, log, fold, vals),
             Champion(RICH, 1, processes=2).fingerprint(items, log, fold, vals),
             Champion(TINY, 1).fingerprint(items, log, fold, vals)}  # fmt: skip
    assert len(found) == 9


@pytest.mark.parametrize("harm", ["cut", "empty", "flip", "text"])
def test_a_torn_checkpoint_is_said_and_the_fit_begins_anew(tmp_path: Path, harm: str) -> None:
    alone, done = fitted(tmp_path / "alone", RICH)
    fitted(tmp_path / "state", RICH, 9)
    (file,) = (tmp_path / "state").iterdir()
    held = file.read_bytes()
    flipped = bytearray(held)
    flipped[-100] ^= 1
    file.write_bytes({"cut": held[: len(held) // 2], "empty": b"", "flip": bytes(flipped), "text": b"{}" * 50}[harm])
    with pytest.warns(UserWarning, match="the fit begins anew"):
        model, rest = fitted(tmp_path / "state", RICH)
    assert len(rest) == len(done)
    assert same(weights(model), weights(alone))


def test_a_checkpoint_is_on_disk_whole_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoint(tmp_path, fingerprint("one"), 60.0)
    kept.save({"a": torch.arange(3)}, {"n": 1})
    assert not kept.due
    order: list[str] = []
    honest = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), honest[0](fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("replace"), honest[1](self, to))[1])
    kept.save({"a": torch.arange(4)}, {"n": 2})
    assert order == ["fsync", "replace", "fsync"]

    def failing(_fd: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="no room"):
        kept.save({"a": torch.arange(5)}, {"n": 3})
    tensors, numbers = Checkpoint(tmp_path, fingerprint("one")).load()
    assert (tensors["a"].tolist(), numbers) == ([0, 1, 2, 3], {"n": 2})
    assert Checkpoint(tmp_path, fingerprint("two")).load() is None
    assert {p.suffix for p in tmp_path.iterdir()} <= {".safetensors", ".part"}


# validation


def ranked_fold(rng: np.random.Generator, cases: int, n: int, targets: int) -> Fold:
    picked = [np.sort(rng.permutation(n)[:targets]) for _ in range(cases)]
    empty = np.zeros(0, np.int64)
    return Fold("test", np.zeros(0, bool), 0, np.zeros(cases, np.int32), np.zeros(cases, np.int64),
                np.zeros(cases + 1, np.int64), empty, np.arange(cases + 1) * targets,
                np.concatenate(picked).astype(np.int64), np.ones(n, bool))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_counting_places_gives_the_ndcg_of_sorted_lists(seed: int, n: int, cases: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    fold = ranked_fold(rng, cases + 2, n, 1)
    scores = (rng.integers(0, 4, (cases, n)) if tied else rng.normal(size=(cases, n))).astype(np.float32)
    scores[rng.random((cases, n)) < 0.2] = -np.inf
    want = []
    for row, target in zip(scores, fold.target_item[1:-1], strict=True):
        order = [i for i in sorted(range(n), key=lambda i: (-row[i], i)) if row[i] > -np.inf][:10]
        want.append(1 / np.log2(order.index(target) + 2.0) if target in order else 0.0)
    got = measure.ndcg(fold, scores, 1)
    assert got == float(np.mean(want))
    if not tied:  # the list of the ten best, as cases with several targets have it
        ptr = fold.target_ptr[1:-1]
        listed = measure.metrics.ranking(measure.top(scores, 10), ptr - ptr[0], fold.target_item[1:-1], (10,))
        assert got == float(listed["ndcg@10"].mean())


def test_scores_that_are_no_numbers_are_no_hits() -> None:
    fold = ranked_fold(np.random.default_rng(0), 3, 20, 1)
    assert measure.ndcg(fold, np.full((3, 20), np.nan, np.float32)) == 0
    assert measure.ndcg(fold, np.full((3, 20), -np.inf, np.float32)) == 0
    best = np.zeros((3, 20), np.float32)
    best[np.arange(3), fold.target_item] = 1
    assert measure.ndcg(fold, best) == 1


def test_validation_is_of_the_first_cases_of_each_fold_weighed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    folds = [ranked_fold(rng, 30, 20, 1), ranked_fold(rng, 7, 20, 2)]
    scores = {id(f): rng.normal(size=(f.n_cases, 20)).astype(np.float32) for f in folds}
    asked: list[tuple[int, slice]] = []

    def score(fold: Fold, cases: slice) -> np.ndarray:
        asked.append((id(fold), cases))
        return scores[id(fold)][cases].copy()

    monkeypatch.setattr(loop, "_VALIDATED", 12)
    log = make_log([(0, 0, 0)])
    got = loop.validation_ndcg(log, folds, score)
    want = [measure.ndcg(f, scores[id(f)][c : c + 1], c) for f in folds for c in range(min(12, f.n_cases))]
    assert got == pytest.approx(np.mean(want), rel=1e-12)
    assert asked == [(id(folds[0]), slice(0, 12)), (id(folds[1]), slice(0, 7))]


# memory


class Held(TorchDispatchMode):
    """Bytes of tensors that were made under it and not yet let go; the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                if storage.data_ptr() not in self.live:
                    self.live[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, storage.data_ptr(), None)
        self.most = max(self.most, sum(self.live.values()))
        return out


@pytest.fixture(scope="module")
def large() -> tuple[Items, Log]:
    """100,000 items, 1,024 inputs of a batch."""
    rng = np.random.default_rng(0)
    return make_items(100_000), make_log([(u, int(i), d) for u in range(64) for d, i in enumerate(rng.integers(0, 100_000, 17))])


def most_held(large: tuple[Items, Log], recipe: Recipe) -> int:
    """Bytes at most of two whole steps beyond the parameters: activations, gradients, moments, what the loss makes."""
    items, log = large
    tower = Champion(recipe, 0)
    tower.item_map, tower.event_types, tower.dims = [str(i) for i in items.ids], log.event_types, {}
    tower._build(items.n, 1)
    towers = nn.ModuleDict({"item": tower.item_tower, "user": tower.user_tower})
    # every item may be drawn and is scored, as after a long history
    fit = loop._Fit(towers, log, np.ones(len(log.user), bool), tower._tensors(items), recipe, 0, loop.World())
    fit.feed.negatives, fit.feed.warm = Negatives(np.ones(items.n)), np.arange(items.n)
    batch = next(fit.feed.batches.epoch(0))
    assert batch.rows_BL.size == 1024
    assert 1000 < batch.asked_BL.sum() <= 1024
    with Held() as held:
        for n in range(2):
            fit._step(fit.feed._step(0, n, [batch]))
    return held.most


def test_a_sampled_step_with_100_000_items_holds_at_most_a_tenth_of_a_whole_softmaxs(
    large: tuple[Items, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(d=64, context=32, tokens=1024, negatives=1024)
    sampled = most_held(large, recipe)
    monkeypatch.setattr(loop, "full_softmax", lambda user, item, target, _weight: F.cross_entropy(user @ item.T, target))
    plain = most_held(large, replace(recipe, loss="full"))
    # the whole one can't do with less than its logits and their gradient
    assert plain > 2 * 4 * 1000 * 100_000
    assert sampled <= plain / 10
    # gradient and moments of the table are three quarters of it
    table = 4 * 100_001 * 64
    assert 3 * table < sampled < 4.5 * table


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 7), st.sampled_from([1, 5, 1 << 20]), st.booleans())
def test_the_sampled_softmax_in_chunks_has_the_gradients_of_its_formula(
    seed: int, t: int, s: int, block: int, own: bool
) -> None:
    rng = np.random.default_rng(seed)
    ids, drawn = torch.from_numpy(rng.integers(0, 5, t)), torch.from_numpy(rng.integers(0, 5, (t, s) if own else s))
    user, target = (torch.from_numpy(3 * rng.normal(size=(t, 3))).requires_grad_() for _ in range(2))
    negative = torch.from_numpy(3 * rng.normal(size=(*drawn.shape, 3))).requires_grad_()
    expected = torch.from_numpy(rng.normal(size=drawn.shape))
    logit = torch.einsum("td,tsd->ts" if own else "td,sd->ts", user, negative) - expected
    logit = logit.masked_fill(ids.unsqueeze(1) == drawn, -1e9)
    positive = (user * target).sum(1)
    want = (torch.logsumexp(torch.cat([positive.unsqueeze(1), logit], 1), 1) - positive).mean()
    wanted = torch.autograd.grad(3 * want, (user, target, negative))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_BLOCK", block)
        got = sampled_softmax(user, target, ids, negative, drawn, expected)
        found = torch.autograd.grad(3 * got, (user, target, negative))
    assert got.item() == pytest.approx(want.item(), rel=1e-10, abs=1e-12)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_not_a_number_stops_the_fit_and_its_checkpoint_stays_behind(tmp_path: Path) -> None:
    with pytest.raises(QualityError, match="not a number"):
        fitted(tmp_path, replace(TINY, lr=1e36, warmup=1))
    # and stops the next one at the same place, not at the beginning
    (file,) = tmp_path.iterdir()
    held = file.read_bytes()
    with pytest.raises(QualityError, match="not a number"):
        fitted(tmp_path, replace(TINY, lr=1e36, warmup=1))
    assert file.read_bytes() == held
