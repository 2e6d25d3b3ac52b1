"""A merged model's running statistics are those that images have in it, whatever the boards' were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec.dense import Dense
from onboard.codec.layout import Floats
from onboard.codec.pack import pack, unpack
from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.federated.clipping import Bounds
from onboard.learn.graph import InferGraph, TrainGraph, prepare
from onboard.learn.scoring import evaluate
from onboard.learn.statistics import LEAST_IMAGES, MOST_IMAGES, measured, parted
from onboard.learn.training import Training
from onboard.mission.objects import Update, encode_object
from onboard.mission.server import MissionTerms, Server, averaged
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Job, TrainingDone

TRAIN, INFER = TrainGraph.load("resnet20"), InferGraph.load("resnet20")
IMAGES = loading.load("digits", TRAIN.input_shape, part="train", rows=200)
WEIGHTS = TRAIN.initial(1)
FIRST = min(name.removesuffix("running_mean") for name in TRAIN.buffers if name.endswith("running_mean"))


def measure(weights: dict[str, Floats], images: Images) -> dict[str, Floats]:
    *_, found = measured(TRAIN, weights, images)
    return found


def test_statistics_are_what_a_batch_is_normalized_by() -> None:
    """With one batch they can be computed by hand, behind the first convolution."""
    batch = IMAGES.take(np.arange(10))
    found = measure(WEIGHTS, batch)
    (kernel,) = (value for name, value in WEIGHTS.items() if value.shape[1:2] == (3,))
    padded = np.pad(prepare(batch.x), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    maps = np.einsum("ncijhw,ochw->noij", windows, kernel)
    count = maps[:, 0].size
    assert found[f"{FIRST}running_mean"] == pytest.approx(maps.mean(axis=(0, 2, 3)), abs=1e-4)
    unbiased = maps.var(axis=(0, 2, 3)) * count / (count - 1)
    assert found[f"{FIRST}running_var"] == pytest.approx(unbiased, rel=1e-3)


def test_they_are_the_same_whatever_they_were_before() -> None:
    odd = WEIGHTS | {name: np.full_like(WEIGHTS[name], 1e4) for name in TRAIN.buffers}
    batch = IMAGES.take(np.arange(23))  # the last batch is a small one
    found, again = measure(WEIGHTS, batch), measure(odd, batch)
    assert found.keys() == set(TRAIN.buffers)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert all(value.dtype == np.float32 and value.shape == TRAIN.shapes[n] for n, value in found.items())


def test_what_is_not_finite_stays_as_it_was() -> None:
    (name,) = (name for name, value in WEIGHTS.items() if value.shape[1:2] == (3,))
    lost = WEIGHTS | {name: np.full_like(WEIGHTS[name], np.nan)}
    found = measure(lost, IMAGES.take(np.arange(10)))
    assert all(np.isfinite(value).all() for value in found.values())


@given(count=st.integers(2 * LEAST_IMAGES, 3000))
def test_images_that_judge_measure_nothing(count: int) -> None:
    images = Images(np.zeros((count, 3, 1, 1), np.uint8), np.arange(count, dtype=np.float32)[:, None], ())
    judging, measuring = parted(TRAIN, images)
    assert measuring is not None
    assert sorted([*judging.y[:, 0], *measuring.y[:, 0]]) == list(range(count))
    assert LEAST_IMAGES / 2 <= len(measuring) <= MOST_IMAGES * 1.4
    assert len(judging) >= count / 3
    assert np.array_equal(parted(TRAIN, images)[0].y, judging.y)


def test_a_network_without_statistics_is_judged_by_all_images() -> None:
    assert parted(TrainGraph.load("lenet5"), IMAGES) == (IMAGES, None)


@pytest.mark.parametrize("count", [1, 2, 2 * LEAST_IMAGES - 1])
def test_few_images_judge_and_the_boards_statistics_stay(count: int) -> None:
    few = IMAGES.take(np.arange(count))
    assert parted(TRAIN, few) == (few, None)


@pytest.mark.parametrize("method", ["fedavg", "spacedml-fast", "spacedml"])
def test_a_round_sends_the_statistics_of_its_own_outcome(method: str) -> None:
    """Two boards that learn apart: the mean of their statistics is not what the mean of their weights has."""
    terms = MissionTerms(
        id=b"mission.",
        seed=1,
        deadline_s=60.0,
        training=Training(method=method, bits_up=1.0, bits_down=8.0, epochs=1),  # type: ignore[arg-type]
    )
    server = Server(terms, TRAIN)
    payloads = {node: _update(node, _trained(server, node).packed) for node in (1, 2)}
    judging, measuring = parted(TRAIN, IMAGES)
    assert measuring is not None
    mean, own = (server.weights(averaged(server, 1, b"", payloads, images)) for images in (None, measuring))
    expected = measure(mean, measuring)
    for name in mean:
        if name in TRAIN.buffers:
            assert own[name] == pytest.approx(expected[name], abs=0.03 * float(np.abs(expected[name]).max()))
        else:
            assert np.array_equal(own[name], mean[name])
    with_mean, with_own = ([*evaluate(INFER, w, judging.x, judging.y)][-1].loss for w in (mean, own))
    assert with_own < with_mean


def test_an_update_of_a_model_that_overflows_is_no_worse_for_being_measured() -> None:
    """Weights that are finite, and whose images' values are not."""
    terms = MissionTerms(id=b"mission.", seed=1, deadline_s=60.0, training=Training(method="fedavg"))
    server = Server(terms, TRAIN)
    huge = {name: np.full(shape, 6e4, np.float32) for name, shape in TRAIN.shapes.items()}
    packed = averaged(
        server, 1, b"", {1: _update(1, pack(Dense(TRAIN.layout, huge)))}, IMAGES.take(np.arange(10))
    )
    assert all(np.isfinite(value).all() for value in server.weights(packed).values())


@pytest.mark.parametrize("method", ["fedavg", "spacedml-fast", "spacedml"])
def test_where_the_ground_measures_an_update_has_no_statistics(method: str) -> None:
    """The outcome is the same, and so is what a board says of its model on the images that it holds out."""
    training = Training(method=method, bits_up=1.0, bits_down=8.0, epochs=1)  # type: ignore[arg-type]
    terms = MissionTerms(id=b"mission.", seed=1, deadline_s=60.0, training=training)
    outcomes, sizes, told = [], [], []
    for measures in (False, True):
        server = Server(terms, TRAIN, measures=measures, bounds=Bounds(clip=0.0, leave_out=False))
        held = IMAGES.take(np.arange(100, 150))
        done = [_trained(server, node, held) for node in (1, 2)]
        payloads = {node: _update(node, each.packed) for node, each in enumerate(done, start=1)}
        outcomes.append(server.weights(averaged(server, 1, b"", payloads, IMAGES.take(np.arange(150, 200)))))
        sizes.append(len(payloads[1]))
        told.append([each.validation for each in done])
        moved = unpack(done[0].packed, TRAIN.layout).reconstruct()
        assert any(moved[name].any() for name in TRAIN.buffers) == (not measures)
        after = server.task(2, deploy=True), server.task(2)
        assert [task.measures for task in after] == [False, measures]
    for name, value in outcomes[0].items():
        assert np.array_equal(value, outcomes[1][name]), name
    assert told[0] == told[1] != [None, None]
    if method != "fedavg":
        assert sizes[0] - sizes[1] > sum(t.size for t in TRAIN.layout.tensors if t.is_statistic) / 8


def _trained(server: Server, node: int, held: Images | None = None) -> TrainingDone:
    trainer = LocalTrainer(IMAGES.take(np.arange(node, 60, 2)), lambda name: TRAIN, held=held)
    trainer.begin(Job(model=server.model(1, b""), node=node))
    while not isinstance((report := trainer.reports()[0]), TrainingDone):
        trainer.step()
    return report


def _update(node: int, packed: bytes) -> bytes:
    header = Update(
        mission=b"mission.", round=1, node=node, samples=30, loss=1.0, cpu_s=1.0, energy_j=1.0, train_s=1.0
    )
    return encode_object(header, packed)
