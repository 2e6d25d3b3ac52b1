"""A run as a picture: accuracy against bytes on the wire, and where the bytes went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

UP, DOWN = "#1b6ca8", "#8fc1e3"


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of a demo's summary as a PNG."""
    from matplotlib.figure import Figure  # half a second, and only at the end of a run

    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, shares = figure.subplots(1, 2)
    kilobytes = [count / 1000 for count in summary["bytes_after_round"]]
    accuracy.plot(kilobytes, [100 * value for value in summary["accuracy"]], marker="o", color=UP)
    for number, (x, y) in enumerate(zip(kilobytes, summary["accuracy"], strict=True), start=1):
        accuracy.annotate(str(number), (x, 100 * y), textcoords="offset points", xytext=(0, 6), ha="center")
    accuracy.set(
        xlabel="kB on the wire so far, all boards, both directions", ylabel="test accuracy, %",
        title=f"{summary['model']} on {summary['data']}: accuracy after each round",
    )  # fmt: skip
    accuracy.grid(alpha=0.3)

    boards = list(summary["boards"])
    up = [summary["boards"][board]["up"]["bytes"] / 1000 for board in boards]
    down = [summary["boards"][board]["down"]["bytes"] / 1000 for board in boards]
    shares.barh(boards, up, color=UP, label="up")
    shares.barh(boards, down, left=up, color=DOWN, label="down")
    shares.invert_yaxis()
    shares.margins(x=0.25)  # room for the legend
    shares.legend(loc="upper right")
    shares.set(
        xlabel="kB, headers and retransmissions included",
        title=f"{summary['ratio']:.0f} times fewer bytes than fp32 FedAvg",
    )
    figure.savefig(path, dpi=120)
