"""A port whose far side has to answer first is opened in the background: no daemon waits for a network."""

from __future__ import annotations

import threading
from collections.abc import Callable

from onboard.link.port import Port


class InBackground:
    """Opens a port on a thread of its own, one attempt at a time. Each call tells how the attempt stands,
    and begins one if there is none."""

    def __init__(self, open_port: Callable[[], Port]) -> None:
        self._open_port = open_port
        self._thread: threading.Thread | None = None
        self._outcome: Port | Exception | None = None

    def __call__(self) -> Port | None:
        """The open port, or None while it is being opened. Raises what the attempt raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._attempt, daemon=True)
            self._thread.start()
        if self._thread.is_alive():
            return None
        outcome, self._thread, self._outcome = self._outcome, None, None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _attempt(self) -> None:
        try:
            self._outcome = self._open_port()
        except Exception as error:  # it belongs to whoever asked, on their thread
            self._outcome = error
