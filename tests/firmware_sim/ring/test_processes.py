"""Real agents gossip over UDP on this computer; one that is killed goes on where it was, and all end."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_sim.ring.processes import ProcessRun, create_nodes, meeting
from firmware_sim.ring.result import EpochResult
from firmware_sim.ring.settings import RingSettings
from firmware_sim.ring.simulation import FILES, RingConfig
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.processes import ProcessGroup
from firmware_sim.runs.run import iid
from hw_profiles import load_board, load_link
from onboard.data import loading
from onboard.learn.training import Recipe

BASE: dict[str, Any] = {
    "nodes": 3, "every": 4, "recipe": Recipe(learning_rate=0.05), "patience_s": 3.0,
    "board": load_board("raspberry-pi-4"), "link": load_link("isl-2mbyte"),
}  # fmt: skip
WITHIN_S = 60.0


def test_a_killed_agent_goes_on_and_all_agents_end(tmp_path: Path) -> None:
    images = loading.load("digits", part="train")
    shares = [images.take(rows) for rows in iid(images.y, 3, 100, 0)]
    settings = RingSettings(**BASE | {"epochs": 8})
    files = create_nodes(tmp_path / "nodes", settings, shares, meeting(settings)[0])
    crew, heard = ProcessGroup(tmp_path / "logs"), list[tuple[str, dict[str, Any]]]()
    until = time.monotonic() + WITHIN_S

    def start(node: int, life: int = 1) -> None:
        crew.start(f"{node}-{life}", "onboard", "run", str(files[node]), "--log", "json")

    try:
        for node in (1, 2, 3):
            start(node)
        while sum(name == "2-1" and event["event"] == "exchanged" for name, event in heard) < 4:
            heard += crew.listen(0.1)
            assert time.monotonic() < until
        crew.members["2-1"].process.kill()
        start(2, life=2)
        while len(crew.ended()) < 4:
            heard += crew.listen(0.1)
            assert time.monotonic() < until, heard[-5:]
        codes = {member.name: member.process.returncode for member in crew.ended()}
    finally:
        heard += crew.stop()
    assert codes == {"1-1": 0, "2-1": -9, "2-2": 0, "3-1": 0}
    told = {name: {event["event"] for who, event in heard if who == name} for name in codes}
    assert "resumed" in told["2-2"]
    assert "exchange-refused" not in set.union(*told.values())
    numbers, losses = {}, {}
    for node, file in files.items():
        with np.load(file.parent / "state" / "gossip.npz") as state:
            numbers[node] = dict(zip(state["peers"].tolist(), state["numbers"].tolist(), strict=True))
            assert int(state["batches"]) == 8 * 4
        assert (file.parent / "state" / "model.npz").exists()
    assert all(numbers[a][b] == numbers[b][a] >= 8 for a in numbers for b in numbers[a])
    for name, event in heard:
        if event["event"] == "epoch":
            losses[name, event["epoch"]] = event["loss"]
    assert losses["1-1", 8] < 0.5 * losses["1-1", 1]


def test_a_crew_tells_its_epochs_as_a_ring_does(tmp_path: Path) -> None:
    wishes = RingConfig(
        settings=RingSettings(**BASE | {"epochs": 3}), data="digits", images=150, out=tmp_path
    )
    results = [seen for seen in ProcessRun(wishes).play() if isinstance(seen, EpochResult)]
    assert [result.epoch for result in results] == [1, 2, 3]
    assert results[-1].loss < results[0].loss
    assert results[-1].exchanges == 3 * 3  # of three edges: 15 batches, an exchange at every fourth
    assert results[-1].bytes_sent > 2 * 9 * 0.09 * 4 * 431_080
    assert len((tmp_path / FILES.results).read_text().splitlines()) == 3
    assert json.loads((tmp_path / FILES.results).read_text().splitlines()[-1])["distance"] > 0


def test_frames_are_lost_and_an_edge_is_cut_between_real_agents(tmp_path: Path) -> None:
    lossy = replace(BASE["link"], frame_loss=0.05)
    settings = RingSettings(**BASE | {"epochs": 3, "every": 2, "link": lossy, "cuts": {(1, 2): (0.0, 300.0)}})
    wishes = RingConfig(settings=settings, data="digits", images=150, out=tmp_path)
    results = [seen for seen in ProcessRun(wishes).play() if isinstance(seen, EpochResult)]
    assert [result.epoch for result in results] == [1, 2, 3]
    assert results[-1].exchanges > 2
    said = {}
    for edge in ("1-2", "1-3", "2-3"):
        (*_, last) = (tmp_path / "logs" / f"cable-{edge}.jsonl").read_text().splitlines()
        said[edge] = json.loads(last)
    assert all(said[edge]["ground"]["lost"] + said[edge]["board"]["lost"] > 0 for edge in ("1-3", "2-3"))
    assert [one["ground"]["cut"] > 0 for one in said.values()] == [True, False, False]


def test_what_processes_cannot_do_is_said_before_they_start(tmp_path: Path) -> None:
    wishes = RingConfig(
        settings=RingSettings(**BASE | {"method": "topk"}), data="digits", images=1, out=tmp_path
    )
    with pytest.raises(RunError, match="processes"):
        ProcessRun(wishes)


def test_an_emulated_board_gossips_at_its_own_pace(tmp_path: Path) -> None:
    images = loading.load("digits", part="train").take(np.arange(64))
    settings = RingSettings(**BASE | {"nodes": 2, "epochs": 1, "patience_s": 1.0})
    crew = ProcessGroup(tmp_path / "logs")
    heard, until = list[tuple[str, dict[str, Any]]](), time.monotonic() + WITHIN_S
    try:
        files = create_nodes(tmp_path / "nodes", settings, [images, images], meeting(settings)[0])
        for node, file in files.items():
            crew.start(str(node), "firmware_sim", "board", str(file), "--log", "json")
        while len(crew.ended()) < 2:
            heard += crew.listen(0.1)
            assert time.monotonic() < until, heard[-5:]
        assert [member.process.returncode for member in crew.ended()] == [0, 0]
    finally:
        heard += crew.stop()
    assert [event["link"] for _, event in heard if event["event"] == "emulating"] == ["isl-2mbyte"] * 2
    assert sum(event["event"] == "done" for _, event in heard) == 2
