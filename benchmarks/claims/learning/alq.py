"""ALQ in one place, as its own paper has it: LeNet-5 on all of MNIST to 99.1 % in 0.40 bit a weight or less.

Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020, table 2. The code is the
board's: `learn.local` by the method "spacedml", on all 60,000 images in batches of 50 instead of one board's
share, whole weights instead of differences (the origin is 0), and what is judged is what the bytes of its
update rebuild. The paper has no augmentation; rate and epochs here are ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import click
import numpy as np

from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.codec.layout import Weights
from onboard.codec.pack import pack, unpack
from onboard.codec.quantized import Quantized
from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.federated.local import LocalTraining
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.scoring import evaluate
from onboard.learn.training import BoardTraining, Plan

ACCURACY, BITS = 99.1, 0.40

PLAN = Plan(
    training=BoardTraining(
        method="spacedml", pretrain_epochs=4, prune_epochs=4, basis_epochs=1, coordinate_epochs=1, epochs=4,
        batch_size=50, learning_rate=1e-3, bits_up=2.0, max_bases=2, prune_ratio=0.81, shift_pixels=0,
        distortion=0.0,
    ),
    seed=0, round=1, node=0,
)  # fmt: skip
QUICK_IMAGES = 6000  # a tenth

OPTIONS = (
    click.Option(["--quick"], is_flag=True, help="A tenth of the images, nothing promised of the accuracy."),
)


def measure(tell: ProgressLine, *, quick: bool) -> list[Row]:
    """Trains and judges; takes some minutes, or half a minute with `quick`. Raises DataError."""
    shape = (1, 28, 28)
    images = loading.load("mnist", shape, part="train", rows=QUICK_IMAGES if quick else None)
    test = loading.load("mnist", shape, part="test")
    graph = TrainGraph.load("lenet5")
    start = graph.initial(PLAN.seed)
    nothing = {name: np.zeros_like(values) for name, values in start.items()}
    training = LocalTraining(graph, nothing, start, images.x, images.y, PLAN)
    log = list(_epochs(training, tell))
    packed = pack(training.result())
    model = unpack(packed, graph.layout)
    assert isinstance(model, Quantized)
    tell("judging what the bytes rebuild")
    accuracy = 100 * _accuracy(model.reconstruct(), test)
    return [
        *(Row(f"loss after epoch {epoch}, {phase}", loss, "nats") for epoch, phase, loss in log),
        Row("bits a weight by the paper's count", model.mean_width, "bits", BITS),
        Row("bits a weight, every byte counted", 8 * len(packed) / graph.layout.parameters, "bits", BITS),
        Row("all of the model", len(packed), "bytes"),
        Row("accuracy", accuracy, "%", None if quick else ACCURACY, at_least=True),
    ]


def _epochs(training: LocalTraining, tell: ProgressLine) -> Iterator[tuple[int, str, float]]:
    """Runs the training; each epoch's number, phase and mean loss."""
    started_s = time.monotonic()
    for step in training.steps():
        phase = PLAN.phases[step.epoch - 1].value
        done = (step.epoch - 1 + step.batch / step.batches) / step.epochs
        left_s = (time.monotonic() - started_s) * (1 - done) / done
        tell(f"epoch {step.epoch} of {step.epochs}, {phase}", left_s)
        if step.ends_epoch:
            yield step.epoch, phase, training.loss


def _accuracy(weights: Weights, test: Images) -> float:
    *_, score = evaluate(InferGraph.load("lenet5"), weights, test.x, test.y)  # the last covers all images
    return score.value
