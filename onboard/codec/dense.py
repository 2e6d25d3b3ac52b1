"""The dense codec: a model in float32 becomes bytes and comes back bit for bit, four bytes a weight.

    offset  size
    0       1     format: 2
    1       8     digest of the layout
    9       1     coding: 0 plain, 1 zstd
    10      ...   float32 little-endian, all tensors in the layout's order; with zstd in four planes, all
                  lowest bytes first: signs and exponents repeat, mantissas are noise, and apart from one
                  another they compress better

It is what FedAvg sends. A machine without zstandard sends plain bytes, and refuses compressed ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onboard.codec import formats
from onboard.codec.layout import Floats, Layout, Weights, check_finite, flat, views
from onboard.codec.model import PREFIX, Budget

try:
    import zstandard
except ImportError:  # pragma: no cover - armv7 has no wheel
    zstandard = None  # type: ignore[assignment]

PLAIN, ZSTD = b"\0", b"\1"
LEVEL = 3  # zstandard's own default; mantissas do not compress at any


@dataclass(frozen=True, eq=False)
class Dense:
    """A whole model in float32: name -> tensor in the layout's shape. zstd may `compress` it."""

    format: ClassVar[int] = formats.DENSE
    mean_width: ClassVar[float] = 32.0

    layout: Layout
    weights: Weights
    compress: bool = False

    def reconstruct(self) -> dict[str, Floats]:
        return dict(self.weights)


class DenseCodec:
    """Weights stay what they are, so that no budget bounds them."""

    name = "dense"

    def quantize(self, layout: Layout, weights: Weights, budget: Budget) -> Dense:
        return Dense(layout, weights, budget.compress)

    def check(self, model: Dense, budget: Budget) -> None:
        """See `Codec.check`. Every model of the layout passes."""

    def sections(self, model: Dense) -> dict[str, bytes]:
        """Raises ValueError for weights that are not finite, which no far end takes."""
        vector = flat(model.layout, model.weights).astype("<f4", copy=False)
        check_finite(vector, "weights")
        coded = PLAIN + vector.tobytes()
        if model.compress and zstandard is not None:
            planes = vector.view(np.uint8).reshape(-1, 4).T.tobytes()
            coded = min(coded, ZSTD + zstandard.ZstdCompressor(level=LEVEL).compress(planes), key=len)
        return {"header": PREFIX.pack(model.format, model.layout.digest), "weights": coded}

    def unpack(self, data: bytes, layout: Layout) -> Dense:
        """Makes no array before the size is known to be the layout's."""
        size = 4 * layout.parameters
        coding, body = data[PREFIX.size : PREFIX.size + 1], data[PREFIX.size + 1 :]
        if coding == ZSTD:
            planes = np.frombuffer(_decompressed(body, size), np.uint8).reshape(4, -1)
            vector = np.ascontiguousarray(planes.T).view("<f4").ravel()
        elif coding == PLAIN:
            if len(body) != size:
                raise ValueError(f"{len(body)} bytes of weights, the layout has {size}")
            vector = np.frombuffer(body, "<f4")
        else:
            raise ValueError(f"coding {coding.hex() or 'missing'} of dense weights is not known")
        check_finite(vector, "weights")
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
