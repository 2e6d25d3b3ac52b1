"""Makes first images for a board that has none of its own yet, so that a mission can be tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from groundstation.config import load_mission
from groundstation.setup import SetupError
from onboard.config import load_node
from onboard.data import loading
from onboard.data.images import order, save
from onboard.data.sources import check_source
from onboard.learn.graph import TrainGraph

SEED = 7  # of the shares: any constant does, and it must stay, so that boards differ that get theirs later


def sample(folder: Path, name: str, source: str | None, data_dir: Path | None, images: int) -> str:
    """Writes the share of board `name` of the mission in `folder`; returns a line about it. Each board has
    another share, of `images` at most, whichever is asked for first.

    `source`: train part of it, the mission's own data if None; likewise `data_dir`. Raises ConfigError,
    SetupError, DataError, and OSError where the disk refuses.
    """
    mission = load_mission(folder)
    which, boards = mission.nodes.index(mission.find_node(name)), len(mission.nodes)
    board = load_node(mission.folder / "boards" / name / "node.toml")
    scheme, _, place = board.shard.source.partition(":")
    if scheme != "npz":
        raise SetupError(
            f"{board.path}: data.source = {board.shard.source!r}: must be an npz:PATH to be made"
        )
    if Path(place).exists():
        raise SetupError(f"{place}: is there already, and is not replaced")
    source, data_dir = source or mission.data_source, data_dir or mission.data_folder
    check_source(source)
    shape = TrainGraph.load(mission.rules.model).input_shape
    found = loading.survey(source, shape, folder=data_dir, names=mission.rules.classes)
    if len(found) < boards:
        raise SetupError(f"{source}: {len(found)} images are too few for {boards} boards")
    rows = np.array_split(order(len(found), SEED), boards)[which][:images]
    taken = loading.load(source, shape, folder=data_dir, rows=rows, names=mission.rules.classes)
    save(Path(place), taken)
    return f"{place}: {len(taken)} of the {len(found)} images of {source} to train on"
