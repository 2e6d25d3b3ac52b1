"""How each method trains unless told otherwise: what the fleet's table was measured with.

The paper leaves optimizer, rate and augmentation open; Adam everywhere, images of 28x28, batches of 10.
"""

from __future__ import annotations

from collections.abc import Mapping

from onboard.learn.plan import Method
from onboard.server import Training

PRESETS: Mapping[Method, Training] = {
    # One plain epoch a round (SpaceDML, section IV).
    "fedavg": Training(
        method="fedavg", epochs=1, learning_rate=1e-3, learning_rate_decay=1.0, shift_pixels=0
    ),
    "fedavg-zstd": Training(
        method="fedavg-zstd", epochs=1, learning_rate=1e-3, learning_rate_decay=1.0, shift_pixels=0
    ),
    # Epochs as the paper's: one of pre-training, four of pruning, one each of bases, coordinates and STE.
    "spacedml": Training(method="spacedml", epochs=1, pretrain_epochs=1, bits_up=2.0, bits_down=1.0),
    "spacedml-fast": Training(epochs=8, shift_pixels=2, bits_up=0.08, bits_down=0.25),
}
