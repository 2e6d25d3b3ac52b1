"""A ring whose nodes are real processes: `onboard run` over UDP at this computer's pace.

OUT/ring-processes.json     marks the folder of such a run, which the next one may replace
OUT/nodes/N/                what would be copied to a board or the ground station: node.toml, data.npz,
                            a key for each neighbour; later also the node's state
OUT/nodes/contacts.toml     when gateways see the ground, if there is one
OUT/logs/                   what each process said

Agents meet directly at UDP ports; only edges with lost frames or cuts have an emulated link in between."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from firmware_sim.ring.result import EpochResult, Evaluator, RingTotals
from firmware_sim.ring.settings import GroundNode, RingSettings
from firmware_sim.ring.simulation import FILES, RingConfig
from firmware_sim.runs import folder
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.processes import ProcessGroup, free_ports
from onboard.agents.gossip_memory import CHECKPOINT
from onboard.codec.layout import Floats, flat
from onboard.config import GROUND
from onboard.data.images import Images, save
from onboard.learn.gossip import topology
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.storage.keys import new_key, save_key

MARK, NODES, LOGS, STATION, PLAN = "ring-processes.json", "nodes", "logs", "ground", "contacts.toml"
LISTEN_S = 0.25


class ProcessRun:
    """A run like `RingRun`, with its errors, but always from the start; nodes that die are killed."""

    def __init__(self, config: RingConfig) -> None:
        settings, out = config.settings, config.out
        if settings.method not in ("rd-psgd", "d-psgd"):
            raise RunError(f"{settings.method}: processes gossip by rd-psgd or d-psgd, in a folder")
        if (out / FILES.asked).exists():
            raise RunError(f"{out}: holds a run on the virtual clock; choose another with --out")
        folder.check_mark(out / MARK)
        train = TrainGraph.load(settings.model)
        shares, test = config.load(train, settings.nodes, settings.seed)
        self.images = len(shares[0])
        self.results: list[EpochResult] = []
        self.display = config.display(train)
        self._settings, self._out = settings, out
        self._evaluator = Evaluator(InferGraph.load(settings.model), train.layout, test)
        urls, self._cables = meeting(settings)
        self._held = folder.hold(out / MARK)
        folder.claim(out / MARK, config.as_json())
        self._files = create_nodes(out / NODES, settings, shares, urls)
        self._told: dict[tuple[int, int], dict[str, Any]] = {}  # reports by epoch and node
        self._killed = set[str]()
        self._living = {f"node-{node}": node for node in range(1, settings.nodes + 1)}
        self._first = flat(train.layout, train.initial(settings.seed))
        self._ground: Mapping[str, Any] = {}  # the ground's latest status
        (out / FILES.results).write_bytes(b"")

    def play(self) -> Generator[RunProgress | EpochResult, None, None]:
        """Runs all epochs; ends the processes after the last, or when closed."""
        crew, began_s = ProcessGroup(self._out / LOGS), time.monotonic()
        if self._settings.ground is not None:
            write_plan(self._out / NODES, self._settings.ground, datetime.now(timezone.utc))
        try:
            for (a, b), told in self._cables.items():
                crew.start(f"cable:{a}-{b}", "firmware_sim", "cable", *told, "--report-every", "1")
            for node, file in self._files.items():
                name, often = (f"node-{node}", ()) if node != GROUND else (STATION, ("--report-every", "0.5"))
                crew.start(name, "onboard", "run", str(file), "--log", "json", *often)
            while len(self.results) < self._settings.epochs:
                for name, event in crew.listen(LISTEN_S):
                    self._handle(name, event)
                clock_s = time.monotonic() - began_s
                self._look_after(crew, clock_s)
                yield RunProgress(len(self.results) + 1, self._share_done(), clock_s)
                if self._share_done() == 1.0:
                    yield self._result(clock_s)
        finally:
            for _ in crew.stop():
                pass
            self._held.close()

    def _handle(self, name: str, event: Mapping[str, Any]) -> None:
        what = event.get("event")  # a cable's totals have none
        if what == "training-failed":
            raise RunError(f"{name}: {event['why']}")
        if what == "doing" and name == STATION:
            self._ground = event
        elif what == "epoch" and (node := self._living.get(name)) is not None:
            self._told[event["epoch"], node] = {**event, "vector": _model(self._files[node])}

    def _look_after(self, crew: ProcessGroup, clock_s: float) -> None:
        """Kills nodes that are to die. Raises RunError for a process that ended too early."""
        for name, node in list(self._living.items()):
            if clock_s >= self._settings.dead.get(node, math.inf):
                crew.members[name].process.kill()
                self._killed.add(name)
                del self._living[name]
        for member in crew.ended():
            is_done = member.name in self._living and member.process.returncode == 0
            if not is_done and member.name not in self._killed:
                raise RunError(f"{member.name} ended: {member.last_words()}")

    def _share_done(self) -> float:
        epoch = len(self.results) + 1
        return sum((epoch, node) in self._told for node in self._living.values()) / len(self._living)

    def _result(self, clock_s: float) -> EpochResult:
        epoch = len(self.results) + 1
        told = [self._told[epoch, node] for node in self._living.values()]
        links = self._ground.get("links", ())
        sent, received = (sum(link[f"bytes_{way}"] for link in links) for way in ("sent", "received"))
        totals = RingTotals(
            epochs=epoch, clock_s=clock_s,
            bytes_sent=sent + sum(each["bytes_sent"] for each in told), ground_bytes=sent + received,
            exchange_ends=self._ground.get("exchanges", 0) + sum(each["exchanges"] for each in told),
        )  # fmt: skip
        ground = None
        if GROUND in self._files:
            ground = self._first  # until its first checkpoint
            with suppress(FileNotFoundError):
                ground = _model(self._files[GROUND])
        vectors, losses = [each.pop("vector") for each in told], [each["loss"] for each in told]
        result = self._evaluator.result(totals, vectors, losses, ground)
        self.results.append(result)
        with (self._out / FILES.results).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        return result


def _model(node_toml: Path) -> Floats:
    with np.load(node_toml.parent / "state" / CHECKPOINT, allow_pickle=False) as state:
        vector: Floats = state["vector"]
    return vector


def meeting(
    settings: RingSettings,
) -> tuple[dict[tuple[int, int], str], dict[topology.Edge, tuple[str, ...]]]:
    """Chooses free ports for a ring. Returns URLs by (node, neighbour), and arguments of `cable` by edge."""
    edges = settings.edges()
    emulated = {edge for edge in edges if edge in settings.cuts or settings.link_of(*edge).frame_loss}
    ways = [way for edge in edges for way in (edge, edge[::-1])]
    free = [f"127.0.0.1:{port}" for port in free_ports(2 * len(ways))]
    own = dict(zip(ways, free[::2], strict=True))  # a node's port to a neighbour
    far = dict(zip(ways, free[1::2], strict=True))  # the cable's end at that node, if there is one
    urls = {}
    for way in ways:
        there = far[way] if {way, way[::-1]} & emulated else own[way[::-1]]
        urls[way] = f"udp://{there}?bind={own[way]}"
    cables = {}
    for edge in emulated:
        low, high = (f"udp://{far[way]}?peer={own[way]}" for way in (edge, edge[::-1]))
        link = settings.link_of(*edge)
        air = ["--link", link.name, "--loss", str(link.frame_loss), "--seed", str(1 + settings.seed)]
        for rise_s, set_s in settings.contacts(edge) if GROUND not in edge else [(0.0, math.inf)]:
            air += ["--window", f"{rise_s}:{'' if math.isinf(set_s) else set_s}"]
        cables[edge] = ("--ground", low, "--board", high, *air)
    return urls, cables


def create_nodes(
    folder: Path, settings: RingSettings, shares: Sequence[Images],
    urls: Mapping[tuple[int, int], str],
) -> dict[int, Path]:  # fmt: skip
    """Writes each node's folder, the ground's too, in place of earlier ones; returns the NODE.toml files.
    Raises RunError for a node without neighbours."""
    shutil.rmtree(folder, ignore_errors=True)
    weights = topology.metropolis(settings.edges())
    if alone := set(range(1, settings.nodes + 1)) - weights.keys():
        raise RunError(f"nodes {sorted(alone)} have no neighbours: nothing to gossip with")
    keys = {edge: new_key() for edge in settings.edges()}
    files = {}
    for node, neighbours in weights.items():
        own, is_ground = folder / str(node), node == GROUND
        own.mkdir(parents=True)
        data: dict[str, Any] = {"classes": list(classes)} if (classes := shares[0].classes) else {}
        if not is_ground:
            save(own / "data.npz", shares[node - 1])
            data["shape"] = list(shares[node - 1].shape)
        name = "ground" if is_ground else f"node-{node}"
        tables: list[tuple[str, Mapping[str, Any]]] = [
            ("[node]", {"id": node, "name": name, "board": settings.board.name}),
            ("[gossip]", msgspec.to_builtins(settings.section(trains=not is_ground))),
            ("[data]", data),
            # A checkpoint at the end of every epoch: the epoch is evaluated by it.
            ("[budget]", {"cpu_share": 1.0, "checkpoint_s": 1e-3}),
        ]
        for peer, weight in neighbours.items():
            save_key(own / f"{peer}.key", keys[min(node, peer), max(node, peer)])
            way = {"id": peer, "port": urls[node, peer], "key": f"{peer}.key", "weight": weight}
            plan = {"contacts": f"../{PLAN}", "wait": peer != GROUND} if GROUND in (node, peer) else {}
            profile = {"profile": settings.link_of(node, peer).name}
            tables.append(("[[neighbour]]", way | profile | plan))
        files[node] = own / "node.toml"
        files[node].write_text("\n".join(_toml(*table) for table in tables), encoding="utf-8")
    return files


def _toml(head: str, table: Mapping[str, Any]) -> str:
    """Writes a table as TOML: JSON's literals and escapes are a subset of it."""
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items())
    return f"{head}\n{''.join(lines)}"


def write_plan(folder: Path, ground: GroundNode, began: datetime) -> None:
    """Writes the contact plan of a ring that starts at `began`."""
    tables = [
        f"[[contact]]\nnode = {GROUND}\npeer = {gateway}\n"
        f"rise = {(began + timedelta(seconds=rise_s)).isoformat()}\n"
        f"set = {(began + timedelta(seconds=set_s)).isoformat()}\n"
        for gateway, passes in ground.passes.items()
        for rise_s, set_s in passes
    ]
    (folder / PLAN).write_text("\n".join(tables), encoding="utf-8")
