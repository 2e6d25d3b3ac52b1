"""What each board is asked in the round that is open, whether it holds that, and when it is asked again.

A board can take a question and come to know no more of it: its disk was lost or is damaged, or its training
failed. It is then asked again. Each asking is another object (`Task.asking`), so that a board which counts
the one before as done hears it as new, and it is durable before it leaves, so that a ground that is killed
goes on with the same one. What was forgotten is asked again at once the first time, what failed after a
pause; both ever less often, as the reason may be a lasting one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from groundstation.station import Station
from groundstation.store.store import Store
from onboard.mission.health import Failure, Health, State
from onboard.mission.objects import MODEL
from onboard.wire.messages import digest

FIRST_PAUSE_S = 10.0  # before the second time, then twice as long each time, up to the round's deadline


@dataclass(slots=True)
class Question:
    """What one board is asked in round `number`, in its `asking`: the object's digest, and whether the board
    has said that it holds it."""

    number: int
    asking: int
    digest: bytes
    delivered: bool = False
    again_at: float = 0.0  # not asked again before

    def is_meant(self, health: Health) -> bool:
        """Whether the health is of a board that holds this."""
        return (health.round, health.asking) == (self.number, self.asking & 0xFF)

    def is_forgotten(self, health: Health) -> bool:
        """Whether the health is of a board that took this and knows no more of it."""
        is_without = health.state == State.IDLE or (
            health.state == State.FAILED and health.failure == Failure.DISK
        )
        return is_without and (self.delivered or self.is_meant(health))

    def may_be_repeated(self, now: float, deadline_s: float) -> bool:
        """Whether the node may be asked again now; if so, the next time is later."""
        if now < self.again_at:
            return False
        self.again_at = now + pause_s(self.asking, deadline_s)
        return True


class Askings:
    """The questions of one round, or the final model's, by node."""

    def __init__(self, store: Store, stations: Mapping[int, Station]) -> None:
        self._store, self._stations = store, stations
        self.questions: dict[int, Question] = {}

    def ask(self, node: int, number: int, payload: bytes, asking: int, now: float) -> None:
        """Puts a question on its way, in place of what the node was asked before."""
        session, name = self._stations[node].session, digest(MODEL, payload)
        self._withdraw(node, now, but=name)
        cut = self._store.fragment_bytes(node, name)
        session.offer(MODEL, payload, now, fragment_bytes=cut)
        if cut is None:  # so that after a restart nothing that the board holds is sent again
            self._store.set_fragment_size(node, name, session.fragment_bytes(name))
        before = self.questions.get(node)
        self.questions[node] = Question(number, asking, name, again_at=before.again_at if before else 0.0)

    def withdraw(self, now: float) -> None:
        """Whoever is still being asked need not go on."""
        for node in self._stations:
            self._withdraw(node, now)

    def _withdraw(self, node: int, now: float, but: bytes = b"") -> None:
        session = self._stations[node].session
        for name, kind in session.outgoing.items():
            if kind == MODEL and name != but:
                session.cancel(name, now)

    def find(self, node: int, name: bytes) -> Question | None:
        """What the node is asked, if it is that object."""
        question = self.questions.get(node)
        return question if question is not None and question.digest == name else None


def pause_s(asking: int, deadline_s: float) -> float:
    """How long after this asking the next one may be."""
    return min(FIRST_PAUSE_S * 2.0 ** min(asking, 32), deadline_s)
