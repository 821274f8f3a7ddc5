"""LightGCN: embeddings smoothed over the graph of who had what.

In: `Items`, `Log`, `Fold`. Out: scores of every item for every case, (B, N) float32.
LightGCN (He et al., SIGIR 2020): a node's vector is the mean of its embedding and of K propagations by
A = D^-1/2 [0 X; X' 0] D^-1/2; learned by BPR with one uniform negative a pair, and a penalty on the embeddings used.
A case is folded in as a node of its own: one propagation from the items of its history, layer by layer. That is the
vector its user would have, less their embedding, which is not known for a new history.
Trade-off: each step propagates over the whole graph, so batches are large and steps few.

Shape legend: B cases of a block, U users, N items, V = U + N nodes, D model size, T pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional as F

from mmrec.models.baselines import history_matrix, train_matrix
from mmrec.models.data import Fold, Items, Log
from mmrec.models.learning import EarlyStop, Unseen

_EVERY = 5  # epochs between validations


class LightGCN:
    """See the module. The learning rate and the batch are larger than published (.001, 2048 pairs), for fewer steps.

    Args:
        layers: K. reg: weight of the squared embeddings of a pair and its negative. batch: pairs of a step.
        epochs: run at most, and all of them where nothing is validated. patience: validations without a better one.
    """

    name = "lightgcn"

    def __init__(
        self, *, seed: int = 0, d: int = 64, layers: int = 3, lr: float = 5e-3, reg: float = 1e-4, batch: int = 8192,
        epochs: int = 100, patience: int = 3,
    ) -> None:  # fmt: skip
        self.seed, self.d, self.layers, self.lr, self.reg = seed, d, layers, lr, reg
        self.batch, self.epochs, self.patience = batch, epochs, patience
        self.curve: list[tuple[int, float]] = []
        self.best_epoch = 0

    def __repr__(self) -> str:
        return f"LightGCN(d={self.d}, layers={self.layers}, lr={self.lr:g}, reg={self.reg:g}, seed={self.seed})"

    def fit(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold] = ()) -> LightGCN:
        """Learn from the train rows.

        Args:
            vals: validation folds: the epoch with the best ndcg@10 is kept. Without any, all `epochs` are run.

        Raises:
            QualityError: the loss is not a number.
        """
        x_UN = train_matrix(log, fold, items.n)
        self.n_users = x_UN.shape[0]
        self.graph_VV, self.root_V = _graph(x_UN)
        user_E, item_E = (t.astype(np.int64) for t in x_UN.nonzero())
        unseen, rng = Unseen(x_UN), np.random.default_rng(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.net = nn.Embedding(self.n_users + items.n, self.d)
            nn.init.normal_(self.net.weight, std=0.1)
        optimiser = torch.optim.Adam(self.net.parameters(), lr=self.lr)
        stop = EarlyStop(self, self.net, items, log, vals, patience=self.patience, every=_EVERY)
        for epoch in range(1, self.epochs + 1 if len(user_E) else 1):
            losses = []
            order = rng.permutation(len(user_E))
            for pick in (order[s : s + self.batch] for s in range(0, len(order), self.batch)):
                negative, there = unseen.draw(user_E[pick], rng)
                if not there.any():
                    continue
                loss = self._loss(user_E[pick][there], item_E[pick][there], negative[there])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
            self._settle()
            if not losses or stop.after(epoch, float(np.mean(losses))):
                break
        self.best_epoch, self.curve = stop.restore(), stop.curve
        self._settle()
        return self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice) -> np.ndarray:
        h = history_matrix(log, fold, cases, items.n)
        user_BD = (h @ self.history_ND) / np.sqrt(np.maximum(np.diff(h.indptr), 1))[:, None]
        return (user_BD @ self.offer_ND.T).astype(np.float32)

    def _loss(self, user_T: np.ndarray, item_T: np.ndarray, negative_T: np.ndarray) -> torch.Tensor:
        node_VD = _Smooth.apply(self.net.weight, self.graph_VV, self.layers)
        u, i, j = (torch.from_numpy(t) for t in (user_T, item_T + self.n_users, negative_T + self.n_users))
        margin_T = (node_VD[u] * (node_VD[i] - node_VD[j])).sum(1)
        used = sum((self.net.weight[t] ** 2).sum() for t in (u, i, j)) / (2 * len(user_T))
        return F.softplus(-margin_T).mean() + self.reg * used

    def _settle(self) -> None:
        """What scores are made from: an item on offer, and an item as part of a history."""
        layers = _layers(self.net.weight.detach().numpy(), self.graph_VV, self.layers)
        self.offer_ND = (sum(layers) / len(layers))[self.n_users :]
        self.history_ND = sum(layers[:-1], np.zeros_like(layers[0]))[self.n_users :] / len(layers)
        self.history_ND *= self.root_V[self.n_users :, None]


def _graph(x_UN: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """A, (V, V) float32, users before items; D^-1/2, (V,) float32, zero where a node has no edge."""
    a_VV = sparse.bmat([[None, x_UN], [x_UN.T, None]], format="csr", dtype=np.float32)
    degree_V = np.asarray(a_VV.sum(1), np.float64).ravel()
    root_V = np.where(degree_V > 0, 1 / np.sqrt(np.maximum(degree_V, 1)), 0)
    d_VV = sparse.diags(root_V)
    return (d_VV @ a_VV @ d_VV).tocsr().astype(np.float32), root_V.astype(np.float32)


def _layers(weight_VD: np.ndarray, graph_VV: sparse.csr_matrix, k: int) -> list[np.ndarray]:
    found = [weight_VD]
    for _ in range(k):
        found.append(graph_VV @ found[-1])
    return found


class _Smooth(torch.autograd.Function):
    """Mean of the layers. A is symmetric, so the gradient is smoothed by the same sum; SciPy's product adds in one
    order, whatever the number of threads."""

    @staticmethod
    def forward(ctx: Any, weight_VD: torch.Tensor, graph_VV: sparse.csr_matrix, k: int) -> torch.Tensor:
        ctx.graph_VV, ctx.k = graph_VV, k
        return torch.from_numpy(sum(_layers(weight_VD.detach().numpy(), graph_VV, k)) / (k + 1))

    @staticmethod
    def backward(ctx: Any, grad_VD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        grad_VD = np.ascontiguousarray(grad_VD.numpy())
        return torch.from_numpy(sum(_layers(grad_VD, ctx.graph_VV, ctx.k)) / (ctx.k + 1)), None, None
