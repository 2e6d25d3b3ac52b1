"""One device of a fleet on a virtual clock: the real agent, both ends' real sessions, and the air between.

Bytes are what a serial port would carry: sealed frames in COBS, whole or not as the channel leaves them.
Training runs for real; the time that it takes is the board profile's. Nothing here waits or reads a clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from firmware_sim.world.channel import SIDES, Channel, Impairments, Side
from firmware_sim.world.world import TICK_S
from hw_profiles import Board, Link
from onboard.agents.federated import HEALTH_EVERY_S, FederatedAgent
from onboard.agents.federated_state import FederatedState
from onboard.board.budget import Pace, ResourceUsage
from onboard.config import GROUND, LinkEnd, NodeConfig
from onboard.data.loading import Images
from onboard.learn.graph import TrainGraph
from onboard.mission.health import State
from onboard.runtime.drive import Drive
from onboard.storage.boot_counter import count_start
from onboard.storage.journal import Journal
from onboard.trainer.in_process import LocalTrainer
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Event
from onboard.wire.framing import cobs
from onboard.wire.session import Session

NEVER_S = 1e9  # a virtual board loses no power: its checkpoints would only cost real time


@dataclass(frozen=True, slots=True)
class Place:
    """A seat in the fleet: who sits there, on which board and link, with which images."""

    node: int
    board: Board
    link: Link
    images: Images
    key: bytes
    folder: Path  # the board's journal


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """What a device took: bytes on the wire and seconds on the air of both transmitters (with framing,
    repetitions, lost frames and keying), and joules of the board while it was awake."""

    bytes_up: int = 0
    bytes_down: int = 0
    airtime_up_s: float = 0.0
    airtime_down_s: float = 0.0
    energy_j: float = 0.0

    def __add__(self, other: DeviceUsage) -> DeviceUsage:
        return DeviceUsage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(DeviceUsage)))

    def __sub__(self, other: DeviceUsage) -> DeviceUsage:
        return DeviceUsage(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(DeviceUsage)))


class Device:
    """A board that is awake, and the ground's end of its link.

    It boots when it is made, and is let go of when `resting`; what it must know the next time is in its
    journal. `boot`: one more at each boot of this node; with `seed` it names the fate of every frame.
    `epoch`: of the ground's frames, likewise. `gone`: no contact opens as long as it is awake. `group_key`:
    of the downlink that it hears with others.
    """

    def __init__(
        self,
        place: Place,
        graphs: Callable[[str], TrainGraph],
        *,
        boot: int,
        epoch: int,
        seed: int,
        gone: bool,
        now: float,
        group_key: bytes | None = None,
    ) -> None:
        self.place = place
        self.gone = gone
        journal = Journal(place.folder, FederatedState)
        known = count_start(journal, [GROUND])
        link, key, node = place.link, place.key, place.node
        self.ground = Session(
            Identity(GROUND, node, primary=True),
            Medium(link),
            Security(key),
            SessionState(epoch=epoch),
            now=now,
        )
        self._board = Session(
            Identity(node, GROUND, primary=False),
            Medium(link),
            Security(key, group_key=group_key),
            SessionState(epoch=known.links[GROUND].epoch),
            now=now,
        )
        ledger = ResourceUsage(place.board, link, now)
        trainer = LocalTrainer(place.images, graphs)
        self.agent = FederatedAgent(_config(place), self._board, journal, known, ledger, trainer)
        self._drive = Drive(self.agent, Pace(place.board.cpu_share, place.board.train_flops), now)
        fates = (seed * 256 + node) * 65536 + boot
        self._channel = Channel(link, Impairments(windows=() if gone else None), seed=fates)
        self._ports: dict[Side, _Port] = {side: _Port(link) for side in SIDES}
        self._overheard = DeviceUsage()
        self._health_at = now
        self.agent.resume(now)

    def hear(self, now: float) -> list[Event]:
        """All that is due now but speaking: frames that arrive, timers, a training step. Returns what the
        ground's end learns."""
        events: list[Event] = []
        for side, sent in self._channel.due(now):
            for frame in self._ports[side].frames(sent):
                if side == "ground":
                    events += self.ground.receive(frame, now)
                else:
                    self._tell(self._board.receive(frame, now), now)
        events += self.ground.tick(now)
        self._tell(self._board.tick(now), now)
        if now >= self._health_at:
            self.agent.housekeeping(now)
            self._health_at = now + HEALTH_EVERY_S
        self._drive.turn(now, lambda: now)
        return events

    def overhear(self, sent: bytes, now: float) -> None:
        """The ground speaks to all: it is on this device's air, and not in what the device `spent`."""
        before = self._channel.counters("ground")
        self._channel.send("ground", sent, now)
        after = self._channel.counters("ground")
        airtime_s = after.airtime_s - before.airtime_s
        self._overheard += DeviceUsage(bytes_down=after.bytes - before.bytes, airtime_down_s=airtime_s)

    def speak(self, now: float) -> None:
        """Puts on the air what both ends have to say now."""
        ends: tuple[tuple[Side, Session], ...] = (("ground", self.ground), ("board", self._board))
        for side, session in ends:
            while (frame := session.transmit(now)) is not None:
                self._channel.send(side, cobs.encode(frame), now)

    def wakeup(self, now: float) -> float:
        """When `hear` and `speak` next have something to do; always after `now`."""
        ends = min(self.ground.wakeup(now), self._board.wakeup(now), self._drive.wakeup())
        return max(now + TICK_S, min(self._channel.next_due(), ends, self._health_at))

    def resting(self, now: float) -> bool:
        """Whether neither end has anything left to do for the other."""
        settled = self.agent.work is None and self.agent.known.phase in (State.IDLE, State.FAILED)
        return settled and not any(end.outgoing or end.incoming for end in (self.ground, self._board))

    def spent(self, now: float) -> DeviceUsage:
        """Since its boot, on its own link."""
        up, down = self._channel.counters("board"), self._channel.counters("ground")
        energy_j = self.agent.ledger.energy_j(now, self._board.airtime_s)
        return DeviceUsage(up.bytes, down.bytes, up.airtime_s, down.airtime_s, energy_j) - self._overheard

    def progress(self) -> float:
        """Share of the training that is done, 0 to 1."""
        return 0.0 if self.agent.work is None else self.agent.work.progress

    def _tell(self, events: list[Event], now: float) -> None:
        for event in events:
            self.agent.hear(event, now)


class _Port:
    """The hearing half of a serial port: a stream of bytes becomes frames, and what is none is dropped."""

    def __init__(self, link: Link) -> None:
        self._splitter = cobs.Splitter(link.mtu_bytes)

    def frames(self, stream: bytes) -> list[bytes]:
        """The frames that these bytes complete. What bit errors broke is missed by the session."""
        whole = []
        for chunk in self._splitter.feed(stream):
            with contextlib.suppress(cobs.BadCobs):
                whole.append(cobs.decode(chunk))
        return whole


def _config(place: Place) -> NodeConfig:
    """What NODE.toml would say of this device."""
    return NodeConfig(
        path=place.folder / "node.toml",
        id=place.node,
        name=f"device-{place.node}",
        board=place.board,
        ground=LinkEnd(link=place.link, port="", key_path=place.folder / "node.key"),
        state=place.folder,
        data_source="",
        data_folder=None,
        data_shape=place.images.shape,
        data_rows=None,
        cpu_share=place.board.cpu_share,
        memory_bytes=place.board.agent_memory_bytes,
        checkpoint_s=NEVER_S,
    )
