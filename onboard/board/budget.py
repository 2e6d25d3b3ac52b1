"""What training may take from the board, and what it took: compute, memory, energy and airtime.

Compute is held by sleeping between steps: measured, cooperative sleep keeps a CPU share to 0.1 %, and needs
no privilege, unlike a cgroup quota. Memory is held by RLIMIT_DATA on the process that trains, which fails
cleanly with MemoryError; RLIMIT_AS counts mappings and RLIMIT_RSS is ignored by Linux. RLIMIT_DATA counts
what is mapped, touched or not: numpy 2.5.5 on aarch64 maps 188 MiB at its import, and OpenBLAS elsewhere 30.
So what a process may fill is counted from there, without what it has only reserved before."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from dataclasses import dataclass
from pathlib import Path

from hw_profiles import Board, Link


class BudgetError(ValueError):
    """A budget that cannot be kept, with the numbers that show it."""


@dataclass(frozen=True)
class Pace:
    """When the next training step may begin, at a `cpu_share` in (0, 1] of one CPU. `train_flops`: sustained
    FLOP/s of an emulated board; None on the board itself, where a step takes as long as it takes."""

    cpu_share: float
    train_flops: float | None = None

    def step_cpu_s(self, cpu_s: float, flops: float) -> float:
        """Returns what the step cost the board: as measured, or as its profile says when emulated."""
        return cpu_s if self.train_flops is None else max(flops / self.train_flops, 1e-9)

    def next_step_at(self, started_s: float, board_cpu_s: float) -> float:
        return started_s + board_cpu_s / self.cpu_share


@dataclass
class CpuShare:
    """One share of a CPU for all that works on a board: what one took is paused by the others, too."""

    pace: Pace
    next_at: float = 0.0
    """When the next step may begin, of any of them."""

    def book(self, started_s: float, board_cpu_s: float) -> None:
        """Notes a step that began at `started_s` and took this much of the board's CPU."""
        self.next_at = self.pace.next_step_at(max(self.next_at, started_s), board_cpu_s)


@dataclass
class ResourceUsage:
    """What the node used since it started. Energy is modelled from the board's profile: idle_w x wall_s +
    (active_w - idle_w) x cpu_s + tx_power_w x airtime_s, in joules."""

    board: Board
    link: Link
    started_s: float
    cpu_s: float = 0.0

    def energy_j(self, now: float, airtime_s: float) -> float:
        wall_s = now - self.started_s
        extra_w = self.board.active_w - self.board.idle_w  # active_w is the whole board's draw when busy
        return self.board.idle_w * wall_s + extra_w * self.cpu_s + self.link.tx_power_w * airtime_s


AGENT_BYTES = 14 * 2**20  # filled by an agent when a round begins; measured: 13.1 MiB


def cap_memory(allowed_bytes: int) -> None:
    """Caps what this process may fill with data, what it has filled so far included, as `MemoryCap` does.
    Raises BudgetError if the process has already filled as much."""
    filled_bytes = anonymous_bytes()
    if allowed_bytes <= filled_bytes:
        raise BudgetError(
            f"training may take {max(0, allowed_bytes) / 2**20:.0f} MB, "
            f"and holds {filled_bytes / 2**20:.0f} MB before it has loaded an image"
        )
    MemoryCap(allowed_bytes).__enter__()


class MemoryCap:
    """Inside the block this process may fill `allowed_bytes` with data, and beyond it allocations raise
    MemoryError; outside of it as much as before. For a process that trains and talks: a full heap is the
    training's alone. What is mapped and empty when it begins is not counted, nor when it is filled later.
    Raises MemoryError at the beginning for a process that has filled more than it may."""

    def __init__(self, allowed_bytes: int) -> None:
        self._allowed_bytes = max(0, allowed_bytes)
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_DATA)

    def __enter__(self) -> None:
        if (filled_bytes := anonymous_bytes()) > self._allowed_bytes:
            # What was allocated and freed goes back to the kernel (malloc_trim(3), which glibc alone has).
            with contextlib.suppress(AttributeError, OSError):
                ctypes.CDLL(None).malloc_trim(0)
            filled_bytes = anonymous_bytes()
        if filled_bytes > self._allowed_bytes:
            raise MemoryError(f"{filled_bytes >> 20} MB are filled, of {self._allowed_bytes >> 20} MB")
        limit_bytes = self._allowed_bytes + max(0, data_bytes() - filled_bytes)
        limits = [limit for limit in (self._soft, self._hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([limit_bytes, *limits]), self._hard))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (self._soft, self._hard))


def anonymous_bytes() -> int:
    """Returns what this process has filled with data now (RssAnon): all resident but pages of files."""
    return _status_kb("RssAnon") * 1024


def peak_bytes() -> int:
    """Returns the most that this process has filled with data so far: its peak (VmHWM) but pages of files."""
    return (_status_kb("VmHWM") - _status_kb("RssFile") - _status_kb("RssShmem")) * 1024


def data_bytes() -> int:
    """Returns what RLIMIT_DATA counts for this process now."""
    return _status_kb("VmData") * 1024


def temperature_c() -> float | None:
    """Returns the board's temperature, None without a sensor (thermal ABI of Linux: thousandths)."""
    try:
        return int(Path("/sys/class/thermal/thermal_zone0/temp").read_text()) / 1000.0
    except (OSError, ValueError):
        return None


def _status_kb(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - /proc is Linux's own API
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0
