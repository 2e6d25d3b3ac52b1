"""A node that gossips outlives a training that does not fit, and images that rot: it says so and goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_sim.runs.processes import ProcessGroup
from onboard.data import loading
from onboard.data.images import save
from onboard.storage.keys import new_key, save_key
from tests.missions.bench import run
from tests.onboard.test_config import toml
from tests.programs import run_out_of_memory_by_signal


class MemoryNode:
    """`onboard run` of a node whose neighbour is never there."""

    def __init__(self, folder: Path, memory_mb: int) -> None:
        save_key(folder / "8.key", new_key())
        save(folder / "data.npz", loading.load("digits", part="train").take(np.arange(100)))
        neighbour = {
            "id": 8,
            "port": "udp://127.0.0.1:9",
            "profile": "bench-udp",
            "key": "8.key",
            "weight": 0.5,
        }
        self.toml = folder / "node.toml"
        self.toml.write_text(
            toml(
                {
                    "node": {"id": 7, "name": "pi", "board": "raspberry-pi-4"},
                    "gossip": {"epochs": 0, "every": 1000},
                    "[neighbour]": neighbour,
                    "budget": {"memory_mb": memory_mb},
                }
            )
        )
        self.said: list[dict[str, Any]] = []
        self.crew = ProcessGroup(folder / "logs")
        self.start()

    def start(self) -> None:
        self.crew.start("node", "onboard", "run", str(self.toml), "--log", "json", "--report-every", "0.1")

    def kill(self) -> None:
        """kill -9, and what it said is forgotten."""
        self.crew.members["node"].process.kill()
        list(self.crew.stop())
        self.said.clear()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.said if event["event"] == name]

    def until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30.0
        while not met():
            self.said += [event for _, event in self.crew.listen(0.05)]
            assert time.monotonic() < deadline, self.said[-5:]
            assert not self.crew.ended(), self.crew.ended()[0].last_words()

    def lives_on(self, phase: str = "failed") -> None:
        """It goes on reporting, and answers who asks."""
        seen = len(self.events("doing"))
        self.until(lambda: len(self.events("doing")) > seen + 3)
        assert f'"phase":"{phase}"' in run("onboard", "link", str(self.toml), "--once", "--json").stdout
        assert self.crew.members["node"].errors.read_text() == ""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[int], MemoryNode]]:
    nodes: list[MemoryNode] = []

    def start(memory_mb: int) -> MemoryNode:
        nodes.append(MemoryNode(tmp_path, memory_mb))
        return nodes[-1]

    yield start
    for node in nodes:
        list(node.crew.stop())


@pytest.mark.parametrize("memory_mb", [8, 40])  # below 4 its images alone are too many
def test_a_training_that_does_not_fit_is_told_and_the_node_answers_on(
    memory_mb: int, started: Callable[[int], MemoryNode]
) -> None:
    node = started(memory_mb)
    node.until(lambda: bool(node.events("training-failed")))
    node.lives_on()


def test_a_board_without_memory_for_the_node_itself(
    tmp_path: Path, started: Callable[[int], MemoryNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out_of_memory_by_signal(tmp_path, monkeypatch)
    node = started(256)
    node.until(lambda: bool(node.events("epoch")))
    os.kill(node.crew.members["node"].process.pid, signal.SIGUSR1)
    node.until(lambda: bool(node.events("training-failed")))
    node.lives_on()


def test_images_that_rot_end_no_node_that_was_at_work(
    tmp_path: Path, started: Callable[[int], MemoryNode]
) -> None:
    node, images = started(256), tmp_path / "data.npz"
    node.until(lambda: bool(node.events("epoch")))
    node.kill()
    whole = images.read_bytes()
    images.write_bytes(whole[: len(whole) // 2])
    node.start()
    node.until(lambda: bool(node.events("doing")))
    assert str(images) in node.events("images-unread")[0]["why"]
    node.lives_on("holding")
    node.kill()
    images.write_bytes(whole)
    node.start()
    node.until(lambda: bool(node.events("epoch")))
