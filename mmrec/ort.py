"""ONNX Runtime sessions on the device that config names, and on no other.

In: a graph, as a file or its bytes, a device, a number of threads. Out: an InferenceSession whose active provider was
checked: a CUDA provider that can't load falls back to the CPU without a word otherwise.
Trade-off: no provider options are exposed; results must not depend on them. Of a CUDA provider TF32, which it takes by
itself, is off: it would round factors to ten bits.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import onnxruntime as ort

from mmrec.errors import InputError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


_OPTIONS = {"cuda": {"use_tf32": "0"}}


def session(graph: Path | bytes, device: str = "cpu", threads: int = 2) -> ort.InferenceSession:
    """Open a graph.

    Raises: InputError: an unknown device, or a provider that is not the one configured.
    """
    if device not in PROVIDERS:
        raise InputError(
            "no such device", where="config: device", value=device, valid=sorted(PROVIDERS), next="edit mmrec.toml"
        )
    if device == "cuda":
        with redirect_stdout(sys.stderr):  # it prints what is missing, and a program reads ours
            ort.preload_dlls()  # CUDA libraries that come as packages
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    opened = ort.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), options,
        providers=[(PROVIDERS[device], _OPTIONS.get(device, {}))])  # fmt: skip
    active = opened.get_providers()[0]
    if active != PROVIDERS[device]:
        raise InputError(
            "the configured device can't be used: its provider did not load",
            where="config: device",
            value=f"{device}: {active} is active",
            valid="a machine with CUDA 13 and cuDNN 9, or cpu",
            next='set device = "cpu" in mmrec.toml',
        )
    return opened
