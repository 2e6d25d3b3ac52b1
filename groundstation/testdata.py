"""The mission's test data, and what it says of the mission's classes."""

from __future__ import annotations

from pathlib import Path

from onboard import data, labels
from onboard.data import DataError, Images, MissingDataError, Survey
from onboard.inspection import Inspection, inspection
from onboard.learn.graph import TrainGraph


def look(
    source: str, graph: TrainGraph, folder: str | Path | None = None, classes: labels.Names | None = None
) -> Survey:
    """The test part by its labels, in the mission's `classes` where they are known. Raises DataError."""
    found = data.survey(
        source, graph.input_shape, folder=folder, part="test", classes=graph.classes, names=classes
    )
    if not found.named and classes is None and found.empty[:1] == ("0",):
        raise DataError(
            f"{source}: no label is 0, and they run to {len(found.classes) - 1}: labels count from 0, or "
            "name the classes (an array `classes`, or mission.classes)"
        )
    return found


def classes(source: str, graph: TrainGraph, folder: Path | None) -> tuple[labels.Names | None, str]:
    """The names of a new mission's classes, and a line about its test data. No names where the data are not
    here yet, and are no set whose classes everybody knows.

    Raises DataError for data that no mission can be tested on.
    """
    try:
        found = look(source, graph, folder)
    except MissingDataError as error:
        known = data.KNOWN_CLASSES.get(source)
        words = "" if known else "; its classes are not known before"
        return known, f"not here yet{words}: {error}"
    pixels = data.measure(source, graph.input_shape, folder=folder, part="test")
    return found.classes, inspection(found, pixels).line()


def load(
    source: str, graph: TrainGraph, folder: Path | None, classes: labels.Names | None
) -> tuple[Inspection, Images]:
    """The test images, and what they are. Raises DataError."""
    seen = look(source, graph, folder, classes)
    images = data.load(
        source, graph.input_shape, folder=folder, part="test", classes=graph.classes, names=classes
    )
    return inspection(seen, data.range_of([images.x])), images
