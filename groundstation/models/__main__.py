"""Rebuilds the shipped graphs, `python -m groundstation.models`, and writes only what autograd confirms.

A board cannot check a training graph: with a wrong gradient the loss still falls for a while, and nobody sees
which operator is wrong. (torch.onnx 2.13 silently mistranslates BatchNorm in training mode.) So onnxruntime
runs every pair of graphs beside its torch network in float64, and no pair with an error above `TOLERANCE` is
written.

A ReLU has no gradient at 0. A unit that rounding moves across this kink changes a deep network's gradients by
1e-3 and more, torch's in float32 too; so batches are drawn until all units are at least `KINK` away."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from groundstation.models import lenet5, resnet20
from groundstation.models.folder import write_network
from onboard.learn.graph import InferGraph, Parameters, TrainGraph, initial
from onboard.learn.networks import INFER, SHIPPED, TRAIN, NetworkFile, PartName

BUILDERS = {"lenet5": lenet5, "lenet5-rgb": lenet5, "resnet20": resnet20, "resnet20-64": resnet20}
"""The module that builds the graphs of each network that ships."""
BATCHES = {"resnet20": (1, 2, 3), "resnet20-64": (1, 2)}
"""Batch sizes whose gradients are checked, where not BATCH_SIZES: with more images, a unit is at its kink."""
TOLERANCE = 1e-5  # of a tensor's largest value; another order of float32 summation gives about 3e-6
BATCH_SIZES = (1, 2, 7, 10, 33)  # one image, odd ones, the papers' batch, and one over 32
KINK = 2e-6  # float32 moved ResNet-20's units by 1e-6 at most
DRAWS = 100
Reference = Callable[..., Any]
"""The same network in torch: (parameters and running statistics, images, training=) -> logits (N, classes).
Training normalizes by the batch, and updates the running statistics in place."""


class ExportError(click.ClickException):
    """A graph that differs from its torch network and was not written."""


@click.command(
    help="Rebuild every network that ships. Example: python -m groundstation.models --out onboard/models"
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=SHIPPED, help="Folder to write into.", show_default=True
)
def main(out: Path) -> None:
    """Builds, checks and writes each model; exits with 1 where a gradient is not autograd's."""
    for name, network in BUILDERS.items():
        plan = network.plan(name)
        about = NetworkFile(
            name=name, task="classify", input=plan.input_shape, outputs=plan.classes,
            forward_macs=plan.forward_macs, files={},
        )  # fmt: skip
        parts: dict[PartName, bytes] = {
            TRAIN: network.train_graph(name).SerializeToString(deterministic=True),
            INFER: network.infer_graph(name).SerializeToString(deterministic=True),
        }
        error = write(out / name, about, parts, network.reference, BATCHES.get(name, BATCH_SIZES))
        click.echo(f"{name}: largest gradient error {error:.1e} of the largest gradient")


def write(
    folder: Path, about: NetworkFile, parts: Mapping[PartName, bytes], reference: Reference,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> float:  # fmt: skip
    """Checks both graphs, then writes the network's folder. Returns the largest error. Raises ExportError,
    and leaves the folder as it was, if that is above `TOLERANCE`."""
    with tempfile.TemporaryDirectory() as scratch:
        write_network(Path(scratch), about, parts)
        ours, answers = TrainGraph.load(Path(scratch)), InferGraph.load(Path(scratch))
    if ours.shapes != answers.shapes:
        raise ExportError(f"{about.name}: the train and infer graphs take different parameters")
    worst = 0.0
    for batch in batch_sizes:
        for what, error in disagreement(ours, answers, reference, batch, seed=batch).items():
            if not error <= TOLERANCE:  # so that NaN fails too
                raise ExportError(
                    f"{about.name}: {what} is off by {error:.1e} at batch {batch}; limit {TOLERANCE}"
                )
            worst = max(worst, error)
    write_network(folder, about, parts)
    return worst


def disagreement(
    train: TrainGraph, infer: InferGraph, reference: Reference, batch: int, seed: int
) -> dict[str, float]:
    """Returns the errors of loss, logits, gradients and next running statistics on one random batch.

    A tensor's error is max |ours - autograd's| / max |autograd's|. Half of each image is blank, as around a
    drawn digit, so that the four places under a maximum tie; but not with normalization, in whose sums many
    equal values cancel (float32 is then off by 5e-5, torch's too)."""
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        x = rng.random((batch, *train.input_shape), dtype=np.float32)
        if not train.buffers:
            x[..., x.shape[-1] // 2 :] = 0
        y = rng.integers(0, train.classes, batch)
        parameters = initial(train.shapes, seed)
        for name, value in parameters.items():
            if value.ndim < 2:  # biases of zero would hide an error in how they are used
                parameters[name] = value + rng.normal(0, 0.1, value.shape).astype(np.float32)
        if _nearest_kink(reference, parameters, x) >= KINK:
            break
    else:
        raise ExportError(f"{train.name}: {DRAWS} batches of {batch} all have units at their kinks")
    expected = _autograd(reference, parameters, train.buffers, x, y)
    loss, gradients, buffers = train.step(parameters, x, y)
    ours = {"loss": np.array(loss), "logits": infer.logits(parameters, x), **gradients, **buffers}
    # A bias before a normalization has no gradient but rounding, which is measured against the others'.
    largest = max(float(np.abs(expected[name]).max()) for name in gradients)
    floors = dict.fromkeys(gradients, 0.001 * largest)
    return {what: _relative(ours[what], value, floors.get(what, 0.0)) for what, value in expected.items()}


def _autograd(
    reference: Reference, parameters: Parameters, buffers: Collection[str], x: Any, y: Any
) -> dict[str, Any]:
    import torch

    tensors, images = _doubles(parameters, x)
    answered = reference(tensors, images, training=False)
    leaves = {name: value.requires_grad_() for name, value in tensors.items() if name not in buffers}
    loss = torch.nn.functional.cross_entropy(reference(tensors, images, training=True), torch.from_numpy(y))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    found = {"loss": loss, "logits": answered, **dict(zip(leaves, gradients, strict=True))}
    found |= {name: tensors[name] for name in buffers}
    return {what: value.detach().numpy() for what, value in found.items()}


def _nearest_kink(reference: Reference, parameters: Parameters, x: Any) -> float:
    """Returns the smallest magnitude among the inputs of all ReLUs."""
    import torch
    from torch.overrides import TorchFunctionMode

    near = [float("inf")]

    class Watch(TorchFunctionMode):  # type: ignore[misc]  # torch is not there for mypy
        def __torch_function__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if call is torch.nn.functional.relu:
                near.append(float(args[0].abs().min()))
            return call(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        reference(*_doubles(parameters, x), training=True)
    return min(near)


def _doubles(parameters: Parameters, x: Any) -> tuple[dict[str, Any], Any]:
    import torch

    tensors = {name: torch.from_numpy(value).double() for name, value in parameters.items()}
    return tensors, torch.from_numpy(x).double()


def _relative(ours: Any, expected: Any, floor: float) -> float:
    if ours.shape != expected.shape:
        return float("inf")
    scale = max(float(np.abs(expected).max()), floor)
    return float(np.abs(ours - expected).max()) / max(scale, float(np.finfo(np.float32).tiny))


if __name__ == "__main__":
    main()
