"""`groundstation model`: writes what a round made of the boards' answers as a file that others can use.

The file is checked before it gets its name: what it answers on random images is what the boards compute, from
their graph with the weights beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from groundstation.config import Mission
from groundstation.models.with_weights import with_weights
from groundstation.store.store import Store
from onboard.codec.model import BadPack
from onboard.codec.pack import unpack
from onboard.inference.model import (
    METADATA,
    WRITTEN,
    ModelError,
    ModelInfo,
    network_info,
    of_file,
    of_weights,
    weights_digest,
)
from onboard.learn.federated.local import apply_delta
from onboard.learn.graph import GraphError, InferGraph, Parameters
from onboard.learn.networks import INFER, Network
from onboard.storage.files import replacing

CHECKED_IMAGES, CHECK_SEED = 16, 5
TOLERANCE = 1e-5
"""Of the difference between a logit of the file, run as it is written, and the boards', by the largest logit.
Weights that a runtime folds together are rounded once more, and a deep network whose statistics are young
multiplies that: the logits of a MobileNetV3 move by 4e-4 then, and by 4e-5 if its images move by 1e-7."""


@dataclass(frozen=True, eq=False)
class RoundModel:
    """The model that a round made, unpacked."""

    info: ModelInfo
    graph: InferGraph
    weights: Parameters


def round_model(mission: Mission, store: Store, number: int | None, *, best: bool = False) -> RoundModel:
    """Unpacks the model of round `number`, of the latest by default, or of the `best`. Raises ModelError,
    StoreError."""
    entry, kept = store.mission(), store.models()
    if entry is None or not kept:
        raise ModelError(f"{mission.database}: no round is closed yet: there is no model")
    if best:
        number = _best(mission, store)
    number = number or kept[-1]
    packed, row = store.model(number), store.round(number)
    if packed is None or row is None:
        raise ModelError(f"round {number}: its model is not there; there are those of {_listed(kept)}")
    try:
        graph = InferGraph.load(mission.model)
        if graph.digest != entry["graph"]:
            raise ModelError(
                f"{mission.path}: mission.model = {mission.model!r}: is {graph.digest.hex()}, and the "
                f"mission was begun with {entry['graph'].hex()}"
            )
        moved = unpack(packed, graph.layout).reconstruct()
    except (GraphError, BadPack) as error:
        raise ModelError(str(error)) from None
    classes = msgspec.json.decode(entry["classes"] or "[]", type=tuple[str, ...])
    info = network_info(
        graph.network, mission=entry["id"].hex(), round=number, digest=weights_digest(packed),
        metric=graph.objective.metric.key, value=row.accuracy, loss=row.loss,
        **({"classes": classes} if classes else {}),
    )  # fmt: skip
    return RoundModel(info, graph, apply_delta(graph.initial(entry["seed"]), moved))


def _best(mission: Mission, store: Store) -> int:
    """Returns the first round with the best value of the mission's metric."""
    values = {row.number: row.accuracy for row in store.rounds() if row.accuracy is not None}
    best = Network.load(mission.model).objective.metric.best(values.values())
    return next(number for number, value in values.items() if value == best)


def write(model: RoundModel, path: Path) -> dict[str, Any]:
    """Writes the model in the form that the file's name says, and returns what was written. Raises ModelError
    for another name or a file that does not answer as the boards do; OSError."""
    if path.suffix not in WRITTEN:
        raise ModelError(f"--out {path}: must end in {', '.join(WRITTEN)}")
    told = msgspec.json.encode(model.info).decode()
    new = path.with_name(f"{path.stem}.new{path.suffix}")
    try:
        with replacing(new) as file:
            if path.suffix == ".onnx":
                everything = {**model.graph.frozen, **model.weights}
                file.write(with_weights(model.graph.network.part(INFER), everything, {METADATA: told}))
            elif path.suffix == ".npz":
                arrays: dict[str, Any] = {**model.weights, METADATA: np.array(told)}
                np.savez(file, allow_pickle=False, **arrays)
            else:
                from safetensors.numpy import save

                file.write(save(dict(model.weights), {METADATA: told}))
        off = _largest_difference(model, new)
        if not off <= TOLERANCE:
            raise ModelError(f"its answers are {off:.2g} of a logit off the boards'; it is not written")
        new.replace(path)
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # by the name that is known
    finally:
        new.unlink(missing_ok=True)
    about = msgspec.to_builtins(model.info)
    return {"file": str(path), "bytes": path.stat().st_size, "difference": off, **about}


def _largest_difference(model: RoundModel, path: Path) -> float:
    """Compares the written file with the boards' graph on random images, by the largest logit."""
    drawn = np.random.Philox(CHECK_SEED).random_raw(CHECKED_IMAGES * int(np.prod(model.info.input)))
    x = (drawn >> np.uint64(56)).astype(np.uint8).reshape(CHECKED_IMAGES, *model.info.input)
    ours = of_weights(model.graph, model.weights, model.info).logits(x)
    theirs = of_file(path, model.graph.network, as_written=True).logits(x)
    return float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(ours).max())))


def _listed(numbers: list[int]) -> str:
    return (
        f"rounds {', '.join(map(str, numbers))}"
        if len(numbers) < 9
        else f"{len(numbers)} rounds from {numbers[0]} to {numbers[-1]}"
    )
