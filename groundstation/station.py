"""One node as the ground sees it: its port, its session, its spool, and what is under way on its link."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from onboard.link.pump import PortDown, PortUp, Pump, SpoolFull

from groundstation.config import Node
from groundstation.store import Store
from onboard.carrier import GROUND, limits_for, link_view
from onboard.keys import load_key
from onboard.link import Spool, open_port, wire_bytes
from onboard.log import say
from onboard.wire.events import Event, PeerHeard, PeerSilent
from onboard.wire.session import Session

log = logging.getLogger(__name__)

SPOOL_BYTES = 256 * 2**20
COUNTED = (
    "frames_sent", "bytes_sent", "frames_received", "bytes_received", "fragments_sent", "fragments_resent",
    "malformed", "bad_tags", "replays", "misaddressed", "orphans", "duplicates", "corrupt", "airtime_s",
)  # fmt: skip


class Station:
    """Owns the pump of one node. The port is opened by the first poll; one that is missing is waited for."""

    def __init__(self, node: Node, store: Store, folder: Path, now: float) -> None:
        self.node = node
        key = load_key(node.key_path)
        entered = store.enter_node(node.id, node.name)
        spool = Spool(folder / "spool" / node.name, SPOOL_BYTES)
        self.session = Session(
            node=GROUND,
            peer=node.id,
            key=key,
            link=node.link,
            master=True,
            epoch=entered.epoch,
            floor=entered.floor,
            done=spool.finished(),
            wire_bytes=partial(wire_bytes, node.port),
            now=now,
            limits=limits_for(node.port),
        )
        self.pump = Pump(lambda: open_port(node.port, node.link), self.session, spool)
        self._store = store
        self._earlier = store.counters(node.id)
        self.late_updates = 0
        self.refused_updates = 0

    def poll(self, now: float) -> list[Event]:
        """Moves the link on; returns what the mission must know."""
        events = self.pump.poll(now)
        for event in events:
            self._tell_of(event)
        return events

    def count(self, now: float) -> None:
        """Adds this run's counters to those of earlier runs, in the database."""
        snapshot = self.session.snapshot(now)
        run = {name: getattr(snapshot, name) for name in COUNTED}
        run |= {"updates_late": self.late_updates, "updates_refused": self.refused_updates}
        self._store.count(
            self.node.id, {name: value + self._earlier.get(name, 0) for name, value in run.items()}
        )

    def view(self, now: float) -> dict[str, Any]:
        """The link's state for a live view."""
        return {"node": self.node.name, **link_view(self.session.snapshot(now))}

    def close(self, now: float) -> None:
        """Saves the counters and what is half received, then closes the port."""
        self.count(now)
        self.pump.close(now)

    def _tell_of(self, event: object) -> None:
        name = self.node.name
        if isinstance(event, PortDown):
            say(log, "port-lost", level=logging.ERROR, node=name, port=event.url, why=event.reason)
        elif isinstance(event, PortUp):
            say(log, "port-open", node=name, port=event.url)
        elif isinstance(event, SpoolFull):
            say(log, "disk-full", level=logging.ERROR, node=name, path=str(event.path), why=str(event.error))
        elif isinstance(event, PeerHeard):
            say(log, "in-sight", node=name)
        elif isinstance(event, PeerSilent):
            say(log, "out-of-sight", node=name)
