"""Where a fit runs and in what precision.

In: a name of the config, a recipe's precision. Out: a torch device that was found to work; a context for the forward
pass of the towers.
Losses, gradients, weights and the optimiser stay float32; bf16 is for the matrix products of the towers (Micikevicius
et al., ICLR 2018, section 3; bfloat16 has float32's range, so no loss is scaled).
Trade-off: a device that was asked for and isn't there is an error, not a slower fit somewhere else.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from mmrec.errors import InputError

_DEVICES, PRECISIONS = ("cpu", "cuda"), ("auto", "fp32", "bf16")


def device_named(name: str, place: int = 0) -> torch.device:
    """The device of config.device; `place`: which GPU, by number.

    Raises: InputError: no such device, or torch can't use that many.
    """
    if name not in _DEVICES:
        raise InputError("no such device", where="config: device", value=name, valid=_DEVICES, next="edit mmrec.toml")
    if name == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place >= there:
        raise InputError(
            "the configured device can't be used for training",
            where="config: device",
            value=f"cuda:{place}",
            valid=f"torch sees {there} GPUs here",
            next='set device = "cpu" in mmrec.toml' if not there else f"set train.processes = {there} in mmrec.toml",
        )
    return torch.device("cuda", place)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What the forward pass of the towers runs in. Raises: InputError: no such precision."""
    if precision not in PRECISIONS:
        raise InputError("no such precision", where="recipe: precision", value=precision, valid=PRECISIONS,
                         next="edit the recipe")  # fmt: skip
    auto = precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if auto or precision == "bf16" else nullcontext()
