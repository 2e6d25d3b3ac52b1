"""An autoencoder for images of 64 pixels. What it cannot say in 128 numbers it gets wrong, so that its error
tells images that are unlike those of its training (Hinton and Salakhutdinov, Science 313, 2006)."""

from __future__ import annotations

from typing import Any

from torch import nn

WIDTHS, CODE = (16, 32, 64), 128


def autoencoder(channels: int, side: int) -> Any:
    """Images (N, channels, side, side) in 0..1 -> the same; `side` is a multiple of 8."""
    deep = side // 2 ** len(WIDTHS)
    numbers = WIDTHS[-1] * deep * deep
    down, up = list[Any](), list[Any]()
    for given, wide in zip((channels, *WIDTHS[:-1]), WIDTHS, strict=True):
        down += [nn.Conv2d(given, wide, 3, 2, 1), nn.SiLU()]
        up = [nn.ConvTranspose2d(wide, given, 4, 2, 1), nn.SiLU(), *up]
    return nn.Sequential(
        nn.Sequential(*down, nn.Flatten(), nn.Linear(numbers, CODE)),
        nn.Sequential(nn.Linear(CODE, numbers), nn.Unflatten(1, (WIDTHS[-1], deep, deep)), *up[:-1]),
        nn.Sigmoid(),
    )
