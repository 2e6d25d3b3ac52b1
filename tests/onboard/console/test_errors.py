"""Every program says what is wrong with its arguments in one line, and only help is longer."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import firmware_sim.cli
import groundstation.cli
import onboard.cli
from onboard.console.errors import OneLineErrors

PROGRAMS = {
    "onboard": onboard.cli.main,
    "groundstation": groundstation.cli.main,
    "firmware-sim": firmware_sim.cli.main,
}
COMMANDS = [(name, command) for name, group in PROGRAMS.items() for command in group.commands]


@pytest.mark.parametrize(("program", "arguments"), [
    *((name, (command, "--no-such-option")) for name, command in COMMANDS),
    *((name, ("no-such-command",)) for name in PROGRAMS),
    ("onboard", ("run",)), ("onboard", ("run", "node.toml", "--report-every", "often")),
    ("groundstation", ("init", "mission")), ("firmware-sim", ("cable", "--link")),
])  # fmt: skip
def test_what_is_wrong_with_the_arguments_is_one_line(program: str, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(PROGRAMS[program], list(arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert re.fullmatch(rf"{program}: [^\n]+\n", result.stderr)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_asked_for_or_what_a_program_without_a_command_says(program: str) -> None:
    asked = CliRunner().invoke(PROGRAMS[program], ["--help"])
    assert asked.exit_code == 0
    assert asked.stdout.startswith(f"Usage: {program} ")
    alone = CliRunner().invoke(PROGRAMS[program], [])
    assert alone.exit_code == 2
    assert alone.stderr == asked.stdout


def test_ctrl_c_ends_with_its_exit_code() -> None:
    @click.command()
    def interrupted() -> None:
        raise click.Abort

    group = OneLineErrors("program", {"interrupted": interrupted})
    assert CliRunner().invoke(group, ["interrupted"]).exit_code == 130


@pytest.mark.parametrize("then", ["raise ImportError('multiarray failed to import')", "sys.exit(2)"])
def test_ctrl_c_that_a_library_took_for_its_own_failure_is_ctrl_c(then: str) -> None:
    code = (
        "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from onboard.console.signals import loading\nloading()\n"
        "from onboard.console.errors import OneLineErrors\nimport click\n"
        "@click.group('onboard', cls=OneLineErrors)\ndef main(): pass\n"
        "@main.command()\ndef load():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: pass\n"
        f"    {then}\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "load"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (130, "")


class UnforeseenError(Exception):
    """What no command expects."""


@pytest.mark.parametrize(
    "error", [UnforeseenError("two\nlines"), KeyError("x"), MemoryError(), RecursionError()]
)
def test_what_nobody_foresaw_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise error

    group = OneLineErrors("program", {"broken": broken})
    result = CliRunner().invoke(group, ["broken"])
    assert result.exit_code == 1
    assert re.fullmatch(
        rf"program: internal error: {type(error).__name__}: .*\(test_errors.py:\d+\); "
        r"SPACEDML_TRACEBACK=1 shows more\n",
        result.stderr,
    )
    monkeypatch.setenv("SPACEDML_TRACEBACK", "1")
    assert CliRunner().invoke(group, ["broken"]).exception is error
