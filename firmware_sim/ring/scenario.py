"""A ring's scenario file: options of the command, and a ground station with its passes.

Every mistake in it is one line that names the file, the key and the value.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from firmware_sim.ring.settings import GroundNode
from hw_profiles import load_link
from onboard.config import Text, profile
from onboard.console.toml import read

Moment = Annotated[float, Meta(ge=0, le=1e9)]


class GatewayTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[ground.gateway]]`: a node, and when it sees the ground, in seconds since the start."""

    node: Annotated[int, Meta(ge=1, le=254)]
    passes: Annotated[list[tuple[Moment, Moment]], Meta(min_length=1)]

    def __post_init__(self) -> None:
        overlap = any(before[1] > after[0] for before, after in pairwise(self.passes))
        if overlap or any(rise >= set_ for rise, set_ in self.passes):
            raise ValueError("passes: each is [rise, set], one after the other")


class GroundTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[ground]`: the station's link profile and its gateways."""

    link: Text
    gateway: Annotated[list[GatewayTable], Meta(min_length=1)]


class ScenarioFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file, as written. `ring`: options of `firmware-sim ring` by their names."""

    ring: dict[str, Any] = msgspec.field(default_factory=dict)
    ground: GroundTable | None = None


def load(path: Path) -> tuple[dict[str, Any], GroundNode | None]:
    """Options by name, and the ground. Raises ConfigError."""
    file = read(path, ScenarioFile)
    if file.ground is None:
        return file.ring, None
    link = profile(path, "ground.link", file.ground.link, load_link, path.resolve().parent)
    passes = {gateway.node: tuple(gateway.passes) for gateway in file.ground.gateway}
    return file.ring, GroundNode(link, passes)
