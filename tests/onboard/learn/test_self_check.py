"""A network that computes what it computed elsewhere passes its check, and no other."""

from __future__ import annotations

import msgspec
import pytest

from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.networks import CheckVector, Network, shipped
from onboard.learn.self_check import TOLERANCE, check, check_vector


def vector_of(network: Network) -> CheckVector:
    return check_vector(TrainGraph.load(network), InferGraph.load(network), seed=5)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_network_passes(name: str) -> None:
    network = Network.load(name)
    vector = vector_of(network)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(vector), type=CheckVector) == vector
    assert check(network, vector) == ""


def test_what_differs_by_more_than_rounding_is_named() -> None:
    network = Network.load("lenet5")
    vector = vector_of(network)
    last = vector.logits[-1] + 2 * TOLERANCE * max(1.0, *map(abs, vector.logits))
    for change, why in (
        ({"loss": vector.loss * 1.01 + 0.01}, "its loss is"),
        ({"loss": float("nan")}, "its loss is"),
        ({"logits": (*vector.logits[:-1], last)}, "its logits are off"),
        ({"logits": vector.logits[:-1]}, "its logits are off"),
        ({"logits": (float("nan"), *vector.logits[1:])}, "its logits are off"),
    ):
        assert why in check(network, msgspec.structs.replace(vector, **change)), change
