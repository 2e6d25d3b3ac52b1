"""What a round does with an update that comes when another one is open: durable, averaged once, or let go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from groundstation.cli import main
from groundstation.config import load_mission
from groundstation.rounds.rounds import Rounds
from groundstation.station import Station
from groundstation.store.store import Store
from onboard.codec.alq import AlqCodec
from onboard.codec.model import Budget
from onboard.codec.pack import pack, unpack
from onboard.codec.quantized import MAX_BASES
from onboard.data import loading
from onboard.learn.federated.local import apply_delta
from onboard.learn.federated.rounds import PartialAverage, choose
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.statistics import measured, parted
from onboard.mission.objects import UPDATE, Update, decode_task, encode_object
from onboard.storage.keys import load_keys
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Progress, QuotaUsage, Rekeyed
from onboard.wire.session import Session
from tests.onboard.codec.examples import quantize_average

TRAIN = TrainGraph.load("lenet5")
NODES, SEED = (1, 2, 3), 4


class Ground:
    """A mission of two rounds that asks two of three boards and takes one answer, without its ports."""

    def __init__(self, folder: Path, staleness: str = "", model: str = "lenet5") -> None:
        nodes = [word for n in NODES for word in ("--node", f"board-{n},port={folder}/missing-{n}")]
        options = ["--select", "2", "--quorum", "1", "--rounds", "2", "--seed", str(SEED), *nodes]
        options += ["--model", model, "--data", "digits"]
        done = CliRunner().invoke(main, ["init", str(folder / "mission"), *options])
        assert done.exit_code == 0, done.output
        toml = folder / "mission" / "mission.toml"
        text = toml.read_text().replace("clip = 2.0", "clip = 0")  # of what is long, test_clipping.py
        toml.write_text(text.replace("[mission]", f"[mission]\n{staleness}"))
        self.mission = load_mission(folder / "mission")
        self.now = 0.0
        self.train, self.infer = TrainGraph.load(model), InferGraph.load(model)
        self.start()
        self.boards = {
            node.id: Session(
                Identity(node.id, 0, primary=False),
                Medium(node.link),
                Security(load_keys(node.key_path), nonce=os.urandom),
                SessionState(epoch=1),
            )
            for node in self.mission.nodes
        }

    def start(self) -> None:
        """The daemon's life, or its next one on the same disk."""
        self.store = Store(self.mission.database)
        self.store.begin(b"mission.", "test", 0, self.train.digest)
        self.stations = {
            node.id: Station(node, self.store, self.mission.folder, self.now) for node in self.mission.nodes
        }
        test = loading.load("digits", self.train.input_shape, part="test", rows=100)
        wall, graphs = lambda: self.now, (self.train, self.infer)
        self.rounds = Rounds(self.mission, self.store, self.stations, *graphs, test, wall)
        self.step()

    def step(self) -> None:
        while self.rounds.step(self.now):
            pass

    def exchange(self, node: int, seconds: float = 5.0) -> Iterator[Arrived]:
        """Lets a board and its station talk; what the board hears arrive."""
        station, board = self.stations[node], self.boards[node]
        until = self.now + seconds
        while self.now < until:
            while (frame := station.session.transmit(self.now)) is not None:
                for event in board.receive(frame, self.now):
                    if isinstance(event, Rekeyed):
                        board.rekey(event.salt)
                    if isinstance(event, Arrived):
                        yield event
            while (frame := board.transmit(self.now)) is not None:
                for event in station.session.receive(frame, self.now):
                    self.rounds.handle(station, event, self.now)
            self.now += 0.05
        self.step()

    def answer(self, node: int, of_round: int, packed: bytes) -> None:
        """The board's update of a round, until the ground has it."""
        header = Update(
            mission=b"mission.", round=of_round, node=node, samples=100, loss=0.5, cpu_s=1.0, energy_j=1.0,
            train_s=1.0,
        )  # fmt: skip
        self.boards[node].offer(UPDATE, encode_object(header, packed), self.now)
        list(self.exchange(node))

    def states(self, number: int) -> dict[int, str]:
        return {answer["node"]: answer["state"] for answer in self.store.answers(number)}


def update(value: float) -> bytes:
    weights = {name: np.full(shape, value, np.float32) for name, shape in TRAIN.shapes.items()}
    return pack(quantize_average(TRAIN.layout, weights, 0.02))


@pytest.mark.parametrize("staleness", ["", "staleness = 1.0"])
def test_a_late_update_counts_in_the_round_that_is_open_if_the_mission_says_so(
    tmp_path: Path, staleness: str
) -> None:
    ground = Ground(tmp_path, staleness)
    asked = set(choose(NODES, 2, SEED, 2))
    (late,) = set(ground.states(1)) - asked
    (first,) = set(ground.states(1)) & asked
    for node in (first, late):
        (model,) = ground.exchange(node)
        assert decode_task(model.payload)[0].round == 1
        ground.boards[node].accept(model.digest, ground.now)
        assert list(ground.exchange(node)) == []
    ground.answer(first, 1, update(0.01))
    assert ground.states(2) == dict.fromkeys(asked, "asked")
    ground.answer(late, 1, update(0.03))
    if not staleness:
        assert ground.states(2) == dict.fromkeys(asked, "asked")
        assert ground.stations[late].updates["updates_late"] == 1
        return
    assert ground.states(2)[late] == "merged"
    assert ground.rounds.number == 2

    ground.store.close()
    ground.start()  # as after a kill: what was merged is on the disk
    node = min(asked)
    ground.boards[node] = Session(
        Identity(node, 0, primary=False),
        Medium(ground.mission.nodes[node - 1].link),
        Security(load_keys(ground.mission.nodes[node - 1].key_path), nonce=os.urandom),
        SessionState(epoch=2, salt=ground.boards[node].salt),
    )
    ground.answer(node, 2, update(0.01))
    before, packed = ground.store.model(1), ground.store.model(2)
    assert before is not None
    assert packed is not None
    # 100 samples in time, 100 a round late: (1 + 1)^-1 of those count.
    expected = PartialAverage(TRAIN.layout)
    expected.add(unpack(update(0.01), TRAIN.layout).reconstruct(), 100)
    expected.add(unpack(update(0.03), TRAIN.layout).reconstruct(), 100, 0.5)
    total = apply_delta(unpack(before, TRAIN.layout).reconstruct(), expected.mean())
    assert packed == pack(quantize_average(TRAIN.layout, total, ground.mission.train.bits_down))


def test_an_update_of_a_round_that_did_not_ask_its_node_counts_in_none(tmp_path: Path) -> None:
    ground = Ground(tmp_path, "staleness = 1.0")
    (intruder,) = set(NODES) - set(ground.states(1))
    first = min(ground.states(1))
    (model,) = ground.exchange(first)
    ground.boards[first].accept(model.digest, ground.now)
    assert list(ground.exchange(first)) == []
    ground.answer(intruder, 1, update(0.03))  # while that round is open
    ground.answer(first, 1, update(0.01))
    assert ground.rounds.number == 2
    ground.answer(intruder, 1, update(0.04))  # and as a late one, as a node that is asked now or not
    assert "merged" not in ground.states(2).values()
    assert ground.stations[intruder].updates["updates_late"] == 2


def test_a_model_is_cut_after_a_restart_as_before(tmp_path: Path) -> None:
    ground = Ground(tmp_path, "")
    asked = sorted(ground.states(1))
    (offered,) = {progress.digest for progress in objects(ground, asked[0])}
    before = ground.stations[asked[0]].session.fragment_bytes(offered)
    ground.store.set_fragment_size(
        asked[0], offered, before - 7
    )  # as if its link had lost much when it was offered
    ground.store.close()
    ground.start()
    cuts = [ground.stations[node].session.fragment_bytes(offered) for node in asked]
    assert cuts == [before - 7, before]


def objects(ground: Ground, node: int) -> tuple[Progress, ...]:
    return ground.stations[node].session.snapshot(ground.now).objects


def test_what_was_spent_of_an_allowance_is_in_the_store(tmp_path: Path) -> None:
    ground = Ground(tmp_path, "")
    spent = QuotaUsage(700, ((1.5, 700),))
    ground.rounds.handle(ground.stations[2], spent, ground.now)
    assert [ground.store.enter_node(node, "").spent for node in NODES] == [QuotaUsage(), spent, QuotaUsage()]


def test_a_model_goes_down_with_running_statistics_measured_on_the_grounds_images(tmp_path: Path) -> None:
    ground = Ground(tmp_path, model="resnet20")
    node, layout = min(ground.states(1)), ground.train.layout
    (model,) = ground.exchange(node)
    ground.boards[node].accept(model.digest, ground.now)
    draw = np.random.default_rng(0)
    moved = {t.name: draw.normal(0, 0.02, t.shape).astype(np.float32) for t in layout.tensors}
    ground.answer(node, 1, pack(AlqCodec().quantize(layout, moved, Budget(0.05, MAX_BASES))))
    packed = ground.store.model(1)
    assert packed is not None
    weights = apply_delta(ground.train.initial(SEED), unpack(packed, layout).reconstruct())
    _, measuring = parted(
        ground.train, loading.load("digits", ground.train.input_shape, part="test", rows=100)
    )
    assert measuring is not None
    *_, expected = measured(ground.train, weights, measuring)
    for name, values in expected.items():
        assert weights[name] == pytest.approx(values, abs=0.05 * float(np.abs(values).max()))
