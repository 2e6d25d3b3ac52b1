"""The results of a fleet's rounds, as numbers, text and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from firmware_sim.runs.live import UP, number_points, picture
from onboard.learn.objectives import Metric


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """The result of a finished round.

    `bits_*` are bits a weight with every byte of the object (up: mean over the updates taken), `width_*` bits
    a weight as the papers count them (`Model.mean_width`). Bytes, airtime and joules are of all devices in
    this round; `clock_s` is the virtual time so far."""

    round: int
    score: float  # of the task's metric, on the test images
    loss: float
    bits_up: float
    bits_down: float
    width_up: float
    width_down: float
    bytes_up: int
    bytes_down: int
    airtime_up_s: float
    airtime_down_s: float
    energy_j: float
    clock_s: float
    asked: int
    answered: int
    gone: int
    merged: int
    late: int
    refused: int
    validation: float | None = None
    """What the updates taken scored on images that their devices hold out, mean weighted by samples."""

    @property
    def bytes_both(self) -> int:
        return self.bytes_up + self.bytes_down


def heading(metric: Metric) -> str:
    """Returns what stands above each `line`."""
    return (
        f"round  {metric.title:>8}   bits up  bits down   bytes up  bytes down   air up  air down   "
        "energy     clock  answered"
    )


def line(result: RoundResult, metric: Metric) -> str:
    notes = [
        f"{count} {what}"
        for what in ("gone", "merged", "late", "refused")
        if (count := getattr(result, what))
    ]
    if result.validation is not None:
        notes.append(f"{metric.told(result.validation)} on devices")
    return (
        f"{result.round:5}  {metric.told(result.score):>8}  {result.bits_up:8.4f}  {result.bits_down:9.4f} "
        f"{result.bytes_up:10,} {result.bytes_down:11,}  {result.airtime_up_s:5.0f} s  "
        f"{result.airtime_down_s:6.0f} s {result.energy_j:6.0f} J {result.clock_s:7.0f} s  "
        f"{result.answered} of {result.asked}{', ' if notes else ''}{', '.join(notes)}"
    )


def summary(results: Sequence[RoundResult], parameters: int, metric: Metric) -> str:
    """Returns the run in a line, beside fp32 weights down and up without header for as many answers."""
    sent_bytes = sum(result.bytes_both for result in results)
    asked, answered = (sum(getattr(result, key) for result in results) for key in ("asked", "answered"))
    fp32_bytes = 2 * answered * 4 * parameters
    missing = f" {asked - answered} of {asked} answers are missing." if answered < asked else ""
    return (
        f"{_final(metric, results[-1].score)} after {len(results)} rounds and {results[-1].clock_s:,.0f} s; "
        f"{sent_bytes:,} bytes on the wire, both directions, framing and repetitions included: "
        f"{fp32_bytes / sent_bytes:.3g} times fewer than float32 weights down and up."
        f"{missing}"
    )


def _final(metric: Metric, score: float) -> str:
    """A score as a sentence begins: a percentage is known to be the accuracy."""
    return metric.told(score) if metric.key == "accuracy" else f"{metric.title} {metric.told(score)}"


def draw(results: Sequence[RoundResult], title: str, path: Path, metric: Metric) -> None:
    sent_mb = [sent_bytes / 1e6 for sent_bytes in accumulate(result.bytes_both for result in results)]
    scores = [metric.plotted(result.score) for result in results]
    with picture(path, 1, (7, 4.5)) as (axes,):
        axes.plot(sent_mb, scores, marker="o", color=UP)
        number_points(axes, sent_mb, scores)
        axes.set(
            xlabel="MB on the wire so far, all devices, both directions, framing and repetitions included",
            ylabel=f"test {metric.axis}", title=title,
        )  # fmt: skip
        axes.grid(alpha=0.3)
