"""Makes the two graphs of a torch module: one trains it, with autograd's gradients, and one infers.

The graphs' parameters and running statistics stand in the order of `module.state_dict()`. A parameter that
requires no gradient goes into both graphs and gets none (`freeze`); a buffer that training leaves alone is a
constant of the graphs."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import onnx
from onnx import helper

from groundstation.models.losses import CROSS_ENTROPY, Loss
from groundstation.models.lowering.lowering import LOWERINGS, lower
from groundstation.models.lowering.writer import SEED
from groundstation.models.rematerialize import rematerialized
from groundstation.models.tracing import Operator, Result, Trace, UnsupportedError, traced

RECOMPUTE = 0.03  # saves a third to a half of the bytes at the peak; more of it saves little more
TENSORS = ("_parameters", "_buffers", "_modules")  # where a module keeps what travels
OPSET, IR_VERSION = 17, 8  # onnxruntime 1.12 reads them already, and nothing here needs newer ones


@dataclass(frozen=True)
class Authored:
    """A torch module with what its graphs must say of it.

    `image`: channels, height and width; `outputs`: classes, numbers or channels; `mean` and `std`: what each
    channel is normalized by before the module sees it, in both graphs; `recompute`: the share of a training
    step's time that may be spent on making tensors again, so that the step holds fewer."""

    module: Any
    image: tuple[int, int, int]
    outputs: int
    loss: Loss = CROSS_ENTROPY
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    recompute: float = RECOMPUTE

    @cached_property
    def learned(self) -> list[str]:
        """Names of the parameters that learn, in the order of the state."""
        parameters = {key for key, each in self.module.named_parameters() if each.requires_grad}
        return [key for key in self.module.state_dict() if key in parameters]

    @cached_property
    def frozen(self) -> list[str]:
        """Names of the parameters that stay."""
        return [key for key, each in self.module.named_parameters() if not each.requires_grad]

    @cached_property
    def first_names(self) -> dict[str, str]:
        """The first name of each tensor of the state, by each name that it has: layers may share one."""
        first = dict[int, str]()
        tensors = (self.module.named_parameters, self.module.named_buffers)
        pairs = [pair for named in tensors for pair in named(remove_duplicate=False)]
        return {key: first.setdefault(id(tensor), key) for key, tensor in pairs}

    @cached_property
    def statistics(self) -> list[str]:
        """Names of the buffers that a step of training changes, found by one of two random images. Raises
        UnsupportedError if the network cannot be run, answers otherwise than its task asks, or has a
        parameter that nothing depends on."""
        import torch

        draw = torch.Generator().manual_seed(0)
        before = {key: value.clone() for key, value in self.module.named_buffers()}
        images = torch.rand(2, *self.image, generator=draw)
        _, *labels = _batch(self, labelled=True)(2)
        self.set_mode(training=True)
        try:
            answers = self.answered(images)
        except Exception as error:  # whatever a network raises that is fed another image than it is made for
            image = "x".join(map(str, self.image))
            raise UnsupportedError(f"the network fails on images of {image}: {first_line(error)}") from None
        wanted = (2, *self.loss.answers(self.image, self.outputs))
        if not isinstance(answers, torch.Tensor):
            raise UnsupportedError(f"the network gives {_kind(answers)}; a graph gives one tensor")
        if tuple(answers.shape) != wanted:
            raise UnsupportedError(
                f"the network gives {_shape(answers.shape)}, {self.loss.kind} needs {_shape(wanted)}"
            )
        parameters = dict(self.module.named_parameters())
        leaves = [parameters[key] for key in self.learned]
        loss = self.loss.of(answers, images, *labels)
        if not leaves:
            none = "all are frozen, and --train names what shall" if parameters else "the network has none"
            raise UnsupportedError(f"no parameter learns: {none}")
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else [None]
        for key, slope in zip(self.learned, slopes, strict=False):
            if slope is None:
                raise UnsupportedError(
                    f"{key} has no part in the loss: take it out of the module, or freeze it (--train)"
                )
        changed = []
        for key, value in self.module.named_buffers():
            if not torch.equal(value, before[key]):
                changed.append(key)
                value.copy_(before[key])
        return [key for key in self.module.state_dict() if key in changed and before[key].is_floating_point()]

    def set_mode(self, *, training: bool) -> None:
        """Sets the module to training or to inference. In training, what is frozen computes as in inference:
        its normalization keeps the statistics that it has."""
        self.module.train(training)
        for each in self.module.modules():
            own = list(each.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                each.training = False

    def answered(self, x: Any) -> Any:
        """Runs the module on images float (N, C, H, W) in 0..1 -> logits."""
        with _as_it_was(self.module):
            return self.module(self._normalized(x).clone())  # a module may change its images in place

    def reference(self, parameters: Mapping[str, Any], x: Any, *, training: bool) -> Any:
        """Runs the module with other tensors, by name, in place of its own, in the floats that `x` has.
        Statistics change in place."""
        from torch.func import functional_call

        of = self if x.dtype.itemsize == 4 else self._exact
        of.set_mode(training=training)
        with _as_it_was(of.module):
            return functional_call(of.module, dict(parameters), (self._normalized(x).clone(),))

    @cached_property
    def _exact(self) -> Authored:
        """The same in float64."""
        from torch.utils._python_dispatch import _disable_current_modes

        with _disable_current_modes():  # which may be about to widen what is copied
            return replace(self, module=copy.deepcopy(self.module).double())

    def _normalized(self, x: Any) -> Any:
        import torch

        for numbers, how in ((self.mean, torch.sub), (self.std, torch.div)):
            if numbers:
                x = how(x, torch.tensor(numbers, dtype=x.dtype).reshape(1, -1, 1, 1))
        return x


@contextlib.contextmanager
def _as_it_was(module: Any) -> Iterator[None]:
    """Takes back what a run leaves in a module's attributes: maps for whoever looks, or a table for the next
    run, which would be one trace's tensors in another, or a constant. Buffers stay as the run left them."""

    attributes = [(vars(each), dict(vars(each))) for each in module.modules()]
    containers = [
        (value, copy.copy(value))
        for _, own in attributes
        for name, value in own.items()
        if name not in TENSORS and isinstance(value, dict | list | set)
    ]
    try:
        yield
    finally:
        for now, before in attributes:
            now.clear()
            now.update(before)
        for value, content in containers:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)


def freeze(module: Any, patterns: Sequence[str]) -> None:
    """Leaves a gradient to the parameters whose names match a pattern ("head.*") alone. Raises
    UnsupportedError if none does."""
    names = [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in module.parameters()):
        first = f"; the first is {names[0]}" if names else ": the network has none"
        raise UnsupportedError(f"no parameter matches {', '.join(patterns)}{first}")


def train_graph(authored: Authored, name: str) -> onnx.ModelProto:
    """Returns a checked model: parameters and statistics, x float32 (N, C, H, W), labels y if the task has
    any -> mean loss, `grad.NAME` of every parameter that learns, `next.NAME` of every statistic. Raises
    UnsupportedError."""
    statistics = authored.statistics
    trace = _traced(_with_loss(authored), _batch(authored, labelled=True), backward=True)
    trace = _shared(authored, trace)
    outputs = {"0": "loss"}
    outputs |= {f"grad.network.{key}": f"grad.{key}" for key in authored.learned}
    outputs |= {f"next.network.{key}": f"next.{key}" for key in statistics}
    model = _model(authored, f"{name}.train", trace, outputs)
    nodes = rematerialized(model, authored.recompute)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return model


def infer_graph(authored: Authored, name: str) -> onnx.ModelProto:
    """Returns a checked model: parameters and statistics, x float32 (N, C, H, W) -> logits. Raises
    UnsupportedError."""
    trace = _traced(
        _wrapped(authored, authored.answered, training=False),
        _batch(authored, labelled=False),
        backward=False,
    )
    model = _model(authored, f"{name}.infer", trace, {"0": "logits"})
    if any(value.name == SEED for value in model.graph.input):
        raise UnsupportedError("the network draws random numbers in inference too")
    return model


def forward_macs(authored: Authored) -> int:
    """Returns the multiply-adds of one image's forward pass, in convolutions and products of matrices."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Its tracker of modules asks any parameter that a module is given for a gradient's function.
    state = {key: value.detach() for key, value in authored.module.state_dict().items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        authored.reference(state, torch.zeros(1, *authored.image), training=False)
    return int(counter.get_total_flops()) // 2


def _traced(module: Any, batch: Any, *, backward: bool) -> Trace:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        return traced(module, batch, LOWERINGS, backward=backward)
    except UnsupportedError:
        raise
    except DataDependentOutputException as error:
        raise UnsupportedError(
            f"the network asks for a tensor's value, as by .item() or an `if`, which no graph can ({error})"
        ) from error
    except DynamicOutputShapeException as error:
        raise UnsupportedError(
            f"a size depends on the values of a tensor, which no graph knows ({error})"
        ) from error
    except Exception as error:  # whatever torch raises on what it cannot trace
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UnsupportedError(f"torch cannot trace the network: {why}") from error


def _shared(authored: Authored, trace: Trace) -> Trace:
    """Returns a trace that gives one gradient and one next statistic of a tensor that has several names. Each
    of these is traced as a tensor of its own, so that the gradient is the sum of theirs."""
    operators, returned = list(trace.operators), dict(trace.returned)
    for key, first in authored.first_names.items():
        ours, other = f"grad.network.{first}", f"grad.network.{key}"
        if key != first and other in returned:
            given = (returned[ours], returned[other])
            facts = operators[given[0].index].gives
            facts = facts[given[0].part or 0] if isinstance(facts, tuple) else facts
            returned[ours] = Result(len(operators))
            operators.append(Operator("add.Tensor", given, {}, facts))
        if key != first and f"next.network.{key}" in returned:
            returned[f"next.network.{first}"] = returned[f"next.network.{key}"]
    return replace(trace, operators=operators, returned=returned)


def _batch(authored: Authored, *, labelled: bool) -> Any:
    import torch

    rule = authored.loss
    label = rule.labels(authored.image, authored.outputs)
    kind = torch.int64 if rule.has_classes else torch.float32

    def batch(size: int) -> list[Any]:
        images = torch.zeros(size, *authored.image)
        labels = [torch.zeros(size, *label, dtype=kind)] if labelled and rule.is_labelled else []
        return [images, *labels]

    return batch


def _with_loss(authored: Authored) -> Any:
    def loss(x: Any, y: Any = None) -> Any:
        return authored.loss.of(authored.answered(x), x, y)

    return _wrapped(authored, loss, training=True)


def _wrapped(authored: Authored, forward: Callable[..., Any], *, training: bool) -> Any:
    import torch

    class Wrapped(torch.nn.Module):  # type: ignore[misc]  # torch is not there for mypy
        """Names a part that has two names by the first alone: torch's tracer would ask for both."""

        def __init__(self) -> None:
            super().__init__()
            authored.set_mode(training=training)
            self.network = authored.module

        def forward(self, *batch: Any) -> tuple[Any]:
            return (forward(*batch),)

        def named_modules(self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
            return super().named_modules(memo, prefix)

    return Wrapped()


def _model(authored: Authored, name: str, trace: Trace, outputs: Mapping[str, str]) -> onnx.ModelProto:
    """Writes a trace, and puts the inputs into the order of the network's state."""
    state = authored.module.state_dict()
    inputs = {"0": "x", "1": "y", **{f"network.{key}": first for key, first in authored.first_names.items()}}
    constants = {
        f"network.{key}": value.detach().numpy()
        for key, value in authored.module.named_buffers(remove_duplicate=False)
        if authored.first_names[key] not in authored.statistics
    }
    graph = lower(trace, inputs, outputs, "x", constants)
    order = {key: at for at, key in enumerate([*state, "x", "y", SEED])}
    taken = sorted(graph.input, key=lambda value: order[value.name])
    del graph.input[:]
    graph.input.extend(taken)
    graph.name = name
    built = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="spacedml-edge",
    )
    onnx.checker.check_model(built, full_check=True)
    return built


def first_line(error: Exception) -> str:
    """Returns the first line of what an error says, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _kind(answers: Any) -> str:
    """Says what a network gives in place of a tensor, and what a function about it would choose from."""
    kind = f"a {type(answers).__name__}"
    if isinstance(answers, Mapping):
        return f"{kind} of {', '.join(map(str, answers))}"
    return f"{kind} of {len(answers)}" if isinstance(answers, list | tuple) else kind


def _shape(sizes: Sequence[int]) -> str:
    return "(" + ", ".join(["N", *map(str, sizes[1:])]) + ")"
