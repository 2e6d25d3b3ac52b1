"""Simulators play the agents that fly: the classes of `onboard.agents` do the work."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from firmware_sim.cli import main
from onboard.agents.federated import FederatedAgent
from onboard.agents.gossip import GossipAgent


def counted(monkeypatch: pytest.MonkeyPatch, agent: type[Any], *names: str) -> Counter[str]:
    """How often each of these methods of an agent class is called from now on."""
    calls = Counter[str]()

    def count(name: str) -> None:
        method = getattr(agent, name)

        def watched(self: Any, *args: Any, **kw: Any) -> Any:
            calls[name] += 1
            return method(self, *args, **kw)

        monkeypatch.setattr(agent, name, watched)

    for name in names:
        count(name)
    return calls


def play(*arguments: str) -> None:
    done = CliRunner().invoke(main, [*arguments])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("method", ["rd-psgd", "topk"])
def test_a_ring_is_played_by_gossip_agents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    calls = counted(monkeypatch, GossipAgent, "resume", "advance", "charge", "handle", "close")
    options = ("--nodes", "3", "--images", "40", "--batch-size", "8", "--epochs", "2", "--method", method)
    play("ring", "--data", "digits", "--frame-bytes", "65507", *options, "--out", str(tmp_path / "ring"))
    assert calls["resume"] == calls["close"] == 3 * 2  # each node starts from its disk at each epoch
    assert calls["advance"] == calls["charge"] == 3 * 2 * 5  # 5 batches of 8 images an epoch
    # After every batch each node takes its neighbours' values, and hears that they have its own.
    assert calls["handle"] >= 2 * calls["charge"] * 2


def test_a_fleet_is_played_by_federated_agents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = counted(monkeypatch, FederatedAgent, "resume", "ask", "take", "handle")
    options = ("--method", "fedavg", "--devices", "3", "--select", "2", "--rounds", "2", "--images", "40")
    play("fleet", "--data", "digits", *options, "--out", str(tmp_path / "fleet"))
    assert calls["resume"] >= 2 * 2  # each device that is asked boots
    assert calls["ask"] >= 2 * 2 * 2  # it trains, step by step
    assert calls["take"] >= calls["ask"]
    assert calls["handle"] >= 2 * 2 * 2  # the model comes, and the update is acknowledged
