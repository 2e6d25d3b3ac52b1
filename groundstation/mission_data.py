"""A mission's images: the test data, its classes, and first images for a board that has none yet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from groundstation.config import load_mission
from onboard.config import load_node
from onboard.data import labels, loading
from onboard.data.images import DataError, Images, MissingDataError, order, save
from onboard.data.inspection import Inspection, Levels
from onboard.data.loading import Survey
from onboard.data.sources import KNOWN_CLASSES, check_source
from onboard.learn.graph import TrainGraph
from onboard.learn.objectives import Objective

SEED = 7  # of the shares; it must never change: boards that get theirs later must differ


def _look(
    source: str, graph: TrainGraph, folder: str | Path | None = None, classes: labels.Names | None = None
) -> Survey:
    names = classes or _told_by(graph)
    found = loading.survey(
        source, graph.input_shape, folder=folder, part="test", objective=graph.objective, names=names
    )
    if not found.named and names is None and found.counts.get("0") == 0:
        raise DataError(
            f"{source}: no label is 0, and they run to {len(found.classes) - 1}: labels count from 0, or "
            "name the classes (an array `classes`, or mission.classes)"
        )
    return found


def _told_by(graph: TrainGraph) -> labels.Names | None:
    """Returns the names of the classes that the network itself says, if any."""
    return graph.network.file.classes or None


@dataclass(frozen=True)
class DataSummary:
    """What the test data say of a new mission: its network's objective, class names (none without classes),
    pixel levels, and a line for a person. Missing data say nothing, but the classes of known sets are
    known."""

    objective: Objective
    classes: labels.Names | None
    levels: Levels | None
    told: str


def summarize(source: str, graph: TrainGraph, folder: Path | None) -> DataSummary:
    """Looks at the test data of a new mission. Raises DataError for data that cannot serve."""
    try:
        found = _look(source, graph, folder)
    except MissingDataError as error:
        has_classes = graph.objective.has_classes
        known = (_told_by(graph) or KNOWN_CLASSES.get(source)) if has_classes else None
        words = "" if known or not has_classes else "; its classes are not known before"
        return DataSummary(graph.objective, known, None, f"not here yet{words}: {error}")
    seen = found.inspect()
    return DataSummary(graph.objective, found.classes or None, seen.levels, seen.line())


def load(
    source: str, graph: TrainGraph, folder: Path | None, classes: labels.Names | None
) -> tuple[Inspection, Images]:
    """Returns the test images and what is known of them. Raises DataError."""
    seen = _look(source, graph, folder, classes)
    images = seen.load()
    return seen.inspect(images), images


def sample(folder: Path, name: str, source: str | None, data_dir: Path | None, images: int) -> str:
    """Writes the share of board `name`, at most `images` of them; returns a line about it.

    The boards' shares are disjoint, whichever is asked for first. `source`, `data_dir`: the train part of
    these; None for the mission's. Raises ConfigError, DataError, and OSError where the disk refuses."""
    mission = load_mission(folder)
    which, boards = mission.nodes.index(mission.find_node(name)), len(mission.nodes)
    board = load_node(mission.folder / "boards" / name / "node.toml")
    scheme, _, place = board.shard.source.partition(":")
    if scheme != "npz":
        raise DataError(f"{board.path}: data.source = {board.shard.source!r}: must be an npz:PATH to be made")
    if Path(place).exists():
        raise DataError(f"{place}: is there already, and is not replaced")
    source, data_dir = source or mission.data_source, data_dir or mission.data_folder
    check_source(source)
    graph = TrainGraph.load(mission.model)
    look = partial(
        loading.survey, source, graph.input_shape, folder=data_dir, objective=graph.objective,
        names=mission.rules.classes or _told_by(graph),
    )  # fmt: skip
    found = look()
    if len(found) < boards:
        raise DataError(f"{source}: {len(found)} images are too few for {boards} boards")
    rows = np.array_split(order(len(found), SEED), boards)[which][:images]
    taken = look(rows=rows).load()
    save(Path(place), taken)
    return f"{place}: {len(taken)} of the {len(found)} images of {source} to train on"
