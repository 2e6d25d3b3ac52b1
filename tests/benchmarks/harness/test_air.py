"""The link between two namespaces: its rate, delay, losses, queue and outage; and packets of real sockets."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.harness import netns
from benchmarks.harness.air import ADDRESSES, LinkSpec
from firmware_sim.runs.processes import ProcessGroup
from firmware_sim.world.channel import Side
from hw_profiles import load_link

LINK = replace(load_link("bench-udp"), rate_up_bps=80_000.0, rate_down_bps=40_000.0, delay_s=0.5)
SPEC = LinkSpec(link=LINK, mtu_bytes=1000, queue_bytes=10_000, loss=0.0, seed=1)


def test_packets_arrive_in_order_at_the_rate_after_the_delay() -> None:
    air = SPEC.air()
    for n in range(8):
        air.send("board", bytes((n,)) * 1000, 100.0)
        air.send("ground", bytes((n,)) * 500, 100.0)
    arrivals: list[tuple[float, Side, int]] = []
    while (at := air.next_due()) < math.inf:
        due = air.due(at + 1e-9)  # as `now` is never that very moment
        arrivals += ((round(at - 100.0, 6), side, packet[0]) for side, packet in due)
    expected_s = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]  # 1000 B at 80 kbit/s, 500 B at 40, and 0.5 s
    for side in ("ground", "board"):
        assert [(at, n) for at, to, n in arrivals if to == side] == [*zip(expected_s, range(8), strict=True)]


def test_what_finds_the_queue_full_is_dropped_and_the_rest_arrives() -> None:
    air = SPEC.air()
    for n in range(30):
        air.send("board", bytes((n,)) * 1000, 0.0)
    air.send("board", bytes((99,)) * 1000, 0.5)  # five have left by then
    assert [packet[0] for _, packet in air.due(100.0)] == [*range(10), 99]
    assert air.dropped == {"ground": 0, "board": 20}
    assert air.carried()["board"]["bytes"] == 11_000  # what was dropped was never on the air


def test_as_many_are_lost_as_asked_and_a_seed_repeats_them() -> None:
    def survivors(seed: int) -> list[int]:
        air = LinkSpec(link=LINK, mtu_bytes=1000, queue_bytes=10_000, loss=0.2, seed=seed).air()
        for n in range(2000):
            air.send("board", n.to_bytes(2, "big"), float(n))
        return [int.from_bytes(packet, "big") for _, packet in air.due(1e6)]

    assert survivors(1) == survivors(1) != survivors(2)
    assert 1520 < len(survivors(1)) < 1680  # 0.8 of 2,000, and 4.5 standard deviations
    assert survivors(1) == sorted(survivors(1))


def test_nothing_passes_in_an_outage_counted_from_the_board_s_first_packet() -> None:
    air = LinkSpec(link=LINK, mtu_bytes=1000, queue_bytes=10_000, loss=0.0, seed=1, outage_s=(2.0, 4.0)).air()
    air.send("ground", b"nobody is there yet", 5.0)
    for n in range(6):
        air.send("board", bytes((n,)), 10.0 + n)
    assert [packet[0] for _, packet in air.due(1e6)] == [0, 1, 4, 5]
    assert air.carried()["ground"]["frames"] == 0


@pytest.mark.usefixtures("namespaces")
def test_datagrams_cross_between_namespaces_that_are_gone_afterwards(tmp_path: Path) -> None:
    crew = ProcessGroup(tmp_path)
    spec = {"link": asdict(LINK), "mtu_bytes": 1000, "queue_bytes": 10_000, "loss": 0.0, "seed": 1}
    crew.start("air", "benchmarks.harness.air", json.dumps(spec))
    up = next(event for _ in range(200) for _, event in crew.listen(0.1))
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        sockets = {}
        for side, path in up["namespaces"].items():
            netns.enter(path)
            sockets[side] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sockets[side].bind((ADDRESSES[side], 7000))
    finally:
        netns.enter(f"/proc/self/fd/{before}")
        os.close(before)
    sockets["board"].sendto(b"x" * 900, (ADDRESSES["ground"], 7000))
    sockets["ground"].settimeout(10.0)
    assert sockets["ground"].recv(2000) == b"x" * 900
    for opened in sockets.values():
        opened.close()
    (said,) = [event for _, event in crew.stop()]
    assert said["event"] == "Carried"
    assert (said["board"]["frames"], said["board"]["bytes"]) == (1, 928)  # IP and UDP: 28 B
    assert said["ground"]["frames"] == 0
    assert not any(Path(path).exists() for path in up["namespaces"].values())


def test_without_the_right_to_namespaces_it_says_so_in_a_line() -> None:
    spec = {"link": asdict(LINK), "mtu_bytes": 1000, "queue_bytes": 10_000, "loss": 0.0, "seed": 1}
    unprivileged = (
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"] if not os.getuid() else []
    )
    done = subprocess.run(
        [*unprivileged, sys.executable, "-m", "benchmarks.harness.air", json.dumps(spec)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "cannot make network namespaces and TUN devices (root can): [Errno 1]" in line
