"""The only loop that touches a port: frames in, events out, what was received onto the disk, frames out.

`poll` never waits; `wait` waits for several pumps at once. A lost port is told once and tried again every
second; what a full disk refuses stays in memory and is tried again. Neither stops the link for longer."""

from __future__ import annotations

import logging
import math
import select
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from onboard.link.peer import PeerShare, Whereabouts
from onboard.link.ports.port import Port, PortEvent, PortLost, line_fault
from onboard.link.spool import Saving, Spool
from onboard.wire.events import Arrived, Cancelled, Corrupt, Delivered, Event, Recut, Rekeyed, Withdrawn
from onboard.wire.session import Session

OPENING_S = 0.05  # how often to look whether a port that is being opened is there
REOPEN_S = 1.0  # between two tries to open a port that is gone
LONGEST_S = 60.0  # between two tries to open one that never lasts
STEADY_S = 10.0  # a port that lasts this long is good, even if nobody is heard yet
TELL_AGAIN_S = 3600.0  # a state that lasts is told this often
MOST_REASONS = 4  # and for this many reasons, where each try ends in another one
DRAIN_S = 0.01  # how soon to look again whether the device has sent its bytes
STALLED_S = 5.0  # without a byte taken
FAULT_AGAIN_S = 600.0
UNSELECTABLE_S = 0.02  # how often to look at a port that cannot be waited for
SLICE_FRAMES = 64  # of one peer in one turn, so that others are heard in between
_WRITTEN = (Arrived, Cancelled, Delivered, Recut, Rekeyed, Withdrawn)  # the application writes something down


@dataclass(frozen=True, slots=True)
class PortSnapshot:
    """A port, and all that crossed it since the start, however often it was opened. `why` says what keeps it
    closed. `peer`: the other end's address, empty on a cable or if unknown. Counters: as in `Port`."""

    url: str = ""
    open: bool = False
    why: str = ""
    peer: str = ""
    rx_bytes: int = 0
    tx_bytes: int = 0
    broken: int = 0
    spool_full: int = 0  # writes of what was received that failed


PumpEvent = Event | PortEvent


class Pump:
    """Moves one session over one port, and its incoming objects through one spool. `opener` opens the port,
    or returns None while that takes its time; `poll` calls it. The pump owns `session`, except for the
    application's side of it. The objects in the spool are resumed at once."""

    def __init__(self, opener: Callable[[], Port | None], session: Session, spool: Spool) -> None:
        self.session = session
        self._opener = opener
        self._port: Port | None = None
        self._again = Reopening()
        self._blocked = False
        self._events: list[PumpEvent] = []  # not yet returned by `poll`
        self._frames: deque[bytes] = deque()  # read, and not handled yet
        self._heard_from, self._is_deaf = -math.inf, False  # not before is the port read
        self.hears = True
        """Whether what comes in is taken: not while too much of it waits for the disk."""
        self._past = PortSnapshot()  # of all ports before this one
        self._taken_bytes, self._taken_at = -1, -math.inf  # when the device took something last
        self._faults_seen, self._faults_told = 0, dict[str, float]()
        self._share = PeerShare()
        self._saving = Saving(session, spool, self._share, self._events.append)
        self._whereabouts = Whereabouts(session, spool.folder, self._events.append)

    @property
    def is_open(self) -> bool:
        return self._port is not None

    def port_snapshot(self) -> PortSnapshot:
        past = replace(self._past, spool_full=self._saving.failed)
        if self._port is None:
            return past
        return replace(
            past,
            url=self._port.url,
            open=True,
            why="",
            peer=(self._port.paths.peer or "") if self._port.paths else "",
            rx_bytes=past.rx_bytes + self._port.rx_bytes,
            tx_bytes=past.tx_bytes + self._port.tx_bytes,
            broken=past.broken + self._port.broken,
        )

    def poll(self, now: float) -> list[PumpEvent]:
        """Do all that can be done now, without waiting; return what happened.

        Objects that `Arrived` are on the disk by then, if it takes them. Objects that were accepted, refused,
        withdrawn or expired are gone from it before another byte leaves. Raises BadUrl; what happened before
        anything is raised is returned by the next call."""
        if self._port is None and now >= self._again.at:
            self._open(now)
        try:
            if self._port is not None and self.hears and now >= self._heard_from:
                self._hear(self._port, now)
            self._events += self.session.tick(now)
            self._saving.save(now)
            # The answer to a CANCEL says that the object is gone for good.
            self._saving.settle(now)
            if self._port is not None:
                self._whereabouts.look(self._port, now)
                self._speak(self._port, now)
                self._tell_fault(self._port, now)
        except PortLost as lost:
            self._drop_port(lost.reason)
            self._events += self._again.lost(lost, now)
            self._saving.save(now)
        return self._told()

    def wakeup(self, now: float) -> float:
        """Return the earliest time at which `poll` may have work, if nothing arrives before."""
        save_at = self._saving.wakeup(now)
        if self._port is None:
            return max(now, min(self._again.at, save_at))
        session_at = self.session.wakeup(now)
        if self._blocked:  # it may want to speak, but the device is not done with what it has
            session_at = max(session_at, now + DRAIN_S)
        closes_at = self.session.contacts.closes_at(now) if self._port.queued_bytes() else math.inf
        hears_at = math.inf
        if self.hears and (self._frames or self._heard_from > now):
            hears_at = max(now, self._heard_from)
        return max(now, min(session_at, save_at, closes_at, hears_at))

    def close(self, now: float) -> list[PumpEvent]:
        """Save half-received objects and close the port. The pump may be polled again later."""
        self._saving.save_all(now)
        if self._port is not None:
            self._whereabouts.keep(self._port)
            self._drop_port("")
        return self._told()

    def wants_write(self) -> bool:
        return self._port is not None and self._port.kept_bytes() > 0

    def wants_read(self) -> bool:
        """Return whether what comes in would be taken before `wakeup`."""
        return self._port is not None and self.hears and not self._is_deaf

    def fileno(self) -> int:
        """Return the port's file descriptor; -1 while it is closed, or where it has none."""
        return self._port.fileno() if self._port is not None else -1

    def _told(self) -> list[PumpEvent]:
        events = self._events.copy()
        self._events.clear()
        return events

    # -- the port --------------------------------------------------------------------------------------

    def _open(self, now: float) -> None:
        try:
            self._port = self._opener()
        except PortLost as lost:
            self._past = replace(self._past, url=lost.url, why=lost.reason)
            self._events += self._again.failed(lost, now)
            return
        if self._port is None:
            self._again.at = now + OPENING_S
            return
        self._blocked = False
        self._events += self._again.opened(self._port.url, now)
        self._whereabouts.opened(self._port, now)

    def _drop_port(self, why: str) -> None:
        assert self._port is not None, "no port to drop"
        self._past = replace(self.port_snapshot(), open=False, why=why)
        self._port.close()
        self._port = None
        self._frames.clear()

    def _hear(self, port: Port, now: float) -> None:
        if not self._frames:
            self._frames.extend(port.read())
            self._events += self._again.alive(port.url, now, heard=bool(self._frames))
        self._share.line(self.session.air.timing.back_bytes_per_s)
        for _ in range(min(len(self._frames), SLICE_FRAMES)):
            frame = self._frames.popleft()
            origin = None if port.paths is None else port.paths.origin(frame)
            damaged = self.session.damaged
            heard = self.session.receive(frame, now, origin)
            self._events += heard  # before anything may fail: the session says none of it twice
            for event in heard:
                if isinstance(event, _WRITTEN):
                    self._share.wrote(now)
                if isinstance(event, Arrived):
                    self._saving.whole(event.digest, now)
                elif isinstance(event, Corrupt):
                    self._saving.corrupt(event.digest, now)
            is_bad = self.session.damaged > damaged
            self._share.heard(len(frame), now, bad=is_bad)
            if is_bad:
                port.distrust(frame)
            self._whereabouts.heard(port, origin, now)
            if any(isinstance(event, Rekeyed) for event in heard):
                break  # the frames behind it are under the new salt, in force once the application says so
        self._heard_from = self._share.free_at(now)
        self._is_deaf = self._heard_from > now
        self._events += self._share.over(now)

    def _tell_fault(self, port: Port, now: float) -> None:
        """Each kind of fault is told once in FAULT_AGAIN_S."""
        if not port.kept_bytes() or port.tx_bytes != self._taken_bytes:
            self._taken_bytes, self._taken_at = port.tx_bytes, now
        found: PortEvent | None = None
        if now - self._taken_at >= STALLED_S:
            why = f"the device took nothing for {now - self._taken_at:.0f} s: it is stalled"
            found = line_fault("stall", why)
        elif (seen := port.broken + self.session.damaged) != self._faults_seen:
            self._faults_seen = seen
            found = port.fault(self.session.link)
        kind = "" if found is None else found.fields["fault"]
        if found is not None and now >= self._faults_told.get(kind, -math.inf) + FAULT_AGAIN_S:
            self._faults_told[kind] = now
            self._events.append(found)

    def _speak(self, port: Port, now: float) -> None:
        self._blocked = False
        if not self.session.contacts.is_up(now):
            if port.queued_bytes():
                port.discard()  # a stalled device would send it outside of the contact
            return
        port.flush()
        while True:
            # One frame at most in the device, then one more: an urgent one never waits for a third.
            if port.queued_bytes() > port.max_frame_bytes:
                self._blocked = True
                return
            frame = self.session.transmit(now)
            if frame is None:
                return
            self._whereabouts.write(port, frame, self.session.air.lead_bytes)


class Reopening:
    """Times the tries to open one port, and tells each state once, however often it comes back.

    A missing device is looked for every second, which costs nothing. A port that opens and is lost before
    anything was heard through it (a terminal server whose port is taken, a stick whose supply breaks down) is
    left alone for longer each time, as each try costs both ends something."""

    def __init__(self) -> None:
        self.at = -math.inf
        """When to try next."""
        self._opened_at = -math.inf
        self._lasts = False  # the port that is open was heard through, or is steady
        self._short = 0  # ports in a row that did not last
        self._tries = self._times = 0  # since they were told
        self._up_told = False
        self._reasons = set[str]()  # that were told since the port was up, or in this hour
        self._told_at = -math.inf  # the first of these

    def opened(self, url: str, now: float) -> list[PortEvent]:
        self._tries += 1
        self._opened_at, self._lasts = now, False
        return [] if self._short else self._tell_up(url)

    def alive(self, url: str, now: float, *, heard: bool) -> list[PortEvent]:
        """Note that the port is still open. `heard`: a frame came through it."""
        if self._lasts or not (heard or now - self._opened_at >= STEADY_S):
            return []
        self._lasts, self._short = True, 0
        return [] if self._up_told else self._tell_up(url)

    def lost(self, lost: PortLost, now: float) -> list[PortEvent]:
        self._short = 0 if self._lasts else self._short + 1
        news = lost.reason not in self._reasons and len(self._reasons) < MOST_REASONS
        return self._again(lost, now, news)

    def failed(self, lost: PortLost, now: float) -> list[PortEvent]:
        self._tries += 1
        return self._again(lost, now, not self._reasons)

    def _again(self, lost: PortLost, now: float, news: bool) -> list[PortEvent]:
        self.at = now + min(LONGEST_S, REOPEN_S * 2 ** min(16, max(0, self._short - 1)))
        self._times += 1
        if now - self._told_at >= TELL_AGAIN_S:
            self._reasons.clear()
            self._told_at = now
        elif not news:
            return []
        self._reasons.add(lost.reason)
        times = {"times": self._times} if self._times > 1 else {}
        self._up_told, self._times = False, 0
        return [PortEvent("port-lost", {"port": lost.url, "why": lost.reason, **times}, logging.ERROR)]

    def _tell_up(self, url: str) -> list[PortEvent]:
        tries = {"tries": self._tries} if self._tries > 1 else {}
        self._up_told, self._told_at = True, -math.inf
        self._reasons.clear()
        self._tries = self._times = 0
        return [PortEvent("port-open", {"port": url, **tries}, logging.INFO)]


def wait(pumps: Iterable[Pump], timeout_s: float, also: Iterable[int] = ()) -> None:
    """Wait until a port of `pumps` is readable or takes what was kept for it, one of the file descriptors
    `also` is readable (such as a signal's wake-up pipe), or `timeout_s` is over."""
    readable, writable = list(also), []
    for pump in pumps:
        if pump.fileno() >= 0:
            if pump.wants_read():
                readable.append(pump.fileno())
            if pump.wants_write():
                writable.append(pump.fileno())
        elif pump.is_open:
            timeout_s = min(timeout_s, UNSELECTABLE_S)
    # select() and not poll(): the latter rounds to a millisecond, in which a fast link sends ten frames.
    select.select(readable, writable, [], None if timeout_s == math.inf else max(0.0, timeout_s))
