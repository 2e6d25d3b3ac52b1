"""An encrypted frame says what a plain one says, and only to whoever holds the key.

AES-256-CCM (NIST SP 800-38C, RFC 3610) hides the payload and authenticates it with the header. It needs a
nonce that is used once under its key: two payloads under one reveal their exclusive or. The subkey (`seal`)
is of one direction, key id and salt, and of no other purpose, and under it (epoch, seq) names one
transmission: each start agrees on a new salt (`security_context`), and seqs count up within it. docs/wire.md,
"Encryption", says when a nonce could be used twice all the same, and why broadcasts are never encrypted.

Only this file needs the package `cryptography` (extra `crypto`), and only encrypted links import it."""

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
        """Return the frame with its payload encrypted; `header` is made by `frame.header`, with ENC set.
        Raises ValueError for a payload of more than 65,535 B."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"payload of {len(payload)} B to encrypt, at most {MAX_PAYLOAD_BYTES}")
        return header + self._ccm.encrypt(_nonce(header), payload, header)

    def decode(self, raw: bytes) -> Frame:
        """Return the decrypted frame in `raw`, proven whole and from a holder of the key. Raises BadFrame."""
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
