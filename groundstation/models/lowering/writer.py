"""Collects the nodes of an ONNX graph, and shows one operator of a trace to the function that writes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from groundstation.models.tracing import Batch, Operator, Result, TensorType, Trace, UnsupportedError

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL, "int32":
    TensorProto.INT32, "float64": TensorProto.DOUBLE, "uint8": TensorProto.UINT8,
}  # fmt: skip

SEED = "seed"
MOST_JOINED = 4  # parts of a tensor that are treated one by one, each with nodes of its own

Sizes = Sequence[Any]  # whole numbers, and a Batch where the batch has its part


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of zeros but for parts along one axis: where each begins, its length and its name."""

    axis: int
    size: int
    parts: tuple[tuple[int, int, str], ...]

    def beside(self, other: Placed) -> Placed | None:
        """Returns both together, if none of their parts overlap."""
        parts = tuple(sorted(self.parts + other.parts))
        apart = all(a + length <= b for (a, length, _), (b, _, _) in itertools.pairwise(parts))
        is_alike = (self.axis, self.size) == (other.axis, other.size)
        return Placed(self.axis, self.size, parts) if apart and is_alike else None

    @property
    def is_whole(self) -> bool:
        return sum(length for _, length, _ in self.parts) == self.size


class Writer:
    """Adds nodes and constants, each once: what is asked for again is answered with the name that it has.

    `batch`: an input whose first axis is the batch's size N."""

    def __init__(self, batch: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._batch = batch
        self._known: dict[Any, tuple[str, ...]] = {}
        self._permuted: dict[str, tuple[str, list[int]]] = {}
        self._made_by: dict[str, onnx.NodeProto] = {}
        self._placed: dict[str, Placed] = {}
        self._names = itertools.count()
        self._drawn = itertools.count()
        self.takes_seed = False

    def node(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output and returns its name."""
        return self.split(operation, *inputs, outputs=1, **attributes)[0]

    def split(self, operation: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Adds a node with several outputs and returns their names."""
        key = (operation, inputs, outputs, repr(sorted(attributes.items())))
        if key not in self._known:
            names = tuple(f"v{next(self._names)}" for _ in range(outputs))
            self.nodes.append(helper.make_node(operation, inputs, names, **attributes))
            self._made_by.update(dict.fromkeys(names, self.nodes[-1]))
            self._known[key] = names
        return self._known[key]

    def constant(self, value: Any, dtype: str = "float32") -> str:
        """Adds a constant tensor and returns its name."""
        array = np.asarray(value, dtype)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"c{len(self.constants)}"
            self.constants[name] = numpy_helper.from_array(array, name)
            self._known[key] = (name,)
        return self._known[key][0]

    def filled(self, value: float, count: int) -> str:
        """Returns float32 (count,) of one value, in a few bytes."""
        one = numpy_helper.from_array(np.array([value], np.float32))
        return self.node("ConstantOfShape", self.integers(count), value=one)

    def made_by(self, name: str) -> str:
        """Returns the operation that gave a tensor, "" of an input or a constant."""
        return self._made_by[name].op_type if name in self._made_by else ""

    def made_from(self, name: str) -> str:
        """Returns the operation that gave the first input of a node, by the node's result."""
        return self.made_by(self.source(name))

    def source(self, name: str) -> str:
        """Returns the first input of a node, by the node's result."""
        return str(self._made_by[name].input[0])

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64), "int64")

    def cast(self, x: str, dtype: str) -> str:
        return self.node("Cast", x, to=ELEMENT_TYPES[dtype])

    def batch_size(self) -> str:
        """Returns N as int64 (1,)."""
        return self.node("Shape", self._batch, start=0, end=1)

    def seed(self) -> str:
        """Returns the int64 scalar that all draws of a step come from, which becomes an input."""
        self.takes_seed = True
        return SEED

    def count_drawn(self) -> int:
        """Returns how many tensors were drawn before, from 0, and counts this one."""
        return next(self._drawn)

    def sizes(self, sizes: Sizes) -> str:
        """Returns a shape as int64 (rank,)."""
        parts = list[str]()
        for known, run in itertools.groupby(sizes, key=is_known):
            if known:
                parts.append(self.integers(*map(int, run)))
                continue
            for size in run:
                factor, count = batch_factor(size), self.batch_size()
                parts.append(count if factor == 1 else self.node("Mul", count, self.integers(factor)))
        if not parts:
            return self.integers()
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0)

    def reshape(self, x: str, sizes: Sizes) -> str:
        """Adds a Reshape, in which -1 stands for a size that depends on the batch's."""
        unknown = [at for at, size in enumerate(sizes) if not is_known(size)]
        if len(unknown) == 1:
            sizes = [-1 if at in unknown else size for at, size in enumerate(sizes)]
        return self.node("Reshape", x, self.sizes(sizes))

    def permute(self, x: str, axes: Sequence[int]) -> str:
        """Adds a Transpose; two after one another become one or none."""
        axes = list(axes)
        if x in self._permuted:
            x, before = self._permuted[x]
            axes = [before[axis] for axis in axes]
        if axes == sorted(axes):
            return x
        name = self.node("Transpose", x, perm=axes)
        self._permuted[name] = (x, axes)
        return name

    def untransposed(self, x: str) -> tuple[str, bool]:
        """Returns the matrix whose transpose `x` is and True, or `x` and False."""
        before, axes = self._permuted.get(x, (x, []))
        return (before, True) if axes == [1, 0] else (x, False)

    def sum(self, x: str, axes: Sequence[int], keep: bool = False) -> str:
        return self.node("ReduceSum", x, self.integers(*axes), keepdims=int(keep))

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        return self.node("Slice", x, *(self.integers(at) for at in (start, end, axis, step)))

    def placed(self, x: str, rank: int, axis: int, first: int, size: int, length: int) -> str:
        """Puts `x` at `first` of an axis of this size, among zeros. Such tensors are joined where they are
        added and leave no zeros between them."""
        name = self.pad(x, rank, {axis: (first, size - first - length)})
        if name != x:
            self._placed[name] = Placed(axis, size, ((first, length, x),))
        return name

    def added(self, a: str, b: str) -> str:
        """Adds two tensors of one shape."""
        name, one, other = self.node("Add", a, b), self._placed.get(a), self._placed.get(b)
        both = one.beside(other) if one and other else None
        if both is None:
            return name
        if both.is_whole:
            return self.node("Concat", *(part for _, _, part in both.parts), axis=both.axis)
        self._placed[name] = both
        return name

    def pad(self, x: str, rank: int, pads: Mapping[int, tuple[int, int]], value: str = "") -> str:
        """Puts zeros, or `value`, before and behind some axes; a negative count cuts."""
        if not any(map(any, pads.values())):
            return x
        begins, ends = ([pads.get(axis, (0, 0))[side] for axis in range(rank)] for side in (0, 1))
        return self.node("Pad", x, self.integers(*begins, *ends), *([value] if value else []))


class Call:
    """One operator of a trace: what goes in, what is known of it, and the writer of its ONNX form."""

    def __init__(self, writer: Writer, trace: Trace, operator: Operator, names: Sequence[Any]) -> None:
        self.writer = writer
        self.operator = operator
        self._trace = trace
        self._names = names

    @property
    def gives(self) -> TensorType:
        """What the operator gives, the first of several."""
        gives = self.operator.gives
        first = gives[0] if isinstance(gives, tuple) else gives
        assert first is not None
        return first

    def name(self, x: Any) -> str:
        """Returns the ONNX name of a tensor among the arguments, or of a number as a float32 constant."""
        if not isinstance(x, Result):
            return self.writer.constant(x)
        found = self._names[x.index]
        return str(found if x.part is None else found[x.part])

    def tensor(self, x: Result) -> TensorType:
        """Returns the shape and dtype of a tensor among the arguments."""
        gives = self._trace.operators[x.index].gives
        found = gives[x.part] if isinstance(gives, tuple) and x.part is not None else gives
        assert isinstance(found, TensorType)
        return found

    def shape(self, x: Result) -> tuple[Any, ...]:
        return self.tensor(x).shape

    def rank(self, x: Result) -> int:
        return len(self.tensor(x).shape)

    def joined(self, x: Result) -> list[Result]:
        """Returns the few tensors that `x` is a concatenation of along the channels, or `x` alone."""
        made = self._trace.operators[x.index]
        if made.name.rpartition(".")[0] != "cat":
            return [x]
        tensors, axis = [*made.arguments, 0][:2]
        parts = [part for part in tensors if 0 not in self.shape(part)]
        return parts if self.axis(x, axis) == 1 and len(parts) <= MOST_JOINED else [x]

    def users(self, part: int) -> set[str]:
        """Returns the names of the operators that take this part of what the operator gives."""
        own = Result(len(self._names), part)
        return {each.name for each in self._trace.operators if own in _results(each.arguments)}

    def axis(self, x: Result, axis: int) -> int:
        """Counts an axis from the front."""
        return axis % max(self.rank(x), 1)

    def axes(self, x: Result, axes: Any) -> list[int]:
        """Counts axes from the front; none named are all."""
        named = [axes] if isinstance(axes, int) else axes
        return [axis % self.rank(x) for axis in named] if named else list(range(self.rank(x)))

    def operand(self, x: Any, dtype: str) -> str:
        """Returns a tensor or number as a tensor of a dtype, for arithmetic whose operands must agree."""
        w = self.writer
        if isinstance(x, Result):
            return self.name(x) if self.tensor(x).dtype == dtype else w.cast(self.name(x), dtype)
        if is_known(x):
            return w.constant(x, dtype)
        count = w.cast(w.node("Squeeze", w.batch_size(), w.integers(0)), dtype)
        factor = w.constant(x.factor, dtype)
        if x.inverse:
            return w.node("Div", factor, count)
        return count if x.factor == 1 else w.node("Mul", count, factor)

    def refuse(self, why: str) -> UnsupportedError:
        return UnsupportedError(f"the operator {self.operator.name} {why}")


Lowering = Callable[..., Any]
"""Writes one operator: (call, *its ATen arguments) -> the name of its result, or a tuple of them."""


def _results(arguments: Sequence[Any]) -> Iterator[Result]:
    for each in arguments:
        if isinstance(each, Result):
            yield each
        elif isinstance(each, list | tuple):
            yield from _results(each)


def whole(size: Any) -> int:
    """Returns a size that must not be the batch's. Raises UnsupportedError."""
    if not is_known(size):
        raise UnsupportedError("the batch's axis is cut or filled, which is only known for whole images")
    return int(size)


def is_known(size: Any) -> TypeGuard[int]:
    """Says whether a number is known now: it does not depend on the batch's size."""
    return not isinstance(size, Batch)


def batch_factor(size: Any) -> int:
    """Returns k of a size k N."""
    if not isinstance(size, Batch) or size.inverse:
        raise UnsupportedError(f"{size} is no multiple of the batch's size")
    return int(size.factor)


def product(sizes: Sizes) -> int | Batch:
    """Returns how many entries a tensor of these sizes has."""
    known = math.prod(int(size) for size in sizes if is_known(size))
    factors = [batch_factor(size) for size in sizes if not is_known(size)]
    if len(factors) > 1:
        raise UnsupportedError("a size depends on the square of the batch's")
    return Batch(known * factors[0]) if factors else known


def broadcast(*shapes: Sizes) -> list[Any]:
    """Returns the shape that tensors of these shapes have together, by numpy's rules."""
    rank = max(map(len, shapes))
    full = [[1] * (rank - len(shape)) + list(shape) for shape in shapes]
    return [next((size for size in sizes if size != 1), 1) for sizes in zip(*full, strict=True)]
