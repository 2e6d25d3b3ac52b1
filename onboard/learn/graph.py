"""Runs a network's two graphs: a loss with its gradients, or logits, from parameters that stay outside.

A graph is a file of a few kB (see `groundstation/models`). Parameters, a `dict` of float32 arrays, go in with
every call, so one loaded graph serves any number of models. Frozen ones are the network's own. Images are
float32 (N, C, H, W) in 0..1. Labels are what the network's task needs: int64 (N) for `classify`, int64
(N, H, W) for `segment`, float32 (N, outputs) for `regress`, and none for `reconstruct`, whose target are the
images. An agent that loads no graph never pays the 20 MB of onnxruntime."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from onboard.codec.layout import Floats, Layout, layout
from onboard.console.extras import unusable
from onboard.learn.networks import INFER, PARAMETERS, TRAIN, Network, NetworkError, PartName
from onboard.learn.objectives import Objective

Labels = NDArray[Any]
Parameters = Mapping[str, Floats]
Shape = tuple[int, ...]
G = TypeVar("G", bound="Graph")

CPU = "CPUExecutionProvider"
DRAWN_AT_ONCE = 1 << 16  # first weights, at 20 bytes each while they are drawn


class GraphError(ValueError):
    """A graph cannot be loaded, or is fed something it is not made for; one line says what and why."""


class LostNetwork(GraphError):  # noqa: N818 - "lost" says error already
    """A network is not here, or its files are not those that its description means."""


@dataclass(frozen=True, eq=False)
class Graph:
    """One loaded graph: what it takes, and the session that runs it."""

    part: ClassVar[PartName]

    network: Network
    shapes: Mapping[str, Shape]  # parameters that learn and running statistics, in the graph's order
    own: Mapping[str, Floats] = field(repr=False)  # the network's first weights, empty if it brings none
    takes_seed: bool  # whether it draws, as dropout does
    session: Any = field(repr=False)

    @classmethod
    def load(cls: type[G], source: str | Path | Network, providers: Sequence[str] = (CPU,)) -> G:
        """Loads the graph of a shipped network or of the one in a folder, with those of onnxruntime's
        `providers`, in order of preference, that this machine has. Raises GraphError."""
        try:
            network = source if isinstance(source, Network) else Network.load(source)
            raw, own = network.part(cls.part), network.parameters()
        except NetworkError as error:
            raise LostNetwork(str(error)) from None
        path = network.folder / cls.part
        session = _session(path, raw, providers, as_written=cls.part == TRAIN)
        inputs = {each.name: (each.type, tuple(each.shape)) for each in session.get_inputs()}
        image = inputs.pop("x", None)
        label, seed = inputs.pop("y", None), inputs.pop("seed", None)
        has_labels = cls.part == TRAIN and network.file.task != "reconstruct"
        if image is None or (label is not None) != has_labels:
            raise GraphError(f"{path}: is no {cls.part.removesuffix('.onnx')} graph")
        if image[0] != "tensor(float)" or image[1][1:] != network.input_shape:
            raise GraphError(
                f"{path}: x is {image[0]} {image[1]}, needs float (N, C, H, W) of {network.input_shape}"
            )
        for name, (kind, shape) in inputs.items():
            if not _fixed(kind, shape):
                raise GraphError(f"{path}: parameter {name} is {kind} {shape}, needs float of a fixed shape")
            if own and (name not in own or own[name].shape != shape):
                raise GraphError(f"{path}: parameter {name} of {shape} is not in {PARAMETERS}")
        graph = cls(
            network=network,
            shapes={name: shape for name, (_, shape) in inputs.items() if name not in network.file.frozen},
            own={name: own[name] for name in inputs if own},
            takes_seed=seed is not None,
            session=session,
        )
        wanted, said = graph._wanted()
        if graph.outputs != wanted:
            raise GraphError(f"{path}: outputs are {graph.outputs}, need {said}")
        return graph

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def digest(self) -> bytes:
        return self.network.digest

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.network.input_shape

    @property
    def objective(self) -> Objective:
        return self.network.objective

    @property
    def classes(self) -> int:
        return self.network.file.outputs

    @property
    def forward_macs(self) -> int:
        return self.network.file.forward_macs

    @property
    def outputs(self) -> list[str]:
        return [output.name for output in self.session.get_outputs()]

    @cached_property
    def layout(self) -> Layout:
        return layout(self.shapes)

    @cached_property
    def frozen(self) -> dict[str, Floats]:
        """The parameters that stay as the network brings them, which every run is given."""
        return {name: value for name, value in self.own.items() if name not in self.shapes}

    def initial(self, seed: int) -> dict[str, Floats]:
        """Returns the first parameters: the network's own, or those that every node draws from `seed`."""
        return {name: self.own[name] for name in self.shapes} if self.own else initial(self.shapes, seed)

    def _wanted(self) -> tuple[list[str], str]:
        raise NotImplementedError

    def run(self, parameters: Parameters, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Runs one pass and returns all outputs. Raises GraphError for what is not this graph's."""
        if parameters.keys() != self.shapes.keys():
            odd = sorted(parameters.keys() ^ self.shapes.keys())
            raise GraphError(f"{self.name}: parameters do not match the graph's, first at {odd[0]!r}")
        for name, shape in self.shapes.items():
            got = parameters[name]
            if got.shape != shape or got.dtype != np.float32:
                raise GraphError(f"{self.name}: {name} is {got.dtype} {got.shape}, needs float32 {shape}")
        x = inputs["x"]
        if x.dtype != np.float32 or x.shape[1:] != self.input_shape or len(x) == 0:
            need = ", ".join(map(str, self.input_shape))
            raise GraphError(f"{self.name}: images are {x.dtype} {x.shape}, need float32 (N, {need}), N >= 1")
        try:
            outputs: list[NDArray[Any]] = self.session.run(None, {**self.frozen, **parameters, **inputs})
        except MemoryError:
            raise
        except Exception as error:  # as in _session; 1.23 has one for numbers that are none, 1.31 computes on
            raise GraphError(f"{self.name}: cannot be run on these numbers: {_first_line(error)}") from None
        return outputs


class TrainGraph(Graph):
    """`train.onnx`: parameters, x and y in; mean loss and gradients out."""

    part = TRAIN

    @cached_property
    def buffers(self) -> tuple[str, ...]:
        """Parameters that have next values instead of gradients: running statistics."""
        return tuple(name for name in self.shapes if f"next.{name}" in self.outputs)

    @cached_property
    def layout(self) -> Layout:
        return layout(self.shapes, self.buffers)

    def _wanted(self) -> tuple[list[str], str]:
        gradients = [f"grad.{name}" for name in self.shapes if name not in self.buffers]
        wanted = ["loss", *gradients, *(f"next.{name}" for name in self.buffers)]
        return wanted, "loss and each grad.NAME in order, then next.NAME of those that have no gradient"

    @property
    def flops_per_image(self) -> int:
        """Floating-point operations to train on one image: two a multiply-add. The backward pass costs two
        forward ones: a product for the weight's gradient, one for the input's."""
        return self.forward_macs * 2 * 3

    def step(
        self, parameters: Parameters, x: Floats, y: Labels, seed: int = 0
    ) -> tuple[float, dict[str, Floats], dict[str, Floats]]:
        """Mean loss of a batch, its gradient by each parameter, each buffer's next value. The loss is
        cross-entropy in nats, and the mean squared error of numbers and images, unless the network's author
        chose another. `y`: as above, of any shape for `reconstruct`. `seed`: of what the graph draws."""
        given = {"x": x} if self.objective.kind == "reconstruct" else {"x": x, "y": y}
        self._check_labels(x, y)
        drawn = {"seed": np.array(seed, np.int64)} if self.takes_seed else {}
        loss, *found = self.run(parameters, {**given, **drawn})
        learned = [name for name in self.shapes if name not in self.buffers]
        gradients = dict(zip(learned, found[: len(learned)], strict=True))
        return float(loss), gradients, dict(zip(self.buffers, found[len(learned) :], strict=True))

    def _check_labels(self, x: Floats, y: Labels) -> None:
        """Raises GraphError for labels that the graph is not made for."""
        kind, ends = self.objective.kind, self.classes - 1
        if kind == "reconstruct":
            return
        shape = {"classify": (), "segment": self.input_shape[1:], "regress": (self.classes,)}[kind]
        needed = np.dtype(np.float32 if kind == "regress" else np.int64)
        if y.dtype != needed or y.shape != (len(x), *shape):
            need = f"{needed} {(len(x), *shape)}"
            raise GraphError(f"{self.name}: labels are {y.dtype} {y.shape}, need {need}")
        if kind == "regress":
            return
        counted = y if self.objective.ignore is None else y[y != self.objective.ignore]
        if counted.size and not (counted.min() >= 0 and counted.max() <= ends):
            raise GraphError(f"{self.name}: labels {counted.min()}..{counted.max()}, need 0..{ends}")


class InferGraph(Graph):
    """`infer.onnx`: parameters and x in; logits out, float32: (N, classes) for `classify`, (N, classes, H, W)
    for `segment`, the numbers (N, outputs) for `regress` and the images (N, C, H, W) for `reconstruct`."""

    part = INFER

    def _wanted(self) -> tuple[list[str], str]:
        return ["logits"], "logits alone"

    def logits(self, parameters: Parameters, x: Floats) -> Floats:
        """The logits of images float32 (N, C, H, W)."""
        return self.run(parameters, {"x": x})[0]


def answering_session(
    path: Path, *, as_written: bool = False
) -> tuple[Callable[[Floats], Floats], dict[str, str]]:
    """Opens an infer graph that holds its weights: what runs it on images float32 (N, C, H, W), and its
    metadata. With `as_written` no weights are folded together, which is slower and rounds as a board does.
    Raises GraphError, OSError."""
    session = _session(path, path.read_bytes(), (CPU,), as_written=as_written)
    if [each.name for each in session.get_inputs()] != ["x"]:
        raise GraphError(
            f"{path}: takes more than images: its weights are not inside, as `groundstation model` has them"
        )

    def run(x: Floats) -> Floats:
        try:
            logits: Floats = session.run(["logits"], {"x": x})[0]
        except MemoryError:
            raise
        except Exception as error:  # as in _session
            raise GraphError(f"{path}: {_first_line(error)}") from None
        return logits

    return run, dict(session.get_modelmeta().custom_metadata_map)


def gradient(
    graph: TrainGraph, weights: Parameters, x: Floats, y: Labels, *, when: str, seed: int = 0
) -> tuple[float, dict[str, Floats], dict[str, Floats]]:
    """As `TrainGraph.step`, for a training. Raises GraphError for numbers that the graph refuses, and
    ValueError for a loss that is not finite; both say `when` that was."""
    try:
        loss, gradients, buffers = graph.step(weights, x, y, seed)
    except GraphError as error:  # some onnxruntimes refuse numbers on which others compute a loss of nan
        raise GraphError(f"{error}; {when}") from None
    if not math.isfinite(loss):
        raise ValueError(f"loss is {loss} {when}")
    return loss, gradients, buffers


def prepare(x: NDArray[np.uint8] | Floats) -> Floats:
    """Pixels 0..255 as the float32 in 0..1 that a mission trains and tests on."""
    scaled: Floats = x.astype(np.float32)
    scaled *= np.float32(1 / 255)
    return scaled


def prepare_labels(y: NDArray[Any]) -> NDArray[Any]:
    """Labels as a graph takes them: masks are kept in bytes, and all others as they are taken."""
    return y.astype(np.int64) if y.dtype == np.uint8 else y


def initial(shapes: Mapping[str, Shape], seed: int) -> dict[str, Floats]:
    """A model's first parameters, the same bits on every platform and numpy version; they need no radio.

    Weights are He-uniform (He et al. 2015): U(-b, b), b = sqrt(6 / fan_in), fan_in being all axes but the
    first. One-dimensional tensors are 0, but a normalization's `.weight` (gain) and `.running_var` are 1.
    Tensor i draws from its own Philox stream with key (seed, i); only the generator's raw bits and IEEE-exact
    arithmetic are used, because numpy promises the bits of a stream and not those of its distributions.
    `seed`: 0..2^64-1, else ValueError.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is not in 0..2^64-1")
    return {name: _draw(name, tuple(shape), seed, i) for i, (name, shape) in enumerate(shapes.items())}


def _draw(name: str, shape: Shape, seed: int, index: int) -> Floats:
    if len(shape) < 2:
        return np.full(shape, 1.0 if name.endswith((".weight", ".running_var")) else 0.0, dtype=np.float32)
    stream = np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
    weights = np.empty(math.prod(shape), np.float32)
    for part in np.array_split(weights, -(-len(weights) // DRAWN_AT_ONCE)):
        bits = stream.random_raw(len(part))
        bits >>= np.uint64(11)  # 53 bits: exact in a float64
        uniform = bits.astype(np.float64)
        uniform *= 2.0**-52
        uniform -= 1.0  # in [-1, 1); exact, as is the step before
        uniform *= math.sqrt(6.0 / math.prod(shape[1:]))
        part[...] = uniform
    return weights.reshape(shape)


def _fixed(kind: str, shape: Sequence[int | str | None]) -> bool:
    return kind == "tensor(float)" and all(isinstance(side, int) and side > 0 for side in shape)


def _session(path: Path, raw: bytes, providers: Sequence[str], *, as_written: bool = False) -> Any:
    """An onnxruntime session that stays on one thread, gives memory back and tells nobody. It takes the bytes
    and not the path: what runs is what the digest was taken of."""
    # Official wheels send usage events over the network (1.31: a thread, 2.3 MB, a device id in ~/.cache and
    # a file in TMPDIR) unless this is set before the import. Pull request 29843 used the second name.
    os.environ["ORT_DISABLE_TELEMETRY"] = os.environ["ORT_TELEMETRY_DISABLED"] = "1"
    try:
        import onnxruntime

        available = onnxruntime.get_available_providers()
    except MemoryError:
        raise
    except Exception as error:  # not there, half there (of two packages with this name one was removed), ...
        raise GraphError(unusable("onnxruntime", error)) from None
    chosen = [provider for provider in providers if provider in available]
    if not chosen:
        raise GraphError(
            f"{path}: no provider of {', '.join(providers)} is here, only {', '.join(available)}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The arena keeps what a step freed. Without it glibc gives large maps back and the kernel clears them
    # anew: a U-Net's step takes 17 % longer and 100 MB more (LeNet-5: as fast, 4 MB more). Planning by memory
    # patterns is no faster and takes half as much again.
    options.enable_cpu_mem_arena, options.enable_mem_pattern = True, False
    if as_written:  # in the file's order, which holds little at once, as what is computed twice does
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_reuse = False  # which would hold a buffer until the next tensor of its size
    options.log_severity_level = 4  # fatal only: an error is raised, and needs no second telling on stderr
    try:
        return onnxruntime.InferenceSession(raw, options, providers=chosen)
    except Exception as error:  # onnxruntime has a class for each status code, and no base of its own
        raise GraphError(f"{path}: onnxruntime refuses it: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
