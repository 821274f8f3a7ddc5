"""Sequence models as published: SASRec and GRU4Rec.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32, from the last `max_len` events of
the case's history; ids alone, no content, no time.
Both are rivals, kept as their authors describe them; what mmrec serves is in towers.py.
Trade-off: a user is one window an epoch, their last `max_len` + 1 train events; batches are of like lengths, so that
little of them is padding, and events further back are never learnt from.

Shape legend: B rows, L events, N items, D model size, T positions with a target, S candidates of a batch.
Item codes are 0 for padding, then 1 + item index; rows are right-aligned.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mmrec.models.baselines import train_matrix
from mmrec.models.data import Fold, Items, Log
from mmrec.models.learning import EarlyStop, Unseen

_EVERY = 2  # epochs between validations
_BLOCK = 256  # cases scored at a time
_CHUNK = 16  # batches that are cut from one random part of the users, sorted by length


class _Sequential(ABC):
    """Fitting and scoring; a model adds its network, `_net`, and its loss, `_loss`."""

    name: str
    net: nn.Module

    def __init__(
        self, *, seed: int, d: int, max_len: int, dropout: float, lr: float, batch: int, epochs: int, patience: int
    ) -> None:
        self.seed, self.d, self.max_len, self.dropout = seed, d, max_len, dropout
        self.lr, self.batch, self.epochs, self.patience = lr, batch, epochs, patience
        self.curve: list[tuple[int, float]] = []
        self.best_epoch = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(d={self.d}, dropout={self.dropout:g}, lr={self.lr:g}, seed={self.seed})"

    def fit(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold] = ()) -> Self:
        """Learn from the train rows.

        Args:
            vals: validation folds: the weights of the epoch with the best ndcg@10 are kept, and the fit ends
                `patience` validations after it. Without any, all `epochs` are run.

        Raises:
            QualityError: the loss is not a number.
        """
        self._prepare(items, log, fold)
        rng = np.random.default_rng(self.seed)
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
            torch.manual_seed(self.seed)
            self.net = self._net(items.n)
            optimiser = torch.optim.Adam(self.net.parameters(), lr=self.lr, betas=(0.9, 0.98))
            stop = EarlyStop(self, self.net, items, log, vals, patience=self.patience, every=_EVERY)
            for epoch in range(1, self.epochs + 1):
                self.net.train()
                losses = []
                for user_B, code_BL in _batches(log, fold.train, self.max_len, self.batch, rng):
                    loss = self._loss(user_B, code_BL, rng)
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    optimiser.step()
                    losses.append(float(loss.detach()))
                self.net.eval()
                if not losses or stop.after(epoch, float(np.mean(losses))):
                    break
            self.best_epoch, self.curve = stop.restore(), stop.curve
        self.net.eval()
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        ptr = fold.hist_ptr[cases.start : cases.stop + 1]
        return self.rank(log.item[fold.hist_row[ptr[0] : ptr[-1]]], ptr - ptr[0], items.n)

    @torch.no_grad()
    def rank(self, item_E: np.ndarray, ptr: np.ndarray, n: int) -> np.ndarray:
        """(B, n) float32 of histories: case b has item_E[ptr[b]:ptr[b + 1]], dense indices, oldest first."""
        start, end = ptr[:-1], ptr[1:]
        code_BL = _codes(item_E, np.maximum(start, end - self.max_len), end)
        out = np.zeros((len(start), n), np.float32)
        for part in (slice(s, s + _BLOCK) for s in range(0, len(start), _BLOCK)):
            code = torch.from_numpy(code_BL[part])
            # without a history there is nothing to say
            asked = (code > 0).any(1, keepdim=True)
            out[part] = torch.where(asked, self._logits(self.net(code)[:, -1]), 0).numpy()
        return out

    @abstractmethod
    def _prepare(self, items: Items, log: Log, fold: Fold) -> None:
        """Take from the train rows what negatives are drawn from."""

    @abstractmethod
    def _net(self, n: int) -> nn.Module:
        """A network: (B, L) codes -> (B, L, D), of which position l has seen events 0..l; embeddings are its `item`."""

    @abstractmethod
    def _loss(self, user_B: np.ndarray, code_BL: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Mean loss of a batch."""

    def _logits(self, user_BD: torch.Tensor) -> torch.Tensor:
        return user_BD @ self.net.item.weight[1:].T


class SASRec(_Sequential):
    """Self-attention over the sequence (Kang and McAuley, ICDM 2018), as the authors' code has it.

    Learned absolute positions counted from the end; queries are normalised, keys and values not, and the residual is
    of the normalised input; feed-forward with ReLU and one width; no output projection; binary cross-entropy with one
    uniform negative a position, of items the user has not had; Adam with beta2 .98. Scores are dot products with the
    item embeddings of the input.
    """

    name = "sasrec"

    def __init__(
        self, *, seed: int = 0, d: int = 64, blocks: int = 2, heads: int = 1, max_len: int = 50, dropout: float = 0.5,
        lr: float = 1e-3, batch: int = 128, epochs: int = 200, patience: int = 20,
    ) -> None:  # fmt: skip
        super().__init__(
            seed=seed, d=d, max_len=max_len, dropout=dropout, lr=lr, batch=batch, epochs=epochs, patience=patience
        )
        self.blocks, self.heads = blocks, heads

    def _prepare(self, items: Items, log: Log, fold: Fold) -> None:
        self._unseen = Unseen(train_matrix(log, fold, items.n))

    def _net(self, n: int) -> nn.Module:
        return _Attentive(n, self.d, self.blocks, self.heads, self.max_len, self.dropout)

    def _loss(self, user_B: np.ndarray, code_BL: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        mask_BL = code_BL[:, :-1] > 0
        negative, there = self._unseen.draw(np.repeat(user_B, mask_BL.sum(1)), rng)
        user_TD = self.net(torch.from_numpy(code_BL[:, :-1]))[torch.from_numpy(mask_BL)]
        weight_ND = self.net.item.weight
        yes_T = (user_TD * weight_ND[torch.from_numpy(code_BL[:, 1:][mask_BL])]).sum(1)
        no_T = (user_TD * weight_ND[torch.from_numpy(negative + 1)]).sum(1)
        return (F.softplus(-yes_T) + F.softplus(no_T) * torch.from_numpy(there)).mean()


class GRU4Rec(_Sequential):
    """A gated recurrent unit over the sequence (Hidasi and Karatzoglou, CIKM 2018).

    One layer; one embedding for input and output (the paper's "constrained" form) with an output bias; cross-entropy
    of the target against a batch's other targets and `negatives` more, drawn by count ** `alpha`. A batch is of whole
    sequences, not session-parallel steps, and the optimiser is Adam, not Adagrad: sequences here are short.
    """

    name = "gru4rec"

    def __init__(
        self, *, seed: int = 0, d: int = 64, negatives: int = 2048, alpha: float = 0.5, max_len: int = 50,
        dropout: float = 0.3, lr: float = 1e-3, batch: int = 128, epochs: int = 150, patience: int = 5,
    ) -> None:  # fmt: skip
        super().__init__(
            seed=seed, d=d, max_len=max_len, dropout=dropout, lr=lr, batch=batch, epochs=epochs, patience=patience
        )
        self.negatives, self.alpha = negatives, alpha

    def _prepare(self, items: Items, log: Log, fold: Fold) -> None:
        count_N = np.bincount(log.item[fold.train], minlength=items.n).astype(np.float64)
        # a draw falls before the running sum of its item
        self._until_N = np.cumsum(np.where(count_N > 0, count_N**self.alpha, 0))

    def _net(self, n: int) -> nn.Module:
        return _Recurrent(n, self.d, self.dropout)

    def _loss(self, user_B: np.ndarray, code_BL: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        mask_BL = code_BL[:, :-1] > 0
        target_T = code_BL[:, 1:][mask_BL]
        drawn = np.searchsorted(self._until_N, rng.random(self.negatives) * self._until_N[-1], side="right") + 1
        # each candidate once: a target is never its own negative
        code_S, at = np.unique(np.concatenate([target_T, drawn]), return_inverse=True)
        user_TD = self.net(torch.from_numpy(code_BL[:, :-1]))[torch.from_numpy(mask_BL)]
        code = torch.from_numpy(code_S)
        logit_TS = user_TD @ self.net.item(code).T + self.net.bias[code - 1]
        return F.cross_entropy(logit_TS, torch.from_numpy(at[: len(target_T)]))

    def _logits(self, user_BD: torch.Tensor) -> torch.Tensor:
        return super()._logits(user_BD) + self.net.bias


def _codes(item_E: np.ndarray, start_B: np.ndarray, end_B: np.ndarray) -> np.ndarray:
    """(B, L) int64 codes of item_E[start:end], right-aligned; L is the longest, at least 1."""
    length = int((end_B - start_B).max(initial=1))
    at = end_B[:, None] - length + np.arange(length)
    there = at >= start_B[:, None]
    code_BL = np.zeros(at.shape, np.int64)
    code_BL[there] = item_E[at[there]] + 1
    return code_BL


def _batches(
    log: Log, train: np.ndarray, max_len: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """((B,) users, (B, L + 1) codes): inputs are all but the last column, targets all but the first."""
    user_E, item_E = log.user[train], log.item[train]
    ptr = np.searchsorted(user_E, np.arange(log.n_users + 1))
    length_U = np.minimum(np.diff(ptr), max_len + 1)
    users = rng.permutation(np.flatnonzero(length_U > 1))
    groups = []
    for s in range(0, len(users), size * _CHUNK):
        part = users[s : s + size * _CHUNK]
        part = part[np.argsort(length_U[part], kind="stable")]
        groups += [part[g : g + size] for g in range(0, len(part), size)]
    for g in rng.permutation(len(groups)):
        user_B = groups[g]
        yield user_B, _codes(item_E, ptr[user_B + 1] - length_U[user_B], ptr[user_B + 1])


class _Attentive(nn.Module):
    def __init__(self, n: int, d: int, blocks: int, heads: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.max_len = max_len
        self.item, self.position = nn.Embedding(n + 1, d, padding_idx=0), nn.Embedding(max_len, d)
        self.blocks = nn.ModuleList([_Block(d, heads, dropout) for _ in range(blocks)])
        self.norm, self.drop = nn.LayerNorm(d, eps=1e-8), nn.Dropout(dropout)
        for each in (self.item, self.position):
            nn.init.xavier_uniform_(each.weight)
        with torch.no_grad():
            self.item.weight[0] = 0

    def forward(self, code_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, D) float32; position l has seen events 0..l."""
        return self.read(self.item(code_BL), code_BL > 0)

    def read(self, item_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """The same of embeddings, whatever number stands where `mask_BL` is false."""
        length = item_BLD.shape[1]
        mask_BL1 = mask_BL.unsqueeze(2)
        x_BLD = item_BLD * math.sqrt(self.item.embedding_dim)
        x_BLD = self.drop(x_BLD + self.position.weight[self.max_len - length :]) * mask_BL1
        # a row of padding may look at itself, so that no softmax is empty
        back_LL = torch.arange(length).unsqueeze(1) - torch.arange(length)
        sees = (back_LL >= 0) & mask_BL1.transpose(1, 2) | (back_LL == 0)
        for block in self.blocks:
            x_BLD = block(x_BLD, sees.unsqueeze(1)) * mask_BL1
        return self.norm(x_BLD)


class _Block(nn.Module):
    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, d), nn.Linear(d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-8), nn.LayerNorm(d, eps=1e-8)
        self.drop = nn.Dropout(dropout)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, x_BLD: torch.Tensor, sees_B1LL: torch.Tensor) -> torch.Tensor:
        b, n, d = x_BLD.shape
        own_BLD = self.norm1(x_BLD)
        q, k, v = (t.view(b, n, self.heads, d // self.heads).transpose(1, 2)
                   for t in (self.q(own_BLD), self.k(x_BLD), self.v(x_BLD)))  # fmt: skip
        s = (q @ k.transpose(2, 3) / math.sqrt(d // self.heads)).masked_fill(~sees_B1LL, -torch.inf)
        a = (self.drop(torch.softmax(s, -1)) @ v).transpose(1, 2).reshape(b, n, d)
        x_BLD = self.norm2(own_BLD + a)
        return x_BLD + self.drop(self.down(self.drop(F.relu(self.up(x_BLD)))))


class _Recurrent(nn.Module):
    def __init__(self, n: int, d: int, dropout: float) -> None:
        super().__init__()
        self.item, self.bias = nn.Embedding(n + 1, d, padding_idx=0), nn.Parameter(torch.zeros(n))
        self.gru, self.drop = nn.GRU(d, d, batch_first=True), nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.item.weight)
        with torch.no_grad():
            self.item.weight[0] = 0

    def forward(self, code_BL: torch.Tensor) -> torch.Tensor:
        """(B, L, D) float32; position l has seen events 0..l."""
        return self.read(self.item(code_BL), code_BL > 0)

    def read(self, item_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """The same of embeddings, whatever number stands where `mask_BL` is false."""
        # events first, padding behind: a state that had run over padding would depend on a batch's longest row
        length = item_BLD.shape[1]
        pad_B1 = (~mask_BL).sum(1, keepdim=True)
        there = (torch.arange(length) + pad_B1) % length
        state_BLD, _ = self.gru(self.drop(item_BLD.gather(1, there.unsqueeze(2).expand_as(item_BLD))))
        back = (torch.arange(length) - pad_B1) % length
        state_BLD = state_BLD.gather(1, back.unsqueeze(2).expand_as(state_BLD))
        return self.drop(state_BLD) * mask_BL.unsqueeze(2)
