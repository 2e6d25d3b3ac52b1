"""What the ground may have a board do: the objects that ask and answer, and the handler of each command.

A command is an object, so it survives passes and restarts; a board runs it once, however often it arrives
(`onboard/agents/federated_state.py`), and always answers. docs/extending.md says how to add one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union

import msgspec
from msgspec import Meta

from onboard.console.errors import where
from onboard.console.log import say
from onboard.mission.health import Health, State, failure_name
from onboard.mission.objects import Id8, decoded
from onboard.wire.messages import BadMessage

log = logging.getLogger(__name__)

PRIORITY = 1  # of commands and results on the link: they overtake models and updates
MAX_BYTES = 4096  # of a command's or a result's payload
MAX_WHY_CHARACTERS = 200

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Value = Union[None, bool, int, float, str]  # noqa: UP007 - msgspec reads it at run time, on 3.10 too
Outcome = Literal["done", "refused"]


class Command(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Object of kind COMMAND, ground to board. `id`: 8 random bytes: a command that arrives again is not run
    again. `name`: a row of COMMANDS. `arguments`: as that row wants them."""

    id: Id8
    name: Name
    arguments: dict[Name, Value] = {}


class CommandResult(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """Object of kind RESULT, board to ground: what became of the command with the id `command`. `why` says
    why it was refused; `values` are what it found out."""

    command: Id8
    outcome: Outcome
    why: Annotated[str, Meta(max_length=MAX_WHY_CHARACTERS)] = ""
    values: dict[Name, Value] = {}


Body = TypeVar("Body", bound=Command | CommandResult)


class CommandRefused(Exception):  # noqa: N818 - a decision of the board's rather than a mistake
    """A handler does not run a command; the text says why."""


class CommandTarget(Protocol):
    """What a handler may ask of its board. `now` is the board's monotonic clock."""

    def uptime_s(self, now: float) -> int:
        """Seconds since the agent's start."""

    def health(self, now: float) -> Health: ...


class NoArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For commands that take no arguments."""


@dataclass(frozen=True, slots=True)
class CommandHandler:
    """`arguments` declares what a command takes, with types and ranges, which both ends check; `run` gets
    them, and returns the values of the result or raises CommandRefused. `summary` follows the name in the
    ground's help."""

    run: Callable[[CommandTarget, Any, float], Mapping[str, Value]]
    summary: str
    arguments: type[msgspec.Struct] = NoArguments


def ping(target: CommandTarget, arguments: NoArguments, now: float) -> Mapping[str, Value]:
    """The board's own clock (Unix seconds), which may be wrong, and the time since the agent's start."""
    return {"time": time.time(), "uptime_s": target.uptime_s(now)}


def report(target: CommandTarget, arguments: NoArguments, now: float) -> Mapping[str, Value]:
    """The board's health as it is now; what no sensor knows is left out."""
    health = target.health(now)
    named = {"state": State(health.state).name.lower(), "failure": failure_name(health.failure)}
    return {name: value for name, value in (asdict(health) | named).items() if value not in (None, "")}


COMMANDS: dict[str, CommandHandler] = {
    "ping": CommandHandler(ping, "asks for the board's clock and uptime"),
    "report": CommandHandler(report, "asks for the board's health at once"),
}


def run_command(command: Command, target: CommandTarget, now: float) -> CommandResult:
    """Runs a command. Whatever fails is the result's `why`: whoever asked is told, and the board goes on."""
    try:
        if (handler := COMMANDS.get(command.name)) is None:
            raise CommandRefused(f"unknown command {command.name}; this board knows {', '.join(COMMANDS)}")
        arguments = msgspec.convert(command.arguments, handler.arguments)
        values = dict(handler.run(target, arguments, now))
        result = CommandResult(command=command.id, outcome="done", values=values)
        encode_body(result)
    except Exception as error:  # a refusal, a fault of the handler's, or a machine that refuses
        why = str(error) if isinstance(error, CommandRefused | msgspec.ValidationError) else where(error)
        result = CommandResult(command=command.id, outcome="refused", why=why[:MAX_WHY_CHARACTERS])
    say(log, "command", id=command.id.hex(), name=command.name, outcome=result.outcome, why=result.why)
    return result


def encode_body(body: Command | CommandResult) -> bytes:
    """The payload of a COMMAND or a RESULT. Raises ValueError for what the other end would refuse."""
    payload = msgspec.msgpack.encode(body)
    try:
        decode_body(payload, type(body))
    except BadMessage as error:
        raise ValueError(str(error)) from None
    return payload


def decode_body(payload: bytes, kind: type[Body]) -> Body:
    """The Command or the CommandResult in a payload. Raises BadMessage."""
    if len(payload) > MAX_BYTES:
        raise BadMessage(f"command or result of {len(payload)} B, at most {MAX_BYTES}")
    return decoded(payload, kind, "command or result")
