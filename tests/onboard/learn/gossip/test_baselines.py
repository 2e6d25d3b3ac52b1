"""Top-K and CHOCO-SGD do what their papers say, written here as whole matrices; a restart changes nothing."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest

from onboard.codec.mask import share_of
from onboard.codec.sparse import BadExchange
from onboard.learn.gossip import topology
from onboard.learn.gossip.algorithms import ALGORITHMS, GossipAlgorithm
from onboard.learn.gossip.exchange import GossipSetup, ImplausibleExchange, Over
from tests.onboard.learn.gossip.machine import matrix
from tests.onboard.learn.gossip.test_exchange import made

NODES = range(1, 7)
WEIGHTS = topology.metropolis(topology.ring(NODES))
W = matrix(WEIGHTS)
SIZE, SHARE, RATE = 400, 0.1, 0.3
KINDS = ("topk", "choco")
Matrix = npt.NDArray[np.float64]  # (nodes, coordinates)


def setup(n: int) -> GossipSetup:
    return made(n, dict(WEIGHTS[n]), SIZE, share=share_of(SHARE), rate=RATE)


def nodes(kind: str) -> dict[int, GossipAlgorithm]:
    return {n: ALGORITHMS[kind].make(setup(n), {}, {}) for n in NODES}


def largest(rows: Matrix) -> Matrix:
    """Every row with its tenth of largest magnitude, and zeros."""
    cut = np.sort(np.abs(rows), axis=1)[:, -round(SHARE * SIZE)][:, None]
    return np.where(np.abs(rows) >= cut, rows, 0)


def as_published(kind: str, x: Matrix, memory: Matrix) -> tuple[Matrix, Matrix]:
    """One exchange of all nodes: DeepSqueeze's Algorithm 1 and CHOCO-SGD's Algorithm 2, less gradients."""
    if kind == "topk":
        sent = largest(x + memory)
        return x + RATE * (W @ sent - sent), x + memory - sent
    copies = memory + largest(x - memory)
    return x + RATE * (W @ copies - copies), copies


def cross(ends: dict[int, GossipAlgorithm], x: npt.NDArray[np.float32]) -> None:
    """Opens an exchange everywhere, has every message taken and acknowledged, and mixes."""
    for n, end in ends.items():
        for peer, message in end.open(x[n - 1]).items():
            ends[peer].take(n, message)
            end.delivered(peer)
    for n, end in ends.items():
        assert end.waits_for == frozenset()
        assert sorted(end.mix(x[n - 1])) == sorted(WEIGHTS[n])


@pytest.mark.parametrize("kind", KINDS)
def test_exchanges_are_the_papers_and_keep_the_mean(kind: str) -> None:
    x = np.random.default_rng(3).standard_normal((len(NODES), SIZE)).astype(np.float32)
    whole, memory, mean = x.astype(np.float64), np.zeros((len(NODES), SIZE)), x.mean(axis=0)
    ends = nodes(kind)
    for number in range(25):
        assert {each for end in ends.values() for each in end.numbers.values()} == {number}
        cross(ends, x)
        whole, memory = as_published(kind, whole, memory)
        x += np.float32(0.01)  # a step of training between two exchanges
        whole += 0.01
        np.testing.assert_allclose(x, whole, atol=2e-5)
    np.testing.assert_allclose(x.mean(axis=0), mean + 0.25, atol=1e-5)
    assert [end.exchanges for end in ends.values()] == [50] * len(NODES)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_stays_away_stops_it_and_no_other_exchange_opens(kind: str) -> None:
    ends, x = nodes(kind), np.ones((len(NODES), SIZE), np.float32)
    sent = ends[1].open(x[0])
    assert (ends[1].open(x[0]), ends[1].waits_for, ends[1].message(2)) == ({}, {2, 6}, sent[2])
    for peer in (2, 6):
        ends[1].delivered(peer)
    ends[1].take(2, ends[2].open(x[1])[1])
    assert (ends[1].waits_for, ends[1].complete, ends[1].mix(x[0])) == ({6}, (), ())
    ends[1].refused(6)
    ends[1].try_again(6)
    assert (ends[1].waits_for, ends[1].asked, ends[1].suspects) == ({6}, frozenset(), [])
    ends[1].take(6, ends[6].open(x[5])[1])
    assert ends[1].complete == (2, 6)
    ends[1].leave(6)
    assert ends[1].complete == ()


@pytest.mark.parametrize("kind", KINDS)
def test_messages_that_cannot_be_used_change_nothing(kind: str) -> None:
    ends, x = nodes(kind), np.ones((len(NODES), SIZE), np.float32)
    cross(ends, x)
    good = bytes(ends[2].open(x[1])[1])
    for message, error in [
        (b"\1\0", BadExchange),
        (struct.pack("<I", 0) + good[4:], Over),
        (struct.pack("<I", 3) + good[4:], ImplausibleExchange),
        (good[:-1], BadExchange),
    ]:
        with pytest.raises(error):
            ends[1].take(2, message)
    with pytest.raises(KeyError):
        ends[1].take(4, good)
    assert (ends[1].waits_for, ends[1].complete, ends[1].take(2, good)) == (frozenset(), (), 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_restart_goes_on_as_if_nothing_had_happened(kind: str, mixed: bool) -> None:
    """From a checkpoint and the log of what was sent, taken and acknowledged since."""
    x = np.random.default_rng(4).standard_normal((len(NODES), SIZE)).astype(np.float32)
    ends = nodes(kind)
    cross(ends, x)
    ends[1].checkpointed()
    saved, numbers = x[0].copy(), ends[1].numbers
    memory = {name: values.copy() for name, values in ends[1].memory.items()}
    log = []
    for n in (2, 6):
        log.append((n, bytes(ends[n].open(x[n - 1])[1])))
        ends[1].take(*log[-1])
    sent = {peer: bytes(message) for peer, message in ends[1].open(x[0]).items()}
    if mixed:
        for peer in sent:
            ends[1].delivered(peer)
        assert ends[1].mix(x[0]) == (2, 6)

    again = ALGORITHMS[kind].make(setup(1), numbers, memory)
    for peer, message in sent.items():
        again.stand_at(peer, 1)
        again.reopen(peer, message, saved)
    for n, message in log:
        again.take(n, message)
    again.start(saved)
    assert bytes(again.message(2)) == sent[2]
    for peer in sent:
        again.delivered(peer)
    assert again.mix(saved) == (2, 6)
    if not mixed:
        for peer in sent:
            ends[1].delivered(peer)
        ends[1].mix(x[0])
    np.testing.assert_array_equal(saved, x[0])
    assert again.numbers == ends[1].numbers == {2: 2, 6: 2}
    for name, values in again.memory.items():
        np.testing.assert_array_equal(values, ends[1].memory[name])
