"""What must be true of a besieged mission, by what its programs said and what the ground's database holds.

A board that logs `delivered` has heard that the ground holds its update durably, and forgets it. So the
update is in the database, or the ground has said that it came too late. A round ends at its deadline at the
latest if anybody answered, and else is asked once more; only time counts in which the ground serves and a
board runs, so that somebody could answer.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.claims.resilience.besieged import BOARDS, GROUND
from groundstation.config import load_mission
from groundstation.store.store import Store
from onboard.mission.objects import decode_update
from onboard.wire.messages import BadMessage


class MissionWitness:
    """Of one mission; `up_s` at each call: for how long its ground has served a board so far."""

    def __init__(self) -> None:
        self.acknowledged: set[tuple[str, int]] = set()  # board and round
        self.discarded: set[tuple[str, int]] = set()
        self.averaged: dict[int, set[str]] = {}
        self.closed: set[int] = set()
        self.round, self._opened_at_s = 0, 0.0
        self.longest_s, self.longest_round = 0.0, 0
        self.events: Counter[str] = Counter()  # warnings and errors, by program and name

    def hear(self, program: str, event: dict[str, Any], up_s: float) -> None:
        """One of the programs said something."""
        name, number = event.get("event"), event.get("round", 0)
        if event.get("level") in ("warning", "error"):
            self.events[f"{'ground' if program == GROUND else 'board'}: {name}"] += 1
        if program in BOARDS and name == "delivered":
            self.acknowledged.add((program, number))
        if program != GROUND:
            return
        if name == "update-discarded":
            self.discarded.add((event["node"], number))
        elif name == "round" and event["number"] > self.round:
            self.pass_time(up_s)
            self.round, self._opened_at_s = event["number"], up_s
        elif name == "closed":
            self.pass_time(up_s)
            self.closed.add(number)
            self.averaged[number] = set(event["answered"])

    def pass_time(self, up_s: float) -> None:
        """The round is open for so long now."""
        if self.round and self.round not in self.closed and up_s - self._opened_at_s > self.longest_s:
            self.longest_s, self.longest_round = up_s - self._opened_at_s, self.round

    def lost(self, folder: Path) -> list[str]:
        """Acknowledged updates that are nowhere, each in a line: reads the database of the mission, whose
        ground has ended."""
        mission = load_mission(folder)
        store = Store(mission.database)
        names = {node.id: node.name for node in mission.nodes}
        found = []
        closed = {row.number for row in store.rounds() if row.closed_at is not None}  # need no payload more
        try:
            stored = {
                (names[answer["node"]], row.number): answer["state"]
                for row in store.rounds()
                for answer in store.answers(row.number)
            }
            numbers = {name: node for node, name in names.items()}
            for board, number in sorted(self.acknowledged - self.discarded):
                state = stored.get((board, number))
                payload = store.payload(number, numbers[board])
                if state not in ("answered", "merged") or (payload is None and number not in closed):
                    found.append(f"{board}, round {number}: acknowledged, and stored as {state}")
                elif payload is not None and not _is_of(payload, numbers[board], number):
                    found.append(f"{board}, round {number}: what is stored is another object")
                elif number in self.averaged and board not in self.averaged[number]:
                    found.append(f"{board}, round {number}: stored, and left out of the average")
        finally:
            store.close()
        return found


def _is_of(payload: bytes, node: int, number: int) -> bool:
    try:
        update, _ = decode_update(payload)
    except BadMessage:
        return False
    return (update.node, update.round) == (node, number)
