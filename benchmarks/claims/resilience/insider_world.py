"""Missions in which one end of a link holds its key and keeps to no rule; all others are the programs' own.

The clock is virtual (see `harness.virtual`), and what a program takes is charged to it: the CPU time of its
turns as measured, and 10 ms for each fsync and each commit of the database, as an SD card takes. So an honest
update waits for what a hostile peer makes the program do, and no other program of this computer delays it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import groundstation.daemon
import groundstation.store.database
import onboard.cli
import onboard.runtime.federated
import onboard.runtime.gossip
import onboard.trainer.process
from benchmarks.harness.missions import (
    VirtualMission,
    board_node,
    changes_of_rounds,
    graphs,
    images,
    init,
    run_program,
)
from benchmarks.harness.virtual import VirtualWorld
from firmware_sim.world.world import AirPort
from hw_profiles import Link, load_link
from onboard.codec.dense import Dense
from onboard.codec.pack import pack
from onboard.mission.objects import decode_task
from onboard.storage.keys import load_keys
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Begun, Job, Report, TrainingDone
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Delivered, Event, Rekeyed
from onboard.wire.framing.frame import Type
from onboard.wire.messages import BadMessage
from onboard.wire.security.seal import SeqExhausted
from onboard.wire.session import Session

LINK = "sband-2m"  # an update of 1.7 MB takes 7 s
FSYNC_S = 0.01
ROOM_BYTES = 212_992  # Linux's net.core.rmem_default; a serial port's is smaller
TICK_S = 0.01  # of the hostile end
MISSION_S = 300.0  # at most, for the honest update to arrive
FLOPS = 1e12  # a second: the air is what takes time
LIMIT_BYTES = 2_500  # on the air in a tick: what a link of 2 Mbit/s carries


class Charged(VirtualWorld):
    """A world in which turns of the programs in `charged` take time."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.charged: set[str] = set()
        self._syncs = 0
        self._fsync = os.fsync

    def fsync(self, handle: int) -> None:
        """In place of `os.fsync`."""
        self._syncs += 1

    def committed(self) -> None:
        """The database has written a transaction."""
        self._syncs += 1

    def opener(self, url: str, link: Link, tap: object = None) -> Callable[[], AirPort]:
        """As of any world, with a kernel's buffer behind the port."""
        opened = super().opener(url, link, tap)

        def port() -> AirPort:
            made = opened()
            made.room_bytes = ROOM_BYTES
            return made

        return port

    def turn(self, name: str, resume: Callable[[], None]) -> None:
        if name not in self.charged:
            resume()
            return
        syncs, began_s = self._syncs, time.process_time()
        resume()
        self.now += time.process_time() - began_s + FSYNC_S * (self._syncs - syncs)


class Hostile:
    """The program at one end of a link, which has the link's key. `play` is called every TICK_S."""

    def __init__(
        self,
        world: VirtualWorld,
        url: str,
        key: Path,
        *,
        node: int,
        peer: int,
        master: bool,
        link: str = LINK,
    ) -> None:
        self.world, self.url, self.key, self.link = world, url, key, load_link(link)
        self.answered = 0  # of what arrived, for who answers
        self.node, self.peer, self.master = node, peer, master
        self.random = random.Random(f"{node}/{peer}")
        self.play: Callable[[Hostile], None] = lambda hostile: None
        self.epoch = 1
        self.session = self._begin()
        self.heard: list[Event] = []
        self.asked = b""  # the last MODEL that came
        self.takes = True  # what arrives
        self.out: list[bytes] = []  # frames of `raw`
        self.count = 0
        self.began_at = -1.0  # when the other end was first heard

    def _begin(self) -> Session:
        return Session(
            Identity(self.node, self.peer, primary=self.master),
            Medium(self.link),
            Security(load_keys(self.key), nonce=self.random.randbytes),
            SessionState(epoch=self.epoch),
            now=self.world.now,
        )

    def again(self, epoch: int) -> None:
        """Another life, in this epoch."""
        self.epoch = epoch
        self.session = self._begin()

    @property
    def now(self) -> float:
        return self.world.now

    def due(self, per_s: float) -> int:
        """How many times something that happens so often a second is due in this tick."""
        before = int((self.now - self.began_at) * per_s)
        due, self.count = max(0, before - self.count), max(before, self.count)
        return min(due, 100)

    def raw(self, kind: Type, payload: bytes = b"", *, object_id: int = 0, **flags: Any) -> None:
        """A frame of any kind, in its place among the session's."""
        seals = self.session._security
        sealer = seals.handshake.sealer if kind is Type.HELLO else seals.sealer
        self.out.append(sealer.seal(kind, payload, object_id=object_id, **flags))

    def main(self) -> None:
        port = self.world.opener(self.url, self.link)()
        while True:
            try:
                self._turn(port)
            except SeqExhausted:  # as any end does then
                self.again(self.epoch + 1)
            self.world.wait((), TICK_S)

    def _turn(self, port: AirPort) -> None:
        for frame in port.read():
            self._hear(self.session.receive(frame, self.now))
        self.session.tick(self.now)
        if self.began_at >= 0:
            self.play(self)
        left = LIMIT_BYTES
        while self.out and left > 0:
            left -= len(self.out[0])
            port.write(self.out.pop(0))
        self.out = self.out[:200]
        while left > 0 and (sent := self.session.transmit(self.now)) is not None:
            left -= len(sent)
            port.write(sent)

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Rekeyed):
                self.session.rekey(event.salt)
                self.began_at = self.now if self.began_at < 0 else self.began_at
            elif isinstance(event, Arrived):
                self.asked = event.payload
                self.session.accept(event.digest, self.now) if self.takes else None
            self.heard.append(event)

    def offer(self, kind: int, payload: bytes) -> None:
        """Another object on its way, in place of the one before."""
        for name in self.session.outgoing:
            self.session.cancel(name, self.now)
        self.session.offer(kind, payload, self.now)

    @property
    def is_free(self) -> bool:
        """Whether nothing of its own is on its way."""
        return not self.session.outgoing

    def delivered(self) -> int:
        """How many objects were taken."""
        return sum(isinstance(event, Delivered) for event in self.heard)


class Ready(LocalTrainer):
    """Trains as a board does, but for a first round of FedAvg: its answer is known."""

    def __init__(self) -> None:
        super().__init__(
            images("train", 1).take(np.arange(4)), lambda name: graphs()[0], cpu_clock=lambda: 0.0
        )
        self._is_ready = False

    def look(self) -> None:
        """The images are there."""

    def begin(self, job: Job) -> None:
        try:
            task, _ = decode_task(job.model)
            self._is_ready = (
                task.training is not None and task.training.method == "fedavg" and task.training.epochs == 1
            )
        except BadMessage:
            self._is_ready = False
        if self._is_ready:
            self._reports: list[Report] = [Begun(flops_a_step=1.0)]
        else:
            super().begin(job)

    def step(self, *, save: bool = False) -> None:
        if self._is_ready:
            self._reports = [TrainingDone(packed=honest(), loss=1.0, samples=600, cpu_s=0.0)]
        else:
            super().step(save=save)


def honest(length: float = 1e-3) -> bytes:
    """Packed float32 weights of LeNet-5, 1.7 MB: what a board's round has moved."""
    layout = graphs()[0].layout
    draw = np.random.default_rng(1)
    weights = {t.name: (length * draw.standard_normal(t.shape)).astype(np.float32) for t in layout.tensors}
    return pack(Dense(layout, weights))


class Siege(VirtualMission):
    """A ground, the honest board-1 and a hostile board-2; or with `master` the honest board-1 and a hostile
    ground."""

    def __init__(self, folder: Path, seed: str, *, master: bool) -> None:
        super().__init__(folder, seed)
        self.world: Charged = Charged(seed)
        self._master = master
        boards = (1,) if master else (1, 2)
        both = () if master else ("--select", "2", "--quorum", "2")
        nodes = [board_node(number, LINK) for number in boards]
        init(folder / "ground", nodes, "--rounds", "3", "--deadline", "3600", *both)
        toml = folder / "ground" / "mission.toml"
        text = toml.read_text().replace('method = "spacedml-fast"', 'method = "fedavg"')
        toml.write_text(text.replace("\nepochs = 2", "\nepochs = 1"))
        for number in boards:
            (folder / "ground" / "boards" / f"board-{number}").rename(folder / f"board-{number}")
            self.world.lay(f"/dev/air{number}", load_link(LINK), "ground", f"board-{number}")
        self.victim = "board-1" if master else "ground"
        self.programs = ("board-1",) if master else ("ground", "board-1")
        self.world.charged = {self.victim}
        number = 1 if master else 2
        key = folder / f"board-{number}" / "node.key"
        node, peer = (0, 1) if master else (2, 0)
        self.hostile = Hostile(self.world, f"/dev/air{number}", key, node=node, peer=peer, master=master)
        self.hostile_name = "ground" if master else "board-2"

    def boot_all(self) -> None:
        """All programs, the hostile one too."""
        for name in self.programs:
            self.boot(name)
        self.world.start(self.hostile_name, self.hostile.main)

    def _main(self, name: str) -> None:
        run_program(self.folder / name, FLOPS)

    def _changes(self) -> list[tuple[Any, str, Any]]:
        world = self.world
        transaction = groundstation.store.database.Database.transaction

        def counted(database: Any) -> Any:
            world.committed()
            return transaction(database)

        return [
            *changes_of_rounds(world),
            (os, "fsync", world.fsync),
            (groundstation.store.database.Database, "transaction", counted),
            (onboard.trainer.process, "ProcessTrainer", lambda *_: Ready()),
        ]

    def is_answered(self) -> bool:
        """Whether the honest update has arrived."""
        if self._master:
            return any(isinstance(e, Arrived) and len(e.payload) > 10**6 for e in self.hostile.heard)
        return any(s.event == "answered" and s.fields.get("node") == "board-1" for s in self.world.said)

    def offered_at(self) -> float:
        """When the honest board had trained."""
        return next((s.at_s for s in self.world.said if s.event == "trained"), float("nan"))


def task_of(hostile: Hostile) -> dict[str, Any]:
    """What the ground asked, as builtins."""
    return msgspec.structs.asdict(decode_task(hostile.asked)[0])
