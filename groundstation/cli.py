"""The `groundstation` command: the aggregation daemon and its mission folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from groundstation import cli_commands
from groundstation.cli_options import FOLDER, one_line
from groundstation.config import load_mission
from groundstation.models.command import export
from groundstation.setup import NodeSpec, create_mission, roll_key
from groundstation.store.database import backup_of
from groundstation.store.store import Store, StoreDamaged
from onboard.cli import recording_to, run_options
from onboard.console.errors import OneLineErrors, fail
from onboard.console.extras import require
from onboard.console.log import Format, start
from onboard.learn.networks import described
from onboard.storage.keys import keep_private


@click.group("groundstation", cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="spacedml-edge")
def main() -> None:
    """The ground station: chooses boards, averages what they learned, sends it back, and remembers.

    \b
    Example:
      groundstation init mission --node pi,port=/dev/ttyUSB0
      groundstation serve mission
      groundstation status mission
    """


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--node", "nodes", multiple=True, required=True, metavar="NAME,KEY=VALUE,...",
              help="A board: NAME[,board=PROFILE][,link=PROFILE],port=URL[,board-port=URL][,data=SOURCE]"
                   "[,cpu-share=SHARE][,memory-mb=MIB][,encrypt=true]. Repeat for more.")  # fmt: skip
@click.option("--name", show_default="the folder's name", help="Name of the mission.")
@click.option("--data", default="digits", show_default=True,
              help="Test data: digits, mnist, eurosat (the subset of 2,500 images where the folder has it), "
                   "eurosat-full, eurosat-water (with masks), npz:PATH or folder:PATH.")  # fmt: skip
@click.option("--data-dir", "data_folder", type=click.Path(path_type=Path), show_default="SPACEDML_DATA",
              help="Folder of mnist and eurosat, written into mission.toml.")  # fmt: skip
@click.option("--model", default="lenet5", show_default=True,
              help=f"Model to train, with the images that it takes: {described()}; or a network's folder, "
                   "which is copied into DIR and into each board's folder.")  # fmt: skip
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1), help="Rounds at most.")
@click.option("--target", type=click.FloatRange(0, min_open=True), show_default="none",
              help="Stop at this accuracy or mean IoU, 0 to 1, or RMSE on the test data.")  # fmt: skip
@click.option("--select", type=click.IntRange(min=1), show_default="all boards",
              help="Number K of boards that are asked in a round.")  # fmt: skip
@click.option("--quorum", type=click.IntRange(min=1), show_default="K", help="Answers that end a round.")
@click.option("--deadline", "deadline_s", default=900.0, show_default=True,
              help="Seconds that a round waits for its quorum.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1),
              help="Seed of the first weights, the choice of boards, and the order of images.")  # fmt: skip
def init(folder: Path, nodes: tuple[str, ...], **wishes: Any) -> None:
    """Makes a mission in DIR: mission.toml, a key for every board, and a folder to copy to each board.

    Everything is checked before the first file is written, and nothing is ever written over.

    \b
    Examples:
      groundstation init mission --node pi,port=/dev/ttyUSB0
      groundstation init mission --data mnist --rounds 20 \\
        --node pi,board=raspberry-pi-4,link=bench-serial-115k2,port=/dev/ttyUSB0,board-port=/dev/serial0 \\
        --node nano,board=jetson-nano,link=sband-256k,port=udp://192.168.7.2:4800
    """
    require("onnxruntime")  # the model is opened
    keep_private()
    with one_line(folder):
        specs = [NodeSpec.parse(text) for text in nodes]
        select = wishes["select"] or len(specs)
        rules = wishes | {
            "name": wishes["name"] or folder.resolve().name,
            "select": select,
            "quorum": wishes["quorum"] or select,
        }
        lines = list(create_mission(folder, specs, rules))
    for line in lines:  # whatever becomes of it, the mission is there
        click.echo(line)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("name", metavar="NODE")
@click.option("--data", metavar="SOURCE", show_default="the mission's",
              help="Where the images come from, as --data of init.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), show_default="the mission's",
              help="Folder of mnist and eurosat.")  # fmt: skip
@click.option("--images", default=600, show_default=True, type=click.IntRange(min=1),
              help="Images at most.")  # fmt: skip
def sample(folder: Path, name: str, data: str | None, data_dir: Path | None, images: int) -> None:
    """Makes first images for the board NODE of the mission in DIR: the data.npz that its NODE.toml names.

    They are of the training part of the data, in random order, with the mission's class names, and other ones
    for each board. A file that is there is not replaced. Replace them by the board's own.

    \b
    Examples:
      groundstation sample mission pi
      groundstation sample mission nano --data folder:EuroSAT_RGB --images 200
    """
    from groundstation.mission_data import sample as make
    from onboard.config import relative_source
    from onboard.data.images import DataError

    keep_private()  # a board's images are its own
    with one_line(folder, DataError):
        source = None if data is None else relative_source(data, Path.cwd())
        told = make(folder, name, source, data_dir, images)
    click.echo(told)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--exit-when-finished", is_flag=True,
              help="End with the mission, with exit code 0 if it was finished, and name the commands that "
                   "are not over; otherwise the daemon stays, so that late boards still get the "
                   "model.")  # fmt: skip
@run_options("the links' counters (the event links)", "all ports")
def serve(
    folder: Path, exit_when_finished: bool, log_format: Format, report_every: float | None,
    record: Path | None, record_mb: int,
) -> None:  # fmt: skip
    """Runs the mission in DIR until SIGTERM or Ctrl-C.

    Kill it at any time: the next run goes on with the same round. Ports that are missing are waited for.

    \b
    Examples:
      groundstation serve mission
      groundstation serve mission --exit-when-finished --log json
    """
    require("onnxruntime")
    from groundstation.daemon import serve as run
    from onboard.data.images import DataError
    from onboard.learn.graph import GraphError
    from onboard.storage.keys import BadKey

    start(log_format)
    keep_private()
    with one_line(folder):
        mission = load_mission(folder)
        try:
            finished = run(
                mission, exit_when_finished=exit_when_finished, report_every_s=report_every,
                recorder=recording_to(record, record_mb) if record else None,
            )  # fmt: skip
        except BlockingIOError:
            fail(f"{folder}: another groundstation is serving this mission")
        except DataError as error:
            fail(f"{mission.path}: mission.data: {error}")
        except GraphError as error:
            fail(f"{mission.path}: mission.model: {error}")
        except BadKey as error:
            fail(f"{mission.path}: node.key: {error}")
    sys.exit(0 if finished or not exit_when_finished else 1)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("name", metavar="NODE")
@click.option("--drop-old", is_flag=True, help="Leave only the newest key, once the board uses it.")
def roll(folder: Path, name: str, drop_old: bool) -> None:
    """Gives the board NODE of the mission in DIR a new key, beside the one that it has.

    The new key goes into keys/ and into the board's folder. Restart the daemon first, then copy node.key to
    the board and restart its agent. The board uses the newest key that it holds; the daemon takes any, and
    answers under the one that it heard last. When the board's frames come under the new key (key_id in
    `groundstation links`), drop the old one in the same order.

    \b
    Examples:
      groundstation roll mission pi
      groundstation roll mission pi --drop-old
    """
    keep_private()
    with one_line(folder):
        told = roll_key(folder, name, drop_old=drop_old)
    click.echo(told)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--json", "as_json", is_flag=True,
              help="One JSON object instead of tables; times are Unix seconds.")  # fmt: skip
def status(folder: Path, as_json: bool) -> None:
    """Shows where the mission in DIR stands: rounds, boards and counters, from the database alone.

    It works while the daemon runs and when it does not. Boards that have never answered are named, with the
    reason that they gave.

    \b
    Examples:
      groundstation status mission
      groundstation status mission --json | jq .rounds
    """
    from groundstation.views.status import picture, table

    with one_line(folder):
        mission = load_mission(folder)
        if not mission.database.exists():
            fail(f"{mission.database}: no such file; `groundstation serve {folder}` makes it")
        try:
            view = picture(mission, Store(mission.database, read_only=True))
        except StoreDamaged as error:
            ours = backup_of(mission.database).exists()
            fail(f"{error}{f'; `groundstation serve {folder}` mends it' if ours else ''}", code=1)
    # msgspec writes a loss that is not a number as null; json's NaN is no JSON.
    click.echo(msgspec.json.encode(view)) if as_json else table(view)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--out", "path", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The file: .onnx is a graph with its weights inside, .safetensors and .npz are weights by "
                   "name.")  # fmt: skip
@click.option("--round", "number", type=click.IntRange(min=1), show_default="the latest",
              help="The round that made the model.")  # fmt: skip
@click.option(
    "--best", is_flag=True, help="The model of the first round with the best value of the mission's metric."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object about what was written.")
def model(folder: Path, path: Path, number: int | None, best: bool, as_json: bool) -> None:
    """Writes the model that a round of the mission in DIR has made: by default the latest, which the boards
    have.

    The file says what it is: network, task, classes, mission, round, metric and digests. It gets its name
    only after it has answered random images as the boards' graph does. `onboard infer --model` takes it, and
    an .onnx file runs wherever ONNX does. It works while the daemon runs and when it does not.

    Models are kept as they travel, some kB each: the best, and the newest that 8 MiB hold.

    \b
    Examples:
      groundstation model mission --out model.onnx
      groundstation model mission --best --out best.safetensors
      groundstation model mission --round 3 --out third.npz --json
    """
    require("onnxruntime")
    from groundstation.written_model import round_model, write
    from onboard.inference.model import ModelError

    if best and number is not None:
        raise click.UsageError("give --round or --best, not both")
    with one_line(folder, ModelError):
        mission = load_mission(folder)
        if not mission.database.exists():
            fail(f"{mission.database}: no such file; `groundstation serve {folder}` makes it")
        told = write(round_model(mission, Store(mission.database, read_only=True), number, best=best), path)
    value = "" if told.get("value") is None else f", {told['metric']} {told['value']:.4g}"
    line = f"{path}: {told['network']} of round {told['round']}{value}, {told['bytes']:,} B"
    click.echo(msgspec.json.encode(told) if as_json else line)


@main.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--json", "as_json", is_flag=True,
              help="One JSON object a line instead of tables, with the fields of the event "
                   "links.")  # fmt: skip
@click.option("--once", is_flag=True, help="Look once and end.")
def links(folder: Path, as_json: bool, once: bool) -> None:
    """Shows every link of the daemon that serves the mission in DIR, every second until Ctrl-C.

    It asks the running daemon as `onboard link` asks an agent.

    \b
    Examples:
      groundstation links mission
      groundstation links mission --once --json | jq '.links[].objects'
    """
    from groundstation.views.status import links_picture
    from onboard.monitor.render import follow

    with one_line(folder):
        follow(load_mission(folder).folder, links_picture, as_json=as_json, once=once)


@main.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FOLDER)
@click.option("--mission", metavar="DIR", type=FOLDER, show_default="none",
              help="Check the frames with this mission's keys.")  # fmt: skip
@click.option("--key", metavar="KEYFILE", type=FOLDER, show_default="none",
              help="Check them with this key, whatever the board.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True,
              help="One JSON object a line instead of text: the frames, then streams (the counters) and "
                   "damaged.")  # fmt: skip
def replay(files: tuple[Path, ...], mission: Path | None, key: Path | None, as_json: bool) -> None:
    """Plays again what --record wrote: a line for each frame and what became of it, then the counters.

    Frames pass through the framing and the sessions that the programs run. A line says when, board, way,
    size, type, nodes, epoch and sequence number, object, fragment, and what became of the frame: taken, a
    duplicate fragment, an orphan (its OFFER was before the recording), a broadcast, unchecked (without a
    key), or refused under the name of a counter, such as bad_tags.

    What came in is heard by a session of the end that recorded, what went out by one of the other end, as if
    nothing had been lost; neither knows what was before. Without a key nothing is checked but the framing.
    Give FILE.1 before FILE where there is one.

    A recording holds no key, only what could be heard on the air; with the key an encrypted one plays like
    any other, though payloads are shown as they were sent. It survives a kill, and goes on behind a record
    that was cut. It costs flash: leave it off on a board that does not need it.

    \b
    Examples:
      groundstation replay pass.sdml --mission mission
      groundstation replay pass.sdml.1 pass.sdml --key node.key --json
    """
    from groundstation.views.replay import Replay, lines
    from onboard.storage.keys import load_keys

    try:
        keys = {node.id: load_keys(node.key_path) for node in load_mission(mission).nodes} if mission else {}
        any_key = load_keys(key) if key else None
        for line in lines(Replay(files, lambda node: keys.get(node, any_key)), as_json=as_json):
            click.echo(line)
    except OSError as error:
        if error.filename is None:  # not the recording, but what is printed
            raise
        fail(f"{error.filename}: {error.strerror or error}")


for _each in (cli_commands.command, cli_commands.install, cli_commands.roll_back, export):
    main.add_command(_each)
