"""Whatever becomes of a disk, no (epoch, seq) is used twice under one key and salt: no nonce comes twice."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firmware_sim.world.disk import scratch
from groundstation.store.store import Store
from onboard.agents.federated_state import KEPT, FederatedState
from onboard.storage.journal import Journal, count_start
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Message, Rekeyed
from onboard.wire.security.seal import NO_SALT
from onboard.wire.session import Session
from tests.missions.clockwork import Clockwork
from tests.numbers import Numbers, recorded, spoil
from tests.onboard.agents.gossip_net import GossipNet
from tests.onboard.wire.pair import FULL, KEY

Make = Callable[..., Clockwork]
STEP_S = 0.25
SET_ASIDE = shutil.ignore_patterns("*.bad*")  # a pipe cannot be copied


@pytest.fixture
def numbers() -> Iterator[Numbers]:
    with recorded() as watched:
        yield watched


@pytest.fixture
def disk() -> Iterator[Path]:
    """In memory: a thousand starts are as many barriers, and no power goes here."""
    with scratch() as folder:
        yield folder


class WatchedProgram:
    """A ground (node 0) with a database, or a board (node 7) with a journal, in a folder of its own."""

    def __init__(self, node: int, folder: Path, nonces: random.Random, *, encrypted: bool) -> None:
        self.node, self.folder, self.encrypted, self.nonces = node, folder, encrypted, nonces
        self.session: Session | None = None
        self.heard = 0

    def boot(self, now: float) -> None:
        """As `board_agent` and `Station` do."""
        self.folder.mkdir(exist_ok=True)
        if self.node:
            epoch = count_start(Journal(self.folder, FederatedState, KEPT), [0]).links[0].epoch
        else:
            store = Store(self.folder / "mission.sqlite")
            epoch = store.enter_node(7, "pi").epoch
            store.close()
        self.session = Session(
            Identity(self.node, 7 - self.node, primary=not self.node),
            Medium(FULL),
            Security(KEY, nonce=self.nonces.randbytes, encrypted=self.encrypted),
            SessionState(epoch=epoch),
            now=now,
        )

    def hear(self, raw: bytes, now: float) -> None:
        for event in self.session.receive(raw, now) if self.session else ():
            if isinstance(event, Rekeyed) and self.session:
                self.session.rekey(event.salt)
            self.heard += isinstance(event, Message)

    def say(self, now: float) -> list[bytes]:
        frames: list[bytes] = []
        if self.session is None:
            return frames
        self.session.tick(now)
        self.session.send_message(b"%.2f" % now, now)
        while (raw := self.session.transmit(now)) is not None:
            frames.append(raw)
        return frames


class WatchedWorld:
    """Both, on a link that loses frames; all that ever crossed it is recorded, and played in again."""

    def __init__(self, folder: Path, seed: int, *, encrypted: bool) -> None:
        self.drawn, self.folder, self.now = random.Random(seed), folder, 0.0
        nonces = random.Random(seed + 100)
        self.ends = {n: WatchedProgram(n, folder / f"end-{n}", nonces, encrypted=encrypted) for n in (0, 7)}
        self.crossed: dict[int, list[bytes]] = {0: [], 7: []}  # by who heard it
        for end in self.ends.values():
            end.boot(0.0)

    def run(self, seconds: float, loss: float = 0.1) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            for node, end in self.ends.items():
                hearer = self.ends[7 - node]
                for raw in end.say(self.now):
                    self.crossed[7 - node].append(raw)
                    if self.drawn.random() >= loss:
                        hearer.hear(raw, self.now)
                if self.crossed[node] and self.drawn.random() < 0.1:
                    end.hear(self.drawn.choice(self.crossed[node]), self.now)

    def befall(self, copies: dict[int, list[Path]]) -> None:
        """An end starts again, after whatever became of its disk, or a copy of it ran elsewhere."""
        node = self.drawn.choice((0, 7))
        end = self.ends[node]
        end.session = None
        what = self.drawn.choice(["restart", "copy", "restore", "lose", "laptop", "spoil", "spoil"])
        if what == "copy":
            copy = self.folder / f"copy-{node}-{len(copies[node])}"
            shutil.copytree(end.folder, copy, symlinks=True, ignore=SET_ASIDE)
            copies[node].append(copy)
        elif what == "restore" and copies[node]:
            shutil.rmtree(end.folder)
            shutil.copytree(self.drawn.choice(copies[node]), end.folder, symlinks=True)
        elif what == "lose":
            shutil.rmtree(end.folder)
        elif what == "laptop":
            self.laptop(end)
        elif what == "spoil" and node:
            spoil(end.folder, self.drawn)
        end.boot(self.now)

    def laptop(self, end: WatchedProgram) -> None:
        """The folder runs on another computer for some time, while this one is off."""
        copy = self.folder / "laptop"
        shutil.copytree(end.folder, copy, symlinks=True, ignore=SET_ASIDE)
        self.ends[end.node] = WatchedProgram(end.node, copy, end.nonces, encrypted=end.encrypted)
        self.ends[end.node].boot(self.now)
        self.run(self.drawn.uniform(0.5, 6.0))
        self.ends[end.node] = end
        shutil.rmtree(copy)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("seed", range(3))
def test_no_number_comes_twice_whatever_became_of_the_disks(
    seed: int, encrypted: bool, disk: Path, numbers: Numbers
) -> None:
    world = WatchedWorld(disk, seed, encrypted=encrypted)
    copies: dict[int, list[Path]] = {0: [], 7: []}
    for _ in range(25):
        world.run(world.drawn.choice((0.3, 1.0, 4.0)))
        world.befall(copies)
    heard = {node: end.heard for node, end in world.ends.items()}
    world.run(60.0, loss=0.0)
    for node, end in world.ends.items():
        assert end.heard > heard[node] + 20
    ground, board = (end.session for end in world.ends.values())
    assert ground is not None
    assert board is not None
    assert ground.salt == board.salt != NO_SALT
    assert len(numbers.used) > 300
    assert numbers.salts > 10


def test_a_reused_number_would_be_seen(disk: Path, numbers: Numbers) -> None:
    """What the salt is there for: without it a copy that is put back uses its numbers again."""
    world = WatchedWorld(disk, 9, encrypted=False)
    world.run(2.0, loss=0.0)
    board = world.ends[7].session
    assert board is not None
    again = Session(
        Identity(7, 0, primary=False),
        Medium(FULL),
        Security(KEY),
        SessionState(epoch=board.epoch, salt=board.salt),
        now=world.now,
    )
    again.send_message(b"again", world.now)
    with pytest.raises(AssertionError, match="was used twice"):
        again.transmit(world.now + 1.0)


def test_nodes_that_gossip_use_no_number_twice(disk: Path, numbers: Numbers) -> None:
    """Encrypted, with a journal that holds a tie to each neighbour, spoilt at every second kill."""
    drawn = random.Random(4)
    net = GossipNet(disk, nodes=3, neighbour={"encrypt": True}, epochs=50, sparsity=0.01)
    for _ in range(8):
        net.run(net.now + drawn.uniform(0.1, 0.6))
        node = net.nodes[drawn.choice((1, 2, 3))]
        node.kill()
        spoil(node.folder / "state", drawn)
        net.boot(node.number)
    before = {n: node.agent.gossip.exchanges for n, node in net.nodes.items() if node.agent}
    net.run(net.now + 2.0)
    for number, node in net.nodes.items():
        assert node.agent is not None
        assert node.agent.gossip.exchanges > before[number]
    assert len(numbers.used) > 100
    assert numbers.salts > 8


def test_a_mission_with_rotten_disks_uses_no_number_twice(
    clockwork: Make, disk: Path, numbers: Numbers
) -> None:
    """The real agent and the real ground, encrypted; the ground's database goes back, the board's journal
    rots, and the mission ends."""
    drawn = random.Random(5)
    on = clockwork(encrypt="true", rounds=3)
    for board in on.boards.values():
        text = board.toml.read_text()
        assert "\nencrypt = false" in text
        board.toml.write_text(text.replace("\nencrypt = false", "\nencrypt = true"))
    on.boot()
    board = on.boards[1]
    copy = disk / "older.sqlite"
    for nth in range(6):
        on.pass_time(drawn.uniform(0.3, 3.0))
        board.kill()
        spoil(board.state, drawn)
        if nth == 1:
            on.kill_ground()
            on.store.close()
            shutil.copy(on.folder / "mission.sqlite", copy)
            on.boot_ground()
        if nth == 4:
            on.kill_ground()
            on.store.close()
            for file in on.folder.glob("mission.sqlite*"):
                file.unlink()
            shutil.copy(copy, on.folder / "mission.sqlite")
            on.boot_ground()
        board.boot(on.now)
    on.run(lambda: on.over, 1200.0)
    assert numbers.salts >= 6
    for lie in ("wrong-key", "out-of-step", "link-failed"):
        assert not on.said(lie)
