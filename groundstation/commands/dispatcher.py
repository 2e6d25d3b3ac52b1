"""Sends queued commands to the boards, and stores their results.

A state is durable before anything follows from it, so a daemon that is killed continues where it was. A
command keeps its id, and the board runs it once however often it is sent. A board's next command leaves once
the one before is on its disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from groundstation.commands.queue import CommandInbox
from groundstation.commands.table import CommandRow, CommandState, CommandTable
from groundstation.station import Station
from groundstation.store.store import Store
from onboard.console.log import say
from onboard.mission.commands import PRIORITY, CommandResult, decode_body, encode_body
from onboard.mission.objects import COMMAND, RESULT
from onboard.wire.events import Arrived, Cancelled, Delivered, Event
from onboard.wire.messages import BadMessage, Reason, digest

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5  # at the queue, expiries and contacts
WAITS_FOR = {
    CommandState.QUEUED: "it was not sent",
    CommandState.SENT: "the board did not acknowledge it",
    CommandState.ACKNOWLEDGED: "the board has it, and its result did not come",
}


class CommandDispatcher:
    """The commands of the mission in `folder`. `wall` is the ground's clock in Unix seconds."""

    def __init__(
        self, folder: Path, store: Store, stations: Mapping[int, Station], wall: Callable[[], float]
    ) -> None:
        self._inbox, self._table = CommandInbox(folder), CommandTable(store)
        self._stations, self._wall = stations, wall
        self._offered: dict[bytes, bytes] = {}  # digest of an object in transfer: its command's id
        self._due_s = 0.0

    def step(self, now: float) -> None:
        """Queues requests, expires commands, and sends what may be sent. Raises StoreError, and then resumes
        from the store at the next call."""
        if now < self._due_s:
            return
        self._due_s = now + LOOK_EVERY_S
        requests = self._inbox.requests()
        for row in self._table.queue(requests):
            say(log, "command-queued", **self._told(row))
        for request in requests:
            self._inbox.remove(request)
        nodes = set[int]()
        for row in self._table.unfinished():
            station = self._stations.get(row.node)
            if self._wall() >= row.expires_at:
                why = WAITS_FOR[row.state]
                self._table.move(row, CommandState.EXPIRED, self._wall(), why=why)
                if station is not None:
                    station.session.cancel(digest(COMMAND, encode_body(row.command)), now)
                say(log, "command-expired", level=logging.WARNING, **self._told(row), why=why)
            elif station is not None and row.node not in nodes and row.state is not CommandState.ACKNOWLEDGED:
                nodes.add(row.node)
                self._send(row, station, now)

    def _send(self, row: CommandRow, station: Station, now: float) -> None:
        if row.state is CommandState.QUEUED:
            presence = station.session.presence
            if not station.session.in_contact(now) or presence.alone or presence.in_doubt:
                return  # no frame would leave now for a board that is known to be there
            self._table.move(row, CommandState.SENT, self._wall())
            say(log, "command-sent", **self._told(row))
        name = station.session.offer(COMMAND, encode_body(row.command), now, priority=PRIORITY)
        self._offered[name] = row.id

    def handle(self, station: Station, event: Event, now: float) -> bool:
        """Takes an event about a command; returns whether it was one. Raises StoreError."""
        if isinstance(event, Arrived) and event.kind == RESULT:
            self._take_result(station, event, now)
            return True
        if not isinstance(event, Delivered | Cancelled) or event.digest not in self._offered:
            return False
        row = self._table.find(self._offered[event.digest])
        if row is None or row.state is not CommandState.SENT:
            pass  # it has expired, or its result arrived first
        elif isinstance(event, Delivered):
            self._table.move(row, CommandState.ACKNOWLEDGED, self._wall())
            say(log, "command-acknowledged", **self._told(row))
        else:
            known = [reason.name.lower() for reason in Reason if reason == event.reason]
            self._refuse(row, f"the board did not take it: {', '.join(known) or event.reason}")
        del self._offered[event.digest]
        self._due_s = now  # for the next one
        return True

    def _refuse(self, row: CommandRow, why: str) -> None:
        self._table.move(row, CommandState.REFUSED, self._wall(), why=why)
        say(log, "command-refused", level=logging.WARNING, **self._told(row), why=why)

    def _take_result(self, station: Station, arrived: Arrived, now: float) -> None:
        """Checks a result, makes it durable, and then acknowledges it."""
        try:
            result = decode_body(arrived.payload, CommandResult)
        except BadMessage as error:
            say(log, "bad-message", level=logging.WARNING, node=station.node.name, why=str(error))
            station.session.refuse(arrived.digest, Reason.REFUSED, now)
            return
        row = self._table.find(result.command)
        if row is None or row.node != station.node.id:
            say(log, "result-discarded", node=station.node.name, id=result.command.hex())
        elif row.state not in (CommandState.DONE, CommandState.REFUSED):
            if result.outcome == "done":
                self._table.move(row, CommandState.DONE, self._wall(), why=result.why, result=result.values)
                say(log, "command-done", **self._told(row), result=result.values)
            else:
                self._refuse(row, result.why)
        station.session.accept(arrived.digest, now)
        self._due_s = now

    def _told(self, row: CommandRow) -> dict[str, Any]:
        station = self._stations.get(row.node)
        name = station.node.name if station is not None else f"node {row.node}"
        return {"node": name, "id": row.id.hex(), "name": row.name}
