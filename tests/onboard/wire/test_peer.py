"""A session facing a peer whose frames are made by hand: what it says to what, frame by frame."""

from __future__ import annotations

from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.messages import Offer, Report, digest
from onboard.wire.security.seal import Sealer, directional_key
from tests.onboard.wire.pair import FAST, HALF, KEY, UPDATE, ground_session

OUR_KEY = framing.keyed(directional_key(KEY, 0, 7, 0))


def test_a_report_that_was_due_to_a_peer_that_restarted_is_not_sent() -> None:
    session = ground_session(HALF)
    first, second = (Sealer(KEY, source=7, destination=0, epoch=epoch) for epoch in (1, 2))
    offer = Offer(digest(UPDATE, bytes(1000)), 1000, 200, UPDATE).encode()
    session.receive(first.seal(Type.OFFER, offer, object_id=5), 0.0)
    session.receive(second.seal(Type.MSG, b"awake", over=True), 0.5)
    assert session.transmit(0.5) is None
    assert session.wakeup(0.5) == float("inf")


def test_an_unknown_that_crossed_the_offer_is_no_reason_to_offer_again() -> None:
    session = ground_session(FAST)
    peer = Sealer(KEY, source=7, destination=0, epoch=1)
    session.offer(1, bytes(100_000), 0.0)

    def heard_unknown(seq: int, now: float) -> list[Type]:
        report = Report(1, seq, unknown=True).encode(100)
        session.receive(peer.seal(Type.REPORT, report, object_id=1), now)
        raw = session.transmit(now)
        return [] if raw is None else [framing.decode(raw, OUR_KEY).type]

    sent = [framing.decode(raw, OUR_KEY) for raw in iter(lambda: session.transmit(0.0), None)]
    assert [frame.type for frame in sent] == [Type.OFFER] + [Type.DATA] * (len(sent) - 1)
    assert heard_unknown(sent[-1].seq, 1.0) == [Type.OFFER]
    assert heard_unknown(sent[-1].seq, 1.001) != [Type.OFFER]
