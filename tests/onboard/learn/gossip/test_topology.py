"""Weights are symmetric and stochastic on any graph; those of named ones are the field's."""

from __future__ import annotations

from math import cos, pi

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.learn.gossip import topology
from tests.onboard.learn.gossip.machine import matrix

NODES = range(1, 9)


def test_a_ring_has_a_third_for_each_neighbour() -> None:
    weights = topology.metropolis(topology.ring(NODES))
    assert weights[1] == {2: 1 / 3, 8: 1 / 3}
    magnitudes = np.sort(np.abs(np.linalg.eigvalsh(matrix(weights))))
    assert magnitudes[-2] == pytest.approx(1 / 3 + 2 / 3 * cos(2 * pi / 8))


def test_named_graphs_have_as_many_edges_as_they_should() -> None:
    assert [len(topology.ring(range(n))) for n in (1, 2, 3, 8)] == [0, 1, 3, 8]
    assert len(topology.star(NODES)) == 7
    assert len(topology.complete(NODES)) == 28
    assert len(topology.torus(range(12), columns=4)) == 24
    assert len(topology.torus(NODES, columns=4)) == 12  # two rows: one edge between each two
    with pytest.raises(ValueError, match="8 nodes do not fill rows of 3"):
        topology.torus(NODES, columns=3)


def test_in_a_complete_graph_one_round_is_enough() -> None:
    whole = matrix(topology.metropolis(topology.complete(NODES)))
    np.testing.assert_allclose(whole, 1 / 8)


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda e: e[0] < e[1]), min_size=1))
def test_any_graph_mixes_without_changing_the_mean(edges: set[tuple[int, int]]) -> None:
    whole = matrix(topology.metropolis(edges))
    np.testing.assert_array_equal(whole, whole.T)
    np.testing.assert_allclose(whole.sum(axis=0), 1)
    assert (whole >= 0).all()


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda e: e[0] < e[1]), min_size=1))
def test_a_graph_in_parts_never_agrees(edges: set[tuple[int, int]]) -> None:
    """One round leaves all of some difference between the models: W has the eigenvalue 1 twice."""
    weights = topology.metropolis(edges)
    magnitudes = np.sort(np.abs(np.linalg.eigvalsh(matrix(weights))))
    assert topology.connected(edges, weights) == (magnitudes[-2] < 1 - 1e-9)
    assert not topology.connected(edges, range(7))  # the last has no neighbour
    assert topology.connected([], [3])
