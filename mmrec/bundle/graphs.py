"""What a bundle's ONNX graphs may hold: arithmetic on their own numbers, and nothing else.

In: a sealed bundle's folder. Out: nothing, or a QualityError with the file and what is wrong with it: no ONNX, weights
that lie in another file, an operator that is not listed, a domain or a function of somebody's own, an opset that was
not tried.
Trade-off: it is looked at when a version is registered; after that the digest stands for it, and nothing is read twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from mmrec.errors import QualityError

OPSETS = range(13, 22)
# what models of these layers become; no control flow, no sequences, no strings, nothing that draws or reads
_ALLOWED = frozenset((
    "Abs", "Add", "And", "ArgMax", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "Cos", "CumSum", "Div", "Dropout", "Einsum", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "GRU",
    "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "HardSigmoid", "Identity",
    "IsNaN", "LSTM", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max",
    "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "Range", "Reciprocal", "ReduceL1",
    "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid",
    "Sign", "Sin", "Size", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile",
    "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
))  # fmt: skip


def check_graphs(folder: Path) -> None:
    """Look at every `*.onnx` below a folder. Weights are not read from anywhere else.

    Raises: QualityError: see the module.
    """
    for path in sorted(folder.rglob("*.onnx")):
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf's own has no base that is public
            raise _refused(path, "it is no ONNX graph", str(error).split("\n")[0][:80], "an ONNX graph") from error
        opsets = {o.domain: o.version for o in model.opset_import}
        if model.functions or set(opsets) - {"", "ai.onnx"}:
            own = sorted({*opsets, *(f.name for f in model.functions)})
            raise _refused(path, "it brings operators of its own", own, "ONNX's own domain")
        version = next(iter(opsets.values()), 0)
        if version not in OPSETS:
            tried = f"{OPSETS.start} to {OPSETS.stop - 1}"
            raise _refused(path, "it is of an opset that was not tried", version, tried)
        for tensor in _tensors(model.graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
                raise _refused(path, "its weights lie in another file", tensor.name, "weights within the graph")
        found = {n.op_type for n in model.graph.node}
        if found - _ALLOWED:
            raise _refused(path, "it holds an operator that is not allowed", sorted(found - _ALLOWED), sorted(_ALLOWED))


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from (s.values for s in graph.sparse_initializer)
    for node in graph.node:
        yield from (a.t for a in node.attribute if a.HasField("t"))


def _refused(path: Path, what: str, value: object, valid: object) -> QualityError:
    return QualityError(f"a graph of the bundle is refused: {what}", where=path.name, value=value, valid=valid,
                        next="mmrec export --date D")  # fmt: skip
