"""Every shipped network learns in a fraction of a bit a weight what it learns in float32.

Twenty boards of `firmware-sim fleet` or `ring` (real agents, a virtual clock) have 100 images each. A fleet
asks five of them in each of 15 rounds for five epochs, or in 60 where something is promised: FedAvg in
float32; spacedml-fast at three budgets, with the same epochs, rate and augmentation; and spacedml, whose
rounds have seven epochs, in the fewer. On a ring of all boards, which train 30 epochs and exchange after
every batch, RD-PSGD at p = 0.1 has values in float32 and by ALQ. Judged are the merged or mean models of the
last five rounds or epochs, on 1,000 test images of the whole set, or on the subset's 500 with masks; of these
a fifth measure a fleet's running statistics, where a network has any, and the others judge. Bits are those of
an update's every byte, over its weights, the mean over rounds and boards; an exchange's are of all that
crosses a link one way.

ResNet-20 at 64 pixels with 0.2 bit is at most one point below FedAvg, the U-Net with 0.3 bit at most one
point of mean IoU. Results are kept in --out, a folder a run: what is there is not run again, and a run that
was stopped goes on after its last whole round or epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import click
import msgspec

from benchmarks.claims.learning.table1 import as_fedavg
from benchmarks.harness import seeds as seeds_option
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from benchmarks.harness.simulated import results_of
from firmware_sim.fleet.cli import PRESETS
from firmware_sim.fleet.simulation import FleetConfig, FleetRun, FleetSettings
from firmware_sim.ring.settings import RingSettings
from firmware_sim.ring.simulation import RingConfig, RingRun
from hw_profiles import load_board, load_link
from onboard.codec.values import Form
from onboard.learn.graph import TrainGraph
from onboard.learn.networks import shipped
from onboard.learn.objectives import Metric
from onboard.learn.training import Recipe, Training

BOARDS, SELECT, IMAGES, P = 20, 5, 100, 0.1
ROUND_EPOCHS, SPACEDML_EPOCHS = 5, 7  # in a round; spacedml has the fewer rounds
POINTS = 1.0
BUDGETS = (0.05, 0.17, 0.4)
BITS_DOWN = 6.0  # a downlink has no bound, and carries the whole model, not what a round moved
BOARD, LINK, EDGE = "raspberry-pi-4", "sband-2m", "isl-2mbyte"
DECAY = 0.965  # of the learning rate, a round
EPOCHS = 30  # of a ring
JUDGED = 5  # last rounds or epochs
FRAME_BYTES = 65_507  # on a ring's edges: of the profile's 1,400 there are 50 times as many to play


@dataclass(frozen=True, kw_only=True)
class Study:
    """How a network is taught. `budgets`: of spacedml-fast, bits a weight for bases and coordinates; with the
    second all bytes take at most `most_bits`, and the network is held to FedAvg."""

    data: str = "eurosat"
    test_data: str = "eurosat-full"
    test_images: int | None = 1000
    rate: float = 3e-3
    gossip_rate: float = 0.02
    shift_pixels: int = 4
    distortion: float = 0.0
    budgets: tuple[float, float, float] = BUDGETS
    most_bits: float | None = None
    rounds: int = 15
    rule: str = "mean"  # of `spacedml-fast`, as the next one
    error_feedback: float = 0.0


STUDIES: Mapping[str, Study] = {
    "lenet5": Study(data="mnist", test_data="mnist", shift_pixels=2, distortion=1.0),
    "lenet5-rgb": Study(shift_pixels=2),
    "resnet20": Study(shift_pixels=2),
    "resnet20-64": Study(
        rate=2e-3, budgets=(0.05, 0.19, 0.4), most_bits=0.2, rounds=60, rule="sparse-mean", error_feedback=0.8
    ),
    "mobilenetv3-small-64": Study(),
    "unet-64": Study(
        data="eurosat-water",
        test_data="eurosat-water",
        test_images=None,
        budgets=(0.05, 0.28, 0.6),
        most_bits=0.3,
        rounds=60,
        rule="sparse-mean",
        error_feedback=0.8,
    ),
    "vit-tiny-64": Study(rate=1e-3),
    "autoencoder-64": Study(),
}
METHODS = ("fedavg", "spacedml", "spacedml-fast", "rd-psgd")
OPTIONS = (
    click.Option(["--network", "networks"], type=click.Choice(list(STUDIES)), multiple=True,
                 help="Only this one; repeatable."),
    click.Option(["--method", "methods"], type=click.Choice(METHODS), multiple=True,
                 help="Only this one, beside FedAvg; repeatable."),
    click.Option(["--promised"], is_flag=True, help="Only what has a bound, and FedAvg beside it."),
    seeds_option.option("0"),
    click.Option(["--out"], type=click.Path(path_type=Path), default=Path("quality-out"), show_default=True,
                 help="Folder of finished and unfinished runs."),
    click.Option(["--plot"], type=click.Path(dir_okay=False, path_type=Path),
                 help="Draws what networks reach against bits into this PNG."),
    click.Option(["--data-dir"], type=click.Path(path_type=Path), envvar="SPACEDML_DATA", show_envvar=True,
                 help="Folder of mnist and eurosat."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Learned:
    """What a run came to: the metric of its last models, and bits a weight, one way."""

    score: float
    bits: float


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """What OPTIONS give."""

    networks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    promised: bool = False
    seeds: tuple[int, ...]
    out: Path
    plot: Path | None = None
    data_dir: Path | None = None


SETTINGS = QualitySettings


@dataclass(frozen=True)
class Pupil:
    """A network that is taught in every way."""

    name: str
    asked: QualitySettings
    tell: ProgressLine

    @property
    def study(self) -> Study:
        return STUDIES[self.name]

    def runs(self) -> dict[str, list[Learned]]:
        """Every way's runs, a seed each. Raises LabError, DataError."""
        return {way: [self._run(way, seed) for seed in self.asked.seeds] for way in self._ways()}

    def _ways(self) -> Iterator[str]:
        yield "fedavg"
        if self.asked.promised:
            yield _fast(self.study.budgets[1])
            return
        methods = self.asked.methods or METHODS
        if "spacedml" in methods:
            yield "spacedml"
        if "spacedml-fast" in methods:
            yield from map(_fast, self.study.budgets)
        if "rd-psgd" in methods:
            yield from ("rd-psgd", "rd-psgd-alq")

    def _run(self, way: str, seed: int) -> Learned:
        name, out = f"{self.name}, {way}, seed {seed}", self.asked.out / f"{self.name}-{way}-{seed}"
        if way.startswith("rd-psgd"):
            return self._gossip(Form.ALQ if way.endswith("alq") else Form.FP32, seed, out, name)
        rounds = results_of(lambda: FleetRun(self._fleet(way, seed, out)), self.tell, name)
        return Learned(
            _reached([result.score for result in rounds]), fmean(result.bits_up for result in rounds)
        )

    def _training(self, way: str) -> Training:
        study, fast = self.study, PRESETS["spacedml-fast"]
        known = {"learning_rate": study.rate, "learning_rate_decay": DECAY}
        moved = {"shift_pixels": study.shift_pixels, "distortion": study.distortion}
        if way == "spacedml":
            return msgspec.structs.replace(PRESETS["spacedml"], **known, **moved)
        bits = float(way.removeprefix("spacedml-fast-")) if way != "fedavg" else fast.bits_up
        training = msgspec.structs.replace(
            fast,
            epochs=ROUND_EPOCHS - fast.pretrain_epochs,
            bits_up=bits,
            bits_down=BITS_DOWN,
            error_feedback=study.error_feedback,
            **known,
            **moved,
        )
        return as_fedavg(training) if way == "fedavg" else training

    def _fleet(self, way: str, seed: int, out: Path) -> FleetConfig:
        study = self.study
        rounds = study.rounds * ROUND_EPOCHS // SPACEDML_EPOCHS if way == "spacedml" else study.rounds
        return FleetConfig(
            settings=FleetSettings(
                model=self.name, training=self._training(way), devices=BOARDS, select=SELECT, quorum=SELECT,
                rounds=rounds, deadline_s=1e6, seed=seed,
                boards=(load_board(BOARD),),
                links=(load_link(LINK),),
                rule=study.rule if way.startswith("spacedml-fast") else "mean",
            ),
            data=study.data, data_folder=self.asked.data_dir, images=IMAGES, test_data=study.test_data,
            test_images=study.test_images, out=out,
        )  # fmt: skip

    def _gossip(self, values: Form, seed: int, out: Path, name: str) -> Learned:
        study, epochs = self.study, EPOCHS
        recipe = Recipe(
            batch_size=10, learning_rate=study.gossip_rate, weight_decay=5e-4, cosine_epochs=epochs,
            shift_pixels=study.shift_pixels, distortion=study.distortion,
        )  # fmt: skip
        settings = RingSettings(
            nodes=BOARDS, method="rd-psgd", sparsity=P, rate=1.0, values=values, model=self.name,
            recipe=recipe, epochs=epochs, seed=seed, board=load_board(BOARD),
            link=replace(load_link(EDGE), mtu_bytes=FRAME_BYTES),
        )  # fmt: skip
        wishes = RingConfig(
            settings=settings, data=study.data, data_folder=self.asked.data_dir, images=IMAGES,
            test_data=study.test_data, test_images=study.test_images, node_images=1, out=out,
        )  # fmt: skip
        results = results_of(lambda: RingRun(wishes), self.tell, name)
        weights, last = TrainGraph.load(self.name).layout.parameters, results[-1]
        bits = 8 * last.bytes_sent / (2 * last.exchanges) / weights
        return Learned(_reached([result.score for result in results]), bits)


def _reached(scores: list[float]) -> float:
    return fmean(scores[-JUDGED:])


def _fast(bits: float) -> str:
    return f"spacedml-fast-{bits:g}"


def measure(tell: ProgressLine, asked: QualitySettings) -> list[Row]:
    """Plays what is not in the folder: up to an hour a run. Raises LabError, DataError."""
    names = [name for name in shipped() if name in (asked.networks or STUDIES)]
    if asked.promised:
        names = [name for name in names if STUDIES[name].most_bits is not None]
    found = {name: Pupil(name, asked, tell).runs() for name in names}
    if asked.plot is not None:
        draw(found, asked.plot)
    return [row for name, runs in found.items() for row in _rows(name, runs)]


def _rows(name: str, runs: Mapping[str, list[Learned]]) -> Iterator[Row]:
    metric, study = TrainGraph.load(name).objective.metric, STUDIES[name]
    fedavg = _score(runs["fedavg"], metric)
    unit = "%" if metric.is_share else ""
    for way, learned in runs.items():
        least = None
        if study.most_bits is not None and way == _fast(study.budgets[1]):
            least = fedavg - POINTS
            yield Row(f"{name}, {way}: bits up", _bits(learned), "bit/weight", study.most_bits)
        elif way != "fedavg":
            yield Row(f"{name}, {way}: bits", _bits(learned), "bit/weight")
        yield Row(f"{name}, {way}: {metric.title}", _score(learned, metric), unit, least, at_least=True)


def _score(learned: list[Learned], metric: Metric) -> float:
    """The mean over the seeds, as people read it."""
    return metric.plotted(fmean(each.score for each in learned))


def _bits(learned: list[Learned]) -> float:
    return fmean(each.bits for each in learned)


def draw(found: Mapping[str, Mapping[str, list[Learned]]], path: Path) -> None:
    """What each network reaches against bits a weight, the mean over the seeds, as a PNG."""
    from matplotlib.figure import Figure

    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, runs) in zip(panels, found.items(), strict=False):
        metric = TrainGraph.load(name).objective.metric
        fast = sorted((_bits(runs[way]), _score(runs[way], metric)) for way in runs if "fast" in way)
        axes.axhline(_score(runs["fedavg"], metric), color="0.4", linestyle=":", label="FedAvg, float32")
        axes.plot(*zip(*fast, strict=True), marker="o", label="spacedml-fast")
        for way, label in (
            ("spacedml", "spacedml"), ("rd-psgd", "RD-PSGD, float32"), ("rd-psgd-alq", "RD-PSGD, ALQ"),
        ):  # fmt: skip
            if way in runs:
                axes.plot(_bits(runs[way]), _score(runs[way], metric), "s", label=label)
        axes.set(title=name, xlabel="bits a weight, one way", ylabel=metric.axis, xscale="log")
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(found) :]:
        axes.set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=120)
