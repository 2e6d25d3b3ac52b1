"""Sensor readings that the ground wants to see; a reading that the board does not have is None, never 0."""

from __future__ import annotations

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
    return Readings(
        temperature_c=_temperature_c(),
        load=os.getloadavg()[0],
        memory_bytes=resident_bytes(),
        disk_free_bytes=_disk_free_bytes(state),
    )


def _disk_free_bytes(state: Path) -> int | None:
    try:
        return shutil.disk_usage(state).free
    except OSError:  # somebody removed it, or the card has gone
        return None


def _temperature_c() -> float | None:
    try:
        return int(_THERMAL.read_text()) / 1000.0
    except (OSError, ValueError):
        return None
