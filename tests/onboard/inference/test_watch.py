"""`[infer] watch`: each new image is answered once by the deployed model, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import onboard.cli
from onboard.agents.federated_state import FederatedState
from onboard.board.budget import CpuShare, Pace
from onboard.config import NodeConfig, load_node
from onboard.console.toml import ConfigError
from onboard.data import loading
from onboard.data.images import save
from onboard.inference.population import LEAST, Population, reference_of, stability
from onboard.inference.ring import NEWER, OLDER, TO_LABEL, AnswerRecord, AnswerRing
from onboard.inference.watch import LINGER_S, ImageWatch
from onboard.storage.journal import Journal
from onboard.storage.keys import new_key, save_key
from tests.models_made import deploy

Image = pytest.importorskip("PIL.Image")
NODE = """\
[node]
id = 1
name = "pi"
board = "raspberry-pi-4"
[link]
port = "udp://127.0.0.1:9"
profile = "bench-udp"
[infer]
watch = "camera"
confidence = 0.97
"""


class Watched:
    """A board's folder, the watch over its camera, and a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.camera, self.now = folder, folder / "camera", 0.0
        self.camera.mkdir(exist_ok=True)
        if not (folder / "node.key").exists():
            save_key(folder / "node.key", new_key())
        (folder / "node.toml").write_text(NODE)
        images = loading.load("digits", part="train").take(np.arange(200))
        save(folder / "data.npz", images)
        self.config: NodeConfig = load_node(folder / "node.toml")
        self.spent_s = 0.0
        self.begin()

    def begin(self) -> None:
        assert self.config.infer is not None
        self.watch = ImageWatch(
            self.config, self.config.infer, self.deployed, CpuShare(Pace(0.5)), self.spend, lambda: 1e9
        )

    def deployed(self) -> bytes:
        known = Journal(self.config.state, FederatedState).load()
        return b"" if known is None else known.deployed

    def spend(self, cpu_s: float) -> None:
        self.spent_s += cpu_s

    def shoot(self, *names: str, seed: int = 0) -> None:
        drawn = np.random.default_rng(seed)
        for name in names:
            pixels = drawn.integers(0, 256, (20, 30), np.uint8)
            Image.fromarray(pixels).save(self.camera / name)

    def run(self, over: Callable[[], bool], within: int = 400) -> None:
        """Turns until `over`; time passes where nothing else is to be waited for."""
        for _ in range(within):
            self.watch.turn(self.now, lambda: self.now)
            if over():
                return
            wakes = self.watch.wakeup()
            if self.watch.fds and self.watch.status()["waiting"] and wakes > self.now:
                select.select(self.watch.fds, [], [], 5.0)
            self.now = max(self.now + 0.01, min(wakes, self.now + 1.0))
        raise AssertionError("it does not come to that")

    def names(self) -> list[str]:
        return [record.image for record in self.watch.ring.records()]


@pytest.fixture
def board(tmp_path: Path) -> Watched:
    deploy(tmp_path / "state", 4)
    return Watched(tmp_path)


def test_new_images_are_answered_once_and_the_child_ends(board: Watched) -> None:
    board.shoot("a.png", "b.png")
    (board.camera / "broken.png").write_bytes(b"\x89PNG")
    (board.camera / "growing.jpg").write_bytes(b"")
    board.run(lambda: len(board.names()) == 3)
    assert sorted(board.names()) == ["a.png", "b.png", "broken.png"]
    said = {record.image: record for record in board.watch.ring.records()}
    told = CliRunner().invoke(
        onboard.cli.main,
        ["infer", "--node", str(board.folder / "node.toml"), "--json", str(board.camera / "a.png")],
    )
    (same,) = map(json.loads, told.stdout.splitlines())
    assert said["a.png"].label == same["classes"][0]["label"]
    assert said["a.png"].confidence == pytest.approx(same["confidence"], abs=1e-6)
    assert "not a readable image" in said["broken.png"].why
    health = board.watch.health()
    assert health is not None
    assert (health.images, health.drift) == (2, None)  # of two images nothing can be told
    assert board.spent_s > 0
    board.run(lambda: not board.watch.fds)
    assert board.now >= LINGER_S
    board.shoot("b.png", seed=3)  # another image of the same name
    board.run(lambda: len(board.names()) == 4)
    assert board.names()[-1] == "b.png"
    board.watch.stop()


def test_names_that_are_no_text_and_links_are_no_trouble(board: Watched) -> None:
    odd = os.fsencode(str(board.camera)) + b"/\xff line\n.png"
    board.shoot("a.png")
    os.link(board.camera / "a.png", odd)
    (board.camera / "loop").symlink_to(board.camera)
    (board.camera / "gone.png").symlink_to(board.camera / "nowhere")
    os.mkfifo(board.camera / "pipe.png")
    board.run(lambda: len(board.names()) == 2)
    board.watch.stop()
    assert sorted(board.names()) == ["\\udcff line\n.png", "a.png"]
    told = CliRunner().invoke(
        onboard.cli.main, ["infer", "--node", str(board.folder / "node.toml"), "--json", str(board.camera)]
    )
    assert len(told.stdout.splitlines()) == 2
    assert told.exit_code == 1  # of the link that leads nowhere; a pipe is never waited for


def test_nothing_is_answered_twice_after_a_restart(board: Watched) -> None:
    board.shoot(*(f"{at}.png" for at in range(6)))
    board.run(lambda: len(board.names()) == 3)
    board.watch.stop()
    with (board.config.state / "answers" / NEWER).open("ab") as cut:
        cut.write(b'{"check":"00')  # the line that was being written
    board.begin()
    board.run(lambda: len(board.names()) == 6)
    board.run(lambda: not board.watch.fds)
    assert sorted(board.names()) == [f"{at}.png" for at in range(6)]
    assert [record.n for record in board.watch.ring.records()] == [1, 2, 3, 4, 5, 6]
    assert board.watch.ring.damaged == 0


def test_a_child_that_dies_costs_nothing(board: Watched) -> None:
    board.shoot("a.png", "b.png", "c.png")
    board.run(lambda: len(board.names()) == 1)
    assert board.watch.pid is not None
    os.kill(board.watch.pid, signal.SIGKILL)
    board.run(lambda: len(board.names()) == 3)
    assert [record.why for record in board.watch.ring.records()] == ["", "", ""]
    board.watch.stop()


def test_drift_and_doubt_are_told(board: Watched) -> None:
    images = loading.load("digits", part="test")
    for at in range(LEAST):
        Image.fromarray(images.x[at, 0]).save(board.camera / f"{at}.png")
    board.run(lambda: len(board.names()) == LEAST, within=2000)
    like = board.watch.health()
    for at in range(LEAST):  # a camera with its cap on
        Image.new("L", (28, 28)).save(board.camera / f"dark-{at}.png")
    board.run(lambda: len(board.names()) == 2 * LEAST, within=2000)
    unlike = board.watch.health()
    board.watch.stop()
    assert like is not None
    assert unlike is not None
    assert like.drift is not None
    assert unlike.drift is not None
    assert like.drift < 0.25 < unlike.drift
    doubtful = [record.image for record in board.watch.ring.records() if record.doubtful]
    assert unlike.doubtful == len(doubtful) > 0
    assert (board.config.state / "answers" / TO_LABEL).read_text().split() == doubtful


def test_the_ring_is_bounded_and_forgets_no_image_that_is_still_there(tmp_path: Path) -> None:
    ring, limit = AnswerRing(tmp_path, 4000), 4000

    def record(n: int) -> AnswerRecord:
        return AnswerRecord(
            n=n, image=f"{n}.png", key=f"{n:016x}", at=1.0, model="m", score=0.5, doubtful=n % 2 > 0
        )

    present = [f"{n:016x}" for n in range(1, 20)]
    for _ in range(100):
        ring.append(record(ring.next_n), present)
    size = sum((tmp_path / name).stat().st_size for name in (NEWER, OLDER))
    assert size < limit + 1500  # a line more in each file, and the keys of 19 images
    again = AnswerRing(tmp_path, limit)
    for each in (ring, again):
        assert all(each.has(key) for key in present)
        assert each.next_n == 101
        assert [found.n for found in each.records()][-1] == 100
    kept = [found.image for found in ring.records() if found.doubtful]
    assert (tmp_path / TO_LABEL).read_text().split() == kept


DYING = """
import os, runpy, signal, sys
point, newer, older = sys.argv.pop(1), *sys.argv[-2:]
del sys.argv[-2:]
write, fsync, replace = os.write, os.fsync, os.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def of_ring(handle):
    return os.readlink(f"/proc/self/fd/{handle}") == newer

def dying_write(handle, line):
    if point == "half a line" and of_ring(handle):
        write(handle, line[: len(line) // 2])
        die()
    return write(handle, line)

def dying_fsync(handle):
    if point == "before it is durable" and of_ring(handle):
        die()
    fsync(handle)

def dying_replace(source, target):
    replace(source, target)
    if point == "between two names" and str(target) == older:
        die()

os.write, os.fsync, os.replace = dying_write, dying_fsync, dying_replace
runpy.run_module("onboard", run_name="__main__", alter_sys=True)
"""
"""Runs the agent, which ends by SIGKILL at the first such point of its ring."""


def test_an_agent_that_is_killed_over_its_ring_answers_each_image_once(board: Watched) -> None:
    """The real program; a kill comes at each point where the ring on the disk is not as it will be."""
    told = NODE.replace("0.97", "1.0") + "every_s = 0.1\nkeep_mb = 1\n"
    (board.folder / "node.toml").write_text(told)
    board.shoot(*(f"{at}.png" for at in range(4)))
    ring, camera = board.config.state / "answers", {f"{at}.png" for at in range(4)}
    newer = ring / NEWER

    def live(point: str) -> subprocess.Popen[bytes]:
        words = [point, "run", str(board.folder / "node.toml"), str(newer), str(ring / OLDER)]
        return subprocess.Popen([sys.executable, "-c", DYING, *words], stdout=subprocess.DEVNULL)

    def whole() -> bytes:
        return b"".join(path.read_bytes() for path in (ring / OLDER, newer) if path.exists())

    for point in ("half a line", "before it is durable"):
        assert live(point).wait(30) == -signal.SIGKILL
        assert newer.read_bytes().endswith(b"\n") == (point != "half a line")
    (first,) = (record.image for record in AnswerRing(ring, 1 << 20).records())
    earlier = AnswerRing(ring, 1 << 20)  # fills both of its files, and the first answer is about to go
    while not (ring / OLDER).exists() or newer.stat().st_size < 1 << 19:
        n, name = earlier.next_n, "x" * 20_000
        earlier.append(AnswerRecord(n=n, image=name, key=f"{n:016x}", at=1.0, model="m"), ())
    assert live("between two names").wait(30) == -signal.SIGKILL
    assert (newer.exists(), (ring / OLDER).exists()) == (False, True)
    agent = live("nowhere")
    try:
        deadline = time.monotonic() + 30
        while not all(f'"image":"{name}"'.encode() in whole() for name in camera - {first}):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        agent.terminate()
    assert agent.wait(30) == 0
    after = AnswerRing(ring, 1 << 20)
    records = list(after.records())
    assert [record.n for record in records] == list(range(records[0].n, after.next_n))
    assert sorted(camera - {first}) == sorted(record.image for record in records if len(record.image) < 9)
    assert after.damaged == 0
    listed = (ring / TO_LABEL).read_text().split()
    assert sorted(listed) == sorted(record.image for record in records if record.doubtful)


@pytest.mark.parametrize("between", ["new", "older"])
def test_a_rotation_that_is_cut_loses_nothing(between: str, tmp_path: Path) -> None:
    ring = AnswerRing(tmp_path, 1 << 20)
    for n in range(1, 4):
        ring.append(AnswerRecord(n=n, image="a", key=f"{n:016x}", at=1.0, model="m"), ())
    new = tmp_path / "answers.new"
    new.write_bytes((tmp_path / NEWER).read_bytes()[:0])
    if between == "older":  # the first of the two names was given
        (tmp_path / NEWER).replace(tmp_path / OLDER)
    again = AnswerRing(tmp_path, 1 << 20)
    assert [record.n for record in again.records()] == [1, 2, 3]
    assert again.next_n == 4


def test_a_flipped_bit_costs_its_line(tmp_path: Path) -> None:
    ring = AnswerRing(tmp_path, 1 << 20)
    for n in range(1, 4):
        ring.append(AnswerRecord(n=n, image="a", key=f"{n:016x}", at=1.0, model="m"), ())
    raw = bytearray((tmp_path / NEWER).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / NEWER).write_bytes(raw)
    again = AnswerRing(tmp_path, 1 << 20)
    assert ([record.n for record in again.records()], again.damaged) == ([1, 3], 1)


def test_an_answer_whose_list_cannot_be_written_is_stored_once(tmp_path: Path) -> None:
    ring = AnswerRing(tmp_path, 1 << 20)
    (tmp_path / TO_LABEL).mkdir()
    for n in (1, 2):
        record = AnswerRecord(n=n, image=f"{n}.png", key=f"{n:016x}", at=1.0, model="m", doubtful=True)
        ring.append(record, ())
    assert [record.n for record in ring.records()] == [1, 2]
    assert (tmp_path / TO_LABEL).read_text() == "1.png\n2.png\n"


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_at_any_byte_leaves_whole_lines(seed: int, tmp_path: Path) -> None:
    ring = AnswerRing(tmp_path, 2000)
    for n in range(1, 30):
        ring.append(AnswerRecord(n=n, image="a", key=f"{n:016x}", at=1.0, model="m"), [f"{1:016x}"])
    numbers = [record.n for record in ring.records()]
    raw = (tmp_path / NEWER).read_bytes()
    for cut in np.random.default_rng(seed).integers(0, len(raw), 20):
        (tmp_path / NEWER).write_bytes(raw[:cut])
        again = AnswerRing(tmp_path, 2000)
        assert again.damaged == 0
        assert [record.n for record in again.records()] == numbers[: again.next_n - numbers[0]]


def test_the_index_is_the_one_of_the_formula() -> None:
    reference = reference_of("m", [at / 1000 for at in range(1000)])
    assert reference.shares == pytest.approx([0.1] * 10, abs=0.002)
    same = stability(reference.edges, reference.shares, [at / 500 for at in range(500)])
    assert same < 0.001
    low = stability([0.5], [0.5, 0.5], [0.1] * 9 + [0.9])  # 0.4 ln(0.9 / 0.5) - 0.4 ln(0.1 / 0.5)
    assert low == pytest.approx(0.4 * np.log(1.8) - 0.4 * np.log(0.2))
    assert reference_of("m", [1.0] * 50).shares[0] == 1.0  # all alike: one bin holds them
    assert Population("m", ()).health(reference) is None


def test_what_cannot_be_meant_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    for text, says in {
        NODE + "memory_mb = 4096\n": "infer.memory_mb = 4096: leaves nothing of the budget of 256 MB",
        NODE.partition("[infer]")[0] + "[downlink]\nbytes_per_day = 9999\n": "downlink: needs [infer]",
        NODE + "[downlink]\nbytes_per_day = 9999\nconfidence = [0.9, 0.1]\n": "must be [least, largest]",
        NODE + '[downlink]\nbytes_per_day = 9999\nclasses = ["b", "ship"]\n[data]\nclasses = ["a", "b"]\n': (
            "downlink.classes: 'ship' is none of data.classes"
        ),
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_node(path)
        assert says in str(error.value)
