"""The mission's test data, and what it says of the mission's classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onboard.data import labels, loading
from onboard.data.images import DataError, Images, MissingDataError
from onboard.data.inspection import Inspection, Levels
from onboard.data.loading import Survey
from onboard.data.sources import KNOWN_CLASSES
from onboard.learn.graph import TrainGraph


def look(
    source: str, graph: TrainGraph, folder: str | Path | None = None, classes: labels.Names | None = None
) -> Survey:
    """The test part by its labels, in the mission's `classes` where they are known. Raises DataError."""
    found = loading.survey(
        source, graph.input_shape, folder=folder, part="test", classes=graph.classes, names=classes
    )
    if not found.named and classes is None and not found.counts["0"]:
        raise DataError(
            f"{source}: no label is 0, and they run to {len(found.classes) - 1}: labels count from 0, or "
            "name the classes (an array `classes`, or mission.classes)"
        )
    return found


@dataclass(frozen=True)
class Founded:
    """What the test data say of a new mission: its classes' names, what pixels are like, and a line for a
    person. Data that are not here yet say nothing; the classes of known sets are known."""

    classes: labels.Names | None
    levels: Levels | None
    told: str


def founded(source: str, graph: TrainGraph, folder: Path | None) -> Founded:
    """Looks at the test data of a new mission.

    Raises DataError for data that no mission can be tested on.
    """
    try:
        found = look(source, graph, folder)
    except MissingDataError as error:
        known = KNOWN_CLASSES.get(source)
        words = "" if known else "; its classes are not known before"
        return Founded(known, None, f"not here yet{words}: {error}")
    seen = found.inspect()
    return Founded(found.classes, seen.levels, seen.line())


def load(
    source: str, graph: TrainGraph, folder: Path | None, classes: labels.Names | None
) -> tuple[Inspection, Images]:
    """The test images, and what they are. Raises DataError."""
    seen = look(source, graph, folder, classes)
    images = seen.load()
    return seen.inspect(images), images
