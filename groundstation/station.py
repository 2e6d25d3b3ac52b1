"""One node as the ground sees it: its port, its session, its spool, and what is under way on its link."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from groundstation.config import Node
from groundstation.store.store import Store
from onboard.board import admission
from onboard.config import GROUND
from onboard.link import Spool, opener, wire_bytes
from onboard.link.event_log import log_link_event
from onboard.link.limits import limits_for
from onboard.link.pump import OfPort, Pump
from onboard.link.recorder import Recorder
from onboard.monitor.views import link_view
from onboard.runtime.contact_plan import kept_plan
from onboard.storage.keys import load_keys
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Event
from onboard.wire.session import Session

COUNTED = (
    "frames_sent", "bytes_sent", "frames_received", "bytes_received", "fragments_sent", "fragments_resent",
    "repairs_sent", "malformed", "bad_tags", "unknown_keys", "plain_dropped", "encrypted_dropped", "replays",
    "unproven", "hellos_sent", "hellos_received", "hellos_stale", "misaddressed", "orphans", "duplicates",
    "corrupt", "airtime_s",
)  # fmt: skip


class Station:
    """Owns the pump of one node. The port is opened by the first poll; one that is missing is waited for.

    model_bytes: of the mission's model in float32, which bounds what is taken of its board.
    Raises ConfigError for a contact plan that cannot be used.
    """

    def __init__(
        self,
        node: Node,
        store: Store,
        folder: Path,
        now: float,
        wall: Callable[[], float] = time.time,
        recorder: Recorder | None = None,
        model_bytes: int = 0,
    ) -> None:
        self.node = node
        self._wall = wall
        self._contacts = kept_plan(folder, node.contacts_path, node.id, GROUND)
        self._store, self._folder, self._recorder = store, folder, recorder
        self._limits = admission.for_updates(
            limits_for(node.port, node.bytes_per_contact, node.bytes_per_day), model_bytes
        )
        self.late_updates = 0
        self.refused_updates = 0
        self.session, self.pump = self._link(now)
        self._earlier = store.counters(node.id)

    def _link(self, now: float) -> tuple[Session, Pump]:
        """This end of the link, under an epoch that no frame of its was sealed in."""
        node, store = self.node, self._store
        key = load_keys(node.key_path)
        entered = store.enter_node(node.id, node.name)
        spool = Spool(self._folder / "spool" / node.name, self._limits.max_incoming_bytes)
        spool.retain(store.taken(node.id))  # the store is the effect
        session = Session(
            Identity(GROUND, node.id, primary=True),
            Medium(node.link, wire_bytes=partial(wire_bytes, node.port)),
            Security(key, nonce=os.urandom, encrypted=node.encrypt),
            SessionState(epoch=entered.epoch, done=spool.finished(), spent=entered.spent),
            limits=self._limits,
            now=now,
        )
        tap = None
        if self._recorder is not None:
            tap = self._recorder.link(
                node.port, node.link, local=GROUND, peer=node.id, encrypted=node.encrypt
            )
        return session, Pump(opener(node.port, node.link, tap), session, spool)

    def renew(self, now: float) -> None:
        """Begins the link again, as a restart of the daemon does. What was offered on it is to be offered
        again. Raises StoreError, and what making a station raises."""
        with contextlib.suppress(Exception):  # of a link that failed, nothing is sure to work
            self.count(now)
        with contextlib.suppress(Exception):
            self.pump.close(now)
        self.session, self.pump = self._link(now)
        self._earlier = self._store.counters(self.node.id)

    def poll(self, now: float) -> list[Event]:
        """Moves the link on; returns what the mission must know."""
        if self._contacts is not None:
            self._contacts.keep(self.session, now, self._wall())
        events: list[Event] = []
        for event in self.pump.poll(now):
            log_link_event(event, node=self.node.name)
            if not isinstance(event, OfPort):
                events.append(event)
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
        return {
            "node": self.node.name,
            "profile": self.node.link.name,
            **link_view(self.pump, now),
            "updates_late": self.late_updates,
            "updates_refused": self.refused_updates,
        }

    def close(self, now: float) -> None:
        """Saves the counters and what is half received, then closes the port."""
        try:
            self.count(now)
        finally:
            self.pump.close(now)
