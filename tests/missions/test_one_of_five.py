"""One board of five sends what it likes, under its own key, through its own agent: it decides nothing."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

import tests.missions.clockwork
from onboard.codec import alq
from onboard.codec.layout import Floats
from onboard.codec.pack import pack, unpack
from onboard.learn.federated.clipping import norm
from onboard.mission.objects import decode_update
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Job, Report, TrainingDone
from tests.missions.clockwork import TRAIN, Clockwork

HOSTILE = 3
DRAW = np.random.default_rng(3)


def hostile(change: Callable[[Floats], Floats], samples: int) -> type[LocalTrainer]:
    """Trainers of which the hostile board's lies about what came of it."""

    class HostileTrainer(LocalTrainer):
        def begin(self, job: Job) -> None:
            self.node = job.node
            super().begin(job)

        def reports(self) -> list[Report]:
            return [self._told(report) for report in super().reports()]

        def _told(self, report: Report) -> Report:
            if not isinstance(report, TrainingDone) or self.node != HOSTILE:
                return report
            move = unpack(report.packed, TRAIN.layout).reconstruct()
            move = {name: change(values) for name, values in move.items()}
            widths = alq.allocate(TRAIN.layout, move, bits_per_weight=0.05, max_bases=8)
            packed = pack(alq.quantize(TRAIN.layout, move, widths))
            return msgspec.structs.replace(report, packed=packed, samples=samples or report.samples)

    return HostileTrainer


@pytest.mark.parametrize(
    ("change", "samples", "told"),
    [
        (lambda values: np.float32(-10) * values, 2**32 - 1, {"norm", "samples", "cosine"}),
        (lambda values: -values, 0, {"cosine"}),
        (lambda values: np.float32(1000) * values, 0, {"norm"}),
        (lambda values: 0 * values, 2**32 - 1, {"samples", "cosine"}),
        (lambda values: DRAW.standard_normal(values.shape).astype(np.float32), 0, {"norm", "cosine"}),
    ],
)
def test_the_model_is_the_others(
    clockwork: Callable[..., Clockwork], monkeypatch: pytest.MonkeyPatch, change: Callable[[Floats], Floats],
    samples: int, told: set[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(tests.missions.clockwork, "LocalTrainer", hostile(change, samples))
    mission = clockwork(boards=5, select=5, quorum=5, rounds=1)
    mission.boot()
    mission.run(lambda: mission.over)
    packed = mission.store.model(1)
    assert packed is not None
    model = unpack(packed, TRAIN.layout).reconstruct()
    updates = {}
    for node in mission.boards:
        payload = mission.store.payload(1, node)
        assert payload is not None
        updates[node] = unpack(decode_update(payload)[1], TRAIN.layout).reconstruct()
    others = [updates[node] for node in updates if node != HOSTILE]
    mean = {name: sum(move[name] for move in others) / len(others) for name in model}
    along = sum(float((model[name] * mean[name]).sum()) for name in model) / (norm(model) * norm(mean))
    assert along > 0.5  # it goes where the others go, but for what its bits lose
    assert norm(model) < 1.5 * norm(mean)
    outliers = mission.said("outlier")
    assert {outlier["node"] for outlier in outliers} == {f"board-{HOSTILE}"}
    assert {"norm", "samples", "cosine"} & {key for outlier in outliers for key in outlier} == told
