"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UP, DOWN = "#1b6ca8", "#8fc1e3"


@contextmanager
def picture(path: Path, columns: int, size: tuple[float, float]) -> Iterator[Sequence[Axes]]:
    """So many axes side by side, which are a PNG of that size (inches) at `path` after the block."""
    from matplotlib.figure import Figure  # half a second, and only at the end of a run

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(1, columns, squeeze=False)[0]
    figure.savefig(path, dpi=120)


def number_points(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Writes 1, 2, ... above the points of a curve."""
    for number, point in enumerate(zip(xs, ys, strict=True), start=1):
        axes.annotate(str(number), point, textcoords="offset points", xytext=(0, 6), ha="center")
