"""What compression costs a board and its server with LeNet-5: training steps, encoding, decoding, averaging.

A board trains on 600 images in batches of 10 (SpaceDML, section IV) by every method; its last update is
packed, unpacked and averaged again and again, on one core. Times are medians of CPU time. Steps are ratios to
plain ones of the same run; "spacedml" has steps of four kinds, and the mean over a round's is bounded.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from statistics import median

import numpy as np

from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.codec.pack import account, pack, unpack
from onboard.data import loading, sources
from onboard.data.images import Images
from onboard.learn.federated.local import LocalTraining
from onboard.learn.federated.rounds import PartialAverage
from onboard.learn.graph import TrainGraph, prepare
from onboard.learn.training import BoardTraining, Plan, TrainingPhase

STEP_RATIO = 2.0
WHOLE_RATIO = 1.6  # augmentation, forward and backward, projection and Adam to the graph's run alone
ENCODE_MS, DECODE_MS = 20.0, 10.0
UPDATES_A_SECOND = 200.0
AGGREGATE_BYTES_A_WEIGHT = 40.0  # float64 sums, one model, and an update on its way through the decoder

IMAGES = 600
REPEATS = 30
PAPERS_BITS, FAST_BITS, SKETCH_BITS = 0.4, 0.1, 1.65  # Table I at best; ours; before pruning to 0.33


def measure(tell: ProgressLine) -> list[Row]:
    """Trains, then packs and averages; takes about a minute. Raises DataError."""
    source = "mnist" if os.environ.get(sources.FOLDER_VARIABLE) else "digits"
    images = loading.load(source, (1, 28, 28), rows=range(IMAGES))
    graph = TrainGraph.load("lenet5")
    tell("whole steps by spacedml-fast")
    rows = [
        Row("a whole step of spacedml-fast", whole_ratio(graph, images), "runs of its graph", WHOLE_RATIO)
    ]
    trainings = {}
    runs: tuple[tuple[str, float, int], ...] = (
        ("spacedml-fast", FAST_BITS, 8),
        ("spacedml-fast", PAPERS_BITS, 8),
        ("spacedml", SKETCH_BITS, 2),
    )
    for method, bits, bases in runs:
        name = f"{method}, {bits:g} bit"
        tell(f"training by {name}")
        step_s, trainings[name] = trained(graph, images, plan(method, bits, bases))
        quantized = [seconds for phase, seconds in step_s.items() if phase is not TrainingPhase.PLAIN]
        ratio = float(np.mean(np.concatenate(quantized))) / float(np.mean(step_s[TrainingPhase.PLAIN]))
        rows.append(Row(f"a quantized step of {name}", ratio, "plain steps", STEP_RATIO))
        if method == "spacedml":
            rows += [
                Row(
                    f"  of its {phase.value} epochs",
                    median(step_s[phase]) / median(step_s[TrainingPhase.PLAIN]),
                    "plain steps",
                )
                for phase in step_s
                if phase is not TrainingPhase.PLAIN
            ]
    for name, training in trainings.items():
        tell(f"packing what {name} sends")
        rows += _costs_of(name, training)
    return rows


def plan(method: str, bits: float, bases: int) -> Plan:
    """A first round, without shifts and distortions: they would flatter the ratios."""
    knobs = BoardTraining(
        method=method, learning_rate=2e-3, bits_up=bits, max_bases=bases, shift_pixels=0, distortion=0.0
    )
    return Plan(training=knobs, seed=0, round=1, node=1)


def whole_ratio(graph: TrainGraph, images: Images) -> float:
    """The median of straight-through steps by the defaults, over that of the graph's runs alone, which take
    turns; in CPU seconds."""
    origin = graph.initial(0)
    x, y = prepare(images.x[:10]), images.y[:10]
    plan = Plan(training=BoardTraining(), seed=0, round=1, node=1)
    steps = LocalTraining(graph, origin, origin, images.x, images.y, plan).steps()
    whole_s: list[float] = []
    bare_s: list[float] = []
    while True:
        before_s = time.process_time()
        step = next(steps, None)
        after_s = time.process_time()
        if step is None:
            return median(whole_s) / median(bare_s)
        if plan.phases[step.epoch - 1] is TrainingPhase.STRAIGHT:
            whole_s.append(after_s - before_s)
            graph.step(origin, x, y)  # not timed: it finds the caches full of the step before
            before_s = time.process_time()
            graph.step(origin, x, y)
            bare_s.append(time.process_time() - before_s)


def trained(
    graph: TrainGraph, images: Images, plan: Plan
) -> tuple[dict[TrainingPhase, list[float]], LocalTraining]:
    """CPU seconds of the steps of each phase, and the training at its end."""
    origin = graph.initial(plan.seed)
    training = LocalTraining(graph, origin, origin, images.x, images.y, plan)
    spent_s: dict[TrainingPhase, list[float]] = {}
    before_s = time.process_time()
    for step in training.steps():
        now_s = time.process_time()
        spent_s.setdefault(plan.phases[step.epoch - 1], []).append(now_s - before_s)
        before_s = now_s
    return spent_s, training


def _costs_of(name: str, training: LocalTraining) -> list[Row]:
    model = training.result()
    layout, packed, sections = model.layout, pack(model), account(model)
    average = PartialAverage(layout)

    def arrive() -> None:
        average.add(unpack(packed, layout).reconstruct(), IMAGES)

    encode_s, decode_s, arrive_s = (
        cpu_s(what)
        for what in (
            lambda: pack(training.result()),
            lambda: unpack(packed, layout).reconstruct(),
            arrive,
        )
    )
    tracemalloc.start()
    arrive()
    peak_bytes = tracemalloc.get_traced_memory()[1] + 8 * layout.parameters  # the sums were there before
    tracemalloc.stop()
    return [
        Row(
            f"{name}, an update with every byte counted", 8 * len(packed) / layout.parameters, "bits a weight"
        ),
        Row("  of them signs", 8 * sections["signs"] / layout.parameters, "bits a weight"),
        Row("  to quantize and encode", 1e3 * encode_s, "ms", ENCODE_MS),
        Row("  to decode and rebuild", 1e3 * decode_s, "ms", DECODE_MS),
        Row("  aggregated", 1 / arrive_s, "updates a second", UPDATES_A_SECOND, at_least=True),
        Row(
            "  most memory of it", peak_bytes / layout.parameters, "bytes a weight", AGGREGATE_BYTES_A_WEIGHT
        ),
    ]


def cpu_s(what: Callable[[], object]) -> float:
    """Median CPU seconds of a call, over REPEATS."""
    spent_s = []
    for _ in range(REPEATS):
        before_s = time.process_time()
        what()
        spent_s.append(time.process_time() - before_s)
    return median(spent_s)
