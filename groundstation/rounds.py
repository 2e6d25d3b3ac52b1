"""A mission's rounds, read top to bottom: ask K of N, take what arrives, average, quantize, judge, go on.

`life` is a generator: it yields wherever the links may want service, and goes on when called again. All it
decides is in the store before it acts, so a daemon that is killed goes on with the same round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from groundstation.config import Mission
from groundstation.station import Station
from groundstation.store import Store, StoreError
from onboard.data import Images
from onboard.learn.federated import Answer, PartialAverage, Round, Verdict, choose, finished
from onboard.learn.graph import InferGraph, TrainGraph, evaluate
from onboard.log import say
from onboard.server import BadUpdate, Server
from onboard.wire.events import Arrived, Cancelled, Delivered, Event, Message, Rekeyed, Spent
from onboard.wire.health import State, decode_health, failure_name
from onboard.wire.messages import MODEL, UPDATE, BadMessage, Reason, digest

log = logging.getLogger(__name__)


class Rounds:
    """The mission between its stations and its store. `wall` is the ground's clock in Unix seconds."""

    def __init__(
        self,
        mission: Mission,
        mission_id: bytes,
        store: Store,
        stations: Mapping[int, Station],
        train: TrainGraph,
        infer: InferGraph,
        test: Images,
        wall: Callable[[], float],
    ) -> None:
        self.mission = mission
        self.number = 0
        self.finished = False
        rules = mission.rules
        self._server = Server(
            mission=mission_id, model=rules.model, seed=rules.seed, deadline_s=rules.deadline_s,
            training=mission.train, graph=train, staleness=rules.staleness,
        )  # fmt: skip
        self._store = store
        self._stations = stations
        self._infer = infer
        self._test = test
        self._wall = wall
        self._now = 0.0
        self._round: Round | None = None
        self._payload = b""  # the object that is going out, and its digest
        self._offered = b""
        self._delivered: set[int] = set()
        self._life = self.life()

    # what the links say

    def hear(self, station: Station, event: Event, now: float) -> None:
        """Takes one event of one node's link. Raises StoreError; the event may then be told again."""
        node = station.node.id
        if isinstance(event, Arrived):
            self._take(station, event, now)
        elif isinstance(event, Delivered) and event.digest == self._offered:
            self._delivered.add(node)
            if node in self._waiting():  # a message of failure overtakes the DONE of what cannot be trained
                self._store.mark(self.number, node, "delivered", self._wall())
        elif isinstance(event, Cancelled):
            say(
                log, "refused-by-board", level=logging.WARNING, node=station.node.name,
                object=event.digest.hex(), why=event.reason,
            )  # fmt: skip
            self._give_up(station, "refused")
        elif isinstance(event, Rekeyed):
            self._store.rekey(node, event.salt)
            station.session.rekey(event.salt)
            say(log, "rekeyed", node=station.node.name)
        elif isinstance(event, Spent):
            self._store.spend(node, event)
        elif isinstance(event, Message):
            self._hear_health(station, event, now)

    def _take(self, station: Station, arrived: Arrived, now: float) -> None:
        """An update: checked, stored with the replay floor in one barrier, then acknowledged."""
        name, session = station.node.name, station.session
        try:
            update, _ = self._server.open(arrived.kind, arrived.payload, station.node.id, self.number)
        except BadUpdate as error:
            say(log, "update-refused", level=logging.WARNING, node=name, why=str(error))
            station.refused_updates += 1
            session.refuse(arrived.digest, Reason.REFUSED, now)
            return
        outcome = Answer.LATE
        if self._round is not None:
            outcome = self._round.answer(update.node, now, of_round=update.round)
            if outcome is Answer.AGAIN and self._store.payload(self.number, update.node) is None:
                outcome = Answer.TAKEN  # the disk was full when it was taken first
        if outcome not in (Answer.TAKEN, Answer.MERGED):
            say(log, "update-discarded", node=name, round=update.round, why=outcome.value, now_at=self.number)
            station.late_updates += 1
            session.accept(arrived.digest, now)
            return
        metrics = {key: getattr(update, key) for key in ("samples", "loss", "train_s", "cpu_s", "energy_j")}
        self._store.take_update(
            self.number, update.node, arrived.payload, metrics, session.floor, self._wall(),
            merged=outcome is Answer.MERGED,
        )  # fmt: skip
        session.accept(arrived.digest, now)
        if outcome is Answer.MERGED:
            say(log, "merged", node=name, round=update.round, now_at=self.number)
        else:
            say(log, "answered", node=name, round=self.number, bytes=len(arrived.payload), **metrics)

    def _hear_health(self, station: Station, message: Message, now: float) -> None:
        try:
            health = decode_health(message.payload)
        except BadMessage as error:
            say(log, "bad-message", level=logging.WARNING, node=station.node.name, why=str(error))
            return
        view = asdict(health)
        self._store.hear(station.node.id, self._wall(), station.session.floor, view)
        if health.state == State.FAILED and health.round == self.number:
            say(
                log, "board-failed", level=logging.WARNING, node=station.node.name, round=self.number,
                failure=failure_name(health.failure), why=health.why,
            )  # fmt: skip
            self._give_up(station, "failed")
        elif health.state == State.IDLE and health.round < self.number:
            self._remind(station)

    def _remind(self, station: Station) -> None:
        """Offers the round's model again to a board that took it and knows no more of it: it came back with
        an empty disk."""
        node = station.node.id
        offered = any(not progress.incoming for progress in station.session.snapshot(self._now).objects)
        if node in self._delivered and node in self._waiting() and not offered:
            say(log, "forgotten", level=logging.WARNING, node=station.node.name, round=self.number)
            self._delivered.discard(node)
            station.session.offer(MODEL, self._payload, self._now)

    def _give_up(self, station: Station, why: str) -> None:
        if self._round is not None and station.node.id in self._round.asked - self._round.answered:
            self._store.mark(self.number, station.node.id, why, self._wall())
            self._round.lose(station.node.id, self._now)

    # the story

    def step(self, now: float) -> bool:
        """Goes on with the mission; True when it has more to do at once.

        Raises StoreError where the disk refuses; the next call goes on from what is stored.
        """
        self._now = now
        try:
            return next(self._life)
        except StoreError:
            self._life = self.life()
            raise

    def life(self) -> Iterator[bool]:
        """The mission from its first unfinished round to its end. Yields True in the middle of work, False
        while there is nothing to do but to wait for the links."""
        rules = self.mission.rules
        rows = self._store.rounds()
        accuracies = [row.accuracy or 0.0 for row in rows if row.closed_at is not None]
        while (why := finished(accuracies, rules.rounds, rules.target_accuracy)) is None:
            yield from self._open(len(accuracies) + 1)
            yield from self._wait()
            accuracies.append((yield from self._close()))
        yield from self._deploy()
        if (stored := self._store.mission()) is not None and stored["finished_at"] is None:
            self._store.finish(why, self._wall())
        say(log, "finished", why=why, accuracy=accuracies[-1], rounds=self.number)
        self.finished = True
        while True:
            yield False

    def _open(self, number: int) -> Iterator[bool]:
        """Opens round `number`, or goes on with it after a restart, and offers its model to K nodes."""
        rules, stored = self.mission.rules, {row.number: row for row in self._store.rounds()}
        self.number = number
        if number not in stored:
            asked = choose([node.id for node in self.mission.nodes], rules.select, rules.seed, number)
            model = self._server.model(number, self._packed(number - 1))
            opened_at = self._wall()
            self._store.open_round(number, model, sorted(asked), opened_at, opened_at + rules.deadline_s)
            stored = {row.number: row for row in self._store.rounds()}
        row = stored[number]
        answers = self._store.answers(number)
        merged = {answer["node"] for answer in answers if answer["state"] == "merged"}
        self._round = Round(
            number,
            asked=frozenset(answer["node"] for answer in answers) - merged,
            quorum=rules.quorum,
            deadline_s=self._now + row.deadline_at - self._wall(),
            answered={answer["node"] for answer in answers if answer["state"] == "answered"},
            lost={answer["node"] for answer in answers if answer["state"] in ("failed", "refused")},
            merges=rules.staleness is not None,
            merged=merged,
        )
        self._offer(row.model, sorted(self._waiting()))
        say(log, "round", number=number, of=rules.rounds, asked=self._names(self._round.asked))
        yield True

    def _wait(self) -> Iterator[bool]:
        """Until the quorum has answered, or the deadline passes with an answer. Silence is no error: a round
        that nobody answered is asked again, of the same nodes."""
        assert self._round is not None
        while not (verdict := self._round.judge(self._now)).closed:
            yield False
        if verdict is Verdict.EMPTY:
            say(log, "nobody-answered", level=logging.WARNING, round=self.number)
            while self._now < self._round.deadline_s:  # all failed at once: no haste to hear it again
                yield False
            self._store.ask_again(self.number, self._wall(), self._wall() + self.mission.rules.deadline_s)
            yield from self._open(self.number)
            yield from self._wait()

    def _close(self) -> Generator[bool, None, float]:
        """Averages those that answered, quantizes, judges what the boards will get, and stores it."""
        assert self._round is not None
        server = self._server
        average = PartialAverage(server.layout)
        for node in sorted(self._round.answered | self._round.merged):
            payload = self._store.payload(self.number, node)
            assert payload is not None, f"round {self.number} has no payload of node {node}"
            server.fold(average, *server.open(UPDATE, payload, node, self.number), self.number)
            yield True
        for station in self._stations.values():  # whoever is still being asked need not go on
            self._withdraw(station)
        packed = server.condense(average, self._packed(self.number - 1))
        yield True
        scores = []
        for so_far in evaluate(self._infer, server.weights(packed), self._test.x, self._test.y):
            scores.append(so_far)
            yield True
        score = scores[-1]  # covers all images
        bits = 8 * len(packed) / server.layout.parameters
        self._store.close_round(self.number, packed, score.accuracy, score.loss, bits, self._wall())
        say(
            log, "closed", round=self.number, accuracy=score.accuracy, loss=score.loss,
            answered=self._names(frozenset(self._round.answered)), bits_down=bits,
        )  # fmt: skip
        self._round = None
        return score.accuracy

    def _deploy(self) -> Iterator[bool]:
        """Sends the final model to every node, to keep and to use; waits for it as long as for a round."""
        rules = self.mission.rules
        stored = self._store.mission()
        if stored is not None and stored["finished_at"] is not None:
            return
        last = max(row.number for row in self._store.rounds())
        self.number = last
        model = self._server.model(last + 1, self._packed(last), deploy=True)
        deadline = self._now + rules.deadline_s
        self._offer(model, [node.id for node in self.mission.nodes])
        say(log, "deploying", nodes=self._names(frozenset(self._stations)))
        while self._now < deadline and len(self._delivered) < len(self._stations):
            yield False

    # pieces of it

    def _packed(self, number: int) -> bytes:
        """The weights that round `number` made; none before the first, which both ends draw from the seed."""
        if number == 0:
            return b""
        packed = self._store.model(number)
        assert packed is not None, f"round {number} left no model"
        return packed

    def _offer(self, payload: bytes, nodes: list[int]) -> None:
        self._delivered.clear()
        self._payload, self._offered = payload, digest(MODEL, payload)
        for node in nodes:
            session, cut = self._stations[node].session, self._store.fragment_bytes(node, self._offered)
            session.offer(MODEL, payload, self._now, fragment_bytes=cut)
            if cut is None:  # so that after a restart nothing that the board holds is sent again
                self._store.cut(node, self._offered, session.fragment_bytes(self._offered))

    def _withdraw(self, station: Station) -> None:
        for progress in station.session.snapshot(self._now).objects:
            if not progress.incoming:
                station.session.cancel(progress.digest, self._now)

    def _waiting(self) -> frozenset[int]:
        """Nodes that were asked and may still answer."""
        if self._round is None:
            return frozenset()
        return self._round.asked - self._round.answered - self._round.lost

    def _names(self, nodes: frozenset[int]) -> list[str]:
        return [self._stations[node].node.name for node in sorted(nodes)]

    def view(self) -> dict[str, Any]:
        """Where the mission stands, for a live view."""
        return {"round": self.number, "waiting": self._names(self._waiting())}
