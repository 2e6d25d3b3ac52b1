"""The commands of docs/tutorial.md, as printed and in order: a mission ends, and its model recognizes digits.

Only the numbers of rounds and images are others, the ends of the cable are in the test's folder, and step 6,
which is words, kills the board and starts it again. Step 9 is test_own_network.py's.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.field.commands import blocks
from tests.field.machines import ROOT, Lan, why_not
from tests.field.test_readme import BOARD, GROUND, IMAGES, until

TITLE = "Tutorial: a mission with two boards, on one computer"
STAYS = re.compile(r"(groundstation serve|firmware-sim cable|onboard run) ")
ROUNDS = 1


def test_the_tutorial_as_it_is_printed(tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(why)
    on = Lan(tmp_path, GROUND, BOARD, {})
    here = on.ground
    started: dict[str, list[str]] = {}
    told = ""
    try:
        for block in blocks("docs/tutorial.md", TITLE):
            commands = [as_here(line, tmp_path) for line in block]
            if commands[0].startswith("groundstation export"):
                break
            if not STAYS.match(commands[0]):
                if commands[-1].startswith(sys.executable):  # the model is there after the last round
                    until(lambda: here.said("nano", "deployed") and here.said("pi", "deployed"))
                told = here.run(commands)
                continue
            what = name(commands[0])
            here.start(what, commands)
            started[what] = commands
            if what == "cable":
                until(lambda: (tmp_path / "tty-board").exists())
            if what == "nano":
                until(lambda: here.said("pi", "epoch"))
                here.kill("pi")
                here.start("pi", started["pi"])
        assert list(started) == ["cable", "ground", "pi", "nano"]
        assert here.said("ground", "finished") == 1
        assert here.said("ground", "closed") == ROUNDS
        assert re.search(r"the model takes this for a \d; it is a \d\n.*test images are recognized", told)
    finally:
        on.close()


def as_here(line: str, folder: Path) -> str:
    """A command with fewer rounds and images, in the test's folder."""
    line = re.sub(r"--rounds \d+", f"--rounds {ROUNDS}", line.replace("/tmp/", f"{folder}/"))
    line = re.sub(r"--images \d+", f"--images {IMAGES}", line)
    return re.sub(r"^python examples/", f"{sys.executable} {ROOT}/examples/", line)


def name(command: str) -> str:
    """What a program that stays is called here: the cable, the ground, or the board's name."""
    if board := re.search(r"boards/(\w+)/", command):
        return board[1]
    return "ground" if command.startswith("groundstation") else "cable"
