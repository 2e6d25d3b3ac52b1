"""Budgets are kept: the pace holds the share, the ledger adds up, and the kernel's limit is a MemoryError."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_profiles import load_board, load_link
from onboard.board.budget import (
    BudgetError,
    Pace,
    ResourceUsage,
    anonymous_bytes,
    cap_memory,
    data_bytes,
    temperature_c,
)

SHARE = st.floats(0.01, 1.0)
SECONDS = st.floats(0.0, 1e5)


@given(share=SHARE, costs=st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=50))
def test_steps_that_keep_the_pace_take_their_share_of_the_clock(share: float, costs: list[float]) -> None:
    pace, now = Pace(share), 0.0
    for cost_s in costs:
        now = pace.next_step_at(now, cost_s)
    assert sum(costs) / now == pytest.approx(share)


@given(share=SHARE, flops=st.floats(1e6, 1e12), speed=st.floats(1e6, 1e12), measured_s=SECONDS)
def test_an_emulated_board_is_as_fast_as_its_profile(
    share: float, flops: float, speed: float, measured_s: float
) -> None:
    cost_s = Pace(share, speed).step_cpu_s(measured_s, flops)
    assert cost_s == pytest.approx(max(flops / speed, 1e-9))
    assert Pace(share).step_cpu_s(measured_s, flops) == measured_s


@given(cpu=st.lists(SECONDS, max_size=8), wall_s=SECONDS, airtime_s=SECONDS)
def test_energy_is_idle_and_compute_and_radio(cpu: list[float], wall_s: float, airtime_s: float) -> None:
    board, link = load_board("raspberry-pi-4"), load_link("uhf-9k6")
    ledger = ResourceUsage(board, link, started_s=100.0)
    for cpu_s in cpu:
        ledger.cpu_s += cpu_s
    expected_j = (
        board.idle_w * wall_s
        + (board.active_w - board.idle_w) * sum(cpu)
        + link.tx_power_w * airtime_s
    )  # fmt: skip
    assert ledger.cpu_s == pytest.approx(sum(cpu))
    assert ledger.energy_j(100.0 + wall_s, airtime_s) == pytest.approx(expected_j)


def test_a_busy_board_draws_its_active_power() -> None:
    board, link = load_board("raspberry-pi-4"), load_link("bench-serial-115k2")
    ledger = ResourceUsage(board, link, started_s=0.0)
    ledger.cpu_s += 60.0
    assert ledger.energy_j(60.0, 0.0) == pytest.approx(60.0 * board.active_w)


def test_a_process_knows_what_it_holds() -> None:
    before = data_bytes()
    held = bytearray(64 * 2**20)
    held[:: 4096] = b"x" * len(held[:: 4096])  # fmt: skip
    assert data_bytes() - before >= 60 * 2**20
    assert anonymous_bytes() >= 60 * 2**20


def test_a_temperature_is_the_boards_or_none() -> None:
    found, sensor = temperature_c(), Path("/sys/class/thermal/thermal_zone0/temp")
    assert found is None or (sensor.exists() and -60 < found < 150)


def test_a_limit_below_what_is_held_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"^training may take 1 MB, and holds \d+ MB before it has loaded"):
        cap_memory(2**20)


ALLOCATE = """
import mmap
import numpy
from onboard.board.budget import anonymous_bytes, cap_memory, data_bytes, peak_bytes
# Mapped and empty, as numpy 2.5.5 does on aarch64.
reserved = mmap.mmap(-1, 300 * 2**20, flags=mmap.MAP_PRIVATE)
cap_memory(anonymous_bytes() + 32 * 2**20)
small = bytearray(8 * 2**20)
for _ in range(3):
    try:
        large = bytearray(64 * 2**20)
    except MemoryError:
        print("refused")
try:
    numpy.ones(64 * 2**20, numpy.uint8)
except MemoryError:
    print("refused by numpy")
print(len(bytearray(8 * 2**20)))
print(peak_bytes() - anonymous_bytes() > 6 * 2**20, peak_bytes() < data_bytes() - 200 * 2**20)
"""


def test_beyond_the_limit_is_a_memory_error_and_the_process_lives_on() -> None:
    done = subprocess.run([sys.executable, "-c", ALLOCATE], capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\n") == (
        ["refused"] * 3 + ["refused by numpy", str(8 * 2**20), "True True", ""]
    ), done.stderr
    assert done.returncode == 0, done.stderr


CAPPED = """
import numpy
from onboard.board.budget import MemoryCap, anonymous_bytes
cap = MemoryCap(anonymous_bytes() + 8 * 2**20)
for _ in range(2):
    try:
        with cap:
            numpy.ones(64 * 2**20, numpy.uint8)
    except MemoryError:
        print("refused")
    print(len(numpy.ones(64 * 2**20, numpy.uint8)) >> 20)
"""


def test_a_cap_ends_with_its_block() -> None:
    done = subprocess.run([sys.executable, "-c", CAPPED], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["refused", "64"] * 2, done.stderr
