"""The send window: how much of an object may be in flight, and how often its receiver is asked for REPORTs.

Both follow from the link's round trip and from the losses that were measured. The window keeps the air busy
and is no larger, so that a receiver that dies takes little with it, and a peer that is away is asked little.
"""

from __future__ import annotations

from onboard.wire.framing.frame import OVERHEAD_BYTES
from onboard.wire.medium.medium_access import BURST_S, RETRY_S, Timing
from onboard.wire.transfer.peer import LossEstimator, ReceiveStats
from onboard.wire.transfer.transfer import Outgoing

_QUICK_ASKS = 12  # questions, 288 B where little is lost; the ones after that follow ever more slowly
_LITTLE_LOSS = 0.05
_MOST_BURST = 3.0
_SLOWER_FROM_S = 0.25
_SLOWER = 1.5
_MAX_ACCEPT_S = (
    30.0  # the longest pause between two questions about an object that is whole, not yet accepted
)


class SendWindow:
    """The window of one outgoing direction. It follows the losses that `loss` estimates."""

    def __init__(self, timing: Timing, hearing: ReceiveStats) -> None:
        self._timing, self._hearing = timing, hearing
        self.loss = LossEstimator()
        self.by_turns = timing.half_duplex

    def window(self, outgoing: Outgoing) -> int:
        """The number of fragments that may be in flight.

        It is 1/64 of the object, so that a receiver that is killed takes no more with it. It is at least one
        bandwidth-delay product for each round trip in which a question may be lost, and one more in which the
        last question is answered, so that a lost REPORT does not stall the flow. On half-duplex a turn
        carries 1/16 of the object, or more in the same proportion, because each turn costs two changes of
        direction, and a lost answer costs two more.
        """
        round_trip = self._timing.round_trip_fragments(outgoing.count, outgoing.fragment_bytes)
        if not outgoing.answered:
            # One round trip after an OFFER is filled and no more: the receiver may hold the whole object.
            if self._timing.waits_for_answer(len(outgoing.payload), outgoing.count):
                return 0
            return max(4, round_trip + 1)
        if self.by_turns:
            return max(8, round(outgoing.count / 16 * self._round_trips / 2))
        return max(4, round(self._spare_round_trips * round_trip), outgoing.count // 64)

    def wants_report(self, outgoing: Outgoing, unasked: int, *, last: bool) -> bool:
        """Whether the next DATA or REPAIR asks for a REPORT: the last one that the window allows does, and
        one in each round trip. `unasked` of them have left since the last that asked. On half-duplex the end
        of the turn asks instead."""
        if self.by_turns:
            return False
        window = self.window(outgoing)
        return last or outgoing.in_flight + 1 >= window or unasked + 1 >= window // self._spare_round_trips

    def repair_asks(self, outgoing: Outgoing, asks: int) -> bool:
        """Whether a REPAIR is sent in place of a POLL: it asks as well, it may bring what is missing, and the
        air would have been idle until the next question."""
        if outgoing.complete or self.by_turns or self.loss.expected < _LITTLE_LOSS:
            return False
        return self._timing.fragment_s(outgoing.fragment_bytes) <= self._quick_s(outgoing, asks)

    def patience_s(self, outgoing: Outgoing, asks: int) -> float:
        """The pause after the `asks`-th question about an object, if nothing else is left to send.

        On a link that loses little the answer is waited for. On one that loses more, a few questions follow
        each other within one round trip, as the idle air is worth less than the round trip. After these they
        follow ever more slowly.
        """
        if outgoing.complete:
            return min(RETRY_S * 2.0 ** min(asks, 8), _MAX_ACCEPT_S)
        if self.by_turns:
            return BURST_S  # not again in this turn; the next one may ask at once
        if asks <= 1 and self.loss.measured < _LITTLE_LOSS:
            return self._answer_s(outgoing)
        quick_s = self._quick_s(outgoing, asks)
        slower = asks - round(_QUICK_ASKS * self._round_trips / 2)
        if slower <= 0:
            return min(quick_s, RETRY_S)
        return min(max(quick_s, _SLOWER_FROM_S) * _SLOWER ** min(slower, 32), RETRY_S)

    @property
    def _round_trips(self) -> float:
        """The number of round trips, with a question in each, of which at least one brings an answer in 99 of
        100 cases."""
        return self.loss.questions * self.loss.burst

    @property
    def _spare_round_trips(self) -> float:
        """The length of a window in round trips: those in which questions may be lost, and one in which the
        last question is answered. Where losses come in bursts there are more, as the answers have bursts
        too."""
        return self._round_trips * min(self.loss.burst, _MOST_BURST) + 1

    def _answer_s(self, outgoing: Outgoing) -> float:
        return self._timing.answer_s(outgoing.count, busy=self._hearing.is_busy)  # they queue behind its bulk

    def _quick_s(self, outgoing: Outgoing, asks: int) -> float:
        """The pause between two questions, so short that enough of them leave while one answer is awaited."""
        questions = max(self.loss.questions, min(asks, _QUICK_ASKS))
        return max(self._answer_s(outgoing) / questions, 8 * self._timing.airtime_s(OVERHEAD_BYTES))
