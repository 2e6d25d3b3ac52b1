"""One node without a link: it trains on its images and packs what it has learned for the radio.

    python examples/one_node.py

This is a board's share of one round. The rest of an agent decides when a step may run, and sends the bytes.
"""

from __future__ import annotations

import numpy as np

from onboard.codec.pack import pack
from onboard.data.loading import load
from onboard.learn.federated.local import LocalTraining
from onboard.learn.graph import TrainGraph
from onboard.learn.training import BoardTraining, Plan


def main() -> None:
    """Prints the loss of every epoch, and how small the update is."""
    graph = TrainGraph.load("lenet5")
    images = load("digits", part="train").take(np.arange(200))
    weights = graph.initial(seed=7)  # every node draws the same from the mission's seed
    knobs = BoardTraining(epochs=2, pretrain_epochs=2, batch_size=20, bits_up=0.1, distortion=0.0)
    plan = Plan(training=knobs, seed=7, round=1, node=1)
    training = LocalTraining(graph, weights, weights, images.x, images.y, plan)
    for step in training.steps():  # a generator: whoever calls it decides when the next step runs
        if step.ends_epoch:
            print(f"epoch {step.epoch}: loss {step.loss:.2f}")
    update = pack(training.result())
    plain_bytes = 4 * sum(array.size for array in weights.values())
    print(f"{len(update)} bytes in place of {plain_bytes}")


if __name__ == "__main__":
    main()
