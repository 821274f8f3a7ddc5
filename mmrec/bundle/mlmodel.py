"""What MLflow's users look for in a model: an MLmodel file with a signature, and an input example.

In: a folder with `user_encoder.onnx`, as exported. Out: `MLmodel` and `input_example.json` beside it, so that
`mlflow.onnx.load_model` and `mlflow.pyfunc.load_model` open a version by its name: histories in, user vectors out.
Trade-off: what ranks items, item_encoder.onnx and their stored contents, is not behind that name; a night is.
"""

from __future__ import annotations

import json
import platform
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mmrec.ort import session

GRAPH = "user_encoder.onnx"
_EXAMPLE = "input_example.json"
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
_EVENTS = 3  # of the example's history


def describe(folder: Path, as_of: datetime) -> None:
    """Write both files; the same bytes for the same graph and moment."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    graph = session(folder / GRAPH, "cpu", 1)

    def specs(nodes: Any) -> Schema:
        free = [tuple(size if isinstance(size, int) else -1 for size in n.shape) for n in nodes]
        return Schema([TensorSpec(np.dtype(_TYPES[n.type]), shape, n.name)
                       for n, shape in zip(nodes, free, strict=True)])  # fmt: skip

    example: dict[str, Any] = {}
    for node in graph.get_inputs():
        shape = [1, _EVENTS, *node.shape[2:]]
        filled = np.zeros(shape) if node.name == "item_in" else np.ones(shape)
        example[node.name] = filled.astype(_TYPES[node.type]).tolist()
    (folder / _EXAMPLE).write_text(json.dumps(example))
    about = {"artifact_path": _EXAMPLE, "type": "ndarray", "format": "tf-serving"}
    model = Model(utc_time_created=as_of.isoformat(sep=" "), model_uuid=None, mlflow_version=mlflow.__version__,
                  signature=ModelSignature(specs(graph.get_inputs()), specs(graph.get_outputs())),
                  saved_input_example_info=about)  # fmt: skip
    providers = ["CPUExecutionProvider"]
    model.add_flavor("onnx", onnx_version=onnx.__version__, data=GRAPH, providers=providers, onnx_session_options=None)
    model.add_flavor("python_function", loader_module="mlflow.onnx", data=GRAPH, env={},
                     python_version=platform.python_version())  # fmt: skip
    model.save(str(folder / "MLmodel"))
