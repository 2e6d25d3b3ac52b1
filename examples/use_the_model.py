"""Uses the model that a mission has deployed to a board, as another program on that board would.

python examples/use_the_model.py mission/boards/pi/state/deployed.bin
"""

from __future__ import annotations

import sys
from pathlib import Path

from onboard.codec.pack import unpack
from onboard.data.loading import load
from onboard.learn.federated.local import apply_delta
from onboard.learn.graph import InferGraph, prepare
from onboard.learn.scoring import evaluate
from onboard.mission.objects import decode_task


def main(path: Path) -> None:
    """Draws one digit that no board has seen, says what the model takes it for, and how often it is right."""
    task, packed = decode_task(path.read_bytes())
    graph = InferGraph.load(task.model)
    weights = graph.initial(task.seed)  # what travels is the difference from these
    weights = apply_delta(weights, unpack(packed, graph.layout).reconstruct())
    images = load("digits", part="test")
    for row in images.x[0, 0, ::2]:
        print("".join(" .:*#"[pixel // 52] for pixel in row))
    logits = graph.logits(weights, prepare(images.x[:1]))
    print(f"the model takes this for a {logits.argmax()}; it is a {images.y[0]}")
    *_, score = evaluate(graph, weights, images.x, images.y)
    print(f"{100 * score.value:.1f} % of {len(images)} test images are recognized")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
