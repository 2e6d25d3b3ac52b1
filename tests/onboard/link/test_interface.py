"""A network interface goes down, or is taken away, and comes back: real processes in network namespaces."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hw_profiles import load_link

LINK = dataclasses.replace(load_link("bench-udp"), rate_up_bps=400e3, rate_down_bps=400e3, mtu_bytes=1200)
SIZE = 60_000  # 1.2 s
OUTAGE_S = 1.2
HOSTS = {
    "v4": {"ground": ("10.99.0.1", "24"), "board": ("10.99.0.2", "24")},
    "v6": {"ground": ("fd99::1", "64"), "board": ("fd99::2", "64")},
}


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


class Wire:
    """Two namespaces, one for each end, and a pair of virtual Ethernet interfaces between them."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.spaces = {side: f"sdml-{side}-{os.getpid()}" for side in HOSTS[version]}
        for space in self.spaces.values():
            ip("netns", "add", space)
        self.plug()

    def plug(self) -> None:
        ground, board = self.spaces["ground"], self.spaces["board"]
        ip("link", "add", "radio", "netns", ground, "type", "veth", "peer", "name", "radio", "netns", board)
        for side, space in self.spaces.items():
            host, bits = HOSTS[self.version][side]
            # No duplicate address detection, in which a v6 address may not be used for a second.
            ip(
                "-n",
                space,
                "addr",
                "add",
                f"{host}/{bits}",
                "dev",
                "radio",
                *["nodad"][: self.version == "v6"],
            )
            ip("-n", space, "link", "set", "radio", "up")

    def pull(self) -> None:
        ip("-n", self.spaces["ground"], "link", "del", "radio")

    def close(self) -> None:
        for space in self.spaces.values():
            ip("netns", "del", space)

    def url(self, side: str) -> str:
        """The board names both addresses, the ground learns where its board is."""
        ground, board = (
            host if self.version == "v4" else f"[{host}]" for host, _ in HOSTS[self.version].values()
        )
        return f"udp://?bind={ground}:4800" if side == "ground" else f"udp://{ground}:4800?bind={board}:4801"


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    try:
        wire = Wire(request.param)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("only root may make network namespaces")
    yield wire
    wire.close()


class EndProgram:
    """One end as a process in its namespace; see benchmarks.ends.port_end."""

    def __init__(self, wire: Wire, side: str, folder: Path) -> None:
        spec = {"side": side, "url": wire.url(side), "link": LINK, "folder": str(folder / side),
                "offer_bytes": SIZE if side == "board" else 0}  # fmt: skip
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", wire.spaces[side], sys.executable, "-m", "benchmarks.ends.port_end",
             msgspec.json.encode(spec).decode()],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def until(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        raise AssertionError(f"it ended without {event}")

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0


@pytest.mark.parametrize(("wire", "how"), [("v4", "gone"), ("v6", "down")], indirect=["wire"])
def test_a_transfer_goes_on_when_the_interface_is_back(wire: Wire, how: str, tmp_path: Path) -> None:
    ground = EndProgram(wire, "ground", tmp_path)
    ground.until("PortUp")
    board = EndProgram(wire, "board", tmp_path)
    ground.until("PeerHeard")
    cut_s = time.monotonic()
    if how == "down":
        ip("-n", wire.spaces["board"], "link", "set", "radio", "down")
    else:
        wire.pull()
    time.sleep(OUTAGE_S)  # real processes: their time is the real one
    if how == "down":
        ip("-n", wire.spaces["board"], "link", "set", "radio", "up")
        if wire.version == "v6":  # whose addresses go with the interface
            host, bits = HOSTS["v6"]["board"]
            ip("-n", wire.spaces["board"], "addr", "add", f"{host}/{bits}", "dev", "radio", "nodad")
    else:
        wire.plug()
    back_s = time.monotonic()
    arrived, delivered = ground.until("Arrived"), board.until("Delivered")
    assert arrived["at_s"] > cut_s + OUTAGE_S
    assert delivered["at_s"] < back_s + 10
    board.end()
    ground.end()


@pytest.mark.parametrize("wire", ["v4"], indirect=True)
def test_a_port_whose_address_is_not_there_yet_opens_when_it_is(wire: Wire, tmp_path: Path) -> None:
    wire.pull()
    ground = EndProgram(wire, "ground", tmp_path)
    time.sleep(OUTAGE_S)
    assert ground.process.poll() is None
    wire.plug()
    ground.until("PortUp")
    ground.end()


@pytest.mark.parametrize("wire", ["v4"], indirect=True)
def test_a_slow_interface_holds_two_frames_and_the_rest_waits_here(wire: Wire) -> None:
    space = wire.spaces["ground"]
    slow = [
        "tc",
        "qdisc",
        "add",
        "dev",
        "radio",
        "root",
        "tbf",
        "rate",
        "9600bit",
        "burst",
        "1600",
        "latency",
        "60s",
    ]
    if subprocess.run(["ip", "netns", "exec", space, *slow], capture_output=True, check=False).returncode:
        pytest.skip("this kernel holds no interface to a rate")
    script = (
        "from hw_profiles import load_link; from onboard.link.ports.schemes import open_port\n"
        f"port = open_port('udp://{HOSTS['v4']['board'][0]}:4801', load_link('bench-udp'))\n"
        "for number in range(50): port.write(bytes(port.max_frame_bytes))\n"
        "print(port.tx_bytes // (port.max_frame_bytes + 28), port.kept_bytes() > 0)\n"
    )
    run = subprocess.run(
        ["ip", "netns", "exec", space, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    on_the_way, more_waits = run.stdout.split()
    # One may have left at once: the token bucket is full.
    assert 1 <= int(on_the_way) <= 3
    assert more_waits == "True"
