"""Makes a network's folder of a torch module: traces both graphs, checks them, and writes all or nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from groundstation.models.checks import Distance, Original, check, check_drawn
from groundstation.models.folder import write_network
from groundstation.models.from_torch import Authored, forward_macs, infer_graph, train_graph
from groundstation.models.memory import image_bytes
from onboard.codec.layout import Floats
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.networks import INFER, PARAMETERS, TRAIN, NetworkFile, PartName

Tell = Callable[[str], None]
Parts = Mapping[PartName, bytes]


@dataclass(frozen=True, slots=True)
class Made:
    """A network's description without its digests, and its files."""

    about: NetworkFile
    parts: Parts


def made(
    authored: Authored, name: str, classes: tuple[str, ...] = (), *, with_weights: bool = False,
    tell: Tell = lambda _: None,
) -> Made:  # fmt: skip
    """Traces a module. `with_weights`: whether the module's own go along; a board draws them otherwise.
    `tell` hears what is done next. Raises UnsupportedError."""
    from safetensors.numpy import save

    tell("tracing what trains")
    train = train_graph(authored, name)
    tell("tracing what infers")
    infer = infer_graph(authored, name)
    parts: dict[PartName, bytes] = {
        TRAIN: train.SerializeToString(deterministic=True),
        INFER: infer.SerializeToString(deterministic=True),
    }
    if with_weights:
        parts[PARAMETERS] = save(_tensors(authored, {value.name for value in train.graph.input}))
    about = NetworkFile(
        name=name, task=authored.loss.kind, input=authored.image, outputs=authored.outputs, classes=classes,
        ignore=authored.loss.ignore, mean=authored.mean, std=authored.std,
        forward_macs=forward_macs(authored), image_bytes=image_bytes(train),
        frozen=tuple(authored.frozen), files={},
        made_with={package: version(package) for package in ("spacedml-edge", "torch", "onnx")},
    )  # fmt: skip
    return Made(about, parts)


def state(authored: Authored) -> dict[str, Floats]:
    """Returns the module's own parameters that learn, and its statistics, float32."""
    return _tensors(authored, {*authored.learned, *authored.statistics})


def counts(authored: Authored) -> tuple[int, int]:
    """Returns how many parameters learn, and how many are frozen."""
    pairs = [(each.numel(), each.requires_grad) for each in authored.module.parameters()]
    return sum(size for size, learns in pairs if learns), sum(size for size, learns in pairs if not learns)


def _tensors(authored: Authored, names: Collection[str]) -> dict[str, Floats]:
    values = {name: value for name, value in authored.module.state_dict().items() if name in names}
    return {name: np.ascontiguousarray(value.detach().numpy()) for name, value in values.items()}


def write(folder: Path, network: Made, original: Original, tell: Tell = lambda _: None) -> Distance:
    """Checks both graphs, then writes the network's folder. Returns the largest error of a tensor. Raises
    DisagreementError, GraphError or OSError, and then leaves the folder as it was."""
    with tempfile.TemporaryDirectory() as scratch:
        write_network(Path(scratch) / "network", network.about, network.parts)
        train, infer = TrainGraph.load(Path(scratch) / "network"), InferGraph.load(Path(scratch) / "network")
        worst = check(train, infer, original, tell)
        if PARAMETERS not in network.parts:
            check_drawn(train, original)
    write_network(folder, network.about, network.parts)
    return worst
