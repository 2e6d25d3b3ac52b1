"""RD-PSGD spares an epoch on the paper's links what p says that it spares, and its equation 19 holds.

Tables 1 to 3 (Meng et al., sections 2.3 and 4.3), rebuilt with our exchange in place of theirs: dense, at
p = 0.1 with a shared seed, and at p = 0.1 with the paper's 8-bit gaps. The setting is the paper's: a ring of
8, two neighbours for every node; ResNet-20 after each of 196 batches an epoch, ResNet-50 after every 100th of
2,503 (1,281,167 images, 8 nodes, batches of 64): 25 times. Bytes are whole messages in the link's frames, CPU
seconds are this machine's. Masks with a seed are those that agents draw, of runs, and the bytes of a message
are the mean of an epoch's; gaps have masks of single coordinates, as in the paper. Of `isl-2mbyte` a node has
one for each neighbour; a cap is the node's, and both share it. Nothing overlaps, as in the paper.

Equation 19 is lost in the paper's text. Rebuilt from what it says of both costs: with T_s to serialize, T_c
to communicate and T_d to deserialize all parameters, T_i to generate and T_t to transmit the index, T_e to
extract and T_x to expand, dense takes T_s + T_c + T_d and sparse T_i + T_t + T_e + T_x + p (T_s + T_c + T_d).
Sparse is faster if

    T_i + T_t + T_e + T_x < (1 - p) (T_s + T_c + T_d).

Ours extracts into the message and mixes out of it, dense or sparse: T_e and T_x are what these stages take
beyond p of the dense ones, T_t what a message's way takes beyond p of the dense one's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean, median

import click
import numpy as np

from benchmarks.claims.learning.gossip import EDGE, SINGLE, WEIGHT, on_link
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from hw_profiles import load_link
from onboard.codec import explicit, sparse
from onboard.codec.explicit import IndexForm
from onboard.codec.layout import Floats
from onboard.codec.mask import ALL, Draw, drawn, share_of
from onboard.codec.sparse import NeighbourValues
from onboard.codec.values import Form

P = 0.1
NEIGHBOURS = 2
LINKS = {"isl-2mbyte": 1, "cap-200m": NEIGHBOURS, "cap-200k": NEIGHBOURS}  # neighbours that share one
NO_LINK = "CPU alone"
REPEATS = 15
LINEAR = 9.8  # table 1: "linearly"; 196 masks of 271,098 coordinates have p of them on average within 2 %
# The paper's, seconds an epoch of ResNet-50: table 2 (one node, of which 8 have an eighth each) and table 3.
COMPUTING_S = 6069.36 / 8
CAPPED = 285.6 / 58.3
INDEX, EXPAND = 7.7, 29.8  # table 2's text: 0.432 -> 0.056 s and 12.855 -> 0.431 s

OPTIONS = (click.Option(["--repeats"], type=click.IntRange(1, 1000), default=REPEATS, help="Turns to time."),)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A vector and how often its nodes exchange it in an epoch."""

    name: str
    parameters: int
    exchanges: int


# with running statistics; 50,000 images, batches of 32
RESNET_20 = ModelSize("ResNet-20", 269_722 + 1_376, 196)
RESNET_50 = ModelSize("ResNet-50", 25_557_032, 25)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A node's exchange with all its neighbours: CPU seconds to draw indices, to make messages, and to take
    and mix them; bytes of one message, on average."""

    index_s: float
    out_s: float
    in_s: float
    message_bytes: int

    @property
    def cpu_s(self) -> float:
        return self.index_s + self.out_s + self.in_s


def measure(
    tell: ProgressLine, *, repeats: int, models: tuple[ModelSize, ...] = (RESNET_20, RESNET_50)
) -> list[Row]:
    """Times exchanges of each model, the largest last; takes half a minute."""
    rows: list[Row] = []
    for model in models:
        tell(f"timing exchanges of {model.name}")
        vectors = [np.random.default_rng(n).standard_normal(model.parameters, np.float32) for n in (0, 1)]
        found = exchanges(vectors, repeats, model.exchanges)
        rows += _table_1(model, found)
        rows += _table_3(model, found)
        rows += _equation_19(model, found)
    tell("timing Bernoulli draws and loops")
    return [*rows, *_table_2(models[-1], found, vectors)]


def exchanges(vectors: list[Floats], repeats: int, an_epoch: int) -> dict[str, Exchange]:
    """Dense, with a shared seed, and with gaps, at P: by turns, medians; the first turn, which warms up, is
    left out. Bytes are the mean of so many exchanges with each neighbour as an epoch has.

    Gaps and a whole model are one message for all neighbours. A seed's mask is an edge's own, so that all is
    done for each.
    """
    turns: dict[str, Turn] = {
        "dense": _by_seed(vectors, ALL, an_epoch),
        "seed": _by_seed(vectors, share_of(P), an_epoch),
        "gaps": _by_gaps(vectors),
    }
    spent_s: dict[str, list[list[float]]] = {name: [] for name in turns}
    for _ in range(repeats + 1):
        for name, (turn, _) in turns.items():
            spent_s[name].append([after_s - before_s for before_s, after_s in pairwise(turn())])
    found = {}
    for name, (_, message_bytes) in turns.items():
        index_s, out_s, in_s = map(median, zip(*spent_s[name][1:], strict=True))
        messages = NEIGHBOURS if name == "seed" else 1
        found[name] = Exchange(messages * index_s, messages * out_s, NEIGHBOURS * in_s, message_bytes)
    return found


Turn = tuple[Callable[[], list[float]], int]
"""Exchanges with one neighbour, and tells the CPU time before, between and after the three stages; the bytes
of a message, on average."""


def _by_seed(vectors: list[Floats], share: int, an_epoch: int) -> Turn:
    own, other = vectors
    draw, model = Draw(0, 0, EDGE, share), own.copy()
    incoming, _ = sparse.outgoing(other, drawn(draw, len(other)), Form.FP32)

    def turn() -> list[float]:
        at_s = [time.process_time()]
        mask = drawn(draw, len(own))
        at_s.append(time.process_time())
        _, sent = sparse.outgoing(own, mask, Form.FP32)
        at_s.append(time.process_time())
        sparse.mix(model, [NeighbourValues(mask, WEIGHT, sent, sparse.decode(incoming, mask))])
        return [*at_s, time.process_time()]

    counts = [drawn(replace(draw, round=number), len(own)).count for number in range(an_epoch)]
    return turn, sparse.HEADER.size + 4 * round(mean(counts))


def _by_gaps(vectors: list[Floats]) -> Turn:
    own, other = vectors
    draw, model, size = Draw(0, 0, None, share_of(P), SINGLE), own.copy(), len(own)
    mask = drawn(draw, size)
    incoming = explicit.encode(mask.index, sparse.extract(other, mask), size, IndexForm.GAPS, Form.FP32)

    def turn() -> list[float]:
        at_s = [time.process_time()]
        mask = drawn(draw, size)
        at_s.append(time.process_time())
        explicit.encode(mask.index, sparse.extract(own, mask), size, IndexForm.GAPS, Form.FP32)
        at_s.append(time.process_time())
        index, values = explicit.decode(incoming, size)
        values = values - model[index]
        values *= np.float32(WEIGHT)
        np.add.at(model, index, values)
        return [*at_s, time.process_time()]

    return turn, len(incoming)


def airtime_s(message_bytes: float, link: str) -> float:
    """From the first bit of a message to all neighbours until they have it, in frames of the link."""
    profile = load_link(link)
    bits = 8 * on_link(round(message_bytes)) * LINKS[link]
    return bits / profile.rate_up_bps + profile.delay_s


def _table_1(model: ModelSize, found: Mapping[str, Exchange]) -> Iterator[Row]:
    """Bytes and seconds of one exchange with a neighbour at 2 MB/s."""
    dense = found["dense"]
    for name, exchange in found.items():
        what = f"{model.name}, {name}: a message"
        yield Row(what, on_link(exchange.message_bytes) / 1e6, "MB")
        yield Row("  on isl-2mbyte", airtime_s(exchange.message_bytes, "isl-2mbyte"), "s")
        if exchange is not dense:
            fewer = on_link(dense.message_bytes) / on_link(exchange.message_bytes)
            bound = LINEAR if name == "seed" else None
            yield Row("  dense takes", fewer, "times as many bytes", bound, at_least=True)


def _table_3(model: ModelSize, found: Mapping[str, Exchange]) -> Iterator[Row]:
    """Seconds of synchronization an epoch: CPU and link."""
    for link in (None, *LINKS):
        epoch_s = {name: synchronized_s(model, exchange, link) for name, exchange in found.items()}
        for name, spent_s in epoch_s.items():
            where = link or NO_LINK
            yield Row(f"{model.name}, {name}, {where}: synchronization an epoch", spent_s, "s")
        for name in ("seed", "gaps"):
            bound = CAPPED if (name, link, model) == ("seed", "cap-200m", RESNET_50) else None
            ratio = epoch_s["dense"] / epoch_s[name]
            yield Row(f"  dense over {name}", ratio, "times", bound, at_least=True)


def synchronized_s(model: ModelSize, exchange: Exchange, link: str | None) -> float:
    """An epoch's, of all that a node does for it. Without a link: CPU alone."""
    way_s = 0.0 if link is None else airtime_s(exchange.message_bytes, link)
    return model.exchanges * (exchange.cpu_s + way_s)


def _equation_19(model: ModelSize, found: Mapping[str, Exchange]) -> Iterator[Row]:
    """Its terms for a node's exchange with all neighbours, and the sides of it."""
    dense = found["dense"]
    yield Row(f"Equation 19, {model.name}: T_s, serialize", 1e3 * dense.out_s, "ms")
    yield Row("  T_d, deserialize and mix", 1e3 * dense.in_s, "ms")
    yield from (
        Row(f"  {link}: T_c, communicate", airtime_s(dense.message_bytes, link), "s") for link in LINKS
    )
    for name in ("seed", "gaps"):
        sides = {link: equation_19(dense, found[name], link) for link in (None, *LINKS)}
        terms_s, _ = sides[None]
        for what, term_s in terms_s.items():
            if what != "T_t":
                yield Row(f"  {name}: {what}", 1e3 * term_s, "ms")
        for link, (terms_s, spared_s) in sides.items():
            if link is not None:
                yield Row(f"  {name}, {link}: T_t, index on the link", terms_s["T_t"], "s")
            share = sum(terms_s.values()) / spared_s
            bound = None if link is None else 1.0
            yield Row(f"  {name}, {link or NO_LINK}: left side over right", share, "", bound)


def equation_19(dense: Exchange, its: Exchange, link: str | None) -> tuple[dict[str, float], float]:
    """The terms on its left, and its right side, in seconds."""
    all_s = 0.0 if link is None else airtime_s(dense.message_bytes, link)
    its_s = 0.0 if link is None else airtime_s(its.message_bytes, link)
    terms_s = {
        "T_i, index": its.index_s,
        "T_t": its_s - P * all_s,
        "T_e, extract beyond p T_s": its.out_s - P * dense.out_s,
        "T_x, expand beyond p T_d": its.in_s - P * dense.in_s,
    }
    return terms_s, (1 - P) * (dense.out_s + all_s + dense.in_s)


def _table_2(model: ModelSize, found: Mapping[str, Exchange], vectors: list[Floats]) -> Iterator[Row]:
    """An epoch of the paper's computing with our synchronization; and what its own optimization brought."""
    for name, exchange in found.items():
        epoch_s = COMPUTING_S + synchronized_s(model, exchange, "cap-200m")
        yield Row(f"{model.name}, {name}, cap-200m: an epoch, computing as in table 2", epoch_s, "s")
    bernoulli_s, loops_s = unoptimized_s(vectors)
    seed = found["seed"]
    faster = NEIGHBOURS * bernoulli_s / seed.index_s
    yield Row("  index: Bernoulli draws over ours", faster, "times", INDEX, at_least=True)
    faster = NEIGHBOURS * loops_s / (seed.out_s + seed.in_s)
    yield Row("  extract and expand: loops over ours", faster, "times", EXPAND, at_least=True)


def unoptimized_s(vectors: list[Floats]) -> tuple[float, float]:
    """CPU seconds of what table 2 has as not optimized, for one neighbour: a draw for every parameter; loops
    that extract, expand and mix."""
    own, other = vectors
    model, received = (
        own.copy(),
        sparse.extract(other, drawn(Draw(0, 0, EDGE, share_of(P), SINGLE), len(own))),
    )
    began_s = time.process_time()
    index = np.flatnonzero(np.random.default_rng(0).random(len(own), np.float32) < P)
    drawn_s = time.process_time()
    sent = [own[at] for at in index]
    for at, ours, theirs in zip(index, sent, received, strict=False):  # as many, within a thousandth
        model[at] += WEIGHT * (theirs - ours)
    return drawn_s - began_s, time.process_time() - drawn_s
