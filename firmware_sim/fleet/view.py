"""What a person sees of a fleet: a line for every round, a bar under them, and at the end a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from firmware_sim.fleet.result import RoundResult
from firmware_sim.runs.live import RunTexts
from firmware_sim.runs.plot import UP

HEADING = (  # of `line`
    "round  accuracy   bits up  bits down   bytes up  bytes down   air up  air down   energy     clock  "
    "answered"
)


def texts(rounds: int, parameters: int) -> RunTexts[RoundResult]:
    """What is said of a run of so many rounds at most, of a model with so many parameters."""
    return RunTexts("round", rounds, HEADING, line, partial(summary, parameters=parameters))


def line(result: RoundResult) -> str:
    """One round under HEADING."""
    notes = [
        f"{count} {what}"
        for what in ("gone", "merged", "late", "refused")
        if (count := getattr(result, what))
    ]
    return (
        f"{result.round:5}  {100 * result.accuracy:6.2f} %  {result.bits_up:8.4f}  {result.bits_down:9.4f} "
        f"{result.bytes_up:10,} {result.bytes_down:11,}  {result.airtime_up_s:5.0f} s  "
        f"{result.airtime_down_s:6.0f} s {result.energy_j:6.0f} J {result.clock_s:7.0f} s  "
        f"{result.answered} of {result.asked}{', ' if notes else ''}{', '.join(notes)}"
    )


def summary(results: Sequence[RoundResult], parameters: int) -> str:
    """The run in a line: where it got, and what it sent, beside fp32 weights down and up without header, for
    as many answers; and how many are missing, if any."""
    sent_bytes = sum(result.bytes_both for result in results)
    asked, answered = (sum(getattr(result, key) for result in results) for key in ("asked", "answered"))
    fp32_bytes = 2 * answered * 4 * parameters
    missing = f" {asked - answered} of {asked} answers are missing." if answered < asked else ""
    return (
        f"{100 * results[-1].accuracy:.2f} % after {len(results)} rounds and {results[-1].clock_s:,.0f} s; "
        f"{sent_bytes:,} bytes on the wire, both directions, framing and repetitions included: "
        f"{fp32_bytes / sent_bytes:.3g} times fewer than float32 weights down and up."
        f"{missing}"
    )


def draw(results: Sequence[RoundResult], title: str, path: Path) -> None:
    """Writes accuracy against bytes on the wire as a PNG."""
    from matplotlib.figure import Figure  # half a second, and only at the end of a run

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    sent_bytes = list(accumulate(result.bytes_both for result in results))
    accuracy = [100 * result.accuracy for result in results]
    axes.plot([count / 1e6 for count in sent_bytes], accuracy, marker="o", color=UP)
    for result, x, y in zip(results, sent_bytes, accuracy, strict=True):
        axes.annotate(str(result.round), (x / 1e6, y), textcoords="offset points", xytext=(0, 6), ha="center")
    axes.set(
        xlabel="MB on the wire so far, all devices, both directions, framing and repetitions included",
        ylabel="test accuracy, %", title=title,
    )  # fmt: skip
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
