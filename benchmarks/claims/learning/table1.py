"""SpaceDML's Table I on the wire: FedAvg and nine cells, at or above its accuracy in at most its bits.

LeNet-5 on MNIST, 100 devices with 600 images each, K of them asked in a round, ten rounds, batches of 10
(SpaceDML, section IV). Every cell is a `firmware_sim.fleet`: real agents, real frames. The paper leaves
optimizer, rate and augmentation open; ours are in `firmware_sim.fleet.cli`, and FedAvg gets the same in rows
of its own. Numbers are means over the seeds; accuracy is that of the quantized model after the last round.

The downlink is the paper's too: a sketch that nobody prunes, of one basis on average; its bits are rows
without a bound.

Results are kept in --out, one folder a run: what was stopped goes on, what is there is not run again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean

import click
import msgspec

from benchmarks.harness import seeds
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from benchmarks.harness.simulated import results_of
from firmware_sim.fleet.cli import PRESETS
from firmware_sim.fleet.result import RoundResult
from firmware_sim.fleet.simulation import FleetConfig, FleetRun, FleetSettings, without_losses
from hw_profiles import Link, load_board, load_link
from onboard.learn.training import Training

ROUNDS, DEVICES, IMAGES = 10, 100, 600  # SpaceDML, section IV
FEDAVG = {3: 95.43, 5: 95.88, 10: 96.10}  # Table I: K -> accuracy, %
CELLS = {  # Table I: (K, pruning ratio) -> bit-width, accuracy in %
    (3, 0.7): (0.8145, 97.62),
    (3, 0.8): (0.4131, 98.21),
    (3, 0.9): (0.3986, 97.12),
    (5, 0.7): (0.5402, 98.67),
    (5, 0.8): (0.4054, 98.26),
    (5, 0.9): (0.4247, 96.38),
    (10, 0.7): (0.5011, 98.46),
    (10, 0.8): (0.5109, 97.29),
    (10, 0.9): (0.4209, 97.84),
}
FAST_K = 5
FAST_ACCURACY, FAST_BITS_UP, FAST_BITS_DOWN = 98.4, 0.11, 0.3
# One pass of 8 minutes at 9.6 kbit/s of which 80 % can be used; and two minutes of that radio.
REACHED, PASS_MB, MOONSHOT_MB = 0.98, 0.46, 0.115
ALPHA, NON_IID_POINTS = 0.3, 2.0
# Bases and coordinates are budgeted before coding. At 0.4 bit, header, bit-widths and biases add 2 % and the
# coder saves 6 %: with this factor 1 to 2 % of the budget stay unspent.
ROOM = 1.03
PARTS = ("fedavg", "cells", "fast", "non-iid")
OPTIONS = (
    click.Option(["--select"], type=click.Choice(["3", "5", "10"]), help="Only this K."),
    click.Option(["--prune-ratio"], type=click.Choice(["0.7", "0.8", "0.9"]), help="Only its cells."),
    click.Option(["--part"], type=click.Choice(PARTS), help="Only this part of the table."),
    seeds.option("0,1,2"),
    click.Option(["--out"], type=click.Path(path_type=Path), default=Path("table1-out"), show_default=True,
                 help="Folder of finished and unfinished runs."),
    click.Option(["--data-dir"], type=click.Path(path_type=Path), envvar="SPACEDML_DATA", show_envvar=True,
                 help="Folder of mnist."),
)  # fmt: skip


@dataclass(frozen=True)
class TableBench:
    """What all runs share. `seeds` of the runs that are averaged."""

    seeds: tuple[int, ...]
    out: Path
    data_dir: Path | None
    tell: ProgressLine

    def runs(
        self, name: str, select: int, training: Training, link: Link, *, alpha: float | None = None,
        shared_downlink: bool = False,
    ) -> list[list[RoundResult]]:  # fmt: skip
        """The rounds of each seed's run; played where they are not in the folder yet. Raises LabError."""
        return [self._run(name, select, training, link, alpha, shared_downlink, seed) for seed in self.seeds]

    def _run(
        self, name: str, select: int, training: Training, link: Link, alpha: float | None,
        shared_downlink: bool, seed: int,
    ) -> list[RoundResult]:  # fmt: skip
        wishes = FleetConfig(
            settings=FleetSettings(
                training=training, devices=DEVICES, select=select, quorum=select, rounds=ROUNDS,
                deadline_s=3600.0, seed=seed, boards=(load_board("raspberry-pi-4"),), links=(link,),
                shared_downlink=shared_downlink,
            ),
            data="mnist", data_folder=self.data_dir, images=IMAGES, alpha=alpha,
            out=self.out / f"{name}-{seed}",
        )  # fmt: skip
        return results_of(lambda: FleetRun(wishes), self.tell, f"{name}, seed {seed}")


def measure(
    tell: ProgressLine,
    *,
    select: str | None,
    prune_ratio: str | None,
    part: str | None,
    seeds: tuple[int, ...],
    out: Path,
    data_dir: Path | None,
) -> list[Row]:
    """The rows that were asked for; all of them take some hours. Raises LabError, DataError."""
    bench = TableBench(seeds, out, data_dir, tell)
    k = None if select is None else int(select)
    ratio = None if prune_ratio is None else float(prune_ratio)
    parts = PARTS if part is None else (part,)
    if part is None and ratio is not None:
        parts = ("cells",)  # one cell runs alone
    rows: list[Row] = []
    if "fedavg" in parts:
        for each in (k,) if k else FEDAVG:
            rows += _fedavg(bench, each)
    if "cells" in parts:
        for each, its_ratio in CELLS:
            if k in (None, each) and ratio in (None, its_ratio):
                rows += _cell(bench, each, its_ratio)
    if "fast" in parts and k in (None, FAST_K):
        rows += _fast(bench)
    if "non-iid" in parts and k in (None, FAST_K):
        rows += _non_iid(bench)
    return rows


def _fedavg(bench: TableBench, k: int) -> Iterator[Row]:
    """FedAvg as in the paper, an epoch a round, and with the training that the cells have."""
    link = load_link("sband-2m")
    accuracy = _accuracy(bench.runs(f"fedavg-{k}", k, PRESETS["fedavg"], link))
    yield Row(f"FedAvg, one epoch, K = {k}: accuracy", accuracy, "%", FEDAVG[k], at_least=True)
    accuracy = _accuracy(bench.runs(f"fedavg-same-{k}", k, as_fedavg(PRESETS["spacedml"]), link))
    yield Row(f"FedAvg, the cells' training, K = {k}: accuracy", accuracy, "%", FEDAVG[k], at_least=True)


def _cell(bench: TableBench, k: int, ratio: float) -> Iterator[Row]:
    """A cell: the paper's numbers are the bounds."""
    bits, accuracy = CELLS[k, ratio]
    runs = bench.runs(f"spacedml-{k}-{ratio}", k, for_bits(ratio, bits), load_link("sband-2m"))
    what = f"SpaceDML-{ratio}, K = {k}:"
    yield Row(f"{what} accuracy", _accuracy(runs), "%", accuracy, at_least=True)
    yield Row(f"{what} up, the paper's count", _mean(runs, "width_up"), "bit/weight", bits)
    yield Row(f"{what} up, every byte", _mean(runs, "bits_up"), "bit/weight", bits)
    yield Row(f"{what} down, the paper's count", _mean(runs, "width_down", after=1), "bit/weight")
    yield Row(f"{what} down, every byte", _mean(runs, "bits_down", after=1), "bit/weight")


def _fast(bench: TableBench) -> Iterator[Row]:
    """Ours, over a radio that loses one frame in twenty and is heard by all devices at once."""
    link = without_losses(load_link("uhf-9k6"), 0.05)
    runs = bench.runs(f"fast-{FAST_K}", FAST_K, PRESETS["spacedml-fast"], link, shared_downlink=True)
    what = f"spacedml-fast, K = {FAST_K}:"
    yield Row(f"{what} accuracy after {ROUNDS} rounds", _accuracy(runs), "%", FAST_ACCURACY, at_least=True)
    yield Row(f"{what} up, every byte", _mean(runs, "bits_up"), "bit/weight", FAST_BITS_UP)
    yield Row(f"{what} down, every byte", _mean(runs, "bits_down", after=1), "bit/weight", FAST_BITS_DOWN)
    reached = [count for run in runs if (count := bytes_until(run, REACHED)) is not None]
    percent = f"{100 * REACHED:g} %"
    yield Row(f"{what} runs that reach {percent}", len(reached), f"of {len(runs)}", len(runs), at_least=True)
    if reached:
        sent_mb = fmean(reached) / 1e6
        yield Row(f"{what} on the wire until {percent}", sent_mb, "MB", PASS_MB)
        yield Row(f"{what} the same, of the moonshot's {MOONSHOT_MB} MB", sent_mb / MOONSHOT_MB, "times")


def _non_iid(bench: TableBench) -> Iterator[Row]:
    """Shares by Dirichlet(0.3), ours beside FedAvg with the same training."""
    link, training = load_link("sband-2m"), PRESETS["spacedml-fast"]
    ours = _accuracy(bench.runs("non-iid-fast", FAST_K, training, link, alpha=ALPHA))
    theirs = _accuracy(bench.runs("non-iid-fedavg", FAST_K, as_fedavg(training), link, alpha=ALPHA))
    what = f"Dirichlet {ALPHA}, K = {FAST_K}:"
    yield Row(f"{what} FedAvg, the same training, accuracy", theirs, "%")
    yield Row(f"{what} spacedml-fast, accuracy", ours, "%", theirs - NON_IID_POINTS, at_least=True)


def for_bits(prune_ratio: float, bits: float) -> Training:
    """Returns the paper's procedure for at most `bits` a weight, all bytes counted, after pruning by
    `prune_ratio`. No group gets more bases than that takes: each costs time at every step."""
    sketch_bits = ROOM * bits / (1 - prune_ratio)
    return msgspec.structs.replace(
        PRESETS["spacedml"],
        prune_ratio=prune_ratio,
        bits_up=sketch_bits,
        max_bases=math.ceil(sketch_bits),
    )


def as_fedavg(training: Training) -> Training:
    """Returns FedAvg with as many epochs a round (no first pre-training), and equal rate and augmentation."""
    epochs = training.epochs
    if training.method == "spacedml":
        epochs += training.prune_epochs + training.basis_epochs + training.coordinate_epochs
    elif training.method == "spacedml-fast":
        epochs += training.pretrain_epochs
    return msgspec.structs.replace(training, method="fedavg", epochs=epochs, error_feedback=0.0)


def bytes_until(run: Sequence[RoundResult], accuracy: float) -> int | None:
    """Bytes on the wire, both directions, until the devices have the first model of `accuracy` (0..1).

    A round's model goes down with the round after it, so that one's downlink counts too; after the last round
    as much as its own is taken. None if no round reached it.
    """
    totals = accumulate(result.bytes_both for result in run)
    for number, (total, result) in enumerate(zip(totals, run, strict=True)):
        if result.score >= accuracy:
            return total + run[min(number + 1, len(run) - 1)].bytes_down
    return None


def _accuracy(runs: Sequence[Sequence[RoundResult]]) -> float:
    """Of the last round, percent, mean over the runs."""
    return 100 * fmean(run[-1].score for run in runs)


def _mean(runs: Sequence[Sequence[RoundResult]], field: str, *, after: int = 0) -> float:
    """A field's mean over the rounds past `after` (the first sends no weights down) and the runs."""
    return fmean(float(getattr(result, field)) for run in runs for result in run[after:])
