"""Tiny networks of each kind of task, as an export writes them; torch makes them."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from groundstation.models.export import made
from groundstation.models.folder import write_network
from groundstation.models.from_torch import Authored
from groundstation.models.losses import Loss
from onboard.learn.objectives import Kind

IGNORE = 255
IMAGE, WIDTH, OUTPUTS = (3, 8, 8), 8, 3


@functools.cache
def tiny(kind: Kind, *, normalized: bool = False) -> Path:
    """Returns the folder of a tiny network, which is traced once a process. `normalized` as most people's
    are, by batches: what it answers in training is then not what it answers with its running statistics."""
    torch = pytest.importorskip("torch")
    nn, (channels, height, across) = torch.nn, IMAGE
    torch.manual_seed(0)
    dense = [nn.Flatten(), nn.Linear(WIDTH * height * across, OUTPUTS)]
    heads: dict[Kind, list[Any]] = {
        "classify": dense,
        "regress": dense,
        "segment": [nn.Conv2d(WIDTH, OUTPUTS, 3, padding=1)],
        "reconstruct": [nn.Conv2d(WIDTH, channels, 3, padding=1)],
    }
    norm = [nn.BatchNorm2d(WIDTH)] if normalized else []
    module = nn.Sequential(nn.Conv2d(channels, WIDTH, 3, padding=1), *norm, nn.ReLU(), *heads[kind])
    loss = Loss(kind=kind, ignore=IGNORE if kind == "segment" else None)
    network = made(Authored(module, IMAGE, OUTPUTS, loss), f"tiny-{kind}")
    folder = Path(tempfile.mkdtemp(prefix="tiny-network-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_network(folder / network.about.name, network.about, network.parts)
    return folder / network.about.name
