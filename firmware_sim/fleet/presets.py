"""The default training of each method, as used to measure the fleet's table.

SpaceDML leaves optimizer, rate and augmentation open: Adam and the values below. A batch is 10 images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from onboard.learn.training import Training

# Bases and coordinates are budgeted before coding. At 0.4 bit, header, bit-widths and biases add 2 % and the
# coder saves 6 %: with this factor 1 to 2 % of the budget stay unspent.
ROOM = 1.03
# The paper's server sends an unpruned sketch of one basis on average (SpaceDML, section III-E: I_0 is one).
# At the uplink's 0.54 bit instead, K = 5 with ratio 0.7 ends at 98.6 %, not 99.0 % (seed 0).
SKETCH_DOWN = 1.0

# One plain epoch a round (SpaceDML, section IV).
_FEDAVG = Training(
    method="fedavg", epochs=1, learning_rate=1e-3, learning_rate_decay=1.0, shift_pixels=0, distortion=0.0
)
PRESETS: Mapping[str, Training] = {
    "fedavg": _FEDAVG,
    "fedavg-zstd": msgspec.structs.replace(_FEDAVG, method="fedavg-zstd"),
    # Epochs as in the paper: one of pre-training in the first round, four of pruning, one each of bases,
    # coordinates and STE. At a rate of 1e-3, K = 5 with ratio 0.7 ends 0.4 points lower (one seed).
    "spacedml": Training(
        method="spacedml", epochs=1, pretrain_epochs=1, learning_rate=2e-3, shift_pixels=2, distortion=1.0,
        bits_up=2.0, bits_down=SKETCH_DOWN, max_bases=3,
    ),
    # docs/results/compression.md.
    "spacedml-fast": Training(
        epochs=10, pretrain_epochs=1, learning_rate=3e-3, shift_pixels=2, distortion=1.0, bits_up=0.05,
        bits_down=0.15,
    ),
}  # fmt: skip


def for_bits(prune_ratio: float, bits: float) -> Training:
    """Returns the paper's procedure for at most `bits` a weight, all bytes counted, after pruning by
    `prune_ratio`. No group gets more bases than that takes: each costs time at every step."""
    sketch_bits = ROOM * bits / (1 - prune_ratio)
    return msgspec.structs.replace(
        PRESETS["spacedml"],
        prune_ratio=prune_ratio,
        bits_up=sketch_bits,
        max_bases=math.ceil(sketch_bits),
    )


def as_fedavg(training: Training) -> Training:
    """Returns FedAvg with as many epochs a round (no first pre-training), and equal rate and augmentation."""
    epochs = training.epochs
    if training.method == "spacedml":
        epochs += training.prune_epochs + training.basis_epochs + training.coordinate_epochs
    elif training.method == "spacedml-fast":
        epochs += training.pretrain_epochs
    return msgspec.structs.replace(training, method="fedavg", epochs=epochs)
