"""One update followed through every stage of its way, and every stage through its public interface:

images -> learn/local -> codec/alq -> codec/pack -> wire/messages -> wire/session -> wire/seal, wire/frame ->
wire/cobs -> a real pty -> the same back -> the ground's store -> learn/federated -> codec -> the next model.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import numpy as np

from groundstation.store.store import Store
from hw_profiles import load_link
from onboard.codec.pack import pack, unpack
from onboard.data import loading
from onboard.learn.federated.local import LocalTraining, apply_delta
from onboard.learn.federated.rounds import PartialAverage
from onboard.learn.graph import TrainGraph, initial
from onboard.learn.training import BoardTraining, Plan
from onboard.link.ports.framing import whiten
from onboard.link.ports.port import PortEvent
from onboard.link.ports.schemes import open_port
from onboard.link.pump import Pump, wait
from onboard.link.spool import Spool
from onboard.mission.objects import UPDATE, Update, decode_update, encode_object
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Delivered, Event
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import Type
from onboard.wire.messages import digest
from onboard.wire.security.seal import Opener
from onboard.wire.session import Session
from onboard.wire.transfer.outbox import Outbox
from tests.onboard.codec.examples import quantize_average

KEY = bytes(range(32))
LINK = load_link("bench-serial-115k2")
MOST_FILES = {"board": 28, "ground": 28}  # only ever fewer
LAYERS = (  # from the top: a call goes down or stays, so that all of it is read downward
    "groundstation/rounds/", "groundstation/store/", "onboard/mission/", "onboard/learn/federated/",
    "onboard/learn/", "onboard/codec/", "onboard/link/", "onboard/link/ports/", "onboard/wire/",
    "onboard/wire/transfer/", "onboard/wire/security/", "onboard/wire/medium/", "onboard/wire/config.py",
    "onboard/wire/messages.py", "onboard/wire/framing/", "onboard/storage/", "hw_profiles/",
)  # fmt: skip
MOST_PLANS = 2  # for each frame that crosses
ROOT = Path(__file__).parent.parent.parent
PRODUCT = tuple(f"{ROOT}/{package}/" for package in ("onboard", "groundstation", "hw_profiles"))


def trained() -> tuple[TrainGraph, LocalTraining, int]:
    """A board's share of a first round, small, when its last step is done."""
    graph, images = TrainGraph.load("lenet5"), loading.load("digits", part="train").take(np.arange(40))
    origin = initial(graph.shapes, seed=7)
    knobs = BoardTraining(epochs=1, shift_pixels=0, distortion=0.0)
    plan = Plan(training=knobs, seed=7, round=1, node=1)
    training = LocalTraining(graph, origin, origin, images.x, images.y, plan)
    assert [step.epoch for step in training.steps()] == [1] * 4 + [2] * 4
    return graph, training, len(images)


def place(code: CodeType) -> str:
    """The file of the product that some code stands in."""
    return code.co_filename.removeprefix(f"{ROOT}/")


def layer(code: CodeType) -> int:
    """The layer of some code of the product: the place in `LAYERS` of the longest name that its file begins
    with."""
    return LAYERS.index(max((each for each in LAYERS if place(code).startswith(each)), key=len))


@dataclass
class Walk:
    """What one end of the link ran: which files of the product, which calls went up to a layer above the
    caller's, and how often it planned its next frames."""

    files: set[str] = field(default_factory=set)
    climbs: set[str] = field(default_factory=set)
    plans: int = 0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Runs what this end does. What the collector ends meanwhile is no call of its."""
        gc.disable()
        sys.setprofile(self._enter)
        try:
            yield
        finally:
            sys.setprofile(None)
            gc.enable()

    def _enter(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PRODUCT) and code.co_name != "<module>":
            self.files.add(place(code))
            self.plans += code is Outbox._plan_anew.__code__
            caller = frame.f_back
            while caller is not None and not caller.f_code.co_filename.startswith(PRODUCT):
                caller = caller.f_back
            if caller is not None and layer(caller.f_code) > layer(code):
                self.climbs.add(f"{place(caller.f_code)} calls {place(code)}:{code.co_name}")


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
    on_board, on_ground = Walk(), Walk()
    graph, training, samples = trained()
    header = Update(mission=b"missiona", round=1, node=1, samples=samples, loss=0.5, cpu_s=1.0, energy_j=2.0,
                    train_s=3.0)  # fmt: skip
    with on_board.on():
        quantized = training.result()
        payload = encode_object(header, pack(quantized))

    # wire: offered, fragmented, sealed; taken from the line by a third hand, which can check but not change
    masters = [os.openpty() for _ in range(2)]
    for master, slave in masters:
        tty.setraw(slave)
        os.set_blocking(master, False)
    ports = [os.ttyname(slave) for _, slave in masters]
    board, board_pump = end(1, 0, ports[0], tmp_path / "board")
    ground, ground_pump = end(0, 1, ports[1], tmp_path / "ground")
    opened = [event for each in (board_pump, ground_pump) for event in each.poll(time.monotonic())]
    assert [event.name for event in opened if isinstance(event, PortEvent)] == ["port-open"] * 2
    with on_board.on():
        name = board.offer(UPDATE, payload, time.monotonic())
    assert name == digest(UPDATE, payload)
    listener, on_the_line, types = Opener(KEY, source=1, destination=0), cobs.Splitter(LINK.mtu_bytes), []
    arrived: list[Arrived] = []
    board_heard: list[Event] = []
    deadline = time.monotonic() + 30
    while not any(isinstance(event, Delivered) for event in board_heard):
        now = time.monotonic()
        assert now < deadline, (board.snapshot(now), ground.snapshot(now))
        with on_board.on():
            board_heard += board_pump.poll(now)
        with on_ground.on():
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
        with on_board.on():
            board_pump.wakeup(now)
        with on_ground.on():
            ground_pump.wakeup(now)
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
    with on_ground.on():
        store.take_update(1, 1, update.payload, metrics, 1.0)
    stored = store.payload(1, 1)
    assert stored == payload
    assert ground.replay_floor[1] > 0

    # codec -> learn: the same weights, averaged, condensed, and packed for the way down
    with on_ground.on():
        back, weights = decode_update(stored)
        there = unpack(weights, graph.layout).reconstruct()
    assert back == header
    here = quantized.reconstruct()
    assert all(np.array_equal(there[tensor], here[tensor]) for tensor in here)
    average = PartialAverage(graph.layout)
    with on_ground.on():
        average.add(there, back.samples)
    model = pack(quantize_average(graph.layout, average.mean(), bits_per_weight=0.08))
    start = apply_delta(initial(graph.shapes, seed=7), unpack(model, graph.layout).reconstruct())
    assert {tensor: weights.shape for tensor, weights in start.items()} == dict(graph.shapes)
    assert len(model) < 8_000  # 431,080 weights

    # the way: no call goes back up to a layer, and no end plans more than twice for a frame that crosses
    frames = sum(end.snapshot(time.monotonic()).frames_sent for end in (board, ground))
    assert on_board.plans + on_ground.plans <= MOST_PLANS * frames
    assert on_board.climbs | on_ground.climbs == set()
    assert len(on_board.files) <= MOST_FILES["board"], sorted(on_board.files)
    assert len(on_ground.files) <= MOST_FILES["ground"], sorted(on_ground.files)
