"""A ground and a board over UDP on this computer: real sockets, spools on the disk, a virtual clock."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from firmware_sim.runs.processes import free_ports
from hw_profiles import load_link
from onboard.link.ports.port import PortEvent, Way
from onboard.link.ports.schemes import facts_of, opener
from onboard.link.pump import Pump, PumpEvent
from onboard.link.spool import Spool
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Message, Rekeyed
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import NO_SALT
from onboard.wire.session import Session
from tests.onboard.link.cable import Clock
from tests.onboard.link.objects import lines
from tests.onboard.wire.examples import KEY

LINK = dataclasses.replace(load_link("bench-udp"), mtu_bytes=1200)
STEP_S = 0.02


class LanEnd:
    """One program with its disk: node 0 is the ground, node 3 the board."""

    def __init__(self, name: str, url: str, folder: Path, clock: Clock) -> None:
        self.name, self.url, self.folder, self._clock = name, url, folder / name, clock
        self.is_ground = name == "ground"
        self.epoch, self.salt = 0, NO_SALT
        self.crossed: list[tuple[Way, bytes]] = []
        self.events: list[PumpEvent] = []
        self.boot()

    def boot(self) -> None:
        self.epoch, self.salt = self.epoch + 1, NO_SALT
        spool = Spool(self.folder, 1 << 20)
        session = Session(
            Identity(0 if self.is_ground else 3, 3 if self.is_ground else 0, primary=self.is_ground),
            Medium(LINK, wire_bytes=facts_of(self.url).wire_bytes),
            Security(KEY, nonce=os.urandom),
            SessionState(epoch=self.epoch, done=spool.finished()),
            limits=facts_of(self.url).limits,
            now=self._clock.now,
        )
        self.pump = Pump(
            opener(self.url, LINK, lambda way, data: self.crossed.append((way, data))), session, spool
        )

    def kill(self) -> None:
        """As kill -9: the kernel closes the socket, and nothing more is written."""
        if self.pump._port is not None:
            self.pump._port.close()
        self.pump.close = self.pump.poll = lambda now: []  # type: ignore[method-assign]

    def restart(self) -> None:
        self.kill()
        self.boot()

    def lose(self) -> None:
        """Starts again with an empty disk."""
        self.kill()
        shutil.rmtree(self.folder)
        self.epoch = 0
        self.boot()

    def act(self, event: PumpEvent) -> None:
        self.events.append(event)
        if isinstance(event, Rekeyed):
            self.salt = event.salt
            self.pump.session.rekey(event.salt)
        elif isinstance(event, Arrived):
            self.pump.session.accept(event.digest, self._clock.now)

    def told(self, kind: type[PumpEvent]) -> list[PumpEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    def lines(self, name: str) -> list[PortEvent]:
        return lines(self.events, name)

    @property
    def peer(self) -> str:
        return self.pump.port_snapshot().peer

    @property
    def address(self) -> tuple[str, int]:
        port = self.pump._port
        assert port is not None
        host, number = port.local  # type: ignore[attr-defined]
        return ("127.0.0.1" if host == "0.0.0.0" else host), number

    def heard(self, kind: Type | None = None) -> list[bytes]:
        """The frames that came in, of one type."""
        frames = [data for way, data in self.crossed if way == "in"]
        return [raw for raw in frames if kind is None or framing.unproven(raw).type is kind]


class PortLan:
    """A ground and a board on this computer's loopback, whose addresses 127.0.0.x are as many hosts."""

    def __init__(self, folder: Path, ground: str, board: str) -> None:
        self.clock = Clock()
        self.ground = LanEnd("ground", ground, folder, self.clock)
        self.board = LanEnd("board", board, folder, self.clock)
        self.told = 0

    @property
    def ends(self) -> dict[str, LanEnd]:
        return {"ground": self.ground, "board": self.board}

    def run(self, seconds: float, until: object = None, step_s: float = STEP_S) -> float:
        """Until `until()` holds, which it must within `seconds`; without it for so long. Returns when."""
        began = self.clock.now

        def over(_: object) -> bool:
            return until() if callable(until) else self.clock.now >= began + seconds  # type: ignore[no-any-return]

        self.clock.run(
            {name: end.pump for name, end in self.ends.items()}, over, step_s=step_s,
            act=lambda name, event: self.ends[name].act(event), limit_s=seconds + step_s * 2,
        )  # fmt: skip
        return self.clock.now - began

    def says(self, end: LanEnd, within_s: float, hears: LanEnd | None = None) -> float:
        """A message from one end to the other arrives within so many seconds."""
        self.told += 1
        message = b"%d" % self.told
        other = hears or (self.board if end is self.ground else self.ground)

        def sure() -> bool:
            if self.clock.now - said[-1] >= 1.0:  # a MSG is unreliable
                end.pump.session.send_message(message, self.clock.now)
                said.append(self.clock.now)
            return Message(message) in other.events

        said = [self.clock.now - 1.0]
        return self.run(within_s, sure)

    def meet(self) -> None:
        """Both know each other, and have agreed on a salt."""
        self.run(10.0, lambda: self.ground.salt == self.board.salt != NO_SALT)
        for end in self.ends.values():
            self.says(end, 5.0)


def ground_names(host: str = "127.0.0.1") -> tuple[str, str]:
    """URLs of the ground, which names the board, and of the board, which learns where the ground is."""
    number = free()
    return f"udp://127.0.0.1:{number}", f"udp://?bind={host}:{number}"


def board_names(host: str = "127.0.0.1") -> tuple[str, str]:
    """The other way round."""
    board, ground = ground_names(host)
    return ground, board


def free(host: str = "127.0.0.1") -> int:
    return free_ports(1, host)[0]


def free_over_ipv6() -> int:
    """A UDP port that nobody has on ::1; skips the test on a machine without it."""
    try:
        return free_ports(1, "::1")[0]
    except OSError:
        pytest.skip("this machine has no ::1")
