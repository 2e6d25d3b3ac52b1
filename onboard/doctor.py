"""Checks what a run needs, one finding each, so that a board is right before it leaves the bench."""

from __future__ import annotations

import math
import os
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from onboard.board.budget import AGENT_BYTES
from onboard.config import GossipConfig, LinkEnd, NodeConfig, OwnConfig, ends_of
from onboard.console.extras import require, unusable
from onboard.console.toml import ConfigError
from onboard.data.suffixes import is_junk
from onboard.inference.rules import InferConfig
from onboard.learn.graph import GraphError, TrainGraph
from onboard.learn.networks import Network, NetworkError
from onboard.learn.training import BoardTraining
from onboard.link.ports.schemes import facts_of, open_port
from onboard.mission.health import Failure
from onboard.mission.objects import Task, encode_object
from onboard.runtime.contact_plan import ContactPlan
from onboard.storage.keys import BadKey, exposure, load_keys
from onboard.storage.model_slots import model_slots
from onboard.trainer.job import Failed, Job, Report, TrainingDone
from onboard.trainer.process import ProcessTrainer
from onboard.wire.medium.contact_gate import Contacts

REFUSAL_WITHIN_S = 0.3  # how soon a terminal server says that its port is taken
BATCHES = 2  # an epoch of the trial
MARGIN_BYTES = 4 * 2**20  # rounds differ: with 80 MiB one of two has trained
FREE_DISK_BYTES = 64 * 2**20  # spool, two models and a checkpoint of LeNet-5 take 12 MB; with room to grow


@dataclass(frozen=True)
class Finding:
    what: str
    ok: bool
    says: str


def examine(config: NodeConfig | GossipConfig) -> list[Finding]:
    """Checks everything. It sends nothing, opens and closes each port once, and makes the state folder."""
    python = f"Python {sys.version.split()[0]}, numpy {np.__version__}"
    checks: list[tuple[str, Callable[[], str]]] = [("python", lambda: python)]
    for end in ends_of(config).values():
        name = "" if isinstance(config, NodeConfig) else f" {end.id}"
        checks += [
            (f"key{name}", partial(_key, end)),
            (f"port{name}", partial(_port, end)),
            (f"contacts{name}", partial(_contacts, config.id, end)),
        ]
    checks += [
        ("model", partial(_model, config)),
        ("data", partial(_data, config)),
        ("memory", partial(_memory, config)),
        ("disk", partial(_disk, config)),
    ]
    if isinstance(config, NodeConfig) and config.infer is not None:
        checks.append(("images", partial(_watched, config.infer)))
    findings = []
    for what, look in checks:
        try:
            findings.append(Finding(what, True, look()))
        except ImportError as error:
            findings.append(Finding(what, False, unusable(error.name or "", error)))
        except (OSError, ValueError, MemoryError) as error:
            findings.append(Finding(what, False, _said(error)))
    return findings


def _said(error: Exception) -> str:
    """Drops Python's "[Errno 13]": "PATH: Permission denied"."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _key(end: LinkEnd) -> str:
    load_keys(end.key_path)
    if why := exposure(end.key_path, "key"):
        raise BadKey(f"{end.key_path}: {why}")
    return f"{end.key_path}{'; frames are encrypted' if end.encrypt else ''}"


def _port(end: LinkEnd) -> str:
    with closing(open_port(end.port, end.link)) as port:
        facts = facts_of(end.port)
        if facts.framing != "datagram" and facts.device is None and port.fileno() >= 0:
            # A terminal server whose port is taken accepts, says so, and closes.
            for _ in range(2):
                select.select([port.fileno()], [], [], REFUSAL_WITHIN_S)
                port.read()
    return f"{end.port} opens; {end.link.title}"


def _contacts(node: int, end: LinkEnd) -> str:
    if end.contacts_path is None:
        return "no plan: the link is always up"
    clock_s = time.time()
    plan = Contacts(ContactPlan(end.contacts_path, node, end.id).windows(clock_s))
    if plan.rises_at(0.0) == math.inf:
        raise ConfigError(f"{end.contacts_path}: contact: all are over by the clock of this computer")
    return "in contact" if plan.is_up(0.0) else f"the next one begins in {plan.rises_at(0.0):.0f} s"


def _model(config: NodeConfig | GossipConfig) -> str:
    try:
        if isinstance(config, GossipConfig):
            graphs = [TrainGraph.load(config.model)]
        else:
            networks = _networks(config)
            graphs = [TrainGraph.load(network) for network in networks]
            for network, part in ((each, part) for each in networks for part in each.file.files):
                network.part(part)  # what answers, and first weights, are read much later
    except (GraphError, NetworkError) as error:
        raise GraphError(f"{error}; the board cannot train") from None
    return f"can train {', '.join(graph.name for graph in graphs)}"


def _data(config: NodeConfig | GossipConfig) -> str:
    if isinstance(config, GossipConfig) and not config.gossip.trains:
        return "none needed: this node trains nothing"
    if isinstance(config, GossipConfig):
        objective = TrainGraph.load(config.model).objective
    else:
        shape = config.shard.shape
        networks = _networks(config)
        if not (fitting := [each for each in networks if each.input_shape == shape]):
            takes = ", ".join(f"{each.name} {each.input_shape}" for each in networks)
            raise ValueError(f"no model takes images of {shape}; there are {takes}")
        kind = config.shard.objective.kind
        outputs = max((each.file.outputs for each in fitting if each.file.task == kind), default=None)
        objective = msgspec.structs.replace(config.shard.objective, outputs=outputs)
    return config.shard.inspect(objective).line()


def _memory(config: NodeConfig | GossipConfig) -> str:
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if available < config.memory_bytes:
        raise ValueError(f"{_mb(available)} are free, the budget is {_mb(config.memory_bytes)}")
    trains = isinstance(config, NodeConfig) or config.gossip.trains
    needs = [_tried(config, graph) for graph in _fitting(config)] if trains else []
    needs = needs or ["no model was tried" if trains else "this node trains nothing"]
    return f"{'; '.join(needs)}; {_mb(config.memory_bytes)} are allowed, {_mb(available)} are free"


def _watched(config: InferConfig) -> str:
    require("PIL")
    with os.scandir(config.watch) as entries:
        count = sum(not is_junk(entry.name) for entry in entries)
    return f"{config.watch}: {count} entries; answers may take {_mb(config.memory_bytes)} beside training"


def _fitting(config: OwnConfig) -> list[TrainGraph]:
    if isinstance(config, GossipConfig):
        return [TrainGraph.load(config.model)]
    networks = _networks(config)
    kind = config.shard.objective.kind
    fitting = [each for each in networks if (each.input_shape, each.file.task) == (config.shard.shape, kind)]
    own = [each for each in fitting if not each.is_shipped]
    return [TrainGraph.load(each) for each in own or fitting]  # what was brought is what the mission trains


def _networks(config: OwnConfig) -> list[Network]:
    """Returns the networks that the node has: installed, beside its file, and shipped."""
    return list({network.digest: network for network in model_slots(config).networks()}.values())


def _tried(config: OwnConfig, graph: TrainGraph) -> str:
    """Trains a round of a mission's defaults. Raises MemoryError over the budget, else GraphError."""
    batch = config.gossip.batch_size if isinstance(config, GossipConfig) else BoardTraining().batch_size
    task = Task(
        mission=bytes(8), round=1, model=graph.name, graph=graph.digest, seed=0, weights="seed",
        training=BoardTraining(epochs=1, pretrain_epochs=1, batch_size=batch), deadline_s=1.0,
    )  # fmt: skip
    source = "" if graph.network.is_shipped else str(graph.network.folder)
    trainer = ProcessTrainer(config.shard, first=BATCHES * batch)
    report = _run(
        trainer, Job(model=encode_object(task, b""), node=config.id, network=source), config.memory_bytes
    )
    if isinstance(report, TrainingDone):
        took = AGENT_BYTES + report.peak_bytes + MARGIN_BYTES
        return f"{graph.name} takes {_mb(took)} with batches of {batch}"
    if report.failure == Failure.MEMORY:
        raise MemoryError(f"{graph.name} does not fit with batches of {batch}: {report.why}")
    if report.failure == Failure.DATA:
        return f"{graph.name} was not tried, as the images cannot be used"
    raise GraphError(f"{graph.name} cannot be trained: {report.why}")


def _run(trainer: ProcessTrainer, job: Job, budget_bytes: int) -> TrainingDone | Failed:
    trainer.begin(job, max(0, budget_bytes - AGENT_BYTES - MARGIN_BYTES))
    try:
        while True:
            select.select(trainer.fds, [], [])
            last: Report
            for last in trainer.reports():
                if isinstance(last, TrainingDone | Failed):
                    return last
                trainer.step()
    finally:
        trainer.stop()


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"


def _disk(config: OwnConfig) -> str:
    config.state.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.state).free
    if free < FREE_DISK_BYTES:
        raise OSError(f"{config.state}: {free / 2**20:.0f} MB free, {FREE_DISK_BYTES / 2**20:.0f} needed")
    with tempfile.TemporaryFile(dir=config.state) as file:
        file.write(b"?")
    for path in config.state.rglob("*"):
        # A link is none of the program's, leads anywhere, and is put aside by a run that needs its name.
        if not path.is_symlink() and not os.access(path, os.W_OK):  # such as what `sudo onboard run` has left
            name = os.fsencode(path).decode(errors="backslashreplace")
            raise OSError(f"{name}: this user may not write it; the user of the agent must own all of it")
    return f"{free / 2**30:.1f} GB free at {config.state}"
