"""Writes a trace as an ONNX graph, one core ATen operator after the other.

`LOWERINGS` has a short function for each operator; an operator without one is refused by its name. All sizes
but the batch's are numbers. The graphs take standard operators of opset 17 alone, so that any onnxruntime can
run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import helper

from groundstation.models.lowering import convolutions, draws, pointwise, reductions, shapes, windows
from groundstation.models.lowering.writer import ELEMENT_TYPES, SEED, Call, Lowering, Writer, is_known
from groundstation.models.tracing import TensorType, Trace, UnsupportedError

LOWERINGS: dict[str, Lowering] = {
    **{name: pointwise.unary(operation) for name, operation in pointwise.UNARY.items()},
    **{name: pointwise.arithmetic(operation) for name, operation in pointwise.ARITHMETIC.items()},
    **{name: pointwise.comparison(operation) for name, operation in pointwise.COMPARISONS.items()},
    **{name: pointwise.logic(operation) for name, operation in pointwise.LOGIC.items()},
    **dict.fromkeys(("clone", "detach", "alias", "lift_fresh", "lift_fresh_copy"), pointwise.same),
    "logical_not": pointwise.inverted,
    "bitwise_not": pointwise.inverted,
    "ne": pointwise.not_equal,
    "rsqrt": pointwise.reciprocal_root,
    "log1p": pointwise.log1p,
    "expm1": pointwise.expm1,
    "pow": pointwise.power,
    "remainder": pointwise.remainder,
    "where": pointwise.where,
    "clamp": pointwise.clamp,
    "clamp_min": pointwise.clamp,
    "clamp_max": pointwise.clamp_above,
    "hardtanh": pointwise.clamp,
    "leaky_relu": pointwise.leaky_relu,
    "threshold_backward": pointwise.threshold_backward,
    "gelu": pointwise.gelu,
    "gelu_backward": pointwise.gelu_backward,
    "_to_copy": pointwise.converted,
    **dict.fromkeys(("full", "full_like", "new_full", "scalar_tensor"), shapes.full),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty"), shapes.zeros),
    **dict.fromkeys(("empty_strided", "new_empty_strided", "empty_permuted"), shapes.zeros),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), shapes.ones),
    "arange": shapes.arange,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"), shapes.view),
    "permute": shapes.permute,
    "transpose": shapes.transpose,
    "t": shapes.transpose,
    "expand": shapes.expand,
    "copy": shapes.copy,
    "cat": shapes.cat,
    "repeat": shapes.repeat,
    "flip": shapes.flip,
    "roll": shapes.roll,
    "unfold": windows.unfold,
    "unfold_backward": windows.unfold_backward,
    "topk": windows.most,
    "sort": windows.sort,
    "max_unpool2d": windows.max_unpool,
    "constant_pad_nd": shapes.pad,
    "slice": shapes.cut,
    "select": shapes.select,
    "split_with_sizes": shapes.split,
    "split": shapes.split,
    "slice_backward": shapes.slice_backward,
    "select_backward": shapes.select_backward,
    "slice_scatter": shapes.slice_scatter,
    "select_scatter": shapes.select_scatter,
    "sum": reductions.total,
    "mean": reductions.mean,
    "var": reductions.variance,
    "var_mean": reductions.variance_and_mean,
    "amax": reductions.extreme("ReduceMax"),
    "amin": reductions.extreme("ReduceMin"),
    "max.dim": reductions.extreme_and_place("Max"),
    "min.dim": reductions.extreme_and_place("Min"),
    "argmax": reductions.place("ArgMax"),
    "argmin": reductions.place("ArgMin"),
    "any": reductions.is_any,
    "spacedml.normalize": reductions.normalize,
    "spacedml.normalize_backward": reductions.normalize_backward,
    "spacedml.batch_norm": reductions.batch_norm,
    "spacedml.batch_norm_backward": reductions.batch_norm_backward,
    "_native_batch_norm_legit_no_training": reductions.batch_norm_of_statistics,
    "cumsum": reductions.running_sum,
    "_softmax": reductions.along("Softmax"),
    "_safe_softmax": reductions.safe_softmax,
    "_log_softmax": reductions.along("LogSoftmax"),
    "mm": reductions.product_of_matrices,
    "addmm": reductions.product_and_bias,
    "bmm": reductions.products_of_matrices,
    "gather": reductions.gather,
    "scatter": reductions.scatter,
    "scatter_add": reductions.scatter_add,
    "embedding": reductions.embedding,
    "index_select": reductions.index_select,
    "index": reductions.index,
    "_unsafe_index": reductions.index,
    "index_put": reductions.index_put,
    "_unsafe_index_put": reductions.index_put,
    "convolution": convolutions.convolution,
    "convolution_backward": convolutions.convolution_backward,
    "bernoulli": draws.bernoulli,
    "native_dropout": draws.native_dropout,
    **dict.fromkeys(("rand", "rand_like"), draws.uniform),
    **dict.fromkeys(("randn", "randn_like"), draws.normal),
    "max_pool2d_with_indices": convolutions.max_pool,
    "max_pool2d_with_indices_backward": convolutions.max_pool_backward,
}
"""The ONNX form of each ATen operator that is taken, by `name.overload` or by name. Torch's own
decompositions bring others down to these."""


def lower(
    trace: Trace, inputs: Mapping[str, str], outputs: Mapping[str, str], batch: str,
    constants: Mapping[str, Any] | None = None,
) -> onnx.GraphProto:  # fmt: skip
    """Returns the ONNX graph of a trace.

    `outputs`: which results are wanted, in their order, each with its name in the graph; `inputs`: which
    inputs have another name in the graph; `batch`: the input (by that name) whose first axis is N;
    `constants`: inputs that the graph does not take, but holds. An input that no output depends on is left
    out, unless it has a next value. Raises UnsupportedError."""
    writer = Writer(batch)
    names, taken, given = list[Any](), dict[str, TensorType](), iter(trace.inputs)
    call = None
    for operator in trace.operators:
        call = Call(writer, trace, operator, names)
        if operator.name == "input":
            named = next(given)
            if constants and named in constants:
                names.append(writer.constant(constants[named], call.gives.dtype))
                continue
            names.append(inputs.get(named, named))
            taken[names[-1]] = call.gives
        elif operator.name == "constant":
            names.append(writer.constant(operator.arguments[0], call.gives.dtype))
        else:
            names.append(_lowered(call))
    assert call is not None, "a network computes something"
    if writer.takes_seed:
        taken[SEED] = TensorType((), "int64")
    wanted = [trace.returned[name] for name in outputs]
    results = [call.name(result) for result in wanted]
    values = [
        _value(name, call.tensor(result)) for name, result in zip(outputs.values(), wanted, strict=True)
    ]
    nodes = _named(_needed(writer.nodes, results), results, list(outputs.values()))
    used = {name for node in nodes for name in node.input}
    used |= {name.removeprefix("next.") for name in outputs.values()}
    held = [tensor for name, tensor in writer.constants.items() if name in used]
    return helper.make_graph(
        nodes, "graph", [_value(name, tensor) for name, tensor in taken.items() if name in used], values,
        held,
    )  # fmt: skip


def _lowered(call: Call) -> Any:
    name = call.operator.name
    found = LOWERINGS.get(name) or LOWERINGS.get(name.rpartition(".")[0])
    if found is None:
        raise UnsupportedError(f"the operator {name} has no ONNX form here")
    return found(call, *call.operator.arguments, **call.operator.options)


def _value(name: str, tensor: TensorType) -> onnx.ValueInfoProto:
    shape = [int(size) if is_known(size) else "N" for size in tensor.shape]
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[tensor.dtype], shape)


def _needed(nodes: list[onnx.NodeProto], results: Sequence[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that any result depends on, in their order."""
    wanted, kept = set(results), list[onnx.NodeProto]()
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _named(
    nodes: list[onnx.NodeProto], results: Sequence[str], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """Gives each result its output's name where it arises; one that is an input, a constant or asked for
    twice is copied by an Identity."""
    made = {name for node in nodes for name in node.output}
    new, copies = dict[str, str](), list[onnx.NodeProto]()
    for result, output in zip(results, outputs, strict=True):
        if result in made and result not in new:
            new[result] = output
        else:
            copies.append(helper.make_node("Identity", [new.get(result, result)], [output]))
    for node in nodes:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    return [*nodes, *copies]
