"""A ring learns from a tenth of every exchange what it learns from all of it: figures 3 to 5 in kind.

Eight nodes of `firmware-sim ring` (real messages, a virtual clock, an exchange after every batch) train
LeNet-5 on MNIST, 1,000 images each, or ResNet-20 on EuroSAT, 250 each of the subset or 2,700 of the full set:
D-PSGD, RD-PSGD at p = 0.5, 0.3 and 0.1, Top-K and CHOCO-SGD at 0.1 (Meng et al., section 4.1). After the last
epoch the mean model of p = 0.1 is at most 0.5 points (MNIST) or 1.5 points (EuroSAT) below that of D-PSGD.
Beside them, with about as many epochs: eight devices and a ground of `firmware-sim fleet`, method
"spacedml-fast".

Results are kept in --out, a file or folder a run: what is there is not run again, and a run that was stopped
goes on after its last whole epoch or round.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import click
import msgspec

from benchmarks.harness import seeds as seeds_option
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from benchmarks.harness.simulated import results_of
from firmware_sim.fleet.cli import PRESETS
from firmware_sim.fleet.result import RoundResult
from firmware_sim.fleet.simulation import FleetConfig, FleetRun, FleetSettings
from firmware_sim.ring.settings import RingSettings
from firmware_sim.ring.simulation import RingConfig, RingRun
from firmware_sim.runs.live import RunProgress
from hw_profiles import load_board, load_link
from onboard.learn.training import Recipe, Training
from onboard.storage.files import replace_durably

NODES, P = 8, 0.1
METHODS: Mapping[str, tuple[str, float]] = {
    "D-PSGD": ("d-psgd", 1.0),
    "RD-PSGD, p = 0.5": ("rd-psgd", 0.5),
    "RD-PSGD, p = 0.3": ("rd-psgd", 0.3),
    "RD-PSGD, p = 0.1": ("rd-psgd", P),
    "Top-K, 0.1": ("topk", P),
    "CHOCO-SGD, 0.1": ("choco", P),
}
DENSE, SPARSE, CENTRAL = "D-PSGD", "RD-PSGD, p = 0.1", "spacedml-fast, central"
CENTRAL_EPOCHS = 2  # a round of the fleet's
LAST = 3  # epochs in which accuracy is to have settled
BOARD, LINK = "raspberry-pi-4", "isl-2mbyte"
FRAME_BYTES = 65_507  # on a ring's edges: of the profile's 1,400 there are 50 times as many to play


@dataclass(frozen=True, kw_only=True)
class LearningTask:
    """What is learned, and how. `test_data`, `test_images`: as in `RunConfig`; `rates`: of the mixing,
    by method, where it is not 1; `cosine`: whether the learning rate follows half a cosine over all epochs;
    `points`: that p = 0.1 may be below dense."""

    data: str
    test_data: str | None = None
    test_images: int | None = None
    model: str
    images: int
    epochs: int
    seeds: tuple[int, ...]
    recipe: Recipe
    rates: Mapping[str, float]
    cosine: bool = False
    points: float | None = None


TASKS = {
    "mnist": LearningTask(
        data="mnist", model="lenet5", images=1000, epochs=8, seeds=(0, 1), points=0.5,
        recipe=Recipe(batch_size=32, learning_rate=0.05), rates={"choco": 0.4, "topk": 0.1},
    ),
    "eurosat": LearningTask(
        data="eurosat", test_data="eurosat-full", test_images=2000, model="resnet20", images=250, epochs=80,
        seeds=(0,), points=1.5, cosine=True, rates={"choco": 0.4, "topk": 0.1},
        recipe=Recipe(batch_size=5, learning_rate=0.01, weight_decay=5e-4, shift_pixels=2),
    ),
    "eurosat-full": LearningTask(
        data="eurosat-full", model="resnet20", images=2700, epochs=10, seeds=(0,), points=1.5,
        recipe=Recipe(batch_size=5, learning_rate=0.01, weight_decay=5e-4), cosine=True,
        rates={"choco": 0.4, "topk": 0.1},
    ),
    # For trying it out: scikit-learn's digits come with the package.
    "digits": LearningTask(
        data="digits", model="lenet5", images=100, epochs=3, seeds=(0,),
        recipe=Recipe(batch_size=16, learning_rate=0.05), rates={"choco": 0.4, "topk": 0.1},
    ),
}  # fmt: skip

OPTIONS = (
    click.Option(["--data"], type=click.Choice(list(TASKS)), default="mnist", show_default=True,
                 help="What is learned; digits for a short try."),
    click.Option(["--epochs"], type=click.IntRange(min=1), help="Of every node. Default: the data's."),
    seeds_option.option(None, "Runs to average. Default: the data's."),
    click.Option(["--method", "methods"], type=click.Choice([*METHODS, CENTRAL]), multiple=True,
                 help="Only this one; repeatable."),
    click.Option(["--out"], type=click.Path(path_type=Path), default=Path("convergence-out"),
                 show_default=True, help="Folder of finished runs."),
    click.Option(["--plot"], type=click.Path(dir_okay=False, path_type=Path),
                 help="Draws accuracy against bytes and epochs into this PNG."),
    click.Option(["--data-dir"], type=click.Path(path_type=Path), envvar="SPACEDML_DATA", show_envvar=True,
                 help="Folder of mnist and eurosat."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """Of a run: the mean or global model's accuracy (0..1) after so many epochs of every node, and the bytes
    on all links until then, framing included."""

    epoch: int
    accuracy: float
    bytes_sent: int


@dataclass(frozen=True)
class ConvergenceBench:
    """What all runs share."""

    task: LearningTask
    out: Path
    data_dir: Path | None
    tell: ProgressLine

    def ring(self, name: str, seed: int) -> list[Point]:
        """A ring's run, an epoch a point; played where it is not in the folder. Raises LabError."""
        method, p = METHODS[name]
        called = f"{self.task.data}-{self.task.epochs}-{method}-{p:g}-{seed}"
        path, state = self.out / f"{called}.json", self.out / called
        wishes = self._wishes(name, seed, state)
        asked = json.loads(json.dumps({**asdict(wishes), "data_folder": None, "out": None}, default=_plain))
        if path.exists():
            kept = json.loads(path.read_bytes())
            if kept["asked"] != asked:
                raise LabError(f"{path}: holds a run with other settings; choose another folder with --out")
            return [Point(**point) for point in kept["points"]]
        self.tell(f"{name}, seed {seed}: reading images")
        try:
            run = RingRun(wishes)
            for seen in run.play():
                if isinstance(seen, RunProgress):
                    so_far = f", {100 * run.results[-1].score:.1f} % so far" if run.results else ""
                    of = f"{seen.step} of {self.task.epochs}"
                    self.tell(f"{name}, seed {seed}, epoch {of}{so_far}")
        except ValueError as error:
            raise LabError(str(error)) from None
        points = [Point(result.epoch, result.score, result.bytes_sent) for result in run.results]
        kept = {"asked": asked, "points": [asdict(point) for point in points]}
        replace_durably(path, json.dumps(kept).encode() + b"\n")
        shutil.rmtree(state)
        return points

    def central(self, seed: int) -> list[Point]:
        """A fleet's run of as many epochs, a round a point; kept by the fleet itself. Raises LabError."""
        rounds = -(-self.task.epochs // CENTRAL_EPOCHS)
        training = msgspec.structs.replace(PRESETS["spacedml-fast"], epochs=CENTRAL_EPOCHS)
        wishes = FleetConfig(
            settings=FleetSettings(
                training=training, devices=NODES, select=NODES, quorum=NODES, rounds=rounds,
                model=self.task.model, deadline_s=1e6, seed=seed,
                boards=(load_board(BOARD),), links=(load_link(LINK),),
            ),
            data=self.task.data, data_folder=self.data_dir, images=self.task.images,
            out=self.out / f"{self.task.data}-{rounds}-central-{seed}",
        )  # fmt: skip
        return points_of(results_of(lambda: FleetRun(wishes), self.tell, f"{CENTRAL}, seed {seed}"), training)

    def _wishes(self, name: str, seed: int, out: Path) -> RingConfig:
        task, (method, p) = self.task, METHODS[name]
        recipe = (
            msgspec.structs.replace(task.recipe, cosine_epochs=task.epochs) if task.cosine else task.recipe
        )
        settings = RingSettings(
            nodes=NODES, method=method, sparsity=p, rate=task.rates.get(method, 1.0), model=task.model,
            recipe=recipe, epochs=task.epochs, seed=seed, board=load_board(BOARD),
            link=replace(load_link(LINK), mtu_bytes=FRAME_BYTES),
        )  # fmt: skip
        return RingConfig(
            settings=settings, data=task.data, data_folder=self.data_dir, images=task.images,
            test_data=task.test_data, test_images=task.test_images, node_images=1, out=out,
        )  # fmt: skip


def _plain(value: object) -> object:
    """What JSON has in place of a value that it does not know."""
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else str(value)


def points_of(rounds: Sequence[RoundResult], training: Training) -> list[Point]:
    """A fleet's rounds, after as many epochs as its devices have done by then."""
    sent = accumulate(result.bytes_both for result in rounds)
    return [
        Point(training.pretrain_epochs + training.epochs * result.round, result.score, total)
        for result, total in zip(rounds, sent, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class ConvergenceSettings:
    """What OPTIONS give: the data set, for how many epochs, from which seeds, by which methods (none: all),
    and where results, plot and data are."""

    data: str
    epochs: int | None = None
    seeds: tuple[int, ...] = ()
    methods: tuple[str, ...] = ()
    out: Path
    plot: Path | None = None
    data_dir: Path | None = None


SETTINGS = ConvergenceSettings


def measure(tell: ProgressLine, asked: ConvergenceSettings) -> list[Row]:
    """Plays what is not in the folder: minutes a run. Raises LabError, DataError."""
    task = TASKS[asked.data]
    task = replace(task, epochs=asked.epochs or task.epochs, seeds=asked.seeds or task.seeds)
    bench = ConvergenceBench(task, asked.out, asked.data_dir, tell)
    runs = {
        name: [bench.central(seed) if name == CENTRAL else bench.ring(name, seed) for seed in task.seeds]
        for name in (*METHODS, CENTRAL)
        if not asked.methods or name in asked.methods
    }
    rows = [row for name in runs for row in _rows(name, runs, task.points)]
    if asked.plot is not None:
        draw(runs, f"ring of {NODES}, {task.model} on {task.data}", asked.plot)
    return rows


def _rows(name: str, runs: Mapping[str, Sequence[Sequence[Point]]], points: float | None) -> Iterator[Row]:
    """A method's: means over its seeds."""
    own = runs[name]
    last = fmean(final(run) for run in own)
    yield Row(f"{name}: accuracy after {own[0][-1].epoch} epochs", last, "%")
    if DENSE in runs and name != DENSE:
        below = fmean(final(run) for run in runs[DENSE]) - last
        yield Row("  below D-PSGD", below, "points", points if name == SPARSE else None)
    yield Row(f"  it moved in the last {LAST} epochs by at most", max(map(moved, own)), "points")
    yield Row("  sent on all links", fmean(run[-1].bytes_sent for run in own) / 1e6, "MB")


def final(run: Sequence[Point]) -> float:
    """Accuracy after the last epoch, percent."""
    return 100 * run[-1].accuracy


def moved(run: Sequence[Point]) -> float:
    """How far the last accuracies lie apart, points."""
    accuracies = [100 * point.accuracy for point in run[-LAST:]]
    return max(accuracies) - min(accuracies)


def draw(runs: Mapping[str, Sequence[Sequence[Point]]], title: str, path: Path) -> None:
    """Accuracy against bytes and against epochs, the mean over a method's runs, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_bytes, by_epoch = figure.subplots(1, 2, sharey=True)
    for name, of_seeds in runs.items():
        together = list(zip(*of_seeds, strict=True))
        accuracy = [100 * fmean(point.accuracy for point in points) for points in together]
        sent = [fmean(point.bytes_sent for point in points) / 1e6 for points in together]
        epochs = [points[0].epoch for points in together]
        by_bytes.plot(sent, accuracy, marker="o", markersize=3, label=name)
        by_epoch.plot(epochs, accuracy, marker="o", markersize=3, label=name)
    by_bytes.set(xlabel="MB on all links so far, framing included", ylabel="accuracy, %", xscale="log")
    by_epoch.set(xlabel="epoch", title=title)
    by_bytes.legend()
    for axes in (by_bytes, by_epoch):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
