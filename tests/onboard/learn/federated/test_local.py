"""Local training: what a step does, where it can stop and go on, and that rounds of it teach a model."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec.dense import Dense
from onboard.codec.layout import Weights, flat, views
from onboard.codec.pack import account, pack, unpack
from onboard.codec.quantized import Quantized
from onboard.data import loading
from onboard.data.images import shards
from onboard.learn.federated import local
from onboard.learn.federated.local import LocalTraining
from onboard.learn.federated.rounds import PartialAverage
from onboard.learn.graph import InferGraph, TrainGraph, initial
from onboard.learn.scoring import evaluate
from onboard.learn.training import Plan
from tests.onboard.codec.examples import quantize_average
from tests.onboard.learn.federated.plans import PLAN, changed

GRAPH = TrainGraph.load("lenet5")
LAYOUT = GRAPH.layout
ORIGIN = initial(GRAPH.shapes, seed=5)
DIGITS = loading.load("digits", part="train", rows=range(64))


def training(plan: Plan = PLAN, start: Weights = ORIGIN) -> LocalTraining:
    return LocalTraining(GRAPH, ORIGIN, start, DIGITS.x, DIGITS.y, plan)


def finished(training: LocalTraining) -> bytes:
    for _ in training.steps():
        pass
    return pack(training.result())


def test_steps_tell_where_the_training_is() -> None:
    run = training()
    steps = list(run.steps())
    assert [(s.epoch, s.batch) for s in steps] == [(e, b) for e in (1, 2) for b in range(1, 8)]
    assert all((s.epochs, s.batches) == (2, 7) for s in steps)
    assert [s.ends_epoch for s in steps] == [False] * 6 + [True] + [False] * 6 + [True]
    assert run.loss == pytest.approx(np.average([s.loss for s in steps[7:]], weights=[10] * 6 + [4]))


@pytest.mark.parametrize("method", ["fedavg", "spacedml-fast"])
def test_a_loss_that_is_not_finite_ends_it_whatever_the_onnxruntime_calls_it(method: str) -> None:
    diverged = {name: values * np.float32(1e30) for name, values in ORIGIN.items()}
    run = training(changed(PLAN, method=method), diverged)
    with pytest.raises(ValueError, match=r"in epoch 1, at a learning rate of 0\.002"):
        finished(run)


def test_nothing_runs_before_it_is_asked_to() -> None:
    run = training()
    steps = run.steps()
    before = run.state()["latent"].copy()
    assert np.array_equal(before, flat(LAYOUT, ORIGIN))
    next(steps)
    assert not np.array_equal(run.state()["latent"], before)
    with pytest.raises(RuntimeError, match="0 of 2 epochs"):
        run.result()


def test_the_same_plan_gives_the_same_bytes_and_another_does_not() -> None:
    once = finished(training())
    assert finished(training()) == once
    for change in ({"seed": 6}, {"round": 2}, {"node": 3}, {"shift_pixels": 0}):
        assert finished(training(changed(PLAN, **change))) != once


def test_a_training_resumed_after_any_step_repeats_exactly() -> None:
    """Distorted images: a generator that was left in the middle of an epoch goes on where it was."""
    plan = changed(PLAN, epochs=2, distortion=1.0, schedule="cosine", warmup=0.2)
    resumed_anywhere(plan, 3 * 7)


def test_a_training_by_sgd_in_parts_resumed_after_any_step_repeats_exactly() -> None:
    plan = changed(PLAN, method="fedavg", epochs=2, optimizer="sgd", learning_rate=0.05, accumulate=3)
    resumed_anywhere(plan, 2 * 7)


def resumed_anywhere(plan: Plan, steps: int) -> None:
    whole = finished(training(plan))

    @settings(max_examples=6, deadline=None)
    @given(st.integers(0, steps))
    def resumed(done: int) -> None:
        first = training(plan)
        running = first.steps()
        list(islice(running, done))
        state = {name: value.copy() for name, value in first.state().items()}
        list(islice(running, 2))  # lost with the power
        second = training(plan)
        second.restore(state)
        assert (second.epoch, second.batch) == divmod(done, 7)
        assert finished(second) == whole

    resumed()


class SeedTold(TrainGraph):
    """LeNet-5, which tells the seeds of what it would draw."""

    seeds: ClassVar[list[int]] = []

    def step(self, parameters: Weights, x: Any, y: Any, seed: int = 0) -> Any:
        self.seeds.append(seed)
        return GRAPH.step(parameters, x, y)


def test_what_a_network_draws_differs_from_part_to_part_and_repeats_after_a_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SeedTold, "seeds", [])
    fields = {field.name: getattr(GRAPH, field.name) for field in dataclasses.fields(GRAPH)}
    graph = SeedTold(**fields | {"takes_seed": True})
    plan = changed(PLAN, method="fedavg", epochs=2, accumulate=2)
    runs = [LocalTraining(graph, ORIGIN, ORIGIN, DIGITS.x, DIGITS.y, plan) for _ in range(2)]
    list(islice(runs[0].steps(), 9))
    state = {name: value.copy() for name, value in runs[0].state().items()}
    assert len(set(graph.seeds)) == 18
    list(runs[0].steps())
    whole, graph.seeds[:] = graph.seeds[18:], []
    runs[1].restore(state)
    list(runs[1].steps())
    assert graph.seeds == whole
    assert len(whole) == 10


@pytest.mark.parametrize("accumulate", [2, 3, 100])
def test_a_batch_in_parts_has_the_mean_gradient_of_the_whole(accumulate: int) -> None:
    plan = changed(PLAN, method="fedavg", batch_size=64, optimizer="sgd", momentum=0.0, learning_rate=0.1)
    whole, parted = training(plan), training(changed(plan, accumulate=accumulate))
    for run in (whole, parted):
        list(run.steps())
    assert parted.loss == pytest.approx(whole.loss, rel=1e-6)
    moved = whole.state()["latent"] - flat(LAYOUT, ORIGIN)
    np.testing.assert_allclose(parted.state()["latent"] - flat(LAYOUT, ORIGIN), moved, atol=1e-7)
    assert abs(moved).max() > 1e-4


@pytest.mark.parametrize("knobs", [{"optimizer": "adamw", "weight_decay": 0.1}, {"optimizer": "sgd"}])
def test_every_optimizer_serves_a_method_that_quantizes(knobs: dict[str, Any]) -> None:
    rate = 0.05 if knobs["optimizer"] == "sgd" else 2e-3
    run = training(changed(PLAN, epochs=3, learning_rate=rate, **knobs))
    losses = [step.epoch_loss for step in run.steps() if step.ends_epoch]
    assert losses[-1] < losses[0]
    assert isinstance(run.result(), Quantized)


def test_a_foreign_checkpoint_is_refused() -> None:
    run = training()
    list(run.steps())
    state = run.state()
    with pytest.raises(ValueError, match="lacks 'latent'"):
        training().restore({k: v for k, v in state.items() if k != "latent"})
    with pytest.raises(ValueError, match="another model: 3 weights"):
        training().restore(state | {name: np.zeros(3) for name in ("latent", "first", "second")})
    for epoch, batch in ((9, 0), (2, 1), (1, 7), (0, -1)):
        with pytest.raises(ValueError, match=f"another plan: {epoch} epochs and {batch} batches"):
            training().restore(state | {"epoch": np.array(epoch), "batch": np.array(batch)})
    with pytest.raises(ValueError, match=r"draws at float64 \(2,\)"):
        training().restore(state | {"draw": np.zeros(2)})
    with pytest.raises(ValueError, match="0 bit-widths"):
        training().restore({k: v for k, v in state.items() if k != "widths"})


def test_the_budget_holds_and_the_loss_is_of_what_travels() -> None:
    run = training()
    finished(run)
    result = run.result()
    assert 0.03 < result.budget_bits / LAYOUT.parameters <= PLAN.training.bits_up
    assert sum(account(result).values()) == len(pack(result))
    # With a learning rate near nothing the last epoch's loss is that of the quantized weights themselves.
    still = changed(PLAN, pretrain_epochs=2, learning_rate=1e-9, shift_pixels=0, batch_size=64)
    frozen = training(still, local.apply_delta(ORIGIN, result.reconstruct()))
    finished(frozen)
    weights = local.apply_delta(ORIGIN, frozen.result().reconstruct())
    score = list(evaluate(InferGraph.load("lenet5"), weights, DIGITS.x, DIGITS.y))[-1]
    assert frozen.loss == pytest.approx(score.loss, rel=0.02)


def test_no_budget_sends_nothing_but_biases() -> None:
    run = training(changed(PLAN, bits_up=1e-9))
    weights = local.apply_delta(ORIGIN, unpack(finished(run), LAYOUT).reconstruct())
    assert all(np.array_equal(weights[t.name], ORIGIN[t.name]) for t in LAYOUT.grouped)
    assert weights["fc2.bias"].any()


@pytest.mark.parametrize("method", ["fedavg", "fedavg-zstd"])
def test_fedavg_is_plain_epochs_and_every_bit_of_their_weights(method: str) -> None:
    plan = changed(PLAN, method=method, epochs=2)
    run = training(plan)
    packed = finished(run)
    assert run.epochs == 2  # pretraining is the other methods'
    rebuilt = local.apply_delta(ORIGIN, unpack(packed, LAYOUT).reconstruct())
    assert np.allclose(flat(LAYOUT, rebuilt), run.state()["latent"], rtol=0, atol=1e-7)
    plain = pack(dataclasses.replace(cast(Dense, run.result()), compress=False))
    assert len(packed) == len(plain) if method == "fedavg" else len(packed) < len(plain)
    score = list(evaluate(InferGraph.load("lenet5"), rebuilt, DIGITS.x, DIGITS.y))[-1]
    assert score.loss < 2.0  # from 2.3, the logarithm of ten classes


SPACEDML = changed(PLAN, method="spacedml", bits_up=0.6, max_bases=2, prune_ratio=0.75, prune_epochs=2)


def test_spacedml_prunes_to_its_ratio_and_learns_on() -> None:
    run = training(SPACEDML)
    losses = [run.loss for step in run.steps() if step.ends_epoch]
    packed = pack(run.result())
    assert len(losses) == 1 + 2 + 1 + 1 + 1
    result = unpack(packed, LAYOUT)
    assert isinstance(result, Quantized)
    assert 0.13 < result.budget_bits / LAYOUT.parameters <= 0.15
    assert losses[-1] < losses[1]
    # What is trained is what travels: the last epoch's loss, at a rate near nothing, is of these weights.
    weights = local.apply_delta(ORIGIN, result.reconstruct())
    score = list(evaluate(InferGraph.load("lenet5"), weights, DIGITS.x, DIGITS.y))[-1]
    assert score.loss < 2.0


def test_spacedml_resumed_after_any_step_repeats_exactly() -> None:
    resumed_anywhere(SPACEDML, 6 * 7)


@pytest.mark.parametrize("last", ["prune", "bases", "coordinates"])
def test_spacedml_may_leave_out_the_phases_after_any(last: str) -> None:
    plan = changed(SPACEDML, prune_epochs=1)
    plan = changed(plan, basis_epochs=int(last != "prune"), coordinate_epochs=int(last == "coordinates"))
    result = unpack(finished(training(plan)), LAYOUT)
    assert isinstance(result, Quantized)
    assert result.budget_bits <= 0.15 * LAYOUT.parameters


def test_a_checkpoint_without_its_bases_is_refused() -> None:
    run = training(SPACEDML)
    list(islice(run.steps(), 7 * 4))
    state = run.state()
    for missing, says in (
        ("peak_squares", "lacks 'peak_squares'"),
        ("signs", "coordinates"),
        ("widths", "0 bit-widths"),
    ):
        with pytest.raises(ValueError, match=says):
            training(SPACEDML).restore({k: v for k, v in state.items() if k != missing})


def test_no_images_and_a_loss_beyond_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        LocalTraining(GRAPH, ORIGIN, ORIGIN, DIGITS.x[:0], DIGITS.y[:0], PLAN)
    huge = {name: value * np.float32(1e30) for name, value in ORIGIN.items()}
    with pytest.raises(ValueError, match=r"loss is (nan|inf) in epoch 1|cannot be run on these"):
        list(training(start=huge).steps())


def test_flat_and_views_are_a_pair() -> None:
    vector = flat(LAYOUT, ORIGIN)
    assert all(np.array_equal(view, ORIGIN[name]) for name, view in views(LAYOUT, vector).items())
    with pytest.raises(ValueError, match=r"fc1\.bias has shape"):
        flat(LAYOUT, ORIGIN | {"fc1.bias": np.zeros(3, np.float32)})


def test_rounds_of_three_boards_teach_a_model_in_three_kilobytes() -> None:
    parts = shards(loading.load("digits", part="train", rows=range(360)), 3, seed=1)
    test = loading.load("digits", part="test")
    plan = changed(PLAN, epochs=2, learning_rate=3e-3)
    start: Weights = ORIGIN
    accuracy = []
    for number in (1, 2, 3):
        average = PartialAverage(LAYOUT)
        for node, shard in enumerate(parts):
            plan = changed(plan, round=number, node=node)
            update = finished(LocalTraining(GRAPH, start, start, shard.x, shard.y, plan))
            assert len(update) < 3_000
            average.add(unpack(update, LAYOUT).reconstruct(), len(shard.y))
        moves = average.mean()
        total = {name: start[name] + moves[name] - first for name, first in ORIGIN.items()}
        downlink = pack(quantize_average(LAYOUT, total, 0.06))
        assert len(downlink) < 4_000
        start = local.apply_delta(ORIGIN, unpack(downlink, LAYOUT).reconstruct())
        accuracy.append(list(evaluate(InferGraph.load("lenet5"), start, test.x, test.y))[-1].value)
    assert accuracy[2] > accuracy[0]
    assert accuracy[2] > 0.85
