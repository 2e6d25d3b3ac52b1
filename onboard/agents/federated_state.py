"""What a board knows after a power cut, and which of the files beside it are still valid.

The journal is the one authority: a file counts if the journal names its digest, and an object counts as taken
if the board can still act on it. Nothing else, such as a file that is there, stands for an effect."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from onboard.console.log import say
from onboard.inference.rules import DownlinkState
from onboard.mission.commands import (
    MAX_WHY_CHARACTERS,
    Command,
    CommandResult,
    CommandTarget,
    Outcome,
    Value,
    encode_body,
    run_command,
)
from onboard.mission.health import State
from onboard.mission.objects import RESULT
from onboard.storage.journal import Journal, JournalState
from onboard.storage.model_slots import NetworkRecord
from onboard.wire.messages import BadMessage, digest
from onboard.wire.security.seal import NO_SALT

log = logging.getLogger(__name__)

MODEL, UPDATE, DEPLOYED, CHECKPOINT = "model.bin", "update.bin", "deployed.bin", "training.npz"
RESIDUALS = "residual.0", "residual.1"  # in turn: a cut in one leaves the other whole
KEPT = (MODEL, UPDATE, CHECKPOINT, DEPLOYED, *RESIDUALS)
REMEMBERED = 64  # the ground sends a board one command after the other: an earlier one is never repeated
MOST_WAITING = 16  # results that the ground does not have


class TakenCommand(msgspec.Struct, frozen=True, array_like=True):
    """What came of a command; once it is `delivered`, only the outcome is kept."""

    result: CommandResult
    delivered: bool = False


class CommandLog(msgspec.Struct, frozen=True, array_like=True):
    """The commands that a board has taken, oldest first; those whose result waits come after all others.

    A command that arrives again (its acknowledgement was lost, or the ground went back to an older database)
    is not run again: its result, which is kept whole until the ground has it, is offered again."""

    taken: tuple[TakenCommand, ...] = ()
    under_way: bytes = b""  # id of the one whose result comes later

    @property
    def waiting(self) -> CommandResult | None:
        """The oldest result that the ground does not have."""
        return next((each.result for each in self.taken if not each.delivered), None)

    def run(self, command: Command, target: CommandTarget, now: float) -> CommandLog:
        """Returns the log in which the command's result waits; runs a new one. Raises BadMessage."""
        if command.id == self.under_way:
            return self
        result = next((each.result for each in self.taken if each.result.command == command.id), None)
        if result is None:
            if sum(not each.delivered for each in self.taken) >= MOST_WAITING:
                raise BadMessage(f"command {command.name}: too many results wait for the ground")
            result = run_command(command, target, now)
            if result is None:
                return CommandLog(self.taken, under_way=command.id)
        if TakenCommand(result) in self.taken:
            return self
        return self._with(result)

    def end(self, outcome: Outcome, why: str, values: Mapping[str, Value]) -> CommandLog:
        """Returns the log in which the result of the command that was under way waits."""
        result = CommandResult(
            command=self.under_way, outcome=outcome, why=why[:MAX_WHY_CHARACTERS], values=dict(values)
        )
        return CommandLog(self.taken)._with(result)

    def _with(self, result: CommandResult) -> CommandLog:
        others = [each for each in self.taken if each.result.command != result.command]
        return CommandLog((*others, TakenCommand(result))[-REMEMBERED:], self.under_way)

    def is_about(self, name: bytes) -> bool:
        return self.waiting is not None and digest(RESULT, encode_body(self.waiting)) == name

    def deliver(self) -> CommandLog:
        """Returns the log after the ground took the result that waited first."""
        result = self.waiting
        assert result is not None, "no result waits"
        why = result.why or "the result was delivered before"
        kept = TakenCommand(CommandResult(command=result.command, outcome=result.outcome, why=why), True)
        taken = tuple(kept if each.result is result else each for each in self.taken)
        return CommandLog(taken, self.under_way)


class KeptResidual(msgspec.Struct, frozen=True, array_like=True):
    """What the update of a round had no bits for, in the file of that name."""

    name: str
    round: int


class FederatedState(JournalState, kw_only=True):
    mission: bytes = b""
    phase: State = State.IDLE
    round: int = 0
    asking: int = 0  # of this round, the last
    model: bytes = b""  # digest of the object in model.bin
    asked_under: bytes = NO_SALT  # the salt in force when the round was asked
    question: bytes = b""  # and of the same as it was asked first: an asking that differs in it is new work
    update: bytes = b""  # digest of the object in update.bin
    deployed: bytes = b""  # digest of the object in deployed.bin
    fragment_bytes: int = 0  # and how the update is cut for the link
    train_s: float = 0.0  # spent on this round's training up to the last checkpoint
    cpu_s: float = 0.0
    energy_j: float = 0.0
    commands: CommandLog = CommandLog()
    networks: NetworkRecord = NetworkRecord()
    downlink: DownlinkState = DownlinkState()
    residual: KeptResidual | None = None
    installing: dict[str, Value] = msgspec.field(default_factory=dict)
    """Arguments of the install that is under way."""

    @property
    def taken(self) -> tuple[bytes, ...]:
        """Digests of the objects that the board can still act on; any other that comes again is new."""
        return tuple(digest for digest in (self.model, self.deployed) if digest)


def kept_object(journal: Journal[FederatedState], name: str, kind: int, named: bytes) -> bytes | None:
    """Reads the object in the file `name` if its digest is `named`; else returns None and logs why."""
    try:
        content = journal.fetch(name)
    except (OSError, MemoryError) as error:
        content, why = None, str(error) or type(error).__name__
    else:
        why = "gone" if content is None else f"damaged: {len(content)} B that are not what was written"
    if content is not None and digest(kind, content) == named:
        return content
    say(log, "unreadable", level=logging.ERROR, path=str(journal.folder / name), why=why)
    return None
