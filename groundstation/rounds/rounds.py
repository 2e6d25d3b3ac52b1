"""A mission's rounds: ask K of N, take what arrives, average, quantize, evaluate, repeat.

`life` is a generator that yields wherever the links may need service. Every decision is stored before it
takes effect, so a daemon that is killed continues with the same round."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from groundstation.commands import LOOK_EVERY_S
from groundstation.config import Mission
from groundstation.failures import Setbacks
from groundstation.rounds.closing import Closing, restored, scores_of, task_of
from groundstation.rounds.supply import NetworkSupply
from groundstation.station import Station, pause_s
from groundstation.store.store import METRICS, RoundRow, Store, StoreError
from onboard.console.errors import where
from onboard.console.log import say
from onboard.data.images import Images
from onboard.learn.federated.rounds import Round, RoundState, UpdateFate, choose, finished
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.statistics import parted
from onboard.mission.health import Failure, State, decode_health, failure_name
from onboard.mission.objects import asked_again
from onboard.mission.server import BadUpdate, MissionTerms, Server
from onboard.wire.events import Arrived, Cancelled, Delivered, Event, Message, QuotaUsage, Recut, Rekeyed
from onboard.wire.messages import BadMessage, Reason

log = logging.getLogger(__name__)

SAVE_TIME_S = 30.0  # at most this much of a round is repeated after a kill,
SAVE_SHARE = 8  # and at most this part of the time that it ran;
SAVE_FIRST_S = 1.0  # saved ahead: a round ends even if the ground is killed every second


class Rounds:
    """The mission between its stations and its store. `wall` is the ground's clock in Unix seconds."""

    def __init__(
        self, mission: Mission, store: Store, stations: Mapping[int, Station], train: TrainGraph,
        infer: InferGraph, test: Images, wall: Callable[[], float],
    ) -> None:  # fmt: skip
        self.mission = mission
        self.number = 0
        self.finished = False
        rules, begun = mission.rules, store.mission()
        assert begun is not None, "no mission was begun"
        terms = MissionTerms(
            id=begun["id"], seed=rules.seed, deadline_s=rules.deadline_s,
            training=mission.train, classes=test.classes,
        )  # fmt: skip
        judging, measuring = parted(train, test)
        self._server = Server(
            terms, train, staleness=rules.staleness, bounds=rules.bounds, rule=rules.rule,
            measures=measuring is not None,
        )  # fmt: skip
        self.store = store
        self.stations = stations
        names = {node.id: node.name for node in mission.nodes}
        self._closing = Closing(self._server, store, names, infer, judging, measuring)
        self._supply = NetworkSupply(train.network, store, mission.folder, stations, wall)
        self._unsupplied = set[int]()  # nodes that are asked when they have the network
        self._supply_due_s = -math.inf
        self._setbacks = Setbacks()
        self._wall = wall
        self._now = 0.0
        self._round: Round | None = None
        self._forgetful: dict[int, str] = {}  # nodes that have lost the round's question, and why
        self._final, self._final_until_s = b"", 0.0  # the final model's object, once it is sent
        self._time_due_s, self._began_s = 0.0, math.inf
        self._life = self.life()

    # events of the links

    def handle(self, station: Station, event: Event, now: float) -> None:
        """Takes one event of one node's link. Raises StoreError; the event may then be repeated."""
        node = station.node.id
        if isinstance(event, Arrived):
            self._take(station, event, now)
        elif isinstance(event, Rekeyed):
            station.session.rekey(event.salt)
            say(log, "rekeyed", node=station.node.name, again=event.again)
        elif isinstance(event, QuotaUsage):
            self.store.spend(node, event)
        elif isinstance(event, Message):
            self._take_health(station, event, now)
        elif isinstance(event, Delivered | Cancelled | Recut):
            self._note_of_question(station, event)

    def _note_of_question(self, station: Station, event: Delivered | Cancelled | Recut) -> None:
        node = station.node.id
        question = station.question
        if question is None or question.digest != event.digest:
            return
        if isinstance(event, Recut):
            self.store.set_fragment_size(node, event.digest, event.fragment_bytes)
        elif isinstance(event, Cancelled):
            say(
                log, "refused-by-board", level=logging.WARNING, node=station.node.name,
                object=event.digest.hex(), why=event.reason,
            )  # fmt: skip
            self._give_up(station, "refused")
        else:
            question.delivered = True
            if node in self._waiting():  # a report of failed training can overtake the DONE
                self.store.mark(self.number, node, "delivered", self._wall())

    def _take(self, station: Station, arrived: Arrived, now: float) -> None:
        """Checks an update, stores it with the replay floor in one barrier, then acknowledges it."""
        name, session = station.node.name, station.session
        try:
            update, _ = self._server.open(
                arrived.kind, arrived.payload, station.node.id, self.number, self._closing.training
            )
        except BadUpdate as error:
            say(log, "update-refused", level=logging.WARNING, node=name, why=str(error))
            station.updates["updates_refused"] += 1
            session.refuse(arrived.digest, Reason.REFUSED, now)
            return
        outcome = UpdateFate.LATE
        if self._round is not None:
            was_asked = any(  # and not only merged
                answer["node"] == update.node and answer["state"] != "merged"
                for answer in self.store.answers(update.round)
            )
            outcome = self._round.answer(update.node, now, of_round=update.round, was_asked=was_asked)
            if outcome is UpdateFate.AGAIN and self.store.payload(self.number, update.node) is None:
                outcome = UpdateFate.TAKEN  # the disk was full when it was taken first
        if outcome not in (UpdateFate.TAKEN, UpdateFate.MERGED):
            say(log, "update-discarded", node=name, round=update.round, why=outcome.value, now_at=self.number)
            station.updates["updates_late"] += 1
            session.accept(arrived.digest, now)
            return
        metrics = {key: value for key in METRICS if (value := getattr(update, key)) is not None}
        merged, payload = outcome is UpdateFate.MERGED, arrived.payload
        self.store.take_update(self.number, update.node, payload, metrics, self._wall(), merged=merged)
        session.accept(arrived.digest, now)
        if merged:
            say(log, "merged", node=name, round=update.round, now_at=self.number)
        else:
            say(log, "answered", node=name, round=self.number, bytes=len(payload), **metrics)

    def _take_health(self, station: Station, message: Message, now: float) -> None:
        node, name = station.node.id, station.node.name
        try:
            health = decode_health(message.payload)
        except BadMessage as error:
            say(log, "bad-message", level=logging.WARNING, node=name, why=str(error))
            return
        self.store.report(node, self._wall(), asdict(health), now)
        question = station.question
        if question is None:
            return
        is_of_it, is_forgotten = question.is_meant(health), question.is_forgotten(health)
        if self._final and is_forgotten and not (is_of_it and health.state != State.FAILED):
            self._ask_if_due(station, health.why, now)
        if self._round is None or node not in self._round.asked - self._round.answered:
            return
        self._forgetful.pop(node, None)
        if is_forgotten:
            self._forgetful[node] = health.why
            self._ask_the_forgetful(now)
        elif health.state == State.FAILED and is_of_it:
            if node in self._waiting():
                say(
                    log, "board-failed", level=logging.WARNING, node=name, round=self.number,
                    failure=failure_name(health.failure), why=health.why,
                    **({"classes": self._closing.test.classes} if health.failure == Failure.DATA else {}),
                )  # fmt: skip
            if health.failure == Failure.MODEL:
                self._supply.lacks(node)
            self._give_up(station, "failed")

    def _ask_the_forgetful(self, now: float) -> None:
        """Repeats the question to boards that lost it: their next report is a minute away."""
        open_to = self._round.asked - self._round.answered if self._round else frozenset()
        for node, why in list(self._forgetful.items()):
            if node not in open_to or self._ask_if_due(self.stations[node], why, now):
                del self._forgetful[node]

    def _ask_if_due(self, station: Station, why: str, now: float) -> bool:
        """Asks a board that lost the question again unless it is too soon: the final model itself, or the
        round's question as a new object that is durable first."""
        assert station.question is not None
        if not station.question.may_be_repeated(now, self.mission.rules.deadline_s):
            return False
        node = station.node.id
        say(log, "forgotten", level=logging.WARNING, node=station.node.name, round=self.number, why=why)
        if self._round is None:
            self._ask(node, self._final, 0)
        else:
            asking = self.store.ask_once_more(self.number, node, self._wall())
            self._round.lost.discard(node)
            # What it answers may equal, byte for byte, what the store has lost and the spool calls finished.
            station.session.forget(*station.session.done)
            self._ask_round(node, asking)
        return True

    def _give_up(self, station: Station, why: str) -> None:
        if station.node.id in self._waiting():
            assert self._round is not None
            self.store.mark(self.number, station.node.id, why, self._wall())
            self._round.lose(station.node.id, self._now)

    def renewed(self, station: Station, now: float) -> None:
        """Repeats what was asked on a link that has begun again. Raises StoreError."""
        self._now = now
        node = station.node.id
        if node in self._waiting():
            askings = {answer["node"]: answer["asking"] for answer in self.store.answers(self.number)}
            self._ask_round(node, askings[node])
        elif self._final:
            self._ask(node, self._final, 0)

    def _ask_round(self, node: int, asking: int) -> None:
        """Sends the round's question, as soon as the board has the network."""
        if self._supply.has(node):
            self._unsupplied.discard(node)
            self._ask(node, asked_again(self._row().model, asking), asking)
        else:
            self._unsupplied.add(node)

    def _ask_the_supplied(self) -> None:
        if self._now < self._supply_due_s:
            return
        self._supply_due_s = self._now + LOOK_EVERY_S
        for node in sorted(self._unsupplied & self._waiting()):
            if self._supply.has(node):
                askings = {answer["node"]: answer["asking"] for answer in self.store.answers(self.number)}
                self._ask_round(node, askings[node])

    def _ask(self, node: int, payload: bytes, asking: int) -> None:
        """Sends a question. If the link fails, its board is given up and the others are still asked."""
        station, number = self.stations[node], self.number if self._round else self.number + 1
        try:
            station.ask(number, payload, asking, self._now)
        except StoreError:
            raise
        except Exception as error:
            say(log, "link-failed", level=logging.ERROR, node=station.node.name, why=where(error))
            self._give_up(station, "failed")

    # the course of a mission

    def step(self, now: float) -> bool:
        """Continues the mission; returns whether it has more to do at once.

        Raises StoreError where the disk refuses. After that, and after an unforeseen error, the next call
        continues from the store; an unforeseen error also causes a pause, as its cause may be stored."""
        self._now = now
        if now < self._setbacks.again_at:
            return False
        try:
            if now >= self._time_due_s:
                self.save_time(now)
            return next(self._life)
        except StoreError:
            self._life = self.life()
            raise
        except Exception as error:
            self._life = self.life()
            self._setbacks.happened(error, now, round=self.number)
            if self._setbacks.is_lasting and self._round is not None:
                # Whatever keeps this round from being closed is not tried for ever.
                nodes = self._round.answered | self._round.merged
                self._closing.lose(self.number, dict.fromkeys(nodes, where(error)), self._wall())
            return False

    def life(self) -> Iterator[bool]:
        """Plays the mission from its first unfinished round to its end. Yields True in the middle of work,
        False while it waits for the links."""
        rules, self._final = self.mission.rules, b""
        metric = self._closing.metric
        target, scores = rules.target_of(metric), scores_of(self.store, self._server)
        while (why := finished(scores, rules.rounds, target, metric)) is None:
            number, score = len(scores) + 1, None
            while score is None:
                yield from self._open(number)
                yield from self._wait()
                score = yield from self._close()
            scores.append(score)
            self._setbacks.over()
        yield from self._deploy()
        self.store.finish(why, self._wall())
        last: dict[str, Any] = {metric.key: scores[-1]}
        say(log, "finished", why=why, rounds=self.number, **last)
        self.finished = True
        while True:
            yield False

    def _open(self, number: int) -> Iterator[bool]:
        """Opens round `number`, or continues it after a restart, and offers its model to K nodes."""
        rules, self.number, nodes = self.mission.rules, number, [node.id for node in self.mission.nodes]
        choice = sorted(choose(nodes, self.mission.select, rules.seed, number))
        if self.store.round(number) is None:
            for station in self.stations.values():
                station.question = None
            model, now = self._server.model(number, self._packed(number - 1)), self._wall()
            self.store.open_round(number, model, choice, now, now + rules.deadline_s)
        elif (sent := task_of(self._row())) is None or sent[0].round != number:
            self.store.put_question(number, self._server.model(number, self._packed(number - 1)))
        self._unsupplied.clear()
        row, answers = self._row(), self.store.answers(number)
        if not {answer["node"] for answer in answers if answer["state"] != "merged"} & self.stations.keys():
            self.store.ask_too(number, choice, self._wall())
            answers = self.store.answers(number)
        self._round = restored(row, answers, self.mission, self._now)
        self.save_time(self._now)
        askings = {answer["node"]: answer["asking"] for answer in answers}
        for node in sorted(self._waiting()):
            self._ask_round(node, askings[node])
        say(
            log, "round", number=number, of=rules.rounds, asked=self._names(self._round.asked),
            left_s=round(self._round.deadline_s - self._now, 1),
        )  # fmt: skip
        yield True

    def _wait(self) -> Iterator[bool]:
        """Waits until the quorum has answered, or the deadline passes with an answer. Silence is no error: a
        round without answers gets another deadline with the same nodes. Those that failed are asked again
        after a pause, which doubles, as the reason may last; silent ones still hold the question."""
        assert self._round is not None
        rules = self.mission.rules
        while (verdict := self._round.judge(self._now)) in (RoundState.OPEN, RoundState.EMPTY):
            if verdict is RoundState.OPEN:
                self._ask_the_forgetful(self._now)
                self._ask_the_supplied()
                yield False
                continue
            lost = self._round.lost
            asked = [answer["asking"] for answer in self.store.answers(self.number) if answer["node"] in lost]
            wait_s = max((pause_s(asking, rules.deadline_s) for asking in asked), default=0.0)
            say(
                log, "nobody-answered", level=logging.WARNING, round=self.number,
                failed=self._names(frozenset(lost)), asked_again_in_s=round(wait_s, 1),
            )  # fmt: skip
            until_s = self._now + wait_s
            while self._now < until_s and self._round.judge(self._now) is RoundState.EMPTY:
                yield False
            if self._round.judge(self._now) is RoundState.EMPTY:
                self.store.ask_again(self.number, self._wall(), self._wall() + rules.deadline_s)
                yield from self._open(self.number)

    def _close(self) -> Generator[bool, None, float | None]:
        """Averages, quantizes, evaluates what the boards will get, and stores it; returns its score, or
        None if an answer was unusable: it is lost, and the round continues."""
        assert self._round is not None
        nodes = sorted(self._round.answered | self._round.merged)
        packed, unusable = yield from self._closing.average(self.number, nodes, self._packed(self.number - 1))
        if unusable:
            self._closing.lose(self.number, unusable, self._wall())
            self.save_time(self._now)
            return None
        for station in self.stations.values():
            station.withdraw(self._now)
        score = yield from self._closing.judge(packed)
        bits = 8 * len(packed) / self._server.layout.parameters
        now = self._wall()
        self.store.close_round(self.number, packed, score.value, score.loss, bits, now)
        say(
            log, "closed", round=self.number,
            answered=self._names(frozenset(self._round.answered)), bits_down=bits,
            **score.log_fields(),
        )  # fmt: skip
        self._round = None
        return score.value

    def _deploy(self) -> Iterator[bool]:
        """Sends the final model to every node, and waits as long as for a round. After a restart it is
        offered again, as not every node may have received it."""
        stored = self.store.mission()
        self.number = max(row.number for row in self.store.rounds())
        self._final = self._server.model(self.number + 1, self._packed(self.number), deploy=True)
        self._final_until_s = self._now + self.mission.rules.deadline_s
        stations = self.stations.values()
        for station in stations:
            station.question = None
            self._ask(station.node.id, self._final, 0)
        if stored is not None and stored["finished_at"] is not None:
            return
        say(log, "deploying", nodes=self._names(frozenset(self.stations)))
        while self._now < self._final_until_s and not all(
            station.question and station.question.delivered for station in stations
        ):
            yield False

    def mend(self) -> None:
        """Continues with the intact rows of a damaged database. Raises StoreError."""
        self.store.mend()
        self._life = self.life()

    # time

    def save_time(self, now: float, *, ahead_s: float = SAVE_FIRST_S) -> None:
        """Stores the time that the round has left: after a restart no clock says how long it was."""
        self._began_s = min(self._began_s, now)
        self._time_due_s = now + min(max((now - self._began_s) / SAVE_SHARE, SAVE_FIRST_S), SAVE_TIME_S)
        if self._round is not None:
            left_s = min(max(self._round.deadline_s - now - ahead_s, 0.0), self.mission.rules.deadline_s)
            self.store.time_left(self.number, left_s, self._wall())

    def paused(self, seconds: float) -> None:
        """Adds a standstill of the ground to the deadlines: it is nobody's delay."""
        self._final_until_s += seconds
        if self._round is not None:
            self._round.deadline_s += seconds

    # helpers

    def _row(self) -> RoundRow:
        row = self.store.round(self.number)
        assert row is not None, f"round {self.number} was never opened"
        return row

    def _packed(self, number: int) -> bytes:
        """Returns the weights that round `number` made; before the first, the seed gives both ends theirs."""
        if number == 0:
            return b""
        packed = self.store.model(number)
        assert packed is not None, f"round {number} left no model"
        return packed

    def _waiting(self) -> frozenset[int]:
        if self._round is None:
            return frozenset()
        return self._round.asked - self._round.answered - self._round.lost

    def _names(self, nodes: frozenset[int]) -> list[str]:
        return [self.stations[node].node.name for node in sorted(nodes)]

    def view(self) -> dict[str, Any]:
        return {"round": self.number, "waiting": self._names(self._waiting())}
