"""A ring that is stopped after each epoch and goes on from its disks learns what it would have learned."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from firmware_sim.ring.result import EpochResult
from firmware_sim.ring.settings import GroundNode, RingSettings
from firmware_sim.ring.simulation import TOTALS, Ring
from firmware_sim.world.disk import scratch
from hw_profiles import load_board, load_link
from onboard.codec.values import Form
from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.training import Recipe
from tests.line import write_line

NODES, EPOCHS = 4, 3
# A network of one layer, on a board and a link that are slower as it is smaller than LeNet-5.
BOARD = load_board("raspberry-pi-4")
BOARD = replace(BOARD, train_flops=BOARD.train_flops * 7_840 / 2_293_000)
LINK = replace(load_link("isl-2mbyte"), rate_up_bps=16e6 / 55, rate_down_bps=16e6 / 55, mtu_bytes=1_500)
Parts = tuple[list[Images], Images, TrainGraph, InferGraph]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("line")
    write_line(folder)
    images = loading.load("digits", part="train")
    shares = [images.take(np.arange(30 * n, 30 * (n + 1))) for n in range(NODES)]
    test = loading.load("digits", part="test", rows=20)
    return shares, test, TrainGraph.load(folder), InferGraph.load(folder)


@pytest.fixture(scope="module")
def unlike(digits: Parts) -> Parts:
    """With shares of several sizes: nodes do not come to an epoch's end together."""
    shares, *others = digits
    return [share.take(np.arange(8 + 7 * n)) for n, share in enumerate(shares)], *others


def settings(**changes: Any) -> RingSettings:
    base: dict[str, Any] = {
        "nodes": NODES, "epochs": EPOCHS, "link": LINK, "board": BOARD,
        "recipe": Recipe(batch_size=8, learning_rate=0.02, drops=(2,), weight_decay=1e-4, shift_pixels=1),
    }  # fmt: skip
    return RingSettings(**base | changes)


def at_once(asked: RingSettings, parts: Parts) -> list[EpochResult]:
    with scratch() as disks:
        return [seen for seen in Ring(asked, *parts, disks).play() if isinstance(seen, EpochResult)]


def in_lives(asked: RingSettings, parts: Parts) -> list[EpochResult]:
    """An epoch a life: only what was on the disks outlives it."""
    results: list[EpochResult] = []
    with scratch() as folder:
        disks = folder / "0"
        disks.mkdir()
        while len(results) < asked.epochs:
            results.append(
                next(seen for seen in Ring(asked, *parts, disks).play() if isinstance(seen, EpochResult))
            )
            shutil.copytree(disks, disks := folder / str(len(results)))
    return results


@st.composite
def asked_for(draw: st.DrawFn) -> RingSettings:
    """Gossip with whatever can befall it, or a method that waits for all its neighbours."""
    delay_s, rate_bps = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from([2e6 / 55, 16e6 / 55]))
    common: dict[str, Any] = {
        "every": draw(st.integers(1, 3)),
        "sparsity": draw(st.sampled_from([0.01, 0.2])),
        "shape": draw(st.sampled_from(["ring", "star"])),
        "link": replace(LINK, delay_s=delay_s, rate_up_bps=rate_bps),
        "seed": draw(st.integers(0, 3)),
    }
    if draw(st.booleans()):
        return settings(**common, method=draw(st.sampled_from(["topk", "choco"])), rate=0.1)
    rise_s, set_s, again_s = sorted(draw(st.lists(st.floats(0, 4), min_size=3, max_size=3)))
    passes = {1: ((rise_s, set_s), (again_s, 99.0)), 3: ((set_s, 99.0),)}
    return settings(
        **common,
        method=draw(st.sampled_from(["rd-psgd", "d-psgd"])),
        values=draw(st.sampled_from(Form)),
        patience_s=draw(st.sampled_from([0.1, 60.0])),
        dead=draw(st.sampled_from([{}, {3: 0.6}])),
        cuts=draw(st.sampled_from([{}, {(1, 2): (0.1, 1.0)}])),
        ground=draw(st.sampled_from([None, GroundNode(load_link("sband-2m"), passes)])),
    )


@hypothesis_settings(max_examples=8, deadline=None)
@given(asked=asked_for())
def test_it_goes_on_to_the_bit(digits: Parts, unlike: Parts, asked: RingSettings) -> None:
    parts = digits if asked.method in ("topk", "choco") else unlike  # these wait for all neighbours
    assert in_lives(asked, parts) == at_once(asked, parts)


def test_what_is_no_state_is_refused(digits: Parts, tmp_path: Path) -> None:
    (tmp_path / TOTALS).write_bytes(b"{")
    with pytest.raises(msgspec.DecodeError):
        Ring(settings(), *digits, tmp_path)
