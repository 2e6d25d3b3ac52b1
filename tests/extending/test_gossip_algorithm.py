"""A gossip algorithm is one class and one row: a toy one plays in `firmware-sim ring`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from onboard.codec.layout import Floats
from onboard.learn.gossip.algorithms import ALGORITHMS, AlgorithmKind
from onboard.learn.gossip.exchange import Gossip, GossipSetup

RING = (
    "ring", "--method", "lazy", "--nodes", "3", "--data", "digits", "--images", "40", "--epochs", "1",
    "--every", "2", "--batch-size", "20", "--frame-bytes", "65507", "--json",
)  # fmt: skip
MIXED = list[tuple[int, ...]]()


class LazyGossip(Gossip):
    """RD-PSGD at half the weights: a node keeps more of its own."""

    def __init__(self, setup: GossipSetup, numbers: Mapping[int, int], memory: Mapping[str, Floats]) -> None:
        weights = {peer: weight / 2 for peer, weight in setup.weights.items()}
        super().__init__(dataclasses.replace(setup, weights=weights), numbers, memory)

    def mix(self, vector: Floats) -> tuple[int, ...]:
        MIXED.append(super().mix(vector))
        return MIXED[-1]


def test_a_toy_algorithm_plays_in_a_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS, "lazy", AlgorithmKind(LazyGossip))
    MIXED.clear()
    played = CliRunner().invoke(main, [*RING, "--out", str(tmp_path / "out")])
    assert played.exit_code == 0, played.output
    assert sum(map(len, MIXED)) >= 3
    offered = CliRunner().invoke(main, ["ring", "--help"])
    assert "lazy" in offered.output


def test_without_its_row_there_is_no_such_algorithm(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, [*RING, "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "'lazy' is not one of 'rd-psgd', 'd-psgd', 'topk', 'choco'" in refused.output


def test_the_table_of_algorithms_is_complete() -> None:
    assert list(ALGORITHMS) == ["rd-psgd", "d-psgd", "topk", "choco"]
    assert [name for name, kind in ALGORITHMS.items() if kind.sends_all] == ["d-psgd"]
    assert [name for name, kind in ALGORITHMS.items() if kind.waits_for_all] == ["topk", "choco"]
