"""Whatever is late, lost, repeated or forgotten on the way, the models' mean stays, and no node waits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from onboard.codec.layout import Floats
from onboard.codec.mask import ALL, share_of
from onboard.codec.sparse import BadExchange
from onboard.codec.values import Form
from onboard.data.labels import digest
from onboard.learn.gossip import topology
from onboard.learn.gossip.exchange import Gossip, GossipSetup, Over
from tests.onboard.learn.gossip.machine import WEIGHTS, GossipRing, matrix, random

SIZE = 3000  # coordinates: a dozen runs of a mask, of which the last one is shorter
RING = topology.metropolis(topology.ring(range(1, 9)))


def made(number: int, weights: dict[int, float], size: int = SIZE, **other: object) -> GossipSetup:
    start = np.zeros(size, np.float32)
    options: dict[str, object] = {"seed": 5, "share": share_of(0.3)}
    return GossipSetup(node=number, weights=weights, start=start, **(options | other))  # type: ignore[arg-type]


def node(number: int, numbers: dict[int, int] | None = None, **other: object) -> Gossip:
    return Gossip(made(number, RING[number], **other), numbers or {})  # type: ignore[arg-type]


def models(count: int = 8, seed: int = 0) -> dict[int, Floats]:
    drawn = np.random.default_rng(seed).standard_normal((count, SIZE), np.float32)
    return dict(enumerate(drawn, start=1))


def cross(nodes: dict[int, Gossip], vectors: dict[int, Floats]) -> None:
    """One exchange over every edge, in step."""
    sent = [(a, b, data) for a, gossip in nodes.items() for b, data in gossip.open(vectors[a]).items()]
    for a, b, data in sent:
        nodes[b].take(a, data)
        nodes[a].delivered(b)
    for number, gossip in nodes.items():
        gossip.mix(vectors[number])


def test_in_step_and_whole_it_is_d_psgd() -> None:
    nodes, vectors = {n: node(n, share=ALL) for n in RING}, models()
    expected = matrix(RING) @ np.stack(list(vectors.values()))
    cross(nodes, vectors)
    np.testing.assert_allclose(np.stack(list(vectors.values())), expected, atol=1e-6)


@pytest.mark.parametrize("form", list(Form))
def test_in_step_the_mean_stays_and_models_agree(form: Form) -> None:
    nodes, vectors = {n: node(n, form=form) for n in RING}, models()
    before = np.stack(list(vectors.values())).astype(np.float64)
    for _ in range(60):
        cross(nodes, vectors)
    after = np.stack(list(vectors.values())).astype(np.float64)
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-5)
    assert after.std(axis=0).mean() < 0.2 * before.std(axis=0).mean()


def test_nothing_is_mixed_before_the_neighbour_has_ours() -> None:
    one, two, vectors = node(1), node(2), models()
    (theirs,) = (data for peer, data in two.open(vectors[2]).items() if peer == 1)
    one.open(vectors[1])
    one.take(2, theirs)
    assert one.mix(vectors[1]) == ()
    assert one.waits_for == {2, 8}
    one.delivered(2)
    assert one.mix(vectors[1]) == (2,)
    assert one.numbers == {2: 1, 8: 0}


def test_a_neighbour_that_is_ahead_proves_that_ours_arrived() -> None:
    """Its next values overtake the news that the last ones of ours are there."""
    one, two, vectors = node(1), node(2), models()
    total = vectors[1] + vectors[2]
    from_one, from_two = one.open(vectors[1])[2], two.open(vectors[2])[1]
    one.take(2, from_two)
    two.delivered(1)
    two.take(1, from_one)
    two.mix(vectors[2])
    total_after_next = two.open(vectors[2])[1]
    one.take(2, total_after_next)
    assert one.mix(vectors[1]) == (2,)
    np.testing.assert_allclose(vectors[1] + vectors[2], total, atol=1e-5)
    one.open(vectors[1])
    one.delivered(2)
    assert one.mix(vectors[1]) == (2,)  # the early values were not lost


def test_an_end_that_forgot_everything_takes_over_its_neighbour_s_number() -> None:
    nodes, vectors = {n: node(n) for n in RING}, models()
    for _ in range(5):
        cross(nodes, vectors)
    fresh = node(2)
    with pytest.raises(Over, match="exchange 0 with node 2 is over, at 5"):
        nodes[1].take(2, fresh.open(vectors[2])[1])
    fresh.take(1, nodes[1].open(vectors[1])[2])
    assert fresh.numbers[1] == 5
    again = fresh.open(vectors[2])
    assert 1 in again
    nodes[1].take(2, again[1])


@pytest.mark.parametrize("other", [{"seed": 6}, {"share": share_of(0.2)}, {"size": SIZE + 1}])
def test_values_of_another_gossip_are_refused_and_change_nothing(other: dict[str, int]) -> None:
    one, two, vectors = node(1), node(2, **other), models()
    data = two.open(np.zeros(other.get("size", SIZE), np.float32))[1]
    one.open(vectors[1])
    with pytest.raises(BadExchange, match="another mask"):
        one.take(2, data)
    two.refused(1)
    assert 1 not in two.open(np.zeros(other.get("size", SIZE), np.float32))  # until it hears something better
    assert one.waits_for == {2, 8}
    assert one.complete == ()


def test_an_edge_that_its_ends_weigh_differently_does_not_mix() -> None:
    one, two = node(1), Gossip(made(2, {1: 0.25, 3: 0.25}))
    with pytest.raises(BadExchange, match="another mask"):
        one.take(2, two.open(models()[2])[1])


def test_weights_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="weights of node 1"):
        Gossip(made(1, {2: 0.7, 3: 0.7}))


class Gossiping(GossipRing):
    """Models take steps meanwhile whose sum is kept beside them."""

    @rule(n=st.integers(0, 3), seed=st.integers(0, 9))
    def learns(self, n: int, seed: int) -> None:
        moved = random(seed) / 50  # however often, no model moves so far that what it sends is clipped
        self.total += (self.vectors[n] + moved).astype(np.float64) - self.vectors[n]
        self.vectors[n] += moved

    @invariant()
    def at_most_one_exchange_apart(self) -> None:
        for n, gossip in enumerate(getattr(self, "gossips", ())):
            for peer, number in gossip.numbers.items():
                assert abs(number - self.gossips[peer].numbers[n]) <= 1

    def teardown(self) -> None:
        """Once all have arrived and are known to have, the mean is what it was."""
        if not hasattr(self, "gossips"):
            return
        for _ in range(6):
            for n in range(4):
                if self.gossips[n].complete == ():
                    self.opens_missing(n)
            self.settle()
            if all(not gossip.waits_for for gossip in self.gossips):
                break
        assert all(not gossip.waits_for for gossip in self.gossips)
        after = np.sum(self.vectors, axis=0, dtype=np.float64)
        np.testing.assert_allclose(after / 4, self.total / 4, atol=1e-5)

    def opens_missing(self, n: int) -> None:
        """Only with those that opened one themselves: then nothing is left half done."""
        if any(n in self.gossips[peer].waits_for for peer in WEIGHTS[n]):
            self.opens(n)


Gossiping.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestGossiping = Gossiping.TestCase


def test_nodes_whose_labels_mean_different_things_refuse_each_other() -> None:
    """Folders of other names, one of them missing, another order: the models would mix what is not alike."""
    vectors = {node: np.full(64, node, np.float32) for node in (1, 2)}
    meanings = [b"", digest(("land", "sea")), digest(("sea", "land")), digest(("land", "sea", "sky"))]
    for one in meanings:
        for other in meanings:
            nodes = {
                1: Gossip(made(1, {2: 0.5}, 64, share=ALL // 2, classes=one)),
                2: Gossip(made(2, {1: 0.5}, 64, share=ALL // 2, classes=other)),
            }
            message = nodes[1].open(vectors[1])[2]
            if one == other:
                nodes[2].take(1, message)
            else:
                with pytest.raises(
                    BadExchange, match=r"of another mask \(seed, weight, share, model or classes\)"
                ):
                    nodes[2].take(1, message)
