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
from onboard.learn.training import BoardTraining
from onboard.mission.health import Failure, Health, State
from onboard.mission.objects import MODEL, decode_task
from onboard.wire.messages import BadMessage, digest

FIRST_PAUSE_S = 10.0  # before the second time, then twice as long each time, up to the round's deadline


@dataclass(slots=True)
class Question:
    """What one board is asked: the object's digest, and whether the board has said that it holds it."""

    asking: int
    digest: bytes
    delivered: bool = False
    again_at: float = 0.0  # not asked again before


class Askings:
    """The questions of one round, or the final model's, by node."""

    def __init__(self, store: Store, stations: Mapping[int, Station]) -> None:
        self._store, self._stations = store, stations
        self._questions: dict[int, Question] = {}

    def clear(self) -> None:
        """Another round: nobody is asked anything."""
        self._questions.clear()

    def ask(self, node: int, payload: bytes, asking: int, now: float) -> None:
        """Puts a question on its way, in place of what the node was asked before."""
        session, name = self._stations[node].session, digest(MODEL, payload)
        for other, kind in session.outgoing.items():
            if kind == MODEL and other != name:
                session.cancel(other, now)
        cut = self._store.fragment_bytes(node, name)
        session.offer(MODEL, payload, now, fragment_bytes=cut)
        if cut is None:  # so that after a restart nothing that the board holds is sent again
            self._store.set_fragment_size(node, name, session.fragment_bytes(name))
        before = self._questions.get(node)
        self._questions[node] = Question(asking, name, again_at=before.again_at if before else 0.0)

    def training(self, number: int) -> BoardTraining | None:
        """How round `number` asked each board to train; None where no such round is stored."""
        model = self._store.asked(number)
        try:
            return None if model is None else decode_task(model)[0].training
        except BadMessage:  # a disk rots
            return None

    def was_asked(self, node: int, number: int) -> bool:
        """Whether round `number` asked the node; one that only merged what it sent did not."""
        return any(
            answer["node"] == node and answer["state"] != "merged" for answer in self._store.answers(number)
        )

    def withdraw(self, now: float) -> None:
        """Whoever is still being asked need not go on."""
        for station in self._stations.values():
            for name, kind in station.session.outgoing.items():
                if kind == MODEL:
                    station.session.cancel(name, now)

    def deliver(self, node: int, name: bytes) -> bool:
        """The node says that it holds an object; returns whether that is what it is asked."""
        question = self._questions.get(node)
        if question is None or question.digest != name:
            return False
        question.delivered = True
        return True

    def is_asked(self, node: int, name: bytes) -> bool:
        """Whether that object is what the node is asked."""
        question = self._questions.get(node)
        return question is not None and question.digest == name

    @property
    def delivered(self) -> int:
        """How many hold their question."""
        return sum(question.delivered for question in self._questions.values())

    def speaks_of(self, node: int, number: int, health: Health) -> bool:
        """Whether the health is of a board that holds what it is asked in round `number`."""
        question = self._questions.get(node)
        return question is not None and (health.round, health.asking) == (number, question.asking & 0xFF)

    def forgot(self, node: int, number: int, health: Health) -> bool:
        """Whether the health is of a board that took what it is asked and knows no more of it."""
        question = self._questions.get(node)
        is_without = health.state == State.IDLE or (
            health.state == State.FAILED and health.failure == Failure.DISK
        )
        if question is None or not is_without:
            return False
        return question.delivered or self.speaks_of(node, number, health)

    def may_ask_again(self, node: int, now: float, deadline_s: float) -> bool:
        """Whether the node may be asked again now; if so, the next time is later."""
        question = self._questions[node]
        if now < question.again_at:
            return False
        question.again_at = now + pause_s(question.asking, deadline_s)
        return True


def pause_s(asking: int, deadline_s: float) -> float:
    """How long after this asking the next one may be."""
    return min(FIRST_PAUSE_S * 2.0 ** min(asking, 32), deadline_s)
