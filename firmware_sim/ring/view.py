"""A ring's epochs as lines, a bar and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from firmware_sim.ring.result import EpochResult
from firmware_sim.runs.live import RunTexts
from firmware_sim.world.edge import framed_bytes
from hw_profiles import Link

HEADING = "epoch    loss  mean model   worst node  best node  distance        sent  exchanges     clock"


def texts(epochs: int, parameters: int, link: Link) -> RunTexts[EpochResult]:
    """What is said of a run of so many epochs, of a model with so many parameters, on edges of that link."""
    whole_bytes = framed_bytes(4 * parameters, link)
    return RunTexts("epoch", epochs, HEADING, line, partial(summary, whole_bytes=whole_bytes))


def line(result: EpochResult) -> str:
    """One epoch under HEADING."""
    ground = (
        ""
        if result.ground_accuracy is None
        else (f"  ground {100 * result.ground_accuracy:.2f} %, {result.ground_bytes / 1e6:,.1f} MB")
    )
    worst, best = min(result.node_accuracies), max(result.node_accuracies)
    return (
        f"{result.epoch:5}  {result.loss:6.4f}  {100 * result.accuracy:8.2f} %  {100 * worst:9.1f} %  "
        f"{100 * best:7.1f} %  {result.distance:8.3f}  {result.bytes_sent / 1e6:7,.1f} MB  "
        f"{result.exchanges:9,}  {result.clock_s:6,.0f} s{ground}"
    )


def summary(results: Sequence[EpochResult], whole_bytes: int) -> str:
    """The run in a line. whole_bytes: what the whole model takes on an edge in one direction."""
    last = results[-1]
    dense_bytes = 2 * last.exchanges * whole_bytes
    nodes, living = len(results[0].node_accuracies), len(last.node_accuracies)
    ended = f" {nodes - living} of {nodes} nodes have not lived to see it." if living < nodes else ""
    return (
        f"The mean model has {100 * last.accuracy:.2f} % after {last.epoch} epochs, {last.clock_s:,.0f} s; "
        f"{last.bytes_sent / 1e6:,.1f} MB on all links, framing included: "
        f"{dense_bytes / last.bytes_sent:.3g} times fewer than whole models."
        f"{ended}"
    )


def draw(runs: Mapping[str, Sequence[EpochResult]], title: str, path: Path) -> None:
    """Writes accuracy against bytes and against epochs, and the distance between models, as a PNG."""
    from matplotlib.figure import Figure  # half a second, and only at the end of a run

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    by_bytes, by_epoch, apart = figure.subplots(1, 3)
    for name, results in runs.items():
        sent = [result.bytes_sent / 1e6 for result in results]
        epochs = [result.epoch for result in results]
        accuracy = [100 * result.accuracy for result in results]
        by_bytes.plot(sent, accuracy, marker="o", markersize=3, label=name)
        (mean,) = by_epoch.plot(epochs, accuracy, marker="o", markersize=3, label=name)
        lowest = [100 * min(result.node_accuracies) for result in results]
        by_epoch.plot(epochs, lowest, linestyle=":", color=mean.get_color())
        apart.plot(epochs, [result.distance for result in results], marker="o", markersize=3, label=name)
    by_bytes.set(xlabel="MB on all links so far, framing included", ylabel="accuracy of the mean model, %")
    by_epoch.set(xlabel="epoch", ylabel="test accuracy, %", title=title)
    by_epoch.text(0.98, 0.02, "dotted: the worst node", transform=by_epoch.transAxes, ha="right")
    apart.set(xlabel="epoch", ylabel="distance of a model from the mean one")
    for axes in (by_bytes, by_epoch, apart):
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        by_bytes.set_xscale("log")
        by_bytes.legend()
    figure.savefig(path, dpi=120)
