"""Export: a fitted champion becomes two ONNX graphs, checked against torch before anybody serves them.

In: a champion fitted on everything up to as_of, the items and the fold it was fitted on. Out: `item_encoder.onnx`,
`user_encoder.onnx`, `item_map.json`, and what the scorer needs to know about them.
item_encoder: id_index int64 (B,) (0: no id, else 1 + place in item_map), per modality m: m (B, M) and m_present (B,),
popularity (B,) -> item_in (B, I) for histories, item_vec (B, V) for the dot product.
user_encoder: item_in (B, L, I) right-aligned, event int64 (B, L) (0: unknown, else 1 + place in event_types), gap_log
(B, L) log1p of seconds to the next event or to as_of, weight (B, L), mask (B, L), once (B, L): 1 at the last event of
each item -> user_vec (B, V). L is at least the tower's context.
Trade-off: tables of the linear head are constants of the graph, so a bundle grows by some kilobytes an item, and a
scorer needs nothing but the graph.

Shape legend: B rows, L history, I history side, V dot product side, M modality size, D R C parts of I.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrec.errors import QualityError
from mmrec.models.data import Fold, Items, Log
from mmrec.models.linear import history_weights
from mmrec.models.tables import latest
from mmrec.ort import session
from mmrec.train.fit import Champion
from mmrec.train.graphs import compare, history_feeds, write_graph

_CASES = 64


def export(model: Champion, items: Items, log: Log, fold: Fold, folder: Path) -> dict[str, Any]:
    """Write the graphs and compare them with torch in scores and in top-K.

    Returns: fields for bundle.json: length, context, event_types, content_dims, parity, blend (None: a dot product);
        columns: sizes of what vectors are made of, which stand in this order, content's by modality, and tau and base
        of the linear head's history weights: what takes a score apart.

    Raises: QualityError: the graphs differ from torch, or hold what a bundle may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    item, user = _ItemGraph(model).eval(), _UserGraph(model).eval()
    _write_item(model, item, folder / "item_encoder.onnx")
    _write_user(model, item, user, folder / "user_encoder.onnx")
    (folder / "item_map.json").write_text(json.dumps(model.item_map))
    parity = _parity(model, item, user, items, log, fold, folder)
    return {"length": model.recipe.length, "context": model.recipe.context, "event_types": list(model.event_types),
            "content_dims": model.dims, "columns": _columns(model), "tau": model.recipe.tau, "base": model.recipe.base,
            "half_life_days": model.recipe.half_life_days, "parity": parity,
            "blend": None if model.rerank is None else asdict(model.rerank)}  # fmt: skip


def _columns(model: Champion) -> dict[str, Any]:
    return {"sequence": model.recipe.d, "linear": model.head.behaviour_NR.shape[1],
            "content": {m: model.likeness.maps[m][1].shape[1] for m in sorted(model.dims)}}  # fmt: skip


class _ItemGraph(nn.Module):
    def __init__(self, model: Champion) -> None:
        super().__init__()
        self.tower, self.recipe, self.names = model.item_tower, model.recipe, sorted(model.dims)
        touched = np.flatnonzero(model.touched_N)
        if len(touched) != len(model.item_map):
            raise QualityError(
                "the linear head and the sequence tower were fitted on different items",
                where="export",
                value=len(touched),
                valid=str(len(model.item_map)),
                next="mmrec train --date D",
            )
        table = model.head.behaviour_NR
        padded = np.concatenate([np.zeros((1, table.shape[1]), np.float32), table[touched]])
        self.register_buffer("behaviour", torch.from_numpy(padded))
        self.register_buffer("appeal", torch.from_numpy(model.appeal_F[:, None]))
        self.register_buffer("content", torch.from_numpy(model.head.content_CR))
        for m, (mean, directions) in model.likeness.maps.items():
            self.register_buffer(f"mean_{m}", torch.from_numpy(mean))
            self.register_buffer(f"directions_{m}", torch.from_numpy(np.ascontiguousarray(directions)))

    def forward(
        self, id_index: torch.Tensor, popularity: torch.Tensor, *content: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`content`: for each modality in order of name, vectors and presence."""
        r = self.recipe
        present = dict(zip(self.names, content[1::2], strict=True))
        vectors = dict(zip(self.names, content[0::2], strict=True))
        parts = {m: self._part(m, v, present[m]) for m, v in vectors.items()}
        tower_BD = self.tower(id_index, vectors, present)
        like_BC, even_BC = (self._like(parts, id_index, share) for share in (r.image_share, 1.0))
        warm_B1 = (id_index > 0).to(tower_BD.dtype).unsqueeze(1)
        content_B1 = warm_B1 * r.content + (1 - warm_B1) * r.content_cold
        linear_B1 = warm_B1 * r.linear + (1 - warm_B1) * r.linear_cold
        cold_B1 = 1 - warm_B1
        sequence_BD = tower_BD * (warm_B1 + cold_B1 * r.sequence_cold)
        there = [present[m].unsqueeze(1) for m in self.names]
        appeal_B1 = torch.cat([even_BC, *there, torch.ones_like(warm_B1)], 1) @ self.appeal
        held_B1 = cold_B1 * (r.cold_offset / 3)
        bias_B1 = r.popularity * torch.log1p(popularity).unsqueeze(1) + cold_B1 * r.appeal_cold * appeal_B1 - held_B1
        history_BR = self.behaviour[id_index] + even_BC @ self.content
        offer_BR = history_BR / (1 - (history_BR**2).sum(1, keepdim=True)).clamp(min=1e-6)
        item_in = torch.cat([tower_BD, history_BR, like_BC], 1)
        item_vec = (sequence_BD, bias_B1, linear_B1 * offer_BR, -held_B1, content_B1 * like_BC, -held_B1)
        return item_in, torch.cat(item_vec, 1)

    def _part(self, m: str, vector_BM: torch.Tensor, present_B: torch.Tensor) -> torch.Tensor:
        part = (vector_BM - getattr(self, f"mean_{m}")) @ getattr(self, f"directions_{m}") * present_B.unsqueeze(1)
        return part / part.norm(dim=1, keepdim=True).clamp(min=1e-9)

    def _like(self, parts: dict[str, torch.Tensor], id_index: torch.Tensor, image_share: float) -> torch.Tensor:
        if not parts:
            return torch.zeros(id_index.shape[0], 1)
        like = torch.cat([(image_share if m == "image" else 1.0) * parts[m] for m in self.names], 1)
        return like / like.norm(dim=1, keepdim=True).clamp(min=1e-9)


class _UserGraph(nn.Module):
    def __init__(self, model: Champion) -> None:
        super().__init__()
        r = model.recipe
        self.tower, self.context, self.d, self.rank = model.user_tower, r.context, r.d, model.head.behaviour_NR.shape[1]
        self.register_buffer("weight_L", torch.from_numpy(history_weights(r.length, tau=r.tau, base=r.base)))

    def forward(
        self,
        item_in: torch.Tensor,
        event: torch.Tensor,
        gap_log: torch.Tensor,
        weight: torch.Tensor,
        mask: torch.Tensor,
        once: torch.Tensor,
    ) -> torch.Tensor:
        n = self.context
        user_BD = self.tower(item_in[:, -n:, : self.d], event[:, -n:], gap_log[:, -n:], weight[:, -n:], mask[:, -n:])
        w_BL = once * self.weight_L[-item_in.shape[1] :]
        linear_BR = (w_BL.unsqueeze(1) @ item_in[:, :, self.d : self.d + self.rank]).squeeze(1)
        like_BC = (once.unsqueeze(1) @ item_in[:, :, self.d + self.rank :]).squeeze(1)
        linear_BR = linear_BR / w_BL.sum(1, keepdim=True).clamp(min=1e-6).sqrt()
        like_BC = like_BC / once.sum(1, keepdim=True).clamp(min=1e-6).sqrt()
        one_B1 = torch.ones_like(like_BC[:, :1])
        return torch.cat([user_BD[:, -1], one_B1, linear_BR, one_B1, like_BC, one_B1], 1)


def _write_item(model: Champion, graph: _ItemGraph, path: Path) -> None:
    inputs: list[torch.Tensor] = [torch.tensor([0, 1]), torch.zeros(2)]
    names = ["id_index", "popularity"]
    for m in sorted(model.dims):
        inputs += [torch.zeros(2, model.dims[m]), torch.ones(2)]
        names += [m, f"{m}_present"]
    write_graph(graph, tuple(inputs), names, ["item_in", "item_vec"], {}, path)


def _write_user(model: Champion, item: _ItemGraph, user: _UserGraph, path: Path) -> None:
    width = model.recipe.d + item.behaviour.shape[1] + max(1, sum(d.shape[1] for _, d in model.likeness.maps.values()))
    length = model.recipe.context + 3
    shape = (2, length)
    inputs = (torch.zeros(*shape, width), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), torch.zeros(shape),
              torch.ones(shape), torch.ones(shape))  # fmt: skip
    names = ["item_in", "event", "gap_log", "weight", "mask", "once"]
    write_graph(user, inputs, names, ["user_vec"], {1: "L"}, path)


def _parity(
    model: Champion, item: _ItemGraph, user: _UserGraph, items: Items, log: Log, fold: Fold, folder: Path
) -> dict[str, float]:
    """Largest difference of scores, in units of their spread, on hard and on real histories."""
    feeds = item_feeds(model, items)
    ort_item, ort_user = session(folder / "item_encoder.onnx"), session(folder / "user_encoder.onnx")
    item_in, item_vec = ort_item.run(["item_in", "item_vec"], feeds)
    order = ["id_index", "popularity", *(x for m in sorted(model.dims) for x in (m, f"{m}_present"))]
    with torch.no_grad():
        torch_in, torch_vec = item(*(torch.from_numpy(feeds[n]) for n in order))
    worst = {}
    hard = _hard(model, item_in.shape[1], torch_in.numpy())
    with torch.no_grad():
        wanted = user(*(torch.from_numpy(v) for v in hard.values())).numpy() @ torch_vec.numpy().T
    user_vec = ort_user.run(None, hard)[0]
    worst["hard_histories"] = compare(wanted, user_vec, item_vec, "empty, one-item, full-length, all-masked")
    n = min(_CASES, fold.n_cases)
    if n:
        cases = slice(0, n)
        real = user_feeds(model, log, fold, cases, item_in)
        wanted = model.user_side(items, log, fold, cases) @ model.item_side(items).T
        worst["real_histories"] = compare(wanted, ort_user.run(None, real)[0], item_vec,
                                           f"{n} users")  # fmt: skip
    return worst


def item_feeds(model: Champion, items: Items) -> dict[str, np.ndarray]:
    """Inputs of the item graph for a catalogue, as a scorer makes them."""
    at = {i: n + 1 for n, i in enumerate(model.item_map)}
    feeds = {"id_index": np.array([at.get(str(i), 0) for i in items.ids], np.int64),
             "popularity": model.popularity_N.astype(np.float32)}  # fmt: skip
    for m in sorted(model.dims):
        feeds |= {m: items.content[m].astype(np.float32), f"{m}_present": items.present[m].astype(np.float32)}
    return feeds


def user_feeds(model: Champion, log: Log, fold: Fold, cases: slice, item_in: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of the user graph for cases of a fold, as a scorer makes them."""
    return history_feeds(log, fold, cases, item_in, model.recipe.length, model.recipe.context)


def _hard(model: Champion, width: int, item_in: np.ndarray) -> dict[str, np.ndarray]:
    length = model.recipe.length
    mask = np.zeros((4, length), np.float32)
    mask[1, -1:], mask[2] = 1, 1
    items = np.arange(4 * length).reshape(4, length) % len(item_in)
    # the last row has items behind a mask: they must not count
    filled = np.where((mask > 0)[..., None] | (np.arange(4) == 3)[:, None, None], item_in[items], 0)
    return {
        "item_in": filled.astype(np.float32),
        "event": np.ones((4, length), np.int64),
        "gap_log": np.full((4, length), 3, np.float32),
        "weight": np.ones((4, length), np.float32),
        "mask": mask,
        "once": latest(items, mask > 0).astype(np.float32),
    }
