"""The benchmarks' command lists its claims and refuses what it does not know."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.__main__ import NAMES, main

DOCUMENT = Path(__file__).parents[2] / "docs" / "results" / "benchmarks.md"


def test_without_a_name_every_claim_is_listed_in_a_line() -> None:
    done = CliRunner().invoke(main)
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == list(NAMES)
    assert all(len(line.split()) > 3 for line in done.output.splitlines())


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    done = CliRunner().invoke(main, ["foot"])
    assert done.exit_code == 2
    assert "'foot'" in done.output
    assert all(name in done.output for name in NAMES)


def test_every_benchmark_and_option_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(f"python -m benchmarks {name}" in text for name in NAMES)
    context = click.Context(main)
    for name in NAMES:
        command = main.get_command(context, name)
        assert command is not None
        options = [option for parameter in command.params for option in parameter.opts]
        assert "--json" in options
        assert [option for option in options if f"`{option}`" not in text] == [], name


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_itself(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert "--json" in done.output
