"""Lets a step of training hold less: a tensor that waits long is computed again when it is needed.

The nodes' order is fixed, and a board runs them in that order. At the node where a graph holds the most, the
tensor whose second making frees the most bytes for the least time is made again right before its next use;
and so on, until a share of the step's time is spent or nothing helps (as XLA's HloRematerialization does;
Chen et al., "Training deep nets with sublinear memory cost", 2016, chose by layers)."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

BATCH = 16  # images that sizes are counted for
MOST_STEPS, MOST_TRIALS = 24, 12  # nodes that one tensor is made of again, and tensors tried at a peak
SMALL = 20  # a tensor that is this many times smaller is held, not made again for the sake of another

VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"))
IN_PLACE = frozenset((
    "Relu", "HardSigmoid", "Mul", "Add", "Sub", "Div", "Cast", "Sqrt", "Reciprocal", "Sigmoid", "Tanh", "Erf",
    "Exp", "Neg", "Log", "Softmax", "LogSoftmax", "Clip",
))  # fmt: skip
"""What onnxruntime writes over an input of the same size that nothing else needs."""

HEAVY = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm"))
NODE_S, FLOPS_S, BYTES_S = 2e-6, 60e9, 40e9  # onnxruntime 1.32 on one x86 core, as are the next
COPIES = dict.fromkeys(("Pad", "Concat", "Transpose", "Slice", "Expand", "ReduceSum", "ReduceMean"), 20e9)
CURVES = dict.fromkeys(("Erf", "Exp", "Log", "Tanh", "Sigmoid", "Softmax", "Where", "Pow", "Mod"), 15e9)
SEARCHES = dict.fromkeys(("MaxPool", "GatherElements", "ScatterElements", "LogSoftmax"), 1.5e9)
RATES = {**COPIES, **CURVES, **SEARCHES}  # bytes in and out a second, of what is not as fast as BYTES_S


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A node with the seconds that it is expected to take."""

    node: onnx.NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    time_s: float


class Tensors:
    """Sizes of a graph's tensors with so many images in a batch."""

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        sized = onnx.ModelProto()
        sized.CopyFrom(model)
        for value in (*sized.graph.input, *sized.graph.output):
            for side in value.type.tensor_type.shape.dim:
                if side.dim_param:
                    side.dim_value = batch
        graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
        self.given = {value.name for value in graph.input} | {value.name for value in graph.initializer}
        self.wanted = {value.name for value in graph.output}
        self.bytes, self._shapes = dict[str, int](), dict[str, tuple[int, ...]]()
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            shape = tuple(int(side.dim_value) for side in tensor.shape.dim)
            width: int = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
            self._shapes[value.name], self.bytes[value.name] = shape, width * math.prod(shape)

    def copied(self, name: str, copy: str) -> None:
        """Takes note of a second tensor of a tensor's size."""
        self.bytes[copy], self._shapes[copy] = self.bytes.get(name, 0), self._shapes.get(name, ())

    def step(self, node: onnx.NodeProto) -> Step:
        inputs, outputs = (tuple(filter(None, names)) for names in (node.input, node.output))
        moved = sum(self.bytes.get(name, 0) for name in (*inputs, *outputs))
        time_s = NODE_S + (0 if node.op_type in VIEWS else moved / RATES.get(node.op_type, BYTES_S))
        return Step(node, inputs, outputs, time_s + self._flops(node) / FLOPS_S)

    def _flops(self, node: onnx.NodeProto) -> int:
        if node.op_type not in HEAVY:
            return 0
        first, second, out = (self._shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
        if node.op_type in ("Conv", "ConvTranspose"):
            return 2 * math.prod(out if node.op_type == "Conv" else first) * math.prod(second[1:])
        is_turned = any(each.name == "transA" and each.i for each in node.attribute)
        return 2 * math.prod(out) * (first[0 if is_turned else -1] if first else 0)


class Timeline:
    """What a sequence of steps holds, and when. A buffer is named by its first tensor; views, and what is
    written in place, share one. It is there from step `made` to step `last`."""

    def __init__(self, steps: Sequence[Step], tensors: Tensors) -> None:
        self.made, self.uses = dict[str, int](), defaultdict[str, list[int]](list)
        for at, step in enumerate(steps):
            self.made |= dict.fromkeys(step.outputs, at)
            for name in {*step.inputs} - tensors.given:
                self.uses[name].append(at)
        end = len(steps)
        self.buffer, self.members = dict[str, str](), defaultdict[str, list[str]](list)
        self.bytes, self.last = dict[str, int](), dict[str, int]()
        for at, step in enumerate(steps):
            for name in step.outputs:
                shared = None if name in tensors.wanted else self._shared(step, name, at, tensors)
                buffer = self.buffer[name] = shared or name
                self.members[buffer].append(name)
                self.bytes.setdefault(buffer, tensors.bytes.get(name, 0))
                last = end if name in tensors.wanted else max(self.uses.get(name, [at]))
                self.last[buffer] = max(self.last.get(buffer, at), last)
        change = [0] * (end + 2)
        for buffer, size in self.bytes.items():
            change[self.made[buffer]] += size
            change[self.last[buffer] + 1] -= size
        self.held = list(itertools.accumulate(change))[:end]
        self.peak = max(self.held, default=0)
        self.smooth = sum((held / 1e6) ** 8 for held in self.held)  # falls with each of several equal peaks

    def _shared(self, step: Step, name: str, at: int, tensors: Tensors) -> str | None:
        """Returns the buffer of an input that a step's result takes over."""
        if name != step.outputs[0]:
            return None
        if step.node.op_type in VIEWS:
            return self.buffer.get(step.inputs[0])
        for each in step.inputs if step.node.op_type in IN_PLACE else ():
            buffer = self.buffer.get(each)
            if buffer is None or buffer in tensors.wanted or self.last[buffer] > at:
                continue
            if self.bytes[buffer] == tensors.bytes.get(name, 0):
                return buffer
        return None

    def waiting(self, at: int) -> Iterator[tuple[str, dict[str, int]]]:
        """Yields each buffer that is held over a step which does not use it, and the next use of each of its
        tensors that has one."""
        for buffer, last in self.last.items():
            if not self.made[buffer] < at < last < len(self.held) or self.bytes[buffer] * 1000 < self.peak:
                continue
            before = [name for name in self.members[buffer] if self.made[name] < at]
            if not any(at in self.uses[name] for name in before):
                later = {name: [use for use in self.uses[name] if use > at] for name in before}
                yield buffer, {name: uses[0] for name, uses in later.items() if uses}


@dataclass(frozen=True, slots=True)
class Choice:
    """Tensors of one buffer to be made again: by which steps, before which one, in how many seconds, and how
    many bytes that frees at the peak."""

    tensors: frozenset[str]
    steps: tuple[int, ...]
    before: int
    time_s: float
    freed_bytes: int


def rematerialized(model: onnx.ModelProto, share: float) -> list[onnx.NodeProto]:
    """Returns a train graph's nodes, some of them twice, in the order in which they hold little. `share`: of
    the time that the graph's own nodes take."""
    tensors = Tensors(model, BATCH)
    steps = [tensors.step(node) for node in model.graph.node]
    left_s = share * sum(step.time_s for step in steps)
    line, names, refused = Timeline(steps, tensors), itertools.count(), set[Any]()
    while True:
        at = line.held.index(line.peak)
        found = [each for each in _choices(steps, line, tensors, at) if each.time_s <= left_s]
        found.sort(key=lambda each: each.freed_bytes / each.time_s, reverse=True)
        for choice in found[:MOST_TRIALS]:
            key = (choice.tensors, steps[choice.before].outputs)
            if (key, choice.steps) in refused:
                continue
            trial = _applied(steps, choice, tensors, names)
            held = Timeline(trial, tensors)
            if held.peak <= line.peak and held.smooth < 0.9999 * line.smooth:
                left_s -= sum(step.time_s for step in trial) - sum(step.time_s for step in steps)
                steps, line = trial, held
                break
            refused.add((key, choice.steps))
        else:
            return [step.node for step in steps]


def _choices(steps: Sequence[Step], line: Timeline, tensors: Tensors, at: int) -> Iterator[Choice]:
    for buffer, later in line.waiting(at):
        before = min(later.values(), default=0)
        for is_heavy_allowed in (False, True) if later else ():
            found = _again(steps, line, tensors, (buffer, later.keys(), before, at), is_heavy_allowed)
            if found is not None:
                chain, kept_bytes = found
                freed, time_s = line.bytes[buffer] - kept_bytes, sum(steps[each].time_s for each in chain)
                if freed > 0:
                    yield Choice(frozenset(later), tuple(sorted(chain)), before, time_s, freed)


def _again(
    steps: Sequence[Step], line: Timeline, tensors: Tensors, what: Any, is_heavy_allowed: bool
) -> tuple[set[int], int] | None:
    """Returns the steps that make a buffer's tensors again, and how many bytes more are held at the peak for
    them; None if it takes too many, or heavy ones that are not allowed."""
    buffer, names, before, peak_at = what
    chain, kept, open_names = set[int](), dict[str, int](), list(names)
    own = set(line.members[buffer])
    while open_names:
        name = open_names.pop()
        at = line.made.get(name)
        if at is None or at in chain:
            continue
        held_in = line.buffer[name]
        overwritten = min(
            (line.made[each] for each in line.members[held_in]
             if line.made[each] > at and steps[line.made[each]].node.op_type not in VIEWS),
            default=before,
        )  # fmt: skip
        is_heavy = steps[at].node.op_type in HEAVY and not is_heavy_allowed
        if name not in own:
            if line.last[held_in] >= before and overwritten >= before:
                continue  # it is there anyway
            if is_heavy or line.bytes[held_in] * SMALL < line.bytes[buffer]:
                if not at <= peak_at <= min(line.last[held_in], overwritten):
                    kept[held_in] = line.bytes[held_in]
                continue
        elif is_heavy:
            return None
        chain.add(at)
        if len(chain) > MOST_STEPS or at >= before:
            return None
        open_names += steps[at].inputs
    return chain, sum(kept.values())


def _applied(steps: Sequence[Step], choice: Choice, tensors: Tensors, names: Iterator[int]) -> list[Step]:
    """Returns the steps with a choice's made again, and without those that nothing needs any more."""
    new, copies = dict[str, str](), list[Step]()
    for at in choice.steps:
        renamed = {name: f"again{next(names)}" for name in steps[at].outputs}
        copies.append(_renamed(steps[at], new, renamed))
        for name, copy in renamed.items():
            tensors.copied(name, copy)
        new |= renamed
    moved = {name: new[name] for name in choice.tensors}
    behind = [
        _renamed(step, moved, {}) if moved.keys() & {*step.inputs} else step
        for step in steps[choice.before :]
    ]
    wanted, kept = set(tensors.wanted), list[Step]()
    for step in reversed([*steps[: choice.before], *copies, *behind]):
        if wanted.intersection(step.outputs):
            kept.append(step)
            wanted.update(step.inputs)
    return kept[::-1]


def _renamed(step: Step, inputs: dict[str, str], outputs: dict[str, str]) -> Step:
    node = onnx.NodeProto()
    node.CopyFrom(step.node)
    node.input[:] = [inputs.get(name, name) for name in node.input]
    node.output[:] = [outputs.get(name, name) for name in node.output]
    new_inputs, new_outputs = (tuple(filter(None, each)) for each in (node.input, node.output))
    return Step(node, new_inputs, new_outputs, step.time_s)
