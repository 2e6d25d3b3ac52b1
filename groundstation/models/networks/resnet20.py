"""ResNet-20 with BatchNorm: He et al., "Deep residual learning for image recognition", CVPR 2016, 4.2.

A convolution, three stages of three blocks with 16, 32 and 64 channels, the mean over all places, one dense
layer; shortcuts without parameters (option A: every other place, zeros for the new channels). 269,722
parameters, for 3x32x32 as in the paper as well as for 3x64x64, and 1,376 running statistics."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.functional import pad, relu

CHANNELS = (16, 32, 64)
BLOCKS = 3  # n per stage, for 6 n + 2 layers


class ResNet20(nn.Module):  # type: ignore[misc]  # torch is not there for mypy
    """Images (N, 3, side, side) -> logits (N, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(3, CHANNELS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS[0]),
        )
        given = CHANNELS[0]
        for stage, wide in enumerate(CHANNELS, 1):
            blocks = [Block(given, wide), *(Block(wide, wide) for _ in range(BLOCKS - 1))]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            given = wide
        self.fc = nn.Linear(given, classes)

    def forward(self, x: Any) -> Any:
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):  # type: ignore[misc]
    """Two convolutions and the shortcut around them; with more channels, it halves each side."""

    def __init__(self, given: int, wide: int) -> None:
        super().__init__()
        self.new, self.stride = wide - given, 2 if wide > given else 1
        self.conv1, self.bn1 = nn.Conv2d(given, wide, 3, self.stride, 1, bias=False), nn.BatchNorm2d(wide)
        self.conv2, self.bn2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)

    def forward(self, x: Any) -> Any:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.new:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return relu(y + x)
