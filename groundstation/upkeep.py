"""One link's failure is that link's: it is told, the link is begun again, and the others go on.

A session that has used up its numbers is begun again at once, as by a restart; a link that fails for a reason
that nobody foresaw is begun again after a pause, which doubles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from groundstation.station import Station
from groundstation.store.store import StoreError
from onboard.console.errors import where
from onboard.console.log import say
from onboard.link.pump import Pump
from onboard.wire.events import Event
from onboard.wire.security.seal import SeqExhausted

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 300.0


@dataclass(slots=True)
class _Failure:
    again_at: float
    pause_s: float
    is_down: bool = True


class Upkeep:
    """The links of a mission's stations. `renewed` is told which link has begun again: what was asked on it
    is to be asked once more."""

    def __init__(self, stations: Mapping[int, Station], renewed: Callable[[Station, float], None]) -> None:
        self._stations, self._renewed = stations, renewed
        self._failures: dict[int, _Failure] = {}

    def pumps(self) -> list[Pump]:
        """Those of the links that work."""
        return [station.pump for station in self._stations.values() if not self._is_down(station)]

    def poll(self, station: Station, now: float) -> list[Event]:
        """Moves one link on; returns what the mission must know."""
        if self._is_down(station):
            if now >= self._failures[station.node.id].again_at:
                self._renew(station, now)
            return []
        try:
            return station.poll(now)
        except SeqExhausted:
            self._renew(station, now)
        except Exception as error:  # whatever it is, it is no reason to leave the other boards alone
            self.fail(station, error, now)
        return []

    def fail(self, station: Station, error: Exception, now: float) -> None:
        """A link, or what it brought, cannot be dealt with: it rests, and is begun again."""
        before = self._failures.get(station.node.id)
        pause_s = min(2 * before.pause_s, LAST_PAUSE_S) if before else FIRST_PAUSE_S
        self._failures[station.node.id] = _Failure(now + pause_s, pause_s)
        say(
            log, "link-failed", level=logging.ERROR, node=station.node.name, why=where(error),
            again_in_s=pause_s,
        )  # fmt: skip

    def count(self, now: float) -> None:
        """Notes the counters of all links. Raises StoreError."""
        for station in self._stations.values():
            try:
                station.count(now)
            except StoreError:
                raise
            except Exception as error:
                self.fail(station, error, now)

    def _renew(self, station: Station, now: float) -> None:
        try:
            station.renew(now)
            self._renewed(station, now)
        except Exception as error:
            self.fail(station, error, now)
            return
        if station.node.id in self._failures:
            self._failures[station.node.id].is_down = False

    def _is_down(self, station: Station) -> bool:
        failure = self._failures.get(station.node.id)
        return failure is not None and failure.is_down
