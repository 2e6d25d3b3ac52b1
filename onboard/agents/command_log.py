"""The commands that a board has taken, as its journal keeps them: each is run once and answered until heard.

A command that arrives again (its acknowledgement was lost, or the ground went back to an older database) is
not run again: what came of it is offered again. A result is kept whole until the ground has it.
"""

from __future__ import annotations

import msgspec

from onboard.mission.commands import Command, CommandResult, CommandTarget, encode_result, run_command
from onboard.mission.objects import RESULT
from onboard.wire.messages import BadMessage, digest

REMEMBERED = 64  # the ground sends a board one command after the other: an earlier one is never repeated
MOST_WAITING = 16  # results that the ground does not have


class TakenCommand(msgspec.Struct, frozen=True, array_like=True):
    """What came of a command; `delivered`: the ground has it, and only the outcome is kept."""

    result: CommandResult
    delivered: bool = False


class CommandLog(msgspec.Struct, frozen=True, array_like=True):
    """Oldest first; those whose result waits come after all others."""

    taken: tuple[TakenCommand, ...] = ()

    @property
    def waiting(self) -> CommandResult | None:
        """The oldest result that the ground does not have."""
        return next((each.result for each in self.taken if not each.delivered), None)

    def result(self, command_id: bytes) -> CommandResult | None:
        """What came of a command; None if it was never run, as far as the log goes back."""
        return next((each.result for each in self.taken if each.result.command == command_id), None)

    def run(self, command: Command, target: CommandTarget, now: float) -> CommandLog:
        """The log after a command arrived, which is run if it never was; its result waits. Raises BadMessage
        for one that is not taken before a result is delivered."""
        if (result := self.result(command.id)) is None:
            if sum(not each.delivered for each in self.taken) >= MOST_WAITING:
                raise BadMessage(f"command {command.name}: too many results wait for the ground")
            result = run_command(command, target, now)
        if TakenCommand(result) in self.taken:
            return self
        others = [each for each in self.taken if each.result.command != command.id]
        return CommandLog((*others, TakenCommand(result))[-REMEMBERED:])

    def is_about(self, name: bytes) -> bool:
        """Whether `name` is the digest of the result that waits first."""
        return self.waiting is not None and digest(RESULT, encode_result(self.waiting)) == name

    def deliver(self) -> CommandLog:
        """The log after the ground took the result that waited first."""
        result = self.waiting
        assert result is not None, "no result waits"
        why = result.why or "the result was delivered before"
        kept = TakenCommand(CommandResult(command=result.command, outcome=result.outcome, why=why), True)
        return CommandLog(tuple(kept if each.result is result else each for each in self.taken))
