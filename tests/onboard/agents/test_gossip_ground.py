"""Planes that gossip, and a ground station that trains nothing: it carries to each what others have learned,
nobody waits for it, and the mean of all models stays."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from firmware_sim.world.disk import scratch
from onboard.agents.gossip import GossipPhase
from onboard.agents.gossip_memory import MODEL
from tests.onboard.agents.gossip_net import STEP_S, GossipNet

PATIENCE_S = 3.0
MEAN = 1e-5
PLANES = [(1, 2), (3, 4), (0, 1), (0, 3)]
PASSES = {(0, 1): [(1.0, 2.0), (4.0, 5.0), (8.0, 60.0)], (0, 3): [(2.5, 3.5), (6.0, 7.0), (8.0, 60.0)]}
EPOCHS = 45  # nine seconds, and the last pass is open at their end


@pytest.fixture
def disk() -> Iterator[Path]:
    with scratch() as folder:
        yield folder


def hybrid(disk: Path, **changes: object) -> GossipNet:
    settings = {"epochs": EPOCHS, "patience_s": PATIENCE_S, "sparsity": 0.3, "every": 2} | changes
    return GossipNet(disk, edges=PLANES, contacts=PASSES, **settings)  # type: ignore[arg-type]


def apart(net: GossipNet) -> float:
    """How far the mean models of the two planes are from each other."""
    of = {number: node.vector.astype(np.float64) for number, node in net.nodes.items()}
    return float(np.linalg.norm(of[1] + of[2] - of[3] - of[4]) / 2)


def numbers(net: GossipNet, number: int) -> dict[int, int]:
    agent = net.nodes[number].agent
    assert agent is not None
    return agent.gossip.numbers


def test_planes_agree_by_way_of_the_ground_and_wait_for_it_never(disk: Path) -> None:
    net = hybrid(disk)
    first = apart(net)
    net.run(0.95)
    assert apart(net) == pytest.approx(first, rel=1e-5)  # nobody sees the ground yet
    assert numbers(net, 1)[0] == 0
    net.run(3.9)
    once = numbers(net, 1)[0]
    assert once > 1
    ended_s = net.run(600.0, net.over)
    assert net.over()
    assert ended_s < EPOCHS * 4 * (STEP_S + 0.01) + PATIENCE_S + 1
    assert numbers(net, 1)[0] == numbers(net, 0)[1] > once
    assert numbers(net, 3)[0] == numbers(net, 0)[3] > 1
    assert numbers(net, 1)[2] == EPOCHS * 2
    assert apart(net) < 0.5 * first
    assert net.drift() < MEAN
    ground = net.nodes[0].agent
    assert ground is not None
    assert (ground.phase, ground.descent.batches) == (GossipPhase.HOLDING, 0)


def test_between_passes_no_exchange_is_opened_with_the_ground(disk: Path) -> None:
    net = hybrid(disk)
    net.run(2.1)
    stands = numbers(net, 1)[0]
    said = net.nodes[1].links[0].session.snapshot(net.now).bytes_sent
    net.run(3.95)
    assert net.nodes[1].links[0].session.snapshot(net.now).bytes_sent == said
    assert numbers(net, 1)[0] - stands <= 1  # one that was complete is mixed
    assert numbers(net, 1)[2] > 30  # and training went on


def test_a_neighbour_out_of_contact_is_not_waited_for(disk: Path) -> None:
    """Nor one whose contact ends while an exchange with it is open."""
    contacts = {(1, 2): [(0.0, 0.52), (2.0, 60.0)]}
    net = GossipNet(disk, nodes=2, edges=[(1, 2)], contacts=contacts, patience_s=PATIENCE_S, epochs=20)
    net.nodes[2].step_s = 0.3  # node 1 waits for it when the contact ends
    net.run(1.9)
    agent = net.nodes[1].agent
    assert agent is not None
    assert agent.descent.batches > 1.2 / STEP_S
    net.run(600.0, net.over)
    assert numbers(net, 1) == {2: numbers(net, 2)[1]}
    assert net.drift() < MEAN


@pytest.mark.parametrize("set_s", [1.9, 1.93, 1.96, 1.99])
def test_a_node_that_is_done_meets_again_whom_a_pass_s_end_has_cut_off(disk: Path, set_s: float) -> None:
    """One end may have mixed what the other has not: it must not end before the next pass."""
    contacts = {(0, 1): [(0.0, set_s), (9.0, 30.0)]}
    net = GossipNet(disk, edges=[(0, 1), (1, 2)], contacts=contacts, epochs=10, patience_s=1.0, sparsity=0.3)
    assert 10.0 < net.run(60.0, net.over) < 12.0
    assert net.drift() < MEAN


def test_a_contact_plan_that_is_over_keeps_no_node(disk: Path) -> None:
    net = GossipNet(disk, edges=[(0, 1)], contacts={(0, 1): [(0.0, 0.5)]}, epochs=10, patience_s=1.0)
    assert net.run(60.0, net.over) < 2.0 + 1.0 + 0.1


@pytest.mark.parametrize("seed", range(2))
def test_a_ground_that_is_killed_comes_back_with_the_mean(disk: Path, seed: int) -> None:
    net = hybrid(disk, seed=seed, frame_loss=0.1, sparsity=0.02)
    draw = random.Random(seed)
    for _ in range(4):
        net.run(net.now + draw.uniform(0.5, 2.0))
        net.nodes[0].kill()
        net.run(net.now + draw.choice([0.0, 0.5]))
        net.boot(0)
    net.run(600.0, net.over)
    assert net.over()
    assert net.drift() < MEAN
    assert numbers(net, 0) == {1: numbers(net, 1)[0], 3: numbers(net, 3)[0]}
    net.run(net.now + 1.0)  # longer than checkpoint_s
    with np.load(disk / "0" / "state" / MODEL) as model:
        np.testing.assert_array_equal(model["b"], net.nodes[0].vector[7840:])
