"""Running statistics of a merged model, measured on images.

Normalization in training sees a batch's own mean and variance, and in answering what training has kept of
them. The mean of several boards' statistics is not what the mean of their weights has: weights that moved
apart cancel, and what they compute varies less (Jordan et al., "REPAIR: renormalizing permuted activations
for interpolation repair", ICLR 2023). ResNet-20 from random weights is right about 16 % of EuroSAT after one
round of five boards in float32 with the boards' mean statistics, and about 42 % with its own. So whoever
merges measures them, as Wu and Johnson do ("Rethinking 'batch' in BatchNorm", 2021, section 3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onboard.codec.layout import Floats, Weights
from onboard.data.images import Images, hold_out
from onboard.learn.graph import TrainGraph, prepare, prepare_labels

BATCH = 10  # as in training: batches of another size vary by another part of what all images do
SHARE = 0.2  # of the images that a model is judged by
# ResNet-20 at 64 pixels after six rounds of FedAvg: right about 58 % of 300 images by the boards' statistics,
# 21 and 43 % with those of two images, 53 and 63 % of ten, 62 and 69 % of 20, 71 and 72 % of 40,
# 70 % of 80 and 71 % of 200.
LEAST_IMAGES, MOST_IMAGES = 40, 200


def parted(graph: TrainGraph, images: Images) -> tuple[Images, Images | None]:
    """Splits images that judge a model into those that still do, and those that its statistics are measured
    on: about a fifth, but LEAST_IMAGES to MOST_IMAGES, the same every time. None for a network without
    running statistics, and of images of which more than half would measure."""
    wanted = min(max(SHARE * len(images), LEAST_IMAGES), MOST_IMAGES)
    if not graph.buffers or wanted > len(images) / 2:
        return images, None
    return hold_out(images, wanted / len(images))


def measured(graph: TrainGraph, weights: Weights, images: Images) -> Iterator[dict[str, Floats]]:
    """Yields the statistics that a model of these weights has on images, by name, after each batch; the last
    are of all images, by their batches' mean. A buffer that no step draws to its images' value stays as it
    is. Raises GraphError."""
    names = graph.buffers
    empty, full = ({**weights, **{n: np.full_like(weights[n], each) for n in names}} for each in (0, 1))
    kept, sums = dict[str, Floats](), {name: np.zeros(weights[name].shape) for name in names}
    for start in range(0, len(images), BATCH):
        end = start + BATCH
        x, y = prepare(images.x[start:end]), prepare_labels(images.y[start:end])
        _, _, after = graph.step(empty, x, y)
        if not start:  # next = kept * last + (1 - kept) * batch
            _, _, beside = graph.step(full, x, y)
            kept = {name: beside[name] - after[name] for name in names}
        found = {}
        for name in names:
            sums[name] += len(x) * after[name].astype(np.float64)
            moves = (kept[name] >= 0) & (kept[name] < 1)
            batch = sums[name] / (start + len(x)) / np.where(moves, 1 - kept[name], 1)
            found[name] = np.where(moves & np.isfinite(batch), batch, weights[name]).astype(np.float32)
        yield found
