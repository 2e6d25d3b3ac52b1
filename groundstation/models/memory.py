"""How much memory a step of training takes, by the sizes of the tensors that it holds at once."""

from __future__ import annotations

import math

import onnx
from onnx import helper


def image_bytes(model: onnx.ModelProto) -> int:
    """Returns what each further image of a batch adds to the most that a graph's tensors take at once, each
    held from the node that makes it to the last that takes it."""
    return _peak(model, 3) - _peak(model, 2)


def _peak(model: onnx.ModelProto, batch: int) -> int:
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in (*sized.graph.input, *sized.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_value = batch
    chosen = {name for node in sized.graph.node if node.op_type == "Where" for name in node.output}
    same = dict[str, str]()  # what only waits: see `Writer.after`
    for node in sized.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Reshape" and node.input[1] in chosen:
            same[node.output[0]] = node.input[0]
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    sizes = {value.name: _bytes(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    last = {name: at for at, node in enumerate(graph.node) for name in node.input}
    kept = {value.name for value in (*graph.input, *graph.output)}
    held = peak = sum(sizes[value.name] for value in graph.input)
    for at, node in enumerate(graph.node):
        held += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, held)
        held -= sum(sizes.get(name, 0) for name in {*node.input} - kept if last[name] == at)
    return peak


def _bytes(value: onnx.ValueInfoProto) -> int:
    tensor = value.type.tensor_type
    width: int = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return width * math.prod(int(side.dim_value) for side in tensor.shape.dim)
