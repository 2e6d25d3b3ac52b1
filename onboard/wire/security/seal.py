"""Only frames made by the peer with its key, for this end, and never seen before get past this file.

A frame is tagged with a subkey of the node's key that holds for one direction, one key id and one salt
(`security_context`), so a frame reflected to its sender proves nothing. Under it (epoch, seq) names one
transmission, which a receiver takes once. An end opens no frame of the other form, plain or encrypted, and
either form has subkeys of its own, so that it reveals nothing of the other.

Refused frames are counted and never answered. What the caller keeps of epoch, salt and replay floor must be
on disk before anything that depends on it leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from hashlib import blake2s
from typing import TYPE_CHECKING, Literal

from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import ENC, OVER, POLL, BadFrame, Frame, Type

if TYPE_CHECKING:
    from onboard.wire.security.cipher import Cipher

KEY_BYTES = 32
KEY_IDS = 4  # two bits of the header
Keys = Mapping[int, bytes]
"""A link's 32 B keys by their ids, the oldest first."""
WINDOW = 1024
"""Transmissions that may be late: 19 s of 9.6 kbit/s at 22 B a frame, far more than links here reorder."""
SALT_BYTES = 8
NO_SALT = bytes(SALT_BYTES)
TRAFFIC, HELLO, SECRET = b"sdml-dir", b"sdml-hi", b"sdml-enc"
"""What a subkey is for: BLAKE2s's personalisation."""
Refusal = Literal[
    "malformed", "misaddressed", "unknown_keys", "bad_tags", "replays", "plain_dropped", "encrypted_dropped"
]
"""Why a frame is refused, named as its counter.

It is no frame; it is between other nodes; its key id is not held; it was altered or made with another key; it
was taken before or its epoch is over; it is authentic but plain where this end encrypts; or it is encrypted
where this end does not (which nobody can prove without the package)."""
_KEY_BITS = ENC | 0x03  # bits as they are sent
MAX_EPOCH = 0xFFFF
MAX_SEQ = 0xFFFFFFFF


def next_epoch(epoch: int, skipped: int = 0) -> int:
    """Return the epoch of the next start, having skipped as many as the end may have used. The first follows
    MAX_EPOCH, as every start is under a salt of its own."""
    after = max(0, epoch) + skipped + 1
    return after if after <= MAX_EPOCH else skipped + 1


class SeqExhausted(RuntimeError):  # noqa: N818 - a state of the sender, as StopIteration is
    """All 4,294,967,295 seqs of this epoch were used: raise the epoch durably."""


def directional_key(
    node_key: bytes,
    source: int,
    destination: int,
    key_id: int,
    *,
    salt: bytes = NO_SALT,
    purpose: bytes = TRAFFIC,
) -> bytes:
    """Return the 32 B subkey of one direction, key id, salt and purpose. Keyed BLAKE2s is a pseudo-random
    function of these (RFC 7693, section 2.9; BLAKE2, section 2.8): one subkey reveals nothing of another."""
    if len(node_key) != KEY_BYTES:
        raise ValueError(f"a node's key has {KEY_BYTES} B, this one {len(node_key)}")
    route = bytes((source, destination, key_id))
    return blake2s(route, key=node_key, salt=salt, person=purpose).digest()


class ReplayWindow:
    """Takes each (epoch, seq) of one sender once, in any order within WINDOW, and no older epoch. `floor` is
    to be persisted: what is below it and never arrived is lost, which costs a retransmission and no trust."""

    def __init__(self, floor: tuple[int, int] = (0, 0)) -> None:
        self._epoch, self._highest = floor
        self._taken = bytearray(b"\1" * WINDOW)  # at seq % WINDOW, of the last WINDOW seqs up to `highest`

    @property
    def floor(self) -> tuple[int, int]:
        """The epoch in force and the highest seq taken in it."""
        return self._epoch, self._highest

    def accept(self, epoch: int, seq: int) -> bool:
        if epoch == self._epoch and seq == self._highest + 1:  # nearly always
            self._highest = seq
        elif epoch > self._epoch or (epoch == self._epoch and seq >= self._highest + WINDOW):
            self._taken = bytearray(WINDOW)
            self._epoch, self._highest = epoch, seq
        elif epoch == self._epoch and seq > self._highest:
            for missed in range(self._highest + 1, seq):
                self._taken[missed % WINDOW] = 0
            self._highest = seq
        elif epoch < self._epoch or seq <= self._highest - WINDOW or self._taken[seq % WINDOW]:
            return False
        self._taken[seq % WINDOW] = 1
        return True


class Sealer:
    """Makes the frames of one direction. Within its epoch no seq is used twice, under whichever key. `key`:
    32 B, or several by their ids; `key_id`: the one to begin with, else the newest. `purpose`: SECRET
    encrypts the frames, which needs the package `cryptography`. `seq`: that of the last frame made."""

    def __init__(
        self,
        key: bytes | Keys,
        *,
        source: int,
        destination: int,
        epoch: int,
        key_id: int | None = None,
        salt: bytes = NO_SALT,
        purpose: bytes = TRAFFIC,
    ) -> None:
        if not 1 <= epoch <= MAX_EPOCH:
            raise ValueError(f"epoch {epoch} must be 1..{MAX_EPOCH}: 0 is before the first boot")
        keys = {key_id or 0: key} if isinstance(key, bytes) else key
        if not keys or not set(keys) <= set(range(KEY_IDS)):
            raise ValueError(f"key ids {sorted(keys)} must be in 0..{KEY_IDS - 1}, and one at least")
        self.source, self.destination, self.epoch = source, destination, epoch
        self.key_id = list(keys)[-1] if key_id is None else key_id
        self._keys, self._salt = keys, salt
        self._purpose = purpose
        self._cipher: Cipher | None = None
        self.seq = 0
        self.turn(self.key_id)

    def use(self, salt: bytes) -> None:
        """Seal under the subkey of that salt from now on. Seqs count on."""
        self._salt = salt
        self.turn(self.key_id)

    def turn(self, key_id: int) -> None:
        """Seal under another key from now on. Seqs count on. Raises KeyError for one that is not held."""
        self.key_id = key_id
        subkey = directional_key(
            self._keys[key_id], self.source, self.destination, key_id, salt=self._salt, purpose=self._purpose
        )
        if self._purpose == SECRET:
            self._cipher = _cipher(subkey)
        else:
            key = framing.keyed(subkey)
            self._tagging = framing.tagging(key, self.source, self.destination, self.epoch)

    def seal(
        self,
        kind: Type,
        payload: bytes = b"",
        *,
        object_id: int = 0,
        fragment: int = 0,
        priority: int = 0,
        poll: bool = False,
        over: bool = False,
    ) -> bytes:
        """Return the bytes of one transmission under the next seq. Raises SeqExhausted, and ValueError for a
        field too large; a seq that failed is not used again."""
        if self.seq == MAX_SEQ:
            raise SeqExhausted(f"epoch {self.epoch} has used seq {MAX_SEQ}")
        self.seq += 1
        flags = priority << 5 | poll * POLL | over * OVER | self.key_id
        if self._cipher is None:
            return framing.encode(self._tagging, kind, flags, self.seq, object_id, fragment, payload)
        header = framing.header(
            kind, flags | ENC, self.source, self.destination, self.epoch, self.seq, object_id, fragment
        )
        return self._cipher.encode(header, payload)


class Opener:
    """Opens the frames of one direction under any of its keys, which share one replay window. `opened` frames
    passed; `counts` tells the others by their Refusal, and `refusal` why the last of these was refused."""

    def __init__(
        self,
        key: bytes | Keys,
        *,
        source: int,
        destination: int,
        floor: tuple[int, int] = (0, 0),
        salt: bytes = NO_SALT,
        purpose: bytes = TRAFFIC,
    ) -> None:
        self._held = {0: key} if isinstance(key, bytes) else key
        self._purpose = purpose
        self.source, self.destination = source, destination
        self._route = framing.route(source, destination)
        self.opened = 0
        self.counts: Counter[Refusal] = Counter()
        self.refusal: Refusal | None = None
        self.use(salt, floor)

    def use(self, salt: bytes, floor: tuple[int, int] = (0, 0)) -> None:
        """Open from now on only what is sealed under that salt, above the floor."""
        encrypted, self._plain, self._ciphers = self._purpose == SECRET, {}, {}
        for key_id, key in self._held.items():
            subkey = partial(directional_key, key, self.source, self.destination, key_id, salt=salt)
            self._plain[key_id] = framing.keyed(subkey(purpose=TRAFFIC if encrypted else self._purpose))
            if encrypted:
                self._ciphers[key_id] = _cipher(subkey(purpose=SECRET))
        self._keys = {} if encrypted else self._plain
        self._window = ReplayWindow(floor)

    @property
    def floor(self) -> tuple[int, int]:
        return self._window.floor

    def open(self, raw: bytes, *, at_any_time: bool = False) -> Frame | None:
        """Return the peer's frame in `raw`, new unless `at_any_time`; else None, and count why."""
        key = None if raw[2:4] != self._route else self._keys.get(raw[1] & _KEY_BITS)
        found: Frame | Refusal
        try:
            found = self._judged(raw) if key is None else framing.decode(raw, key)
        except BadFrame as bad:
            found = "bad_tags" if bad.reason == "tag" else "malformed"
        if isinstance(found, Frame):
            if at_any_time:
                return found
            if self._window.accept(found.epoch, found.seq):
                self.opened += 1
                return found
            found = "replays"
        self.refusal = found
        self.counts[found] += 1
        return None

    def _judged(self, raw: bytes) -> Frame | Refusal:
        """The verdict on an encrypted frame, and on one that is refused whoever made it. Raises BadFrame."""
        if not framing.is_shaped(raw):
            return "malformed"
        if raw[2:4] != self._route:
            return "misaddressed"
        key_id, is_encrypted = raw[1] & 0x03, raw[1] & ENC != 0
        if is_encrypted and self._purpose != SECRET:
            return "encrypted_dropped"
        if key_id not in self._held:
            return "unknown_keys"
        if is_encrypted:
            return self._ciphers[key_id].decode(raw)
        framing.decode(raw, self._plain[key_id])
        return "plain_dropped"


def _cipher(subkey: bytes) -> Cipher:
    """The package `cryptography` is loaded with the first cipher, and never where nothing is encrypted."""
    from onboard.wire.security.cipher import Cipher

    return Cipher(subkey)
