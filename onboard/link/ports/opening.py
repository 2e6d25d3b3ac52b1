"""What may have to wait for a network is done in the background: no daemon waits for one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class InBackground(Generic[T]):
    """Does something on a thread of its own, such as to open a port or to look up a name, one attempt at a
    time. Each call tells how the attempt stands, and begins one if there is none."""

    def __init__(self, attempt: Callable[[], T]) -> None:
        self._try = attempt
        self._thread: threading.Thread | None = None
        self._outcome: T | Exception | None = None

    def __call__(self) -> T | None:
        """What the attempt gave, or None while it lasts. Raises what the attempt raised."""
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
            self._outcome = self._try()
        except Exception as error:  # it belongs to whoever asked, on their thread
            self._outcome = error
