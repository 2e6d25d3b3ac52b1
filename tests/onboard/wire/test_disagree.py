"""However two ends come to disagree about salt or epochs, they speak again within 45 s, one event says why,
and nobody is told that a key that is right is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hw_profiles import Link
from onboard.wire.config import SessionState
from onboard.wire.events import (
    EncryptionMismatch,
    Event,
    ForeignFrames,
    Message,
    OutOfStep,
    Rekeyed,
    TwoEnds,
    WrongKey,
)
from onboard.wire.security.seal import NO_SALT
from tests.numbers import Numbers, recorded
from tests.onboard.wire.pair import FULL, HALF
from tests.onboard.wire.test_doubt import One, run

HEALED_S = 45.0
LIES = (WrongKey, EncryptionMismatch, ForeignFrames)
Case = Callable[[int, float, One, One, dict[str, object]], tuple[One, One, float, set[type[Event]]]]


@pytest.fixture
def numbers() -> Iterator[Numbers]:
    with recorded() as watched:
        yield watched


# Each gives the ends that go on, the time, and what must be told by one of them.


def copy_elsewhere(node: int, now: float, own: One, peer: One, how: dict[str, object]):  # type: ignore[no-untyped-def]
    """The state of one end ran on another computer for a minute; the end itself was unplugged, and ran on."""
    laptop = One(node, now, epoch=2, **how)  # type: ignore[arg-type]
    now = run((peer, laptop), now, now + 60.0)
    assert peer.session.salt == laptop.session.salt != own.session.salt
    return own, peer, now, {OutOfStep}


def restored(node: int, now: float, own: One, peer: One, how: dict[str, object]):  # type: ignore[no-untyped-def]
    """An older copy of its state is in its place."""
    return One(node, now, epoch=1, **how), peer, now, {Rekeyed}  # type: ignore[arg-type]


def both_restored(node: int, now: float, own: One, peer: One, how: dict[str, object]):  # type: ignore[no-untyped-def]
    own, peer = One(node, now, epoch=2, **how), One(7 - node, now, epoch=1, **how)  # type: ignore[arg-type]
    return own, peer, now, {Rekeyed}


def started_ahead(node: int, now: float, own: One, peer: One, how: dict[str, object]):  # type: ignore[no-untyped-def]
    """Its journal was damaged: it left out epochs."""
    return One(node, now, epoch=1 + 1025, **how), peer, now, {Rekeyed}  # type: ignore[arg-type]


def copied_and_off(node: int, now: float, own: One, peer: One, how: dict[str, object]):  # type: ignore[no-untyped-def]
    """The copy ran while the end was off, which starts again after it, in the same epoch as the copy did."""
    laptop = One(node, now, epoch=2, **how)  # type: ignore[arg-type]
    now = run((peer, laptop), now, now + 20.0)
    return One(node, now, epoch=2, **how), peer, now, {Rekeyed}  # type: ignore[arg-type]


def memory_back(node: int, now: float, own: One, peer: One, how: dict[str, object]):  # type: ignore[no-untyped-def]
    """A virtual machine went back to a snapshot: the same salt, and numbers once more."""
    back = One(node, now, state=SessionState(1, (1, 1), own.session.salt), **how)  # type: ignore[arg-type]
    return back, peer, now, {OutOfStep}


def half_agreed(node: int, now: float, own: One, peer: One, how: dict[str, object]):  # type: ignore[no-untyped-def]
    """The last HELLO of an agreement was lost."""
    again, agreed = One(node, now, epoch=2, **how), peer.session.salt  # type: ignore[arg-type]

    def hears(hearer: One, speaker: One) -> bool:
        return hearer is peer or peer.session.salt == agreed

    now = run((peer, again), now, now + 8.0, hears)
    return again, peer, now, {Rekeyed}


CASES: list[Case] = [
    copy_elsewhere, restored, both_restored, started_ahead, copied_and_off, memory_back, half_agreed,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("node", [0, 7], ids=["ground", "board"])
@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_they_speak_again_and_say_why(node: int, case: Case, link: Link, encrypted: bool) -> None:
    how: dict[str, object] = {"link": link, "encrypted": encrypted}
    ends = {n: One(n, 0.0, **how) for n in (0, 7)}  # type: ignore[arg-type]
    now = run(ends.values(), 0.0, 60.0)
    assert all(end.times(Message)[-1] > now - 5 for end in ends.values())
    own, peer, began, told = case(node, now, ends[node], ends[7 - node], how)
    now = run((peer, own), began, began + 120.0)
    assert own.session.salt == peer.session.salt != NO_SALT
    for end in (own, peer):
        heard = [at for at in end.times(Message) if at > began]
        assert heard[0] - began < HEALED_S
        assert heard[-1] > now - 5
        assert not end.times(*LIES, TwoEnds)
    lines = [at for end in (own, peer) for at in end.times(*told) if at > began - 10]
    assert 1 <= len(lines) <= 2  # of each end, one at most
    steps = [len([at for at in end.times(OutOfStep) if at > began]) for end in (own, peer)]
    assert max(steps) <= 1
    assert sum(steps) == 0 or OutOfStep in told


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_two_live_copies_share_no_number(encrypted: bool, numbers: Numbers) -> None:
    """Each agrees with the ground by itself, under nonces of its own, and so under a salt of its own."""
    ground, first = One(0, 0.0, encrypted=encrypted), One(7, 0.0, epoch=6, encrypted=encrypted)
    now = run((ground, first), 0.0, 10.0)
    second = One(7, now, epoch=6, encrypted=encrypted)
    now = run((ground, first, second), now, now + 700.0)
    assert ground.times(TwoEnds)
    assert not ground.times(WrongKey, EncryptionMismatch)
    assert numbers.salts >= 4
    assert len(numbers.used) > 1000
