"""A small plan of a first round, and others that differ from it in some knobs."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from onboard.learn.training import BoardTraining, Plan

PLAN = Plan(
    training=BoardTraining(epochs=1, learning_rate=2e-3, bits_up=0.04, distortion=0.0),
    seed=5,
    round=1,
    node=2,
)


def changed(plan: Plan, **changes: Any) -> Plan:
    """The plan with other knobs, seed, round or node."""
    own = {key: changes.pop(key) for key in ("seed", "round", "node") if key in changes}
    return dataclasses.replace(plan, training=msgspec.structs.replace(plan.training, **changes), **own)
