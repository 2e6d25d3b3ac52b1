"""The final model goes to every board, to keep and to use; a board that knows no more of it gets it again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from groundstation.rounds.asking import Askings
from groundstation.station import Station
from onboard.console.log import say
from onboard.mission.health import Health, State

log = logging.getLogger(__name__)


class Deployment:
    """Nothing until it begins. `ask` puts an object on its way to a node; `deadline_s` is a round's, and the
    mission waits for the boards as long."""

    def __init__(
        self,
        stations: Mapping[int, Station],
        askings: Askings,
        ask: Callable[[int, bytes, int], None],
        deadline_s: float,
    ) -> None:
        self._stations, self._askings, self._ask = stations, askings, ask
        self._deadline_s = deadline_s
        self._number = 0
        self.model = b""  # the object, once it is on its way
        self.until_s = 0.0

    def begin(self, model: bytes, number: int, now: float) -> None:
        """Offers the object of `number`, one after the last round's. Raises StoreError."""
        self.model, self._number, self.until_s = model, number, now + self._deadline_s
        self._askings.clear()
        for node in self._stations:
            self._ask(node, model, 0)

    def is_over(self, now: float) -> bool:
        """Whether nothing is waited for any more."""
        return now >= self.until_s or self._askings.delivered >= len(self._stations)

    def hear(self, node: int, health: Health, now: float) -> None:
        """Offers it again to a board that took it and cannot read it, or came back empty."""
        if not self.model:
            return
        knows = self._askings.speaks_of(node, self._number, health) and health.state != State.FAILED
        if knows or not self._askings.forgot(node, self._number, health):
            return
        if self._askings.may_ask_again(node, now, self._deadline_s):
            name = self._stations[node].node.name
            say(log, "forgotten", level=logging.WARNING, node=name, round=self._number - 1, why=health.why)
            self._ask(node, self.model, 0)
