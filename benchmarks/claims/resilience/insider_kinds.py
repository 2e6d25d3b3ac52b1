"""What a hostile end of a link does, each kind a function that is called every hundredth of a second.

Some hold for any end; others are what a board sends its ground, or a ground its board. None breaks a rule of
the cipher: the end holds the key.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np

from benchmarks.claims.resilience.insider_world import Hostile, honest, task_of
from benchmarks.harness.missions import graphs
from onboard.codec.dense import Dense
from onboard.codec.model import PREFIX
from onboard.codec.quantized import HEADER, Quantized
from onboard.learn.training import BoardTraining
from onboard.mission.health import Health, State, encode_health
from onboard.mission.objects import MODEL, UPDATE, Task, Update, encode_object
from onboard.wire.framing.frame import Type
from onboard.wire.messages import Offer, Report, digest

Play = Callable[[Hostile], None]
OFTEN, FLOOD = 20.0, 1000.0  # a second: recut OFFERs as they were found, and what 2 Mbit/s carry of frames
MIB60 = 60 << 20

# what any end can do


def _offers(size: int, per_s: float, *, same: bool = False, fragment: int = 990, kind: int = UPDATE) -> Play:
    """Objects that are offered and never sent; `same`: one, cut otherwise each time."""

    def play(hostile: Hostile) -> None:
        for _ in range(hostile.due(per_s)):
            name = b"the same object!" if same else hostile.random.randbytes(16)
            cut = fragment + (hostile.count % 50 if same else 0)
            offer = struct.pack(">16sIHBI", name, size, cut, kind, 0)  # `Offer` without its checks
            hostile.raw(Type.OFFER, offer, object_id=128 + hostile.count % 100)

    return play


def _bursts(hostile: Hostile) -> None:
    """OFFER, all DATA and CANCEL of a small object in one burst."""
    for _ in range(hostile.due(OFTEN)):
        payload = hostile.random.randbytes(40)
        name, at = digest(UPDATE, payload), 128 + hostile.count % 100
        hostile.raw(Type.OFFER, Offer(name, len(payload), 40, UPDATE).encode(), object_id=at)
        hostile.raw(Type.DATA, payload, object_id=at, fragment=0)
        hostile.raw(Type.CANCEL, name + b"\1", object_id=at)


def _offer_and_cancel(hostile: Hostile) -> None:
    for _ in range(hostile.due(FLOOD / 2)):
        name = hostile.random.randbytes(16)
        hostile.raw(Type.OFFER, Offer(name, 10_000, 900, UPDATE).encode(), object_id=200)
        hostile.raw(Type.CANCEL, name + b"\1", object_id=200)


def _flood(kind: Type, payload: Callable[[Hostile], bytes], per_s: float = FLOOD, **flags: Any) -> Play:
    """Frames of one type."""

    def play(hostile: Hostile) -> None:
        for _ in range(hostile.due(per_s)):
            hostile.raw(kind, payload(hostile), object_id=128 + hostile.count % 100, **flags)

    return play


def _report(hostile: Hostile) -> bytes:
    held = hostile.random.getrandbits(2000)
    return Report(hostile.epoch, 2**32 - 1, hostile.random.randbytes(4), held).encode(400)


def _hello(hostile: Hostile) -> bytes:
    return hostile.random.randbytes(24)


def _messages(make: Callable[[Hostile], bytes], per_s: float) -> Play:
    """MSG frames, past the queue of the session's own."""
    return _flood(Type.MSG, make, per_s)


def _health(hostile: Hostile) -> bytes:
    return encode_health(
        Health(State.IDLE, hostile.count & 0xFFFF, 1, 0.0, 0.0, 0.0, asking=hostile.count & 0xFF)
    )


def _failed(hostile: Hostile) -> bytes:
    why = "because " * 12
    return encode_health(
        Health(State.FAILED, 1, 1, 0.0, 0.0, 0.0, failure=hostile.count % 7, why=f"{hostile.count} {why}")
    )


def _epochs(hostile: Hostile) -> None:
    """Another life each second, in epochs that jump to the last and back."""
    for _ in range(hostile.due(1.0)):
        hostile.again((65_535, 1, 40_000, 2)[hostile.count % 4])


def _last_seq(hostile: Hostile) -> None:
    """The counter of frames is at its end."""
    if hostile.count == 0 and hostile.due(10.0):
        hostile.session._security.sealer.seq = 2**32 - 20
    for _ in range(hostile.due(5.0)):
        if hostile.session._security.sealer.seq < 2**32 - 2:
            hostile.raw(Type.POLL)


def _objects(make: Callable[[Hostile], tuple[int, bytes]]) -> Play:
    """One object after the other, as the link carries them."""

    def play(hostile: Hostile) -> None:
        if hostile.is_free and hostile.due(OFTEN):
            hostile.offer(*make(hostile))

    return play


def _noise(kind: int, size: int) -> Play:
    return _objects(lambda hostile: (kind, hostile.random.randbytes(size)))


ANY: Mapping[str, Play] = {
    "OFFERs of 60 MiB": _offers(MIB60, OFTEN),
    "OFFERs of 4 GiB": _offers(2**32 - 1, OFTEN, fragment=65_535),
    "one OFFER, cut anew each time": _offers(1_700_000, OFTEN, same=True),
    "OFFERs, a thousand a second": _offers(100_000, FLOOD),
    "OFFER, DATA and CANCEL in a burst": _bursts,
    "OFFER and CANCEL": _offer_and_cancel,
    "OFFERs of an unknown kind": _offers(1_000, OFTEN, kind=77),
    "DONE of what was never offered": _flood(Type.DONE, lambda h: h.random.randbytes(16)),
    "CANCEL of what was never offered": _flood(Type.CANCEL, lambda h: h.random.randbytes(16) + b"\1"),
    "REPORTs of frames that were never sent": _flood(Type.REPORT, _report, 200.0),
    "REPORTs that make no sense": _flood(Type.REPORT, lambda h: h.random.randbytes(60)),
    "POLLs": _flood(Type.POLL, lambda h: b"", poll=True),
    "HELLOs": _flood(Type.HELLO, _hello, 100.0),
    "frames with OVER set": _flood(Type.POLL, lambda h: b"", 200.0, over=True),
    "DATA of no object": _flood(Type.DATA, lambda h: h.random.randbytes(200), 500.0),
    "messages of the greatest size": _messages(lambda h: h.random.randbytes(900), 200.0),
    "epochs that jump": _epochs,
    "the last number of a frame": _last_seq,
    "objects of noise": _noise(UPDATE, 3_000),
    "objects of an unknown kind": _noise(200, 500),
}

# from a board


def _update(weights: Callable[[Hostile], bytes], **changes: Any) -> Play:
    """Updates whose header differs from a right one in `changes`; each is another object."""

    def make(hostile: Hostile) -> tuple[int, bytes]:
        mission = task_of(hostile)["mission"] if hostile.asked else bytes(8)
        header = Update(
            mission=mission, round=1, node=2, samples=600, loss=float(hostile.count), cpu_s=1.0, energy_j=1.0,
            train_s=1.0,
        )  # fmt: skip
        packed = msgspec.msgpack.encode(msgspec.structs.replace(header, **changes))
        return UPDATE, len(packed).to_bytes(2, "big") + packed + weights(hostile)

    return _objects(make)


def _dense(value: float) -> bytes:
    layout = graphs()[0].layout
    body = np.full(layout.parameters, value, "<f4").tobytes()
    return PREFIX.pack(Dense.format, layout.digest) + b"\0" + body


def _bomb(hostile: Hostile) -> bytes:
    frame = b"\x28\xb5\x2f\xfd\xa0" + (1 << 30).to_bytes(4, "little") + b"\x23\0\0\0"
    return PREFIX.pack(Dense.format, graphs()[0].layout.digest) + b"\1" + frame


def _widths(hostile: Hostile) -> bytes:
    """As many bases as noise makes the coder say, and a length beyond the end."""
    head = HEADER.pack(Quantized.format, graphs()[0].layout.digest, 2**32 - 1)
    return head + hostile.random.randbytes(20_000)


def _nested(hostile: Hostile) -> tuple[int, bytes]:
    return UPDATE, struct.pack(">H", 1000) + b"\x91" * 1000 + hostile.random.randbytes(8)


def _same(hostile: Hostile) -> None:
    """One right update, offered again as soon as it was taken."""
    mission = task_of(hostile)["mission"] if hostile.asked else bytes(8)
    header = Update(
        mission=mission, round=1, node=2, samples=1, loss=1.0, cpu_s=1.0, energy_j=1.0, train_s=1.0
    )
    if hostile.is_free and hostile.due(OFTEN):
        hostile.offer(UPDATE, encode_object(header, honest()))


def small(hostile: Hostile) -> bytes:
    """No weights, but some bytes that differ."""
    return hostile.random.randbytes(64)


FROM_BOARD: Mapping[str, Play] = {
    "health, two hundred a second": _messages(_health, 200.0),
    "health of failures with long words": _messages(_failed, 200.0),
    "updates of another mission": _update(small, mission=b"another."),
    "updates of another node": _update(small, node=1),
    "updates of a round to come": _update(small, round=65_535),
    "updates of round 0": _update(small, round=0),
    "updates of 0 samples": _update(small, samples=0),
    "updates with a loss of NaN": _update(small, loss=float("nan")),
    "weights of 1e30": _update(lambda h: _dense(1e30 * (1 + h.count % 7))),
    "weights of NaN": _update(lambda h: _dense(float("nan"))),
    "weights of infinity": _update(lambda h: _dense(float("inf"))),
    "weights that are denormal, of 2^32-1 samples": _update(lambda h: _dense(1e-40), samples=2**32 - 1),
    "a gigabyte in a hundred bytes": _update(_bomb),
    "quantized weights where dense ones are asked for": _update(_widths),
    "headers that are nested": _objects(_nested),
    "one right update again and again": _same,
}

# from a ground


def _trained(**knobs: Any) -> Play:
    """A task that asks for another training than the right one."""
    return _task(training=msgspec.structs.replace(RIGHT_TRAINING, **knobs))


def _task(weights: Callable[[Hostile], bytes] = lambda h: b"", **changes: Any) -> Play:
    """Tasks that no ground sends, each another object; see `right_task`."""

    def make(hostile: Hostile) -> tuple[int, bytes]:
        body = weights(hostile)
        task = msgspec.structs.replace(right_task(hostile.count), weights="packed" if body else "seed")
        packed = msgspec.msgpack.encode(msgspec.structs.replace(task, **changes))
        return MODEL, len(packed).to_bytes(2, "big") + packed + body

    return _objects(make)


RIGHT_TRAINING = BoardTraining(
    method="fedavg", epochs=1, learning_rate=1e-3, bits_up=1.0, max_bases=1, shift_pixels=0, distortion=0.0
)


def right_task(asking: int, number: int = 1) -> Task:
    """What an honest ground asks in its first round: dense weights, and one epoch."""
    return Task(
        mission=b"mission.", round=number, model="lenet5", graph=graphs()[0].digest, seed=0, weights="seed",
        training=RIGHT_TRAINING, deadline_s=900.0, asking=asking,
    )  # fmt: skip


def _withdrawn(hostile: Hostile) -> None:
    """A task that is withdrawn as it was taken, and the update that it made cancelled."""
    for _ in range(hostile.due(2.0)):
        payload = encode_object(right_task(hostile.count), b"")
        hostile.offer(MODEL, payload)
        hostile.raw(Type.CANCEL, digest(MODEL, payload) + b"\5")


FROM_GROUND: Mapping[str, Play] = {
    "tasks of 10,000 epochs in batches of 65,536": _trained(epochs=10_000, batch_size=65_536),
    "tasks at a learning rate of 0.999": _trained(epochs=2, learning_rate=0.999, method="spacedml-fast"),
    "tasks at a learning rate of 100": _trained(epochs=2, learning_rate=100.0, method="spacedml-fast"),
    "tasks of another version": _task(version=1),
    "tasks with a deadline of a nanosecond": _task(deadline_s=1e-9),
    "tasks of round 65,535": _task(round=65_535),
    "tasks of the 4,294,967,295th asking": _task(
        asking=2**32 - 1, training=msgspec.structs.replace(RIGHT_TRAINING, epochs=3)
    ),
    "tasks for another graph": _task(graph=b"\xff" * 8),
    "tasks for a model of no name": _task(model="../../etc/passwd"),
    "tasks whose classes are nobody's": _task(classes=b"\xff" * 8),
    "models of 1e30": _task(lambda h: _dense(1e30)),
    "models of noise": _task(lambda h: PREFIX.pack(Quantized.format, graphs()[0].layout.digest) + small(h)),
    "tasks that are withdrawn": _withdrawn,
}
