"""The commands of `groundstation` that have a board do something: `command`, `install`, `roll-back`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from groundstation.cli_options import FOLDER, one_line
from groundstation.config import Mission, load_mission
from onboard.console.extras import require
from onboard.console.lines import LineInPlace
from onboard.mission.commands import COMMANDS, Command, InstallArguments
from onboard.monitor.status_socket import NobodyThere, look
from onboard.storage.keys import keep_private

if TYPE_CHECKING:
    from groundstation.commands import CommandRow

_TELL_AFTER_S, _TELL_EVERY_S = 2.0, 1.0  # progress of what takes longer
_EXPIRES = click.option(
    "--expires", "expires_s", default=604_800.0, show_default=True, metavar="S",
    type=click.FloatRange(min=0, min_open=True), help="Give it up after S seconds.",
)  # fmt: skip
_ID = click.option(
    "--id", "command_id", metavar="HEX", show_default="drawn",
    help="Its id, 16 hex digits: queued again under it, it is run once.",
)  # fmt: skip
_WAIT = click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), metavar="S", show_default="off",
    help="Wait up to S seconds for the outcome; exit 0 if it is done, else 1.",
)  # fmt: skip
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text; times are Unix seconds.")


@click.command(
    epilog="Commands: " + "; ".join(f"{name} {known.summary}" for name, known in COMMANDS.items()) + "."
)
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("board", metavar="[NODE", required=False)
@click.argument("name", metavar="[COMMAND", required=False)
@click.argument("words", metavar="[KEY=VALUE]...]]", nargs=-1)
@_EXPIRES
@_ID
@_WAIT
@_JSON
def command(
    folder: Path, board: str | None, name: str | None, words: tuple[str, ...], expires_s: float,
    command_id: str | None, wait_s: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Queues a COMMAND for the board NODE of the mission in DIR, or shows those that were queued.

    It is durable at once, leaves when the daemon runs and the board is in contact, and is run once.

    \b
    Examples:
      groundstation command mission pi ping --wait 30
      groundstation command mission pi report --expires 3600
      groundstation command mission
    """
    from groundstation import commands
    from groundstation.views.status import command_line, command_values

    keep_private()
    with one_line(folder):
        mission = load_mission(folder)
        if board is None or name is None:
            node = mission.find_node(board) if board else None
            rows = [row for row in commands.all_commands(mission) if node is None or row.node == node.id]
            lines = "\n".join(command_line(mission, row) for row in rows) or "no commands"
            as_values = [command_values(mission, row) for row in rows]
            click.echo(msgspec.json.encode(as_values) if as_json else lines)
            return
        asked = commands.command_of(name, words, command_id)
        _queue(mission, board, asked, expires_s, wait_s, as_json=as_json)


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("board", metavar="NODE")
@click.argument("model", metavar="MODEL")
@_EXPIRES
@_ID
@_WAIT
@_JSON
def install(
    folder: Path, board: str, model: str, expires_s: float, command_id: str | None, wait_s: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Installs MODEL, a network's folder or a shipped one's name, on the board NODE of the mission in DIR.

    It is loaded and run here first, and copied into DIR/models. The board asks for the files that it lacks;
    they go behind all other traffic, and new weights as their difference from an older version's where that
    is smaller. The board then checks that it computes the same, and uses it from then on; the network before
    stays for roll-back. A command as any other: durable at once, done once.

    \b
    Examples:
      groundstation install mission pi clouds/
      groundstation install mission pi clouds/ --wait 3600
    """
    require("onnxruntime")
    from groundstation import commands
    from groundstation.library import NetworkLibrary, install_arguments
    from onboard.learn.networks import Network, NetworkError

    keep_private()
    with one_line(folder, NetworkError):
        mission = load_mission(folder)
        mission.find_node(board)
        wanted = install_arguments(Network.load(model), again=True)
        NetworkLibrary(mission.folder).keep(Network.load(model))
        asked = commands.command_with("install", msgspec.to_builtins(wanted), command_id)
        _queue(mission, board, asked, expires_s, wait_s, as_json=as_json)


@click.command("roll-back")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.argument("board", metavar="NODE")
@_EXPIRES
@_ID
@_WAIT
@_JSON
def roll_back(
    folder: Path, board: str, expires_s: float, command_id: str | None, wait_s: float | None, as_json: bool
) -> None:
    """Has the board NODE of the mission in DIR go back to the network before the one installed last.

    An install that is under way ends instead. What was rolled back is not used until it is installed again.

    \b
    Examples:
      groundstation roll-back mission pi
      groundstation roll-back mission pi --wait 60
    """
    from groundstation import commands

    keep_private()
    with one_line(folder):
        asked = commands.command_with("roll-back", {}, command_id)
        _queue(load_mission(folder), board, asked, expires_s, wait_s, as_json=as_json)


class _Watch:
    """Tells at a terminal what becomes of a command that is waited for: each state in a line, and in one
    place how far a file is that the board gets for it."""

    def __init__(self, mission: Mission, row: CommandRow) -> None:
        self._mission, self._state = mission, row.state
        self.line = LineInPlace(sys.stderr)
        self._names = dict[str, str]()  # of files by digest
        if row.name == "install":
            wanted = msgspec.convert(row.arguments, InstallArguments)
            self._names = {digest.hex(): name for name, (digest, _) in wanted.files.items()}
        self._due_s = time.monotonic() + _TELL_AFTER_S

    def see(self, row: CommandRow) -> None:
        from groundstation.views.status import command_line, file_line

        if not self.line.is_seen:
            return
        if row.state is not self._state:
            self._state = row.state
            self.line.clear()
            if not row.state.is_final:
                click.echo(command_line(self._mission, row), err=True)
        elif self._names and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + _TELL_EVERY_S
            names = {node.name for node in self._mission.nodes if node.id == row.node}
            files = [one for one in self._files() if one["node"] in names and one["file"] in self._names]
            self.line.show(", ".join(file_line(one, self._names[one["file"]]) for one in files))

    def _files(self) -> list[dict[str, Any]]:
        """Returns what the daemon tells of files on their way; nothing where none runs."""
        try:
            return list(look(self._mission.folder, _TELL_EVERY_S).get("files", ()))
        except NobodyThere:
            return []


def _queue(
    mission: Mission, board: str, asked: Command, expires_s: float, wait_s: float | None, *, as_json: bool
) -> None:
    """Queues a command, waits for it if asked to, and ends the program with what became of it."""
    from groundstation import commands
    from groundstation.views.status import command_line, command_values

    row = commands.enqueue(mission, board, asked, expires_s)
    watch = _Watch(mission, row)
    row = commands.wait_for(mission, row, wait_s or 0.0, watch.see)
    watch.line.clear()
    told = msgspec.json.encode(command_values(mission, row)) if as_json else command_line(mission, row)
    click.echo(told)
    sys.exit(0 if wait_s is None or row.state.value == "done" else 1)
