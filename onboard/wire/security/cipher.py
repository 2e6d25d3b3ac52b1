"""An encrypted frame says what a plain one says, and only to whoever holds the key.

AES-256-CCM (NIST SP 800-38C, RFC 3610) hides the payload; the header stays readable and is authenticated with
it, and CCM's tag of 8 B takes the place of BLAKE2s's, so a frame is as long as a plain one. The nonce is the
header's bytes 2 to 9 as sent (source, destination, epoch, seq) and five zero bytes.

CCM stands on a nonce that is used once under its key: two payloads under one give their exclusive or away.
Here it is. The subkey (`seal`) is of one direction, key id and salt, and of no other purpose, so no tag of a
plain frame and no HELLO uses it. Under it (epoch, seq) names one transmission for ever: the epoch is durably
raised before the first frame of every start, and seqs count up within it. An end that lost its epoch lost its
salt with it, says nothing but HELLO, which is plain, until both ends agree on a new salt
(`security_context`), and then seals under a new subkey. What breaks this is an old copy of an end's state put
back: the salt is in force still and the epochs come a second time. docs/reference/files.md therefore says to
delete state, and never to go back to a copy.

A broadcast is never encrypted: nobody agrees on a salt with its sender, so after lost state its nonces would
come again.

This file alone needs the package `cryptography` (extra `crypto`), and is imported only where a link is
encrypted.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM
from msgspec.structs import replace

from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import HEADER_BYTES, OVERHEAD_BYTES, TAG_BYTES, BadFrame, Frame

MAX_PAYLOAD_BYTES = 0xFFFF
"""A nonce of 13 B leaves 2 B for the length (SP 800-38C, appendix A.2)."""
_PADDING = bytes(5)


class Cipher:
    """Encrypts and decrypts frames under one subkey of 32 B."""

    def __init__(self, subkey: bytes) -> None:
        self._ccm = AESCCM(subkey, tag_length=TAG_BYTES)

    def encode(self, header: bytes, payload: bytes) -> bytes:
        """A frame's bytes, the payload encrypted; `header` is what `frame.header` makes, with ENC set. Raises
        ValueError for a payload of more than 65,535 B."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"payload of {len(payload)} B to encrypt, at most {MAX_PAYLOAD_BYTES}")
        return header + self._ccm.encrypt(_nonce(header), payload, header)

    def decode(self, raw: bytes) -> Frame:
        """The frame in `raw`, its payload decrypted, proven to be whole and from someone who holds the key.

        Raises BadFrame for anything else.
        """
        frame = framing.unproven(raw)
        if len(raw) > OVERHEAD_BYTES + MAX_PAYLOAD_BYTES:
            raise BadFrame("tag", f"{len(raw)} B are more than can be encrypted")
        header = raw[:HEADER_BYTES]
        try:
            payload = self._ccm.decrypt(_nonce(header), raw[HEADER_BYTES:], header)
        except InvalidTag:
            raise BadFrame("tag", "altered, or made with another key") from None
        return replace(frame, payload=payload)


def _nonce(header: bytes) -> bytes:
    return header[2:10] + _PADDING
