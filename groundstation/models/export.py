"""A model leaves for the boards only when its graphs compute what torch's autograd computes.

A board trusts a training graph blindly: a wrong gradient still lowers the loss for a while, and nobody on the
ground sees which operator lied. (torch.onnx 2.13 translates BatchNorm in training mode wrongly without a
word.) So every pair of graphs is run by onnxruntime beside the torch network they stand for, and one above
`TOLERANCE` is not written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onboard.learn.graph import InferGraph, Parameters, TrainGraph, initial

TOLERANCE = 1e-5  # of the largest value in a tensor; float32 in another order of summation gives some 3e-6
BATCH_SIZES = (1, 2, 7, 10, 33)  # one image, odd ones, the papers' batch, and one over 32

Reference = Callable[[Mapping[str, Any], Any], Any]  # torch parameters and images -> logits


class ExportError(RuntimeError):
    """A graph differs from its torch network; it was not written."""


def write(
    folder: Path, name: str, train: onnx.ModelProto, infer: onnx.ModelProto, reference: Reference
) -> float:
    """Check both graphs, then put `NAME.train.onnx` and `NAME.infer.onnx` into `folder`.

    Returns the largest error found, relative as in `disagreement`. Raises `ExportError`, and leaves whatever
    the folder held, when an error is above `TOLERANCE` for any of `BATCH_SIZES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = {use: Path(scratch) / f"{name}.{use}.onnx" for use in ("train", "infer")}
        built["train"].write_bytes(train.SerializeToString(deterministic=True))
        built["infer"].write_bytes(infer.SerializeToString(deterministic=True))
        error = check(TrainGraph.load(built["train"]), InferGraph.load(built["infer"]), reference)
        for path in built.values():
            path.replace(folder / path.name)
    return error


def check(train: TrainGraph, infer: InferGraph, reference: Reference) -> float:
    """The largest disagreement over `BATCH_SIZES`; `ExportError` names the first one above `TOLERANCE`."""
    if train.shapes != infer.shapes or train.input_shape != infer.input_shape:
        raise ExportError(f"{train.name}: the train and infer graphs take different parameters or images")
    worst = 0.0
    for batch in BATCH_SIZES:
        for what, error in disagreement(train, infer, reference, batch, seed=batch).items():
            if not error <= TOLERANCE:  # so that NaN fails too
                raise ExportError(
                    f"{train.name}: {what} is off by {error:.1e} at batch {batch}; limit {TOLERANCE}"
                )
            worst = max(worst, error)
    return worst


def disagreement(
    train: TrainGraph, infer: InferGraph, reference: Reference, batch: int, seed: int
) -> dict[str, float]:
    """Error of the loss, the logits and every gradient on one random batch.

    For a tensor the error is max |ours - autograd's| / max |autograd's|, without a unit. Half of each
    image is blank, as around a drawn digit, so that the four places under a maximum tie.
    """
    rng = np.random.default_rng(seed)
    x = rng.random((batch, *train.input_shape), dtype=np.float32)
    x[..., x.shape[-1] // 2 :] = 0
    y = rng.integers(0, train.classes, batch)
    parameters = _with_biases(initial(train.shapes, seed), rng)
    expected = _autograd(reference, parameters, x, y)
    loss, gradients = train.step(parameters, x, y)
    ours = {"loss": np.array(loss), "logits": infer.logits(parameters, x), **gradients}
    return {what: _relative(ours[what], value) for what, value in expected.items()}


def _with_biases(parameters: Parameters, rng: np.random.Generator) -> dict[str, Any]:
    """Zero biases would hide an error in how they are used."""
    return {
        name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) if value.ndim < 2 else value
        for name, value in parameters.items()
    }


def _autograd(reference: Reference, parameters: Parameters, x: Any, y: Any) -> dict[str, Any]:
    import torch

    leaves = {name: torch.from_numpy(value).clone().requires_grad_() for name, value in parameters.items()}
    logits = reference(leaves, torch.from_numpy(x))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    found = {"loss": loss, "logits": logits, **dict(zip(leaves, gradients, strict=True))}
    return {what: value.detach().numpy() for what, value in found.items()}


def _relative(ours: Any, expected: Any) -> float:
    if ours.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max())
    return float(np.abs(ours - expected).max()) / max(scale, float(np.finfo(np.float32).tiny))
