"""Runs one of the programs under a wall clock that is set from outside, as an operator or NTP sets one.

`python -m benchmarks.ends.stepped_clock FILE MODULE ARGS` is `python -m MODULE ARGS` where `time.time()` is
ahead by the seconds that FILE holds, now and whenever that changes; `time.monotonic()` is not, as it is not
on a computer either. The clock of the kernel belongs to the whole computer and takes root to set, and a time
namespace has no wall clock of its own, so what asks the kernel in another way (file times) is not stepped.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

_AHEAD = struct.Struct("=d")


def make(path: Path) -> None:
    """A clock that is right."""
    path.write_bytes(_AHEAD.pack(0.0))


def step(path: Path, ahead_s: float) -> None:
    """The clock at `path` is ahead by so much from now on."""
    with path.open("r+b") as file:
        file.write(_AHEAD.pack(ahead_s))


def main() -> None:
    """Puts the clock in place, then becomes the program."""
    path, module, *arguments = sys.argv[1:]
    with Path(path).open("r+b") as file:
        ahead = mmap.mmap(file.fileno(), _AHEAD.size)
    right, right_ns = time.time, time.time_ns
    time.time = lambda: right() + _AHEAD.unpack(ahead[:])[0]
    time.time_ns = lambda: right_ns() + int(1e9 * _AHEAD.unpack(ahead[:])[0])
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
