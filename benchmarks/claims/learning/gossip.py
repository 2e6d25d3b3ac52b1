"""A sparse exchange of a ResNet-50 costs at most four dense copies of it at p = 0.1, and no byte of index.

Time (RD-PSGD, tables 2 and 4), beside one dense copy of the 25,557,032 float32 parameters: drawing the mask;
extracting its values as a new message, with its memory, header and a look for NaN; taking a message and
mixing it in. And beside Top-K's selection of as many (magnitudes, then numpy's argpartition or torch's topk),
without and with what table 4 has too: its index in order, and the values. Masks are those that agents draw,
of runs; the same stages with masks of single coordinates, which the paper has, stand beside them and promise
nothing. Copy and stages take turns on one core; CPU time, medians.

Bytes (figure 6): a whole exchange in fp32, in the frames of the link `isl-2mbyte`, for p from 0.01 to 1: with
a shared seed; dense; and, of single coordinates, with the paper's 8-bit gaps and with a bitmap. A crossover
is where a form takes as many bytes as dense, on the line between two p that were measured.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import click
import numpy as np
import numpy.typing as npt

from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from hw_profiles import load_link
from onboard.codec import explicit, sparse
from onboard.codec.explicit import IndexForm
from onboard.codec.layout import Floats
from onboard.codec.mask import RUN, Draw, drawn, share_of
from onboard.codec.sparse import NeighbourValues
from onboard.codec.values import Form
from onboard.wire.framing.frame import OVERHEAD_BYTES

PARAMETERS = 25_557_032  # ResNet-50 with 1000 classes
COPIES, TOP_K_TIMES = 4.0, 10.0
BESIDE_BYTES = 64  # beside the values and the link's frames
TIMED = (0.1, 0.5)  # as in table 4
BYTES_AT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.79, 0.81, 0.9, 0.96, 0.98, 1.0)
REPEATS, TOP_K_REPEATS = 31, 5
COPY, INDEX, EXTRACT, MIX = STAGES = ("a dense copy", "index", "extract", "expand and mix")
WHOLE = "index, extract, expand and mix"
SINGLE = 1  # the run of the paper's masks
EDGE, WEIGHT = (0, 1), 1 / 3
LINK = "isl-2mbyte"
SEED_CROSSOVER = 0.999
FORMS = {"seed": "shared seed", "gaps": "8-bit gaps", "bitmap": "bitmap"}

OPTIONS = (
    click.Option(
        ["--plot"], type=click.Path(dir_okay=False, path_type=Path), help="Draws figure 6 into this PNG."
    ),
    click.Option(["--repeats"], type=click.IntRange(1, 1000), default=REPEATS, help="Turns to time."),
)


@dataclass(frozen=True, slots=True)
class Bytes:
    """An exchange's bytes on the link by the form of its index, and those beside the values with a seed."""

    seed: int
    gaps: int
    bitmap: int
    beside_values: int


def measure(
    tell: ProgressLine, *, plot: Path | None, repeats: int, parameters: int = PARAMETERS
) -> list[Row]:
    """Times, then counts bytes; takes a minute and a half."""
    vectors = [np.random.default_rng(seed).standard_normal(parameters, np.float32) for seed in (0, 1)]
    rows = []
    for p in TIMED:
        tell(f"timing an exchange at p = {p:g}")
        rows += _times(vectors, p, repeats)
    sizes = {}
    for p in BYTES_AT:
        tell(f"counting bytes at p = {p:g}")
        sizes[p] = bytes_at(vectors[0], p)
    dense = on_link(4 * parameters)
    rows += _bytes_rows(sizes, dense)
    if plot is not None:
        draw(sizes, dense, plot)
    return rows


def _times(vectors: list[Floats], p: float, repeats: int) -> list[Row]:
    spent_s = stages(vectors, p, RUN, repeats)
    rows = _stage_rows(f"p = {p:g}: {WHOLE}", spent_s, COPIES if p == 0.1 else None)
    sent_s, whole_s = (median(_sums(spent_s, *names)) for names in ((INDEX, EXTRACT), STAGES[1:]))
    for name, select in selections(vectors[0], round(p * len(vectors[0]))).items():
        top_k_s, extracted_s = top_k(vectors[0], select)
        times = top_k_s / sent_s
        rows += [
            Row(f"  Top-K's selection by {name}", 1e3 * top_k_s, "ms"),
            Row("    is slower than index and extract", times, "times", TOP_K_TIMES, at_least=True),
            Row("    with its index in order, and the values", extracted_s / sent_s, "times"),
            Row("    is slower than all of it", top_k_s / whole_s, "times"),
        ]
    single_s = stages(vectors, p, SINGLE, repeats)
    return [
        *rows,
        *_stage_rows(f"p = {p:g}, of single coordinates, as in the paper: {WHOLE}", single_s, None),
    ]


def _stage_rows(what: str, spent_s: Mapping[str, list[float]], bound: float | None) -> list[Row]:
    whole_s, copies_s = _sums(spent_s, *STAGES[1:]), spent_s[COPY]
    return [
        Row(what, _ratio(whole_s, copies_s), "dense copies", bound),
        *(Row(f"  {name}", _ratio(spent_s[name], copies_s), "dense copies") for name in STAGES[1:]),
        Row("  all of it", 1e3 * median(whole_s), "ms"),
        Row("  a dense copy", 1e3 * median(copies_s), "ms"),
    ]


def _sums(spent_s: Mapping[str, list[float]], *names: str) -> list[float]:
    return [sum(turn) for turn in zip(*(spent_s[name] for name in names), strict=True)]


def stages(vectors: list[Floats], p: float, run: int, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of a copy and of each stage, by turns; a first turn, which warms up, is left out."""
    own, other = vectors
    draw, copy, model = Draw(0, 0, EDGE, share_of(p), run), np.empty_like(own), own.copy()
    mask = drawn(draw, len(own))
    message, _ = sparse.outgoing(other, mask, Form.FP32)
    turns = []
    for _ in range(repeats + 1):
        at_s = [time.process_time()]
        np.copyto(copy, own)
        at_s.append(time.process_time())
        mask = drawn(draw, len(own))
        at_s.append(time.process_time())
        _, sent = sparse.outgoing(own, mask, Form.FP32)
        at_s.append(time.process_time())
        sparse.mix(model, [NeighbourValues(mask, WEIGHT, sent, sparse.decode(message, mask))])
        at_s.append(time.process_time())
        turns.append([after_s - before_s for before_s, after_s in pairwise(at_s)])
    return dict(zip(STAGES, map(list, zip(*turns[1:], strict=True)), strict=True))


def selections(vector: Floats, count: int) -> dict[str, Callable[[], npt.NDArray[np.intp]]]:
    """Top-K's choice of the largest magnitudes, as indices, by each library that is installed."""
    rest = len(vector) - count
    by: dict[str, Callable[[], npt.NDArray[np.intp]]] = {
        "numpy": lambda: np.argpartition(np.abs(vector), rest)[rest:]
    }
    if importlib.util.find_spec("torch") is not None:
        import torch  # seconds, and gigabytes of disk: of the author extra

        torch.set_num_threads(1)
        tensor = torch.from_numpy(vector)
        by["torch"] = lambda: np.asarray(torch.topk(tensor.abs(), count, sorted=False).indices)
    return by


def top_k(vector: Floats, select: Callable[[], npt.NDArray[np.intp]]) -> tuple[float, float]:
    """Median CPU seconds of the selection, and of selection, order and values."""
    turns = []
    for _ in range(TOP_K_REPEATS):
        before_s = time.process_time()
        index = select()
        selected_s = time.process_time()
        vector[np.sort(index)]
        turns.append((selected_s - before_s, time.process_time() - before_s))
    selected_s, extracted_s = map(median, zip(*turns, strict=True))
    return selected_s, extracted_s


def bytes_at(vector: Floats, p: float) -> Bytes:
    """The bytes of a whole exchange in fp32, counted on the messages themselves."""
    mask, single = (drawn(Draw(0, 0, EDGE, share_of(p), run), len(vector)) for run in (RUN, SINGLE))
    message, _ = sparse.outgoing(vector, mask, Form.FP32)
    index, values = single.index, sparse.extract(vector, single)
    gaps, bitmap = (len(explicit.encode(index, values, len(vector), form, Form.FP32)) for form in IndexForm)
    return Bytes(on_link(len(message)), on_link(gaps), on_link(bitmap), len(message) - 4 * mask.count)


def on_link(message_bytes: int) -> int:
    """Bytes of all its frames: a header and a tag for every fragment that fits the link's frame."""
    fragment_bytes = load_link(LINK).mtu_bytes - OVERHEAD_BYTES
    return message_bytes + OVERHEAD_BYTES * -(-message_bytes // fragment_bytes)


def _bytes_rows(sizes: Mapping[float, Bytes], dense: int) -> list[Row]:
    rows = [Row("a dense exchange, with its frames", dense / 1e6, "MB")]
    for p, size in sizes.items():
        rows.append(Row(f"p = {p:g}: with a seed", size.seed / 1e6, "MB"))
        rows.append(Row("  with gaps", size.gaps / 1e6, "MB"))
        rows.append(Row("  with a bitmap", size.bitmap / 1e6, "MB"))
    most = max(size.beside_values for size in sizes.values())
    rows.append(Row("most bytes beside values and frames", most, "bytes", BESIDE_BYTES))
    for name in FORMS:
        at = crossover({p: getattr(size, name) for p, size in sizes.items()}, dense)
        bound = SEED_CROSSOVER if name == "seed" else None
        rows.append(Row(f"crossover with dense, {name}", at, "p", bound, at_least=True))
    return rows


def crossover(size_at: Mapping[float, int], dense: int) -> float:
    """The p at which a form is as large as dense: on the line between two that were measured."""
    for (p, size), (next_p, next_size) in pairwise(size_at.items()):
        if next_size >= dense:
            return p + (next_p - p) * (dense - size) / (next_size - size)
    return 1.0


def draw(sizes: Mapping[float, Bytes], dense: int, path: Path) -> None:
    """Figure 6 as a PNG: bytes of an exchange against p."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(dense / 1e6, color="black", linestyle="--", label="dense")
    for name, label in FORMS.items():
        axes.plot(
            list(sizes), [getattr(size, name) / 1e6 for size in sizes.values()], marker=".", label=label
        )
    axes.set(
        xlabel="p", ylabel="MB of an exchange, frames included", xlim=(0, 1), ylim=(0, None),
        title="ResNet-50, fp32 values",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _ratio(times_s: list[float], copies_s: list[float]) -> float:
    return median(spent_s / copy_s for spent_s, copy_s in zip(times_s, copies_s, strict=True))
