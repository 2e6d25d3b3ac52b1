"""How much of an object may be out of its receiver's REPORTs, and how often they are asked for.

Both follow from the link's round trip and from what it was seen to lose: enough to keep the air busy, and
no more, so that a receiver that dies takes little with it and a peer that is away is asked little.
"""

from __future__ import annotations

from onboard.wire.framing.frame import OVERHEAD_BYTES
from onboard.wire.medium.timing import RETRY_S, Timing
from onboard.wire.transfer.loss import LossEstimator
from onboard.wire.transfer.transfer import Outgoing

_QUICK_ASKS = 12  # 288 B where little is lost; from then on ever more slowly
_LITTLE_LOSS = 0.05
_MOST_BURST = 3.0
_SLOWER_FROM_S = 0.25
_SLOWER = 1.5
_MAX_ACCEPT_S = 30.0  # between two questions about an object that is whole and not yet accepted


class SendWindow:
    """The rules of one outgoing direction; `loss` is what they learn from."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.loss = LossEstimator()
        self.by_turns = timing.half_duplex
        self.peer_is_busy = False  # it sends bulk, so that its answers queue behind that

    def window(self, outgoing: Outgoing) -> int:
        """How many fragments may be out of the receiver's REPORTs.

        1/64 of the object, so that a receiver that is killed takes no more with it, and at least the
        bandwidth-delay product as often as questions may be asked in vain, and once more while the last of
        them is being answered, so that a lost REPORT does not stall the flow. A turn on half-duplex takes
        1/16 and as many times more: each costs two changes of direction, and an answer that is lost as much
        again.
        """
        round_trip = self._timing.round_trip_fragments(outgoing.count, outgoing.fragment_bytes)
        if not outgoing.answered:
            # The first round trip after an OFFER is filled and no more: the receiver may hold it all.
            if self._timing.waits_for_answer(len(outgoing.payload), outgoing.count):
                return 0
            return max(4, round_trip + 1)
        if self.by_turns:
            return max(8, round(outgoing.count / 16 * self._round_trips / 2))
        return max(4, round(self._spare_round_trips * round_trip), outgoing.count // 64)

    def wants_report(self, outgoing: Outgoing, unasked: int, *, last: bool) -> bool:
        """Whether the next frame of an object's bulk asks for a REPORT: the last that may leave, and one a
        round trip; `unasked` left since. On half-duplex the end of the turn asks."""
        if self.by_turns:
            return False
        window = self.window(outgoing)
        return last or outgoing.in_flight + 1 >= window or unasked + 1 >= window // self._spare_round_trips

    def repair_asks(self, outgoing: Outgoing, asks: int) -> bool:
        """Whether a REPAIR is sent in a POLL's place: it asks as well, may be what is missing, and in the
        time between two questions the air would have been idle."""
        if outgoing.complete or self.by_turns or self.loss.expected < _LITTLE_LOSS:
            return False
        return self._timing.fragment_s(outgoing.fragment_bytes) <= self._quick_s(outgoing, asks)

    def patience_s(self, outgoing: Outgoing, asks: int) -> float:
        """From one question about an object, the `asks`-th, to the next, if nothing else is left to send.

        On a link that loses little the answer is waited for. Otherwise the idle air is worth less than a
        round trip: a few questions follow each other within one. Then ever more slowly.
        """
        if outgoing.complete:
            return min(RETRY_S * 2.0 ** min(asks, 8), _MAX_ACCEPT_S)
        if self.by_turns:
            return self._timing.burst_s  # not again in this turn; the next one may ask at once
        if asks <= 1 and self.loss.measured < _LITTLE_LOSS:
            return self._answer_s(outgoing)
        quick_s = self._quick_s(outgoing, asks)
        slower = asks - round(_QUICK_ASKS * self._round_trips / 2)
        if slower <= 0:
            return min(quick_s, RETRY_S)
        return min(max(quick_s, _SLOWER_FROM_S) * _SLOWER ** min(slower, 32), RETRY_S)

    @property
    def _round_trips(self) -> float:
        """Of so many, with a question in each, one is answered in 99 of 100 cases."""
        return self.loss.questions * self.loss.burst

    @property
    def _spare_round_trips(self) -> float:
        """So many a window is long: one more, in which the last question is answered, and where losses come
        in bursts as many times more again, as the answers have bursts of their own."""
        return self._round_trips * min(self.loss.burst, _MOST_BURST) + 1

    def _answer_s(self, outgoing: Outgoing) -> float:
        return self._timing.answer_s(outgoing.count, busy=self.peer_is_busy)

    def _quick_s(self, outgoing: Outgoing, asks: int) -> float:
        """Between two of so many questions in the time of an answer that one of them will be answered."""
        questions = max(self.loss.questions, min(asks, _QUICK_ASKS))
        return max(self._answer_s(outgoing) / questions, 8 * self._timing.airtime_s(OVERHEAD_BYTES))
