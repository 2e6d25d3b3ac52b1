"""A command is one handler and one row: a toy one is worded, queued, sent, run, answered and listed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from click.testing import CliRunner
from msgspec import Meta

from groundstation.cli import main
from groundstation.commands import CommandTable
from onboard.mission.commands import COMMANDS, CommandHandler, CommandRefused, CommandTarget, Value
from tests.missions.clockwork import Clockwork


class SetShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments."""

    share: Annotated[float, Meta(gt=0, le=1)]


SHARES: list[float] = []


def set_share(target: CommandTarget, arguments: SetShare, now: float) -> Mapping[str, Value]:
    """A lower share than before is taken, and no higher one."""
    if SHARES and arguments.share > SHARES[-1]:
        raise CommandRefused(f"{arguments.share:g} is more than {SHARES[-1]:g}")
    SHARES.append(arguments.share)
    return {"share": arguments.share, "uptime_s": target.uptime_s(now)}


def test_the_table_of_commands_is_complete() -> None:
    assert list(COMMANDS) == ["ping", "report", "install", "roll-back"]


def test_a_toy_command_needs_nothing_but_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    SHARES.clear()
    monkeypatch.setitem(COMMANDS, "set-share", CommandHandler(set_share, "sets a share", SetShare))
    on = Clockwork(tmp_path, monkeypatch, caplog)
    monkeypatch.setattr("time.time", on.wall)
    on.boot()

    def command(*words: str) -> str:
        told = CliRunner().invoke(main, ["command", str(on.folder), *words])
        assert told.exit_code == (2 if told.stderr else 0), told.output
        return told.output

    for words in ("share=0.5", "share=0.75", "share=0.25"):
        assert f" queued: set-share {words} for board-1" in command("board-1", "set-share", words)
        on.pass_time(1.0)
    assert SHARES == [0.5, 0.25]
    stored = [(row.state.value, row.result.get("share"), row.why) for row in CommandTable(on.store).all()]
    assert stored == [("done", 0.5, ""), ("refused", None, "0.75 is more than 0.5"), ("done", 0.25, "")]
    assert " refused: set-share share=0.75 for board-1, 2 s ago: 0.75 is more than 0.5\n" in command(
        "board-1"
    )
    for words, says in (
        ("share=2", "Expected `float` <= 1.0 - at `$.share`"),
        ("share=much", "Expected `float`, got `str` - at `$.share`"),
        ("part=1", "Object contains unknown field `part`"),
        ("share=0.1 share=0.2", "arguments are KEY=VALUE, each key once"),
    ):
        assert says in command("board-1", "set-share", *words.split())
