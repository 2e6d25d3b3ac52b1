"""Whenever a node is killed, its checkpoint and its log give it the model that its neighbours count with."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from onboard.agents.gossip_memory import ExchangeLog, replay
from onboard.codec.sparse import BadExchange
from tests.onboard.learn.gossip.machine import SIZE, WEIGHTS, GossipRing, made, random

MEMORY = Path("/dev/shm")


class KilledHere(GossipRing):
    """Nodes that train, exchange, checkpoint and are killed; what is on the way arrives in any order, or is
    lost with its sender, who offers it again."""

    @initialize()
    def begin(self) -> None:
        super().begin()
        self.folder = Path(mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.logs = [ExchangeLog(self.folder / str(n)) for n in range(4)]
        self.saved = [(random(n), dict.fromkeys(WEIGHTS[n], 0)) for n in range(4)]
        self.unsaved = [np.zeros(SIZE) for _ in range(4)]  # steps since the checkpoint
        self.took: set[tuple[int, int, bytes]] = set()  # as the spools remember it

    def send(self, n: int, peer: int, message: bytes) -> None:
        self.logs[n].keep(peer, self.gossips[n].numbers[peer], "sent", message)
        super().send(n, peer, message)

    def take(self, a: int, b: int, message: bytes) -> None:
        if (a, b, message) not in self.took:
            number = self.gossips[b].take(a, message)
            self.logs[b].keep(a, number, "taken", message)
            self.took.add((a, b, message))

    @rule(n=st.integers(0, 3), seed=st.integers(0, 9))
    def learns(self, n: int, seed: int) -> None:
        before = self.vectors[n].astype(np.float64)
        self.vectors[n] += random(seed) / 8  # less than what is clipped: repeated, it adds up
        self.unsaved[n] += self.vectors[n] - before

    @rule(n=st.integers(0, 3))
    def saves(self, n: int) -> None:
        numbers = self.gossips[n].numbers
        self.saved[n] = self.vectors[n].copy(), numbers
        self.logs[n].checkpointed(numbers)
        self.total += self.unsaved[n]
        self.unsaved[n][:] = 0

    @rule(n=st.integers(0, 3))
    def is_killed(self, n: int) -> None:
        self.air = [each for each in self.air if each[0] != n]
        self.news = [each for each in self.news if n not in each[:2]]
        vector, numbers = self.saved[n]
        self.vectors[n], self.unsaved[n] = vector.copy(), np.zeros(SIZE)
        self.gossips[n], self.logs[n] = made(n, numbers), ExchangeLog(self.folder / str(n))
        for peer in WEIGHTS[n]:
            replay(self.logs[n], self.gossips[n], peer, self.vectors[n])
            if self.gossips[n].message(peer):
                super().send(n, peer, self.gossips[n].message(peer))

    @precondition(lambda self: hasattr(self, "gossips"))
    @rule()
    def all_comes_to_an_end(self) -> None:
        """What is open is answered, and offered again to those that were killed; then the sum is that of the
        first models and of the steps that count."""
        for _ in range(8):
            for n in range(4):
                asked = self.gossips[n].asked
                for peer, message in self.gossips[n].open(self.vectors[n], asked).items():
                    self.send(n, peer, message)
            for n, gossip in enumerate(self.gossips):
                self.air += [(n, peer, bytes(gossip.message(peer))) for peer in gossip.waits_for]
            self.settle()
        assert not any(gossip.waits_for for gossip in self.gossips)
        after = np.sum(self.vectors, axis=0, dtype=np.float64)
        np.testing.assert_allclose(after, self.total + sum(self.unsaved), atol=4e-5)

    def teardown(self) -> None:
        if hasattr(self, "gossips"):
            self.all_comes_to_an_end()
            shutil.rmtree(self.folder)


KilledHere.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestKilled = KilledHere.TestCase


def test_what_is_logged_is_read_in_order_and_a_checkpoint_leaves_the_last_exchange(tmp_path: Path) -> None:
    log, one = ExchangeLog(tmp_path / "log"), made(0)
    for number in range(12):
        one = made(0, {1: number, 3: 0})
        log.keep(1, number, "sent", one.open(random(number))[1])
    log.keep(3, 0, "sent", one.message(3))
    (tmp_path / "log" / "1-12.sent.new").write_bytes(b"cut by a kill")
    log = ExchangeLog(tmp_path / "log")
    assert [number for number, _, _ in log.of(1)] == list(range(12))
    assert all(sent and not taken for _, sent, taken in log.of(1))
    assert log.new_bytes == sum(path.stat().st_size for path in (tmp_path / "log").iterdir())
    log.checkpointed({1: 11, 3: 0})
    assert [number for number, _, _ in log.of(1)] == [10, 11]
    assert [number for number, _, _ in log.of(3)] == [0]
    assert log.new_bytes == 0
    log.forget(1, 11)
    assert [number for number, _, _ in log.of(1)] == [10]


def test_the_log_of_another_gossip_is_told(tmp_path: Path) -> None:
    log = ExchangeLog(tmp_path / "log")
    log.keep(1, 0, "sent", made(0, seed=2).open(random(0))[1])
    vector = random(1)
    with pytest.raises(BadExchange, match="another mask"):
        replay(log, made(0), 1, vector)
    np.testing.assert_array_equal(vector, random(1))
