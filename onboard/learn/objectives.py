"""What networks are trained for, in one table: what each kind of task answers, and what a model is judged by.

A metric's direction is part of it, so that a target, a best round, a plot and a table follow the task. It
needs no numpy: commands that only show results import it too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Kind = Literal["classify", "segment", "regress", "reconstruct"]
ClassLabel = Annotated[int, Meta(ge=0, le=255)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a model is judged by on its test data. `key` names it in JSON and events, `title` to people."""

    key: str
    title: str
    rises: bool  # whether more is better
    is_share: bool = False  # whether it is 0 to 1, and told in per cent

    def told(self, value: float | None, digits: int = 2) -> str:
        """A value as people read it: "91.25 %" or "0.0312"; "-" for none."""
        if value is None:
            return "-"
        return f"{100 * value:.{digits}f} %" if self.is_share else f"{value:.{digits + 1}g}"

    def plotted(self, value: float) -> float:
        """A value in the unit of `axis`."""
        return 100 * value if self.is_share else value

    @property
    def axis(self) -> str:
        """What an axis of a plot is called: "accuracy, %"."""
        return f"{self.title}, %" if self.is_share else self.title

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is the target's or better."""
        return value >= target if self.rises else value <= target

    def best(self, values: Iterable[float]) -> float:
        """The best of some values. Raises ValueError for none."""
        return max(values) if self.rises else min(values)

    def worst(self, values: Iterable[float]) -> float:
        """The worst of some values. Raises ValueError for none."""
        return min(values) if self.rises else max(values)


METRICS: dict[Kind, Metric] = {
    "classify": Metric(key="accuracy", title="accuracy", rises=True, is_share=True),
    "segment": Metric(key="mean_iou", title="mean IoU", rises=True, is_share=True),
    "regress": Metric(key="rmse", title="RMSE", rises=False),
    "reconstruct": Metric(key="rmse", title="RMSE", rises=False),
}
"""What a model of each kind of task is judged by (`onboard.learn.scoring` measures it).

- `accuracy`: the share of images whose largest logit is their label's;
- `mean_iou`: the mean over classes of intersection over union, in pixels of all images (Everingham et al.,
  "The PASCAL visual object classes challenge: a retrospective", 2015, section 4.2.3). A class that neither
  labels nor answers have counts for nothing, nor do pixels whose label is the ignored one;
- `rmse`: the root of the mean squared error, over all numbers, or over all pixels as 0 to 1."""


def metric_of(key: str) -> Metric:
    """Returns the metric that JSON names so. Raises KeyError."""
    return {metric.key: metric for metric in METRICS.values()}[key]


FORMS: dict[Kind, str] = {
    "classify": "a class for each image",
    "segment": "masks",
    "regress": "numbers for each image",
    "reconstruct": "images alone",
}
"""What data hold for each kind of task, in words."""


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """What labels must be for a network: `outputs` is how many classes or numbers it answers with, None where
    that is not known; `ignore` is the label of pixels that count for nothing, with `segment`."""

    kind: Kind = "classify"
    outputs: int | None = None
    ignore: ClassLabel | None = None

    @property
    def metric(self) -> Metric:
        return METRICS[self.kind]

    @property
    def form(self) -> Objective:
        """The same for any number of outputs: how labels look, and not how many there may be."""
        return msgspec.structs.replace(self, outputs=None)

    @property
    def has_classes(self) -> bool:
        return self.kind in ("classify", "segment")
