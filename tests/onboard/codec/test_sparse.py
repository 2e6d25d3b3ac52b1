"""Neighbours that draw the same mask mix by the algorithm, keep the mean, and refuse what is not of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.codec.layout import Floats
from onboard.codec.mask import ALL, RUN, Draw, drawn, share_of
from onboard.codec.sparse import (
    HEADER,
    BadExchange,
    NeighbourValues,
    decode,
    encode,
    extract,
    mix,
    outgoing,
    parse,
)
from onboard.codec.values import Form
from tests.onboard.codec.examples import VECTORS

NODES, SIZE = 8, 6000
MASK = drawn(Draw(73, 2, (3, 4), share_of(0.1), run=32), 200)  # one run, and the shorter last one
HEAD = encode(np.zeros(MASK.count, np.float32), MASK, Form.INT8)[: HEADER.size]
SHARES = st.sampled_from([200, 6554, ALL // 2, ALL])
RUNS = st.sampled_from([1, RUN, 2**16 - 1]) | st.integers(1, 300)
SIZES = st.integers(0, 200) | st.integers(0, SIZE)  # shorter than a run, too, and with a shorter last run


def models(seed: int, nodes: int = NODES, size: int = SIZE) -> Floats:
    return np.random.default_rng(seed).standard_normal((nodes, size), np.float32)


def ring_edges(nodes: int = NODES) -> list[tuple[int, int]]:
    return [(node, (node + 1) % nodes) for node in range(nodes)]


def gossip(x: Floats, edges: list[tuple[int, int]], share: int, form: Form, run: int = RUN) -> None:
    """One round of messages over the edges, all from the models before it, in place."""
    masks = {edge: drawn(Draw(9, 1, edge, share, run), x.shape[1]) for edge in edges}
    heard: list[list[NeighbourValues]] = [[] for _ in x]
    for edge, mask in masks.items():
        (to_other, sent_one), (to_one, sent_other) = (outgoing(x[node], mask, form) for node in edge)
        heard[edge[0]].append(NeighbourValues(mask, 1 / 3, sent_one, decode(to_one, mask)))
        heard[edge[1]].append(NeighbourValues(mask, 1 / 3, sent_other, decode(to_other, mask)))
    for model, answers in zip(x, heard, strict=True):
        mix(model, answers)


def by_definition(
    x: Floats, edges: list[tuple[int, int]], share: int, run: int = RUN
) -> npt.NDArray[np.float64]:
    """x_i + sum_j M_ij W_ij (x_j - x_i), in float64, without an index."""
    out = x.astype(np.float64)
    for one, other in edges:
        chosen = np.zeros(x.shape[1])
        chosen[drawn(Draw(9, 1, (one, other), share, run), x.shape[1]).index] = 1
        out[one] += chosen * (x[other].astype(np.float64) - x[one]) / 3
        out[other] += chosen * (x[one].astype(np.float64) - x[other]) / 3
    return out


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 99), SHARES, RUNS, SIZES)
def test_mixing_is_the_algorithms_from_the_models_before_it(
    seed: int, share: int, run: int, size: int
) -> None:
    x = models(seed, size=size)
    expected = by_definition(x, ring_edges(), share, run)
    gossip(x, ring_edges(), share, Form.FP32, run)
    assert np.abs(x - expected).max(initial=0) < 1e-6


@settings(deadline=None)
@given(st.integers(0, 99), SHARES, RUNS, SIZES, st.sampled_from(Form), st.sets(st.sampled_from(ring_edges())))
def test_the_mean_stays_in_any_form_and_with_edges_missing(
    seed: int, share: int, run: int, size: int, form: Form, edges: set[tuple[int, int]]
) -> None:
    x = models(seed, size=size)
    before = x.mean(axis=0, dtype=np.float64)
    gossip(x, sorted(edges), share, form, run)
    assert np.abs(x.mean(axis=0, dtype=np.float64) - before).max(initial=0) < 2e-7


def test_many_rounds_agree_on_the_mean() -> None:
    x = models(1)
    mean = x.mean(axis=0, dtype=np.float64)
    for number in range(300):
        masks = {edge: drawn(Draw(3, number, edge, ALL // 2), SIZE) for edge in ring_edges()}
        values = {(node, edge): extract(x[node], masks[edge]) for edge in masks for node in edge}
        for node in range(NODES):
            mix(
                x[node],
                [
                    NeighbourValues(mask, 1 / 3, values[node, edge], values[sum(edge) - node, edge])
                    for edge, mask in masks.items()
                    if node in edge
                ],
            )
    assert np.abs(x - mean).max() < 1e-5


def test_a_model_that_went_on_meanwhile_keeps_what_it_learned() -> None:
    x, step = models(2, 2), models(3, 1)[0]
    sent = [extract(model, mask) for model in x for mask in [drawn(Draw(9, 1, (0, 1), 6554), SIZE)]]
    expected = by_definition(x, [(0, 1)], 6554)[0] + step
    x[0] += step
    mix(x[0], [NeighbourValues(drawn(Draw(9, 1, (0, 1), 6554), SIZE), 1 / 3, sent[0], sent[1])])
    assert np.abs(x[0] - expected).max() < 1e-6


@pytest.mark.parametrize("run", [1, 4, RUN])
def test_several_blocks_and_neighbours(run: int) -> None:
    x = models(4, 3, 700_001)
    edges = [(0, 1), (1, 2), (0, 2)]
    expected = by_definition(x, edges, ALL // 2, run)
    gossip(x, edges, ALL // 2, Form.FP32, run)
    assert np.abs(x - expected).max() < 1e-6


@settings(deadline=None)
@given(st.integers(0, 99), SHARES, RUNS, st.sampled_from(Form), SIZES)
def test_an_exchange_is_its_values_and_20_bytes(
    seed: int, share: int, run: int, form: Form, size: int
) -> None:
    mask = drawn(Draw(seed, 3, None, share, run), size)
    x = models(seed, 1, size)[0]
    values = extract(x, mask)
    assert values.tolist() == x[mask.index].tolist()
    data = encode(values, mask, form)
    message, sent = outgoing(x, mask, form)
    assert bytes(message) == data
    assert sent.tolist() == decode(data, mask).tolist()
    assert (parse(data).form, parse(data).share, parse(data).round) == (form, share, 3)
    assert decode(data, mask) == pytest.approx(values, abs={Form.FP32: 0, Form.ALQ: 4}.get(form, 0.02))
    per_value = {Form.FP32: 4, Form.FP16: 2, Form.INT8: 1}.get(form)
    if per_value is not None:
        scales = -(-mask.count // 256) if form is Form.INT8 else 0
        assert len(data) == 20 + per_value * mask.count + 4 * scales


@pytest.mark.parametrize("form", list(Form))
def test_values_that_are_not_finite_are_refused_where_they_would_travel(form: Form) -> None:
    x = models(6, 1)[0]
    mask = drawn(Draw(9, 1, (0, 1), 6554), SIZE)
    left = np.setdiff1d(np.arange(SIZE), mask.index)
    x[left] = np.nan
    message, sent = outgoing(x, mask, form)
    assert sent.tolist() == decode(message, mask).tolist()
    for at in mask.index[[0, mask.count // 2, -1]]:
        for bad in (np.nan, np.inf, -np.inf):
            spoilt = x.copy()
            spoilt[at] = bad
            with pytest.raises(ValueError, match="not finite"):
                outgoing(spoilt, mask, form)


def test_golden_bytes() -> None:
    values = np.linspace(-1, 1, MASK.count, dtype=np.float32)
    for form in Form:
        golden = (VECTORS / f"sparse-{form.name.lower()}.bin").read_bytes()
        assert encode(values, MASK, form) == golden
        assert decode(golden, MASK) == pytest.approx(values, abs=0 if form is Form.FP32 else 0.3)
    page = (Path(__file__).parents[3] / "docs" / "gossip.md").read_text(encoding="utf-8")
    assert (VECTORS / "sparse-int8.bin").read_bytes().hex() in page.replace("\n", "")


@pytest.mark.parametrize(
    "draw",
    [Draw(2, 2, (3, 4), 6554, 32), Draw(73, 3, (3, 4), 6554, 32), Draw(73, 2, (3, 5), 6554, 32),
     Draw(73, 2, None, 6554, 32), Draw(73, 2, (3, 4), 6555, 32), Draw(73, 2, (3, 4), 6554, 1),
     Draw(73, 2, (3, 4), 6554)],
)  # fmt: skip
def test_a_neighbour_with_another_seed_round_edge_share_or_run_is_refused(draw: Draw) -> None:
    theirs = drawn(draw, MASK.size)
    data = encode(np.zeros(theirs.count, np.float32), theirs, Form.FP32)
    with pytest.raises(BadExchange, match=rf"another mask \(.*\): .*round={draw.round}"):
        decode(data, MASK)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from([b"", HEAD, HEAD[:1] + b"\0" + HEAD[2:]]))
def test_any_bytes_are_values_or_bad(data: bytes, head: bytes) -> None:
    try:
        values = decode(head + data, MASK)
    except BadExchange:
        return
    assert values.shape == (MASK.count,)
    assert np.isfinite(values).all()


@given(st.sampled_from(Form), st.data())
def test_a_part_or_more_than_all_is_bad(form: Form, data: st.DataObject) -> None:
    whole = encode(np.ones(MASK.count, np.float32), MASK, form)
    for bad in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"\0"):
        with pytest.raises(BadExchange):
            decode(bad, MASK)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(0, 1, "version 1, known is 2"), (1, 9, "form 9"), (8, 1, "another mask"), (16, 1, "another mask")],
)
def test_a_header_that_says_otherwise_is_bad(at: int, value: int, said: str) -> None:
    data = bytearray(encode(np.zeros(MASK.count, np.float32), MASK, Form.FP32))
    data[at] = value
    with pytest.raises(BadExchange, match=said):
        decode(bytes(data), MASK)


def test_claims_cost_nothing() -> None:
    data = bytearray(encode(np.zeros(MASK.count, np.float32), MASK, Form.FP32))
    data[12:16] = b"\xff" * 4
    tracemalloc.start()
    try:
        with pytest.raises(BadExchange, match=f"count={2**32 - 1}"):
            decode(bytes(data), MASK)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


def test_lengths_that_do_not_fit_are_refused_and_change_nothing() -> None:
    x = models(5, 1, MASK.size)[0]
    before = x.copy()
    right, wrong = np.zeros(MASK.count, np.float32), np.zeros(MASK.count + 1, np.float32)
    good = NeighbourValues(MASK, 0.5, right, right + 1)
    for bad in (NeighbourValues(MASK, 0.5, right, wrong), NeighbourValues(MASK, 0.5, wrong, right)):
        with pytest.raises(ValueError, match=r"values (sent|received): float32"):
            mix(x, [good, bad])
    with pytest.raises(ValueError, match="vector: float64"):
        mix(x.astype(np.float64), [good])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        mix(np.zeros(2 * MASK.size, np.float32)[::2], [good])
    with pytest.raises(ValueError, match="vector"):
        extract(x[1:], MASK)
    with pytest.raises(ValueError, match="values"):
        encode(wrong, MASK, Form.FP32)
    assert x.tolist() == before.tolist()
