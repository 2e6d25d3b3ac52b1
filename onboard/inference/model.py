"""A model that answers: what a node holds of its mission, or a file that `groundstation model` wrote.

Weights stay packed on the disk, as they came over the link, and are unpacked when they are loaded. Loading a
node's model reads its state folder and changes nothing there, so that it works beside a running agent."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.agents.federated_state import DEPLOYED, MODEL, FederatedState
from onboard.codec.layout import Floats
from onboard.codec.model import BadPack
from onboard.codec.pack import unpack
from onboard.data import labels
from onboard.inference.rules import NodeFolder
from onboard.learn.federated.local import apply_delta
from onboard.learn.graph import GraphError, InferGraph, Parameters, answering_session, prepare
from onboard.learn.networks import Network, shipped
from onboard.learn.objectives import Kind
from onboard.mission import objects
from onboard.mission.objects import Task
from onboard.storage.journal import Journal, JournalError, was_started
from onboard.storage.model_slots import ModelSlots
from onboard.wire.messages import BadMessage, digest

METADATA = "spacedml"
"""The name under which a written model says what it is: ONNX metadata, a safetensors header, an npz array."""
WRITTEN = (".onnx", ".safetensors", ".npz")
_TRIES, _APART_S = 5, 0.1  # an agent that takes a model writes the file, then the journal


class ModelError(ValueError):
    """There is no model to answer with; one line says why."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model is. `graph`: the network's digest; `digest`: BLAKE2s-128 of the packed weights, as they
    travel; `value`: of the `metric`, on the mission's test data, as `loss`. Digests are hexadecimal."""

    network: str
    graph: str
    task: Kind
    input: tuple[int, int, int]
    outputs: int
    classes: tuple[str, ...] = ()
    ignore: int | None = None
    mission: str = ""
    round: int = 0
    digest: str = ""
    metric: str = ""
    value: float | None = None
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class AnsweringModel:
    """`run`: images float32 (N, C, H, W) in 0..1 -> logits, as the network's infer graph gives them."""

    info: ModelInfo
    run: Callable[[Floats], Floats]

    def logits(self, x: NDArray[np.uint8]) -> Floats:
        """Runs one batch of images uint8 (N, C, H, W). Raises GraphError."""
        return self.run(prepare(x))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all outputs: those of the classes, or their numbers."""
        return self.info.classes or labels.numbered(self.info.outputs)


def of_weights(graph: InferGraph, weights: Parameters, info: ModelInfo) -> AnsweringModel:
    return AnsweringModel(info, lambda x: graph.logits(weights, x))


def of_object(
    payload: bytes, classes: tuple[str, ...] | None = None, network: Network | None = None
) -> AnsweringModel:
    """Unpacks a MODEL object. `classes`: the mission's, where its task is too short for them. `network`: the
    one that the object is of; by default a shipped one, by its name. Raises ModelError."""
    try:
        task, packed = objects.decode_task(payload)
        graph = InferGraph.load(network or task.model)
        if graph.digest != task.graph:
            there = task.graph.hex()
            raise ModelError(f"network {task.model!r} is {graph.digest.hex()} here, {there} there")
        weights = graph.initial(task.seed)
        if task.weights == "seed" and not graph.own:
            raise ModelError(f"{task.model} has learned nothing yet: its first round is not over")
        if task.weights == "packed":
            weights = apply_delta(weights, unpack(packed, graph.layout).reconstruct())
    except (BadMessage, BadPack, GraphError) as error:
        raise ModelError(str(error)) from None
    names = _names(task, classes, graph.network)
    number = task.round - 1  # the round that made these weights; its successor sends them
    info = network_info(graph.network, classes=names, mission=task.mission.hex(), round=number,
                        digest=weights_digest(bytes(packed)))  # fmt: skip
    return of_weights(graph, weights, info)


def network_info(network: Network, **more: Any) -> ModelInfo:
    """Says what a model of this network is; `more` are other fields of ModelInfo."""
    file = network.file
    about = ModelInfo(
        network=file.name, graph=network.digest.hex(), task=file.task, input=file.input,
        outputs=file.outputs, classes=file.classes, ignore=file.ignore,
    )  # fmt: skip
    return msgspec.structs.replace(about, **more)


def weights_digest(packed: bytes) -> str:
    return blake2s(packed, digest_size=16).hexdigest()


def of_node(node: NodeFolder, named: str = "") -> AnsweringModel:
    """Loads the model that the mission deployed; before that, the one that its latest round began with.
    `named`: the deployed one of this digest, in hexadecimal, and no other. Raises ModelError."""
    state = Path(node.state)
    if not was_started(state):
        raise ModelError(f"{state}: no agent has run on it: nothing was deployed")
    why = ""
    for _ in range(_TRIES):
        try:
            known = Journal(state, FederatedState).load()
        except (JournalError, OSError) as error:
            raise ModelError(f"{state}: {error}") from None
        if known is None:
            raise ModelError(f"{state}: its journal cannot be read")
        name, held = (DEPLOYED, known.deployed) if known.deployed or named else (MODEL, known.model)
        if not held:
            raise ModelError(f"{state}: no model has come from the ground yet")
        content, why = _content(state / name)
        if content is not None and digest(objects.MODEL, content) == held and named in ("", held.hex()):
            return _unpacked(node, content, known)
        why = why or f"{state / name}: damaged, or just being replaced"
        time.sleep(_APART_S)
    raise ModelError(why)


def _unpacked(node: NodeFolder, content: bytes, known: FederatedState) -> AnsweringModel:
    try:
        task, _ = objects.decode_task(content)
    except BadMessage as error:
        raise ModelError(str(error)) from None
    slots = ModelSlots(Path(node.state) / "models", Path(node.beside) / "models")
    return of_object(content, node.classes, slots.find(task.graph, known.networks))


def _content(path: Path) -> tuple[bytes | None, str]:
    try:
        if not path.is_file():
            return None, f"{path}: no such file"
        return path.read_bytes(), ""
    except OSError as error:
        return None, f"{path}: {error.strerror}"


def _names(task: Task, classes: tuple[str, ...] | None, network: Network) -> tuple[str, ...]:
    """Returns the names of the mission's classes, if anybody here knows them."""
    if task.names or not task.classes:
        return task.names or network.file.classes
    known = (names for names in (classes, network.file.classes) if names)
    return next((names for names in known if labels.digest(names) == task.classes), ())


def of_file(path: Path, network: Network | None = None, *, as_written: bool = False) -> AnsweringModel:
    """Loads a model that `groundstation model` wrote. The weights of an npz and a safetensors file need their
    network: this one, or by its name a shipped one. `as_written`: see `answering_session`. Raises
    ModelError."""
    if path.suffix not in WRITTEN or path.is_dir():
        raise ModelError(f"{path}: needs a file that ends in {', '.join(WRITTEN)}, of `groundstation model`")
    try:
        if path.suffix == ".onnx":
            run, told = answering_session(path, as_written=as_written)
            return AnsweringModel(_told(path, told.get(METADATA)), run)
        told_text, arrays = (_safetensors if path.suffix == ".safetensors" else _npz)(path)
        info = _told(path, told_text)
        if network is None and info.network not in shipped():
            raise ModelError(
                f"{path}: holds weights, and {info.network!r} is no shipped network; an .onnx holds both"
            )
        graph = InferGraph.load(network or info.network)
    except (GraphError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(why if isinstance(error, GraphError) else f"{path}: {why}") from None
    if graph.digest.hex() != info.graph:
        raise ModelError(f"{path}: network {info.network!r} is {graph.digest.hex()} here, {info.graph} there")
    weights = {name: arrays[name] for name in graph.shapes if name in arrays}
    if missing := graph.shapes.keys() - weights.keys():
        raise ModelError(f"{path}: {min(missing)} is missing")
    return of_weights(graph, weights, info)


def _told(path: Path, text: str | None) -> ModelInfo:
    if text is None:
        raise ModelError(f"{path}: `groundstation model` did not write it")
    try:
        return msgspec.json.decode(text, type=ModelInfo)
    except msgspec.DecodeError as error:
        raise ModelError(f"{path}: is of another version of this program: {error}") from None


def _npz(path: Path) -> tuple[str | None, dict[str, Floats]]:
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = dict(held)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"{path}: is no npz: {error}") from None
    told = arrays.pop(METADATA, None)
    return None if told is None else str(told), arrays


def _safetensors(path: Path) -> tuple[str | None, dict[str, Floats]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as held:
            told, names = (held.metadata() or {}).get(METADATA), held.keys()
            return told, {name: held.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ModelError(f"{path}: {error}") from None
