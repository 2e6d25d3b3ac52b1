"""The one loop of every program: it owns the clock, the ports and the retries of the disk.

In each turn it polls every link, hands the program the links' events, lets it do what is due, and waits for a
port, a timer or a signal. What the disk refuses is tried again later, while the links go on. A session that
has used up its seqs is renewed at once, as by a restart."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from onboard.console.log import say
from onboard.console.signals import stop_signals
from onboard.link.pump import wait
from onboard.monitor.status_socket import Lookout
from onboard.runtime.endpoint import Endpoint
from onboard.wire.events import Arrived, Event
from onboard.wire.security.seal import SeqExhausted

if TYPE_CHECKING:
    from onboard.agents.federated import FederatedAgent
    from onboard.agents.gossip import GossipAgent

log = logging.getLogger(__name__)

RETRY_S = 5.0  # after a write that failed, such as on a full disk
FULL_EVERY_S = 60.0  # a computer may stay without memory for long
MOST_WAITING = 256  # events of one peer, beyond which its link is not heard
MEMORY_AGAIN_S = 1.0  # after the board had no memory for the program itself


class Program(Protocol):
    """What the loop carries: it decides, and never waits or touches a port. After an OSError from `handle` or
    `step` the event is handed over again when `disk_failed` says so."""

    folder: Path
    """The status of the program that runs on this folder is given to whoever asks."""
    links: Mapping[int, Endpoint]
    """By the peer's node number."""
    longest_wait_s: float
    """The longest time between two turns."""
    object_pause: float
    """As in `EventQueue`."""

    @property
    def is_over(self) -> bool:
        """Whether the program has come to its end."""

    @property
    def fds(self) -> Iterable[int]:
        """File descriptors that are readable when `step` has something to do."""

    def begin_again(self, peer: int, now: float) -> None:
        """Renew a link in another epoch, durable first, and offer again what was offered on it."""

    def link_failed(self, peer: int, error: Exception, now: float) -> None:
        """Log an error that a link or its event raised and suspend the link, or raise the error."""

    def attend(self, now: float) -> None:
        """Do what must be done in every turn, whatever the disk says."""

    def handle(self, peer: int, event: Event, now: float) -> None:
        """Take one event of one link."""

    def step(self, now: float) -> None:
        """Act on time, training and complete messages."""

    def disk_failed(self, error: OSError, now: float) -> float:
        """Log what the disk refused; return when to try again."""

    def relieve(self, now: float) -> str:
        """Free memory, as none is left for the program itself; return what to log."""

    def wakeup(self, now: float) -> float:
        """Return when `step` next has something to do, if no event comes before."""

    def status(self, now: float) -> dict[str, Any]:
        """Return the status of the program and its links."""

    def report(self, now: float) -> None:
        """Log that status."""


class EventQueue:
    """The links' events that wait to be handled, in turns by peer, whatever one of them sends.

    An object costs its peer a pause of `object_pause` times the time that handling it took: that is left to
    the others, and its later events wait in their order. A link of which much waits is not heard then."""

    def __init__(self, clock: Callable[[], float], object_pause: float = 0.0) -> None:
        self._clock, self._object_pause = clock, object_pause
        self._waiting: deque[tuple[int, Event]] = deque()
        self._not_before: dict[int, float] = {}  # by peer: its next object

    def add(self, peer: int, events: Iterable[Event]) -> None:
        self._waiting.extend((peer, event) for event in events)

    def drop(self, peer: int) -> None:
        """Drop a peer's events: its link was renewed, and what they tell comes again."""
        self._waiting = deque(each for each in self._waiting if each[0] != peer)

    def is_full(self, peer: int) -> bool:
        """Return whether so much of a peer waits that its link should not be heard."""
        if len(self._waiting) < MOST_WAITING:
            return False
        return sum(each[0] == peer for each in self._waiting) >= MOST_WAITING

    def handle(self, handler: Callable[[int, Event], None]) -> None:
        """Hand over all events whose turn has come. If `handler` raises, its event stays."""
        later: deque[tuple[int, Event]] = deque()
        resting: set[int] = set()
        try:
            while self._waiting:
                peer, event = self._waiting[0]
                began = self._clock()
                is_object = isinstance(event, Arrived)
                if peer in resting or (is_object and began < self._not_before.get(peer, began)):
                    resting.add(peer)
                    later.append(self._waiting.popleft())
                    continue
                handler(peer, event)
                self._waiting.popleft()
                if is_object:
                    now = self._clock()
                    self._not_before[peer] = now + self._object_pause * (now - began)
        finally:
            later.extend(self._waiting)
            self._waiting = later

    def wakeup(self) -> float:
        """Return when the next resting object may be handled; inf for none."""
        return min(
            (self._not_before.get(peer, 0.0) for peer, event in self._waiting if isinstance(event, Arrived)),
            default=float("inf"),
        )


class Loop:
    """Carries one program. `clock`: seconds, monotonic. `wall`: Unix seconds, for contact plans."""

    def __init__(self, program: Program, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._program, self._clock, self._wall = program, clock, wall
        self._events = EventQueue(clock, program.object_pause)
        self._full_due_s = -math.inf
        self._retry_at = -math.inf  # nothing is asked of the disk before

    def turn(self, now: float) -> bool:
        """Do all that is due; return whether a link brought something. Raises the program's errors."""
        program = self._program
        brought = [self.poll(peer, now) for peer in program.links]
        program.attend(now)
        if now >= self._retry_at:
            try:
                self._events.handle(lambda peer, event: program.handle(peer, event, now))
                program.step(now)
            except OSError as error:
                self._retry_at = program.disk_failed(error, now)
        for peer, link in program.links.items():
            link.pump.hears = not self._events.is_full(peer)
        return any(brought)

    def poll(self, peer: int, now: float) -> bool:
        """Poll one link; return whether it brought an event, which the next turn hands over."""
        link = self._program.links[peer]
        if now < link.suspended_until:
            return False
        if link.is_suspended:
            self._begin_again(peer, now)
            return False
        try:
            events = link.poll(now, self._wall())
        except SeqExhausted:
            self._begin_again(peer, now)
        except Exception as error:
            self._program.link_failed(peer, error, now)
        else:
            self._events.add(peer, events)
            return bool(events)
        return False

    def wakeup(self, now: float) -> float:
        """Return when `turn` next has something to do, if nothing is heard before."""
        program = self._program
        act_at = max(min(program.wakeup(now), self._events.wakeup()), self._retry_at)
        links_at = min(link.wakeup(now) for link in program.links.values())
        return min(now + program.longest_wait_s, act_at, links_at)

    def run(self, report_every_s: float | None = None) -> None:
        """Run until the program is over, or SIGTERM or SIGINT, logging its status every `report_every_s`."""
        program, clock = self._program, self._clock
        report_due_s = math.inf if report_every_s is None else clock()
        with stop_signals() as stop, closing(Lookout(program.folder)) as lookout:
            while True:
                try:
                    while not stop.asked:
                        now = clock()
                        self.turn(now)
                        if report_every_s is not None and now >= report_due_s:
                            report_due_s = now + report_every_s
                            program.report(now)
                        lookout.answer(lambda: program.status(clock()))
                        if program.is_over:
                            return
                        wake_s = min(self.wakeup(now), report_due_s)
                        # While the disk refuses, what the program's own processes say must wait.
                        fds = program.fds if now >= self._retry_at else ()
                        pumps = [link.pump for link in program.links.values() if not link.is_suspended]
                        wait(pumps, wake_s - clock(), also=[stop.fd, *lookout.fds, *fds])
                    return
                except MemoryError:  # the whole board's: the memory of a training has a limit of its own
                    with contextlib.suppress(MemoryError):
                        now = clock()
                        why = program.relieve(now)
                        if now >= self._full_due_s:
                            self._full_due_s = now + FULL_EVERY_S
                            say(log, "memory-full", level=logging.ERROR, why=why)
                        wait([], MEMORY_AGAIN_S, also=[stop.fd])

    def _begin_again(self, peer: int, now: float) -> None:
        try:
            self._program.begin_again(peer, now)
        except Exception as error:
            self._program.link_failed(peer, error, now)
        else:
            self._events.drop(peer)


class NodeProgram(Program):
    """What all programs of nodes share. An error other than the disk's ends a node, to be started again."""

    longest_wait_s, object_pause = 5.0, 0.0

    def __init__(
        self, agent: FederatedAgent | GossipAgent, links: Mapping[int, Endpoint],
        clock: Callable[[], float], wall: Callable[[], float],
    ) -> None:  # fmt: skip
        self._node, self.links, self.folder = agent, links, agent.config.state
        self._clock, self._wall = clock, wall

    def run(self, report_every_s: float | None) -> None:
        """Run until the agent is over, or SIGTERM or SIGINT, logging its status every `report_every_s`."""
        self._node.resume(self._clock())
        Loop(self, self._clock, self._wall).run(report_every_s)
        self._node.close(self._clock())
        for link in self.links.values():
            link.pump.close(self._clock())

    def relieve(self, now: float) -> str:
        return self._node.relieve(now)

    def link_failed(self, peer: int, error: Exception, now: float) -> None:
        """Suspend the link while the disk refuses what it needs; raise any other error."""
        if not isinstance(error, OSError):
            raise error
        self.links[peer].suspended_until = self.disk_failed(error, now)

    def disk_failed(self, error: OSError, now: float) -> float:
        say(log, "disk-full", level=logging.ERROR, path=str(self.folder), why=str(error))
        return now + RETRY_S
