"""Where a node's own images are, as a value that a process can be told; reading them takes numpy, this file
none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from onboard.config import OwnConfig

if TYPE_CHECKING:
    from onboard.data import Images


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """The images of one node, as `onboard.data.load` takes them; `rows`: the first, and the one after the
    last."""

    source: str
    folder: str | None
    shape: tuple[int, int, int]
    rows: tuple[int, int] | None


def shard_of(config: OwnConfig) -> Shard:
    """What the node's configuration says."""
    rows = config.data_rows
    return Shard(
        source=config.data_source,
        folder=str(config.data_folder) if config.data_folder else None,
        shape=config.data_shape,
        rows=(rows.start, rows.stop) if rows is not None else None,
    )


def images_of(shard: Shard) -> Images:
    """Reads them, the training part. Raises DataError."""
    from onboard import data

    rows = None if shard.rows is None else range(*shard.rows)
    return data.load(shard.source, shard.shape, folder=shard.folder, part="train", rows=rows)
