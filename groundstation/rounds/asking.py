"""What each board is asked in the open round, whether it holds that, and when it is asked again.

A board can take a question and lose it: its disk is lost or damaged, or its training fails. It is then asked
again. Each asking is another object (`Task.asking`), so a board that counts the one before as done takes it
as new. It is durable before it is sent, so a ground that is killed continues with the same one. A forgotten
question is repeated at once the first time, a failed one after a pause; both then ever less often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from groundstation.station import Station
from groundstation.store.store import Store
from onboard.mission.health import Failure, Health, State
from onboard.mission.objects import MODEL
from onboard.wire.messages import digest

FIRST_PAUSE_S = 10.0  # before the first repetition; it then doubles, up to the round's deadline


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


class Askings:
    """The questions of one round, or of the final model, by node."""

    def __init__(self, store: Store, stations: Mapping[int, Station]) -> None:
        self._store, self._stations = store, stations
        self.questions: dict[int, Question] = {}

    def ask(self, node: int, number: int, payload: bytes, asking: int, now: float) -> None:
        """Offers a question to a node, in place of an earlier one."""
        session, name = self._stations[node].session, digest(MODEL, payload)
        self._withdraw(node, now, but=name)
        cut = self._store.fragment_bytes(node, name)
        session.offer(MODEL, payload, now, fragment_bytes=cut)
        if cut is None:  # so that a restart sends nothing again that the board holds
            self._store.set_fragment_size(node, name, session.fragment_bytes(name))
        before = self.questions.get(node)
        self.questions[node] = Question(number, asking, name, again_at=before.again_at if before else 0.0)

    def withdraw(self, now: float) -> None:
        """Cancels all questions that are still being sent."""
        for node in self._stations:
            self._withdraw(node, now)

    def _withdraw(self, node: int, now: float, but: bytes = b"") -> None:
        session = self._stations[node].session
        for name, kind in session.outgoing.items():
            if kind == MODEL and name != but:
                session.cancel(name, now)


def pause_s(asking: int, deadline_s: float) -> float:
    return min(FIRST_PAUSE_S * 2.0 ** min(asking, 32), deadline_s)
