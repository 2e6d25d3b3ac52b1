"""The dense codec: a model in float32 becomes bytes and comes back bit for bit, four bytes a weight.

    offset  size
    0       1     format: 2
    1       8     digest of the layout
    9       1     coding: 0 plain, 1 zstd
    10      ...   float32 little-endian, all tensors in the layout's order; with zstd in four planes, all
                  lowest bytes first: signs and exponents repeat, mantissas are noise, and apart from one
                  another they compress better

It is what FedAvg sends. zstandard is optional: a machine without it sends plain bytes, and refuses compressed
ones with a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np

from onboard.codec import formats
from onboard.codec.layout import Floats, Layout, Weights, flat, views
from onboard.codec.model import PREFIX, Budget

try:
    import zstandard
except ImportError:  # pragma: no cover - armv7 has no wheel
    zstandard = None  # type: ignore[assignment]

LEVEL = 3  # zstandard's own default; mantissas do not compress at any


class Coding(IntEnum):
    """How the bytes after the first are to be read."""

    PLAIN = 0
    ZSTD = 1


@dataclass(frozen=True, eq=False)
class Dense:
    """A whole model in float32: name -> tensor in the layout's shape. `compress`: by zstd, where that is
    installed and helps."""

    format: ClassVar[int] = formats.DENSE
    mean_width: ClassVar[float] = 32.0

    layout: Layout
    weights: Weights
    compress: bool = False

    def reconstruct(self) -> dict[str, Floats]:
        """See `Model.reconstruct`."""
        return dict(self.weights)


class DenseCodec:
    """See `Codec`. Its size is given, so that no budget bounds it."""

    name = "dense"

    def quantize(self, layout: Layout, weights: Weights, budget: Budget) -> Dense:
        """See `Codec.quantize`. The weights stay what they are."""
        return Dense(layout, weights, budget.compress)

    def check(self, model: Dense, budget: Budget) -> None:
        """See `Codec.check`. Every model of the layout passes."""

    def sections(self, model: Dense) -> dict[str, bytes]:
        """See `Codec.sections`."""
        return {"header": PREFIX.pack(model.format, model.layout.digest), "weights": _encode(model)}

    def unpack(self, data: bytes, layout: Layout) -> Dense:
        """See `Codec.unpack`."""
        return _decode(data[PREFIX.size :], layout)


def _encode(dense: Dense) -> bytes:
    """The model's bytes; compressed if asked for, possible and smaller. Errors: ValueError for weights that
    are not finite: no far end takes them.
    """
    vector = flat(dense.layout, dense.weights).astype("<f4", copy=False)
    _check_finite(vector)
    plain = vector.tobytes()
    if dense.compress and zstandard is not None:
        planes = vector.view(np.uint8).reshape(-1, 4).T.tobytes()
        packed = zstandard.ZstdCompressor(level=LEVEL).compress(planes)
        if len(packed) < len(plain):
            return bytes((Coding.ZSTD,)) + packed
    return bytes((Coding.PLAIN,)) + plain


def _decode(data: bytes, layout: Layout) -> Dense:
    """The model of `layout` in `data`. Makes no array before the size is known to be the layout's.

    Errors: ValueError for anything but such a model.
    """
    size = 4 * layout.parameters
    coding, body = data[:1], data[1:]
    if coding == bytes((Coding.ZSTD,)):
        planes = _decompressed(body, size)
        vector = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view("<f4").ravel()
    elif coding == bytes((Coding.PLAIN,)):
        if len(body) != size:
            raise ValueError(f"{len(body)} bytes of weights, the layout has {size}")
        vector = np.frombuffer(body, "<f4")
    else:
        raise ValueError(f"coding {coding.hex() or 'missing'} of dense weights is not known")
    _check_finite(vector)
    return Dense(layout, views(layout, vector.astype(np.float32, copy=False)))


def _decompressed(body: bytes, size: int) -> bytes:
    if zstandard is None:
        raise ValueError("compressed by zstd, and zstandard is not installed here")
    try:
        # One call allocates what the frame claims: it has to claim what the layout says.
        claimed = zstandard.get_frame_parameters(body).content_size
        if claimed != size:
            raise ValueError(f"a zstd frame of {claimed} bytes of weights, the layout has {size}")
        planes: bytes = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd: {error}") from None
    if len(planes) != size:
        raise ValueError(f"{len(planes)} bytes of weights, the layout has {size}")
    return planes


def _check_finite(vector: np.ndarray[Any, np.dtype[np.float32]] | Floats) -> None:
    if not np.isfinite(vector).all():
        raise ValueError("weights are not finite")
