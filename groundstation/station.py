"""The ground's end of one node's link."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from groundstation.config import Node
from groundstation.store.store import Store
from onboard.config import GROUND
from onboard.link.recording import Recorder
from onboard.monitor.status_socket import link_view
from onboard.runtime.endpoint import Endpoint, EndpointConfig, ground_limits
from onboard.wire.session import Session

COUNTED = (
    "frames_sent", "bytes_sent", "frames_received", "bytes_received", "fragments_sent", "fragments_resent",
    "repairs_sent", "malformed", "bad_tags", "unknown_keys", "plain_dropped", "encrypted_dropped", "replays",
    "unproven", "hellos_sent", "hellos_received", "hellos_stale", "misaddressed", "orphans", "duplicates",
    "corrupt", "airtime_s",
)  # fmt: skip


class Station:
    """The link with one node. model_bytes: size of the float32 model, which limits what the board may send.

    Raises ConfigError for an unusable contact plan, BadKey, StoreError, OSError."""

    def __init__(
        self, node: Node, store: Store, folder: Path, now: float, recorder: Recorder | None = None,
        model_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.node = node
        self._store = store
        config = EndpointConfig(
            node=GROUND, end=node, folder=folder, spool=folder / "spool" / node.name,
            limits=ground_limits(node, model_bytes), label={"node": node.name}, recorder=recorder,
        )  # fmt: skip
        self.late_updates = 0
        self.refused_updates = 0
        self.endpoint = Endpoint(config, store.enter_node(node.id, node.name), store.taken(node.id), now)
        self._earlier = store.counters(node.id)

    @property
    def session(self) -> Session:
        return self.endpoint.session

    def renew(self, now: float) -> None:
        """Begins the link again, as a restart would; offers have to be repeated."""
        with contextlib.suppress(Exception):  # nothing is sure to work on a failed link
            self.count(now)
        entered = self._store.enter_node(self.node.id, self.node.name)
        self.endpoint.renew(entered, self._store.taken(self.node.id), now)
        self._earlier = self._store.counters(self.node.id)

    def count(self, now: float) -> None:
        """Stores the sum of this run's counters and those of earlier runs."""
        snapshot = self.session.snapshot(now)
        run = {name: getattr(snapshot, name) for name in COUNTED}
        run |= {"updates_late": self.late_updates, "updates_refused": self.refused_updates}
        self._store.count(
            self.node.id, {name: value + self._earlier.get(name, 0) for name, value in run.items()}
        )

    def view(self, now: float) -> dict[str, Any]:
        return {
            "node": self.node.name,
            "profile": self.node.link.name,
            **link_view(self.endpoint.pump, now),
            "updates_late": self.late_updates,
            "updates_refused": self.refused_updates,
        }

    def close(self, now: float) -> None:
        """Saves the counters and partial transfers, then closes the port."""
        try:
            self.count(now)
        finally:
            self.endpoint.pump.close(now)
