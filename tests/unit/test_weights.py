"""Weights of ONNX networks in fewer bits: what is stored, and that the arithmetic stays float32."""

import numpy as np
import pytest

from ddlm_core.support.errors import UserError
from ddlm_core.support.weights import LEAST, pack, tidy, to_int8

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def matrix() -> np.ndarray:
    """Columns of very different sizes."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(40, 20)) * np.logspace(-3, 2, 20)).astype(np.float32)


def network(matrix: np.ndarray):
    """x (1, 40) to x times the matrix, plus a vector, plus a small one that is broadcast."""
    constants = {
        "m": matrix,
        "v": np.arange(20, dtype=np.float32),
        "w": np.ones((1, 20), np.float32),
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "m"], ["a"], doc_string="from a notebook"),
        onnx.helper.make_node("Add", ["a", "v"], ["b"]),
        onnx.helper.make_node("Add", ["b", "w"], ["y"]),
    ]
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(n, kind, (1, k)) for n, k in (("x", 40), ("y", 20))]
    tables = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tables)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )


def answer(model, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("weights", "room"), [("float32", 0), ("float16", 2**-11), ("int8", 0.51 / 127)]
)
def test_each_weight_is_off_by_half_a_step_at_most(matrix, weights, room):
    model = network(matrix)
    pack(model, weights)
    for i in range(40):
        x = np.zeros((1, 40), np.float32)
        x[0, i] = 1
        off = np.abs(answer(model, x)[0] - matrix[i] - np.arange(20) - 1)
        assert (off <= room * np.abs(matrix).max(0) + 1e-5).all()


def test_what_is_small_stays_and_what_is_large_shrinks(matrix):
    assert matrix.size >= LEAST > 20
    for weights, stored in (("float16", {"m.half"}), ("int8", {"m.int8", "m.scale"})):
        model = network(matrix)
        pack(model, weights)
        assert {table.name for table in model.graph.initializer} == {"v", "w"} | stored
    steps = next(table for table in model.graph.initializer if table.name == "m.int8")
    assert len(steps.raw_data) == matrix.size


def test_the_scale_is_of_the_axis_that_fits_better(matrix):
    for table, shape in ((matrix, (1, 20)), (matrix.T, (20, 1))):
        steps, scale = to_int8(table)
        assert scale.shape == shape and steps.dtype == np.int8 and np.abs(steps).max() == 127


def test_a_row_of_zeros_stays_zero():
    steps, scale = to_int8(np.zeros((3, 4), np.float32))
    assert not (steps * scale).any() and np.isfinite(scale).all()


def test_other_weights_are_refused(matrix):
    with pytest.raises(UserError, match="float32, float16, int8, got 'int4'"):
        pack(network(matrix), "int4")


def test_tidy_keeps_the_network_and_drops_the_notes(matrix):
    model, x = network(matrix), np.ones((1, 40), np.float32)
    before = answer(model, x)
    tidy(model)
    assert (answer(model, x) == before).all() and b"notebook" not in model.SerializeToString()
