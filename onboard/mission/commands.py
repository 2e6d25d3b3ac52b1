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
from onboard.learn.networks import DESCRIPTION, INFER, PARAMETERS, TRAIN, CheckVector, NetworkName
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

    def install(self, network: InstallArguments, now: float) -> None:
        """Begins to install a network; its result comes when that is over. Raises CommandRefused."""

    def roll_back(self, now: float) -> Mapping[str, Value]:
        """Goes back to the network before the last installed one. Raises CommandRefused."""


class NoArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For commands that take no arguments."""


FileText = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}:[1-9][0-9]{0,9}$")]


class InstallArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A network's files, each as `DIGEST:SIZE` (BLAKE2s-128 in hexadecimal), and what it has to answer.

    `network`: its digest, as tasks name it, 16 hexadecimal digits; `check`: a CheckVector as hexadecimal
    msgpack, or empty. `again`: install it even if it was rolled back."""

    network: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
    name: NetworkName
    description: FileText
    train: FileText
    infer: FileText
    parameters: Annotated[str, Meta(pattern=r"^([0-9a-f]{32}:[1-9][0-9]{0,9})?$")] = ""
    check: Annotated[str, Meta(pattern=r"^([0-9a-f]{2})*$", max_length=1024)] = ""
    again: bool = True

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.network)

    @property
    def files(self) -> dict[str, tuple[bytes, int]]:
        """BLAKE2s-128 and size of each file by its name; the description is the last."""
        named = {
            TRAIN: self.train,
            INFER: self.infer,
            PARAMETERS: self.parameters,
            DESCRIPTION: self.description,
        }
        parts = {name: text.partition(":") for name, text in named.items() if text}
        return {name: (bytes.fromhex(digest), int(size)) for name, (digest, _, size) in parts.items()}

    @property
    def expected(self) -> CheckVector | None:
        """Raises BadMessage."""
        return decoded(bytes.fromhex(self.check), CheckVector, "check vector") if self.check else None


@dataclass(frozen=True, slots=True)
class CommandHandler:
    """`arguments` declares what a command takes, with types and ranges, which both ends check; `run` gets
    them, and returns the values of the result, None where that comes later, or raises CommandRefused.
    `summary` follows the name in the ground's help."""

    run: Callable[[CommandTarget, Any, float], Mapping[str, Value] | None]
    summary: str
    arguments: type[msgspec.Struct] = NoArguments


def ping(target: CommandTarget, arguments: NoArguments, now: float) -> Mapping[str, Value]:
    """The board's own clock (Unix seconds), which may be wrong, and the time since the agent's start."""
    return {"time": time.time(), "uptime_s": target.uptime_s(now)}


def report(target: CommandTarget, arguments: NoArguments, now: float) -> Mapping[str, Value]:
    """The board's health as it is now; what no sensor knows is left out."""
    health = target.health(now)
    named = {"state": State(health.state).name.lower(), "failure": failure_name(health.failure)}
    values: dict[str, Any] = asdict(health) | named
    said = values.pop("answers") or {}
    values |= {f"answers_{name}": value for name, value in said.items() if name != "classes"}
    return {name: value for name, value in values.items() if value not in (None, "")}


def install(target: CommandTarget, arguments: InstallArguments, now: float) -> None:
    """Installs a network into the slot that is not in use, and uses it from then on."""
    target.install(arguments, now)


def roll_back(target: CommandTarget, arguments: NoArguments, now: float) -> Mapping[str, Value]:
    """Goes back to the network before; an install that is under way ends."""
    return target.roll_back(now)


COMMANDS: dict[str, CommandHandler] = {
    "ping": CommandHandler(ping, "asks for the board's clock and uptime"),
    "report": CommandHandler(report, "asks for the board's health at once"),
    "install": CommandHandler(
        install, "installs a network (groundstation install fills it in)", InstallArguments
    ),
    "roll-back": CommandHandler(roll_back, "goes back to the network before the last install"),
}


def run_command(command: Command, target: CommandTarget, now: float) -> CommandResult | None:
    """Runs a command; returns None where its result comes later. Whatever fails is the result's `why`:
    whoever asked is told, and the board goes on."""
    try:
        if (handler := COMMANDS.get(command.name)) is None:
            raise CommandRefused(f"unknown command {command.name}; this board knows {', '.join(COMMANDS)}")
        arguments = msgspec.convert(command.arguments, handler.arguments)
        values = handler.run(target, arguments, now)
        if values is None:
            return None
        values = dict(values)
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
