"""A round as it was stored becomes the round that is played: by the boards and the rules that there are now.

Between two starts of the daemon an operator may have taken a board out of the mission, or asked for another
quorum, staleness or deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundstation.config import Mission
from groundstation.store import RoundRow
from onboard.learn.federated import Round
from onboard.wire.messages import BadMessage, decode_task

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


def asks_for(model: bytes, number: int) -> bool:
    """Whether these bytes are an object that a board can read, and asks it for round `number`."""
    try:
        return decode_task(model)[0].round == number
    except BadMessage:
        return False
