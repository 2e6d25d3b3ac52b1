"""`firmware-sim fleet`: federated rounds over hundreds of simulated devices, from the command line."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmware_sim.runs.options import options_of
from hw_profiles import load_board, load_link
from onboard.console.errors import refused
from onboard.console.extras import require
from onboard.console.log import start
from onboard.learn.networks import described, network_for
from onboard.learn.training import Training

if TYPE_CHECKING:
    from firmware_sim.fleet.run import FleetConfig, FleetRun


@click.command()
@click.option("--devices", default=100, show_default=True, help="Number N of devices, at most 254.")
@click.option("--select", default=5, show_default=True, help="Number K of devices that are asked in a round.")
@click.option("--quorum", type=int, show_default="K", help="Answers that end a round.")
@click.option(
    "--rounds", default=10, show_default=True, type=click.IntRange(1, 0xFFFE), help="Rounds at most."
)
@click.option("--target", type=click.FloatRange(0, 1, min_open=True), show_default="none",
              help="Stop at this test accuracy.")  # fmt: skip
@click.option("--deadline", "deadline_s", default=900.0, show_default=True, metavar="S",
              type=click.FloatRange(0, min_open=True),
              help="Virtual seconds that a round waits for its quorum.")  # fmt: skip
@click.option("--dropout", default=0.0, show_default=True,
              help="Probability that a chosen device is out of contact for the round.")  # fmt: skip
@click.option("--staleness", type=click.FloatRange(min=0), metavar="A",
              show_default="discard",
              help="Merge an update that comes in a later round, with weight (1 + rounds "
                   "late)^-A.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31),
              help="Seed of the first weights, choice and shares of devices, order of images, and the "
                   "air.")  # fmt: skip
@click.option("--data", default="mnist", show_default=True,
              help="What is learned: digits, mnist, eurosat (the subset of 2,500 images where the folder has "
                   "it), eurosat-full, npz:PATH or folder:PATH.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="SPACEDML_DATA", show_envvar=True,
              help="Folder of mnist and eurosat.")  # fmt: skip
@click.option("--model", show_default="by the data",
              help=f"Model to train, with the images that it takes: {described()}.")  # fmt: skip
@click.option("--images", default=600, show_default=True, type=click.IntRange(min=1),
              help="Images a device, at most.")  # fmt: skip
@click.option("--split", type=click.Choice(["iid", "dirichlet"]), default="iid", show_default=True,
              help="Shares that are alike, or for each device its own mixture of the classes.")  # fmt: skip
@click.option("--alpha", default=0.3, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Concentration of the Dirichlet split: the smaller, the more unlike.")  # fmt: skip
@click.option("--board", "boards", multiple=True, default=["raspberry-pi-4"], show_default=True,
              help="Board profile; repeated ones go round among the devices.")  # fmt: skip
@click.option("--link", "links", multiple=True, default=["sband-256k"], show_default=True,
              help="Link profile, likewise.")  # fmt: skip
@click.option("--loss", type=click.FloatRange(0, 1, max_open=True), show_default="the profile's",
              help="Share of frames lost, in place of the profile's losses and bit errors.")  # fmt: skip
@click.option(
    "--shared-downlink",
    is_flag=True,
    help="Send a model once, heard by all that are asked; needs a single --link.",
)
@options_of(Training, {"method": "spacedml-fast"}, left_out="the method's")
@click.option("--out", type=click.Path(path_type=Path), default=Path("fleet-out"), show_default=True,
              help="Folder for results. A run that was stopped goes on from there.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each round in place of the table.")
def fleet(as_json: bool, **options: Any) -> None:
    """Trains across many simulated devices in one process, on a virtual clock.

    Every device is the real agent behind a real session; bytes are what its port would carry. It prints a
    line for every round, and leaves them as JSON lines, with a plot, in --out. Ctrl-C stops it; the same
    command goes on after the last whole round.

    \b
    Examples:
      firmware-sim fleet --method spacedml --select 5 --prune-ratio 0.8
      firmware-sim fleet --data digits --devices 6 --select 3 --images 200 --link uhf-9k6 --loss 0.05
      firmware-sim fleet --split dirichlet --alpha 0.3 --dropout 0.2 --quorum 3 --staleness 0.5
    """
    require("onnxruntime", "rich", "matplotlib")
    from firmware_sim.fleet.run import FleetRun
    from firmware_sim.fleet.simulation import FleetError
    from onboard.data.loading import DataError
    from onboard.learn.graph import GraphError

    start("json" if as_json else "text", logging.ERROR)
    try:
        wishes = _wishes(**options)
        run = FleetRun(wishes)
        stopped = not _show(run, wishes, as_json=as_json)
    except (DataError, GraphError, FleetError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        refused(error, options["out"])
    if stopped:
        click.echo(f"stopped; the same command goes on after round {len(run.results)}", err=True)
        sys.exit(130)


def _wishes(
    *, method: str, boards: tuple[str, ...], links: tuple[str, ...], loss: float | None, data: str,
    data_dir: Path | None, model: str | None, images: int, split: Any, alpha: float, out: Path,
    devices: int, select: int, quorum: int | None, rounds: int, target: float | None, deadline_s: float,
    dropout: float, staleness: float | None, seed: int, shared_downlink: bool, **training: Any,
) -> FleetConfig:  # fmt: skip
    """The options as one value. Raises ValueError, FleetError for what cannot be."""
    import msgspec

    from firmware_sim.fleet.presets import PRESETS
    from firmware_sim.fleet.run import FleetConfig
    from firmware_sim.fleet.simulation import FleetSettings, without_losses

    preset = PRESETS.get(method, Training(method=method))
    asked = {key: value for key, value in training.items() if value is not None}
    profiles = [load_link(name) for name in links]
    settings = FleetSettings(
        model=model or network_for(data),
        training=msgspec.convert(msgspec.to_builtins(preset) | asked, Training),
        boards=tuple(load_board(name) for name in boards),
        links=tuple(profiles if loss is None else [without_losses(link, loss) for link in profiles]),
        devices=devices, select=select, quorum=select if quorum is None else quorum, rounds=rounds,
        target=target, deadline_s=deadline_s, dropout=dropout, staleness=staleness, seed=seed,
        shared_downlink=shared_downlink,
    )  # fmt: skip
    return FleetConfig(
        settings=settings, data=data, data_folder=data_dir, images=images, split=split, alpha=alpha, out=out
    )


def _show(run: FleetRun, wishes: FleetConfig, *, as_json: bool) -> bool:
    """Plays and shows a run; False if it was stopped before its end."""
    from firmware_sim.fleet.view import draw, texts
    from firmware_sim.runs.live import show

    settings = wishes.settings
    if not show(run, texts(settings.rounds, run.parameters), as_json=as_json):
        return False
    if wishes.out is not None:
        title = f"{settings.training.method}, {settings.select} of {settings.devices} devices, {wishes.data}"
        draw(run.results, title, wishes.out / "rounds.png")
    return True
