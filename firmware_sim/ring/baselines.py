"""What the ring's gossip is compared with: Top-K with error feedback, and CHOCO-SGD.

Both send the K coordinates of largest magnitude with an explicit index, the smaller of gaps and bitmap, and
the same message to every neighbour. They are for the comparison: they wait for all neighbours, whatever
befalls these, and are not flown.

- `TopK` is DeepSqueeze (Tang et al., "DeepSqueeze: decentralization meets error-compensated compression",
  2019, Algorithm 1): the largest of x + e travel, what does not is kept in e, and x mixes what travelled.
- `Choco` is CHOCO-SGD (Koloskova, Stich and Jaggi, ICML 2019, Algorithm 2): the largest of x - x^ travel,
  every node adds them to its copy of x^, and x mixes the copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from onboard.codec import explicit
from onboard.codec.explicit import IndexForm
from onboard.codec.layout import Floats
from onboard.codec.mask import Indices
from onboard.codec.values import Form
from onboard.learn.gossip.exchange import Message

Heard = dict[int, list[Message]]  # by neighbour, the oldest first


class GossipAlgorithm(Protocol):
    """One node's side of an exchange with all its neighbours: `Gossip`, and the two below.

    `restore` goes on from `state`, whose arrays and lists may be the talker's own, and become so.
    """

    @property
    def waits_for(self) -> frozenset[int]: ...

    def open(self, vector: Floats) -> Mapping[int, Message]: ...

    def take(self, peer: int, message: Message) -> None: ...

    def delivered(self, peer: int) -> None: ...

    def out_of_patience(self) -> None: ...

    def mix(self, vector: Floats) -> tuple[int, ...]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, *args: Any, **state: Any) -> None: ...


class _InStep:
    """Waits until all neighbours have answered. `rate`: of the mixing (gamma; eta in DeepSqueeze)."""

    def __init__(self, weights: Mapping[int, float], *, size: int, share: float, rate: float) -> None:
        self._weights, self._size, self._rate = weights, size, rate
        self._count = max(1, round(share * size))
        self._heard: Heard = {peer: [] for peer in weights}
        self._open = False

    @property
    def waits_for(self) -> frozenset[int]:
        return (
            frozenset(peer for peer, heard in self._heard.items() if not heard) if self._open else frozenset()
        )

    def take(self, peer: int, message: Message) -> None:
        self._heard[peer].append(message)

    def delivered(self, peer: int) -> None:
        """Nothing: the neighbour's own message says that it goes on."""

    def out_of_patience(self) -> None:
        """Nothing: it waits on."""

    def _largest(self, vector: Floats) -> tuple[Indices, Floats]:
        """Coordinates (K,), rising, of the largest magnitudes, and their values."""
        chosen = np.argpartition(np.abs(vector), self._size - self._count)[self._size - self._count :]
        index = np.sort(chosen).astype(np.int32)
        return index, vector[index]

    def _told(self, index: Indices, values: Floats) -> dict[int, Message]:
        """The message for every neighbour."""
        self._open = True
        forms = (explicit.encode(index, values, self._size, form, Form.FP32) for form in IndexForm)
        return dict.fromkeys(self._weights, min(forms, key=len))

    def _answers(self) -> dict[int, tuple[Indices, Floats]]:
        """What all neighbours sent, by neighbour; none before the last is there."""
        if not self._open or self.waits_for:
            return {}
        self._open = False
        return {peer: explicit.decode(heard.pop(0), self._size) for peer, heard in self._heard.items()}


class TopK(_InStep):
    """See the module."""

    def __init__(self, weights: Mapping[int, float], *, size: int, share: float, rate: float) -> None:
        super().__init__(weights, size=size, share=share, rate=rate)
        self._error = np.zeros(size, np.float32)
        self._sent = (np.zeros(0, np.int32), np.zeros(0, np.float32))

    def state(self) -> dict[str, Any]:
        return {"is_open": self._open, "heard": self._heard, "error": self._error, "sent": self._sent}

    def restore(self, is_open: bool, heard: Heard, error: Floats, sent: tuple[Indices, Floats]) -> None:
        self._open, self._heard, self._error, self._sent = is_open, heard, error, sent

    def open(self, vector: Floats) -> Mapping[int, Message]:
        if self._open:
            return {}
        self._error += vector
        self._sent = index, values = self._largest(self._error)
        self._error[index] = 0
        return self._told(index, values)

    def mix(self, vector: Floats) -> tuple[int, ...]:
        answers = self._answers()
        for peer, (index, values) in answers.items():
            weight = np.float32(self._rate * self._weights[peer])
            vector[index] += weight * values
            vector[self._sent[0]] -= weight * self._sent[1]
        return tuple(answers)


class Choco(_InStep):
    """See the module. `start`: the model that all nodes begin with, and so their first x^."""

    def __init__(
        self, weights: Mapping[int, float], *, size: int, share: float, rate: float, start: Floats
    ) -> None:
        super().__init__(weights, size=size, share=share, rate=rate)
        self._own = start.copy()
        self._copies = {peer: start.copy() for peer in weights}

    def state(self) -> dict[str, Any]:
        return {"is_open": self._open, "heard": self._heard, "own": self._own, "copies": self._copies}

    def restore(self, is_open: bool, heard: Heard, own: Floats, copies: dict[int, Floats]) -> None:
        self._open, self._heard, self._own, self._copies = is_open, heard, own, copies

    def open(self, vector: Floats) -> Mapping[int, Message]:
        if self._open:
            return {}
        index, values = self._largest(vector - self._own)
        self._own[index] += values
        return self._told(index, values)

    def mix(self, vector: Floats) -> tuple[int, ...]:
        answers = self._answers()
        for peer, (index, values) in answers.items():
            copy = self._copies[peer]
            copy[index] += values
            vector += np.float32(self._rate * self._weights[peer]) * (copy - self._own)
        return tuple(answers)
