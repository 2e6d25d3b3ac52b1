"""A ring whose nodes are real agents: `onboard run`, a process each, over UDP at this computer's pace.

OUT/nodes/N/      what is copied to a board: node.toml, data.npz, a key for each neighbour; and its state
OUT/logs/         what each process said
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from firmware_sim.crew import Crew
from firmware_sim.ring import RingError, Settings
from firmware_sim.ring_result import EpochResult, Judge, Moment
from firmware_sim.ring_run import EPOCHS, Wishes, images_of
from onboard import data
from onboard.codec.layout import Floats
from onboard.codec.mask import ALL
from onboard.gossip_agent import CHECKPOINT
from onboard.keys import new_key, save_key
from onboard.learn import topology
from onboard.learn.graph import InferGraph, TrainGraph

NODES, LOGS = "nodes", "logs"
LISTEN_S = 0.25


def found(folder: Path, settings: Settings, shares: Sequence[data.Images]) -> list[Path]:
    """Writes each node's folder; returns the NODE.toml files, node 1's first. Earlier ones are replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    weights = topology.metropolis(settings.edges())
    ports = _free_ports([(a, b) for a in weights for b in weights[a]])
    keys = {edge: new_key() for edge in settings.edges()}
    files = []
    for node, images in enumerate(shares, start=1):
        own = folder / str(node)
        own.mkdir(parents=True)
        data.save(own / "data.npz", images)
        for peer in weights[node]:
            save_key(own / f"{peer}.key", keys[min(node, peer), max(node, peer)])
        tables = [("[node]", {"id": node, "name": f"node-{node}", "board": settings.board.name})]
        tables += [("[gossip]", _gossip(settings)), ("[data]", {"shape": list(images.shape)})]
        # A checkpoint at the end of every epoch: it is what the epoch is judged by.
        tables += [("[budget]", {"cpu_share": 1.0, "checkpoint_s": 1e-3})]
        for peer, weight in weights[node].items():
            here, there = (f"127.0.0.1:{ports[way]}" for way in ((node, peer), (peer, node)))
            way = {"id": peer, "port": f"udp://{there}?bind={here}", "profile": settings.link.name}
            tables.append(("[[neighbour]]", way | {"key": f"{peer}.key", "weight": weight}))
        lines = [line for head, table in tables for line in _lines(head, table)]
        (own / "node.toml").write_text("\n".join(lines), encoding="utf-8")
        files.append(own / "node.toml")
    return files


class CrewRun:
    """As `ring_run.Run`. A node that is to die is killed so long after the start.

    Raises DataError, GraphError, RingError, OSError.
    """

    def __init__(self, wishes: Wishes) -> None:
        settings = wishes.settings
        if settings.method not in ("rd-psgd", "d-psgd") or wishes.out is None:
            raise RingError(f"{settings.method}: processes gossip by rd-psgd or d-psgd, in a folder")
        if settings.cuts or settings.ground or settings.link.frame_loss:
            raise RingError("processes have this computer's own links: no cuts, no losses, no ground")
        train = TrainGraph.load(settings.model)
        shares, test = images_of(wishes, train)
        self.parameters = train.layout.parameters
        self.results: list[EpochResult] = []
        self._settings, self._out = settings, wishes.out
        self._judge = Judge(InferGraph.load(settings.model), train.layout, test)
        self._files = found(wishes.out / NODES, settings, shares)
        self._told: list[dict[int, dict[str, Any]]] = []  # what each node said of each epoch
        self._living = {f"node-{node}": node for node in range(1, settings.nodes + 1)}
        (wishes.out / EPOCHS).write_bytes(b"")

    def play(self) -> Generator[Moment | EpochResult, None, None]:
        """Runs all epochs; the processes are ended after the last, or when this is closed."""
        crew, began_s = Crew(self._out / LOGS), time.monotonic()
        try:
            for name, file in zip(list(self._living), self._files, strict=True):
                crew.start(name, "onboard", "run", str(file), "--log", "json")
            while len(self.results) < self._settings.epochs:
                for name, event in crew.listen(LISTEN_S):
                    self._hear(name, event)
                clock_s = time.monotonic() - began_s
                self._look_after(crew, clock_s)
                yield Moment(len(self.results) + 1, self._share_done(), clock_s)
                if len(self.results) < len(self._told) and self._share_done() == 1.0:
                    yield self._result(clock_s)
        finally:
            for _ in crew.stop():
                pass

    def _hear(self, name: str, event: Mapping[str, Any]) -> None:
        if event["event"] == "training-failed":
            raise RingError(f"{name}: {event['why']}")
        if event["event"] != "epoch":
            return
        node = self._living.get(name)
        if node is None:
            return
        while len(self._told) < event["epoch"]:
            self._told.append({})
        with np.load(self._files[node - 1].parent / "state" / CHECKPOINT, allow_pickle=False) as state:
            self._told[event["epoch"] - 1][node] = {**event, "vector": state["vector"]}

    def _look_after(self, crew: Crew, clock_s: float) -> None:
        """Kills who is to die. Raises RingError for a process that ended before its time."""
        for name, node in list(self._living.items()):
            if clock_s >= self._settings.dead.get(node, math.inf):
                crew.members[name].process.kill()
                del self._living[name]
        for member in crew.ended():
            if member.name in self._living and member.process.returncode != 0:
                raise RingError(f"{member.name} ended: {member.last_words()}")

    def _share_done(self) -> float:
        """Of the present epoch: how many of the living nodes are through with it."""
        epoch = len(self.results)
        told = self._told[epoch] if epoch < len(self._told) else {}
        return len(told.keys() & set(self._living.values())) / len(self._living)

    def _result(self, clock_s: float) -> EpochResult:
        epoch = len(self.results)
        told = [self._told[epoch][node] for node in self._living.values()]
        vectors: list[Floats] = [each.pop("vector") for each in told]
        result = self._judge.result(
            epoch + 1, vectors, [each["loss"] for each in told],
            bytes_sent=sum(each["bytes_sent"] for each in told),
            exchanges=sum(each["exchanges"] for each in told) // 2, clock_s=clock_s,
        )  # fmt: skip
        self.results.append(result)
        with (self._out / EPOCHS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        return result


def _gossip(settings: Settings) -> dict[str, Any]:
    recipe = settings.recipe
    return {
        "model": settings.model,
        "seed": settings.seed,
        "sparsity": settings.share / ALL,
        "values": settings.values.name.lower(),
        "every": settings.every,
        "patience_s": settings.patience_s,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "drops": list(recipe.drops),
        "shift_pixels": recipe.shift_pixels,
        "distortion": recipe.distortion,
        "epochs": settings.epochs,
    }


def _lines(head: str, table: Mapping[str, Any]) -> list[str]:
    """A table as TOML, of which JSON's literals and escapes are a subset."""
    return [head, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()), ""]


def _free_ports(ways: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """A UDP port for each, all of them free a moment ago."""
    with contextlib.ExitStack() as held:
        sockets = {
            way: held.enter_context(contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            for way in ways
        }
        for each in sockets.values():
            each.bind(("127.0.0.1", 0))
        return {way: each.getsockname()[1] for way, each in sockets.items()}
