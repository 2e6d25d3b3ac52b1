"""All of a ring as one value, and that as bytes: a ring that goes on from them learns the same, to the bit.

Nodes need not be in step: the end of an epoch finds some of them in the next one, messages on their way and
exchanges half done. So what is to happen is a value, too, and part of it. Descents and talkers say their own
state as a dict; its arrays are extensions of MessagePack.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from firmware_sim.ring.result import Seconds

DTYPES = ("<f4", "<i4")  # of arrays, by the code of their extension


class TrainingStep(msgspec.Struct, frozen=True, tag=True):
    """A node's batch is done."""

    node: int


class OutOfPatience(msgspec.Struct, frozen=True, tag=True):
    """A node waits no longer, if it still does since then."""

    node: int
    since_s: Seconds


class MessageArrival(msgspec.Struct, frozen=True, tag=True):
    """A message is there."""

    sender: int
    receiver: int
    message: bytes


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """The sender knows that its message is there."""

    sender: int
    receiver: int


Event = TrainingStep | OutOfPatience | MessageArrival | Acknowledged


class NodeState(msgspec.Struct, frozen=True):
    """`model`: as of `Descent.state`, of the ground its vector alone; `talker`: as of its `state`; losses as
    the node's."""

    model: dict[str, Any]
    talker: dict[str, Any]
    waiting_since: Seconds | None
    losses: list[float]
    epoch_losses: list[float]


class RingState(msgspec.Struct, frozen=True):
    """`epochs`: that are over; `events`: a heap of (when, which in the order of their making, what); `ways`:
    (sender, receiver, as of `Way.state`)."""

    epochs: int
    now: Seconds
    ordered: int
    exchanges: int
    events: list[tuple[Seconds, int, Event]]
    nodes: dict[int, NodeState]
    ways: list[tuple[int, int, dict[str, Any]]]


def pack(state: RingState) -> bytes:
    """The state as MessagePack. Raises NotImplementedError for an array of another dtype than DTYPES."""
    return msgspec.msgpack.encode(state, enc_hook=_extension)


def unpack(packed: bytes) -> RingState:
    """What `pack` was given; its arrays are new ones. Raises ValueError for anything else."""
    try:
        return msgspec.msgpack.decode(packed, type=RingState, ext_hook=_array)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a ring's state: {error}") from None


def _extension(array: Any) -> msgspec.msgpack.Ext:
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.str not in DTYPES:
        raise NotImplementedError(f"{type(array).__name__} in a ring's state")
    return msgspec.msgpack.Ext(DTYPES.index(array.dtype.str), array.tobytes())


def _array(code: int, data: memoryview) -> npt.NDArray[Any]:
    if not 0 <= code < len(DTYPES) or len(data) % np.dtype(DTYPES[code]).itemsize:
        raise ValueError(f"extension {code} of {len(data)} bytes is no array")
    array: npt.NDArray[Any] = np.frombuffer(data, DTYPES[code]).copy()
    return array
