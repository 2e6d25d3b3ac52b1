"""How much memory a step of training takes, by the sizes of the tensors that it holds at once."""

from __future__ import annotations

import onnx

from groundstation.models.rematerialize import Tensors, Timeline

MANY = 64  # images: of a few, the gradients of the last layers may be the most, and an image adds little


def image_bytes(model: onnx.ModelProto) -> int:
    """Returns what each further image of a large batch adds to the most that a graph's tensors take at once.
    onnxruntime's arena takes 10 to 15 % more (six networks, 16 to 32 images)."""
    return _peak(model, MANY + 1) - _peak(model, MANY)


def _peak(model: onnx.ModelProto, batch: int) -> int:
    tensors = Tensors(model, batch)
    return Timeline([tensors.step(node) for node in model.graph.node], tensors).peak
