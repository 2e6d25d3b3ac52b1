"""A ring's run from its wishes to its files: data and model in, epochs one by one out.

epochs.jsonl    a line for every epoch
ring.png        accuracy against bytes and epochs, and how far the models are apart
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path

from firmware_sim.fleet_split import dirichlet, iid
from firmware_sim.ring import Ring, RingError, Settings
from firmware_sim.ring_result import EpochResult, Moment
from onboard import data
from onboard.data import Images
from onboard.learn.graph import InferGraph, TrainGraph

EPOCHS, PICTURE = "epochs.jsonl", "ring.png"


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a run was asked for. `images`: of each node, at most; `alpha`: of the Dirichlet split, None for
    shares that are alike; `node_images`: test images that each node's own model is tried on; `out`: folder
    for results, None to keep none."""

    settings: Settings
    data: str = "mnist"
    data_folder: Path | None = None
    images: int = 1000
    alpha: float | None = None
    node_images: int = 500
    out: Path | None = None


class Run:
    """A ring with its data, and the epochs that are over.

    Raises DataError, GraphError, RingError, OSError.
    """

    def __init__(self, wishes: Wishes) -> None:
        settings = wishes.settings
        train, infer = TrainGraph.load(settings.model), InferGraph.load(settings.model)
        shares, test = images_of(wishes, train)
        self.parameters = train.layout.parameters
        self.results: list[EpochResult] = []
        self._ring = Ring(settings, shares, test, train, infer, wishes.node_images)
        self._out = wishes.out
        if self._out is not None:
            self._out.mkdir(parents=True, exist_ok=True)
            (self._out / EPOCHS).write_bytes(b"")

    def play(self) -> Generator[Moment | EpochResult, None, None]:
        """Plays all epochs; each is stored before it is told."""
        for seen in self._ring.play():
            if isinstance(seen, EpochResult):
                self.results.append(seen)
                if self._out is not None:
                    with (self._out / EPOCHS).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(seen)) + "\n")
            yield seen


def images_of(wishes: Wishes, graph: TrainGraph) -> tuple[list[Images], Images]:
    """The images of each node, and those to test on. Raises DataError, RingError."""
    whole, test = (
        data.load(wishes.data, graph.input_shape, folder=wishes.data_folder, part=part, classes=graph.classes)
        for part in ("train", "test")
    )
    nodes, seed = wishes.settings.nodes, wishes.settings.seed
    try:
        rows = (
            iid(whole.y, nodes, wishes.images, seed)
            if wishes.alpha is None
            else dirichlet(whole.y, len(whole.classes), nodes, wishes.images, wishes.alpha, seed)
        )
    except ValueError as error:
        raise RingError(str(error)) from None
    return [whole.take(share) for share in rows], test
