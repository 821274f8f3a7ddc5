"""Item vectors: an item's id embedding fused with whatever content it has.

In: item index, content vectors and their presence. Out: `v_ND`. An item nobody has touched has content alone and a
vector all the same; an item without content has its id; an item with neither has zeros.
`sum` adds the parts that are there. `gate` weighs them by a masked softmax (as in gated multimodal units, Arevalo et
al., 2017, section 3). `attention` lets parts look at each other first (Vaswani et al., 2017, section 3.2.1, one head)
and takes their mean. `concat` maps the parts, zeros where missing, side by side through one matrix. `late` gives each
part dimensions of its own, so that an item's score is a sum of one score a part (late fusion, Snoek et al., 2005).
Content is centred and of unit length first: encoders give vectors that share a direction, which says nothing and slows
learning (Su et al., 2021, on whitening).
Trade-off: one linear map a modality; deeper towers gain nothing at these sizes and cost the most time.

Shape legend: N items, D model size, M modality size, P parts (id and modalities).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mmrec.errors import InputError

FUSIONS = ("sum", "gate", "attention", "concat", "late")


class ItemEncoder(nn.Module):
    """See the module. `modalities` maps a name to the size of its vectors; index 0 of the table is "no id"."""

    def __init__(self, n_items: int, modalities: dict[str, int], d: int, fusion: str = "gate") -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise InputError("no such fusion", where="recipe: fusion", value=fusion, valid=FUSIONS,
                             next="edit the recipe")  # fmt: skip
        self.fusion = fusion
        self.names = sorted(modalities)
        self.id = nn.Embedding(n_items + 1, d, padding_idx=0)
        nn.init.normal_(self.id.weight, std=0.02)
        with torch.no_grad():
            self.id.weight[0].zero_()
        self.project = nn.ModuleDict({m: nn.Linear(modalities[m], d) for m in self.names})
        parts = len(self.names) + 1
        self.gate = nn.ModuleDict({m: nn.Linear(d, 1) for m in ["id", *self.names] if fusion == "gate"})
        self.mix = nn.ModuleDict()
        if fusion == "attention":
            self.mix["qk"] = nn.Linear(d, 2 * d, bias=False)
        elif fusion == "concat":
            self.mix["join"] = nn.Linear(parts * d, d, bias=False)
            with torch.no_grad():  # begins as the sum
                self.mix["join"].weight.copy_(torch.eye(d).repeat(1, parts))
        elif fusion == "late":
            # part p owns every P-th dimension, so that any head of the tower sees all of them
            self.register_buffer("own_PD", (torch.arange(d) % parts == torch.arange(parts)[:, None]).float(),
                                 persistent=False)  # fmt: skip
        self.scale = nn.Parameter(torch.ones(d))
        for m in self.names:
            self.register_buffer(f"mean_{m}", torch.zeros(modalities[m]))

    def centre(self, mean: dict[str, np.ndarray]) -> None:
        """Take over the mean vector (M,) of each modality's content."""
        for m in self.names:
            getattr(self, f"mean_{m}").copy_(torch.from_numpy(mean[m]))

    def forward(
        self, index_N: torch.Tensor, content: dict[str, torch.Tensor], present: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Vectors of items.

        Args:
            index_N: int64, 0 for an unknown id. content: name -> (N, M) float32. present: name -> (N,) float32, 1 or 0.

        Returns: (N, D) float32.
        """
        parts = [self.id(index_N)]
        there = [(index_N > 0).to(parts[0].dtype)]
        for m in self.names:
            content_NM = content[m] - getattr(self, f"mean_{m}")
            content_NM = content_NM / content_NM.norm(dim=1, keepdim=True).clamp(min=1e-9)
            parts.append(self.project[m](content_NM))
            there.append(present[m])
        there_NP = torch.stack(there, 1)
        part_NPD = torch.stack(parts, 1) * there_NP.unsqueeze(2)
        return self._fused(part_NPD, there_NP) * self.scale

    def _fused(self, part_NPD: torch.Tensor, there_NP: torch.Tensor) -> torch.Tensor:
        """(N, D); a finite mask keeps the export free of NaN where nothing is there."""
        if self.fusion == "sum":
            return part_NPD.sum(1)
        if self.fusion == "concat":
            return self.mix["join"](part_NPD.flatten(1))
        if self.fusion == "late":
            return (part_NPD * self.own_PD).sum(1)
        if self.fusion == "attention":
            q_NPD, k_NPD = self.mix["qk"](part_NPD).chunk(2, -1)
            s_NPP = q_NPD @ k_NPD.transpose(1, 2) / q_NPD.shape[-1] ** 0.5 + (there_NP[:, None] - 1) * 1e4
            seen_NPD = (torch.softmax(s_NPP, -1) @ part_NPD) * there_NP.unsqueeze(2)
            return seen_NPD.sum(1) / there_NP.sum(1, keepdim=True).clamp(min=1)
        logit_NP = torch.cat([self.gate[m](torch.tanh(part_NPD[:, n])) for n, m in enumerate(["id", *self.names])], 1)
        gate_NP = torch.softmax(logit_NP + (there_NP - 1) * 1e4, 1) * there_NP
        return (gate_NP.unsqueeze(2) * part_NPD).sum(1)
