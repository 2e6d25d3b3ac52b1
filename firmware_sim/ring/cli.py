"""The `firmware-sim ring` command: nodes that learn and gossip without a server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from firmware_sim.runs.options import data_options, options_of, run_options
from hw_profiles import load_board, load_link
from onboard.console.errors import finite
from onboard.console.extras import require
from onboard.learn.networks import network_for
from onboard.learn.training import Recipe

if TYPE_CHECKING:
    from firmware_sim.ring.settings import GroundNode
    from firmware_sim.ring.simulation import RingConfig

SHAPES = ("ring", "planes", "torus", "star", "complete")
FORMS = ("fp32", "fp16", "int8", "alq")
MOST_FRAME_BYTES = 65_507  # as a link profile may say


class AlgorithmName(click.Choice[str]):
    """A choice from the table of algorithms, which is loaded on demand: it imports numpy."""

    def __init__(self) -> None:
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        from onboard.learn.gossip.algorithms import ALGORITHMS

        return tuple(ALGORITHMS)


def _scenario(context: click.Context, _option: click.Parameter, path: Path | None) -> None:
    from firmware_sim.ring.settings import load_scenario
    from onboard.console.toml import ConfigError

    if path is None:
        return
    try:
        options, context.obj = load_scenario(path)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    names = {option.lstrip("-"): param.name for param in ring.params for option in param.opts}
    for key in options:
        if key not in names:
            raise click.UsageError(f"{path}: ring.{key}: unknown key; keys are the options of this command")
    context.default_map = {str(names[key]): value for key, value in options.items()}


@click.command()
@click.option("--scenario", type=click.Path(path_type=Path), callback=_scenario, is_eager=True,
              expose_value=False, metavar="FILE", show_default="none",
              help="TOML: these options by their names in [ring], for what the command line does not say; in "
                   "[ground] a station's link profile, and for each [[ground.gateway]] its node and passes, "
                   "[rise, set] in seconds.")  # fmt: skip
@click.option("--nodes", default=8, help="Number of nodes, at most 254.")
@click.option("--method", type=AlgorithmName(), default="rd-psgd",
              help="Random runs of coordinates, whole models, Top-K with error feedback, or "
                   "CHOCO-SGD.")  # fmt: skip
@click.option("--sparsity", default=0.1, type=click.FloatRange(0, 1, min_open=True),
              help="Share p of the coordinates that travels.")  # fmt: skip
@click.option("--values", type=click.Choice(FORMS), default="fp32",
              help="How values travel, for rd-psgd and d-psgd.")  # fmt: skip
@click.option("--shape", type=click.Choice(SHAPES), default="ring",
              help="Who is whose neighbour: planes is a ring of every --columns nodes, star has node 1 in "
                   "the middle. Weights are Metropolis-Hastings'.")  # fmt: skip
@click.option("--columns", default=4, type=click.IntRange(min=1),
              help="Columns of the torus, or nodes of a plane.")  # fmt: skip
@click.option("--every", default=1, type=click.IntRange(min=1), help="Batches between two exchanges.")
@click.option("--rate", default=0.4, type=click.FloatRange(0, 1, min_open=True),
              help="Rate of the mixing, for topk and choco.")  # fmt: skip
@click.option("--patience", "patience_s", default=60.0, metavar="S", type=click.FloatRange(0, min_open=True),
              help="Seconds that a node waits for a neighbour; after that it does not wait before it hears "
                   "it again.")  # fmt: skip
@click.option("--epochs", default=5, type=click.IntRange(min=1), help="Epochs of every node.")
@options_of(
    Recipe,
    {field.name: field.default for field in msgspec.structs.fields(Recipe) if field.name != "drops"}
    | {"learning_rate": 0.05},
    left_out="none",
    flags={"drops": ("--drop", "EPOCH")},
)
@data_options("mnist", "node", 1000, "the first weights, shares, order of images, and masks")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), show_default="alike",
              help="Concentration of a Dirichlet split: the smaller, the more unlike.")  # fmt: skip
@click.option("--board", default="raspberry-pi-4", help="Board profile of all nodes.")
@click.option("--link", default="isl-2mbyte", help="Link profile of all edges.")
@click.option("--loss", type=click.FloatRange(0, 1, max_open=True), show_default="the profile's",
              help="Share of frames that is lost, and sent again.")  # fmt: skip
@click.option("--frame-bytes", type=click.IntRange(64, MOST_FRAME_BYTES), show_default="the profile's",
              metavar="B",
              help="Largest frame on an edge, on the virtual clock: of larger ones there are fewer to "
                   "play.")  # fmt: skip
@click.option("--dead", multiple=True, metavar="NODE@S", show_default="none",
              help="A node falls silent then; repeatable; not with topk and choco.")  # fmt: skip
@click.option("--cut", multiple=True, metavar="A-B@FROM:UNTIL", show_default="none",
              help="An edge carries nothing in that time; repeatable; not with topk and choco.")  # fmt: skip
@click.option("--processes", is_flag=True,
              help="Real agents over UDP, a process each, in place of the virtual clock; see "
                   "above.")  # fmt: skip
@run_options("ring", "epoch")
@click.pass_obj
def ring(ground: GroundNode | None, /, as_json: bool, processes: bool, **options: Any) -> None:
    """Nodes train and exchange models with their neighbours, without a server, on a virtual clock.

    Every node is the real agent behind real sessions; bytes are what its ports would carry. It prints a line
    for every epoch: training loss, accuracy of the mean model and of nodes, how far models are apart, bytes,
    and the clock. Nodes wait for one another at an epoch's end, and boot from their disks at the next. Ctrl-C
    stops it; the same command goes on after the last whole epoch, with the same results to the bit as a run
    that was not stopped. A folder that holds a run with other settings, other --epochs included, is left
    alone: choose another with --out. Where there are fewer images than --images for every node, a line says
    how many each has.

    With --processes every node is a real `onboard run`, over UDP on this computer and at its pace. Each
    node's folder is in nodes/ of --out, its log in logs/; an epoch is judged by the checkpoints that the
    nodes write at its end. A scenario's ground station is a process too (nodes/0), and its passes count from
    the start. It takes rd-psgd and d-psgd. --dead kills the process; with --loss and --cut a `firmware-sim
    cable` joins the two agents of an edge, with the link's rate and delay too. Such a run always begins anew,
    and replaces what --out holds of an earlier one, which ring-processes.json marks.

    \b
    Examples:
      firmware-sim ring --nodes 8 --method rd-psgd --sparsity 0.1
      firmware-sim ring --method d-psgd --data digits --images 150 --every 4
      firmware-sim ring --processes --data digits --images 150 --every 4 --out ring-processes
      firmware-sim ring --dead 3@20 --cut 5-6@10:70 --loss 0.2 --link sband-2m
      firmware-sim ring --scenario scenarios/hybrid.toml
      firmware-sim ring --scenario scenarios/hybrid.toml --processes --out hybrid-processes
    """
    require("onnxruntime", "rich", "matplotlib")
    from rich.console import Console

    from firmware_sim.ring.processes import ProcessRun
    from firmware_sim.ring.simulation import RingRun
    from firmware_sim.runs.live import command

    def made() -> RingRun | ProcessRun:
        config = _config(options | {"ground": ground})
        with Console(stderr=as_json).status(f"reading {config.data}"):
            run = ProcessRun(config) if processes else RingRun(config)
        if config.settings.in_parts:
            shape = config.settings.shape
            click.echo(f"{shape}: these nodes are in parts, and their models never agree", err=True)
        if run.images < config.images:
            click.echo(f"{run.images} images a node: {config.data} has no more", err=True)
        return run

    command(made, options["out"], as_json=as_json)


def _config(options: dict[str, Any]) -> RingConfig:
    from firmware_sim.ring.settings import RingSettings
    from firmware_sim.ring.simulation import RingConfig
    from onboard.codec.values import Form

    link = load_link(options["link"])
    if options["loss"] is not None:
        link = replace(link, frame_loss=options["loss"])
    if options["frame_bytes"] is not None:
        link = replace(link, mtu_bytes=options["frame_bytes"])
    made = options | {
        "model": options["model"] or network_for(options["data"]),
        "values": Form[options["values"].upper()],
        "recipe": msgspec.convert(options, Recipe),
        "board": load_board(options["board"]),
        "link": link,
        "dead": _each_once("--dead", map(_dead, options["dead"])),
        "cuts": _each_once("--cut", map(_cut, options["cut"])),
    }
    return msgspec.convert(made | {"settings": msgspec.convert(made, RingSettings)}, RingConfig)


def _each_once(option: str, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Builds a mapping. Raises ValueError for a key that is named twice."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{option}: {key} is given twice")
        found[key] = value
    return found


def _dead(text: str) -> tuple[int, float]:
    node, _, at_s = text.partition("@")
    try:
        return int(node), finite(at_s)
    except ValueError:
        raise ValueError(f"--dead {text!r}: expected NODE@SECONDS, as 3@20") from None


def _cut(text: str) -> tuple[tuple[int, int], tuple[float, float]]:
    edge, _, times = text.partition("@")
    try:
        a, b = (int(end) for end in edge.split("-"))
        from_s, until_s = (finite(time) for time in times.split(":"))
    except ValueError:
        raise ValueError(f"--cut {text!r}: expected A-B@FROM:UNTIL, as 5-6@10:70") from None
    if not from_s < until_s:
        raise ValueError(f"--cut {text!r}: ends before it begins")
    return (min(a, b), max(a, b)), (from_s, until_s)
