"""What a mission of five boards learns where one of them sends what its training did not make.

Rounds without links (LeNet-5 on the digits, in five equal parts): what a board sends is opened, checked and
averaged by the ground's own code (`onboard.mission`: `server` and `averaging`). All five answer each round,
the hostile one too; a refused update counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np

from benchmarks.harness.missions import graphs
from firmware_sim.runs.run import iid
from onboard.codec import alq
from onboard.codec.dense import Dense
from onboard.codec.layout import Floats, Layout
from onboard.codec.pack import pack, unpack
from onboard.data import loading
from onboard.data.images import Images
from onboard.learn.scoring import evaluate
from onboard.learn.training import Training
from onboard.mission.objects import UPDATE, Update, encode_object
from onboard.mission.server import BadUpdate, MissionTerms, Server, averaged
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Failed, Job, TrainingDone

BOARDS, ROUNDS = 5, 8
MOST = 2**32 - 1
MISSION = b"mission1"
Weights = dict[str, Floats]
Evil = Callable[[Weights, np.random.Generator, Weights], Weights]
"""From what the board's training moved, and what another board sends, to what it sends."""


def _noise(move: Weights, draw: np.random.Generator, other: Weights) -> Weights:
    return {name: draw.standard_normal(values.shape).astype(np.float32) for name, values in move.items()}


def _turned(times: float) -> Evil:
    return lambda move, draw, other: {name: np.float32(-times) * values for name, values in move.items()}


def _times(times: float) -> Evil:
    return lambda move, draw, other: {name: np.float32(times) * values for name, values in move.items()}


def _one_weight(move: Weights, draw: np.random.Generator, other: Weights) -> Weights:
    """All of its length in one layer's biases."""
    last = list(move)[-1]
    return {name: values * 0 + np.float32(1000 * (name == last)) for name, values in move.items()}


KINDS: Mapping[
    str, tuple[Evil, int, bool]
] = {  # what it sends, of how many samples, with labels one too high
    "its update turned, ten times, of 2^32-1 samples": (_turned(10), MOST, False),
    "its update turned": (_turned(1), 0, False),
    "ten times its update": (_times(10), 0, False),
    "noise a thousand times too long, of 2^32-1 samples": (_noise, MOST, False),
    "zeros, of 2^32-1 samples": (_times(0), MOST, False),
    "another board's update, of 2^32-1 samples": (lambda move, draw, other: other, MOST, False),
    "a thousand in each of the last biases": (_one_weight, MOST, False),
    "weights of 1e20": (_times(1e20), 0, False),
    "what it learned of labels one too high": (_times(1), MOST, True),
}


def accuracy(kind: str, seed: int, *, rounds: int = ROUNDS, images: int | None = None) -> float:
    """Of the last model, 0 to 1; `kind` "" for a mission of honest boards. `images` a board, at most."""
    train, infer = graphs()
    whole, test = loading.load("digits", part="train"), loading.load("digits", part="test")
    shares = [whole.take(rows) for rows in iid(whole.y, BOARDS, images or len(whole), seed)]
    evil, samples, shifted = KINDS.get(kind, (None, 0, False))
    if shifted:
        shares[0] = Images(shares[0].x, (shares[0].y + 1) % 10, shares[0].classes, shares[0].named)
    server = Server(
        MissionTerms(
            id=MISSION,
            seed=seed,
            deadline_s=900.0,
            classes=test.classes,
            training=Training(bits_up=0.1 if images else 0.05),
        ),
        train,
    )
    draw, packed = np.random.default_rng(seed), b""
    for number in range(1, rounds + 1):
        model, updates = server.model(number, packed), {}
        moves = {n: _trained(share, model, n) for n, share in enumerate(shares, start=1)}
        for node, sent in moves.items():
            count = len(shares[node - 1])
            if node == 1 and evil is not None:
                sent = _packed(evil, sent, moves[2], train.layout, draw)
                count = samples or count
            header = Update(
                mission=MISSION, round=number, node=node, samples=count, loss=1.0, cpu_s=0.0, energy_j=0.0,
                train_s=0.0,
            )  # fmt: skip
            payload = encode_object(header, sent)
            with suppress(BadUpdate):  # as the ground refuses it
                server.open(UPDATE, payload, node, number)
                updates[node] = payload
        packed = averaged(server, number, packed, updates)
    *_, score = evaluate(infer, server.weights(packed), test.x, test.y)
    return score.value


def _packed(evil: Evil, own: bytes, other: bytes, layout: Layout, draw: np.random.Generator) -> bytes:
    """In the form that is asked for, as long as that holds it."""
    move, others = (unpack(sent, layout).reconstruct() for sent in (own, other))
    if (sent := evil(move, draw, others)) is others:
        return other
    with np.errstate(over="ignore"):
        if max(float(np.abs(values).max(initial=0)) for values in sent.values()) > 1e4:
            return pack(Dense(layout, sent))
    widths = alq.allocate(layout, sent, bits_per_weight=0.05, max_bases=8)
    return pack(alq.quantize(layout, sent, widths))


def _trained(images: Images, model: bytes, node: int) -> bytes:
    trainer = LocalTrainer(images, lambda name: graphs()[0])
    trainer.begin(Job(model=model, node=node))
    while True:
        (report,) = trainer.reports()
        assert not isinstance(report, Failed), report
        if isinstance(report, TrainingDone):
            return report.packed
        trainer.step()
