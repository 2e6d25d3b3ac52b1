"""A round as it was stored becomes the round that is played: by the boards and the rules that there are now.

Between two starts of the daemon an operator may have taken a board out of the mission, or asked for another
quorum, staleness or deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from groundstation.config import Mission
from groundstation.store.store import RoundRow, Store
from onboard.console.log import say
from onboard.learn.federated.rounds import Round
from onboard.mission.objects import Task, decode_task
from onboard.mission.server import Server
from onboard.wire.messages import BadMessage

log = logging.getLogger(__name__)

LOST = ("failed", "refused", "lost")
"""States of an answer that nobody waits for, until its board is asked again."""


def restored(row: RoundRow, answers: Sequence[Mapping[str, Any]], mission: Mission, now: float) -> Round:
    """The open round in `row`, with its rows of answers, of boards that the mission has; `now` on the links'
    clock. Raises ValueError where it has none of those that were asked."""
    rules, nodes = mission.rules, {node.id for node in mission.nodes}
    states = {answer["node"]: answer["state"] for answer in answers if answer["node"] in nodes}
    merged = {node for node, state in states.items() if state == "merged"}
    asked = frozenset(states) - merged
    # Never more than a round has, whatever is stored: by another deadline, or by a disk that rots.
    left_s = rules.deadline_s if row.left_s is None else min(max(row.left_s, 0.0), rules.deadline_s)
    return Round(
        row.number,
        asked=asked,
        quorum=min(mission.quorum, len(asked)),
        deadline_s=now + left_s,
        answered={node for node, state in states.items() if state == "answered"},
        lost={node for node, state in states.items() if state in LOST},
        merges=rules.staleness is not None,
        merged=merged,
    )


def task_of(model: bytes | None) -> tuple[Task, bytes] | None:
    """The task and the packed weights in the object that a round sent, if a board can read it: a disk
    rots."""
    try:
        task, packed = decode_task(model or b"")
    except BadMessage:
        return None
    return task, bytes(packed)


def accuracies(store: Store, server: Server) -> list[float]:
    """Of the rounds that are closed, the last of which has left a model to build on. One that has not, as its
    model was lost, is opened again. Raises StoreError."""
    closed = [row for row in store.rounds() if row.closed_at is not None]
    while closed:
        number = closed[-1].number
        why = _unusable(server, store.model(number))
        if not why:
            break
        sent = task_of(store.asked(number + 1))
        if sent and not _unusable(server, sent[1]):  # by the round after it, to every board
            store.put_model(number, sent[1])
            break
        store.reopen(number)
        say(log, "round-reopened", level=logging.WARNING, round=number, why=why)
        closed.pop()
    return [row.accuracy or 0.0 for row in closed]


def _unusable(server: Server, packed: bytes | None) -> str:
    """Why nothing can be built on these weights; nothing if something can."""
    if packed is None:
        return "its model is not there"
    try:
        weights = server.weights(packed)
    except ValueError as error:
        return f"its model cannot be read: {error}"
    return "" if all(np.isfinite(each).all() for each in weights.values()) else "its model is not finite"
