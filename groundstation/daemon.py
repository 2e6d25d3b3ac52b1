"""The ground daemon: one thread, one loop, between the nodes' links and the mission's rounds."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from contextlib import closing
from functools import partial
from typing import Any

from groundstation import testdata
from groundstation.commands.dispatcher import CommandDispatcher
from groundstation.config import Mission
from groundstation.failures import StoreFailures
from groundstation.rounds.rounds import Rounds
from groundstation.rounds.untold import Untold
from groundstation.station import Station
from groundstation.store.store import Store, StoreDamaged, StoreError
from groundstation.upkeep import Upkeep
from onboard.console.log import say
from onboard.console.toml import ConfigError
from onboard.data import labels
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.link.pump import wait
from onboard.link.recorder import Recorder
from onboard.monitor.status_socket import Lookout
from onboard.runtime.endpoint import tell_exposures
from onboard.runtime.signals import stop_signals
from onboard.storage.journal import sole_user
from onboard.wire.events import Event
from onboard.wire.session import Session

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 1.0
COUNT_EVERY_S = 30.0  # running totals reach the database this often, and at the end
STANDSTILL_S = 10.0  # far more than a turn of the loop takes


def serve(
    mission: Mission,
    *,
    exit_when_finished: bool = False,
    report_every_s: float | None = None,
    recorder: Recorder | None = None,
) -> bool:
    """Runs until SIGTERM or SIGINT, or to the mission's end if asked to; True if the mission is finished.
    `recorder` records what crosses the ports.

    Raises ConfigError, BadKey, GraphError, DataError, StoreError before anything is sent, and
    BlockingIOError where another daemon serves the same folder.
    """
    with sole_user(mission.folder):
        train, infer = TrainGraph.load(mission.rules.model), InferGraph.load(mission.rules.model)
        seen, test = testdata.load(mission.data_source, train, mission.data_folder, mission.rules.classes)
        seen.tell()
        tell_exposures(mission.nodes, mission.database)
        store = Store(mission.database)
        _begin(store, mission, train, test.classes)
        now = time.monotonic()
        stations = {
            node.id: Station(
                node, store, mission.folder, now, recorder=recorder, model_bytes=4 * train.layout.parameters
            )
            for node in mission.nodes
        }
        rounds = Rounds(mission, store, stations, train, infer, test, time.time)
        commands = CommandDispatcher(mission.folder, store, stations, time.time)
        store.back_up()
        store.never_wait()
        say(log, "serving", mission=mission.rules.name, nodes=len(stations), test_images=len(test.y))
        try:
            with closing(Lookout(mission.folder)) as lookout:
                _loop(stations, rounds, commands, lookout, exit_when_finished, report_every_s)
        finally:
            with contextlib.suppress(StoreError):
                rounds.save_time(time.monotonic(), ahead_s=0.0)
                rounds.last_words.store(time.monotonic(), at_once=True)
            _close(stations, store)
    return rounds.finished


def _close(stations: dict[int, Station], store: Store) -> None:
    """Closes every link, whatever befalls another one, and then the database."""
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
    """Enters the mission, or finds it as it was begun. Raises ConfigError for another one."""
    _, graph = store.begin(secrets.token_bytes(8), mission.rules.name, mission.rules.seed, train.digest)
    if graph != train.digest:
        raise ConfigError(
            f"{mission.path}: mission.model = {mission.rules.model!r}: this mission was begun with "
            f"another graph ({graph.hex()}); use a new folder"
        )
    if (begun := store.classes(classes)) != classes:
        raise ConfigError(
            f"{mission.path}: mission.classes: this mission was begun with {labels.listed(begun)}, "
            f"and now has {labels.listed(classes)}; use a new folder"
        )


def _loop(
    stations: dict[int, Station],
    rounds: Rounds,
    commands: CommandDispatcher,
    lookout: Lookout,
    exit_when_finished: bool,
    report_every_s: float | None,
) -> None:
    def view() -> dict[str, Any]:
        now = time.monotonic()
        return rounds.view() | {"links": [station.view(now) for station in stations.values()]}

    untold = Untold(time.monotonic)
    retry_s = report_due_s = 0.0
    failures = StoreFailures()
    count_due_s = time.monotonic() + COUNT_EVERY_S
    upkeep = Upkeep(stations, rounds.renewed)
    turned_s = time.monotonic()
    with stop_signals() as stop:
        while not stop.asked:
            now = time.monotonic()
            if now - turned_s > STANDSTILL_S:  # SIGSTOP, a virtual machine that was paused, a disk that hung
                say(log, "paused", level=logging.WARNING, seconds=round(now - turned_s, 1))
                rounds.paused(now - turned_s)
            turned_s = now
            untold.hold_back(stations.values())
            for station in stations.values():
                untold.add(station, upkeep.poll(station, now))
            busy = False
            if now >= retry_s:
                try:
                    untold.tell(partial(_tell, rounds, commands, upkeep, now))
                    rounds.last_words.store(now)
                    commands.step(now)
                    busy = rounds.step(now)
                    if now >= count_due_s:
                        upkeep.count(now)
                        count_due_s = now + COUNT_EVERY_S
                    failures.over()
                except StoreError as error:
                    retry_s = _after(error, rounds, failures, now)
            if report_every_s is not None and now >= report_due_s:
                report_due_s = now + report_every_s
                say(log, "links", **view())
            lookout.answer(view)
            if exit_when_finished and rounds.finished:
                return
            pumps = upkeep.pumps()
            wake_s = min(now + LONGEST_WAIT_S, max(untold.wakeup(), retry_s))
            wake_s = min([wake_s, *(pump.wakeup(now) for pump in pumps)])
            if report_every_s is not None:
                wake_s = min(wake_s, report_due_s)
            wait(pumps, 0.0 if busy else wake_s - time.monotonic(), also=[stop.fd, *lookout.fds])


def _after(error: StoreError, rounds: Rounds, failures: StoreFailures, now: float) -> float:
    """What follows on a failure of the database; returns when to try again."""
    if isinstance(error, StoreDamaged):
        try:
            rounds.mend()
        except StoreError as lasting:
            error = lasting
        else:
            return now
    return failures.failed(error, now)


def _tell(
    rounds: Rounds, commands: CommandDispatcher, upkeep: Upkeep, now: float, station: Station, event: Event,
    session: Session
) -> None:  # fmt: skip
    """Tells the mission one event of a link, unless the link has begun again since: then it comes again.
    Raises StoreError."""
    if session is not station.session:
        return
    try:
        if not commands.handle(station, event, now):
            rounds.hear(station, event, now)
    except StoreError:
        raise
    except Exception as error:
        upkeep.fail(station, error, now)
