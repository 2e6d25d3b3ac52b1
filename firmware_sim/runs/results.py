"""A step's result as a line of JSON, where scores are called by their metric: "accuracy", "node_mean_iou"."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeVar

import msgspec

from onboard.learn.objectives import Metric

R = TypeVar("R")


def line_of(result: Any, metric: Metric) -> str:
    """Returns a result, a dataclass whose scores are of `metric`, as a JSON object."""
    return json.dumps({_key(name, metric): value for name, value in asdict(result).items()})


def result_of(line: bytes, kind: type[R], metric: Metric) -> R:
    """Reads what `line_of` wrote. Raises msgspec.DecodeError."""
    names = {_key(field.name, metric): field.name for field in msgspec.inspect.type_info(kind).fields}  # type: ignore[attr-defined]
    told = msgspec.json.decode(line, type=dict[str, Any])
    return msgspec.convert({names.get(key, key): value for key, value in told.items()}, kind)


def _key(field: str, metric: Metric) -> str:
    keys = {"score": metric.key, "ground_score": f"ground_{metric.key}"}
    several = "accuracies" if metric.key == "accuracy" else metric.key
    return keys.get(field, f"node_{several}" if field == "node_scores" else field)
