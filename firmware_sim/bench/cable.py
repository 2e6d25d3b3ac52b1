"""A cable with a radio in the middle: bytes leave one end as and when the channel decides.

Both ends are real ports that any program can open: pseudo-terminals ("serial") or UDP sockets. Reading stops
while an end is about two frames (at least 5 ms) ahead of the air. A program that does not pace itself then
fills the kernel's buffer, and its writes block (serial) or are dropped (UDP), as with a modem."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from firmware_sim.bench.cable_ports import Port, serial_piece_bytes
from firmware_sim.bench.faults import NOISE_EVERY_S, PAUSE_S, Faults
from firmware_sim.world.channel import SIDES, Channel, Side, other

IP_UDP_HEADER_BYTES = 28  # IPv4 20 (RFC 791) and UDP 8 (RFC 768)

_REOPEN_CHECK_S = 0.05  # how often a closed pty is polled: poll(2) cannot wait for the end of POLLHUP
# With less lookahead, a busy scheduler (a few ms) would starve a fast link.
_LOOKAHEAD_S = 0.005


class Cable:
    """Two open ports, the channel between them, and the faults of the line."""

    def __init__(self, channel: Channel, ports: Mapping[Side, Port], faults: Faults) -> None:
        self._channel, self._ports, self._faults = channel, ports, faults
        self._stopped = dict.fromkeys(SIDES, False)
        self._idle_due_s = 0.0 if faults else math.inf
        self._began_s = time.monotonic()
        # Two frames ahead: one on the air and one behind it.
        longest = serial_piece_bytes(channel.link)
        self._lookahead_s = {side: max(channel.airtime_s(side, longest), _LOOKAHEAD_S) for side in SIDES}

    def now(self) -> float:
        """Seconds since the cable was made; the time axis of the contact windows."""
        return time.monotonic() - self._began_s

    def run(self, stop_fd: int, report: Callable[[], bool], report_every_s: float = math.inf) -> None:
        """Carries frames until stop_fd is readable or `report`, called every report_every_s, is False."""
        next_report_s = self.now() + report_every_s
        while True:
            now = self.now()
            for side, frame in self._channel.due(now):
                if piece := self._faults.arrive(side, frame):
                    self._ports[side].deliver(piece)
            if now >= next_report_s:
                if not report():
                    return
                next_report_s += report_every_s * (1 + (now - next_report_s) // report_every_s)
            wait_for: list[int] = [stop_fd]
            until = min(next_report_s, self._make_noise(now))
            for side, port in self._ports.items():
                until = min(until, self._take_in(side, port, now, wait_for))
            until = min(until, self._channel.next_due())  # only now: what was just taken in is due too
            timeout_s = None if until == math.inf else max(0.0, until - self.now())
            if stop_fd in select.select(wait_for, [], [], timeout_s)[0]:
                return

    def _take_in(self, side: Side, port: Port, now: float, wait_for: list[int]) -> float:
        """Reads one chunk if the air has room; returns when to try again if no byte arrives before."""
        if self._stops(side, port, now):
            return now + _REOPEN_CHECK_S
        room_at = self._channel.busy_until(side) - self._lookahead_s[side]
        if now >= room_at:
            for frame in port.read(now):
                self._send(side, port, frame, now)
            room_at = self._channel.busy_until(side) - self._lookahead_s[side]
        if now < room_at:
            return room_at
        if not port.readable():
            return now + _REOPEN_CHECK_S
        wait_for.append(port.fileno())
        return port.wakeup()

    def _send(self, side: Side, port: Port, piece: bytes, now: float) -> None:
        begins_burst = now - self._channel.busy_until(side) >= PAUSE_S
        if echo := self._faults.echo(side, piece):
            port.deliver(echo)
        self._channel.send(side, self._faults.depart(side, piece, begins_burst), now)

    def _stops(self, side: Side, port: Port, now: float) -> bool:
        stopped = self._faults.stops(side, now, self._channel.counters(side).bytes)
        if stopped != self._stopped[side]:
            port.stop(stopped)
            self._stopped[side] = stopped
        return stopped

    def _make_noise(self, now: float) -> float:
        if now >= self._idle_due_s:
            self._idle_due_s = now + NOISE_EVERY_S
            for side, port in self._ports.items():
                if now >= self._channel.busy_until(other(side)) and (noise := self._faults.idle(side)):
                    port.deliver(noise)
        return self._idle_due_s

    def report(self) -> dict[str, Any]:
        """Returns all counts since the start; a side's numbers are of what that side sent."""
        now = self.now()
        sides = {
            side: {
                "port": port.name,
                **asdict(self._channel.counters(side)),
                **asdict(port.losses),
                "faults": self._faults.hits(side),
            }
            for side, port in self._ports.items()
        }
        link, is_up = self._channel.link.name, self._channel.is_open(now)
        return {"t_s": round(now, 3), "link": link, "up": is_up} | sides

    def close(self) -> None:
        for port in self._ports.values():
            port.close()
