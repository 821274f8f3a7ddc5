"""User vectors: a causal transformer over item vectors.

In: item vectors of a history, right-aligned, with event type, time gap and weight. Out: one vector a position: what
the user wants next, seen from there.
Pre-norm blocks with gated feed-forward (Shazeer, 2020) and a learned bias by distance instead of positions, so that
a window may begin anywhere in a history.
Trade-off: only the last `context` events are attended to; the linear head of linear.py sees the rest.

Shape legend: B rows, L events, D model size, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class UserEncoder(nn.Module):
    """See the module. Event codes are 0 for unknown, then 1 + position in `event_types`."""

    def __init__(self, d: int, n_events: int, *, layers: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.event = nn.Embedding(n_events + 1, d)
        self.gap = nn.Sequential(nn.Linear(3, d), nn.GELU(), nn.Linear(d, d))
        self.blocks = nn.ModuleList([_Block(d, heads, context, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(d)
        self.drop = nn.Dropout(dropout)
        nn.init.normal_(self.event.weight, std=0.02)
        # items speak first: what gaps and weights add is learned from nothing
        nn.init.zeros_(self.gap[-1].weight)
        nn.init.zeros_(self.gap[-1].bias)

    def forward(
        self,
        item_BLD: torch.Tensor,
        event_BL: torch.Tensor,
        gap_BL: torch.Tensor,
        weight_BL: torch.Tensor,
        mask_BL: torch.Tensor,
    ) -> torch.Tensor:
        """(B, L, D) float32; position l has seen events 0..l.

        Args:
            gap_BL: log1p of seconds to the next event, of the last one to the moment of asking.
            weight_BL: the interaction's weight. mask_BL: 1 for an event, 0 for padding.
        """
        scaled = gap_BL / 10.0  # log1p(seconds): 11 is most of a day, 17 a year
        side = self.gap(torch.stack([scaled, scaled * scaled, weight_BL / 5.0], -1))
        x_BLD = self.drop(
            (item_BLD * math.sqrt(item_BLD.shape[-1]) + self.event(event_BL) + side) * mask_BL.unsqueeze(-1)
        )
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_BL)
        return self.norm(x_BLD)


class _Block(nn.Module):
    def __init__(self, d: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.merge = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(2 * d, d)
        self.distance = nn.Parameter(torch.zeros(heads, context))
        self.drop = nn.Dropout(dropout)
        back = torch.arange(context).view(-1, 1) - torch.arange(context).view(1, -1)
        self.register_buffer("back", back.clamp(min=0), persistent=False)
        self.register_buffer("future", (back < 0).float() * -1e4, persistent=False)

    def forward(self, x_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        b, n, d = x_BLD.shape
        q, k, v = (t.view(b, n, self.heads, d // self.heads).transpose(1, 2)
                   for t in self.qkv(self.norm1(x_BLD)).split(d, 2))  # fmt: skip
        bias_HLL = self.distance[:, self.back[:n, :n]] + self.future[:n, :n]
        s = q @ k.transpose(2, 3) / math.sqrt(d // self.heads) + bias_HLL + (mask_BL - 1)[:, None, None, :] * 1e4
        a = self.drop(torch.softmax(s, -1)) @ v
        x_BLD = x_BLD + self.drop(self.merge(a.transpose(1, 2).reshape(b, n, d)))
        gate, value = self.up(self.norm2(x_BLD)).chunk(2, -1)
        return x_BLD + self.drop(self.down(F.silu(gate) * value))
