"""`onboard`: the agent on the flight computer."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from onboard.config import GossipConfig, NodeConfig, ends_of, load_own
from onboard.console.errors import OneLineErrors, fail
from onboard.console.extras import require
from onboard.console.log import Format, say, start
from onboard.console.toml import ConfigError
from onboard.storage.keys import keep_private

if TYPE_CHECKING:  # numpy comes with the first command that needs it: --help and a wrong key answer at once
    from onboard.board.budget import Pace
    from onboard.link.recording import Recorder

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


def all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    """A decorator that adds all of these options."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


def log_options(report: str) -> Callable[[F], F]:
    """The options of a program's log."""
    return all_of(
        click.option("--log", "log_format", type=click.Choice(["text", "json"]), default="text",
                     show_default=True, help="Form of the log; json is one object a line."),
        click.option("--report-every", type=click.FloatRange(min=0.05), metavar="S", show_default="never",
                     help=f"Log {report} every S seconds."),
    )  # fmt: skip


def run_options(report: str, ports: str) -> Callable[[F], F]:
    """Adds the options of a program that runs until it is stopped, here and on the ground."""
    return all_of(
        log_options(report),
        click.option("--record", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
                     show_default="off",
                     help=f"Record what crosses {ports}, both ways, for groundstation replay."),
        click.option("--record-mb", default=64, show_default=True, type=click.IntRange(min=1),
                     help="Size in MiB at which FILE becomes FILE.1, in place of the one before. A FILE or "
                          "FILE.1 that is no recording is left alone."),
    )  # fmt: skip


@click.group("onboard", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spacedml-edge")
def main() -> None:
    """The agent on the flight computer: trains within its budget, compresses, and talks over a thin link.

    \b
    Example:
      onboard doctor node.toml
      onboard run node.toml
    """


@main.command()
@click.argument("node_toml", type=click.Path(path_type=Path))
@click.option("--port", metavar="URL", show_default="the file's link.port",
              help="Use this port instead of the file's, so that a cable can be moved without an editor, "
                   "e.g. /dev/ttyUSB0. Not for a node that gossips.")  # fmt: skip
@click.option("--wait", "wait_for_port", is_flag=True,
              help="Start even while the port does not exist yet; without it, that is bad "
                   "input.")  # fmt: skip
@run_options("state and link counters (the event doing)", "the port")
def run(
    node_toml: Path, port: str | None, wait_for_port: bool, log_format: Format, report_every: float | None,
    record: Path | None, record_mb: int,
) -> None:  # fmt: skip
    """Runs the agent described in NODE_TOML until SIGTERM or Ctrl-C. A node that gossips and trains also ends
    after its last epoch, when no neighbour needs it any more.

    Kill it at any time: what it received, trained and has yet to send is on the disk, and the next run goes
    on from there. A port that vanishes is re-opened when it returns.

    \b
    Examples:
      onboard run node.toml
      onboard run node.toml --port /dev/ttyUSB0
      onboard run node.toml --port udp://192.168.7.1:4800 --log json
      onboard run node.toml --record pass.sdml --record-mb 16
    """
    from onboard.board.budget import Pace

    start(log_format)
    keep_private()
    config = load_own(node_toml, port=port)
    for table, end in ends_of(config).items():
        if not wait_for_port and (missing := missing_device(end.port)):
            fail(f"{node_toml}: {table}.port = {end.port!r}: {missing}; plug it in, or give --wait")
    recorder = recording_to(record, record_mb) if record else None
    run_agent(config, Pace(config.cpu_share), report_every, recorder)


@main.command()
@click.argument("node_toml", type=click.Path(path_type=Path))
def doctor(node_toml: Path) -> None:
    """Checks everything a run of NODE_TOML needs and says what is wrong and what to do.

    It checks Python, key, port, contact plan, model, data, memory, disk and a watched folder, a line each. It
    opens the port once and sends nothing. It decodes every image, and says how many there are, what memory
    they take, the least, largest and mean pixel, the images of each class, and after WARNING what may be
    wrong: classes without images, files that were passed over and why, images of one value all over. Images
    that take more than the budget fail, here and in a run. For memory it trains a few real batches, with each
    shipped model that takes the board's images, in a process of its own under the budget; it says what that
    takes, what is allowed and what is free, and fails where it does not fit.

    \b
    Example:
      onboard doctor node.toml
    """
    from onboard.doctor import examine

    keep_private()
    findings = examine(load_own(node_toml))
    for finding in findings:
        mark = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red")
        click.echo(f"{mark}  {finding.what:<10} {finding.says}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


@main.command()
@click.argument("node_toml", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True,
              help="One JSON object a line instead of a picture: the fields of the event doing, with node, "
                   "board and profile.")  # fmt: skip
@click.option("--once", is_flag=True, help="Look once and end.")
def link(node_toml: Path, as_json: bool, once: bool) -> None:
    """Shows the links of the agent that runs on NODE_TOML, every second until Ctrl-C.

    It shows port, contact, counters, what is on its way and how long that will take.

    It asks the running agent over a Unix socket in Linux's abstract namespace, which is no file: watching
    wears no flash, and a kill leaves nothing behind. Only the agent's own user and root are answered. Viewer
    and agent must share a network namespace, so look from inside a container that has its own.

    \b
    Examples:
      onboard link node.toml
      onboard link node.toml --once --json | jq .link.objects
    """
    from onboard.monitor.render import board_picture, follow, gossip_picture

    config = load_own(node_toml)
    picture = gossip_picture if isinstance(config, GossipConfig) else board_picture
    follow(config.state, picture, as_json=as_json, once=once)


@main.command()
@click.argument("images", metavar="IMAGE|FOLDER|-...", nargs=-1, required=True)
@click.option("--node", "node_toml", type=click.Path(path_type=Path), default="node.toml",
              show_default=True, metavar="NODE.toml",
              help="Answer with the model that was deployed to this node; before that, with the one that its "
                   "latest round began with.")  # fmt: skip
@click.option("--model", "model_file", type=click.Path(path_type=Path), metavar="FILE",
              show_default="the node's",
              help="Answer with this file of `groundstation model` instead: .onnx, .npz or "
                   ".safetensors.")  # fmt: skip
@click.option("--top", default=3, show_default=True, type=click.IntRange(min=1),
              help="Classes of an image, the most probable first.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), show_default="none",
              help="Folder for masks, of a model that gives each pixel a class: PNG, as large as the "
                   "image.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object an image.")
@click.option("--csv", "as_csv", is_flag=True, help="A table with a line of headings.")
@click.option("--batch", type=click.IntRange(1, 4096), show_default="16, or 1 for `-`",
              help="Images at once: more are faster and take more memory.")  # fmt: skip
def infer(
    images: tuple[str, ...], node_toml: Path, model_file: Path | None, top: int, out: Path | None,
    as_json: bool, as_csv: bool, batch: int | None,
) -> None:  # fmt: skip
    """Says what the deployed model sees in images: classes with probabilities, masks, numbers, or the error
    of a reconstruction, whatever its mission trains.

    Images of any size are fitted to the model as those that it was trained on. A FOLDER stands for all images
    in it and below. `-` reads standard input: names, one a line, answered as they come, or one image.

    An image that cannot be read is one line on standard error, and the rest go on. The exit code is 1 then,
    and 2 where there is nothing to answer or to answer with. The command reads the node's state and changes
    nothing, so it may run beside the agent.

    \b
    Examples:
      onboard infer picture.jpg
      onboard infer --node /etc/spacedml/node.toml --csv camera/ > answers.csv
      onboard infer --model model.onnx --out masks/ scene.png
      inotifywait -qm -e close_write --format %w%f camera/ | onboard infer --json -
    """
    if as_json and as_csv:
        raise click.UsageError("give --json or --csv, not both")
    require("onnxruntime", "PIL")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of numpy's pool of threads nothing here gains
    from onboard.inference.command import AnswerForm
    from onboard.inference.command import infer as answer
    from onboard.inference.model import ModelError, of_file, of_node

    try:
        if model_file is None:
            config = load_own(node_toml)
            if isinstance(config, GossipConfig):
                raise ModelError(f"{node_toml}: gossip: such a node is deployed no model: give --model")
            model = of_node(config.node_folder)
        else:
            model = of_file(model_file)
    except ModelError as error:
        fail(str(error))
    if out is not None and model.info.task != "segment":
        fail(f"--out {out}: the model is to {model.info.task}, and makes no masks")
    form: Literal["text", "json", "csv"] = "json" if as_json else "csv" if as_csv else "text"
    size = batch or (1 if "-" in images else 16)
    sys.exit(answer(model, images, AnswerForm(form, top, size, out)))


def recording_to(path: Path, limit_mb: int) -> Recorder:
    """Returns a recorder that has its file for itself; ends the program if it cannot have it."""
    from onboard.link.recording import Recorder

    recorder = Recorder(path, limit_mb << 20)
    try:
        recorder.claim()
    except BlockingIOError:
        fail(f"--record {path}: another program records into it; give each its own file")
    except ValueError as error:
        fail(f"--record {error}; give it another name")
    return recorder


def run_agent(
    config: NodeConfig | GossipConfig,
    pace: Pace,
    report_every_s: float | None,
    recorder: Recorder | None = None,
) -> None:
    """Runs a node's agent to its end; what keeps it from starting ends the program. Raises ConfigError."""
    if isinstance(config, NodeConfig) and config.infer is not None:
        require("PIL")
    require("onnxruntime")  # every node steps a model's graph, and would say so when the round has begun
    from onboard.storage.keys import BadKey

    try:
        if isinstance(config, GossipConfig):
            _run_gossip(config, pace, report_every_s, recorder)
        else:
            _run_board(config, pace, report_every_s, recorder)
    except BadKey as error:
        fail(f"{config.path}: {'' if isinstance(config, GossipConfig) else 'node.key: '}{error}")
    except BlockingIOError:
        fail(f"{config.path}: node.state = {str(config.state)!r}: another agent is running on it")
    except OSError as error:  # the disk is full, or not ours to write: what is stored is whole
        fail(
            f"{config.path}: node.state: {error.filename or config.state}: {error.strerror or error}", code=1
        )


def _run_board(
    config: NodeConfig, pace: Pace, report_every_s: float | None, recorder: Recorder | None
) -> None:
    """A node with a link to the ground; it trains in a child process. Raises ConfigError, BadKey, OSError."""
    from onboard.runtime.federated import FederatedProgram, board_agent
    from onboard.storage.files import sole_user
    from onboard.trainer.process import BadImages, ProcessTrainer

    trainer = ProcessTrainer(config.shard, config.memory_bytes)
    with sole_user(config.state):
        agent, link = board_agent(config, trainer, time.monotonic(), recorder)
        try:
            trainer.look()  # last, as it takes longest: a wrong key is told at once, and alone
        except BadImages as error:
            if not agent.known.mission:  # its first start: whoever set it up is there to mend it
                raise ConfigError(f"{config.path}: data.source: {error}") from None
            say(log, "images-unread", level=logging.ERROR, why=str(error))
        FederatedProgram(agent, link, pace).run(report_every_s)


def _run_gossip(
    config: GossipConfig, pace: Pace, report_every_s: float | None, recorder: Recorder | None
) -> None:
    """A node that gossips. Raises ConfigError, BadKey, OSError."""
    from onboard.data.images import DataError
    from onboard.learn.networks import Network, NetworkError
    from onboard.runtime.gossip import GossipProgram, gossip_node
    from onboard.storage.files import sole_user
    from onboard.storage.journal import was_started

    try:
        images = found = None
        if config.gossip.trains:
            try:
                form = Network.load(config.model).objective.form
                found = config.shard.inspect(form)
                images = config.shard.load(form)
            except NetworkError as error:
                raise ConfigError(f"{config.path}: gossip.model = {config.gossip.model!r}: {error}") from None
            except DataError as error:
                if not was_started(config.state):  # whoever set it up is there to mend it
                    raise
                say(log, "images-unread", level=logging.ERROR, why=str(error))
                config = config.holding()
        with sole_user(config.state):
            node, links = gossip_node(config, images, time.monotonic(), recorder)
            if found is not None:
                found.tell()
            GossipProgram(node, links, pace).run(report_every_s)
    except DataError as error:
        raise ConfigError(f"{config.path}: data.source: {error}") from None


def missing_device(url: str) -> str | None:
    """Says what is wrong with a port that is a device; None if it is there or is no device."""
    from onboard.link.ports.schemes import facts_of
    from onboard.link.ports.serial import not_serial

    device = facts_of(url).device
    try:
        return None if device is None else not_serial(device)
    except FileNotFoundError:
        return "no such device"
    except OSError:  # it may be there; opening it says what is wrong
        return None
