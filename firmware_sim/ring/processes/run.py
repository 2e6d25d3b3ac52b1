"""A ring whose nodes are real agents: `onboard run`, a process each, over UDP at this computer's pace.

OUT/ring-processes.json  says that the folder is such a run's and may be replaced
OUT/nodes/               see `folders`
OUT/logs/                what each process said
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from firmware_sim.ring.processes.folders import found, plan
from firmware_sim.ring.processes.links import meeting
from firmware_sim.ring.result import EpochResult, Evaluator, GroundModel
from firmware_sim.ring.run import NAMES, RingConfig, images_of
from firmware_sim.ring.settings import RingError
from firmware_sim.runs import folder
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.processes import ProcessGroup
from onboard.agents.gossip_checkpoint import CHECKPOINT
from onboard.codec.layout import Floats, flat
from onboard.config import GROUND
from onboard.learn.graph import InferGraph, TrainGraph, initial

MARK, NODES, LOGS, STATION = "ring-processes.json", "nodes", "logs", "ground"
LISTEN_S = 0.25


@dataclass
class _Station:
    """The ground's process. `says`: the last that it told of its state; `first`: the model it begins with."""

    checkpoint: Path
    first: Floats
    says: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exchanges(self) -> int:
        """Completed by it."""
        return int(self.says.get("exchanges", 0))

    def bytes(self, way: Literal["sent", "received"]) -> int:
        """On all its links."""
        return sum(link[f"bytes_{way}"] for link in self.says.get("links", ()))

    def model(self) -> Floats:
        """The one that it holds, float32 (P,)."""
        return _model(self.checkpoint) if self.checkpoint.exists() else self.first


class ProcessRun:
    """As `ring.run.Run`, but always from the start. A node that is to die is killed so long after the start.

    Raises DataError, GraphError, RingError, FolderError, OSError.
    """

    def __init__(self, wishes: RingConfig) -> None:
        settings = wishes.settings
        if settings.method not in ("rd-psgd", "d-psgd") or wishes.out is None:
            raise RingError(f"{settings.method}: processes gossip by rd-psgd or d-psgd, in a folder")
        if (wishes.out / NAMES.asked).exists():
            raise RingError(f"{wishes.out}: holds a run on the virtual clock; choose another with --out")
        folder.check_mark(wishes.out / MARK)
        train = TrainGraph.load(settings.model)
        shares, test = images_of(wishes, train)
        self.parameters, self.images = train.layout.parameters, len(shares[0])
        self.results: list[EpochResult] = []
        self._settings, self._out = settings, wishes.out
        self._judge = Evaluator(InferGraph.load(settings.model), train.layout, test)
        meets = meeting(settings)
        self._held = folder.hold(wishes.out)
        folder.check_mark(wishes.out / MARK)  # another run may just have begun or ended in it
        folder.claim(wishes.out / MARK, wishes.as_json())
        self._cables = meets.cables
        self._files = found(wishes.out / NODES, settings, shares, meets.urls)
        self._told: list[dict[int, dict[str, Any]]] = []  # what each node said of each epoch
        self._killed = set[str]()
        self._living = {f"node-{node}": node for node in range(1, settings.nodes + 1)}
        self._station = None
        if settings.ground is not None:
            start = flat(train.layout, initial(train.shapes, settings.seed))
            self._station = _Station(_checkpoint(self._files[GROUND]), start)
        (wishes.out / NAMES.results).write_bytes(b"")

    def play(self) -> Generator[RunProgress | EpochResult, None, None]:
        """Runs all epochs; the processes are ended after the last, or when this is closed."""
        crew, began_s = ProcessGroup(self._out / LOGS), time.monotonic()
        if self._settings.ground is not None:
            plan(self._out / NODES, self._settings.ground, datetime.now(timezone.utc))
        try:
            for (a, b), told in self._cables.items():
                crew.start(f"cable:{a}-{b}", "firmware_sim", "cable", *told, "--report-every", "1")
            for node, file in self._files.items():
                name, often = (f"node-{node}", ()) if node != GROUND else (STATION, ("--report-every", "0.5"))
                crew.start(name, "onboard", "run", str(file), "--log", "json", *often)
            while len(self.results) < self._settings.epochs:
                for name, event in crew.listen(LISTEN_S):
                    self._hear(name, event)
                clock_s = time.monotonic() - began_s
                self._look_after(crew, clock_s)
                yield RunProgress(len(self.results) + 1, self._share_done(), clock_s)
                if len(self.results) < len(self._told) and self._share_done() == 1.0:
                    yield self._result(clock_s)
        finally:
            for _ in crew.stop():
                pass
            self._held.close()

    def _hear(self, name: str, event: Mapping[str, Any]) -> None:
        if name.startswith("cable:"):
            return
        if event["event"] == "training-failed":
            raise RingError(f"{name}: {event['why']}")
        if event["event"] == "doing" and self._station is not None:
            self._station.says = event
        node = self._living.get(name)
        if event["event"] != "epoch" or node is None:
            return
        while len(self._told) < event["epoch"]:
            self._told.append({})
        vector = _model(_checkpoint(self._files[node]))
        self._told[event["epoch"] - 1][node] = {**event, "vector": vector}

    def _look_after(self, crew: ProcessGroup, clock_s: float) -> None:
        """Kills who is to die. Raises RingError for a process that ended before its time."""
        for name, node in list(self._living.items()):
            if clock_s >= self._settings.dead.get(node, math.inf):
                crew.members[name].process.kill()
                self._killed.add(name)
                del self._living[name]
        for member in crew.ended():
            is_done = member.name in self._living and member.process.returncode == 0
            if not is_done and member.name not in self._killed:
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
        sent_bytes = sum(each["bytes_sent"] for each in told)
        exchanges = sum(each["exchanges"] for each in told)
        ground = None
        if (station := self._station) is not None:
            sent_bytes += station.bytes("sent")
            exchanges += station.exchanges
            ground = GroundModel(station.model(), station.bytes("sent") + station.bytes("received"))
        result = self._judge.result(
            epoch + 1, vectors, [each["loss"] for each in told],
            bytes_sent=sent_bytes, exchanges=exchanges // 2, clock_s=clock_s, ground=ground,
        )  # fmt: skip
        self.results.append(result)
        with (self._out / NAMES.results).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        return result


def _checkpoint(node_toml: Path) -> Path:
    return node_toml.parent / "state" / CHECKPOINT


def _model(checkpoint: Path) -> Floats:
    with np.load(checkpoint, allow_pickle=False) as state:
        vector: Floats = state["vector"]
    return vector
