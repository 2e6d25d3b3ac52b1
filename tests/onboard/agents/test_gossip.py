"""Nodes that gossip over links that lose, with neighbours that die, forget or are of another gossip: training
goes on, nothing waits for ever, and the mean of the models stays where the theory says so."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import onboard.wire.security.seal
from firmware_sim.world.disk import scratch
from onboard.agents.gossip import GossipPhase
from onboard.agents.gossip_memory import BEFORE, CHECKPOINT, GossipState
from onboard.storage.files import replace_durably
from onboard.storage.journal import Journal
from onboard.wire.security.seal import MAX_EPOCH
from tests.onboard.agents.gossip_net import GossipNet

EXCHANGES = 20  # of an edge: 5 epochs of 4 batches, each followed by one
PATIENCE_S = 10.0
MEAN = 1e-5


@pytest.fixture
def disk() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


def numbers(net: GossipNet) -> dict[int, dict[int, int]]:
    return {n: node.agent.gossip.numbers for n, node in net.nodes.items() if node.agent is not None}


def test_in_step_every_exchange_takes_place_and_all_nodes_end(disk: Path) -> None:
    net = GossipNet(disk)
    spread = net.spread()
    ended_s = net.run(600.0, net.over)
    assert net.over()
    assert ended_s < 20 * 0.2 + PATIENCE_S + 1
    assert all(set(of.values()) == {EXCHANGES} for of in numbers(net).values())
    assert net.drift() < MEAN
    assert net.spread() < 0.5 * spread
    with np.load(disk / "1" / "state" / "model.npz") as model:
        np.testing.assert_array_equal(model["w"].ravel(), net.nodes[1].vector[:7840])


def test_a_fifth_of_the_frames_lost_costs_time_alone(disk: Path) -> None:
    net = GossipNet(disk, frame_loss=0.2)
    net.run(600.0, net.over)
    assert net.over()
    assert all(set(of.values()) == {EXCHANGES} for of in numbers(net).values())
    assert net.drift() < MEAN


def test_an_edge_that_is_cut_for_a_minute_is_waited_for_once(disk: Path) -> None:
    net = GossipNet(disk, cut={(1, 2): (5.0, 65.0)}, epochs=60, step_s=1.0)
    net.run(64.0)
    ahead = numbers(net)[3][4] - numbers(net)[1][2]
    assert ahead > 0.8 * (60 - PATIENCE_S) / 1.0
    net.run(80.0)
    assert numbers(net)[3][4] - numbers(net)[1][2] < ahead + 10  # the edge is back
    settle(net)
    assert net.drift() < MEAN


def settle(net: GossipNet) -> None:
    """All nodes end their training, and then come to their end together."""
    for number, node in net.nodes.items():
        node.kill()
        node.write(net.toml(number, epochs=1))
        net.boot(number)
    net.run(net.now + 300.0, net.over)
    assert net.over()


def test_a_node_that_died_costs_its_edges_alone_and_comes_back_with_the_mean(disk: Path) -> None:
    net = GossipNet(disk, epochs=20)
    net.run(1.23)
    net.nodes[3].kill()
    ended_s = net.run(600.0, net.over)
    assert net.over()  # the others did not wait for it
    assert ended_s < 3 * PATIENCE_S + 20 * 4 * 0.1
    assert numbers(net)[1][2] == 20 * 4
    assert numbers(net)[2][3] < 30
    settle(net)
    assert net.drift() < MEAN


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_moment_and_started_again_the_mean_stays(disk: Path, seed: int) -> None:
    net = GossipNet(disk, seed=seed, frame_loss=0.1 * (seed % 2), epochs=8)
    draw = random.Random(seed)
    for _ in range(6):
        net.run(net.now + draw.uniform(0.05, 1.0))
        number = draw.randint(1, 4)
        net.nodes[number].kill()
        net.run(net.now + draw.choice([0.0, 0.5, 3.0]))
        net.boot(number)
    net.run(net.now + 600.0, net.over)
    assert net.over()
    assert sum(node.lives for node in net.nodes.values()) == 10
    assert min(min(of.values()) for of in numbers(net).values()) > 15
    assert net.drift() < MEAN


def test_a_node_of_another_seed_is_refused_named_and_left_out(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = GossipNet(disk)
    net.nodes[2].kill()
    net.nodes[2].write(net.toml(2, seed=7))
    net.boot(2)
    net.run(600.0, net.over)
    assert net.over()
    assert numbers(net)[2] == {1: 0, 3: 0}
    assert numbers(net)[4] == {1: EXCHANGES, 3: EXCHANGES}
    assert net.drift() < MEAN
    refused = [record for record in caplog.records if record.getMessage() == "exchange-refused"]
    assert {record.__dict__["fields"]["peer"] for record in refused} == {1, 2, 3}
    assert all("another mask" in record.__dict__["fields"]["why"] for record in refused)
    assert net.nodes[1].agent is not None
    assert net.nodes[1].agent.trust.refused >= 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("same", [True, False], ids=["same model", "another model"])
def test_a_node_that_lost_its_disk_takes_over_its_neighbours_numbers(
    disk: Path, seed: int, same: bool
) -> None:
    """Killed when it holds its neighbours' values and they do not have its own. With the same first model it
    says what they have taken before, to the bit."""
    net = GossipNet(disk, seed=seed, epochs=8, frame_loss=0.1 * seed)
    net.nodes[2].step_s = 0.5
    net.run(2.75)
    before = numbers(net)[2]
    assert min(before.values()) > 1
    net.nodes[2].kill()
    net.nodes[2].lose(None if same else np.zeros_like(net.nodes[2].start))
    net.run(3.0)
    net.boot(2)
    net.run(600.0, net.over)
    assert net.over()
    for peer in (1, 3):
        assert numbers(net)[2][peer] == numbers(net)[peer][2] > before[peer] + 20


def test_a_full_disk_stops_the_node_alone_and_nothing_is_lost(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        if path.is_relative_to(disk / "1"):
            raise OSError(28, "No space left on device")
        replace_durably(path, content)

    net = GossipNet(disk, epochs=30)
    net.run(0.5)
    with monkeypatch.context() as patch:
        patch.setattr("onboard.agents.gossip_memory.replace_durably", refuse)
        net.run(0.6)
        stopped = numbers(net)
        net.run(14.0)
        assert numbers(net)[1] == stopped[1]
        assert numbers(net)[2][3] > stopped[2][3] + 40
    net.run(600.0, net.over)
    assert net.over()
    assert numbers(net)[1][2] > stopped[1][2] + 20
    assert net.drift() < MEAN


def test_exchanges_can_be_encrypted(disk: Path) -> None:
    net = GossipNet(disk, neighbour={"encrypt": True})
    net.run(600.0, net.over)
    assert all(set(of.values()) == {EXCHANGES} for of in numbers(net).values())
    assert net.drift() < MEAN
    assert all(link.session.snapshot(net.now).encrypted for link in net.nodes[1].links.values())


def test_an_allowance_that_is_used_up_ends_exchanges_and_not_training(disk: Path) -> None:
    most_bytes = 64_000  # of exchanges of 3.2 kB
    net = GossipNet(disk, edges=[(1, 2)], neighbour={"bytes_per_day": most_bytes}, epochs=20)
    sent = 0
    for until_s in (0.6, 1.2):  # what was spent is known after a restart
        net.run(until_s)
        sent += net.nodes[1].links[2].session.snapshot(net.now).bytes_sent
        net.nodes[1].kill()
        net.boot(1)
    net.run(600.0, net.over)
    sent += net.nodes[1].links[2].session.snapshot(net.now).bytes_sent
    assert net.over()
    assert 0.7 * most_bytes < sent <= most_bytes
    assert 10 < numbers(net)[1][2] < most_bytes / 3_200
    assert all(node.agent is not None and node.agent.descent.epochs == 20 for node in net.nodes.values())


def test_neighbours_learn_together(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    net = GossipNet(disk, learning_rate=0.05, epochs=10)
    net.run(600.0, net.over)
    losses = [r.__dict__["fields"]["loss"] for r in caplog.records if r.getMessage() == "epoch"]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert all(node.agent is not None and node.agent.phase is GossipPhase.OVER for node in net.nodes.values())


def test_the_last_epoch_is_followed_by_the_first_under_another_salt(disk: Path) -> None:
    net = GossipNet(disk, nodes=3)
    net.run(1.0)
    net.nodes[1].kill()
    journal = Journal(disk / "1" / "state", GossipState)
    known = journal.load()
    assert known is not None
    for link in known.links.values():
        link.epoch = MAX_EPOCH
    journal.save(known)
    net.boot(1)
    net.run(600.0, net.over)
    assert net.over()
    assert net.drift() < MEAN
    after = journal.load()
    assert after is not None
    assert {link.epoch for link in after.links.values()} == {1}


def test_the_last_seq_is_followed_by_another_epoch(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onboard.wire.security.seal, "MAX_SEQ", 40)
    net = GossipNet(disk, nodes=3)
    net.run(600.0, net.over)
    assert net.over()
    assert all(set(of.values()) == {EXCHANGES} for of in numbers(net).values())
    assert net.drift() < MEAN
    assert all(link.session.epoch > 2 for node in net.nodes.values() for link in node.links.values())


def test_numbers_that_are_used_up_on_a_full_disk_are_tried_again_every_5_s(
    disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onboard.wire.security.seal, "MAX_SEQ", 40)
    net = GossipNet(disk, nodes=3)
    save, full = Journal.save, [True]

    def refuses(journal: Journal[GossipState], state: GossipState) -> None:
        if full[0]:
            raise OSError(28, "No space left on device")
        save(journal, state)

    monkeypatch.setattr(Journal, "save", refuses)

    def tries() -> int:
        return len([record for record in caplog.records if record.getMessage() == "disk-full"])

    net.run(600.0, tries)
    before, began = tries(), net.now
    net.run(began + 60.0)
    assert before <= tries() <= before + 3 * 2 * (60 / 5 + 1)
    full[0] = False
    net.run(600.0, net.over)
    assert net.over()
    assert net.drift() < MEAN


def test_what_was_taken_and_is_lost_with_its_checkpoint_is_taken_again(disk: Path) -> None:
    net = GossipNet(disk, nodes=3, epochs=9)
    net.run(1.6)  # after two checkpoints, before which the log has nothing
    node = net.nodes[1]
    node.kill()
    for name in (CHECKPOINT, BEFORE):
        (disk / "1" / "state" / name).write_bytes(b"cut")
    net.boot(1)
    assert not any(list(link.session.done) for link in node.links.values())
    net.run(600.0, net.over)
    assert net.over()
