"""An object that becomes whole and is withdrawn in one read of the port: the ground, a board and a gossiping
node are told both at once, act on the first when it is over, and go on."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from firmware_sim.runs.processes import ProcessGroup, free_ports
from hw_profiles import load_link
from onboard.data import loading
from onboard.data.images import save
from onboard.learn.graph import TrainGraph
from onboard.learn.training import BoardTraining
from onboard.mission.objects import GOSSIP, MODEL, UPDATE, Task, encode_object
from onboard.storage.keys import new_key, save_key
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Cancelled, Delivered, Event, Rekeyed
from onboard.wire.session import Session
from tests.missions.bench import JSON, run

KEY = new_key()
LINK = load_link("bench-udp")


class BurstNeighbour:
    """A session on a socket of the test's, at the other end of one program's link."""

    def __init__(self, node: int, peer: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.02)
        self.to = "127.0.0.1", *free_ports(1)
        self.session = Session(
            Identity(node, peer, primary=node < peer),
            Medium(LINK),
            Security(KEY, nonce=os.urandom),
            SessionState(epoch=1),
            now=time.monotonic(),
        )
        self.heard: list[Event] = []

    @property
    def url(self) -> str:
        """Of the program's port."""
        return f"udp://127.0.0.1:{self.socket.getsockname()[1]}?bind=127.0.0.1:{self.to[1]}"

    def talk(self, until: Callable[[], object], timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not until():
            now = time.monotonic()
            assert now < deadline_s, self.heard
            self.say(now)
            try:
                raw = self.socket.recv(2048)
            except OSError:
                continue
            for event in [*self.session.receive(raw, now), *self.session.tick(now)]:
                self.heard.append(event)
                if isinstance(event, Rekeyed):
                    self.session.rekey(event.salt)

    def say(self, now: float) -> None:
        while (frame := self.session.transmit(now)) is not None:
            self.socket.sendto(frame, self.to)

    def offer_and_withdraw(self, kind: int, payload: bytes) -> None:
        """As fast as the link carries it: the other program is not there to read meanwhile."""
        digest = self.session.offer(kind, payload, time.monotonic())
        until_s = time.monotonic() + 0.1
        while time.monotonic() < until_s:
            self.say(time.monotonic())
        self.session.cancel(digest, time.monotonic())
        self.say(time.monotonic() + 0.01)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[ProcessGroup]:
    made = ProcessGroup(tmp_path / "logs")
    yield made
    list(made.stop())


def ground(folder: Path, crew: ProcessGroup) -> tuple[BurstNeighbour, int, bytes, bytes]:
    there = BurstNeighbour(1, 0)
    run("groundstation", "init", str(folder / "mission"), "--node", f"pi,link=bench-udp,port={there.url}")
    (folder / "mission" / "keys" / "pi.key").unlink()
    save_key(folder / "mission" / "keys" / "pi.key", KEY)
    crew.start("program", "groundstation", "serve", str(folder / "mission"), *JSON)
    return there, UPDATE, b"no update at all", b"nor is this"


def start_node(folder: Path, crew: ProcessGroup, name: str, toml: str) -> None:
    """Starts `onboard run` with 20 images and these lines in its file."""
    save(folder / "data.npz", loading.load("digits", part="train").take(range(20)))
    node = f'[node]\nid = 1\nname = "{name}"\nboard = "raspberry-pi-4"\n[data]\nsource = "npz:data.npz"\n'
    (folder / "node.toml").write_text(node + toml)
    crew.start("program", "onboard", "run", str(folder / "node.toml"), *JSON)


def board(folder: Path, crew: ProcessGroup) -> tuple[BurstNeighbour, int, bytes, bytes]:
    there = BurstNeighbour(0, 1)
    save_key(folder / "node.key", KEY)
    start_node(folder, crew, "pi", f'[link]\nport = "{there.url}"\nprofile = "bench-udp"\n')
    task = Task(
        mission=b"missionA", round=1, model="lenet5", graph=TrainGraph.load("lenet5").digest, seed=1,
        weights="seed", training=BoardTraining(epochs=1, shift_pixels=0, distortion=0.0), deadline_s=60.0,
    )  # fmt: skip
    return there, MODEL, encode_object(task, b""), b"no task"


def gossip(folder: Path, crew: ProcessGroup) -> tuple[BurstNeighbour, int, bytes, bytes]:
    there = BurstNeighbour(2, 1)
    save_key(folder / "2.key", KEY)
    gossips = "[gossip]\nepochs = 1000\npatience_s = 1.0\n"
    neighbour = f'[[neighbour]]\nid = 2\nport = "{there.url}"\nprofile = "bench-udp"\nkey = "2.key"\n'
    start_node(folder, crew, "one", f"{gossips}{neighbour}weight = 0.3\n")
    return there, GOSSIP, b"no exchange at all", b"nor is this"


@pytest.mark.parametrize("program", [ground, board, gossip])
def test_an_object_that_is_whole_and_withdrawn_in_one_read_ends_no_program(
    program: Callable[[Path, ProcessGroup], tuple[BurstNeighbour, int, bytes, bytes]],
    tmp_path: Path,
    crew: ProcessGroup,
) -> None:
    there, kind, withdrawn, after = program(tmp_path, crew)
    process = crew.members["program"].process
    with closing(there.socket):
        there.talk(lambda: [event for event in there.heard if isinstance(event, Rekeyed)])
        before_s = time.monotonic()
        there.talk(lambda: time.monotonic() > before_s + 0.3)  # both are in touch
        process.send_signal(signal.SIGSTOP)
        there.offer_and_withdraw(kind, withdrawn)
        process.send_signal(signal.SIGCONT)
        digest = there.session.offer(kind, after, time.monotonic())

        def ended() -> list[Event]:
            assert process.poll() is None, crew.members["program"].last_words()
            ends = (event for event in there.heard if isinstance(event, Cancelled | Delivered))
            return [event for event in ends if event.digest == digest]

        there.talk(ended)
    said = {event["event"] for _, event in crew.listen(0.2)}
    assert said & {"update-refused", "refused", "heard", "exchange-refused"}
    assert "link-failed" not in said
