"""What a graph of a bundle may hold: each thing that it may not, planted in a sound one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmrec.bundle.graphs import OPSETS, check_graphs
from mmrec.errors import QualityError


def sound() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 2]) for n in "xy")
    w = numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])], "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def outside(model: onnx.ModelProto) -> None:
    w = model.graph.initializer[0]
    w.data_location = TensorProto.EXTERNAL
    entry = w.external_data.add()
    entry.key, entry.value = "location", "../../secret"


def inside_a_constant(model: onnx.ModelProto) -> None:
    w = numpy_helper.from_array(np.eye(2, dtype=np.float32), "c")
    w.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=w))


def own_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.somebody", 1))
    model.graph.node.append(helper.make_node("Spy", ["x"], ["s"], domain="com.somebody"))


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["i"], then_branch=body, else_branch=body))


def draws(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("RandomNormal", [], ["r"], shape=[1]))


def opset(version: int) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return plant


def function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("", "Mine", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(("plant", "said"), [
    (outside, "weights lie in another file"), (inside_a_constant, "weights lie in another file"), (own_domain, "operators of its own"),
    (function, "operators of its own"), (loop, "not allowed"), (draws, "not allowed"), (opset(OPSETS.stop), "opset"), (opset(7), "opset"),
])  # fmt: skip
def test_what_a_graph_must_not_hold_is_refused_by_file_and_name(plant: Callable[[onnx.ModelProto], None], said: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, model in (("a.onnx", sound()), ("deep/b.onnx", sound())):
        (tmp_path / name).write_bytes(model.SerializeToString())
    check_graphs(tmp_path)
    model = sound()
    plant(model)
    (tmp_path / "deep/b.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(QualityError, match=said) as caught:
        check_graphs(tmp_path)
    assert "b.onnx" in str(caught.value)


def test_bytes_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    for bytes_ in (b"\x80\x04cos\nsystem\n(S'true'\ntR.", bytes(range(256)) * 4):
        (tmp_path / "item_encoder.onnx").write_bytes(bytes_)
        with pytest.raises(QualityError, match="refused") as caught:
            check_graphs(tmp_path)
        assert "item_encoder.onnx" in str(caught.value)


def test_a_folder_without_graphs_has_nothing_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "stored.safetensors").write_bytes(b"x")
    check_graphs(tmp_path)
