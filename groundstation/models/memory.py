"""How much memory a step of training takes, by the sizes of the tensors that it holds at once."""

from __future__ import annotations

import onnx

from groundstation.models.rematerialize import Tensors, Timeline


def image_bytes(model: onnx.ModelProto) -> int:
    """Returns what each further image of a batch adds to the most that a graph's tensors take at once."""
    return _peak(model, 3) - _peak(model, 2)


def _peak(model: onnx.ModelProto, batch: int) -> int:
    tensors = Tensors(model, batch)
    return Timeline([tensors.step(node) for node in model.graph.node], tensors).peak
