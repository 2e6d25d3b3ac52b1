"""Splits of images among devices: shares of equal size, alike or drawn from a Dirichlet distribution.

Rows are drawn from a seed alone, and no row is given twice."""

from __future__ import annotations

import numpy as np

from onboard.data.images import DataError, Images, Labels, Rows, order


def shares(images: Images, devices: int, most: int, alpha: float | None, seed: int) -> list[Images]:
    """Returns each device's images, `most` at most, as `iid` or `dirichlet` draws them."""
    if alpha is None:
        rows = iid(images.y, devices, most, seed)
    else:
        rows = dirichlet(images.y, len(images.classes), devices, most, alpha, seed)
    return [images.take(share) for share in rows]


def iid(y: Labels, devices: int, images: int, seed: int) -> list[Rows]:
    """Returns `devices` shares of up to `images` rows of y (N), alike. Raises DataError for too few rows."""
    if len(y) < devices:
        raise DataError(f"{len(y)} images cannot make {devices} shares")
    size = min(images, len(y) // devices)
    return list(order(len(y), seed)[: devices * size].reshape(devices, size))


def dirichlet(y: Labels, classes: int, devices: int, images: int, alpha: float, seed: int) -> list[Rows]:
    """Returns `devices` shares of up to `images` rows of y (N), each with its own mixture of the classes.

    A device's mixture is drawn from a Dirichlet distribution, and its images by the mixture (Hsu, Qi and
    Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    2019, section 3). `alpha` is the concentration of each class where they are equally frequent, as in most
    work since (Li et al., "Federated Learning on Non-IID Data Silos", 2022); else the concentration is alpha
    * C * p, p the C classes' shares of y. Hsu's own alpha * p is C times less even. alpha to infinity is IID;
    alpha to 0 gives each device one class. Later devices get none of a class that is used up. Raises
    DataError as `iid`, ValueError for a bad alpha."""
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}, must be above 0 and finite")
    if len(y) < devices:
        raise DataError(f"{len(y)} images cannot make {devices} shares")
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, devices, len(y)))))
    shuffled = order(len(y), seed)
    pools = [shuffled[y[shuffled] == label] for label in range(classes)]
    left = np.array([len(pool) for pool in pools])
    prior = left / left.sum()
    present = prior > 0
    size = min(images, len(y) // devices)
    shares: list[Rows] = []
    for _ in range(devices):
        mixture = np.zeros(classes)
        mixture[present] = draw.dirichlet(alpha * present.sum() * prior[present])
        taken = _counts(draw, mixture, left, size)
        shares.append(
            np.concatenate([pool[n - k : n] for pool, n, k in zip(pools, left, taken, strict=True)])
        )
        left -= taken
    return shares


def _counts(
    draw: np.random.Generator, mixture: np.ndarray[tuple[int], np.dtype[np.float64]], left: Rows, size: int
) -> Rows:
    """Draws how many of each class a share of `size` takes by the mixture, never more than are left."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        room = left - taken
        # A mixture whose classes are all used up falls back on the remaining images.
        weights = np.where(room > 0, mixture, 0.0)
        if not weights.sum() > 0:
            weights = room.astype(np.float64)
        taken += np.minimum(draw.multinomial(missing, weights / weights.sum()), room)
    return taken
