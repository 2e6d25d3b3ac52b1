"""A network of one's own, as `groundstation export examples/own_network.py:network` takes it: four
convolutions for images of 64 pixels, of which BatchNorm, ReLU and dropout are traced with the rest."""

from itertools import pairwise

from torch import nn

WIDTHS = (16, 32, 64, 64)


def network(channels: int = 3, classes: int = 10) -> nn.Module:
    layers: list[nn.Module] = []
    for given, wide in pairwise((channels, *WIDTHS)):
        layers += [nn.Conv2d(given, wide, 3, stride=2, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, classes)
    )
