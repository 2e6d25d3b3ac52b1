"""A benchmark's outcome: rows of measured numbers, each beside the bound it is held to, if there is one."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured number. `bound` is the largest value promised, or the smallest where `at_least`."""

    what: str
    value: float
    unit: str
    bound: float | None = None
    at_least: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"{self.what}: {self.value} {self.unit} is no measurement")

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; a row without one breaks nothing."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def table(rows: Sequence[Row]) -> str:
    """The rows for a reader: what, value and unit, bound, verdict."""
    cells = [
        (
            row.what,
            f"{row.value:.4g} {row.unit}",
            "" if row.bound is None else f"{'at least' if row.at_least else 'at most'} {row.bound:g}",
            "" if row.bound is None else "holds" if row.holds else "BROKEN",
        )
        for row in rows
    ]
    widths = [max(map(len, column), default=0) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def json_line(benchmark: str, rows: Sequence[Row]) -> str:
    """The rows for a program, as one line of JSON: the benchmark's name, the machine, and for every row
    what, value, unit, bound (null where nothing is promised) and holds."""
    told = [
        {"what": row.what, "value": row.value, "unit": row.unit, "bound": row.bound, "holds": row.holds}
        for row in rows
    ]
    return json.dumps({"benchmark": benchmark, "machine": machine(), "rows": told})


def machine() -> dict[str, Any]:
    """What the numbers were measured on, without naming the host."""
    return {
        "arch": platform.machine(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The kernel's name for the processor: `model name` on x86, `Model` (the board's) on a Raspberry Pi."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name") or fields.get("Model") or "unknown"
