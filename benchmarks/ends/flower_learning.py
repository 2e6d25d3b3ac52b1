"""LeNet-5 in torch, trained as our boards train it: same network, images, variations, optimizer and order.

Torch and numpy only: it travels in the Flower app, and Flower's interpreter runs it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

ROTATION_RAD, SCALE, SHEAR, SHIFT_PIXELS = (
    np.deg2rad(15.0),
    0.15,
    0.1,
    1.0,
)  # `onboard.learn.augment`, [train]
BATCH = 10
JUDGED_AT_ONCE = 1000


class TorchLeNet(nn.Module):
    """20-50-500-10, with the parameters' names of `onboard/models/lenet5`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images float32 (N, 1, 28, 28) in 0..1 to logits (N, 10)."""
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        logits: torch.Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return logits


def train(
    model: TorchLeNet, images: npt.NDArray[Any], labels: npt.NDArray[Any], epochs: int, rate: float, seed: int
) -> float:
    """Epochs of Adam on images uint8 (N, 1, 28, 28) with labels int64 (N); returns the last epoch's loss."""
    draw = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    loss_sum = 0.0
    for _ in range(epochs):
        loss_sum = 0.0
        for rows in torch.from_numpy(draw.permutation(len(x))).split(BATCH):
            loss = functional.cross_entropy(model(varied(x[rows], draw)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(rows)
    return loss_sum / len(x)


def varied(x: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Images uint8 (N, C, H, W), each under a random affine map, as float32 in 0..1: the maps are those that
    `onboard.learn.augment` draws from the same generator."""
    count, _, height, width = x.shape
    rotation, shear = draw.uniform(-1, 1, (2, count)) * [[ROTATION_RAD], [SHEAR]]
    tall, wide = 1 + draw.uniform(-1, 1, (2, count)) * SCALE
    down, right = draw.uniform(-SHIFT_PIXELS, SHIFT_PIXELS, (2, count))
    # torch's maps take (x, y), in halves of the way from the first pixel's centre to the last one's.
    w, h = width - 1, height - 1
    across = [np.cos(rotation) * wide, np.sin(rotation) * wide * h / w, 2 * right / w]
    along = [(shear - np.sin(rotation) * tall) * w / h, np.cos(rotation) * tall, 2 * down / h]
    maps = torch.from_numpy(np.stack([np.stack(across, 1), np.stack(along, 1)], 1).astype(np.float32))
    places = functional.affine_grid(maps, list(x.shape), align_corners=True)
    return functional.grid_sample(x.float() / 255, places, padding_mode="reflection", align_corners=True)


def accuracy(model: TorchLeNet, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Share of the images uint8 (N, 1, 28, 28) that the model gives their label."""
    right = 0
    with torch.inference_mode():
        for x, y in zip(
            torch.from_numpy(images).split(JUDGED_AT_ONCE),
            torch.from_numpy(labels).split(JUDGED_AT_ONCE),
            strict=True,
        ):
            right += int((model(x.float() / 255).argmax(1) == y).sum())
    return right / len(labels)
