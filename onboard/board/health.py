"""Sensor readings that the ground wants to see; a reading that the board does not have is None, never 0."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from onboard.board.budget import resident_bytes

_THERMAL = Path("/sys/class/thermal/thermal_zone0/temp")  # millidegrees Celsius (kernel thermal ABI)


@dataclass(frozen=True)
class Readings:
    """One look at the board."""

    temperature_c: float | None
    load: float
    memory_bytes: int
    disk_free_bytes: int | None


def read(state: Path) -> Readings:
    """Reads the sensors now; `state` is the folder whose disk matters to the agent."""
    temperature_c = disk_free_bytes = None
    with contextlib.suppress(OSError, ValueError):
        temperature_c = int(_THERMAL.read_text()) / 1000.0
    with contextlib.suppress(OSError):  # somebody removed it, or the card has gone
        disk_free_bytes = shutil.disk_usage(state).free
    return Readings(temperature_c, os.getloadavg()[0], resident_bytes(), disk_free_bytes)
