"""One board's share of a round: from global weights and local images to a quantized update, step by step.

A difference travels: of the whole model from the mission's initial weights (`learn.graph.initial`), or of
the outcome from this round's global weights (`TrainingMethod.sends_whole`). So a group without bases stands
for what both ends hold and not for zeros: at 0.05 bit a weight, where nine groups of ten have none, a network
keeps its features. In epochs with the straight-through estimator (ALQ section 3.4) full-precision latent
weights take the gradient of their quantized form.

A training is a generator of steps: its caller decides when the next one runs, which is where throttle,
budget, checkpoint and virtual time live. Batch order and augmentation come from (seed, round, node, epoch)
alone, and a state says how much of an epoch's draws has been used, so a training resumed after any step goes
on as if it had never stopped."""

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
from onboard.learn.augment import PixelRows, augmented
from onboard.learn.federated import multibit
from onboard.learn.graph import TrainGraph, gradient
from onboard.learn.optimizers import OPTIMIZERS, Adam
from onboard.learn.training import Plan, Stepped, TrainingPhase

State = dict[str, npt.NDArray[Any]]

OPTIMIZING = (TrainingPhase.BASES, TrainingPhase.COORDINATES)
# Share of the coordinates a layer can have that one step of pruning chooses from (ALQ's top-k, section 3.2);
# where that is too little for the steps there are, one over their number, so that pruning comes to its end.
TOP_SHARE = 0.005
# Pruning ends after this share of its epochs, the rest heals: 91.4 % after the first round on MNIST (K = 5),
# not the 87.8 % of a pruning that goes on to the last step.
PRUNE_BY = 0.7


class LocalTraining:
    """Local epochs on images x uint8 (N, C, H, W), with labels y as `Images` has them, from this round's
    weights `start`; the result is the difference from `origin`. `result` follows when `steps` has run out."""

    def __init__(
        self,
        graph: TrainGraph,
        origin: Weights,
        start: Weights,
        x: PixelRows,
        y: npt.NDArray[Any],
        plan: Plan,
    ) -> None:
        if len(x) == 0 or len(x) != len(y):
            raise ValueError(f"{len(x)} images with {len(y)} labels: nothing to train on")
        self.plan = plan
        self.knobs = plan.training
        self.epoch = 0  # epochs done
        self.batch = 0  # batches done of the epoch after them
        self.loss = math.nan  # mean over the last epoch done
        self._losses = 0.0  # sum over the images of the batches done
        self._draw = self._draws()
        self._graph, self._layout, self._x, self._y = graph, graph.layout, x, y
        layout = graph.layout
        self._origin = flat(layout, origin)
        self._latent = flat(layout, start)
        self._optimizer = OPTIMIZERS[self.knobs.optimizer](layout, self.knobs)
        self._widths: dict[str, npt.NDArray[np.uint8]] = {}  # bases a group, once they are allotted
        self._bases: dict[str, Bases] = {}  # while bases and coordinates are being optimized
        self._projection: alq.Projection | None = None  # once the bit-widths are final
        self._firsts: dict[str, Floats] = {}  # the origin's groups that have a basis
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
            draw = self._draws()
            order = draw.permutation(len(self._x))
            if not self.batch:
                self._draw, self._losses = draw, 0.0
            epoch = self.epoch + 1
            while self.epoch < epoch:
                chosen = order[self.batch * self.knobs.batch_size :][: self.knobs.batch_size]
                loss = self._learn(chosen)
                self._losses += loss * len(chosen)
                self.batch = batch = self.batch + 1
                if batch == self.batches:
                    self.epoch, self.batch, self.loss = epoch, 0, self._losses / len(order)
                yield Stepped(
                    epoch=epoch, epochs=self.epochs, batch=batch, batches=self.batches, loss=loss,
                    epoch_loss=self.loss,
                )  # fmt: skip

    def result(self) -> Model:
        """Returns the trained difference, quantized or dense. Raises RuntimeError before the last epoch."""
        if self.epoch < self.epochs:
            raise RuntimeError(f"{self.epoch} of {self.epochs} epochs are done: no result yet")
        rule = self.knobs.rule
        if self._widths:
            return alq.quantize(self._layout, self._to_send(), self._widths, whole=rule.sends_whole)
        budget = Budget(self.knobs.bits_up, self.knobs.max_bases, rule.compress, rule.sends_whole)
        trained: Model = CODECS[rule.format].quantize(self._layout, self._to_send(), budget)
        return trained

    def statistics(self) -> dict[str, Floats]:
        """Returns the running statistics as training left them."""
        latent = views(self._layout, self._latent)
        return {t.name: latent[t.name].copy() for t in self._layout.tensors if t.is_statistic}

    def residual(self, sent: Model) -> Floats:
        """Returns what the trained difference has beside `sent`, its `result`: (P,) float32, 0 outside the
        grouped tensors. It is the training's own array."""
        rest, said = self._difference(), sent.reconstruct()
        for t in self._layout.tensors:
            rest[t.name] -= said[t.name] if t.group else rest[t.name]
        return self._scratch

    def state(self) -> State:
        """Returns what a checkpoint needs after any step, 8 to 17 bytes a weight. The arrays are the
        training's own: write them before the next step."""
        state: State = {
            "epoch": np.array(self.epoch),
            "batch": np.array(self.batch),
            "loss": np.array(self.loss),
            "losses": np.array(self._losses),
            "draw": _position(self._draw),
            "latent": self._latent,
            "optimizer_steps": np.array(self._optimizer.steps),
        }
        state |= self._optimizer.vectors
        if self._widths:
            state["widths"] = np.concatenate(list(self._widths.values()))
        if self._bases:
            state |= multibit.arrays(list(self._bases.values()))
        return state

    def restore(self, state: State) -> None:
        """Goes on from `state`. Raises ValueError for a state of another model or plan."""
        own = {"latent": self._latent, **self._optimizer.vectors}
        try:
            vectors = {name: np.asarray(state[name], np.float32) for name in own}
            epoch, batch, steps = (int(state[name]) for name in ("epoch", "batch", "optimizer_steps"))
            loss, losses, draw = float(state["loss"]), float(state["losses"]), self._draws(epoch)
            _move_to(draw, state["draw"])
        except KeyError as missing:
            raise ValueError(f"the checkpoint lacks {missing}") from None
        if odd := [vector.size for vector in vectors.values() if vector.shape != self._latent.shape]:
            raise ValueError(f"the checkpoint is of another model: {odd[0]} weights")
        if not (0 <= epoch <= self.epochs and 0 <= batch < (self.batches if epoch < self.epochs else 1)):
            done = f"{epoch} epochs and {batch} batches done of {self.epochs} and {self.batches}"
            raise ValueError(f"the checkpoint is of another plan: {done}")
        phase = self.plan.phases[epoch if batch else epoch - 1] if epoch or batch else TrainingPhase.PLAIN
        widths, bases = {}, {}
        if phase is not TrainingPhase.PLAIN:
            widths = multibit.split_widths(self._layout, state.get("widths", ()))
        if phase in OPTIMIZING:
            bases = multibit.from_arrays(self._layout, widths, state)
        for name, vector in vectors.items():
            own[name][...] = vector
        self._optimizer.steps = steps
        self._widths, self._bases, self._projection = widths, bases, None
        self.epoch, self.batch, self.loss, self._losses, self._draw = epoch, batch, loss, losses, draw

    def _draws(self, epoch: int | None = None) -> np.random.Generator:
        """Returns what an epoch draws from: the order of the images, then what moves them."""
        epoch = self.epoch if epoch is None else epoch
        key = (self.plan.seed, self.plan.round, self.plan.node, epoch)
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

    def _enter(self, phase: TrainingPhase) -> None:
        layout, knobs = self._layout, self.knobs
        if phase is not TrainingPhase.PLAIN and not self._widths:
            self._widths = alq.allocate(
                layout,
                self._difference(),
                bits_per_weight=knobs.bits_up,
                max_bases=knobs.max_bases,
                curvature=self._curvature() if knobs.rule.allots_by_curvature else None,
            )
        if phase in OPTIMIZING and not self._bases:
            self._bases = self._sketched()
        if phase is TrainingPhase.STRAIGHT and self._bases:
            self._from_origin(_rebuilt(self._bases), views(layout, self._latent))
            self._bases = {}

    def _curvature(self) -> dict[str, Floats] | None:
        adam = self._optimizer
        return views(self._layout, adam.curvature()) if isinstance(adam, Adam) else None

    def _learn(self, chosen: npt.NDArray[np.int64]) -> float:
        """Trains on one batch, the images `chosen`; returns its mean loss. The latent weights take the
        optimizer's step whatever the phase."""
        phase, layout, knobs = self.plan.phases[self.epoch], self._layout, self.knobs
        done = self.epoch * self.batches + self.batch
        rate = knobs.rate(done, self.epochs * self.batches)
        x, y = augmented(self._x[chosen], self._y[chosen], self._draw, knobs.shift_pixels, knobs.distortion)
        bases = self._sketched() if phase is TrainingPhase.PRUNE else self._bases
        loss, gradients, buffers = self._gradient(self._forward(phase, bases), x, y, rate)
        self._optimizer.step(self._latent, gradients, rate)
        for name, values in buffers.items():
            views(layout, self._latent)[name][...] = values
        if not bases:
            return loss
        adam = self._optimizer
        assert isinstance(adam, Adam), "bases without Adam's moments"
        mean, h = (
            in_groups(layout, views(layout, moment(out)))
            for moment, out in zip((adam.mean, adam.curvature), self._moments, strict=True)
        )
        if phase is TrainingPhase.PRUNE:
            self._prune(bases, mean, h, rate)
        elif phase is TrainingPhase.BASES:
            target = in_groups(layout, self._difference())
            self._bases = {name: multibit.optimized(target[name], b, h[name]) for name, b in bases.items()}
        else:
            self._bases = {name: multibit.stepped(b, mean[name], h[name], rate) for name, b in bases.items()}
        return loss

    def _gradient(
        self, weights: Weights, x: Floats, y: npt.NDArray[Any], rate: float
    ) -> tuple[float, dict[str, Floats], dict[str, Floats]]:
        """Returns a batch's mean loss and its gradients, and the running statistics after it, computed in the
        parts that the plan asks for."""
        when = f"in epoch {self.epoch + 1}, at a learning rate of {rate}"
        total, gradients, buffers = 0.0, dict[str, Floats](), dict[str, Floats]()
        parts = min(self.knobs.accumulate, len(x))
        for part in np.array_split(np.arange(len(x)), parts) if parts > 1 else (range(len(x)),):
            at = slice(part[0], part[-1] + 1)
            seed = int(self._draw.integers(2**63)) if self._graph.takes_seed else 0
            loss, found, buffers = gradient(
                self._graph, {**weights, **buffers}, x[at], y[at], when=when, seed=seed
            )
            if parts == 1:
                return loss, found, buffers
            total += loss * (len(part) / len(x))
            for name, values in found.items():
                values *= len(part) / len(x)
                gradients[name] = values + gradients[name] if name in gradients else values
        return total, gradients, buffers

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
            groups = in_groups(layout, views(layout, self._origin))
            self._firsts = {name: groups[name][at] for name, at in self._projection.order.items()}
        seen = views(layout, self._projected)
        latent, projected = in_groups(layout, weights), in_groups(layout, seen)
        moves = {  # `take` is three times as fast as an index, for a convolution's kernels
            name: np.subtract(
                rows := latent[name].take(at, axis=0, mode="clip"), self._firsts[name], out=rows
            )
            for name, at in self._projection.order.items()
        }
        for name, move in self._projection(moves).items():
            move += self._firsts[name]
            projected[name][self._projection.order[name]] = move
        return weights | {t.name: seen[t.name] for t in layout.grouped}

    def _sketched(self) -> dict[str, Bases]:
        groups = in_groups(self._layout, self._difference())
        return {name: alq.sketch(w, self._widths[name]) for name, w in groups.items()}

    def _prune(self, sketch: Mapping[str, Bases], mean: Weights, h: Weights, rate: float) -> None:
        """Drops coordinates in equal steps until PRUNE_BY of the pruning epochs; the rest of these heals."""
        layout, knobs = self._layout, self.knobs
        goal_bits = (1 - knobs.prune_ratio) * knobs.bits_up * layout.parameters
        over_bits = budget_bits(layout, self._widths) - goal_bits
        last = max(1, int(PRUNE_BY * knobs.prune_epochs * self.batches))
        before = (self.epoch - self.plan.phases.index(TrainingPhase.PRUNE)) * self.batches + self.batch
        if over_bits <= 0:
            return
        masks = multibit.smallest(
            [multibit.increments(b, mean[name], h[name], rate) for name, b in sketch.items()],
            list(sketch.values()),
            top=[math.ceil(max(TOP_SHARE, 1 / last) * knobs.max_bases * t.groups) for t in layout.grouped],
            bits=over_bits / max(1, last - before),
        )
        self._widths = {
            name: bases.bits - mask.sum(axis=1, dtype=np.uint8)
            for (name, bases), mask in zip(sketch.items(), masks, strict=True)
        }

    def _to_send(self) -> dict[str, Floats]:
        difference = views(self._layout, self._latent - self._origin)
        if not self.plan.sends_statistics:
            for name in self.statistics():
                difference[name][...] = 0
        return difference

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


def _position(draw: np.random.Generator) -> npt.NDArray[np.uint64]:
    """Returns how far a Philox generator has come: its counter, and what it has drawn and not handed out."""
    state: Any = draw.bit_generator.state
    spare = state["buffer_pos"], state["has_uint32"], state["uinteger"]
    return np.array([*state["state"]["counter"], *state["buffer"], *spare], np.uint64)


def _move_to(draw: np.random.Generator, position: npt.NDArray[Any]) -> None:
    """Undoes `_position`, for a generator with the same key. Raises ValueError."""
    numbers = np.asarray(position)
    if numbers.shape != (11,) or numbers.dtype != np.uint64:
        raise ValueError(f"the checkpoint has draws at {numbers.dtype} {numbers.shape}")
    state: Any = draw.bit_generator.state
    state["state"]["counter"], state["buffer"] = numbers[:4], numbers[4:8]
    state["buffer_pos"], state["has_uint32"], state["uinteger"] = (int(each) for each in numbers[8:])
    draw.bit_generator.state = state
