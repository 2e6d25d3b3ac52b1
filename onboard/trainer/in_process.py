"""Trains a round's job in this process: in the agent's for fleets, in a child's on a board."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from onboard.codec.layout import Weights, views
from onboard.codec.model import BadPack
from onboard.codec.pack import pack, unpack
from onboard.codec.quantized import HALF_MAX
from onboard.data import labels
from onboard.data.images import DataError, Images
from onboard.learn.federated.local import LocalTraining, apply_delta
from onboard.learn.graph import GraphError, InferGraph, LostNetwork, TrainGraph
from onboard.learn.networks import Network, NetworkError
from onboard.learn.scoring import evaluate
from onboard.learn.self_check import check
from onboard.learn.training import Plan
from onboard.mission.health import Failure
from onboard.mission.objects import Task, decode_task
from onboard.storage.files import of_any_size
from onboard.trainer.job import Begun, Checked, Failed, Job, NetworkCheck, Report, TrainingDone
from onboard.wire.messages import BadMessage

# How C++ and the kernel say it: onnxruntime wraps std::bad_alloc in a class of its own, and a library that
# cannot be mapped is an ImportError.
NO_MEMORY = re.compile(r"bad_alloc|[Cc]annot allocate memory|[Ff]ailed to allocate memory")
_FAILURES = {
    LostNetwork: Failure.MODEL,  # before the class that it is one of
    GraphError: Failure.GRAPH,
    BadPack: Failure.MODEL,
    BadMessage: Failure.MODEL,
    DataError: Failure.DATA,
}
Training = Generator[Report, bool, None]
RESIDUAL = np.dtype("<f2")  # half of what float32 takes of a board's disk, and 0.05 % of a value off


class LocalTrainer:
    """A `Trainer` that steps at once. `graphs` opens a model by name; `cpu_clock`: this process's seconds."""

    fds: tuple[int, ...] = ()

    def __init__(
        self,
        images: Images,
        graphs: Callable[[str], TrainGraph] = TrainGraph.load,
        cpu_clock: Callable[[], float] = time.process_time,
        held: Images | None = None,
    ) -> None:
        self._images, self._held, self._graphs, self._cpu_clock = images, held, graphs, cpu_clock
        self._steps: Training | None = None
        self._reports: list[Report] = []

    def begin(self, job: Job) -> None:
        self._steps = train(job, self._images, self._graphs, self._cpu_clock, self._held)
        self._reports = [next(self._steps)]

    def check(self, network: NetworkCheck) -> None:
        self._steps, self._reports = None, [checked(network)]

    def step(self, *, save: bool = False) -> None:
        assert self._steps is not None, "a step without a job"
        self._reports.append(self._steps.send(save))

    def reports(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports

    def stop(self) -> None:
        self._steps, self._reports = None, []


def train(
    job: Job,
    images: Images,
    graphs: Callable[[str], TrainGraph],
    cpu_clock: Callable[[], float] = time.process_time,
    held: Images | None = None,
    state_file: BinaryIO | None = None,
) -> Training:
    """Yield `Begun`, then one report for each value sent, which says whether the step is to save, at last
    `TrainingDone` or `Failed`. The outcome is judged on the images `held` out. A `state_file` takes the
    states, each in place of the one before, and the residual in place of the last."""
    try:
        yield from _train(job, images, graphs, cpu_clock, held, state_file)
        return
    except Exception as error:  # a graph or a memory limit may raise anything
        failure = failed(error)
    yield failure  # when what the error holds has gone


def _train(
    job: Job,
    images: Images,
    graphs: Callable[[str], TrainGraph],
    cpu_clock: Callable[[], float],
    held: Images | None,
    state_file: BinaryIO | None,
) -> Training:
    task, weights = decode_task(job.model)
    graph = graphs(job.network or task.model)
    images = _fitting(images, task, graph)
    held = None if held is None else _fitting(held, task, graph)
    origin, start = _weights(task, weights, graph)
    training = _training(task, graph, origin, _fed_back(start, job, task, graph), images, job.node)
    dropped = "" if job.checkpoint is None else _restored(training, job.checkpoint)
    flops = graph.flops_per_image * training.knobs.batch_size
    save = yield Begun(flops_a_step=flops, epoch=training.epoch, batch=training.batch, dropped=dropped)
    began_s = cpu_clock()
    for done in training.steps():
        state, state_bytes = None, 0
        if save:
            state, state_bytes = _left(
                state_file, lambda file: np.savez(file, allow_pickle=False, **training.state())
            )
        took_s = cpu_clock() - began_s
        save = yield msgspec.structs.replace(done, cpu_s=took_s, state=state, state_bytes=state_bytes)
        began_s = cpu_clock()
    result = training.result()
    validation, unjudged = None, ""
    if held is not None:
        learned = apply_delta(origin, result.reconstruct()) | training.statistics()
        validation, unjudged = _judged(graph, learned, held)
    packed = pack(result)
    residual, residual_bytes = None, 0
    if training.knobs.error_feedback and training.knobs.rule.feeds_back:
        rest = np.clip(training.residual(result), -HALF_MAX, HALF_MAX).astype(RESIDUAL)
        residual, residual_bytes = _left(state_file, lambda file: file.write(rest.data))
    yield TrainingDone(
        packed=packed, loss=training.loss, samples=len(images), cpu_s=cpu_clock() - began_s,
        validation=validation, unjudged=unjudged, residual=residual, residual_bytes=residual_bytes,
    )  # fmt: skip


def _left(state_file: BinaryIO | None, write: Callable[[BinaryIO], object]) -> tuple[memoryview | None, int]:
    """Return what `write` writes, or how many bytes of it the state file has."""
    if state_file is None:
        memory = io.BytesIO()
        write(memory)
        return memoryview(memory.getvalue()), 0
    state_file.seek(0)  # it never shrinks: who has it mapped reads no byte that is not there
    with of_any_size():
        write(state_file)
        state_file.flush()
    return None, state_file.tell()


def checked(network: NetworkCheck) -> Checked:
    """Load and run a network; the report says what is wrong."""
    try:
        return Checked(why=check(Network.load(Path(network.folder)), network.expected))
    except NetworkError as error:
        return Checked(why=str(error))


def _fitting(images: Images, task: Task, graph: TrainGraph) -> Images:
    """Return the images, labelled with the mission's classes by name, as far as the task names them. Raises
    BadMessage, DataError."""
    if graph.digest != task.graph:
        raise BadMessage(f"model {task.model!r} is {graph.digest.hex()} here, {task.graph.hex()} there")
    if graph.input_shape != images.shape:
        raise DataError(f"images are {images.shape}, model {task.model!r} takes {graph.input_shape}")
    is_of_kind = images.kind == graph.objective.kind
    if is_of_kind and task.classes and not (images.named and labels.digest(images.classes) == task.classes):
        if not task.names:
            raise DataError(
                f"data: the mission's classes are others than {labels.listed(images.classes)}: "
                "copy classes from its mission.toml into [data] of NODE.toml"
            )
        if labels.digest(task.names) != task.classes:
            raise BadMessage("the task's classes are not those of its digest")
        images = labels.renamed(images, task.names, graph.objective.ignore)
    return labels.for_network(images, f"model {task.model!r}", graph.objective)


def failed(error: BaseException) -> Failed:
    """Return the report of an exception in a training."""
    why = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, MemoryError) or NO_MEMORY.search(why):
        return Failed(failure=Failure.MEMORY, why=f"out of memory: {why}")
    failure = next((kind for of, kind in _FAILURES.items() if isinstance(error, of)), Failure.OTHER)
    return Failed(failure=failure, why=why)


def _weights(task: Task, weights: memoryview, graph: TrainGraph) -> tuple[Weights, Weights]:
    """Return the weights that the update will be the difference from, and those to start with."""
    origin = start = graph.initial(task.seed)
    if task.weights == "packed":
        start = apply_delta(origin, unpack(weights, graph.layout).reconstruct())
    sends_whole = task.training is not None and task.training.rule.sends_whole
    return (origin if sends_whole else start), start


def _fed_back(start: Weights, job: Job, task: Task, graph: TrainGraph) -> Weights:
    """Return what training begins with: `start`, and as much of what the update before left unsaid as the
    task says. The update is still the difference from `start`, and so says some of that too: error feedback
    (Seide et al., "1-bit stochastic gradient descent", 2014, section 2; Karimireddy et al., "Error feedback
    fixes SignSGD", ICML 2019). It can be damped, as a board's turn comes rounds later, when others have moved
    the model."""
    if job.residual is None or task.training is None:
        return start
    rest = np.frombuffer(job.residual, RESIDUAL) * np.float32(task.training.error_feedback)
    return apply_delta(start, views(graph.layout, rest))


def _training(
    task: Task, graph: TrainGraph, origin: Weights, start: Weights, images: Images, node: int
) -> LocalTraining:
    knobs = task.training
    if knobs is None:
        raise ValueError("the task asks for no training")
    plan = Plan(
        training=knobs, seed=task.seed, round=task.round, node=node, sends_statistics=not task.measures
    )  # fmt: skip
    return LocalTraining(graph, origin, start, images.x, images.y, plan)


def _judged(graph: TrainGraph, weights: Weights, held: Images) -> tuple[float | None, str]:
    """Return what the metric says of the model on the images held out, or why it says nothing: for that no
    training is given up."""
    try:
        *_, score = evaluate(InferGraph.load(graph.network), weights, held.x, held.y)
    except GraphError as error:
        return None, str(error)
    return (score.value, "") if math.isfinite(score.value) else (None, f"it is {score.value}")


def _restored(training: LocalTraining, checkpoint: bytes) -> str:
    """Resume the training from the checkpoint; return why not, if it is of another round or cut."""
    try:
        with np.load(io.BytesIO(checkpoint), allow_pickle=False) as state:
            training.restore(dict(state))
    except MemoryError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen kinds on damaged bytes
        return str(error) or type(error).__name__
    return ""
