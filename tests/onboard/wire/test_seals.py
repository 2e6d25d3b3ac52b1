"""A board and its ground change keys without losing each other, whoever restarts when."""

from __future__ import annotations

import random

import pytest

from onboard.storage.keys import newest, roll
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Message, Rekeyed
from onboard.wire.security.seal import NO_SALT
from onboard.wire.session import Session
from tests.onboard.wire.pair import FULL, KEY

OTHER = bytes(range(32, 64))
OLD: dict[int, bytes] = {0: KEY}
BOTH = roll(OLD, OTHER)
NEW = newest(BOTH)


class SealedLink:
    """Two ends, each on its keys, that keep epoch, salt and floor over a restart; frames cross at once."""

    def __init__(self, ground: dict[int, bytes], board: dict[int, bytes], *, encrypted: bool = False) -> None:
        self.encrypted = encrypted
        self.now, self.nonce = 0.0, random.Random(5).randbytes
        self.epochs = {0: 0, 3: 0}
        self.sessions: dict[int, Session] = {}
        self.restart(0, ground)
        self.restart(3, board)

    def restart(self, node: int, keys: dict[int, bytes], *, lost: bool = False) -> None:
        before = None if lost else self.sessions.get(node)
        self.epochs[node] = 1 if lost else self.epochs[node] + 1
        self.sessions[node] = Session(
            Identity(node, 3 - node, primary=node == 0),
            Medium(FULL),
            Security(keys, nonce=self.nonce, encrypted=self.encrypted),
            SessionState(
                epoch=self.epochs[node],
                replay_floor=before.replay_floor if before else (0, 0),
                salt=before.salt if before else NO_SALT,
            ),
            now=self.now,
        )

    def cross(self, *, seconds: float = 12.0) -> set[int]:
        """Each end tells the other something; returns who heard it."""
        for session in self.sessions.values():
            session.send_message(b"here", self.now)
        heard = set()
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            for node, session in self.sessions.items():
                while (raw := session.transmit(self.now)) is not None:
                    for event in self.sessions[3 - node].receive(raw, self.now):
                        if isinstance(event, Rekeyed):
                            self.sessions[3 - node].rekey(event.salt)
                        elif isinstance(event, Message):
                            heard.add(3 - node)
        return heard

    def key_ids(self) -> tuple[int, int]:
        """Of the ground's and the board's frames."""
        ground, board = (self.sessions[node].snapshot(self.now).key_id for node in (0, 3))
        return ground, board


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_roll_step_by_step_as_the_operator_does_it(encrypted: bool) -> None:
    link = SealedLink(OLD, OLD, encrypted=encrypted)
    assert (link.cross(), link.key_ids()) == ({0, 3}, (0, 0))
    link.restart(0, BOTH)
    assert (link.cross(), link.key_ids()) == (
        {0, 3},
        (0, 0),
    )  # the board has shown no other
    link.restart(3, BOTH)
    assert (link.cross(), link.key_ids()) == ({0, 3}, (1, 1))
    link.restart(0, BOTH)  # the ground begins with the oldest and follows again
    assert (link.cross(), link.key_ids()) == ({0, 3}, (1, 1))
    link.restart(0, NEW)
    assert (link.cross(), link.key_ids()) == ({0, 3}, (1, 1))
    link.restart(3, NEW)
    assert (link.cross(), link.key_ids()) == ({0, 3}, (1, 1))
    assert all(session.snapshot(link.now).bad_tags == 0 for session in link.sessions.values())
    assert all(session.snapshot(link.now).encrypted == encrypted for session in link.sessions.values())


def test_a_key_that_one_end_does_not_hold_is_counted_and_nothing_is_heard() -> None:
    link = SealedLink(OLD, OLD)
    link.cross()
    link.restart(3, NEW)
    assert link.cross() == set()
    assert link.sessions[0].snapshot(link.now).unknown_keys > 0


@pytest.mark.parametrize("board", [OLD, BOTH, NEW], ids=["old", "both", "new"])
@pytest.mark.parametrize("lost", [{0}, {3}, {0, 3}], ids=str)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_lost_state_in_the_middle_of_a_roll(board: dict[int, bytes], lost: set[int], encrypted: bool) -> None:
    link = SealedLink(OLD, OLD, encrypted=encrypted)
    link.cross()
    link.restart(0, BOTH, lost=0 in lost)
    link.restart(3, board, lost=3 in lost)
    link.cross(seconds=30.0)  # what one end says while the other has no salt yet is lost
    assert link.cross() == {0, 3}
    assert link.key_ids()[0] == link.key_ids()[1] == (0 if board is OLD else 1)
