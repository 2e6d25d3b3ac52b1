"""Whatever happens to a file of a node that gossips, it comes up, uses nothing that is damaged, says so once,
and ends its epochs with its neighbours."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from firmware_sim.world.disk import scratch
from onboard.agents.gossip_memory import BEFORE, CHECKPOINT
from tests.onboard.agents.gossip_net import GossipNet

MEAN = 1e-5
ONE_EXCHANGE = 0.05  # what one exchange that is lost moves the mean of three models by, at most
STATE = "state"


@pytest.fixture
def disk() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def zero(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    first = draw.randrange(len(content))
    content[first : first + 512] = bytes(len(content[first : first + 512]))
    path.write_bytes(content)


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def swap(path: Path, draw: random.Random) -> None:
    others = [p for p in sorted(path.parent.rglob("*")) if p.is_file() and p != path and p.name != "lock"]
    path.write_bytes(draw.choice(others).read_bytes())


def lengthen(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 99)))


DAMAGES: list[Callable[[Path, random.Random], None]] = [flip, cut, zero, remove, swap, lengthen]


def dropped(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Files that the log says were not used."""
    told = [r for r in caplog.records if r.getMessage() in ("exchange-dropped", "checkpoint-dropped")]
    return [Path(r.__dict__["fields"]["path"]).name for r in told]


def is_sound(net: GossipNet) -> bool:
    return all(
        np.isfinite(node.vector).all() and np.abs(node.vector).max() < 1 for node in net.nodes.values()
    )


@pytest.mark.parametrize("damage", DAMAGES, ids=[each.__name__ for each in DAMAGES])
def test_any_file_of_its_exchanges_and_checkpoints(
    disk: Path, damage: Callable[[Path, random.Random], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Each damage is to another life, stopped at any moment."""
    net = GossipNet(disk, nodes=3, epochs=12, sparsity=0.3)
    draw, state = random.Random(damage.__name__), disk / "1" / STATE
    net.run(0.9)
    damaged = set()
    for at in range(8):
        net.run(net.now + draw.uniform(0.05, 0.25))
        net.nodes[1].kill()
        files = [
            state / CHECKPOINT,
            *sorted((state / "exchanges").iterdir(), key=lambda p: p.stat().st_mtime),
        ]
        path = files[0 if at % 4 == 1 else -1 - at % 4]
        damage(path, draw)
        damaged.add(path.name)
        caplog.clear()
        net.boot(1)
        told = dropped(caplog)
        assert set(told) <= damaged
        assert told.count(path.name) == (1 if path.name == CHECKPOINT or damage is not remove else 0)
        assert is_sound(net)
    net.run(net.now + 600.0, net.over)
    assert net.over()
    assert is_sound(net)
    assert net.drift() < 8 * ONE_EXCHANGE
    assert net.spread() < 0.05


def test_a_damaged_checkpoint_costs_training_steps_and_no_exchange(disk: Path) -> None:
    """The one before it, and the log, give the sum that the neighbours count with."""
    net = GossipNet(disk, nodes=3, epochs=9)
    for name in (CHECKPOINT, BEFORE, CHECKPOINT):
        net.run(net.now + 0.9)
        net.nodes[1].kill()
        flip(disk / "1" / STATE / name, random.Random(0))
        net.boot(1)
    net.run(600.0, net.over)
    assert net.over()
    assert net.drift() < MEAN


def test_an_older_version_of_any_file(disk: Path) -> None:
    net = GossipNet(disk, nodes=3, epochs=10)
    net.run(1.0)
    state = disk / "1" / STATE
    net.nodes[1].kill()
    older = {path.relative_to(state): path.read_bytes() for path in state.rglob("*") if path.is_file()}
    net.boot(1)
    for name, content in older.items():
        net.run(net.now + 0.1)
        net.nodes[1].kill()
        (state / name).write_bytes(content)
        net.boot(1)
        assert is_sound(net)
    net.run(600.0, net.over)
    assert net.over()
    assert is_sound(net)
    assert net.nodes[1].agent is not None
    assert net.nodes[1].agent.gossip.numbers[2] > 20


def make_odd(folder: Path) -> None:
    """Things in the folder of the exchanges that no node put there."""
    names = [b"a.txt", b"3-x.sent", b"2-1", b"2.sent", b"02-1.sent", b"2--1.sent", b"2-1.sent.old", b".sent"]
    names += [b"x.new", b"2-99999999999999999999.taken", b"\xff\xfe-1.sent", "2-\u0663.sent".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"\xff odd")
    (folder / "2-7000.sent").mkdir()
    (folder / "folder.new").mkdir()
    (folder / "2-7001.taken").symlink_to("/dev/zero")
    os.mkfifo(folder / "2-7002.taken")
    os.mkfifo(folder / "2-7003.sent.new")
    (folder / "2-7004.sent.new").write_bytes(b"cut by a kill")


def test_odd_files_among_the_exchanges_are_named_once_and_change_nothing(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = GossipNet(disk, nodes=3)
    net.run(0.5)
    net.nodes[1].kill()
    make_odd(disk / "1" / STATE / "exchanges")
    net.boot(1)
    (told,) = [record for record in caplog.records if record.getMessage() == "exchanges-odd"]
    assert told.__dict__["fields"]["files"] == 14
    assert [record.getMessage() for record in caplog.records].count("put-aside") == 3  # have a message's name
    net.run(600.0, net.over)
    assert net.over()
    assert net.drift() < MEAN
    assert not (disk / "1" / STATE / "exchanges" / "2-7004.sent.new").exists()


def test_the_folder_of_the_exchanges_is_removed_under_the_node(disk: Path) -> None:
    net = GossipNet(disk, nodes=3)
    net.run(0.5)
    exchanges = disk / "1" / STATE / "exchanges"
    for path in exchanges.iterdir():
        path.unlink()
    exchanges.rmdir()
    net.run(600.0, net.over)
    assert net.over()
    assert net.drift() < MEAN


STRANGE: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=list(STRANGE))
def test_something_else_in_the_place_of_its_files(disk: Path, make: Callable[[Path], object]) -> None:
    net = GossipNet(disk, nodes=3, edges=[(1, 2)])
    net.run(0.5)
    net.nodes[1].kill()
    for name in (CHECKPOINT, BEFORE, "model.npz", "exchanges/2-12.sent", "exchanges/2-11.taken"):
        path = disk / "1" / STATE / name
        path.unlink(missing_ok=True)
        make(path)
    net.boot(1)
    net.run(600.0, net.over)
    assert net.over()
    assert is_sound(net)
    for name in (CHECKPOINT, "model.npz"):
        assert (disk / "1" / STATE / name).is_file()
        assert not (disk / "1" / STATE / name).is_symlink()


@pytest.mark.parametrize("way", ["sent", "taken"])
def test_one_half_of_an_open_exchange_is_damaged(
    disk: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed when it has sent and taken and not mixed: whichever half is gone, both ends go on, in step."""
    net = GossipNet(disk, nodes=3, epochs=10)
    net.run(1.0)
    agent = net.nodes[1].agent
    assert agent is not None
    number = agent.gossip.numbers[2]
    halves = [disk / "1" / STATE / "exchanges" / f"2-{number}.{half}" for half in ("sent", "taken")]
    net.run(2.0, lambda: all(half.exists() for half in halves))
    net.nodes[1].kill()
    path = halves[way == "taken"]
    flip(path, random.Random(1))
    net.boot(1)
    assert dropped(caplog) == [path.name]
    net.run(600.0, net.over)
    assert net.over()
    assert net.nodes[2].agent is not None
    assert net.nodes[1].agent is not None
    ends = net.nodes[1].agent.gossip.numbers[2], net.nodes[2].agent.gossip.numbers[1]
    assert min(ends) > number + 10
    assert abs(ends[0] - ends[1]) <= 1
    assert net.drift() < ONE_EXCHANGE
