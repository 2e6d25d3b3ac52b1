"""Models on a ring of 8 agree as fast as RD-PSGD's theory says: 1 - p (1 - rho) a round, and Lemma 3 holds.

Rounds are the agents' own: masks drawn, values extracted and mixed (`onboard.codec`), all nodes with the mask
of the round, as the lemma has it. W has 1/3 for a node and each of its neighbours; rho = lambda_2^2. Masks
pick runs of coordinates, each on its own: a run is what the paper has a coordinate for.

Rate: every coordinate starts on the eigenvector of lambda_2, the slowest, and every run is a trial of its
own, seen by its first coordinate. After m rounds its squared distance from the mean is rho^tau of what it
was, tau from Bin(m, p): on average (1 - p (1 - rho))^m of it, and at most rho^E with a probability of
P(Bin(m, p) >= E).

Lemma 3, rebuilt: ||X 1/n - G^m(X) e_i||^2 <= rho^E ||X||_F^2 for every node i with a probability of at least
P(Bin(m, p) >= E)^N, N coordinates. With runs N of them are enough, however many coordinates they have. For a
minimal probability delta, E is the largest for which that is at least delta, and rho^(E / m) the theoretical
rate of figure 2. A trial is N runs of random coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import comb, sqrt
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.codec import sparse
from onboard.codec.layout import Floats
from onboard.codec.mask import ALL, RUN, Draw, drawn, share_of
from onboard.codec.sparse import NeighbourValues

NODES, WEIGHT = 8, 1 / 3
LAMBDA_2 = (1 + sqrt(2)) / 3  # of the ring's W: 1/3 + 2/3 cos(2 pi / 8)
RHO = LAMBDA_2**2
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
OFF = 1e-3
# 1e-3 of a rate, and 0.01 of a share of runs, are four standard deviations of so many runs at the worst p.
ROUNDS, RUNS = 20, 40_000
AT_ONCE = 1000  # runs played together: of 8 nodes 8 MB, which stay in a cache
# At most 60 rounds: rho^60 is 5e-12 of the squared distance, and float32's rounding 4e-15.
LEMMA_ROUNDS, LEMMA_RUNS, TRIALS = 60, 4, 400
DELTAS = (0.5, 0.9, 0.99)
DELTA, SHARE_OFF = 0.5, 0.01  # of single runs
ROUNDING = 1e-3  # of float32 over the rounds; the next power of rho is a third away

OPTIONS = (
    click.Option(
        ["--plot"], type=click.Path(dir_okay=False, path_type=Path), help="Draws figure 2 into this PNG."
    ),
)


def measure(tell: ProgressLine, *, plot: Path | None, runs: int = RUNS, trials: int = TRIALS) -> list[Row]:
    """Plays the rounds; takes half a minute."""
    rates, rows = {}, []
    for p in SHARES:
        tell(f"p = {p:g}")
        left = left_of_slowest(p, runs, per_edge=False)
        rates[p] = rate(left)
        rows.append(Row(f"p = {p:g}: rate a round", rates[p], ""))
        rows.append(Row("  off 1 - p (1 - rho) by", abs(rates[p] - theory(p)), "", OFF))
        least = least_averaged(p, ROUNDS, DELTA, runs=1)
        share = float((left <= RHO**least * (1 + ROUNDING)).mean())
        off = abs(share - at_least(p, ROUNDS, least))
        rows.append(Row(f"  share within rho^{least}, off P(Bin(m, p) >= {least}) by", off, "", SHARE_OFF))
        rows += _lemma_rows(p, trials)
        per_edge = rate(left_of_slowest(p, runs, per_edge=True))
        rows.append(Row("  rate with a mask for each edge, as agents have", per_edge, ""))
    if plot is not None:
        draw(rates, plot)
    return rows


def _lemma_rows(p: float, trials: int) -> list[Row]:
    rows, nearness = [], lemma_nearness(p, trials)
    for delta in DELTAS:
        probability = at_least(p, LEMMA_ROUNDS, least_averaged(p, LEMMA_ROUNDS, delta)) ** LEMMA_RUNS
        what = f"  Lemma 3, delta {delta:g}, {trials} trials: held in"
        held = float((nearness <= RHO ** least_averaged(p, LEMMA_ROUNDS, delta)).mean())
        rows.append(Row(what, held, "of them", probability, at_least=True))
    return rows


def theory(p: float) -> float:
    """What the squared distance from the mean is multiplied by in a round, on average, in the worst case."""
    return 1 - exact(p) * (1 - RHO)


def exact(p: float) -> float:
    """The p that is drawn: in 65536ths."""
    return share_of(p) / ALL


def left_of_slowest(p: float, runs: int, *, per_edge: bool) -> npt.NDArray[np.float64]:
    """What ROUNDS rounds leave of each run's squared distance from the mean: (runs,)."""
    slowest = np.cos(2 * np.pi * np.arange(NODES) / NODES).astype(np.float32)
    left = []
    for seed, first in enumerate(range(0, runs, AT_ONCE)):
        models = np.repeat(slowest[:, None], RUN * min(AT_ONCE, runs - first), axis=1)
        before = distances(models[:, :1]).sum()
        for number in range(ROUNDS):
            play(models, p, number, seed=seed, per_edge=per_edge)
        left.append(distances(models[:, ::RUN]).sum(axis=0) / before)
    return np.concatenate(left)


def rate(left: npt.NDArray[np.float64]) -> float:
    """The mean's ROUNDS-th root: what a round multiplies the squared distance by."""
    return float(left.mean() ** (1 / ROUNDS))


def lemma_nearness(p: float, trials: int) -> npt.NDArray[np.float64]:
    """Of each trial (trials,): the squared distance from the mean, after LEMMA_ROUNDS, of the node that is
    farthest, over the squared norm of all models before them."""
    models = np.random.default_rng(1).standard_normal((NODES, trials * LEMMA_RUNS * RUN), np.float32)
    whole = models.astype(np.float64).reshape(NODES, trials, -1)
    for number in range(LEMMA_ROUNDS):
        play(models, p, number, per_edge=False)
    left = distances(models, whole.mean(axis=0).ravel()).reshape(NODES, trials, -1).sum(axis=2)
    return np.asarray(left.max(axis=0) / (whole**2).sum(axis=(0, 2)))


def play(models: Floats, p: float, number: int, *, seed: int = 0, per_edge: bool) -> None:
    """One round of all nodes at once: (NODES, coordinates), in place."""
    edges = [(node, (node + 1) % NODES) for node in range(NODES)]
    if per_edge:
        masks = {edge: drawn(Draw(seed, number, edge, share_of(p)), models.shape[1]) for edge in edges}
    else:
        masks = dict.fromkeys(edges, drawn(Draw(seed, number, None, share_of(p)), models.shape[1]))
    values = {(node, edge): sparse.extract(models[node], masks[edge]) for edge in edges for node in edge}
    for node, model in enumerate(models):
        own = [edge for edge in edges if node in edge]
        sparse.mix(
            model,
            [
                NeighbourValues(masks[edge], WEIGHT, values[node, edge], values[sum(edge) - node, edge])
                for edge in own
            ],
        )  # fmt: skip


def distances(models: Floats, mean: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    """Squared distances (NODES, coordinates) from the mean, the nodes' own unless given."""
    exactly = models.astype(np.float64)
    return np.asarray((exactly - (exactly.mean(axis=0) if mean is None else mean)) ** 2)


def at_least(p: float, rounds: int, times: int) -> float:
    """P(Bin(rounds, p) >= times)."""
    q = exact(p)
    return sum(comb(rounds, k) * q**k * (1 - q) ** (rounds - k) for k in range(times, rounds + 1))


def least_averaged(p: float, rounds: int, delta: float, runs: int = LEMMA_RUNS) -> int:
    """E: how often all the runs are averaged at least, with a probability of delta or more."""
    return max(times for times in range(rounds + 1) if at_least(p, rounds, times) ** runs >= delta)


def draw(rates: Mapping[float, float], path: Path) -> None:
    """Figure 2 as a PNG: rates against p."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    shares = np.linspace(0.02, 1, 99)
    for delta in DELTAS:
        lemma = [RHO ** (least_averaged(p, LEMMA_ROUNDS, delta) / LEMMA_ROUNDS) for p in shares]
        axes.plot(shares, lemma, linewidth=1, label=f"Lemma 3, minimal probability {delta:g}")
    axes.plot(shares, [theory(p) for p in shares], color="black", label="1 - p (1 - ρ)")
    axes.plot(list(rates), list(rates.values()), "o", color="black", label="measured")
    axes.set(
        xlabel="p", ylabel="rate a round of the squared distance", xlim=(0, 1.02),
        title=f"Consensus on a ring of {NODES}, weights 1/3",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
