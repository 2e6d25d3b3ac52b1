"""The ground daemon: the mission's rounds and the nodes' links, carried by the runtime's loop."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from groundstation import mission_data
from groundstation.commands import CommandDispatcher
from groundstation.config import Mission
from groundstation.failures import FIRST_PAUSE_S, LAST_PAUSE_S, ReasonLog
from groundstation.file_server import FileServer
from groundstation.library import NetworkLibrary
from groundstation.received_answers import AnswersDesk
from groundstation.rounds.rounds import Rounds
from groundstation.station import Station
from groundstation.store.store import Store, StoreBusy, StoreDamaged, StoreError
from onboard.console.errors import where
from onboard.console.log import say
from onboard.console.toml import ConfigError
from onboard.data import labels
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.link.recording import Recorder
from onboard.runtime.endpoint import Endpoint, tell_exposures
from onboard.runtime.loop import Loop
from onboard.storage.files import sole_user
from onboard.wire.events import Event

log = logging.getLogger(__name__)

COUNT_EVERY_S = 30.0  # how often running totals are stored
STANDSTILL_S = 10.0  # far more than a turn of the loop takes
RETRY_S = 5.0  # after a write that failed, such as on a full disk
BUSY_RETRY_S = 0.5  # while another program holds the database


def serve(
    mission: Mission, *, exit_when_finished: bool = False, report_every_s: float | None = None,
    recorder: Recorder | None = None,
) -> bool:  # fmt: skip
    """Serves a mission until SIGTERM or SIGINT, or to its end if asked to; returns whether it is finished.

    Raises ConfigError, BadKey, GraphError, DataError, StoreError before anything is sent, and BlockingIOError
    where another daemon serves the same folder."""
    with sole_user(mission.folder):
        train, infer = TrainGraph.load(mission.model), InferGraph.load(mission.model)
        seen, test = mission_data.load(mission.data_source, train, mission.data_folder, mission.rules.classes)
        try:
            mission.rules.target_of(train.objective.metric)
        except ValueError as error:
            raise ConfigError(f"{mission.path}: {error}") from None
        seen.tell()
        tell_exposures(mission.nodes, mission.database)
        store = Store(mission.database)
        _begin(store, mission, train, test.classes)
        now = time.monotonic()
        model_bytes = 4 * train.layout.parameters
        stations = {
            node.id: Station(node, store, mission.folder, now, recorder, model_bytes)
            for node in mission.nodes
        }
        rounds = Rounds(mission, store, stations, train, infer, test, time.time)
        commands = CommandDispatcher(mission.folder, store, stations, time.time)
        store.back_up()
        store.never_wait()
        say(log, "serving", mission=mission.rules.name, nodes=len(stations), test_images=len(test.y))
        try:
            program = GroundProgram(rounds, commands, time.monotonic, exits_when_finished=exit_when_finished)
            Loop(program, time.monotonic, time.time).run(report_every_s)
            if program.is_over:  # or it was stopped, by somebody who knows what is under way
                with contextlib.suppress(StoreError):
                    commands.tell_pending()
        finally:
            with contextlib.suppress(StoreError):
                rounds.save_time(time.monotonic(), ahead_s=0.0)
                store.store_reports(time.monotonic(), at_once=True)
            _close(stations, store)
    return rounds.finished


def _close(stations: dict[int, Station], store: Store) -> None:
    """Closes every link, even if another one fails, and then the database."""
    for station in stations.values():
        try:
            station.close(time.monotonic())
        except Exception as error:  # each holds a port and what is half received
            say(log, "close-failed", level=logging.ERROR, node=station.node.name, why=str(error))
    try:
        store.close()
    except StoreError as error:
        say(log, "close-failed", level=logging.ERROR, why=str(error))


def _begin(store: Store, mission: Mission, train: TrainGraph, classes: tuple[str, ...]) -> None:
    """Enters the mission in the store. Raises ConfigError where another one is there."""
    rules = mission.rules
    _, graph, begun = store.begin(secrets.token_bytes(8), rules.name, rules.seed, train.digest, classes)
    if graph != train.digest:
        raise ConfigError(
            f"{mission.path}: mission.model = {rules.model!r}: this mission was begun with "
            f"another graph ({graph.hex()}); use a new folder"
        )
    if begun != classes:
        raise ConfigError(
            f"{mission.path}: mission.classes: this mission was begun with {labels.listed(begun)}, "
            f"and now has {labels.listed(classes)}; use a new folder"
        )


class GroundProgram:
    """The mission as a `Program`. A link that fails is logged and begun again after a pause that doubles."""

    longest_wait_s, object_pause = 1.0, 4.0
    fds = ()

    def __init__(
        self, rounds: Rounds, commands: CommandDispatcher, clock: Callable[[], float],
        *, exits_when_finished: bool = False,
    ) -> None:  # fmt: skip
        self.folder = rounds.mission.folder
        self._rounds, self._stations, self._commands = rounds, rounds.stations, commands
        self._files = FileServer(NetworkLibrary(self.folder), self._stations)
        self._answers = AnswersDesk(self.folder)
        self._exits = exits_when_finished
        self.links: Mapping[int, Endpoint] = {node: each.endpoint for node, each in self._stations.items()}
        self._failures = ReasonLog()
        self._pauses_s: dict[int, float] = {}  # the latest, by link that failed
        self._attended_s = clock()
        self._count_due_s = clock() + COUNT_EVERY_S
        self._is_busy = False

    @property
    def is_over(self) -> bool:
        return self._exits and self._rounds.finished

    def begin_again(self, peer: int, now: float) -> None:
        """Begins a link again in a new epoch, and repeats what was asked on it."""
        station = self._stations[peer]
        station.renew(now)
        self._files.renewed(station)
        self._answers.renewed(station)
        self._rounds.renewed(station, now)

    def link_failed(self, peer: int, error: Exception, now: float) -> None:
        """Suspends a link that fails, or whose event cannot be handled."""
        pause_s = min(2 * self._pauses_s.get(peer, FIRST_PAUSE_S / 2), LAST_PAUSE_S)
        self._pauses_s[peer] = pause_s
        self.links[peer].suspended_until = now + pause_s
        name = self._stations[peer].node.name
        say(log, "link-failed", level=logging.ERROR, node=name, why=where(error), again_in_s=pause_s)

    def attend(self, now: float) -> None:
        """Detects a standstill of the program: SIGSTOP, a paused virtual machine, a hung disk."""
        stood_s = now - self._attended_s
        self._attended_s = now
        if stood_s > STANDSTILL_S:
            say(log, "paused", level=logging.WARNING, seconds=round(stood_s, 1))
            self._rounds.paused(stood_s)

    def handle(self, peer: int, event: Event, now: float) -> None:
        try:
            station = self._stations[peer]
            desks = (self._commands, self._files, self._answers)
            if not any(desk.handle(station, event, now) for desk in desks):
                self._rounds.handle(station, event, now)
        except StoreError:
            raise
        except Exception as error:
            self.link_failed(peer, error, now)

    def step(self, now: float) -> None:
        """Continues the mission and, at intervals, stores the counters of all links. Raises StoreError."""
        self._is_busy = False
        self._rounds.store.store_reports(now)
        self._commands.step(now)
        is_sending = self._files.step(now)
        self._answers.step(now)
        self._is_busy = self._rounds.step(now) or is_sending
        if now >= self._count_due_s:
            self._count(now)
            self._count_due_s = now + COUNT_EVERY_S
        if (failed := self._failures.over()) is not None:
            say(log, "store-works", failed=failed)

    def _count(self, now: float) -> None:
        for node, station in self._stations.items():
            try:
                station.count(now)
            except StoreError:
                raise
            except Exception as error:
                self.link_failed(node, error, now)

    def disk_failed(self, error: OSError, now: float) -> float:
        """Repairs a damaged database if possible; returns when to try again."""
        if not isinstance(error, StoreError):
            raise error
        self._is_busy = False
        if isinstance(error, StoreDamaged):
            try:
                self._rounds.mend()
            except StoreError as lasting:
                error = lasting
            else:
                return now
        retry_s = BUSY_RETRY_S if isinstance(error, StoreBusy) else RETRY_S
        if times := self._failures.count(str(error), now):
            say(log, "store-failed", level=logging.ERROR, why=str(error), retry_s=retry_s, times=times)
        return now + retry_s

    def relieve(self, now: float) -> str:
        """The mission has no memory to release: the loop waits until some is free."""
        return "no memory is left for the ground station"

    def wakeup(self, now: float) -> float:
        return now if self._is_busy else math.inf

    def status(self, now: float) -> dict[str, Any]:
        links = [station.view(now) for station in self._stations.values()]
        return self._rounds.view() | {"files": self._files.view(now), "links": links}

    def report(self, now: float) -> None:
        say(log, "links", **self.status(now))
