"""Export of a rival: arrays as they are, or two ONNX graphs that were compared with its own scores.

In: a fitted `Rival`, the items and a fold with histories. Out: a bundle's files, and what its scorer needs to know.
Content-NN, SASRec and GRU4Rec become a two_tower bundle, with the inputs and outputs that export.py describes, as far
as they use them; an item that the model knows nothing of has rows of NaN. The others are models/stored.py's.
Trade-off: content-NN's vectors are as wide as all modalities together; it is not cut to principal directions, which
would be another model.

Shape legend: B rows, N items, L history, M modality size, D vector size.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmrec.models.data import Fold, Items, Log
from mmrec.models.neighbours import ContentNN
from mmrec.ort import session
from mmrec.train.graphs import compare, history_feeds, write_graph
from mmrec.train.rival import Rival

_CASES = 64


def export_rival(model: Rival, items: Items, log: Log, fold: Fold, folder: Path, length: int) -> dict[str, Any]:
    """Write the files.

    Args:
        fold: cases whose histories graphs are compared on. length: events of a history that a night keeps.

    Returns: fields for bundle.json: kind, parity; of graphs also length, context, event_types, content_dims.

    Raises: QualityError: the graphs differ from the model, or hold what a bundle may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model.stored is not None:
        model.stored.save(folder)
        return {"kind": model.stored.kind, "parity": {}}
    content = model.rival == "content_nn"
    item: nn.Module
    user: nn.Module
    if content:
        nearest, context = model.content(items), 1
        item, user = _ContentItems(nearest), _ContentUsers()
        dims = {m: len(mean) for m, mean in sorted(nearest.mean.items())}
        feeds = {}
        for m in dims:
            feeds |= {m: items.content[m].astype(np.float32), f"{m}_present": items.present[m].astype(np.float32)}
    else:
        length = context = model.net.max_len
        item, user, dims = _SequenceItems(model.net.net), _SequenceUsers(model.net.net), {}
        at = {i: n + 1 for n, i in enumerate(model.ids)}
        feeds = {"id_index": np.array([at.get(str(i), 0) for i in items.ids], np.int64)}
    item, user = item.eval(), user.eval()  # an export puts back the mode it found, dropout and all
    two = tuple(torch.from_numpy(v[[0, -1]]) for v in feeds.values())
    write_graph(item, two, list(feeds), ["item_in", "item_vec"], {}, folder / "item_encoder.onnx")
    item_in, item_vec = session(folder / "item_encoder.onnx").run(["item_in", "item_vec"], feeds)
    wide = context + 3 * content
    history = (torch.zeros(2, wide, item_in.shape[1]), torch.ones(2, wide))
    names, more = ["item_in", "once" if content else "mask"], {1: "L"} if content else {}
    write_graph(user, history, names, ["user_vec"], more, folder / "user_encoder.onnx")
    (folder / "item_map.json").write_text(json.dumps(model.ids))
    known_N = np.isfinite(item_vec).all(1)
    asked = _histories(fold, log, known_N, length)
    parity = {}
    if asked.n_cases:
        cases = slice(0, asked.n_cases)
        made = history_feeds(log, asked, cases, item_in, length, context)
        user_vec = session(folder / "user_encoder.onnx").run(None, {n: made[n] for n in names})[0]
        wanted_BN = model.score(items, log, asked, cases)[:, known_N]
        parity["real_histories"] = compare(wanted_BN, user_vec, item_vec[known_N], f"{asked.n_cases} users")
    return {"kind": "two_tower", "length": length, "context": context, "event_types": [], "content_dims": dims,
            "parity": parity}  # fmt: skip


class _ContentItems(nn.Module):
    """Inputs are vectors and presence of each modality, in order of name."""

    def __init__(self, model: ContentNN) -> None:
        super().__init__()
        self.names = sorted(model.mean)
        for m in self.names:
            self.register_buffer(f"mean_{m}", torch.from_numpy(np.asarray(model.mean[m], np.float32)))

    def forward(self, *content: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = []
        for m, vector_BM, present_B in zip(self.names, content[0::2], content[1::2], strict=True):
            part_BM = (vector_BM - getattr(self, f"mean_{m}")) * present_B.unsqueeze(1)
            parts.append(part_BM / part_BM.norm(dim=1, keepdim=True).clamp(min=1e-12))
        whole_BD = torch.cat(parts, 1)
        norm_B1 = whole_BD.norm(dim=1, keepdim=True)
        unit_BD = torch.where(norm_B1 > 0, whole_BD / norm_B1.clamp(min=1e-12), torch.full_like(whole_BD, torch.nan))
        return unit_BD, unit_BD * 1.0  # one tensor can't be two outputs


class _ContentUsers(nn.Module):
    def forward(self, item_in: torch.Tensor, once: torch.Tensor) -> torch.Tensor:
        profile_BD = (once.unsqueeze(1) @ item_in).squeeze(1)
        return profile_BD / profile_BD.norm(dim=1, keepdim=True).clamp(min=1e-12)


class _SequenceItems(nn.Module):
    """Embeddings; the output bias, where there is one, is another column of what is ranked."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        item_ND, unknown_1D = net.item.weight.detach()[1:], torch.full((1, net.item.embedding_dim), torch.nan)
        bias_N1 = net.bias.detach()[:, None] if hasattr(net, "bias") else torch.zeros(len(item_ND), 0)
        self.register_buffer("item", torch.cat([unknown_1D, item_ND]))
        self.register_buffer("bias", torch.cat([torch.full((1, bias_N1.shape[1]), torch.nan), bias_N1]))

    def forward(self, id_index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        item_BD = self.item[id_index]
        return item_BD, torch.cat([item_BD, self.bias[id_index]], 1)


class _SequenceUsers(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        d, biased = net.item.embedding_dim, hasattr(net, "bias")
        self.net = net
        # a column of ones for the bias, by a product with ones and zeros: its width is then written in the graph, where
        # a scorer reads it; that of a GRU's output is not
        self.widen = nn.Linear(d, d + biased)
        self.widen.weight.data = torch.eye(d + biased, d)
        self.widen.bias.data = torch.eye(d + 1, d + biased)[d]

    def forward(self, item_in: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.widen(self.net.read(item_in, mask > 0)[:, -1])


def _histories(fold: Fold, log: Log, known_N: np.ndarray, length: int) -> Fold:
    """The first cases that have a history of known items, and the last `length` events of it."""
    cases, rows = [], []
    for c in range(fold.n_cases):
        own = fold.hist_row[fold.hist_ptr[c] : fold.hist_ptr[c + 1]]
        own = own[known_N[log.item[own]]][-length:]
        if len(own) and len(cases) < _CASES:
            cases.append(c)
            rows.append(own)
    ptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    flat = np.concatenate(rows) if rows else fold.hist_row[:0]
    return replace(fold, case_user=fold.case_user[cases], case_at_us=fold.case_at_us[cases], hist_ptr=ptr,
                   hist_row=flat, target_ptr=np.zeros_like(ptr), target_item=fold.target_item[:0])  # fmt: skip
