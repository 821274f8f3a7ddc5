"""int8 by rows: held to the same sums written out in numpy, and to what it promises about companions and processors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmrec.content.quantize import quantize


def graph(path: Path, weights: list[np.ndarray], opset: int = 17, gelu: bool = False, constant: bool = False) -> Path:
    """x -> x @ W1 [-> a function that is never far below zero] -> @ W2 ..., weights as initializers or as constants."""
    nodes, held, name = [], [], "x"
    for n, w in enumerate(weights):
        tensor = numpy_helper.from_array(w, f"w{n}")
        if constant:
            nodes.append(helper.make_node("Constant", [], [f"w{n}"], value=tensor))
        else:
            held.append(tensor)
        nodes.append(helper.make_node("MatMul", [name, f"w{n}"], [f"m{n}"], name=f"product{n}"))
        name = f"m{n}"
        if gelu and n < len(weights) - 1:
            nodes.append(helper.make_node("Softplus", [name], [f"g{n}"]))
            name = f"g{n}"
    shape = ["B", "L", weights[0].shape[0]]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                             [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)], held)  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def naive(x_MK: np.ndarray, weight_KN: np.ndarray, seen_MK: np.ndarray, centred: bool) -> np.ndarray:
    """Rows of eight bits times columns of seven, a row and a sum at a time."""
    loud, beside = np.abs(seen_MK).max(0), np.abs(weight_KN).max(1)
    share = np.sqrt(np.maximum(loud, 1e-5)) / np.sqrt(np.maximum(beside, 1e-5))
    share = (share / np.exp(np.log(share).mean())).astype(np.float32)
    w = weight_KN * share[:, None]
    step = np.maximum(np.abs(w).max(0), 1e-12) / 63
    whole = np.rint(w / step).astype(int)
    out = np.zeros((len(x_MK), w.shape[1]))
    for m, row in enumerate(x_MK * (1 / share)):
        middle = (row.max() + row.min()) / 2 if centred else 0.0
        scale = max(np.abs(row - middle).max(), 1e-12) / 127
        eight = np.rint((row - middle) / scale).astype(int)
        for n in range(w.shape[1]):
            out[m, n] = scale * step[n] * int(eight @ whole[:, n]) + middle * step[n] * whole[:, n].sum()
    return out


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("constant", [False, True])
def test_a_product_is_the_one_of_its_rows_in_eight_bits_and_its_columns_in_seven(tmp_path: Path, opset: int, constant: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(24, 7)).astype(np.float32)
    x = rng.normal(size=(2, 5, 24)).astype(np.float32) * np.linspace(0.1, 4, 24, dtype=np.float32)
    plain = graph(tmp_path / "plain.onnx", [weight], opset, constant=constant)
    assert quantize(plain, tmp_path / "small.onnx", [{"x": x[:1]}, {"x": x[1:]}]) == 1
    got = run(tmp_path / "small.onnx", x).reshape(10, 7)
    wanted = naive(x.reshape(10, 24), weight, x.reshape(10, 24), centred=False)
    # the same integers; fp32 scales on one side. A value on the edge of two integers would differ by 1e-2
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert 1e-4 < np.abs(got - x.reshape(10, 24) @ weight).max() < 0.5  # it is rounded, but not lost
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.onnx", "small.onnx"]


def test_lopsided_activations_are_centred(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=s).astype(np.float32) for s in ((8, 32), (32, 5)))
    x = rng.normal(size=(1, 40, 8)).astype(np.float32)
    plain = graph(tmp_path / "plain.onnx", [first, second], gelu=True)
    assert quantize(plain, tmp_path / "small.onnx", [{"x": x}]) == 2
    hidden = np.log1p(np.exp(naive(x[0], first, x[0], centred=False)))
    seen = np.log1p(np.exp(x[0] @ first))  # measured on the plain graph
    got = run(tmp_path / "small.onnx", x)[0]
    np.testing.assert_allclose(got, naive(hidden, second, seen, centred=True), rtol=1e-3, atol=5e-2)  # edges: see above
    true = seen @ second
    assert np.abs(got - true).max() < np.abs(naive(hidden, second, seen, centred=False) - true).max()


def test_a_row_has_no_companions_and_a_loud_one_costs_only_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=(16, 16)).astype(np.float32) for _ in range(3)]
    x = rng.normal(size=(6, 4, 16)).astype(np.float32)
    plain = graph(tmp_path / "plain.onnx", weights)
    quantize(plain, tmp_path / "small.onnx", [{"x": x}])
    alone = np.concatenate([run(tmp_path / "small.onnx", row[None]) for row in x])
    loud = x.copy()
    loud[2] *= 1e4
    got = run(tmp_path / "small.onnx", loud)
    others = [0, 1, 3, 4, 5]
    assert got[others].tobytes() == alone[others].tobytes()
    assert np.isfinite(got).all()


def test_sums_fit_processors_without_wider_ones(tmp_path: Path) -> None:
    """Two products of an unsigned and a signed byte must fit 16 bits: those processors cut off what doesn't."""
    weight = np.full((4, 3), 9.0, np.float32)
    quantize(graph(tmp_path / "plain.onnx", [weight]), tmp_path / "small.onnx", [{"x": np.ones((1, 1, 4), np.float32)}])
    held = [numpy_helper.to_array(i) for i in onnx.load(tmp_path / "small.onnx").graph.initializer]
    most = max(int(np.abs(h.astype(int)).max()) for h in held if h.dtype == np.int8)
    assert 2 * 255 * most < 1 << 15
    assert most == 63


def test_rows_of_zeros_and_channels_that_were_never_heard_are_finite(tmp_path: Path) -> None:
    weight = np.eye(4, dtype=np.float32)
    weight[3] = 0
    seen = np.array([[[1, 2, 0, 0]]], np.float32)
    quantize(graph(tmp_path / "plain.onnx", [weight]), tmp_path / "small.onnx", [{"x": seen}])
    got = run(tmp_path / "small.onnx", np.array([[[0, 0, 0, 0], [0, 0, 5, 7]]], np.float32))
    assert not got[0, 0].any()
    np.testing.assert_allclose(got[0, 1], [0, 0, 5, 0], atol=0.1)


def test_a_graph_without_constant_weights_is_left_alone(tmp_path: Path) -> None:
    made = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "g",
                             [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4, 4])],
                             [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "plain.onnx")
    assert quantize(tmp_path / "plain.onnx", tmp_path / "small.onnx", []) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["plain.onnx"]
