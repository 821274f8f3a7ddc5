"""Processes that fit one model together: sums over all of them, and the word of the first.

In: what torchrun, or parallel.py in its place, puts into the environment: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT. Out: a `World`; a process alone is a world of one, for which all of this is nothing.
Gradients are summed, not averaged: each process's loss is already divided by the targets of all.
Trade-off: sums start when the backward pass is over, not during it; what that costs is told by the step, and the code
is the same for every tower.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from mmrec.errors import InputError

_SMALL = 1 << 16  # numbers; below, tensors travel together
_PATIENCE = timedelta(hours=2)  # the others wait while the first validates


@dataclass(frozen=True)
class World:
    """`rank` of `size`; rank 0 validates, writes and tells."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls, device: torch.device) -> World:
        """The world that the environment names, once all have come."""
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Nobody is waited for any more."""
        dist.destroy_process_group()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Each tensor becomes its sum over all processes, the same bits in each; in place."""
        if self.size == 1:
            return
        large = [t for t in tensors if t.numel() >= _SMALL]
        small = [t for t in tensors if t.numel() < _SMALL]
        together = torch.cat([t.ravel() for t in small]) if small else None
        for work in [dist.all_reduce(t, async_op=True) for t in (*large, *([] if together is None else [together]))]:
            work.wait()
        if together is not None:
            for t, summed in zip(small, together.split([t.numel() for t in small]), strict=True):
                t.copy_(summed.view_as(t))

    def told(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """Rank 0's numbers, in all."""
        if self.size == 1:
            return list(numbers)
        said = torch.tensor(list(numbers), dtype=torch.float64, device=device)
        dist.broadcast(said, 0)
        return said.tolist()


def alone(command: str) -> None:
    """Raises: InputError: torchrun started this process, which runs `command`, beside others."""
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(
            "a station is not started by torchrun: one process reads the lake and writes to the registry",
            where="environment: WORLD_SIZE",
            value=size,
            valid="1",
            next=f"set train.processes = {size} in mmrec.toml, then {command}",
        )
