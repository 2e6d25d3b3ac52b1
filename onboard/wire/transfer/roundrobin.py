"""Objects of equal urgency share the link by bytes: none waits for another to end.

Deficit round robin (M. Shreedhar, G. Varghese, Efficient Fair Queuing Using Deficit Round Robin, SIGCOMM
1995): each in turn is given a quantum, and sends while what it was given covers its next frame.
"""

from __future__ import annotations

from collections.abc import Mapping


class RoundRobin:
    """quantum_bytes: of one turn; as much as the longest frame, so that everybody's turn sends one."""

    def __init__(self, quantum_bytes: int) -> None:
        self._quantum_bytes = quantum_bytes
        self._credit_bytes: dict[int, int] = {}  # of who has something to send, in the order of turns

    def choose(self, wants_bytes: Mapping[int, int]) -> int:
        """The one whose frame leaves now, of all that want to send one (name: its bytes, at most a quantum).

        Who no longer wants to send loses what it has left. Raises ValueError if nobody wants to.
        """
        if not wants_bytes:
            raise ValueError("nobody has a frame to send")
        credit = self._credit_bytes = {
            name: left for name, left in self._credit_bytes.items() if name in wants_bytes
        }
        for name in wants_bytes:
            credit.setdefault(name, self._quantum_bytes)
        while True:
            name = next(iter(credit))
            if credit[name] >= wants_bytes[name]:
                credit[name] -= wants_bytes[name]
                return name
            credit[name] = credit.pop(name) + self._quantum_bytes  # to the end, with its next turn's share
