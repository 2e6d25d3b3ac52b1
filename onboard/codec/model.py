"""A codec: it makes a form that takes fewer bits of a model's weights, and bytes of that form."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol, TypeVar

from onboard.codec.layout import Floats, Layout, Weights

PREFIX = struct.Struct("<B8s")
"""What every packed model begins with: the codec's format byte, and the digest of the model's layout."""


class BadPack(ValueError):  # noqa: N818 - "bad" says error already
    """These bytes are no packed model of this layout; says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a model in its codec's form may take."""

    bits_per_weight: float
    """Bits of bases and coordinates, of a weight of the whole model. A codec of a given size ignores it."""
    max_bases: int
    """Binary bases in a group of weights; ALQ's alone."""
    compress: bool = False
    """Whether zstd compresses float32 weights, where it is installed and helps."""
    whole: bool = False
    """Whether it is all that was ever learned, and not what a round moved."""
    exact_statistics: bool = False
    """Whether running statistics travel in half precision. ALQ's alone."""


class Model(Protocol):
    """A model in the form that a codec gave it."""

    @property
    def layout(self) -> Layout:
        """The tensors that it has."""

    @property
    def format(self) -> int:
        """The format byte of its codec."""

    @property
    def mean_width(self) -> float:
        """Bits a weight by the count of ALQ and SpaceDML: without coordinates, bit-widths and biases."""

    def reconstruct(self) -> dict[str, Floats]:
        """The weights that it stands for, name -> float32 in the tensor's shape; the same on all machines."""


M = TypeVar("M", bound=Model)


class Codec(Protocol[M]):
    """One form of a model, and its bytes."""

    @property
    def name(self) -> str:
        """The form as a message calls it: "dense", "quantized"."""

    def quantize(self, layout: Layout, weights: Weights, budget: Budget) -> M:
        """Converts weights, with no data to rank them. Raises ValueError if they are not finite."""

    def check(self, model: M, budget: Budget) -> None:
        """Raises ValueError where `quantize` and training make no such model within the budget."""

    def sections(self, model: M) -> dict[str, bytes]:
        """Returns the bytes by section, in order; the first begins with PREFIX. Raises ValueError for a model
        that the far end could not rebuild."""

    def unpack(self, data: bytes, layout: Layout) -> M:
        """Decodes all of `data`, PREFIX included. Makes no array that the layout does not bound. Raises
        ValueError."""
