"""Advice that anybody's frames can bring about is given seldom, however often there is a reason for it."""

from __future__ import annotations

import math

FIRST_S, DAY_S = 600.0, 86_400.0


class Seldom:
    """One kind of line: told at once, then after 10 minutes at the earliest, and after twice as long each
    time, at last a day. After a day without a reason it begins anew."""

    def __init__(self) -> None:
        self._told_at = self._wanted_at = -math.inf
        self._pause_s = 0.0

    def may(self, now: float) -> bool:
        """There is a reason; True if it is to be told."""
        if now >= self._wanted_at + DAY_S:
            self._pause_s = 0.0
        self._wanted_at = now
        if now < self._told_at + self._pause_s:
            return False
        self._told_at = now
        self._pause_s = min(2 * self._pause_s, DAY_S) if self._pause_s else FIRST_S
        return True
