"""An object crosses real processes and ports in the benchmark's way, and a row is what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.claims.link import ports
from benchmarks.claims.link.ports import PortCase, link_at
from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from hw_profiles import load_link

SMALL = PortCase("a test's", link_at(500e3), 40_000)


@pytest.mark.parametrize("port", ["pty", "udp"])
def test_an_object_crosses_at_the_link_s_rate(port: str) -> None:
    run = ports.transfer(SMALL, port)
    promised_bps = ports.virtual_goodput_bps(SMALL)
    assert 0.9 * 500e3 * 1400 / 1450 < promised_bps < 500e3 * 1400 / 1424
    assert 0.5 * promised_bps < run.goodput_bps < 1.02 * promised_bps  # this computer may be busy
    assert set(run.busy) == {"ground", "board", "cable"}
    assert 0 < max(run.busy.values()) < 1


def test_a_program_that_fails_ends_the_measurement_with_its_last_words() -> None:
    with pytest.raises(LabError, match=r"cable ended: .*rate_up_bps"):
        ports.transfer(PortCase("no link", link_at(-1.0), 1_000), "pty")


def test_the_cable_is_given_the_same_link(tmp_path: Path) -> None:
    link = link_at(115_200, "bench-serial-115k2", 10)
    (tmp_path / "link.toml").write_text(ports._toml(link))
    found = load_link(str(tmp_path / "link.toml"))
    assert (found.rate_up_bps, found.bits_per_byte, found.mtu_bytes) == (115_200, 10, 1422)


def test_only_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "CASES", (SMALL,))
    rows = ports.measure(ProgressLine("ports"), only="udp", repeats=1)
    assert [row.what.strip() for row in rows] == [
        "udp, a test's: goodput of the virtual clock's", "goodput", "busiest end's share of a core", "ground",
        "board", "cable",
    ]  # fmt: skip
    assert [row.bound for row in rows] == [0.9, None, None, None, None, None]
