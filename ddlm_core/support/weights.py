"""Smaller files of ONNX networks: weights in 16 or 8 bits, and the arithmetic in float32 as before."""

from typing import Any

import numpy as np

from ddlm_core.support.errors import UserError

WEIGHTS = ("float32", "float16", "int8")
LEAST = 256  # smaller tables are not worth the two nodes


def tidy(network: Any) -> None:
    """Remove what the exporter notes about where each node comes from: it is a tenth of the file."""
    graph = network.graph
    for part in (network, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        for field in ("metadata_props", "doc_string"):
            part.ClearField(field)
    graph.ClearField("value_info")


def pack(network: Any, weights: str) -> None:
    """Store the float32 tables of an ONNX network as ``weights`` says, one of ``WEIGHTS``.

    Nodes at the start of the graph make float32 of them again, once, when a runtime folds constants.
    int8 stands for 254 equal steps between the ends of each row or column, and a float32 scale for each.
    """
    from onnx import TensorProto, helper, numpy_helper

    if weights not in WEIGHTS:
        raise UserError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    graph, made = network.graph, []
    for table in list(graph.initializer):
        values = numpy_helper.to_array(table)
        if weights == "float32" or table.data_type != TensorProto.FLOAT or values.size < LEAST:
            continue
        name, parts = table.name, {f"{table.name}.half": values.astype(np.float16)}
        if weights == "int8" and values.ndim == 2:
            steps, scale = to_int8(values)
            parts = {f"{name}.int8": steps, f"{name}.scale": scale}
        graph.initializer.remove(table)
        graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in parts.items())
        stored, *scales = parts
        cast = f"{name}.float" if scales else name
        made.append(helper.make_node("Cast", [stored], [cast], to=TensorProto.FLOAT))
        if scales:
            made.append(helper.make_node("Mul", [cast, *scales], [name]))
    nodes = [*made, *graph.node]  # what they make is there before it is used
    graph.ClearField("node")
    graph.node.extend(nodes)


def to_int8(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table (m, n) as whole numbers from -127 to 127 and their scale, (m, 1) or (1, n).

    Of the two the one with the smaller error is taken: which axis of a matrix is that of its outputs
    depends on who uses it.
    """
    found = []
    for axis in (0, 1):
        scale = np.abs(values).max(axis, keepdims=True).clip(1e-30) / 127
        steps = np.round(values / scale).astype(np.int8)
        found.append((float(np.square(steps * scale - values).sum()), axis, steps, scale))
    _, _, steps, scale = min(found, key=lambda entry: entry[:2])
    return steps, scale.astype(np.float32)
