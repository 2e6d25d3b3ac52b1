"""What undamaged programs made, by digest, and what was used of anything else.

The programs' own classes are watched where they make and where they use: a model is asked and trained from,
an update is trained and averaged, a checkpoint is saved and gone on from, gossip's values are sent and mixed.
What is used must be, byte for byte, something that was made.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from onboard.agents.gossip_memory import Checkpoint, Checkpoints
from onboard.codec.layout import Floats
from onboard.codec.model import Model
from onboard.data.images import Images
from onboard.learn.federated.rounds import AggregationRule
from onboard.learn.gossip.descent import Descent
from onboard.learn.gossip.exchange import Gossip, Message
from onboard.learn.graph import TrainGraph
from onboard.learn.training import Stepped
from onboard.mission.objects import Update, as_asked_first, decode_update
from onboard.mission.server import Server
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Begun, Job, Report, TrainingDone
from onboard.wire.framing import frame as framing
from onboard.wire.framing.frame import Type
from onboard.wire.messages import BadMessage
from onboard.wire.session import Session


class Genuine:
    """Digests of what was made, by what it is; `false` says what was used and never made, and `twice` which
    frames were sealed under a number that had been used under that salt."""

    def __init__(self) -> None:
        self._made: set[bytes] = set()
        self._sealed: dict[tuple[int, int, bytes], set[tuple[int, int]]] = {}
        self.false: list[str] = []
        self.twice: list[str] = []
        self.final = b""  # the model object that was deployed last

    def made(self, what: str, content: bytes) -> None:
        """An undamaged program made this."""
        self._made.add(_digest(what, content))

    def is_made(self, what: str, content: bytes) -> bool:
        """Whether one did."""
        return _digest(what, content) in self._made

    def used(self, what: str, content: bytes) -> None:
        """A program goes on with this."""
        if not self.is_made(what, content):
            self.false.append(f"{what} of {len(content)} B")

    def sealed(self, node: int, peer: int, salt: bytes, raw: bytes) -> None:
        """A frame leaves. A HELLO is sealed with a subkey of its own, and is no secret."""
        frame = framing.unproven(raw)
        if frame.type is Type.HELLO:
            return
        numbers = self._sealed.setdefault((node, peer, salt), set())
        if (frame.epoch, frame.seq) in numbers:
            self.twice.append(f"{node} to {peer}, epoch {frame.epoch}, seq {frame.seq}, salt {salt.hex()}")
        numbers.add((frame.epoch, frame.seq))


def _digest(what: str, content: bytes) -> bytes:
    digest = sha256(what.encode() + b"\0")  # the fastest here: checkpoints have megabytes
    digest.update(content)
    return digest.digest()


def watched_session(genuine: Genuine) -> type[Session]:
    """Sessions whose frames are counted."""

    class WatchedSession(Session):
        def transmit(self, now: float) -> bytes | None:
            raw = super().transmit(now)
            if raw is not None:
                genuine.sealed(self.node, self.peer, self.salt, raw)
            return raw

    return WatchedSession


def watched_server(genuine: Genuine, samples: int) -> type[Server]:
    """Servers that average only updates of these boards, of `samples` images each, and make models."""

    class WatchedServer(Server):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._opened: list[tuple[Model, bytes]] = []
            genuine.made("weights", b"")  # before the first round

        def model(self, number: int, packed: bytes, *, deploy: bool = False) -> bytes:
            genuine.used("weights", packed)
            asked = super().model(number, packed, deploy=deploy)
            genuine.made("model", as_asked_first(asked))
            if deploy:
                genuine.final = asked
            return asked

        def open(self, kind: int, payload: bytes, *args: Any, **kw: Any) -> tuple[Update, Model]:
            update, model = super().open(kind, payload, *args, **kw)
            self._opened.append((model, bytes(payload)))
            return update, model

        def accumulate(
            self, average: AggregationRule, update: Update, model: Model, *args: Any, **kw: Any
        ) -> None:
            (payload,) = (payload for opened, payload in self._opened if opened is model)
            genuine.used("update", bytes(decode_update(payload)[1]))
            if update.samples != samples:
                genuine.false.append(f"update of {update.samples} samples")
            super().accumulate(average, update, model, *args, **kw)

        def quantize_average(self, average: AggregationRule, packed: bytes, *args: Any) -> bytes:
            genuine.used("weights", packed)
            condensed = super().quantize_average(average, packed, *args)
            genuine.made("weights", condensed)
            self._opened.clear()
            return condensed

    return WatchedServer


class WatchedTrainer(LocalTrainer):
    """Trains in the agent's thread; see `onboard.trainer.process.ProcessTrainer`, whose place it takes."""

    def __init__(self, images: Images, graph: TrainGraph, genuine: Genuine) -> None:
        super().__init__(images, lambda name: graph, cpu_clock=lambda: 0.0)
        self._genuine, self._checkpoint = genuine, b""

    def look(self) -> None:
        """The images are there."""

    def begin(self, job: Job) -> None:
        try:
            self._genuine.used("model", as_asked_first(job.model))
        except BadMessage:
            self._genuine.false.append("model that is none")
        self._checkpoint = job.checkpoint or b""
        super().begin(job)

    def reports(self) -> list[Report]:
        reports = super().reports()
        for report in reports:
            if isinstance(report, Begun) and self._checkpoint and not report.dropped:
                self._genuine.used("checkpoint", self._checkpoint)
            elif isinstance(report, Stepped) and report.state is not None:
                self._genuine.made("checkpoint", bytes(report.state))
            elif isinstance(report, TrainingDone):
                self._genuine.made("update", report.packed)
        return reports


def watched_gossip(genuine: Genuine) -> type[Gossip]:
    """Gossips that mix only what their neighbours, and they themselves, have opened."""

    class WatchedGossip(Gossip):
        def open(self, *args: Any, **kw: Any) -> dict[int, Message]:
            opened = super().open(*args, **kw)
            for peer, message in opened.items():
                genuine.made(f"message {self.node} to {peer}", bytes(message))
            return opened

        def take(self, peer: int, message: Message, *args: Any, **kw: Any) -> int:
            number = super().take(peer, message, *args, **kw)
            genuine.used(f"message {peer} to {self.node}", bytes(message))
            return number

        def reopen(self, peer: int, message: Message, *args: Any, **kw: Any) -> None:
            super().reopen(peer, message, *args, **kw)
            genuine.used(f"message {self.node} to {peer}", bytes(message))

    return WatchedGossip


def watched_descent(genuine: Genuine) -> type[Descent]:
    """Descents that go on only from what they were."""

    class WatchedDescent(Descent):
        def restore(self, vector: Floats, velocity: Floats, batches: int) -> None:
            super().restore(vector, velocity, batches)
            genuine.used("descent", _joined(vector, velocity, batches))

    return WatchedDescent


def watched_checkpoints(genuine: Genuine) -> type[Checkpoints]:
    """What a gossiping node keeps of its model."""

    class WatchedCheckpoints(Checkpoints):
        def keep(self, reached: Checkpoint) -> dict[int, int]:
            genuine.made("descent", _joined(reached.vector, reached.velocity, reached.batches))
            return super().keep(reached)

    return WatchedCheckpoints


def _joined(vector: Floats, velocity: Floats, batches: int) -> bytes:
    return vector.tobytes() + velocity.tobytes() + batches.to_bytes(8, "big")
