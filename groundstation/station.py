"""The ground's end of one node's link, and what its board is asked.

A board can take a question and lose it: its disk is lost or damaged, or its training fails. It is then asked
again. Each asking is another object (`Task.asking`), so a board that counts the one before as done takes it
as new. It is durable before it is sent, so a ground that is killed continues with the same one. A forgotten
question is repeated at once the first time, a failed one after a pause; both then ever less often."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundstation.config import Node
from groundstation.store.store import Store
from onboard.config import GROUND
from onboard.link.recording import Recorder
from onboard.mission.health import Failure, Health, State
from onboard.mission.objects import MODEL
from onboard.monitor.status_socket import link_view
from onboard.runtime.endpoint import Endpoint, EndpointConfig, ground_limits
from onboard.wire.messages import digest
from onboard.wire.session import Session

FIRST_PAUSE_S = 10.0  # before the first repetition; it then doubles, up to the round's deadline
COUNTED = (
    "frames_sent", "bytes_sent", "frames_received", "bytes_received", "fragments_sent", "fragments_resent",
    "repairs_sent", "malformed", "bad_tags", "unknown_keys", "plain_dropped", "encrypted_dropped", "replays",
    "unproven", "hellos_sent", "hellos_received", "hellos_stale", "misaddressed", "orphans", "duplicates",
    "corrupt", "airtime_s",
)  # fmt: skip


@dataclass(slots=True)
class Question:
    """What one board is asked in round `number`: the object's digest, and whether the board has it."""

    number: int
    asking: int
    digest: bytes
    delivered: bool = False
    again_at: float = 0.0  # not asked again before

    def is_meant(self, health: Health) -> bool:
        """Whether the report is of a board that holds this question."""
        return (health.round, health.asking) == (self.number, self.asking & 0xFF)

    def is_forgotten(self, health: Health) -> bool:
        """Whether the report is of a board that took this question and has lost it."""
        is_without = health.state == State.IDLE or (
            health.state == State.FAILED and health.failure == Failure.DISK
        )
        return is_without and (self.delivered or self.is_meant(health))

    def may_be_repeated(self, now: float, deadline_s: float) -> bool:
        if now < self.again_at:
            return False
        self.again_at = now + pause_s(self.asking, deadline_s)
        return True


def pause_s(asking: int, deadline_s: float) -> float:
    return min(FIRST_PAUSE_S * 2.0 ** min(asking, 32), deadline_s)


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
        self.question: Question | None = None
        self.updates = {"updates_late": 0, "updates_refused": 0}
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

    def ask(self, number: int, payload: bytes, asking: int, now: float) -> None:
        """Offers a question of round `number` to the board, in place of an earlier one."""
        name = digest(MODEL, payload)
        self.withdraw(now, but=name)
        cut = self._store.fragment_bytes(self.node.id, name)
        self.session.offer(MODEL, payload, now, fragment_bytes=cut)
        if cut is None:  # so that a restart sends nothing again that the board holds
            self._store.set_fragment_size(self.node.id, name, self.session.fragment_bytes(name))
        again_at = self.question.again_at if self.question else 0.0
        self.question = Question(number, asking, name, again_at=again_at)

    def withdraw(self, now: float, but: bytes = b"") -> None:
        """Cancels all questions that are still being sent, but for one."""
        for name, kind in self.session.outgoing.items():
            if kind == MODEL and name != but:
                self.session.cancel(name, now)

    def count(self, now: float) -> None:
        """Stores the sum of this run's counters and those of earlier runs."""
        snapshot = self.session.snapshot(now)
        run = {name: getattr(snapshot, name) for name in COUNTED} | self.updates
        self._store.count(
            self.node.id, {name: value + self._earlier.get(name, 0) for name, value in run.items()}
        )

    def view(self, now: float) -> dict[str, Any]:
        names = {"node": self.node.name, "profile": self.node.link.name}
        return names | link_view(self.endpoint.pump, now) | self.updates

    def close(self, now: float) -> None:
        """Saves the counters and partial transfers, then closes the port."""
        try:
            self.count(now)
        finally:
            self.endpoint.pump.close(now)
