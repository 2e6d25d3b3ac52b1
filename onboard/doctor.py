"""Checks what a run needs, one finding each, so that a board is right before it leaves the bench."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onboard.carrier import GROUND, local_images
from onboard.config import ConfigError, NodeConfig
from onboard.contacts import ContactPlan
from onboard.keys import BadKey, load_keys
from onboard.learn.graph import GraphError, TrainGraph, shipped
from onboard.link import open_port
from onboard.wire.contacts import Contacts

FREE_DISK_BYTES = 64 * 2**20  # spool, two models and a checkpoint of LeNet-5 take 12 MB; with room to grow


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it will do, and what was seen."""

    what: str
    ok: bool
    says: str


def examine(config: NodeConfig) -> list[Finding]:
    """Looks at everything; nothing is sent and nothing is changed but the port, opened once and closed."""
    checks: list[tuple[str, Callable[[NodeConfig], str]]] = [
        ("python", _python),
        ("key", _key),
        ("port", _port),
        ("contacts", _contacts),
        ("model", _model),
        ("data", _data),
        ("memory", _memory),
        ("disk", _disk),
    ]
    findings = []
    for what, look in checks:
        try:
            findings.append(Finding(what, True, look(config)))
        except (OSError, ValueError) as error:
            findings.append(Finding(what, False, str(error)))
    return findings


def _python(_: NodeConfig) -> str:
    import numpy

    return f"Python {sys.version.split()[0]}, numpy {numpy.__version__}"


def _key(config: NodeConfig) -> str:
    load_keys(config.key_path)
    if config.key_path.stat().st_mode & 0o077:
        raise BadKey(f"{config.key_path}: others may read this key; chmod 600 {config.key_path}")
    return f"{config.key_path}{'; frames are encrypted' if config.encrypt else ''}"


def _port(config: NodeConfig) -> str:
    port = open_port(config.port, config.link)
    port.close()
    return f"{config.port} opens; {config.link.title}"


def _contacts(config: NodeConfig) -> str:
    if config.contacts_path is None:
        return "no plan: the link is always up"
    clock_s = time.time()
    plan = Contacts(ContactPlan(config.contacts_path, config.id, GROUND).windows(clock_s))
    if plan.rises_at(0.0) == math.inf:
        raise ConfigError(f"{config.contacts_path}: contact: all are over by the clock of this computer")
    return "in contact" if plan.is_up(0.0) else f"the next one begins in {plan.rises_at(0.0):.0f} s"


def _model(config: NodeConfig) -> str:
    try:
        graphs = [TrainGraph.load(name) for name in shipped()]
    except GraphError as error:
        raise GraphError(f"{error}; the board cannot train") from None
    return f"can train {', '.join(graph.name for graph in graphs)}"


def _data(config: NodeConfig) -> str:
    images = local_images(config)
    return f"{len(images)} images of {images.shape} in {config.data_source}"


def _memory(config: NodeConfig) -> str:
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if available < config.memory_bytes:
        raise ValueError(f"{_mb(available)} are free, the budget is {_mb(config.memory_bytes)}")
    return f"{_mb(config.memory_bytes)} of {_mb(available)} that are free"


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"


def _disk(config: NodeConfig) -> str:
    config.state.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.state).free
    if free < FREE_DISK_BYTES:
        raise OSError(f"{config.state}: {free / 2**20:.0f} MB free, {FREE_DISK_BYTES / 2**20:.0f} needed")
    return f"{free / 2**30:.1f} GB free at {config.state}"
