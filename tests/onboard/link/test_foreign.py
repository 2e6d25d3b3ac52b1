"""Somebody without a key who reaches a port costs one line of the log, and neither end a frame."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from onboard.wire.events import EncryptionMismatch, ForeignFrames, OutOfStep, TwoEnds, UnknownPeer, WrongKey
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import Sealer
from tests.onboard.link.lan import LanEnd, PortLan, free

LIES = (WrongKey, EncryptionMismatch, OutOfStep, TwoEnds, UnknownPeer)


def made_up(node: int, drawn: random.Random) -> bytes:
    """A frame to that node from its peer, under no key of theirs; some say that they are encrypted."""
    sealer = Sealer(drawn.randbytes(32), source=3 - node, destination=node, epoch=drawn.randrange(1, 9))
    raw = bytearray(sealer.seal(drawn.choice((Type.MSG, Type.HELLO, Type.DATA)), drawn.randbytes(24)))
    if drawn.random() < 0.5 and raw[0] & 0x1F:
        raw[1] |= 0x04
    return bytes(raw)


@pytest.mark.parametrize("at", ["ground", "board"])
def test_frames_of_nobody_on_a_udp_port(at: str, tmp_path: Path) -> None:
    ground, board = free(), free()
    net = PortLan(
        tmp_path, f"udp://127.0.0.1:{board}?bind=127.0.0.1:{ground}",
        f"udp://127.0.0.1:{ground}?bind=127.0.0.1:{board}",
    )  # fmt: skip
    net.meet()
    victim: LanEnd = net.ends[at]
    other = net.board if victim is net.ground else net.ground
    node = 0 if victim.is_ground else 3
    drawn = random.Random(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        for _ in range(12):
            for _ in range(8):
                nobody.sendto(made_up(node, drawn), victim.address)
            net.run(30.0, step_s=0.5)
            net.says(other, 5.0)
            net.says(victim, 5.0)
    for end in (ground_end := net.ground, net.board):
        assert not [event for kind in LIES for event in end.told(kind)], (end.name, ground_end.events)
    (told,) = victim.told(ForeignFrames)
    assert isinstance(told, ForeignFrames)
    assert told.bad_tags + told.other_form >= 8
    assert not other.told(ForeignFrames)
    assert len(victim.lines("peer-at")) <= 1
    snapshot = victim.pump.session.snapshot(net.clock.now)
    assert snapshot.bad_tags + snapshot.encrypted_dropped == 96
