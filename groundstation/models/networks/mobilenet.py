"""MobileNetV3-Small for images of 64 pixels (Howard et al., "Searching for MobileNetV3", ICCV 2019, table 2).

The first convolution takes every pixel and not every other, so that the last maps are 4x4, where those of
the paper's 224 pixels are 7x7."""

from __future__ import annotations

from typing import Any

from torch import nn

BLOCKS = (  # kernel, expanded channels, channels, squeeze and excitation, hard swish, stride
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)


class Excitation(nn.Module):  # type: ignore[misc]  # torch is not there for mypy
    """Weighs channels by what their means say (section 5.3), a quarter as many in between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = max(8, (channels // 4 + 4) // 8 * 8)
        self.down, self.up = nn.Conv2d(channels, between, 1), nn.Conv2d(between, channels, 1)

    def forward(self, x: Any) -> Any:
        weight = self.up(nn.functional.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * nn.functional.hardsigmoid(weight)


class InvertedResidual(nn.Module):  # type: ignore[misc]
    """Expands channels, convolves each by itself, and projects them to fewer."""

    def __init__(self, given: int, row: tuple[int, int, int, bool, bool, int]) -> None:
        super().__init__()
        kernel, wide, channels, excites, is_hard, stride = row
        bend = nn.Hardswish if is_hard else nn.ReLU
        layers = [] if wide == given else [*convolution(given, wide, 1), bend()]
        layers += [*convolution(wide, wide, kernel, stride, groups=wide), bend()]
        layers += [Excitation(wide)] if excites else []
        self.layers = nn.Sequential(*layers, *convolution(wide, channels, 1))
        self.is_residual = stride == 1 and given == channels

    def forward(self, x: Any) -> Any:
        found = self.layers(x)
        return x + found if self.is_residual else found


def convolution(given: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Any]:
    layer = nn.Conv2d(given, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(channels)]


def mobilenetv3_small(classes: int) -> Any:
    blocks, given = list[Any](), 16
    for row in BLOCKS:
        blocks.append(InvertedResidual(given, row))
        given = row[2]
    return nn.Sequential(
        nn.Sequential(*convolution(3, 16, 3), nn.Hardswish()),
        *blocks,
        nn.Sequential(*convolution(given, 576, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, classes)),
    )
