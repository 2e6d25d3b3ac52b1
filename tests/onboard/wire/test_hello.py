"""Ends that lose their state find back to each other, and no recorded frame is ever taken."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Message, Rekeyed
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Frame, Type
from onboard.wire.messages import BadMessage
from onboard.wire.security.seal import NO_SALT, Sealer
from onboard.wire.security.security_context import NO_NONCE, Hello, RekeyHandshake
from onboard.wire.session import Session
from tests.onboard.wire.pair import FULL, HALF, KEY, SIDES, Pair, data, finish

STEP_S = 3.0  # more than a HELLO's interval, and than a frame takes


@dataclass
class Lives:
    """One end through all its lives: its disk, and every message that it ever took. As the programs do, it
    begins each under no salt."""

    node: int
    peer: int
    random: random.Random
    encrypted: bool = False
    epoch: int = 0
    salt: bytes = NO_SALT
    floor: tuple[int, int] = (0, 0)
    taken: set[bytes] = field(default_factory=set)
    rekeyed: int = 0

    def boot(self, now: float) -> None:
        self.epoch += 1
        self.session = Session(
            Identity(self.node, self.peer, primary=self.node == 0),
            Medium(FULL),
            Security(KEY, nonce=self.random.randbytes, encrypted=self.encrypted),
            SessionState(epoch=self.epoch),
            now=now,
        )

    def lose(self, now: float) -> None:
        """An empty disk."""
        self.epoch, self.salt, self.floor = 0, NO_SALT, (0, 0)
        self.boot(now)

    def restore(self, epoch: int, now: float) -> None:
        """An older copy of its disk."""
        self.epoch = min(epoch, self.epoch - 1)
        self.boot(now)

    def hear(self, raw: bytes, now: float) -> None:
        for event in self.session.receive(raw, now):
            if isinstance(event, Rekeyed):
                self.salt, self.floor = event.salt, (0, 0)
                self.session.rekey(event.salt)
                self.rekeyed += 1
            elif isinstance(event, Message):
                assert event.payload not in self.taken, "a recorded frame was taken"
                self.taken.add(event.payload)
                self.floor = self.session.replay_floor  # in one barrier with what the message does

    def say(self, now: float) -> list[bytes]:
        frames = []
        while (raw := self.session.transmit(now)) is not None:
            frames.append(raw)
        return frames


class AttackerMachine(RuleBasedStateMachine):
    """Frames are lost, reordered, doubled, recorded, replayed; ends restart, with their state or without."""

    encrypted = False

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        nonces = random.Random(1)
        self.ends = {node: Lives(node, 7 - node, nonces, self.encrypted) for node in (0, 7)}
        for end in self.ends.values():
            end.boot(0.0)
        self.on_air: list[tuple[int, bytes]] = []  # for whom
        self.recorded: list[tuple[int, bytes]] = []
        self.told = 0
        self.used: set[tuple[bytes, bytes]] = set()

    def look_at(self, frames: list[bytes], salt: bytes) -> None:
        """All but HELLO are encrypted or none is, and under a salt nothing that makes a nonce comes twice."""
        for raw in frames:
            frame = framing.unproven(raw)
            if frame.type is Type.HELLO:
                assert not frame.encrypted
                continue
            assert frame.encrypted == self.encrypted
            assert (salt, raw[2:10]) not in self.used
            self.used.add((salt, raw[2:10]))

    def speak(self, node: int) -> None:
        self.now += STEP_S
        frames = [(self.ends[node].peer, raw) for raw in self.ends[node].say(self.now)]
        self.look_at([raw for _, raw in frames], self.ends[node].salt)
        self.on_air += frames
        self.recorded += frames

    @rule(node=st.sampled_from([0, 7]), message=st.booleans())
    def speaks(self, node: int, message: bool) -> None:
        if message:
            self.told += 1
            self.ends[node].session.send_message(b"%d" % self.told, self.now)
        self.speak(node)

    @precondition(lambda self: self.on_air)
    @rule(nth=st.integers(0, 5), keep=st.booleans())
    def is_delivered(self, nth: int, keep: bool) -> None:
        nth = min(nth, len(self.on_air) - 1)
        to, raw = self.on_air[nth] if keep else self.on_air.pop(nth)
        self.ends[to].hear(raw, self.now)

    @precondition(lambda self: self.on_air)
    @rule()
    def is_lost(self) -> None:
        self.on_air.pop(0)

    @precondition(lambda self: self.recorded)
    @rule(choice=st.randoms(use_true_random=False), times=st.integers(1, 8))
    def is_replayed(self, choice: random.Random, times: int) -> None:
        for to, raw in choice.choices(self.recorded, k=times):
            self.ends[to].hear(raw, self.now)

    @rule(node=st.sampled_from([0, 7]), everything=st.booleans())
    def goes_down(self, node: int, everything: bool) -> None:
        if everything:
            self.ends[node].lose(self.now)
        else:
            self.ends[node].boot(self.now)

    @precondition(lambda self: max(end.epoch for end in self.ends.values()) > 1)
    @rule(epoch=st.integers(1, 5))
    def is_restored(self, epoch: int) -> None:
        end = max(self.ends.values(), key=lambda end: end.epoch)
        end.restore(epoch, self.now)

    def teardown(self) -> None:
        """Left alone, both ends agree within four exchanges, and a message crosses each way, once."""
        self.on_air.clear()
        for _ in range(4):
            for node in self.ends:
                self.speak(node)
                while self.on_air:
                    to, raw = self.on_air.pop(0)
                    self.ends[to].hear(raw, self.now)
        ground, board = self.ends.values()
        assert ground.salt == board.salt != NO_SALT
        for end in self.ends.values():
            end.session.send_message(b"last", self.now)
            self.speak(end.node)
            for to, raw in self.on_air:
                self.ends[to].hear(raw, self.now)
            self.on_air.clear()
        assert b"last" in ground.taken & board.taken
        for to, raw in self.recorded:  # all that was ever said, once more
            self.ends[to].hear(raw, self.now)


AttackerMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAttacker = AttackerMachine.TestCase


class EncryptedMachine(AttackerMachine):
    """The same with encryption: the same rules hold, and HELLO is the only frame that is plain."""

    encrypted = True


EncryptedMachine.TestCase.settings = settings(AttackerMachine.TestCase.settings, max_examples=40)
TestEncrypted = EncryptedMachine.TestCase


def talk(ends: Iterable[Lives], rounds: int, now: float) -> float:
    first, second = ends
    for _ in range(rounds):
        now += STEP_S
        for speaker, hearer in ((first, second), (second, first)):
            for raw in speaker.say(now):
                hearer.hear(raw, now)
    return now


def two() -> tuple[Lives, Lives, float]:
    """Ground and board that know each other."""
    nonces = random.Random(2)
    ground, board = Lives(0, 7, nonces), Lives(7, 0, nonces)
    ground.boot(0.0)
    board.boot(0.0)
    return ground, board, talk((ground, board), 2, 0.0)


def test_a_restart_begins_under_a_new_salt_and_no_copy_of_its_state_counts() -> None:
    ground, board, now = two()
    before = ground.salt
    board.boot(now)
    board.session.send_message(b"awake", now)
    now = talk((ground, board), 3, now)
    assert b"awake" in ground.taken
    assert ground.salt == board.salt not in (before, NO_SALT)
    epoch = board.epoch
    for _ in range(4):
        board.boot(now)
    now = talk((ground, board), 3, now)
    board.restore(epoch, now)  # by four starts
    board.session.send_message(b"from a backup", now)
    now = talk((ground, board), 3, now)
    assert b"from a backup" in ground.taken


def test_nothing_leaves_under_a_salt_before_it_is_durable() -> None:
    ground, board, now = two()
    old = ground.salt
    board.lose(now)
    board.session.send_message(b"early", now)
    ground.session.send_message(b"meanwhile", now)
    agreed = None
    for _ in range(2):
        now += STEP_S
        for raw in board.say(now):
            assert framing.is_hello(raw)
            agreed = next((e for e in ground.session.receive(raw, now) if isinstance(e, Rekeyed)), agreed)
        for raw in ground.say(now):
            board.hear(raw, now)
    assert agreed is not None  # and the ground's disk is full: it does not rekey
    for _ in range(5):
        now += STEP_S
        assert not any(framing.is_hello(raw) for raw in ground.say(now))
        board.say(now)
    assert (ground.session.salt, board.session.salt) == (old, NO_SALT)
    with pytest.raises(ValueError, match="was not agreed upon"):
        ground.session.rekey(b"another.")
    ground.salt = agreed.salt
    ground.session.rekey(agreed.salt)
    talk((ground, board), 2, now)
    assert board.salt == ground.salt == agreed.salt
    assert b"early" in ground.taken


def test_a_flood_of_recorded_hellos_is_neither_amplified_nor_locks_anybody_out() -> None:
    ground, board, now = two()
    recorded: list[bytes] = []
    for _ in range(20):  # the board lost its state twenty times, and somebody kept what it said
        board.lose(now)
        now += STEP_S
        recorded += board.say(now)
    sent = ground.session.snapshot(now).hellos_sent
    board.lose(now)
    started, heard, answered = now, 0, 0
    while board.salt == NO_SALT and now < started + 60:
        now += 0.05
        for raw in [*recorded, *board.say(now)]:
            heard += 1
            ground.hear(raw, now)
        for raw in ground.say(now):
            answered += 1
            board.hear(raw, now)
    assert board.salt == ground.salt != NO_SALT
    assert now - started < 10
    snapshot = ground.session.snapshot(now)
    assert answered == snapshot.hellos_sent - sent <= len(recorded) * (now - started + 1) + 3
    assert (
        snapshot.hellos_received == snapshot.hellos_stale + 1 + 1
    )  # fresh: one now, one when they first met
    assert snapshot.hellos_received >= heard
    assert (ground.rekeyed, ground.session.replay_floor[0]) == (2, 0)


def test_an_end_that_nobody_hears_keeps_its_link_nearly_idle() -> None:
    board = Lives(7, 0, random.Random(6))
    board.boot(0.0)
    said = [(now, raw) for now in range(600) for raw in board.say(float(now))]
    # Looked at once a second: 0.7 s (two frames and an answer) after the last one has left, 1.3, 2.7, 5.3, 8.
    assert [at for at, _ in said][:6] == [0, 1, 3, 6, 12, 21]
    assert sum(len(raw) + 2 for at, raw in said if at >= 60) <= 9 * 400
    assert max(later - at for (at, _), (later, _) in pairwise(said)) == 9


def test_a_hello_is_for_its_direction_and_needs_the_key() -> None:
    ground, board, now = two()
    salt = ground.salt
    board.lose(now)
    (hello,) = board.say(now + STEP_S)
    before = ground.session.snapshot(now)
    forged = Sealer(bytes(32), source=7, destination=0, epoch=1).seal(Type.HELLO, Hello(b"forged..").encode())
    under_traffic = Sealer(KEY, source=7, destination=0, epoch=9, salt=salt)
    for raw in (forged, under_traffic.seal(Type.HELLO, Hello(b"traffic.").encode()), hello[:-1]):
        assert ground.session.receive(raw, now) == []
    assert board.session.receive(hello, now) == []  # sent back to its sender
    after = ground.session.snapshot(now)
    assert after.bad_tags == before.bad_tags + 3
    assert after.hellos_received == before.hellos_received
    assert board.session.snapshot(now).misaddressed == 1


@pytest.mark.parametrize("payload", [b"", bytes(23), bytes(24), bytes(25)])
def test_a_hello_that_makes_no_sense(payload: bytes) -> None:
    security = Security(KEY, random.Random(3).randbytes)
    greeting = RekeyHandshake(
        Identity(0, 7, primary=True), security, SessionState(epoch=1), follows=False, first_s=0.25
    )
    with pytest.raises(BadMessage):
        Hello.decode(payload)
    assert greeting.handle(Frame(Type.HELLO, 7, 0, 1, 1, payload=payload), 0.0) == []
    assert (greeting.heard, greeting.opener.counts["malformed"]) == (0, 1)
    assert greeting.say().payload[8:16] == NO_NONCE


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("victims", [("board",), ("ground",), ("ground", "board")], ids="-".join)
@pytest.mark.parametrize("encrypted", [(), SIDES], ids=["plain", "encrypted"])
def test_a_transfer_ends_though_state_was_lost(link, loss, victims, encrypted) -> None:  # type: ignore[no-untyped-def]
    pair = Pair(link, frame_loss=loss, nonce=random.Random(4).randbytes, encrypted=encrypted)
    payload = data(20_000)
    pair.ground.offer(1, payload, 0.0)
    pair.run(8.0)
    assert any(incoming.held for incoming in pair.board.session.incoming.values())
    for victim in victims:
        pair.end(victim).kill()
        pair.end(victim).disk = type(pair.ground.disk)()
        pair.end(victim).boot(pair.now)
    if "ground" in victims:
        pair.ground.offer(1, payload, pair.now)
    finish(pair, pair.ground, until=200.0)
    assert [kept for _, kept in pair.board.disk.objects.values()] == [payload]
    assert pair.ground.disk.salt == pair.board.disk.salt != NO_SALT
