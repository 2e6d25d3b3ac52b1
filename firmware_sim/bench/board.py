"""An emulated board: the real agent, as slow and as small as the board's profile says.

The agent is not told. Its memory is limited by the kernel, and the carrier lets the next training step run
only when the board of the profile would have finished this one: the model's FLOP divided by the board's
sustained FLOP/s, divided by the share of the CPU that the agent may take. Training itself is done at full
speed in between, so three boards share a laptop.
"""

from __future__ import annotations

import logging
from pathlib import Path

from onboard.board.budget import Pace
from onboard.cli import run_agent
from onboard.config import ends_of, load_own
from onboard.console.log import say
from onboard.console.toml import ConfigError

log = logging.getLogger(__name__)


def emulate(node_toml: Path, *, report_every_s: float | None = None) -> None:
    """Runs the agent of NODE.toml as its board would, until SIGTERM or SIGINT. Raises ConfigError."""
    config = load_own(node_toml)
    board = config.board
    if not board.train_flops:
        raise ConfigError(f"{config.path}: node.board = {board.name!r}: {board.title} cannot train")
    say(
        log, "emulating", board=board.name, train_gflops=board.train_flops / 1e9,
        cpu_share=config.cpu_share, memory_mb=config.memory_bytes / 2**20,
        link=", ".join(dict.fromkeys(end.link.name for end in ends_of(config).values())),
    )  # fmt: skip
    run_agent(config, Pace(config.cpu_share, board.train_flops), report_every_s)
