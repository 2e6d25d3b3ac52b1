"""A node's own steps between exchanges: stochastic gradient descent with momentum, batch after batch.

RD-PSGD trains so (its section 3.1): x <- x - lr * v, v = momentum * v + gradient + decay * x, with decay on
weights of two or more axes alone, as gains and biases do not need it. Batches are stratified by class (with
masks, by the class that most pixels have) and come from (seed, node, epoch): a descent restored at any batch
draws what it would have drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onboard.codec.layout import Floats, Weights, flat, views
from onboard.learn.augment import PixelRows, augmented
from onboard.learn.graph import TrainGraph, gradient, prepare
from onboard.learn.optimizers import Sgd
from onboard.learn.training import Recipe

SAMPLE = 100  # images that tell the spread of all


class Descent:
    """One node's model, `vector` float32 (P,), which others may change in place between steps, on its images
    x uint8 (N, C, H, W), with labels y as `Images` has them. Raises ValueError for another number."""

    def __init__(
        self,
        graph: TrainGraph,
        start: Weights,
        x: PixelRows,
        y: npt.NDArray[Any],
        recipe: Recipe,
        *,
        seed: int,
        node: int,
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"{len(x)} images with {len(y)} labels")
        self.recipe = recipe
        self.vector = flat(graph.layout, start)
        self._sgd = Sgd(graph.layout, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        self.batches = 0  # done
        self._graph, self._x, self._y = graph, x, y
        self._strata = strata(y, graph.objective.ignore)
        self._seed, self._node = seed, node
        self._epoch, self._order = -1, np.empty(0, np.int64)

    @property
    def weights(self) -> dict[str, Floats]:
        return views(self._graph.layout, self.vector)

    @property
    def guess_loss(self) -> float:
        """The loss of a model that only guesses: all classes alike, or always the mean."""
        kind = self._graph.objective.kind
        if kind == "classify":  # as many as there are by the highest label
            return math.log(max(int(self._y.max(initial=0)) + 1, 2))
        if kind == "segment":
            return math.log(self._graph.classes)
        if not len(self._x):
            return 1.0
        return float((self._y.var(axis=0) if kind == "regress" else prepare(self._x[:SAMPLE]).var()).mean())

    @property
    def velocity(self) -> Floats:
        return self._sgd.vectors["velocity"]

    @property
    def batches_an_epoch(self) -> int:
        return -(-len(self._x) // self.recipe.batch_size)

    @property
    def epochs(self) -> float:
        return self.batches / self.batches_an_epoch if len(self._x) else 0.0

    def step(self) -> float:
        """Trains one batch; returns its mean loss (nats). Raises ValueError if not finite, or for N = 0."""
        recipe = self.recipe
        if not len(self._x):
            raise ValueError("no images: nothing to train on")
        epoch, batch = divmod(self.batches, self.batches_an_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, stratified(self._strata, self._draw(epoch, -1))
        chosen = self._order[batch * recipe.batch_size :][: recipe.batch_size]
        draw = self._draw(epoch, batch)
        images, labels = augmented(
            self._x[chosen], self._y[chosen], draw, recipe.shift_pixels, recipe.distortion
        )
        weights, rate = self.weights, recipe.rate(epoch)
        when = f"after {self.batches} batches, at a learning rate of {rate}"
        seed = int(draw.integers(2**63)) if self._graph.takes_seed else 0
        loss, gradients, buffers = gradient(self._graph, weights, images, labels, when=when, seed=seed)
        self._sgd.step(self.vector, gradients, rate)
        for name, values in buffers.items():
            weights[name][...] = values
        self.batches += 1
        return loss

    def restore(self, vector: Floats, velocity: Floats, batches: int) -> None:
        """Goes on after `batches` with model and velocity (P,). Raises ValueError for another model's."""
        own = self.vector.shape
        if vector.shape != own or velocity.shape != own or batches < 0:
            raise ValueError(f"a state of {vector.shape} and {velocity.shape}, this model's {own}")
        self.vector[...], self.velocity[...], self.batches = vector, velocity, batches

    def _draw(self, epoch: int, batch: int) -> np.random.Generator:
        key = np.random.SeedSequence((self._seed, self._node, epoch, batch + 1))
        return np.random.Generator(np.random.Philox(key))


def strata(y: npt.NDArray[Any], ignore: int | None = None) -> npt.NDArray[np.int64]:
    """Returns what images of labels y (N, ...) can be mixed evenly by, int64 (N): their class, or the class
    that most pixels of their mask have; 0 of numbers and of no labels."""
    if y.ndim == 1:
        return y.astype(np.int64)
    if y.ndim == 2:
        return np.zeros(len(y), np.int64)
    counts = np.zeros((len(y), 256), np.int64)
    for mask, count in zip(y, counts, strict=True):
        count[:] = np.bincount(mask.ravel(), minlength=256)
    if ignore is not None:
        counts[:, ignore] = 0
    most: npt.NDArray[np.int64] = counts.argmax(axis=1)
    return most


def stratified(y: npt.NDArray[np.int64], draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """Shuffles rows of labels y int64 (N,) so that any stretch has the classes as evenly as all. Gradients of
    small batches then differ less, which is what drives nodes apart between exchanges."""
    shuffled = draw.permutation(len(y))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    _, of, counts = np.unique(y[by_class], return_inverse=True, return_counts=True)
    rank = np.arange(len(y)) - (np.cumsum(counts) - counts)[of]
    place = (rank + draw.random(len(counts))[of]) / counts[of]  # 0 to 1, a class's own at equal distances
    return by_class[np.argsort(place, kind="stable")]


def consensus(vectors: list[Floats]) -> tuple[Floats, float]:
    """Returns the mean of models float32 (P,), and the root mean square of their distances from it."""
    total = np.zeros(vectors[0].shape, np.float64)
    for vector in vectors:
        total += vector
    mean: Floats = (total / len(vectors)).astype(np.float32)
    squares = sum(float(np.square(vector - mean, dtype=np.float64).sum()) for vector in vectors)
    return mean, math.sqrt(squares / len(vectors))
