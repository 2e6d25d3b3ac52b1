"""What was recorded takes no turn, and after a restart of either end nothing of it is taken."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from onboard.wire.events import Delivered
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import NO_SALT, Sealer
from tests.onboard.wire.pair import FULL, HALF, SIDES, UPDATE, Pair, data

Choose = Callable[[bytes], bool]


def over(raw: bytes) -> bytes:
    """The same frame as if it ended a turn."""
    return raw[:1] + bytes((raw[1] | framing.OVER,)) + raw[2:]


class Recorded(Pair):
    """A link on which somebody keeps all that is said, by who is to hear it; every start is under no salt."""

    def __init__(self, link, **options) -> None:  # type: ignore[no-untyped-def]
        self.kept: dict[str, list[bytes]] = {side: [] for side in SIDES}
        super().__init__(link, nonce=random.Random(4).randbytes, **options)
        send = self.channel.send

        def kept(side, raw, now):  # type: ignore[no-untyped-def]
            self.kept["board" if side == "ground" else "ground"].append(raw)
            send(side, raw, now)

        self.channel.send = kept  # type: ignore[method-assign]

    def restart(self, side) -> None:  # type: ignore[no-untyped-def]
        """As the programs do: no salt of an earlier life is gone on with."""
        end = self.end(side)
        end.kill()
        end.disk.salt, end.disk.floor = NO_SALT, (0, 0)
        end.boot(self.now)

    def lives(self, count: int) -> None:
        """Both ends start again, by turns, and speak."""
        for life in range(count):
            self.run(self.now + 6.0)
            self.restart(SIDES[life % 2])
            self.board.offer(UPDATE, data(900, seed=life), self.now)
            self.ground.offer(UPDATE, data(900, seed=life + 100), self.now)
        self.run(self.now + 30.0)

    def transfer(self, injected: dict[str, list[bytes]], per_s: float) -> float:
        """Seconds that 20 kB take while so many of these are heard."""
        began, drawn, next_at = self.now, random.Random(3), self.now
        before = len(self.board.seen(Delivered))
        self.board.offer(UPDATE, data(20_000, seed=77), self.now)

        def done() -> bool:
            return len(self.board.seen(Delivered)) > before

        while not done():
            next_at += drawn.expovariate(per_s)
            self.run(next_at, done)
            assert self.now < began + 300.0
            for side in SIDES if not done() else ():
                if injected[side]:
                    self.end(side).hear(drawn.choice(injected[side]), self.now)
        return self.now - began


@pytest.fixture(scope="module")
def clean_s() -> float:
    pair = Recorded(HALF)
    pair.lives(8)
    return pair.transfer({side: [] for side in SIDES}, 1.0)


@pytest.mark.parametrize("per_s", [0.5, 2.0, 10.0])
def test_recorded_hellos_take_no_turn(per_s: float, clean_s: float) -> None:
    """All that was ever said by ends without a salt, heard by both, again and again."""
    pair = Recorded(HALF)
    pair.lives(8)
    hellos = {side: [raw for raw in raws if framing.is_hello(raw)] for side, raws in pair.kept.items()}
    assert min(len(raws) for raws in hellos.values()) > 10
    ending = [raw for raws in hellos.values() for raw in raws if framing.unproven(raw).over]
    assert len(ending) > 10
    assert pair.transfer(hellos, per_s) < (1.1 + per_s / 40) * clean_s  # each end answers one in 2 s


def forged(side: str, kind: Type, salt: bytes) -> bytes:
    node = 7 if side == "board" else 0
    sealer = Sealer(bytes(32), source=7 - node, destination=node, epoch=1, salt=salt)
    return sealer.seal(kind, bytes(24), over=True)


@pytest.mark.parametrize("what", ["older salts", "replays", "forged", "forged hellos", "bit of OVER set"])
def test_nothing_else_that_was_recorded_or_made_up_takes_a_turn_either(what: str, clean_s: float) -> None:
    pair = Recorded(HALF)
    pair.lives(8)
    if what in ("replays", "bit of OVER set"):
        for raws in pair.kept.values():
            raws.clear()
        pair.transfer({side: [] for side in SIDES}, 1.0)
        pair.run(pair.now + 10.0)  # what is under way arrives
    raws = {side: [raw for raw in kept if not framing.is_hello(raw)] for side, kept in pair.kept.items()}
    if what.startswith("forged"):
        kind = Type.HELLO if what == "forged hellos" else Type.REPORT
        raws = {side: [forged(side, kind, pair.ground.disk.salt)] for side in SIDES}
    if what == "bit of OVER set":
        raws = {side: [over(raw) for raw in kept] for side, kept in raws.items()}
    assert all(len(kept) > 0 for kept in raws.values())
    if what in ("replays", "bit of OVER set"):  # of the very salt that is in force
        began = {side: pair.end(side).session.snapshot(pair.now) for side in SIDES}  # type: ignore[union-attr]
        for _ in range(3):
            for side in SIDES:
                end = pair.end(side)
                assert end.session is not None
                opens_at = end.session.air.opens_at(pair.now)
                for raw in raws[side]:
                    assert end.session.receive(raw, pair.now) == []
                assert end.session.air.opens_at(pair.now) == opens_at
                after = end.session.snapshot(pair.now)
                assert after.frames_received == began[side].frames_received
        return
    assert pair.transfer(raws, 10.0) == pytest.approx(clean_s, rel=0.02)


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
@pytest.mark.parametrize("encrypted", [(), SIDES], ids=["plain", "encrypted"])
@pytest.mark.parametrize("victims", [("board",), ("ground",), ("ground", "board")], ids="-".join)
def test_after_a_kill_nothing_of_before_is_taken_again(link, encrypted, victims) -> None:  # type: ignore[no-untyped-def]
    """Not even what came in since the last save: every start is under a salt of its own."""
    pair = Recorded(link, encrypted=encrypted)
    pair.lives(3)
    pair.board.offer(UPDATE, data(6_000, seed=8), pair.now)
    pair.ground.offer(UPDATE, data(6_000, seed=9), pair.now)
    pair.run(pair.now + 6.0)  # in the middle of both
    recorded = {side: list(raws) for side, raws in pair.kept.items()}
    for victim in victims:
        pair.restart(victim)

    def replayed() -> None:
        for side in SIDES:
            end = pair.end(side)
            assert end.session is not None
            before = end.session.snapshot(pair.now)
            for raw in recorded[side]:
                assert end.session.receive(raw, pair.now) == []
            after = end.session.snapshot(pair.now)
            assert after.frames_received == before.frames_received
            assert after.fragments_received == before.fragments_received

    if victims == ("ground", "board"):
        replayed()  # neither has a salt
    else:
        survivor = pair.end("board" if victims == ("ground",) else "ground")
        assert survivor.session is not None
        assert survivor.session.salt != NO_SALT  # it knows what it took, until both agree anew
    pair.run(pair.now + 20.0, lambda: pair.ground.session.salt == pair.board.session.salt != NO_SALT)  # type: ignore[union-attr]
    replayed()
    pair.run(pair.now + 120.0)
    assert len(pair.ground.disk.objects) == len(pair.board.disk.objects) == 4
