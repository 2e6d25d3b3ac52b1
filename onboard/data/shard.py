"""Where a node's own images are, as a value that a process can be told; reading them takes numpy, this file
none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

import msgspec

from onboard.config import NodeConfig, OwnConfig
from onboard.data.levels import Levels

if TYPE_CHECKING:
    from onboard.data.inspection import Inspection
    from onboard.data.loading import Images


class ShardPart(TypedDict):
    """Where in its source a node's images are."""

    folder: str | None
    part: Literal["own"]
    rows: range | None


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """The images of one node, as `loading.load` takes them; `rows`: the first, and the one after the
    last; `classes`: the mission's, by name; `levels`: of the mission's test data; `tasked`: whether
    tasks will say what the mission's classes are; `budget_bytes`: what the images may take at most."""

    source: str
    folder: str | None
    shape: tuple[int, int, int]
    rows: tuple[int, int] | None
    classes: tuple[str, ...] | None = None
    levels: Levels | None = None
    tasked: bool = False
    budget_bytes: int | None = None

    def place(self) -> ShardPart:
        """Which part of the source they are, as `onboard.data.loading` takes it."""
        rows = None if self.rows is None else range(*self.rows)
        return {"folder": self.folder, "part": "own", "rows": rows}


def shard_of(config: OwnConfig) -> Shard:
    """What the node's configuration says."""
    rows = config.data_rows
    return Shard(
        source=config.data_source,
        folder=str(config.data_folder) if config.data_folder else None,
        shape=config.data_shape,
        rows=(rows.start, rows.stop) if rows is not None else None,
        classes=config.data_classes,
        levels=config.data_levels,
        tasked=isinstance(config, NodeConfig),
        budget_bytes=config.memory_bytes,
    )


def inspection_of(shard: Shard, classes: int | None = None) -> Inspection:
    """Looks at them; `classes`: how many the model tells apart, where that is known. Raises DataError."""
    from onboard.data.inspection import inspect

    return inspect(shard, classes)


def images_of(shard: Shard) -> Images:
    """Reads them, all that are not set apart for a test. Raises DataError."""
    from onboard.data import loading

    return loading.load(shard.source, shard.shape, names=shard.classes, **shard.place())
