"""The server's part of a mission: what a task says, which updates are taken, what the average becomes."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec import alq
from onboard.codec.dense import Dense
from onboard.codec.layout import Floats
from onboard.codec.pack import pack, unpack
from onboard.data import loading
from onboard.learn.federated.clipping import Bounds, Outlier
from onboard.learn.federated.rounds import PartialAverage
from onboard.learn.graph import TrainGraph, initial
from onboard.learn.training import BoardTraining, Training
from onboard.mission.objects import MODEL, UPDATE, Task, Update, decode_task, encode_object
from onboard.mission.server import BadUpdate, MissionTerms, RoundAverage, Server
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Job, TrainingDone
from tests.onboard.codec.examples import quantize_average

GRAPH = TrainGraph.load("lenet5")
MISSION = b"mission."


def server(staleness: float | None = None, **training: Any) -> Server:
    return Server(
        MissionTerms(
            id=MISSION,
            seed=3,
            deadline_s=60.0,
            training=Training(**training),
        ),
        GRAPH,
        staleness=staleness,
    )


def difference(seed: int) -> dict[str, Floats]:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(0, 0.01, shape).astype(np.float32) for name, shape in GRAPH.shapes.items()}


PACKED = pack(quantize_average(GRAPH.layout, difference(1), 0.05))
HEADER = Update(
    mission=MISSION, round=2, node=7, samples=600, loss=0.5, cpu_s=1.0, energy_j=2.0, train_s=3.0
)  # fmt: skip


SERVER = server()


def rate(task: Task) -> float:
    assert task.training is not None
    return task.training.learning_rate


def test_a_task_is_the_rounds_and_the_first_sends_no_weights() -> None:
    one, other = server(learning_rate=0.01, learning_rate_decay=0.5), server()
    task, weights = decode_task(one.model(1, b""))
    assert (task.round, task.weights, bytes(weights), rate(task)) == (1, "seed", b"", 0.01)
    task, weights = decode_task(one.model(3, PACKED))
    assert (task.round, task.weights, bytes(weights), rate(task)) == (3, "packed", PACKED, 0.0025)
    assert decode_task(other.model(4, PACKED, deploy=True))[0].training is None
    assert task.graph == GRAPH.digest
    assert other.task(1).training == BoardTraining()


def test_an_update_of_this_round_or_an_earlier_one_opens() -> None:
    for number in (2, 3, 9):
        update, model = server().open(UPDATE, encode_object(HEADER, PACKED), 7, number)
        assert update == HEADER
        assert pack(model) == PACKED


@pytest.mark.parametrize(
    ("kind", "changes", "packed", "node", "says"),
    [
        (MODEL, {}, PACKED, 7, "kind 1 is not for the server"),
        (UPDATE, {"mission": b"another."}, PACKED, 7, "mission 616e6f746865722e is not this one"),
        (UPDATE, {"node": 8}, PACKED, 7, "node 8 came over the link of node 7"),
        (UPDATE, {"round": 3}, PACKED, 7, "round 3 has not begun, at 2"),
        (UPDATE, {"round": 0}, PACKED, 7, "round 0 has not begun, at 2"),
        (UPDATE, {}, PACKED[:-1], 7, "bytes"),
        (UPDATE, {}, b"", 7, "0 bytes"),
        (UPDATE, {}, PACKED[:1] + bytes(8) + PACKED[9:], 7, "0000000000000000"),  # another model's layout
    ],
)
def test_what_is_no_update_of_this_node_is_refused(
    kind: int, changes: dict[str, Any], packed: bytes, node: int, says: str
) -> None:
    header = msgspec.structs.replace(HEADER, **changes)
    with pytest.raises(BadUpdate, match=says):
        server().open(kind, encode_object(header, packed), node, 2)


def quantized(bits: float, bases: int = 8, levels: int = alq.RAW_LEVELS) -> bytes:
    weights, layout = difference(1), GRAPH.layout
    widths = alq.allocate(layout, weights, bits_per_weight=bits, max_bases=bases)
    model = alq.quantize(layout, weights, widths)
    raw = {t.name: alq.on_grid(weights[t.name], levels) for t in layout.raw}
    return pack(dataclasses.replace(model, raw=raw))


def dense(**changed: float) -> bytes:
    weights = difference(1)
    for name, value in changed.items():
        weights[name].flat[0] = value
    return pack(Dense(GRAPH.layout, weights))


FIRST = GRAPH.layout.tensors[0].name


@pytest.mark.parametrize(
    ("training", "packed", "says"),
    [
        ({}, dense(), "dense weights, asked for was spacedml-fast"),
        ({"method": "spacedml"}, dense(), "dense weights, asked for was spacedml"),
        ({"method": "fedavg"}, quantized(0.05), "quantized weights, asked for was fedavg"),
        ({"method": "fedavg-zstd"}, quantized(0.05), "quantized weights, asked for was fedavg-zstd"),
        ({"max_bases": 2, "bits_up": 32.0}, quantized(4.0, 3), "3 bases in a group, asked for were 2"),
        ({"bits_up": 0.05}, quantized(0.06), r"0\.0597 bits a weight, asked for were 0\.05"),
        ({}, quantized(0.05, levels=8), "is beside its grid of 15 values"),
        ({"method": "fedavg"}, dense(**{FIRST: 1e30}), f"{FIRST} has a weight of 1e\\+30"),
        ({"method": "fedavg"}, dense(**{FIRST: -7e4}), f"{FIRST} has a weight of 7e\\+04"),
        ({"method": "fedavg-zstd"}, dense(**{FIRST: 3e38}), f"{FIRST} has a weight of 3e\\+38"),
    ],
)
def test_what_nobody_made_who_did_as_asked_is_refused(
    training: dict[str, Any], packed: bytes, says: str
) -> None:
    with pytest.raises(BadUpdate, match=says):
        server(**training).open(UPDATE, encode_object(HEADER, packed), 7, 2)


def test_a_round_is_held_to_what_it_asked_and_not_to_what_is_asked_now() -> None:
    payload, then, now = encode_object(HEADER, quantized(0.05)), server(bits_up=0.05), server(bits_up=0.04)
    with pytest.raises(BadUpdate, match=r"asked for were 0\.04"):
        now.open(UPDATE, payload, 7, 3)
    assert now.open(UPDATE, payload, 7, 3, {2: then.task(2).training}.get)[0] == HEADER


@pytest.mark.parametrize("method", ["fedavg", "fedavg-zstd", "spacedml", "spacedml-fast"])
def test_what_every_method_makes_is_taken(method: Any) -> None:
    """The first round of a tiny training, and the second."""
    one = server(method=method, bits_up=1.0, prune_epochs=1, epochs=1)
    images, packed = loading.load("digits").take(np.arange(20)), b""
    for number in (1, 2):
        trainer = LocalTrainer(images, lambda name: GRAPH)
        trainer.begin(Job(model=one.model(number, packed), node=7))
        while not isinstance((report := trainer.reports()[0]), TrainingDone):
            trainer.step()
        average, header = PartialAverage(one.layout), msgspec.structs.replace(HEADER, round=number)
        one.accumulate(average, *one.open(UPDATE, encode_object(header, report.packed), 7, number), number)
        packed = one.quantize_average(average, packed)


@given(st.binary(max_size=200), st.integers(0, 40))
def test_any_bytes_are_refused_and_nothing_else(noise: bytes, kept: int) -> None:
    for payload in (noise, encode_object(HEADER, PACKED)[:kept] + noise):
        with pytest.raises(BadUpdate):
            SERVER.open(UPDATE, payload, 7, 2)


def test_the_average_weighs_samples_and_age() -> None:
    one = server(staleness=1.0)
    average = PartialAverage(one.layout)
    fresh, stale = (Dense(one.layout, difference(seed)) for seed in (1, 2))
    one.accumulate(average, msgspec.structs.replace(HEADER, round=4, samples=100), fresh, 4)
    one.accumulate(average, msgspec.structs.replace(HEADER, round=1, samples=400), stale, 4)
    for name, mean in average.mean().items():
        # 400 samples, three rounds late: (1 + 3)^-1 of them count.
        expected = (100 * fresh.weights[name] + 100 * stale.weights[name]) / 200
        assert mean == pytest.approx(expected, abs=1e-8)
    with pytest.raises(ValueError, match=r"scaled by 0\.0"):
        server().accumulate(average, HEADER, fresh, 4)  # late updates are discarded, not folded


@pytest.mark.parametrize("method", ["fedavg", "fedavg-zstd"])
def test_fedavgs_average_travels_as_it_is(method: Any) -> None:
    one = server(method=method)
    average = PartialAverage(one.layout)
    one.accumulate(average, HEADER, Dense(one.layout, difference(1)), 2)
    weights = one.weights(one.quantize_average(average, b""))
    origin = initial(GRAPH.shapes, 3)
    assert all(np.array_equal(weights[n], origin[n] + d) for n, d in difference(1).items())


def test_a_quantized_average_is_what_the_devices_start_from() -> None:
    one = server(bits_down=0.2)
    average = PartialAverage(one.layout)
    one.accumulate(average, HEADER, Dense(one.layout, difference(1)), 2)
    packed = one.quantize_average(average, b"")
    assert 8 * len(packed) / one.layout.parameters < 0.25
    quantized = quantize_average(one.layout, difference(1), 0.2).reconstruct()
    weights, origin = one.weights(packed), initial(GRAPH.shapes, 3)
    assert all(np.array_equal(weights[n], origin[n] + quantized[n]) for n in weights)


def test_moves_add_up_and_whole_models_take_the_models_place() -> None:
    for method in ("fedavg", "spacedml"):
        one = server(method=method)
        before = pack(Dense(one.layout, difference(1)))
        average = PartialAverage(one.layout)
        one.accumulate(average, HEADER, Dense(one.layout, difference(2)), 2)
        after, moves = unpack(one.quantize_average(average, before), one.layout).reconstruct(), difference(2)
        if method == "fedavg":
            assert all(np.array_equal(after[n], d + moves[n]) for n, d in difference(1).items())
        else:
            whole = quantize_average(one.layout, moves, Training().bits_down).reconstruct()
            assert all(np.array_equal(after[n], whole[n]) for n in whole)


@pytest.mark.parametrize("method", ["fedavg", "spacedml"])
def test_a_long_move_is_brought_to_the_others_whether_moves_travel_or_whole_models(method: Any) -> None:
    """Nodes 1 to 4 move by 1 in one weight, node 5 by -1000; a whole model's move is from what was sent."""
    one = server(method=method, bits_up=32.0, bits_down=32.0)
    sent = {name: np.full(shape, 0.5, np.float32) for name, shape in GRAPH.shapes.items()}
    base, before = (
        pack(Dense(one.layout, sent)),
        {n: v if method == "spacedml" else 0 for n, v in sent.items()},
    )
    updates = []
    for node in range(1, 6):
        weights = {name: np.zeros(shape, np.float32) + before[name] for name, shape in GRAPH.shapes.items()}
        weights[FIRST].flat[0] += -1000 if node == 5 else 1
        samples = 2**32 - 1 if node == 5 else 600
        header = msgspec.structs.replace(HEADER, node=node, samples=samples)
        updates.append((header, Dense(one.layout, weights)))

    def averaged() -> tuple[list[Outlier], float]:
        average = RoundAverage(one, 2, base)
        for update in updates:
            average.look(*update)
        found = [each for each in average.passes(range(1, 6), lambda node: updates[node - 1]) if each]
        return found, unpack(average.packed(), one.layout).reconstruct()[FIRST].flat[0]

    one.bounds = Bounds(leave_out=False)
    (outlier, *_), once = averaged()
    assert (outlier.node, outlier.what, round(outlier.value / outlier.median)) == (5, "norm", 1000)
    assert once == pytest.approx(0.5 + (4 - 1) / 5, abs=0.05)
    one.bounds = Bounds()
    (*_, out), after = averaged()
    assert (out.node, out.what, out.value) == (5, "cosine", pytest.approx(-1.0))
    assert after == pytest.approx(1.5, abs=0.05)
