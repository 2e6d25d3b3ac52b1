"""The table of codecs, and what they do for any model: pack, account for each byte, unpack."""

from __future__ import annotations

from typing import Any

from onboard.codec import formats
from onboard.codec.alq import AlqCodec
from onboard.codec.dense import DenseCodec
from onboard.codec.layout import Layout
from onboard.codec.model import PREFIX, BadPack, Codec, Model

CODECS: dict[int, Codec[Any]] = {formats.ALQ: AlqCodec(), formats.DENSE: DenseCodec()}
"""Every codec by its format byte. docs/extending.md says how to add one."""


def pack(model: Model) -> bytes:
    return b"".join(CODECS[model.format].sections(model).values())


def account(model: Model) -> dict[str, int]:
    """Counts the bytes of `pack(model)` by section, with nothing left out."""
    return {name: len(data) for name, data in CODECS[model.format].sections(model).items()}


def unpack(data: bytes | memoryview, layout: Layout) -> Model:
    """Decodes all of `data` in 32 bytes of memory a weight at most. Raises BadPack, whatever the bytes."""
    data = bytes(data)
    if len(data) < PREFIX.size:
        raise BadPack(f"{len(data)} bytes, a header alone has {PREFIX.size} or more")
    found, digest = PREFIX.unpack_from(data)
    if found not in CODECS:
        raise BadPack(f"format {found}, known are {', '.join(map(str, CODECS))}")
    if digest != layout.digest:
        raise BadPack(f"packed for the layout {digest.hex()}, not for {layout.digest.hex()}")
    try:
        model: Model = CODECS[found].unpack(data, layout)
    except ValueError as error:
        raise BadPack(str(error)) from None
    return model
