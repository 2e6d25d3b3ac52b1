"""What a ring tells: where an epoch stands, and in numbers what one was that is over."""

from __future__ import annotations

from dataclasses import dataclass

from onboard.codec.layout import Floats, Layout, views
from onboard.data.loading import Images
from onboard.learn.gossip.descent import consensus_distance, mean_of
from onboard.learn.graph import InferGraph, evaluate

Seconds = float


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """All nodes that live have done `epoch`. `loss`: mean over their training batches of it; `accuracy`,
    `test_loss`: of the mean model on all test images; `node_accuracies`: of each living node's model, on as
    many as `Ring` was told; `ground_accuracy`: of the ground's on all; `distance`: see `consensus_distance`;
    `bytes_sent`: on all links so far, framing included, `ground_bytes` of them to and from the ground;
    `exchanges`: completed by both ends so far."""

    epoch: int
    loss: float
    accuracy: float
    test_loss: float
    node_accuracies: tuple[float, ...]
    distance: float
    bytes_sent: int
    exchanges: int
    clock_s: Seconds
    ground_accuracy: float | None = None
    ground_bytes: int = 0


@dataclass(frozen=True)
class GroundModel:
    """The model of a ring's ground station, float32 (P,), and the bytes to and from it so far."""

    vector: Floats
    link_bytes: int


@dataclass(frozen=True)
class Evaluator:
    """Tries models on test images: the mean one on all, those of nodes on the first `node_images`."""

    infer: InferGraph
    layout: Layout
    test: Images
    node_images: int = 500

    def result(
        self, epoch: int, vectors: list[Floats], losses: list[float], *, bytes_sent: int, exchanges: int,
        clock_s: Seconds, ground: GroundModel | None = None,
    ) -> EpochResult:  # fmt: skip
        """vectors: of the nodes that live, float32 (P,); losses: of their training."""
        few = self.test.x[: self.node_images], self.test.y[: self.node_images]
        accuracy, test_loss = self._score(mean_of(vectors), self.test.x, self.test.y)
        return EpochResult(
            epoch=epoch,
            loss=sum(losses) / len(losses),
            accuracy=accuracy,
            test_loss=test_loss,
            node_accuracies=tuple(self._score(vector, *few)[0] for vector in vectors),
            distance=consensus_distance(vectors),
            bytes_sent=bytes_sent,
            exchanges=exchanges,
            clock_s=clock_s,
            ground_accuracy=self._score(ground.vector, self.test.x, self.test.y)[0] if ground else None,
            ground_bytes=ground.link_bytes if ground else 0,
        )

    def _score(self, vector: Floats, x: object, y: object) -> tuple[float, float]:
        *_, score = evaluate(self.infer, views(self.layout, vector), x, y)  # type: ignore[arg-type]
        return score.accuracy, score.loss
