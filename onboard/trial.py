"""A training in small, under the board's real limit: a few real steps of every kind on the board's own
images."""

from __future__ import annotations

import select

from onboard.board.budget import AGENT_BYTES
from onboard.config import GossipConfig, OwnConfig
from onboard.data.shard import shard_of
from onboard.learn.graph import GraphError, TrainGraph
from onboard.learn.networks import NETWORKS
from onboard.learn.training import BoardTraining
from onboard.mission.health import Failure
from onboard.mission.objects import Task, encode_object
from onboard.trainer.job import Failed, Job, Report, TrainingDone
from onboard.trainer.process import ProcessTrainer

BATCHES = 2  # an epoch of the trial
MARGIN_BYTES = 4 * 2**20  # rounds differ: with 80 MiB one of two has trained


def fitting(config: OwnConfig) -> list[TrainGraph]:
    """The models that this node may be asked to train: that of its gossip, or all that take its images.
    Raises GraphError."""
    if isinstance(config, GossipConfig):
        return [TrainGraph.load(config.model)] if not config.model.endswith(".onnx") else []
    graphs = [TrainGraph.load(name) for name in NETWORKS]
    return [graph for graph in graphs if graph.input_shape == config.data_shape]


def tried(config: OwnConfig, graph: TrainGraph) -> str:
    """What a round of a mission's defaults takes with this model. Raises MemoryError where the budget is too
    small, and GraphError where it fails for another reason but the images."""
    batch = config.gossip.batch_size if isinstance(config, GossipConfig) else BoardTraining().batch_size
    task = Task(
        mission=bytes(8), round=1, model=graph.name, graph=graph.digest, seed=0, weights="seed",
        training=BoardTraining(epochs=1, pretrain_epochs=1, batch_size=batch), deadline_s=1.0,
    )  # fmt: skip
    trainer = ProcessTrainer(shard_of(config), first=BATCHES * batch)
    report = _run(trainer, Job(model=encode_object(task, b""), node=config.id), config.memory_bytes)
    if isinstance(report, TrainingDone):
        took = AGENT_BYTES + report.peak_bytes + MARGIN_BYTES
        return f"{graph.name} takes {_mb(took)} with batches of {batch}"
    if report.failure == Failure.MEMORY:
        raise MemoryError(f"{graph.name} does not fit with batches of {batch}: {report.why}")
    if report.failure == Failure.DATA:
        return f"{graph.name} was not tried, as the images cannot be used"
    raise GraphError(f"{graph.name} cannot be trained: {report.why}")


def _run(trainer: ProcessTrainer, job: Job, budget_bytes: int) -> TrainingDone | Failed:
    """Trains to the end, with what the budget leaves beside an agent."""
    trainer.begin(job, max(0, budget_bytes - AGENT_BYTES - MARGIN_BYTES))
    try:
        while True:
            select.select(trainer.fds, [], [])
            last: Report
            for last in trainer.reports():
                if isinstance(last, TrainingDone | Failed):
                    return last
                trainer.step()
    finally:
        trainer.stop()


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"
