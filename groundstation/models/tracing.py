"""Traces a torch module as a list of core ATen operators in which the batch's size is a letter.

The step (parameters, statistics, images, labels -> loss, gradients, next statistics) is traced twice, with
fake tensors of two prime batch sizes. A number that differs between the two must be a multiple of the batch's
size N, or a number over it, and becomes a `Batch`; anything else is refused. This needs no symbolic shapes,
so that code which asks for `len(x)`, or torch code that takes plain integers alone, is traced as it is.

What torch's own decompositions lack is replaced before autograd sees it: normalizations are operators of
their own (`normalizing`), a resizing and an average pooling become products with
constant matrices, and dropout draws from integers that a seed gives, the same on every machine."""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundstation.models import normalizing

DTYPES = ("float32", "float64", "int64", "int32", "uint8", "bool")
SIZES = (1009, 1013)  # two primes, larger than any factor of a network's own sizes


class UnsupportedError(ValueError):
    """A network does something that cannot be written as a graph; one line says what."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A number that depends on the batch's size N: `factor` times N, or over N where `inverse`."""

    factor: float
    inverse: bool = False


Number = int | float | bool | Batch


@dataclass(frozen=True, slots=True)
class TensorType:
    """What is known of a tensor before any image is there. `dtype`: as numpy names it."""

    shape: tuple[Number, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Result:
    """Names the result of an operator by its index in the trace, and `part` if there are several."""

    index: int
    part: int | None = None


@dataclass(frozen=True, slots=True)
class Operator:
    """One step of a trace. `name`: ATen's, with its overload, or "input" or "constant"; arguments are
    numbers, strings, sequences of these, and `Result`s."""

    name: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    gives: TensorType | tuple[TensorType, ...] | None


@dataclass(frozen=True, slots=True)
class Trace:
    """Operators in the order of their use, with the names of what goes in and of what comes out.

    `returned`: each result by its name: "0", "1", ... as the module returns them, `next.NAME` of a buffer
    that it changes, and `grad.NAME` of a parameter."""

    operators: Sequence[Operator]
    inputs: Sequence[str]
    returned: Mapping[str, Result]


def traced(
    module: Any, batch: Callable[[int], Sequence[Any]], kept: Collection[str], *, backward: bool
) -> Trace:
    """Traces a torch module that takes the tensors `batch(N)` and returns a tuple.

    With `backward`, the first that it returns is a loss, and the trace goes on to its gradient by each
    parameter that requires one. `kept`: operators that are not decomposed. Raises UnsupportedError."""
    pair = [_exported(module, batch(size), kept, backward) for size in SIZES]
    nodes = [list(graph.graph.nodes) for graph, _ in pair]
    targets = [[str(node.target) for node in each if node.op == "call_function"] for each in nodes]
    if targets[0] != targets[1]:
        raise UnsupportedError("the network computes differently for batches of different sizes")
    operators, places, results = list[Operator](), dict[Any, Result](), list[Result]()
    for one, other in zip(*nodes, strict=True):
        arguments, options = _merged((one.args, dict(one.kwargs)), (other.args, dict(other.kwargs)), places)
        if one.op == "output":
            results = list(arguments[0])
        elif str(one.target).startswith("aten._assert"):
            continue  # what is checked holds for every batch of the traced shapes
        elif one.target is operator.getitem:
            places[one] = Result(arguments[0].index, arguments[1])
        else:
            places[one] = Result(len(operators))
            operators.append(_operator(pair[0][0], one, other, arguments, options))
    signature = pair[0][1]
    given = {str(node): node.target for node in nodes[0] if node.op == "placeholder"}
    names = [*signature.parameters, *signature.buffers]
    inputs = [*names, *map(str, range(len(given) - len(names)))]
    return Trace(operators, inputs, dict(zip(_returned(signature, len(results)), results, strict=True)))


def _operator(module: Any, one: Any, other: Any, arguments: Any, options: Any) -> Operator:
    if one.op == "get_attr":
        held = getattr(module, one.target)
        if held.requires_grad:
            raise UnsupportedError(
                f"a parameter of {tuple(held.shape)} is none of the module's, and would never learn: a plain "
                "list hides it (torch.nn.ParameterList does not)"
            )
        return Operator("constant", (held.detach().numpy(),), {}, _facts(held, held, one.target))
    name = str(one.target).removeprefix("aten.") if one.op == "call_function" else "input"
    gives = _facts(one.meta.get("val"), other.meta.get("val"), name)
    return Operator(name, tuple(arguments), options, gives)


def _returned(signature: Any, count: int) -> list[str]:
    """Returns the names of all results: changed buffers first, then the module's own, then gradients."""
    changed = [f"next.{name}" for name in signature.buffers_to_mutate.values()]
    back = signature.backward_signature
    gradients = [] if back is None else [f"grad.{name}" for name in back.gradients_to_parameters.values()]
    return [*changed, *map(str, range(count - len(changed) - len(gradients))), *gradients]


def _merged(one: Any, other: Any, places: Mapping[Any, Result]) -> Any:
    if hasattr(one, "op") and hasattr(one, "users"):
        return places[one]
    if isinstance(one, dict):
        return {key: _merged(value, other[key], places) for key, value in one.items()}
    if isinstance(one, list | tuple):
        return tuple(_merged(a, b, places) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float) and not isinstance(one, bool):
        return _number(one, other)
    return one if one is None or isinstance(one, bool | str) else str(one)


def _number(one: float, other: float) -> Number:
    if one == other:
        return one
    small, large = SIZES
    if one * large == other * small:
        return Batch(one // small if isinstance(one, int) else one / small)
    if abs(one * small - other * large) <= 1e-12 * abs(one * small):
        return Batch(one * small, inverse=True)
    raise UnsupportedError(f"a number depends on the batch's size ({one} of {small}, {other} of {large})")


def _facts(one: Any, other: Any, name: str) -> Any:
    """Returns what is known of the result of the operator `name`. Raises UnsupportedError."""
    if one is None:
        return None
    if isinstance(one, list | tuple):
        return tuple(_facts(a, b, name) for a, b in zip(one, other, strict=True))
    if not hasattr(one, "dtype"):
        return None
    shape = tuple(_number(int(a), int(b)) for a, b in zip(one.shape, other.shape, strict=True))
    dtype, layout = (str(each).removeprefix("torch.") for each in (one.dtype, one.layout))
    if dtype not in DTYPES or layout != "strided":
        odd = dtype if layout == "strided" else layout.replace("_", " ")
        raise UnsupportedError(f"{name}: {odd} tensors are not taken, needs float32 or whole numbers")
    return TensorType(shape, dtype)


def _exported(module: Any, batch: Sequence[Any], kept: Collection[str], backward: bool) -> tuple[Any, Any]:
    import torch
    from torch._functorch.aot_autograd import aot_export_module
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [fake.from_tensor(tensor) for tensor in batch]
    joint = {"trace_joint": True, "output_loss_index": 0} if backward else {"trace_joint": False}
    flags = torch.backends.mkldnn.flags
    unsaid = {"allow_tf32": None} if "allow_tf32" in inspect.signature(flags).parameters else {}
    plain = flags(enabled=False, **unsaid)  # where torch has it, a True or False warns on a CPU
    with sdpa_kernel(SDPBackend.MATH), plain, _replacing():
        graph, signature = aot_export_module(module, inputs, decompositions=_decompositions(kept), **joint)
    graph.graph.eliminate_dead_code()
    return graph, signature


def _decompositions(kept: Collection[str]) -> Any:
    """Returns torch's decompositions of every operator but those `kept`, by name or by name.overload."""
    from torch._decomp import core_aten_decompositions, global_decomposition_table

    def is_kept(overload: Any) -> bool:
        name = str(overload).removeprefix("aten.")
        return name in kept or name.rpartition(".")[0] in kept

    every = {**global_decomposition_table["post_autograd"], **core_aten_decompositions()}
    return {overload: how for overload, how in every.items() if not is_kept(overload)}


@contextlib.contextmanager
def _replacing() -> Iterator[None]:
    """Replaces functions of torch by others of the same value while a module is traced."""
    from torch.overrides import TorchFunctionMode

    replacements = _replacements()

    class Replace(TorchFunctionMode):  # type: ignore[misc]  # torch is not there for mypy
        def __torch_function__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = replacements.get(call)
            answer = NotImplemented if found is None else found(call, *args, **(kwargs or {}))
            return call(*args, **(kwargs or {})) if answer is NotImplemented else answer

    with Replace():
        yield


def _replacements() -> dict[Any, Callable[..., Any]]:
    import torch
    from torch.nn import functional

    averages = (
        functional.interpolate, functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d,
        functional.avg_pool1d, functional.avg_pool2d,
    )  # fmt: skip
    return {
        functional.batch_norm: normalizing.batch_norm, functional.instance_norm: normalizing.instance_norm,
        functional.group_norm: normalizing.group_norm, functional.layer_norm: normalizing.layer_norm,
        torch._weight_norm: normalizing.weight_norm,
        **dict.fromkeys(averages, _separable), functional.pad: _border,
    }  # fmt: skip


def _border(call: Any, x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    return NotImplemented if mode == "constant" else _separable(call, x, pad, mode)


def _separable(call: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Applies a linear map of rows and columns as two products with the matrices that it stands for."""
    import torch
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.utils._python_dispatch import _disable_current_modes

    if x.dim() not in (3, 4):
        return NotImplemented
    sides = [int(side) for side in x.shape[2:]]
    found = []
    with temporarily_clear_interpreter_stack(), _disable_current_modes(), torch.no_grad():
        for axis, side in enumerate(sides):
            form = [1, side, *(side if at == axis else 1 for at in range(len(sides)))]
            unit = torch.eye(side).reshape(form).expand(1, side, *sides)
            answer = call(unit, *args, **kwargs)[0].movedim(axis + 1, 1)
            found.append(answer.reshape(*answer.shape[:2], -1)[..., 0])  # (side, new side)
        if len(sides) == 2:  # each holds the other's first sum as a factor; the product must hold it once
            found[0] /= call(torch.ones(1, 1, *sides), *args, **kwargs)[0, 0, 0, 0]
    if all(matrix.shape[1] == 1 for matrix in found):
        return x.mean(list(range(2, x.dim())), keepdim=True)
    *rows, columns = (torch.tensor(matrix.tolist()) for matrix in found)
    x = x @ columns
    return rows[0].T @ x if rows else x
