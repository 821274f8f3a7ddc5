"""One side of `mmrec bench train`, in a process of its own: `trainers.py SIDE FOLDER THREADS`.

In: a side's name; a folder with data.npz and settings.json; orders on stdin, a line of JSON each: {"seconds": s} train
on for so long, {"rank": FILE} rank for every validation case. Out: a line of JSON an order on stdout; of training
{"tokens", "seconds", "steps", "targets", "loss"}, of ranking FILE, (C, 10) int64 item indices.
Sides: mmrec: its own fit loop. rectools: SASRecModel and its trainer, with sampled negatives. rectools_fast: network,
sequences and loader of rectools.fast_transformers, with a softmax over the whole catalogue, which its own model takes
unless told; rectools_fast_sampled: the same with sampled negatives.
RecTools' sides run in RecTools' environment, which has no mmrec: a side imports what is its own when it is called.
A clock stands between two steps of a side's loop, measures, and holds the loop where an order is done. What is made
before the first step (sequences, networks) is in the first order's time alone; batches are made on the clock.
Trade-off: fast_transformers trains UniSRec alone; the loop around its FlatSASRecNet is written here, and is plain.

Shape legend: U users, B users of a batch, C cases, L history, N items, D model size, S negatives.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_CASES = 512  # ranked at a time
_Rank = Callable[[], np.ndarray]


class Clock:
    """Holds a training loop between two steps until the next order, and says what a finished one took.

    Attributes:
        rank: what answers an order to rank: () -> (C, 10) int64. targets: targets of an epoch of the side's data.
    """

    def __init__(self, orders: Any, answers: Any) -> None:
        self.orders, self.answers = orders, answers
        self.rank: _Rank | None = None
        self.targets = 0
        self.tokens, self.steps, self.loss = 0, 0, 0.0
        self.seconds, self.begun = 0.0, 0.0

    def wait(self) -> None:
        """Return when there is an order to train; leave the process when there are no more orders."""
        for line in iter(self.orders.readline, ""):
            order = json.loads(line)
            if "rank" not in order:
                self.tokens, self.steps, self.loss = 0, 0, 0.0
                self.seconds, self.begun = float(order["seconds"]), time.perf_counter()
                return
            assert self.rank is not None
            np.save(order["rank"], self.rank())
            self._say({"rank": order["rank"]})
        raise SystemExit(0)

    def step(self, tokens: int, loss: float) -> None:
        """A step is over: `tokens` targets were trained on, padding not among them."""
        self.tokens, self.steps, self.loss = self.tokens + tokens, self.steps + 1, self.loss + loss * tokens
        seconds = time.perf_counter() - self.begun
        if seconds >= self.seconds:
            self._told(seconds)
            self.wait()

    def over(self) -> None:
        """The fit has ended: what is asked from now on takes no time."""
        self._told(time.perf_counter() - self.begun)
        loss = self.loss / max(self.tokens, 1)
        while True:
            self.wait()
            self._say({"tokens": 0, "seconds": 0.0, "steps": 0, "targets": self.targets, "loss": loss})

    def _told(self, seconds: float) -> None:
        self._say({"tokens": self.tokens, "seconds": seconds, "steps": self.steps, "targets": self.targets,
                   "loss": self.loss / max(self.tokens, 1)})  # fmt: skip

    def _say(self, told: dict[str, Any]) -> None:
        self.answers.write(json.dumps(told) + "\n")
        self.answers.flush()


def own_side(data: dict[str, np.ndarray], settings: dict[str, Any], clock: Clock) -> None:
    """Train mmrec's model on the clock. All that the benchmark knows of mmrec's fit is here.

    The sequence tower alone, by ids alone. A whole fit goes at its recipe's pace, with that one's negatives, and begins
    as it says; else it begins at the linear head's directions.
    """
    from dataclasses import replace

    from mmrec.bench.train import views
    from mmrec.evaluate.protocols import evaluate
    from mmrec.train.fit import Champion
    from mmrec.train.recipe import RECIPES

    items, log, fold = views(data)
    same = {k: settings[k] for k in ("d", "heads")}
    recipe = replace(RECIPES["default"], layers=settings["blocks"], context=settings["history"], **same)
    if not settings["whole"]:
        recipe = replace(recipe, dropout=settings["dropout"], tokens=settings["batch_tokens"], epochs=10**6,
                         negatives=settings["negatives"], sparse_under=0.0)  # fmt: skip

    model = Champion(recipe, settings["seed"], stepped=clock.step)

    def rank() -> np.ndarray:
        towers = (model.item_tower.eval(), model.user_tower.eval())
        found = evaluate(model, items, log, fold, scorer=lambda cases: model.sequence_scores(items, log, fold, cases),
                         block=_CASES, lists=False)  # fmt: skip
        for tower in towers:
            tower.train()
        return found.ranked[:, :10].astype(np.int64)

    clock.rank, clock.targets = rank, int(np.maximum(np.bincount(log.user[fold.train]) - 1, 0).sum())
    clock.wait()
    model.fit(items, log, fold)
    clock.over()


def _rectools(data: dict[str, np.ndarray], settings: dict[str, Any], clock: Clock) -> None:
    """Train RecTools' SASRecModel by its own trainer, sampled softmax."""
    import pandas as pd
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    class Timed(Callback):
        def __deepcopy__(self, _: Any) -> Timed:
            return self  # the model fits with a copy of its trainer; the clock is one

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            clock.targets = sum(len(session) - 1 for session in trainer.train_dataloader.dataset.sessions)
            clock.rank = lambda: rank(pl_module)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            clock.step(int((batch["y"] != 0).sum()), float(outputs["loss"]))

    def trainer() -> Any:
        return Trainer(max_epochs=-1, accelerator="cpu", devices=1, callbacks=[Timed()], logger=False,
                       enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip

    def rank(module: Any) -> np.ndarray:
        known = module.data_preparator.item_id_map.get_external_sorted_by_internal()[1:].astype(np.int64)
        batches = [{"x": x} for x in _histories(data, settings, known)]
        user_CD, item_ND = module._get_user_item_embeddings(batches, "cpu")
        module.train()
        return _ranked(user_CD.numpy(), item_ND[1:].numpy(), known, data)

    seed_everything(settings["seed"])
    own = data["train"]
    clock.wait()
    rows = {Columns.User: data["user"][own], Columns.Item: data["item"][own], Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(data["place"][own], unit="D")}  # fmt: skip
    model = SASRecModel(
        n_factors=settings["d"], n_blocks=settings["blocks"], n_heads=settings["heads"],
        session_max_len=settings["history"], dropout_rate=settings["dropout"], loss="sampled_softmax",
        n_negatives=settings["negatives"], batch_size=settings["batch_users"], lr=settings["peers_lr"],
        get_trainer_func=trainer)  # fmt: skip
    model.fit(Dataset.construct(pd.DataFrame(rows)))


def _rectools_fast(data: dict[str, np.ndarray], settings: dict[str, Any], clock: Clock, sampled: bool = False) -> None:
    """Train the FlatSASRecNet of rectools.fast_transformers; data, optimiser, clipping as its UniSRecModel has them."""
    import torch
    from rectools.fast_transformers import FlatSASRecNet, SequenceBatchDataset, build_sequences
    from rectools.fast_transformers.unisrec.model import _NegativeSampler
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

    # outside training PyTorch's fast path answers NaN for padding, and all behind it
    torch.backends.mha.set_fastpath_enabled(False)
    clock.wait()
    torch.manual_seed(settings["seed"])
    own = data["train"]
    x_UL, y_UL, known, _ = build_sequences(*(torch.from_numpy(data[k][own]) for k in ("user", "item", "place")),
                                           max_len=settings["history"])  # fmt: skip
    net = FlatSASRecNet(len(known), settings["d"], settings["blocks"], settings["heads"], settings["history"],
                        settings["dropout"])  # fmt: skip
    negatives = _NegativeSampler(len(known), settings["negatives"]) if sampled else None
    loader = DataLoader(SequenceBatchDataset(x_UL, y_UL, transform=negatives), batch_size=settings["batch_users"],
                        shuffle=True)  # fmt: skip
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings["peers_lr"], weight_decay=0.01)

    def rank() -> np.ndarray:
        net.eval()
        with torch.no_grad():
            parts = [net.encode_last(x_BL).numpy() for x_BL in _histories(data, settings, known.numpy())]
            item_ND = net.all_item_embeddings().numpy()
        net.train()
        return _ranked(np.concatenate(parts), item_ND, known.numpy(), data)

    clock.rank, clock.targets = rank, int((y_UL != 0).sum())
    net.train()
    while True:
        for batch in loader:
            there_BL = batch["y"] != 0
            # (B, L, 1 + S) with the target first, or (B, L, N)
            logits = net(batch)
            wanted_BL = torch.zeros_like(batch["y"]) if sampled else batch["y"] - 1
            loss = cross_entropy(logits.flatten(0, 1), wanted_BL.masked_fill(~there_BL, -100).flatten())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            clock.step(int(there_BL.sum()), float(loss.detach()))


def _histories(data: dict[str, np.ndarray], settings: dict[str, Any], known: np.ndarray) -> list[Any]:
    """The cases' last train items in RecTools' form: (B, L) int64 tensors, 1 + place in `known`, 0 in front."""
    import torch

    at_N = np.zeros(int(data["n_items"]), np.int64)
    at_N[known] = np.arange(1, len(known) + 1)
    user, item = data["user"][data["train"]], data["item"][data["train"]]
    end_C = np.searchsorted(user, data["case_user"], side="right")
    start_C = np.searchsorted(user, data["case_user"])
    x_CL = np.zeros((len(end_C), settings["history"]), np.int64)
    for c, (start, end) in enumerate(zip(start_C, end_C, strict=True)):
        last = item[max(start, end - settings["history"]) : end]
        x_CL[c, settings["history"] - len(last) :] = at_N[last]
    return list(torch.from_numpy(x_CL).split(_CASES))


def _ranked(user_CD: np.ndarray, item_ND: np.ndarray, known: np.ndarray, data: dict[str, np.ndarray]) -> np.ndarray:
    """(C, K) best of the known items, K at most 10; what the case's user has had comes last."""
    if not (np.isfinite(user_CD).all() and np.isfinite(item_ND).all()):
        raise ValueError("a vector to rank by is not a number")
    user, item = data["user"][data["train"]], data["item"][data["train"]]
    at_N = np.zeros(int(data["n_items"]), np.int64)
    at_N[known] = np.arange(len(known))
    found = []
    for begin in range(0, len(user_CD), _CASES):
        score_BN = user_CD[begin : begin + _CASES] @ item_ND.T
        for b, owner in enumerate(data["case_user"][begin : begin + _CASES]):
            score_BN[b, at_N[item[slice(*np.searchsorted(user, [owner, owner + 1]))]]] = -np.inf
        near_BK = np.argpartition(-score_BN, min(9, len(known) - 1), axis=1)[:, :10]
        order_BK = np.argsort(-np.take_along_axis(score_BN, near_BK, 1), axis=1, kind="stable")
        found.append(known[np.take_along_axis(near_BK, order_BK, 1)])
    return np.concatenate(found)


_SIDES: dict[str, Callable[[dict[str, np.ndarray], dict[str, Any], Clock], None]] = {
    "mmrec": own_side, "rectools": _rectools, "rectools_fast": _rectools_fast,
    "rectools_fast_sampled": lambda data, settings, clock: _rectools_fast(data, settings, clock, sampled=True),
}  # fmt: skip


def main(name: str, folder: str, threads: str) -> None:
    """Serve orders until stdin ends. What the libraries print goes to stderr: answers have stdout to themselves."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(int(threads))
    with np.load(Path(folder) / "data.npz") as arrays:
        data = {k: arrays[k] for k in arrays.files}
    _SIDES[name](data, json.loads((Path(folder) / "settings.json").read_text()), Clock(sys.stdin, answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
