"""The one loop of every program: it owns the clock, the ports and the disk's retries, and carries a program.

A board with one link is a mapping of one. In each turn the loop moves every link on, hands the program the
events of its links, lets it do what is due, and waits until a port, a timer or a signal has something. What
the disk refuses is tried again later, while the links go on. A session that has used up its sequence numbers
is begun again at once, as by a restart.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from onboard.console.signals import stop_signals
from onboard.link.pump import wait
from onboard.monitor.status_socket import Lookout
from onboard.runtime.endpoint import Endpoint
from onboard.runtime.event_queue import EventQueue
from onboard.wire.events import Event
from onboard.wire.security.seal import SeqExhausted

RETRY_S = 5.0  # after a write that failed, such as on a full disk
MEMORY_AGAIN_S = 1.0  # after the board had no memory for the program itself


class Program(Protocol):
    """What the loop carries: it decides, and never waits or touches a port.

    An OSError from `handle` or `step` says that the disk refuses; the event is handed over again when
    `disk_failed` says so, and nothing else is asked for before.
    """

    folder: Path
    """Whoever asks for the status of the program that runs on this folder is answered."""
    links: Mapping[int, Endpoint]
    """By the peer's node number."""
    longest_wait_s: float
    """The loop turns this often at least."""
    object_pause: float
    """As in `EventQueue`."""

    @property
    def is_over(self) -> bool:
        """Whether the program has come to its end."""

    @property
    def fds(self) -> Iterable[int]:
        """What becomes readable when `step` has something to do."""

    def begin_again(self, peer: int, now: float) -> None:
        """Begins a link again in another epoch, durable first, and offers again what was offered on it."""

    def link_failed(self, peer: int, error: Exception, now: float) -> None:
        """Logs an error that a link or its event raised and suspends the link, or raises the error."""

    def attend(self, now: float) -> None:
        """Does what must be done in every turn, whatever the disk says."""

    def handle(self, peer: int, event: Event, now: float) -> None:
        """Takes one event of one link."""

    def step(self, now: float) -> None:
        """Does what time, training and complete messages bring about."""

    def disk_failed(self, error: OSError, now: float) -> float:
        """Logs what the disk refused; returns when to try again."""

    def relieve(self, now: float) -> None:
        """Gives back memory, as none is left for the program itself."""

    def wakeup(self, now: float) -> float:
        """When `step` next has something to do, if no event comes before."""

    def status(self, now: float) -> dict[str, Any]:
        """What is shown of the program and its links to whoever asks."""

    def report(self, now: float) -> None:
        """Logs that status."""


class Loop:
    """Carries one program. clock: seconds, monotonic. wall: Unix seconds, for contact plans."""

    def __init__(self, program: Program, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._program, self._clock, self._wall = program, clock, wall
        self._events = EventQueue(clock, program.object_pause)
        self._retry_at = -math.inf  # nothing is asked of the disk before

    def turn(self, now: float) -> bool:
        """Does all that is due now; returns whether a link brought something. Raises MemoryError, and what
        the program raises."""
        program = self._program
        brought = [self.poll(peer, now) for peer in program.links]
        program.attend(now)
        if now >= self._retry_at:
            try:
                self._events.handle(partial(self._handle, now))
                program.step(now)
            except OSError as error:
                self._retry_at = program.disk_failed(error, now)
        for peer, link in program.links.items():
            link.pump.hears = not self._events.is_full(peer)
        return any(brought)

    def poll(self, peer: int, now: float) -> bool:
        """Moves one link on; returns whether it brought an event, which the next turn hands over."""
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
        """When `turn` next has something to do, if nothing is heard before."""
        program = self._program
        act_at = max(min(program.wakeup(now), self._events.wakeup()), self._retry_at)
        links_at = min(link.wakeup(now) for link in program.links.values())
        return min(now + program.longest_wait_s, act_at, links_at)

    def run(self, report_every_s: float | None = None) -> None:
        """Runs until the program is over, or SIGTERM or SIGINT. `report_every_s` logs its status that
        often."""
        program, clock = self._program, self._clock
        report_due_s = math.inf if report_every_s is None else clock()
        with stop_signals() as stop, closing(Lookout(program.folder)) as lookout:
            while not stop.asked:
                now = clock()
                try:
                    self.turn(now)
                    if report_every_s is not None and now >= report_due_s:
                        report_due_s = now + report_every_s
                        program.report(now)
                    lookout.answer(lambda: program.status(clock()))
                    if program.is_over:
                        break
                    wake_s = min(self.wakeup(now), report_due_s)
                    # What the program's own processes say must wait as long as the disk refuses.
                    fds = program.fds if now >= self._retry_at else ()
                    pumps = [link.pump for link in program.links.values() if not link.is_suspended]
                    wait(pumps, wake_s - clock(), also=[stop.fd, *lookout.fds, *fds])
                except MemoryError:  # the whole board's: the memory of a training has a limit of its own
                    with contextlib.suppress(MemoryError):
                        program.relieve(now)
                        wait([], MEMORY_AGAIN_S, also=[stop.fd])

    def _begin_again(self, peer: int, now: float) -> None:
        try:
            self._program.begin_again(peer, now)
        except Exception as error:
            self._program.link_failed(peer, error, now)
        else:
            self._events.drop(peer)

    def _handle(self, now: float, peer: int, event: Event) -> None:
        self._program.handle(peer, event, now)
