"""One board's share of a round: from global weights and local images to a quantized update, step by step.

What travels, both ways, is the difference from the mission's initial weights (`learn.graph.initial`), which
both ends draw from the mission's seed. A group without bases then stands for its random initial weights and
not for zeros: at 0.05 bit a weight, where nine groups of ten have none, a network keeps its random features
and trains the rest.

What the epochs do is the plan's (`learn.plan`). With "spacedml-fast" the order is ALQ's with one sort in
place of its pruning epochs (`codec.alq.allocate`): plain epochs, then one allocation of bases by loss-aware
gain per bit, then epochs with the straight-through estimator (ALQ section 3.4): full-precision latent weights
take the gradient that the quantized weights of the fixed allocation produced.

A training is a generator of steps: the carrier decides when the next one runs, which is where throttle,
budget, checkpoint and virtual time live. Batch order and augmentation come from (seed, round, node, epoch)
alone, so that a training resumed at the end of an epoch goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onboard.codec import alq
from onboard.codec.alq import Model
from onboard.codec.dense import Dense
from onboard.codec.layout import Floats, Layout, Weights, from_groups, in_groups
from onboard.learn.adam import Adam
from onboard.learn.graph import prepare
from onboard.learn.plan import Phase, Plan

State = dict[str, npt.NDArray[Any]]


class Graph(Protocol):
    """What training needs of a network: its layout and its gradients (`learn.graph.TrainGraph`)."""

    @property
    def layout(self) -> Layout: ...

    def step(
        self, parameters: Mapping[str, Floats], x: Floats, y: npt.NDArray[np.int64], /
    ) -> tuple[float, Mapping[str, Floats]]: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One batch is done: `batch` of `batches` in `epoch` of `epochs`, counted from 1, with its mean loss."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float

    @property
    def ends_epoch(self) -> bool:
        """Whether a checkpoint may be taken now."""
        return self.batch == self.batches


class LocalTraining:
    """Local epochs on images x uint8 (N, C, H, W) with labels y int64 (N), from the weights `start`.

    `origin`: the mission's initial weights; `start`: the global weights of this round (in the first, the
    origin). Use: `for step in training.steps(): ...`, then `training.result()`.
    """

    def __init__(
        self,
        graph: Graph,
        origin: Weights,
        start: Weights,
        x: npt.NDArray[np.uint8],
        y: npt.NDArray[np.int64],
        plan: Plan,
    ) -> None:
        if plan.method == "spacedml":
            raise ValueError("spacedml is not built yet")
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"{len(x)} images with {len(y)} labels: nothing to train on")
        self.plan = plan
        self.epoch = 0  # epochs done
        self.loss = math.nan  # mean over the last epoch done
        self._graph, self._x, self._y = graph, x, y
        layout = graph.layout
        self._origin = flat(layout, origin)
        self._latent = flat(layout, start)
        self._adam = Adam.fresh(layout.parameters)
        self._allocation: dict[str, npt.NDArray[np.uint8]] | None = None
        self._scratch = np.empty_like(self._latent)

    @property
    def epochs(self) -> int:
        return len(self.plan.phases)

    @property
    def batches(self) -> int:
        return -(-len(self._x) // self.plan.batch_size)

    def steps(self) -> Iterator[Step]:
        """Runs what is left of the training, one batch a step. Errors: ValueError when the loss is not
        finite.
        """
        while self.epoch < self.epochs:
            if self.plan.phases[self.epoch] is Phase.STRAIGHT and self._allocation is None:
                self._allocation = self._allocate()
            draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(self._key())))
            order = draw.permutation(len(self._x))
            total = 0.0
            for batch in range(self.batches):
                chosen = order[batch * self.plan.batch_size :][: self.plan.batch_size]
                images = shifted(self._x[chosen], draw, self.plan.shift_pixels)
                loss = self._learn(prepare(images), self._y[chosen])
                total += loss * len(chosen)
                if batch + 1 == self.batches:
                    self._end_epoch(total / len(order))
                    yield Step(self.epoch, self.epochs, batch + 1, self.batches, loss)
                else:
                    yield Step(self.epoch + 1, self.epochs, batch + 1, self.batches, loss)

    def result(self) -> Model:
        """The trained weights' difference from the origin, quantized or dense as the plan says. Errors:
        RuntimeError before the last epoch.
        """
        if self.epoch < self.epochs:
            raise RuntimeError(f"{self.epoch} of {self.epochs} epochs are done: no result yet")
        layout = self._graph.layout
        if self.plan.dense:
            return Dense(layout, views(layout, self._latent - self._origin))
        allocation = self._allocate() if self._allocation is None else self._allocation
        return alq.quantize(layout, self._difference(), allocation)

    def state(self) -> State:
        """All that a checkpoint needs, as arrays by name; meant for the end of an epoch (`Step.ends_epoch`).

        The arrays are the training's own: write them before the next step. About 12 bytes a weight.
        """
        state: State = {
            "epoch": np.array(self.epoch),
            "loss": np.array(self.loss),
            "latent": self._latent,
            "first": self._adam.first,
            "second": self._adam.second,
            "adam_steps": np.array(self._adam.steps),
        }
        if self._allocation is not None:
            state["widths"] = np.concatenate([self._allocation[t.name] for t in self._graph.layout.grouped])
        return state

    def restore(self, state: State) -> None:
        """Goes on from `state`. Errors: ValueError for a state that is not of this model."""
        layout = self._graph.layout
        try:
            vectors = [np.array(state[name], np.float32) for name in ("latent", "first", "second")]
            epoch, steps, loss = int(state["epoch"]), int(state["adam_steps"]), float(state["loss"])
        except KeyError as missing:
            raise ValueError(f"the checkpoint lacks {missing}") from None
        if any(vector.shape != (layout.parameters,) for vector in vectors):
            raise ValueError(f"the checkpoint is of another model: {vectors[0].size} weights")
        if not 0 <= epoch <= self.epochs:
            raise ValueError(f"the checkpoint is of another plan: {epoch} epochs done of {self.epochs}")
        allocation = None
        if epoch > 0 and self.plan.phases[epoch - 1] is Phase.STRAIGHT:
            widths = np.array(state.get("widths", ()), np.uint8)
            if widths.shape != (sum(t.groups for t in layout.grouped),):
                raise ValueError(f"the checkpoint has {widths.size} bit-widths, not one for each group")
            ends = np.cumsum([t.groups for t in layout.grouped])[:-1]
            allocation = {
                t.name: part for t, part in zip(layout.grouped, np.split(widths, ends), strict=True)
            }
        self._latent, self._adam = vectors[0], Adam(vectors[1], vectors[2], steps)
        self._allocation, self.epoch, self.loss = allocation, epoch, loss

    def _key(self) -> tuple[int, ...]:
        return (self.plan.seed, self.plan.round, self.plan.node, self.epoch)

    def _learn(self, x: Floats, y: npt.NDArray[np.int64]) -> float:
        loss, gradients = self._graph.step(self._forward(), x, y)
        if not math.isfinite(loss):
            rate = self.plan.learning_rate
            raise ValueError(f"loss is {loss} in epoch {self.epoch + 1}, at a learning rate of {rate}")
        gradient = flat(self._graph.layout, gradients, out=self._scratch)
        self._adam.step(self._latent, gradient, self.plan.learning_rate)
        return loss

    def _difference(self) -> dict[str, Floats]:
        np.subtract(self._latent, self._origin, out=self._scratch)
        return views(self._graph.layout, self._scratch)

    def _forward(self) -> dict[str, Floats]:
        """The weights a gradient is taken at: the latent ones, or once there is an allocation what it makes
        of them.
        """
        weights = views(self._graph.layout, self._latent)
        if self._allocation is None:
            return weights
        difference = self._difference()
        origin = views(self._graph.layout, self._origin)
        for t in self._graph.layout.grouped:
            projected = alq.project(in_groups(t, difference[t.name]), self._allocation[t.name])
            weights[t.name] = origin[t.name] + from_groups(t, projected)
        return weights

    def _end_epoch(self, loss: float) -> None:
        self.epoch += 1
        self.loss = loss

    def _allocate(self) -> dict[str, npt.NDArray[np.uint8]]:
        layout = self._graph.layout
        return alq.allocate(
            layout,
            self._difference(),
            bits_per_weight=self.plan.bits_up,
            max_bases=self.plan.max_bases,
            curvature=views(layout, self._adam.curvature()),
        )


def flat(layout: Layout, weights: Weights, out: Floats | None = None) -> Floats:
    """All tensors one after the other in one float32 vector (P,), a copy (into `out` if given)."""
    out = np.empty(layout.parameters, np.float32) if out is None else out
    for name, view in views(layout, out).items():
        if weights[name].shape != view.shape:
            raise ValueError(f"{name} has shape {weights[name].shape}, the layout says {view.shape}")
        view[...] = weights[name]
    return out


def views(layout: Layout, vector: Floats) -> dict[str, Floats]:
    """The tensors of a vector (P,) by name, in their shapes; writing to one writes to the vector."""
    ends = np.cumsum([t.size for t in layout.tensors])[:-1]
    parts = np.split(vector, ends)
    return {t.name: part.reshape(t.shape) for t, part in zip(layout.tensors, parts, strict=True)}


def moved(origin: Weights, difference: Weights) -> dict[str, Floats]:
    """The weights `difference` away from `origin`: what a packed model, reconstructed, means in a mission."""
    return {name: origin[name] + difference[name] for name in origin}


def shifted(x: npt.NDArray[np.uint8], draw: np.random.Generator, pixels: int) -> npt.NDArray[np.uint8]:
    """Images (N, C, H, W), each moved by up to `pixels` along each axis, zeros coming in."""
    if pixels == 0:
        return x
    count, _, height, width = x.shape
    down, right = draw.integers(0, 2 * pixels + 1, (2, count, 1))
    padded = np.pad(x, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    rows, columns = down + np.arange(height), right + np.arange(width)
    # Indices on both sides of a slice: numpy puts their axes first, (N, H, W, C).
    picked = padded[np.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return np.ascontiguousarray(picked.transpose(0, 3, 1, 2))
