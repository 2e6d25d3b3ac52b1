"""Whether a network computes here what it computes where it came from: a few images, drawn from a seed, go
through both of its graphs with its first weights, and loss and logits are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onboard.learn.graph import GraphError, InferGraph, TrainGraph
from onboard.learn.networks import CHECKED_LOGITS, CheckVector, Network

IMAGES = 2
TOLERANCE = 1e-3  # of the largest logit, or of 1 where that is smaller; two onnxruntimes differ by 1e-6


def check_vector(train: TrainGraph, infer: InferGraph, seed: int = 0) -> CheckVector:
    """Runs both graphs. Raises GraphError, also for numbers that are none."""
    weights = train.initial(seed)
    pixels = np.random.Philox(key=np.array([seed, 2**32], np.uint64)).random_raw(
        IMAGES * int(np.prod(train.input_shape))
    )
    x = (pixels >> np.uint64(40)).astype(np.float32).reshape(IMAGES, *train.input_shape)
    x *= np.float32(2.0**-24)  # exact, in 0..1
    loss = float(train.run(weights, {"x": x, **_labels(train), **_drawn(train, seed)})[0])
    logits = infer.run({name: weights[name] for name in infer.shapes}, {"x": x})[0].astype(np.float64).ravel()
    if not (np.isfinite(loss) and np.isfinite(logits).all()):
        raise GraphError(f"{train.name}: its loss is {loss}, or a logit is no number, on random images")
    chosen = logits[np.linspace(0, logits.size - 1, min(CHECKED_LOGITS, logits.size)).astype(np.int64)]
    return CheckVector(seed=seed, loss=loss, logits=tuple(float(each) for each in chosen))


def check(network: Network, expected: CheckVector | None) -> str:
    """Loads and runs a network; returns why it cannot be used, or nothing. Without an `expected` vector it
    only has to run."""
    try:
        train, infer = TrainGraph.load(network), InferGraph.load(network)
        found = check_vector(train, infer, 0 if expected is None else expected.seed)
    except GraphError as error:
        return str(error)
    if expected is None:
        return ""
    here, there = np.array(found.logits), np.array(expected.logits)
    off = np.inf if here.shape != there.shape else np.abs(here - there).max() / max(1.0, np.abs(there).max())
    if not off <= TOLERANCE:  # nor where it is no number
        return f"{network.name}: its logits are off by {off:.1e} of the largest, at most {TOLERANCE:.0e}"
    is_drawn = train.takes_seed  # onnxruntimes may draw other numbers
    if not is_drawn and not abs(found.loss - expected.loss) <= TOLERANCE * max(1.0, abs(expected.loss)):
        return f"{network.name}: its loss is {found.loss:.6g}, and {expected.loss:.6g} where it came from"
    return ""


def _labels(train: TrainGraph) -> dict[str, NDArray[Any]]:
    """Labels for IMAGES images, as the network's task takes them."""
    file, (_, height, width) = train.network.file, train.input_shape
    if file.task == "classify":
        return {"y": np.arange(IMAGES, dtype=np.int64) % file.outputs}
    if file.task == "segment":
        pixels = np.arange(IMAGES * height * width, dtype=np.int64) % file.outputs
        return {"y": pixels.reshape(IMAGES, height, width)}
    if file.task == "regress":
        return {"y": np.linspace(0, 1, IMAGES * file.outputs, dtype=np.float32).reshape(IMAGES, -1)}
    return {}


def _drawn(train: TrainGraph, seed: int) -> dict[str, NDArray[Any]]:
    return {"seed": np.array(seed, np.int64)} if train.takes_seed else {}
