"""The table of networks whose graphs come with this package, in `onboard/graphs`. It loads none, so that a
command's help can name them; `learn.graph` runs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Network:
    """What a network takes and tells, as its graphs say it, too."""

    input_shape: tuple[int, int, int]  # channels, height and width of an image
    classes: int


NETWORKS: dict[str, Network] = {
    "lenet5": Network((1, 28, 28), 10),
    "lenet5-rgb": Network((3, 28, 28), 10),
    "resnet20": Network((3, 32, 32), 10),
    "resnet20-64": Network((3, 64, 64), 10),
}
"""Every network by its name, which is that of its two graphs. docs/extending.md says how to add one."""


def network_for(data: str) -> str:
    """The network that is trained on a data source unless another is asked for."""
    return "lenet5-rgb" if data.startswith("eurosat") else "lenet5"


def described() -> str:
    """The names, each with the images that it takes, for a command's help."""
    images = {name: "x".join(map(str, network.input_shape)) for name, network in NETWORKS.items()}
    return ", ".join(f"{name} ({image})" for name, image in images.items())
