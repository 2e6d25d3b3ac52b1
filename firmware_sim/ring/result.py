"""The results of a ring's epochs, as numbers, text and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from firmware_sim.runs.live import picture
from hw_profiles import Link
from onboard.codec.layout import Floats, Layout, views
from onboard.data.images import Images
from onboard.learn.gossip.descent import consensus
from onboard.learn.graph import InferGraph
from onboard.learn.objectives import Metric
from onboard.learn.scoring import evaluate
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import OVERHEAD_BYTES

Seconds = float


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """The result of an epoch that all living nodes have finished.

    `loss`: mean over their training batches; `score` of the task's metric, `test_loss`: of the mean model on
    all test images; `node_scores`: of each node's model on the first `node_images`; `ground_score`: of the
    ground's model on all; `distance`: as `consensus` says; `bytes_sent`: on all links so far with framing,
    `ground_bytes` of them to and from the ground; `exchanges`: completed by both ends so far."""

    epoch: int
    loss: float
    score: float
    test_loss: float
    node_scores: tuple[float, ...]
    distance: float
    bytes_sent: int
    exchanges: int
    clock_s: Seconds
    ground_score: float | None = None
    ground_bytes: int = 0


class RingTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since a ring's first epoch. `exchange_ends`: each end of an exchange counts once."""

    epochs: int = 0
    clock_s: Seconds = 0.0
    bytes_sent: int = 0
    ground_bytes: int = 0
    exchange_ends: int = 0


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models on test images: the mean model on all, a node's on the first `node_images`."""

    infer: InferGraph
    layout: Layout
    test: Images
    node_images: int = 500

    def result(
        self, totals: RingTotals, vectors: list[Floats], losses: list[float], ground: Floats | None
    ) -> EpochResult:
        """vectors: of the living nodes, float32 (P,); losses: of their training; ground: its model."""
        few = self.test.x[: self.node_images], self.test.y[: self.node_images]
        mean, distance = consensus(vectors)
        score, test_loss = self._score(mean, self.test.x, self.test.y)
        return EpochResult(
            epoch=totals.epochs, loss=sum(losses) / len(losses), score=score, test_loss=test_loss,
            node_scores=tuple(self._score(vector, *few)[0] for vector in vectors),
            distance=distance, bytes_sent=totals.bytes_sent,
            exchanges=totals.exchange_ends // 2, clock_s=totals.clock_s,
            ground_score=None if ground is None else self._score(ground, self.test.x, self.test.y)[0],
            ground_bytes=totals.ground_bytes,
        )  # fmt: skip

    def _score(self, vector: Floats, x: object, y: object) -> tuple[float, float]:
        *_, score = evaluate(self.infer, views(self.layout, vector), x, y)  # type: ignore[arg-type]
        return score.value, score.loss


HEADING = "epoch    loss  mean model   worst node  best node  distance        sent  exchanges     clock"


def line(result: EpochResult, metric: Metric) -> str:
    ground = ""
    if result.ground_score is not None:
        ground = f"  ground {metric.told(result.ground_score)}, {result.ground_bytes / 1e6:,.1f} MB"
    worst, best = metric.worst(result.node_scores), metric.best(result.node_scores)
    return (
        f"{result.epoch:5}  {result.loss:6.4f}  {metric.told(result.score):>10}  "
        f"{metric.told(worst, 1):>11}  {metric.told(best, 1):>9}  "
        f"{result.distance:8.3f}  {result.bytes_sent / 1e6:7,.1f} MB  "
        f"{result.exchanges:9,}  {result.clock_s:6,.0f} s{ground}"
    )


def summary(results: Sequence[EpochResult], whole_bytes: int, metric: Metric) -> str:
    """Returns the run in a line. whole_bytes: what a whole model takes on an edge in one direction."""
    last = results[-1]
    dense_bytes = 2 * last.exchanges * whole_bytes
    of = "" if metric.key == "accuracy" else f"{metric.title} "
    nodes, living = len(results[0].node_scores), len(last.node_scores)
    ended = f" {nodes - living} of {nodes} nodes have not lived to see it." if living < nodes else ""
    return (
        f"The mean model has {of}{metric.told(last.score)} after {last.epoch} epochs, {last.clock_s:,.0f} s; "
        f"{last.bytes_sent / 1e6:,.1f} MB on all links, framing included: "
        f"{dense_bytes / last.bytes_sent:.3g} times fewer than whole models."
        f"{ended}"
    )


def framed_bytes(message_bytes: int, link: Link) -> int:
    """Returns what a message takes on the wire in frames of the link's MTU: header, tag and COBS."""
    payload_bytes = link.mtu_bytes - OVERHEAD_BYTES
    whole, rest = divmod(message_bytes, payload_bytes)
    last = cobs.wire_bytes(rest + OVERHEAD_BYTES) if rest else 0
    return whole * cobs.wire_bytes(link.mtu_bytes) + last


def draw(results: Sequence[EpochResult], title: str, path: Path, metric: Metric) -> None:
    epochs = [result.epoch for result in results]
    scores = [metric.plotted(result.score) for result in results]
    worst = [metric.plotted(metric.worst(result.node_scores)) for result in results]
    with picture(path, 3, (13, 4.2)) as (by_bytes, by_epoch, apart):
        by_bytes.plot([result.bytes_sent / 1e6 for result in results], scores, marker="o", markersize=3)
        (mean,) = by_epoch.plot(epochs, scores, marker="o", markersize=3)
        by_epoch.plot(epochs, worst, linestyle=":", color=mean.get_color())
        apart.plot(epochs, [result.distance for result in results], marker="o", markersize=3)
        by_bytes.set(
            xlabel="MB on all links so far, framing included", ylabel=f"the mean model's test {metric.axis}"
        )
        by_epoch.set(xlabel="epoch", ylabel=f"test {metric.axis}", title=title)
        by_epoch.text(0.98, 0.02, "dotted: the worst node", transform=by_epoch.transAxes, ha="right")
        apart.set(xlabel="epoch", ylabel="distance of a model from the mean one")
        for axes in (by_bytes, by_epoch, apart):
            axes.grid(alpha=0.3)
