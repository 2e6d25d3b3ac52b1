"""A small U-Net (Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation",
MICCAI 2015): three halvings, 16 channels at the top, with BatchNorm and borders of zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WIDTHS = (16, 32, 64, 128)


class UNet(nn.Module):  # type: ignore[misc]  # torch is not there for mypy
    """Images (N, channels, H, W), sides multiples of 8 -> logits (N, classes, H, W)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        given = (channels, *WIDTHS[:-1])
        self.down = nn.ModuleList(twice(*pair) for pair in zip(given, WIDTHS, strict=True))
        pairs = list(zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))  # (128, 64), (64, 32), (32, 16)
        self.widen = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, 2) for deep, wide in pairs)
        self.up = nn.ModuleList(twice(2 * wide, wide) for _, wide in pairs)
        self.head = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, x: Any) -> Any:
        kept = list[Any]()
        for layer in self.down:
            x = layer(nn.functional.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for widen, layer, beside in zip(self.widen, self.up, kept[-2::-1], strict=True):
            x = layer(torch.cat([widen(x), beside], 1))
        return self.head(x)


def twice(given: int, channels: int) -> Any:
    """Returns two convolutions, each with BatchNorm and ReLU."""
    layers = list[Any]()
    for before in (given, channels):
        layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)
