"""What NODE.toml says of images that are answered as they come: `[infer]` and `[downlink]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(min_length=1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class InferSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With this table `onboard run` answers the images of a folder, as they come, by the model that the
    ground has deployed."""

    watch: Text
    """Folder in which images appear, or folders below it; seen from this file. An image is taken once its
    size and time have not changed from one look to the next."""
    every_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 5.0
    """Time between two looks into the folder."""
    confidence: Share = 0.6
    """Images with less confidence are marked for labelling. Of a model that reconstructs: those whose error
    is above that of 99 % of the images that the node trains on."""
    memory_mb: Annotated[int, Meta(ge=16, le=2**24)] = 96
    """Memory that the process which answers may fill with data. Training has that much less of
    `budget.memory_mb`."""
    keep_mb: Annotated[int, Meta(ge=1, le=2**16)] = 4
    """Answers that are kept; beyond it the oldest go."""


class DownlinkSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which answered images travel to the ground, after all other traffic. Needs `[infer]`."""

    bytes_per_day: Annotated[int, Meta(ge=4096, le=2**50)]
    """Quota of bytes of answers and images in any 24 hours of running, without framing."""
    classes: Annotated[tuple[Text, ...], Meta(min_length=1)] | None = None
    """Names of the classes that are wanted. Left out: all."""
    confidence: tuple[Share, Share] = (0.0, 1.0)
    """Least and largest confidence of those that are wanted. Answers without one are all wanted."""
    images: bool = False
    """Whether the image's file travels with its answer."""

    def __post_init__(self) -> None:
        if self.confidence[0] > self.confidence[1]:
            raise ValueError(f"confidence: must be [least, largest], got {list(self.confidence)}")


class DownlinkState(msgspec.Struct, array_like=True, frozen=True):
    """What a node keeps of its downlink. `done`: the number of the last answer that was delivered or passed
    over; `left_bytes`: of the quota, then, negative before the first."""

    done: int = 0
    left_bytes: float = -1.0


class NodeFolder(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node's model is: in its folder `state`, of a network there or in `beside`, the folder of its
    NODE.toml. `classes` are the mission's, where that has them."""

    state: str
    beside: str
    classes: tuple[str, ...] | None = None


class InferConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Both tables, checked, with the folder's path resolved."""

    watch: Path
    every_s: float
    confidence: float
    memory_bytes: int
    keep_bytes: int
    downlink: DownlinkSection | None = None
