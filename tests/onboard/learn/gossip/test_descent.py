"""A descent takes the steps that its recipe says, and goes on where it was restored."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.gossip.descent import Descent, consensus, strata, stratified
from onboard.learn.graph import TrainGraph, initial
from onboard.learn.training import Recipe


@pytest.fixture(scope="module")
def graph() -> TrainGraph:
    return TrainGraph.load("lenet5")


@pytest.fixture(scope="module")
def images() -> Images:
    return loading.load("digits", part="train", rows=70)


def descent(graph: TrainGraph, images: Images, **recipe: Any) -> Descent:
    return Descent(graph, initial(graph.shapes, 0), images.x, images.y, Recipe(**recipe), seed=1, node=2)


def test_it_is_sgd_with_momentum_and_decay_of_weights(graph: TrainGraph, images: Images) -> None:
    """On batches of all images, so that the gradient is known."""
    ours = descent(graph, images, batch_size=70, learning_rate=0.02, momentum=0.9, weight_decay=0.1)
    weights = {name: value.astype(np.float64) for name, value in initial(graph.shapes, 0).items()}
    velocity = {name: np.zeros_like(value) for name, value in weights.items()}
    x = images.x.astype(np.float32) / 255
    for _ in range(3):
        _, gradients, _ = graph.step({n: w.astype(np.float32) for n, w in weights.items()}, x, images.y)
        for name, weight in weights.items():
            decay = 0.1 * weight if weight.ndim > 1 else 0.0
            velocity[name] = 0.9 * velocity[name] + gradients[name] + decay
            weight -= 0.02 * velocity[name]
        ours.step()
    expected = np.concatenate([weight.ravel() for weight in weights.values()])
    np.testing.assert_allclose(ours.vector, expected, atol=2e-6)


def test_restored_at_any_batch_it_takes_the_same_steps(graph: TrainGraph, images: Images) -> None:
    whole, first = (descent(graph, images, shift_pixels=1) for _ in range(2))
    for _ in range(7):
        whole.step()
    for _ in range(4):
        first.step()
    rest = descent(graph, images, shift_pixels=1)
    rest.restore(first.vector, first.velocity, first.batches)
    assert rest.epochs == pytest.approx(4 / 3)
    for _ in range(3):
        rest.step()
    np.testing.assert_array_equal(rest.vector, whole.vector)


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_any_start_of_the_order_has_the_classes_as_evenly_as_all(labels: list[int], seed: int) -> None:
    y = np.array(labels)
    order = stratified(y, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(y)))
    classes, counts = np.unique(y, return_counts=True)
    drawn = np.cumsum(y[order, None] == classes, axis=0)  # (N, classes): of the first 1 ... N
    even = np.arange(1, len(y) + 1)[:, None] * counts / len(y)
    assert (abs(drawn - even) <= 1 + len(classes) * counts / len(y)).all()


def test_every_epoch_has_another_order() -> None:
    y = np.repeat(np.arange(3), 20)
    first, again, other = (stratified(y, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_rate_follows_half_a_cosine_and_stays_where_it_ends() -> None:
    recipe = Recipe(learning_rate=0.2, cosine_epochs=4)
    half = 0.2 * (1 + math.sqrt(0.5)) / 2
    assert [recipe.rate(epoch) for epoch in range(3)] == pytest.approx([0.2, half, 0.1])
    assert recipe.rate(3) == recipe.rate(100) == pytest.approx(0.2 - half)
    with pytest.raises(ValueError, match="not together with drops"):
        Recipe(drops=(2,), cosine_epochs=4)


def test_the_rate_falls_at_its_drops() -> None:
    recipe = Recipe(learning_rate=0.1, drops=(80, 120))
    assert [recipe.rate(epoch) for epoch in (0, 79, 80, 119, 120)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001]
    )


def test_what_cannot_be_is_named(graph: TrainGraph, images: Images) -> None:
    with pytest.raises(ValueError, match=r"> 0.0 - at `\$.learning_rate`"):
        msgspec.convert({"learning_rate": -1}, Recipe)
    with pytest.raises(ValueError, match="70 images with 0 labels"):
        Descent(graph, initial(graph.shapes, 0), images.x, images.y[:0], Recipe(), seed=1, node=2)
    with pytest.raises(ValueError, match="this model's"):
        descent(graph, images).restore(np.zeros(3, np.float32), np.zeros(3, np.float32), 0)


def test_without_images_a_model_is_held_and_takes_no_step(graph: TrainGraph, images: Images) -> None:
    trained = descent(graph, images)
    trained.step()
    held = Descent(graph, initial(graph.shapes, 0), images.x[:0], images.y[:0], Recipe(), seed=1, node=2)
    np.testing.assert_array_equal(held.vector, descent(graph, images).vector)
    held.restore(trained.vector, trained.velocity, trained.batches)
    np.testing.assert_array_equal(held.vector, trained.vector)
    assert held.epochs == 0
    with pytest.raises(ValueError, match="nothing to train on"):
        held.step()


def test_a_loss_that_is_not_finite_ends_it(graph: TrainGraph, images: Images) -> None:
    ours = descent(graph, images, batch_size=70, learning_rate=1e30)
    ours.step()
    with pytest.raises(ValueError, match=r"at a learning rate of 1e\+30"):
        ours.step()


def test_the_distance_of_models_from_their_mean() -> None:
    vectors = [np.array([1, 0], np.float32), np.array([-1, 0], np.float32)]
    mean, distance = consensus(vectors)
    np.testing.assert_array_equal(mean, [0, 0])
    assert distance == 1.0


@pytest.mark.parametrize(
    ("name", "labels", "loss"),
    [
        ("lenet5", np.array([0, 3, 1]), math.log(4)),  # as many classes as the highest label says
        ("lenet5", np.zeros(0, np.int64), math.log(2)),
        ("unet-64", np.zeros((3, 64, 64), np.uint8), math.log(3)),
        ("autoencoder-64", np.zeros(0, np.uint8), 1.0),
    ],
)
def test_a_model_that_guesses_has_the_loss_of_its_task(name: str, labels: Any, loss: float) -> None:
    graph = TrainGraph.load(name)
    x = np.zeros((len(labels), *graph.input_shape), np.uint8)
    run = Descent(graph, initial(graph.shapes, 0), x, labels, Recipe(), seed=1, node=2)
    assert run.guess_loss == pytest.approx(loss)
    assert run.epochs == 0.0
    if not len(labels):
        with pytest.raises(ValueError, match="no images: nothing to train on"):
            run.step()


def test_an_autoencoder_that_guesses_gives_the_mean_image() -> None:
    graph = TrainGraph.load("autoencoder-64")
    x = np.zeros((4, *graph.input_shape), np.uint8)
    x[:2] = 255
    run = Descent(graph, initial(graph.shapes, 0), x, np.zeros(4, np.uint8), Recipe(), seed=1, node=2)
    assert run.guess_loss == pytest.approx(0.25)


def test_images_are_mixed_by_their_class_or_the_one_that_most_of_a_mask_has() -> None:
    assert strata(np.array([2, 0, 1], np.uint8)).tolist() == [2, 0, 1]
    assert strata(np.ones((3, 5), np.float32)).tolist() == [0, 0, 0]
    masks = np.array([[[1, 1], [1, 2]], [[255, 255], [255, 2]]], np.uint8)
    assert strata(masks).tolist() == [1, 255]
    assert strata(masks, ignore=255).tolist() == [1, 2]


def test_another_models_state_and_labels_for_other_images_are_refused(
    graph: TrainGraph, images: Images
) -> None:
    run = descent(graph, images)
    with pytest.raises(ValueError, match=r"a state of \(3,\)"):
        run.restore(run.vector[:3], run.velocity, 1)
    with pytest.raises(ValueError, match="70 images with 69 labels"):
        Descent(graph, run.weights, images.x, images.y[1:], Recipe(), seed=1, node=2)
