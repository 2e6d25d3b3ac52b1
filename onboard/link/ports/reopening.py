"""When a port is tried again, and what is told of it: each state once, however often it comes back.

A device that is not there is looked for every second, which costs nothing. One that opens and is lost
before anything was heard through it (a terminal server whose port is taken, a stick whose supply breaks down)
is left alone for longer each time, as each try costs both ends something and a day has 86,400 seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onboard.link.ports.port import PortLost

REOPEN_S = 1.0  # between two tries to open a port that is gone
LONGEST_S = 60.0  # between two tries to open one that never lasts
STEADY_S = 10.0  # a port that lasts so long will do, even if nobody is heard yet
TELL_AGAIN_S = 3600.0  # a state that lasts is told this often
MOST_REASONS = 4  # and for so many reasons, where each try ends in another one


@dataclass(frozen=True, slots=True)
class PortDown:
    """The port at `url` is gone, or was never there. Told once for each reason, every hour until it is back;
    `times`: how often it was lost or could not be opened since that was told last."""

    url: str
    reason: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class PortUp:
    """The port at `url` is open; `tries`: how many it took."""

    url: str
    tries: int = 1


class Reopening:
    """The tries to open one port."""

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

    def opened(self, url: str, now: float) -> list[PortUp]:
        """The port is open."""
        self._tries += 1
        self._opened_at, self._lasts = now, False
        return [] if self._short else self._tell_up(url, now)

    def alive(self, url: str, now: float, *, heard: bool) -> list[PortUp]:
        """The port is still open; `heard`: and a frame came through it."""
        if self._lasts or not (heard or now - self._opened_at >= STEADY_S):
            return []
        self._lasts, self._short = True, 0
        return [] if self._up_told else self._tell_up(url, now)

    def lost(self, lost: PortLost, now: float) -> list[PortDown]:
        """The port that was open is gone."""
        self._short = 0 if self._lasts else self._short + 1
        news = lost.reason not in self._reasons and len(self._reasons) < MOST_REASONS
        return self._again(lost, now, news)

    def failed(self, lost: PortLost, now: float) -> list[PortDown]:
        """The port could not be opened."""
        self._tries += 1
        return self._again(lost, now, not self._reasons)

    def _again(self, lost: PortLost, now: float, news: bool) -> list[PortDown]:
        self.at = now + min(LONGEST_S, REOPEN_S * 2 ** min(16, max(0, self._short - 1)))
        self._times += 1
        if now - self._told_at >= TELL_AGAIN_S:
            self._reasons.clear()
            self._told_at = now
        elif not news:
            return []
        self._reasons.add(lost.reason)
        down = PortDown(lost.url, lost.reason, self._times)
        self._up_told, self._times = False, 0
        return [down]

    def _tell_up(self, url: str, now: float) -> list[PortUp]:
        up = PortUp(url, self._tries)
        self._up_told, self._told_at = True, -math.inf
        self._reasons.clear()
        self._tries = self._times = 0
        return [up]
