"""Takes steps of training when told to: `python -m benchmarks.ends.step_end onnxruntime|torch NETWORK BATCH`.

Each line of standard input, a number of steps, is answered with the CPU seconds of the fastest one. What is
not named is not imported, so that the process has the memory that its kind of training needs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from onboard.learn.networks import Network

SEED = 1


def main(kind: str, name: str, batch: int) -> None:
    file = Network.load(name).file
    draw = np.random.default_rng(SEED)
    x = draw.random((batch, *file.input), dtype=np.float32)
    y = draw.integers(0, file.outputs, (batch, *(file.input[1:] if file.task == "segment" else ())))
    step = by_graph(name, x, y) if kind == "onnxruntime" else by_torch(name, x, y)
    for line in sys.stdin:
        spent_s = list[float]()
        for _ in range(int(line)):
            began_s = time.process_time()
            step()
            spent_s.append(time.process_time() - began_s)
        print(json.dumps(min(spent_s)), flush=True)


def by_graph(name: str, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    from onboard.learn.graph import TrainGraph

    graph = TrainGraph.load(name)
    parameters = graph.initial(SEED)
    return lambda: graph.step(parameters, x, y)


def by_torch(name: str, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    import torch

    from groundstation.models.__main__ import authored

    torch.set_num_threads(1)
    network = authored(name)
    module = network.module.train()
    images, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> None:
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(images), labels).backward()

    return step


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
