"""One board's share of a round: from global weights and local images to a quantized update, step by step.

A difference travels: of the whole model from the mission's initial weights (`learn.graph.initial`), or of
the outcome from this round's global weights (`TrainingMethod.sends_whole`). So a group without bases stands
for what both ends hold and not for zeros: at 0.05 bit a weight, where nine groups of ten have none, a network
keeps its features. In epochs with the straight-through estimator (ALQ section 3.4) full-precision latent
weights take the gradient of their quantized form.

A training is a generator of steps: its caller decides when the next one runs, which is where throttle,
budget, checkpoint and virtual time live. Batch order and augmentation come from (seed, round, node, epoch)
alone, so a training resumed at the end of an epoch goes on as if it had never stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onboard.codec import alq
from onboard.codec.layout import Floats, Weights, flat, in_groups, views
from onboard.codec.model import Budget, Model
from onboard.codec.pack import CODECS
from onboard.codec.quantized import Bases, budget_bits
from onboard.learn.augment import augmented
from onboard.learn.federated import multibit
from onboard.learn.graph import TrainGraph, gradient
from onboard.learn.training import Plan, Stepped, TrainingPhase

State = dict[str, npt.NDArray[Any]]

OPTIMIZING = (TrainingPhase.BASES, TrainingPhase.COORDINATES)
# Share of the coordinates a layer can have that one step of pruning chooses from (ALQ's top-k, section 3.2);
# where that is too little for the steps there are, one over their number, so that pruning comes to its end.
TOP_SHARE = 0.005
# Pruning ends after this share of its epochs, the rest heals: 91.4 % after the first round on MNIST (K = 5),
# not the 87.8 % of a pruning that goes on to the last step.
PRUNE_BY = 0.7
BETA1 = 0.9  # Adam's paper, section 2, as the next two
BETA2 = 0.999
EPSILON = 1e-8


class LocalTraining:
    """Local epochs on images x uint8 (N, C, H, W), with labels y as `Images` has them, from this round's
    weights `start`; the result is the difference from `origin`. `result` follows when `steps` has run out."""

    def __init__(
        self,
        graph: TrainGraph,
        origin: Weights,
        start: Weights,
        x: npt.NDArray[np.uint8],
        y: npt.NDArray[Any],
        plan: Plan,
    ) -> None:
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"{len(x)} images with {len(y)} labels: nothing to train on")
        self.plan = plan
        self.knobs = plan.training
        self.epoch = 0  # epochs done
        self.loss = math.nan  # mean over the last epoch done
        self._graph, self._layout, self._x, self._y = graph, graph.layout, x, y
        layout = graph.layout
        self._origin = flat(layout, origin)
        self._latent = flat(layout, start)
        self._adam = Adam(layout.parameters, amsgrad=self.knobs.rule.uses_moments)
        self._widths: dict[str, npt.NDArray[np.uint8]] = {}  # bases a group, once they are allotted
        self._bases: dict[str, Bases] = {}  # while bases and coordinates are being optimized
        self._projection: alq.Projection | None = None  # once the bit-widths are final
        self._projected = np.empty(0, np.float32)  # weights of the last straight-through pass
        self._scratch = np.empty_like(self._latent)
        # glibc gives back to the kernel what is larger than the largest block it ever saw freed (mallopt(3),
        # M_MMAP_THRESHOLD), and then each step faults its arrays in anew: LeNet-5 took 5.3 ms to sketch, and
        # takes 1.7. So it is shown a block, whose pages nobody touches.
        np.empty(8 * layout.parameters, np.uint8)
        self._moments = np.empty((2 if self.knobs.rule.uses_moments else 0, layout.parameters), np.float32)

    @property
    def epochs(self) -> int:
        return len(self.plan.phases)

    @property
    def batches(self) -> int:
        return -(-len(self._x) // self.knobs.batch_size)

    def steps(self) -> Iterator[Stepped]:
        """Runs what is left, one batch a step. Raises ValueError if the loss is not finite."""
        while self.epoch < self.epochs:
            self._enter(self.plan.phases[self.epoch])
            key = (self.plan.seed, self.plan.round, self.plan.node, self.epoch)
            draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
            order = draw.permutation(len(self._x))
            total = 0.0
            for batch in range(self.batches):
                chosen = order[batch * self.knobs.batch_size :][: self.knobs.batch_size]
                images, labels = augmented(
                    self._x[chosen], self._y[chosen], draw, self.knobs.shift_pixels, self.knobs.distortion,
                    self._graph.objective.outside,
                )  # fmt: skip
                loss = self._learn(images, labels, batch)
                total += loss * len(chosen)
                epoch = self.epoch + 1
                if batch + 1 == self.batches:
                    self.epoch, self.loss = epoch, total / len(order)
                yield Stepped(
                    epoch=epoch, epochs=self.epochs, batch=batch + 1, batches=self.batches, loss=loss,
                    epoch_loss=self.loss,
                )  # fmt: skip

    def result(self) -> Model:
        """Returns the trained difference, quantized or dense. Raises RuntimeError before the last epoch."""
        if self.epoch < self.epochs:
            raise RuntimeError(f"{self.epoch} of {self.epochs} epochs are done: no result yet")
        if self._widths:
            return alq.quantize(self._layout, self._difference(), self._widths)
        rule = self.knobs.rule
        budget = Budget(self.knobs.bits_up, self.knobs.max_bases, rule.compress)
        difference = views(self._layout, self._latent - self._origin)
        trained: Model = CODECS[rule.format].quantize(self._layout, difference, budget)
        return trained

    def state(self) -> State:
        """Returns what a checkpoint needs at an epoch's end, 12 to 17 bytes a weight. The arrays are the
        training's own: write them before the next step."""
        state: State = {
            "epoch": np.array(self.epoch),
            "loss": np.array(self.loss),
            "latent": self._latent,
            "first": self._adam.first,
            "second": self._adam.second,
            "adam_steps": np.array(self._adam.steps),
        }
        if self._adam.peak is not None:
            state["peak"] = self._adam.peak
        if self._widths:
            state["widths"] = np.concatenate(list(self._widths.values()))
        if self._bases:
            state |= multibit.arrays(list(self._bases.values()))
        return state

    def restore(self, state: State) -> None:
        """Goes on from `state`. Raises ValueError for a state of another model or plan."""
        names = ("latent", "first", "second") + (("peak",) if self._adam.peak is not None else ())
        try:
            vectors = [np.array(state[name], np.float32) for name in names]
            epoch, steps, loss = int(state["epoch"]), int(state["adam_steps"]), float(state["loss"])
        except KeyError as missing:
            raise ValueError(f"the checkpoint lacks {missing}") from None
        if any(vector.shape != (self._layout.parameters,) for vector in vectors):
            raise ValueError(f"the checkpoint is of another model: {vectors[0].size} weights")
        if not 0 <= epoch <= self.epochs:
            raise ValueError(f"the checkpoint is of another plan: {epoch} epochs done of {self.epochs}")
        phase = self.plan.phases[epoch - 1] if epoch else TrainingPhase.PLAIN
        widths, bases = {}, {}
        if phase is not TrainingPhase.PLAIN:
            widths = multibit.split_widths(self._layout, state.get("widths", ()))
        if phase in OPTIMIZING:
            bases = multibit.from_arrays(self._layout, widths, state)
        self._latent, self._adam.first, self._adam.second = vectors[:3]
        self._adam.steps, self._adam.peak = steps, vectors[3] if len(vectors) > 3 else None
        self._widths, self._bases, self.epoch, self.loss = widths, bases, epoch, loss
        self._projection = None

    def _enter(self, phase: TrainingPhase) -> None:
        layout, knobs = self._layout, self.knobs
        if phase is not TrainingPhase.PLAIN and not self._widths:
            self._widths = alq.allocate(
                layout,
                self._difference(),
                bits_per_weight=knobs.bits_up,
                max_bases=knobs.max_bases,
                curvature=views(layout, self._adam.curvature()) if knobs.rule.allots_by_curvature else None,
            )
        if phase in OPTIMIZING and not self._bases:
            self._bases = self._sketched()
        if phase is TrainingPhase.STRAIGHT and self._bases:
            self._from_origin(_rebuilt(self._bases), views(layout, self._latent))
            self._bases = {}

    def _learn(self, x: Floats, y: npt.NDArray[Any], batch: int) -> float:
        """Runs one batch; the latent weights take Adam's step whatever the phase."""
        phase, layout, rate = self.plan.phases[self.epoch], self._layout, self.knobs.learning_rate
        bases = self._sketched() if phase is TrainingPhase.PRUNE else self._bases
        loss, buffers = gradient(
            self._graph, self._forward(phase, bases), x, y, self._scratch,
            when=f"in epoch {self.epoch + 1}, at a learning rate of {rate}",
        )  # fmt: skip
        self._adam.step(self._latent, self._scratch, rate)
        for name, values in buffers.items():
            views(layout, self._latent)[name][...] = values
        if not bases:
            return loss
        mean, h = (
            in_groups(layout, views(layout, moment(out)))
            for moment, out in zip((self._adam.mean, self._adam.curvature), self._moments, strict=True)
        )
        if phase is TrainingPhase.PRUNE:
            self._prune(bases, mean, h, batch)
        elif phase is TrainingPhase.BASES:
            target = in_groups(layout, self._difference())
            self._bases = {name: multibit.optimized(target[name], b, h[name]) for name, b in bases.items()}
        else:
            self._bases = {name: multibit.stepped(b, mean[name], h[name], rate) for name, b in bases.items()}
        return loss

    def _forward(self, phase: TrainingPhase, bases: Mapping[str, Bases]) -> dict[str, Floats]:
        weights = views(self._layout, self._latent)
        if bases:
            return weights | self._from_origin(_rebuilt(bases))
        if phase is TrainingPhase.PLAIN:
            return weights
        return self._straight_through(weights)

    def _straight_through(self, weights: dict[str, Floats]) -> dict[str, Floats]:
        """Returns what bases make of `weights`: groups without one stay at the origin and cost nothing."""
        layout = self._layout
        if self._projection is None:
            self._projection = alq.Projection(self._widths)
            self._projected = self._origin + np.float32(0)  # -0 becomes +0, as in any sum
        seen = views(layout, self._projected)
        latent, origin, projected = (
            in_groups(layout, each) for each in (weights, views(layout, self._origin), seen)
        )
        first = {name: origin[name][at] for name, at in self._projection.order.items()}
        moves = {name: latent[name][at] - first[name] for name, at in self._projection.order.items()}
        for name, move in self._projection(moves).items():
            projected[name][self._projection.order[name]] = first[name] + move
        return weights | {t.name: seen[t.name] for t in layout.grouped}

    def _sketched(self) -> dict[str, Bases]:
        groups = in_groups(self._layout, self._difference())
        return {name: alq.sketch(w, self._widths[name]) for name, w in groups.items()}

    def _prune(self, sketch: Mapping[str, Bases], mean: Weights, h: Weights, batch: int) -> None:
        """Drops coordinates in equal steps until PRUNE_BY of the pruning epochs; the rest of these heals."""
        layout, knobs = self._layout, self.knobs
        goal_bits = (1 - knobs.prune_ratio) * knobs.bits_up * layout.parameters
        over_bits = budget_bits(layout, self._widths) - goal_bits
        last = max(1, int(PRUNE_BY * knobs.prune_epochs * self.batches))
        before = (self.epoch - self.plan.phases.index(TrainingPhase.PRUNE)) * self.batches + batch
        if over_bits <= 0:
            return
        masks = multibit.smallest(
            [multibit.increments(b, mean[name], h[name], knobs.learning_rate) for name, b in sketch.items()],
            list(sketch.values()),
            top=[math.ceil(max(TOP_SHARE, 1 / last) * knobs.max_bases * t.groups) for t in layout.grouped],
            bits=over_bits / max(1, last - before),
        )
        self._widths = {
            name: bases.bits - mask.sum(axis=1, dtype=np.uint8)
            for (name, bases), mask in zip(sketch.items(), masks, strict=True)
        }

    def _difference(self) -> dict[str, Floats]:
        np.subtract(self._latent, self._origin, out=self._scratch)
        return views(self._layout, self._scratch)

    def _from_origin(self, groups: Weights, out: Weights | None = None) -> dict[str, Floats]:
        origin = views(self._layout, self._origin)
        return {
            name: np.add(origin[name], w.reshape(origin[name].shape), out=None if out is None else out[name])
            for name, w in groups.items()
        }


def _rebuilt(models: Mapping[str, Bases]) -> dict[str, Floats]:
    return {name: bases.reconstruct() for name, bases in models.items()}


def apply_delta(origin: Weights, difference: Weights) -> dict[str, Floats]:
    """Adds `difference` to `origin`: what a packed model, reconstructed, means in a mission."""
    return {name: origin[name] + difference[name] for name in origin}


class Adam:
    """Adam on one vector of weights (Kingma and Ba, ICLR 2015, algorithm 1): first and second moment (P,)
    float32 after `steps` steps, in place, as at LeNet-5's 431,080 weights a new array would cost as much as a
    pass. With a `peak`, the largest second moment, it is AMSGrad (Reddi et al., ICLR 2018, algorithm 2), as
    ALQ has it (section 3.2)."""

    def __init__(self, size: int, *, amsgrad: bool = False) -> None:
        self.first, self.second, peak = np.zeros((3, size), np.float32)
        self.peak: Floats | None = peak if amsgrad else None
        self.steps = 0

    def step(self, weights: Floats, gradient: Floats, learning_rate: float) -> None:
        """Moves `weights` (P,) in place and uses `gradient` (P,) as scratch space."""
        self.steps += 1
        self.first *= BETA1
        self.first += (1 - BETA1) * gradient
        np.square(gradient, out=gradient)
        gradient *= 1 - BETA2
        self.second *= BETA2
        self.second += gradient
        if self.peak is not None:
            np.maximum(self.peak, self.second, out=self.peak)
        # Both bias corrections folded into the step length: the end of the paper's section 2.
        correction = float(np.sqrt(1 - BETA2**self.steps))
        length = learning_rate * correction / (1 - BETA1**self.steps)
        np.sqrt(self.second if self.peak is None else self.peak, out=gradient)
        gradient += EPSILON * correction
        np.divide(self.first, gradient, out=gradient)
        gradient *= length
        weights -= gradient

    def mean(self, out: Floats | None = None) -> Floats:
        """Returns g (P,): the first moment, bias-corrected."""
        scale = 1 - BETA1**self.steps if self.steps else 1.0
        mean: Floats = np.multiply(self.first, np.float32(1 / scale), out=out)
        return mean

    def curvature(self, out: Floats | None = None) -> Floats:
        """Returns h (P,): ALQ's curvature (section 3.2), the corrected root of the second moment or peak."""
        scale = 1 - BETA2**self.steps if self.steps else 1.0
        h: Floats = np.sqrt(self.second if self.peak is None else self.peak, out=out)
        h *= np.float32(scale**-0.5)
        return h
