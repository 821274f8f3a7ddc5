"""int8 for a graph's products with constant weights, without a row knowing of its companions.

In: an fp32 graph, batches to look at. Out: the same graph where every such MatMul takes 8-bit activations, one scale a
row, times 7-bit weights, one scale a column; sums are exact integers. Where activations are lopsided, as behind a GELU,
a row is also centred, by a product of its middle with the weights' sums.
ONNX Runtime's own dynamic quantization has one scale for all activations of a batch: a row's vector then depends on the
others, and one loud token costs everybody their bits (docs/decisions/0013-int8-by-rows.md). Before rounding, channels
that are loud hand their size over to the weights (Xiao et al., SmoothQuant, ICML 2023, eq. 4, alpha .5), as measured on
the batches; the measure moves precision about, it can't overflow.
Trade-off: 7 bits of weight, not 8: processors without VNNI saturate their 16-bit sums with 8, and vectors would depend
on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

_WEIGHT, _ACTIVATION = 63, 127  # largest magnitudes
_ALPHA = 0.5
_LOPSIDED = 0.75  # half a range over its largest magnitude: below, centring gains more than it costs
_WORLD = "com.microsoft"


def quantize(plain: Path, target: Path, batches: Iterable[dict[str, np.ndarray]]) -> int:
    """Write `target`, beside `plain`.

    Args:
        batches: feeds of the graph, to measure its activations on; small, all activations of one are held at once.

    Returns: how many MatMuls are int8; 0: none has constant weights, and nothing is written.
    """
    model = onnx.load(plain)
    graph = model.graph
    _constants_to_initializers(graph)
    weight = {i.name: numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) == 2}
    found = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weight]
    if not found:
        return 0
    low, high = _ranges(plain, sorted({n.input[0] for n in found}), batches)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    surgeon = _Surgeon(graph, opset)
    share: dict[str, np.ndarray] = {}  # activation -> (K,) what is divided out of it
    lopsided: dict[str, bool] = {}
    for name in low:
        loud = np.maximum(high[name], -low[name])
        beside = np.max([np.abs(weight[n.input[1]]).max(1) for n in found if n.input[0] == name], 0)
        s = np.maximum(loud, 1e-5) ** _ALPHA / np.maximum(beside, 1e-5) ** (1 - _ALPHA)
        share[name] = (s / np.exp(np.log(s).mean())).astype(np.float32)
        half = ((high[name] / share[name]).max() - (low[name] / share[name]).min()) / 2
        lopsided[name] = bool(half < _LOPSIDED * (loud / share[name]).max())
    nodes, ready = list(graph.node), dict[str, tuple[str, str, str | None]]()
    del graph.node[:]
    for node in nodes:
        if node.op_type != "MatMul" or node.input[1] not in weight:
            graph.node.append(node)
            continue
        name = node.input[0]
        if name not in ready:
            ready[name] = surgeon.rows(name, share[name], lopsided[name])
        surgeon.product(node, *ready[name], weight[node.input[1]] * share[name][:, None])
    used = {i for n in graph.node for i in n.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if not any(o.domain == _WORLD for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_WORLD, 1))
    large = model.ByteSize() > 1_900_000_000  # a protobuf file ends at 2 GB
    onnx.save(model, target, save_as_external_data=large, location=f"{target.name}.data")
    return len(found)


class _Surgeon:
    """Adds nodes to a graph; all of its names begin with "int8/"."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self.graph, self.opset, self.count = graph, opset, 0
        self.one = self.constant("one", np.float32(1))
        self.zero = self.constant("zero", np.uint8(128))
        self.step = self.constant("step", np.float32(1 / _ACTIVATION))
        self.least = self.constant("least", np.float32(1e-12))  # a row of zeros still needs a scale
        self.half = self.constant("half", np.float32(0.5))
        self.last = self.constant("last", np.array([-1], np.int64))

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"int8/{name}"))
        return f"int8/{name}"

    def add(self, kind: str, inputs: list[str], *, out: str = "", domain: str = "", **attributes: object) -> str:
        self.count += 1
        name = f"int8/{self.count}/{kind}"
        made = helper.make_node(kind, inputs, [out or f"{name}/out"], name=name, domain=domain, **attributes)
        self.graph.node.append(made)
        return made.output[0]

    def rows(self, name: str, share_K: np.ndarray, lopsided: bool) -> tuple[str, str, str | None]:
        """8-bit rows of an activation, each row's scale, and its middle where it is centred."""
        smooth = self.add("Mul", [name, self.constant(f"{name}/share", 1 / share_K)])
        axes = {"axes": [-1]} if self.opset < 18 else {}
        more = [] if self.opset < 18 else [self.last]
        high = self.add("ReduceMax", [smooth, *more], keepdims=1, **axes)
        low = self.add("ReduceMin", [smooth, *more], keepdims=1, **axes)
        middle = None
        if lopsided:
            middle = self.add("Mul", [self.add("Add", [high, low]), self.half])
            size = self.add("Max", [self.add("Mul", [self.add("Sub", [high, low]), self.half]), self.least])
            smooth = self.add("Sub", [smooth, middle])
        else:
            size = self.add("Max", [high, self.add("Neg", [low]), self.least])
        scale = self.add("Mul", [size, self.step])
        return self.add("QuantizeLinear", [self.add("Div", [smooth, scale]), self.one, self.zero]), scale, middle

    def product(
        self, node: onnx.NodeProto, rows: str, scale: str, middle: str | None, weight_KN: np.ndarray
    ) -> None:
        """`node`'s output from 8-bit rows."""
        scale_N = np.maximum(np.abs(weight_KN).max(0), 1e-12) / _WEIGHT
        whole_KN = np.rint(weight_KN / scale_N).astype(np.int8)
        n = self.count
        inputs = [rows, self.constant(f"{n}/weight", whole_KN), self.one,
                  self.constant(f"{n}/scale", scale_N.astype(np.float32)), self.zero,
                  self.constant(f"{n}/zero", np.zeros(len(scale_N), np.int8))]  # fmt: skip
        product = self.add("MatMulIntegerToFloat", inputs, domain=_WORLD)
        if middle is None:
            self.add("Mul", [product, scale], out=node.output[0])
            return
        sums = self.constant(f"{n}/sums", (whole_KN.sum(0, dtype=np.int64) * scale_N).astype(np.float32))
        self.add("Add", [self.add("Mul", [product, scale]), self.add("Mul", [middle, sums])], out=node.output[0])


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    for node in list(graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            graph.node.remove(node)


def _ranges(
    plain: Path, names: list[str], batches: Iterable[dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(K,) least and largest value of each channel of each activation over all batches."""
    model = onnx.load(plain, load_external_data=False)
    model.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    watched = plain.with_name("watched.onnx")  # beside its external data
    onnx.save(model, watched)
    low, high = {n: np.array(np.inf) for n in names}, {n: np.array(-np.inf) for n in names}
    try:
        opened = ort.InferenceSession(str(watched), providers=["CPUExecutionProvider"])
        for feeds in batches:
            for name, value in zip(names, opened.run(names, feeds), strict=True):
                rows = value.reshape(-1, value.shape[-1])
                low[name] = np.minimum(low[name], rows.min(0))
                high[name] = np.maximum(high[name], rows.max(0))
    finally:
        watched.unlink()
    return low, high
