"""What one end seals its frames with and opens its peer's: keys, salt, window, and HELLO without them.

A link may have several keys while one takes the other's place. Both ends open frames under any that they
hold. The board seals with its newest, as the ground is given a new key first; the ground with the one under
which it heard the board last, at first with its oldest.
"""

from __future__ import annotations

from collections.abc import Callable

from onboard.wire.frame import Frame, Type
from onboard.wire.hello import Greeting
from onboard.wire.seal import NO_SALT, Keys, Opener, Sealer
from onboard.wire.send import Send


class Seals:
    """One end's security.

    key: 32 B, or several by their ids, the oldest first. epoch: this end's durable boot counter, 1..65535,
    one more than at the last start. floor: the peer's highest (epoch, seq) as last persisted; nothing at or
    below it is taken. salt: as last persisted, NO_SALT if it was lost or there never was one: then `nonce`,
    which draws so many bytes that nobody can foresee, lets the ends agree on one. Without `nonce` an end can
    only watch. encrypted: whether all frames but HELLO are, both ways. Raises ValueError for a key or an
    epoch out of range.
    """

    def __init__(
        self,
        key: bytes | Keys,
        *,
        node: int,
        peer: int,
        master: bool,
        epoch: int,
        floor: tuple[int, int] = (0, 0),
        salt: bytes = NO_SALT,
        nonce: Callable[[int], bytes] | None = None,
        encrypted: bool = False,
    ) -> None:
        keys = {0: key} if isinstance(key, bytes) else key
        self._follows = master and len(keys) > 1
        first = next(iter(keys)) if self._follows else None
        self.encrypted = encrypted
        self.sealer = Sealer(
            keys, source=node, destination=peer, epoch=epoch, key_id=first, salt=salt, encrypted=encrypted
        )
        self.opener = Opener(keys, source=peer, destination=node, floor=floor, salt=salt, encrypted=encrypted)
        self.greeting = Greeting(
            keys, node=node, peer=peer, epoch=epoch, salt=salt, nonce=nonce, follows=self._follows
        )

    @property
    def next_seq(self) -> int:
        """Of the next frame that is no HELLO."""
        return self.sealer.seq + 1

    @property
    def frames_sent(self) -> int:
        """HELLOs too."""
        return self.sealer.seq + self.greeting.sent

    def open(self, raw: bytes) -> Frame | None:
        """The frame in `raw`, taken once; None, and one counter more, for what is not the peer's and new."""
        frame = self.opener.open(raw)
        if frame is not None and self._follows and frame.key_id != self.sealer.key_id:
            self.sealer.turn(frame.key_id)
        return frame

    def least(self, asks_about: int = 0) -> Send:
        """What is said where a turn is to be handed over, and no more."""
        return self.greeting.say() if self.greeting.is_unsure else Send(Type.POLL, object_id=asks_about)

    def seal(self, send: Send, *, fragment: int, poll: bool, over: bool) -> bytes:
        """The bytes of one transmission."""
        sealer = self.greeting.sealer if send.type is Type.HELLO else self.sealer
        return sealer.seal(
            send.type, send.payload, object_id=send.object_id, fragment=fragment, priority=send.priority,
            poll=poll, over=over,
        )  # fmt: skip

    def use(self, salt: bytes) -> None:
        """A salt that was agreed upon is durable, with a floor of (0, 0): it is in force.

        Raises ValueError for any other.
        """
        self.greeting.use(salt)
        self.sealer.use(salt)
        if self._follows:
            self.sealer.turn(self.greeting.key_id)
        self.opener.use(salt)
