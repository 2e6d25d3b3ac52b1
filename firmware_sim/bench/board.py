"""An emulated board: the real agent, as slow and as small as the board's profile says.

The kernel limits the agent's memory. The runtime lets the next training step run only when the profiled board
would have finished this one: FLOP of the model / sustained FLOP/s of the board / the agent's share of the
CPU. A step itself runs at full speed, so three boards can share a laptop."""

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
    """Runs the agent of NODE.toml as its board would until SIGTERM or SIGINT. Raises ConfigError."""
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
