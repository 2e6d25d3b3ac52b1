"""One update followed through every stage of its way, and every stage through its public interface:

images -> learn/local -> codec/alq -> codec/pack -> wire/messages -> wire/session -> wire/seal, wire/frame ->
wire/cobs -> a real pty -> the same back -> the ground's store -> learn/federated -> codec -> the next model.
"""

from __future__ import annotations

import os
import time
import tty
from pathlib import Path

import numpy as np

from groundstation.store.store import Store
from hw_profiles import load_link
from onboard.codec import alq
from onboard.codec.pack import pack, unpack
from onboard.data import loading
from onboard.learn.federated.local import LocalTraining, moved
from onboard.learn.federated.plan import Plan
from onboard.learn.federated.rounds import PartialAverage, condense
from onboard.learn.graph import TrainGraph, initial
from onboard.link import Spool, open_port
from onboard.link.ports.whitening import whiten
from onboard.link.pump import Pump, wait
from onboard.mission.objects import UPDATE, Update, decode_update, encode_object
from onboard.mission.training import BoardTraining
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Delivered, Event
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import Type
from onboard.wire.messages import digest
from onboard.wire.security.seal import Opener
from onboard.wire.session import Session

KEY = bytes(range(32))
LINK = load_link("bench-serial-115k2")


def trained() -> tuple[TrainGraph, alq.Quantized, int]:
    """A board's share of a first round, small."""
    graph, images = TrainGraph.load("lenet5"), loading.load("digits", part="train").take(np.arange(40))
    origin = initial(graph.shapes, seed=7)
    knobs = BoardTraining(epochs=1, shift_pixels=0, distortion=0.0)
    plan = Plan(training=knobs, seed=7, round=1, node=1)
    training = LocalTraining(graph, origin, origin, images.x, images.y, plan)
    assert [step.epoch for step in training.steps()] == [1] * 4 + [2] * 4
    return graph, training.result(), len(images)


def end(node: int, peer: int, port: str, spool: Path) -> tuple[Session, Pump]:
    """One end of the link on its port."""
    session = Session(
        Identity(node, peer, primary=node == 0),
        Medium(LINK),
        Security(KEY),
        SessionState(epoch=1),
        now=time.monotonic(),
    )
    return session, Pump(lambda: open_port(port, LINK), session, Spool(spool, 1 << 20))


def test_one_update_through_every_stage(tmp_path: Path) -> None:
    # learn -> codec: the trained difference in groups, bases and coordinates, and in bytes
    graph, quantized, samples = trained()
    packed = pack(quantized)
    header = Update(mission=b"missiona", round=1, node=1, samples=samples, loss=0.5, cpu_s=1.0, energy_j=2.0,
                    train_s=3.0)  # fmt: skip
    payload = encode_object(header, packed)

    # wire: offered, fragmented, sealed; taken from the line by a third hand, which can check but not change
    masters = [os.openpty() for _ in range(2)]
    for master, slave in masters:
        tty.setraw(slave)
        os.set_blocking(master, False)
    ports = [os.ttyname(slave) for _, slave in masters]
    board, board_pump = end(1, 0, ports[0], tmp_path / "board")
    ground, ground_pump = end(0, 1, ports[1], tmp_path / "ground")
    name = board.offer(UPDATE, payload, time.monotonic())
    assert name == digest(UPDATE, payload)
    listener, on_the_line, types = Opener(KEY, source=1, destination=0), cobs.Splitter(LINK.mtu_bytes), []
    arrived: list[Arrived] = []
    board_heard: list[Event] = []
    deadline = time.monotonic() + 30
    while not any(isinstance(event, Delivered) for event in board_heard):
        now = time.monotonic()
        assert now < deadline, (board.snapshot(now), ground.snapshot(now))
        board_heard += [event for event in board_pump.poll(now) if isinstance(event, Delivered)]
        for event in ground_pump.poll(now):
            if isinstance(event, Arrived):
                arrived.append(event)
                ground.accept(event.digest, now)  # this test's ground is content with its memory
        for source, target in ((0, 1), (1, 0)):
            try:
                line = os.read(masters[source][0], 4096)
            except BlockingIOError:
                continue
            os.write(masters[target][0], line)
            if source == 0:
                for chunk in on_the_line.feed(line):
                    frame = listener.open(whiten(cobs.decode(chunk)))
                    assert frame is not None
                    assert frame.source == 1
                    types.append(frame.type)
        wait([board_pump, ground_pump], 0.005)
    assert types[0] is Type.OFFER
    assert types.count(Type.DATA) == -(-len(payload) // (LINK.mtu_bytes - 22))  # each fragment once
    board_pump.close(time.monotonic())
    ground_pump.close(time.monotonic())
    for master, slave in masters:
        os.close(master)
        os.close(slave)

    # the ground: the object as it left, in the store before its weights are used
    [update] = arrived
    assert (update.kind, update.payload) == (UPDATE, payload)
    store = Store(tmp_path / "mission.sqlite")
    store.begin(b"missiona", "walk", 7, graph.digest)
    store.enter_node(1, "board")
    store.open_round(1, b"model", [1], 0.0, 60.0)
    metrics = {key: getattr(header, key) for key in ("samples", "loss", "train_s", "cpu_s", "energy_j")}
    store.take_update(1, 1, update.payload, metrics, 1.0)
    stored = store.payload(1, 1)
    assert stored == payload
    assert ground.floor[1] > 0

    # codec -> learn: the same weights, averaged, condensed, and packed for the way down
    back, weights = decode_update(stored)
    assert back == header
    there, here = unpack(weights, graph.layout).reconstruct(), quantized.reconstruct()
    assert all(np.array_equal(there[tensor], here[tensor]) for tensor in here)
    average = PartialAverage(graph.layout)
    average.add(there, back.samples)
    model = pack(condense(graph.layout, average.mean(), bits_per_weight=0.08))
    start = moved(initial(graph.shapes, seed=7), unpack(model, graph.layout).reconstruct())
    assert {tensor: weights.shape for tensor, weights in start.items()} == dict(graph.shapes)
    assert len(model) < 8_000  # 431,080 weights
