"""A codec is one class and one row, and a training method one more row: a toy travels in a real mission."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from onboard.codec import formats
from onboard.codec.layout import Floats, Layout, Weights
from onboard.codec.model import PREFIX, BadPack, Budget
from onboard.codec.pack import CODECS, account, pack, unpack
from onboard.learn.training import METHODS, Training, TrainingMethod, TrainingPhase
from onboard.mission.objects import decode_task, decode_update
from tests.missions.clockwork import TRAIN, Clockwork
from tests.onboard.codec.examples import SMALL, quantize_average, weights

FORMAT = 200
STEP = struct.Struct("<f")


@dataclass(frozen=True, eq=False)
class Int8Model:
    """All weights on one grid of 255 values."""

    format: ClassVar[int] = FORMAT
    mean_width: ClassVar[float] = 8.0

    layout: Layout
    codes: npt.NDArray[np.int8]
    step: float

    def reconstruct(self) -> dict[str, Floats]:
        vector, at, tensors = self.codes * np.float32(self.step), 0, {}
        for tensor in self.layout.tensors:
            tensors[tensor.name] = vector[at : at + tensor.size].reshape(tensor.shape)
            at += tensor.size
        return tensors


class Int8Codec:
    """See `Codec`."""

    name = "int8"

    def quantize(self, layout: Layout, weights: Weights, budget: Budget) -> Int8Model:
        vector = np.concatenate([weights[t.name].ravel() for t in layout.tensors])
        step = float(np.float32(np.abs(vector).max() / 127))
        return Int8Model(layout, np.rint(vector / (step or 1.0)).astype(np.int8), step)

    def check(self, model: Int8Model, budget: Budget) -> None:
        """Its size is given."""

    def sections(self, model: Int8Model) -> dict[str, bytes]:
        head = PREFIX.pack(FORMAT, model.layout.digest) + STEP.pack(model.step)
        return {"header": head, "codes": model.codes.tobytes()}

    def unpack(self, data: bytes, layout: Layout) -> Int8Model:
        if len(data) != PREFIX.size + STEP.size + layout.parameters:
            raise ValueError(f"{len(data)} bytes")
        (step,) = STEP.unpack_from(data, PREFIX.size)
        return Int8Model(layout, np.frombuffer(data, np.int8, -1, PREFIX.size + STEP.size), step)


@pytest.fixture
def _int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, FORMAT, Int8Codec())
    method = TrainingMethod(phases=lambda knobs, number: (TrainingPhase.PLAIN,) * knobs.epochs, format=FORMAT)
    monkeypatch.setitem(METHODS, "int8", method)


@pytest.mark.usefixtures("_int8")
def test_a_toy_codec_carries_a_mission_both_ways(clockwork: Callable[..., Clockwork]) -> None:
    on = clockwork(method='"int8"', learning_rate=1e-3)
    on.boot()
    on.run(lambda: on.states(2).get(1) == "answered")
    board = on.boards[1].state
    _, down = decode_task((board / "model.bin").read_bytes())
    _, up = decode_update((board / "update.bin").read_bytes())
    for packed in (down, up):
        model = unpack(packed, TRAIN.layout)
        assert isinstance(model, Int8Model)
        assert np.abs(model.codes).max() == 127
        assert len(packed) == pytest.approx(TRAIN.layout.parameters, abs=20)
    on.run(lambda: on.over)


@pytest.mark.usefixtures("_int8")
def test_a_toy_codecs_bytes_are_accounted_for_and_hostile_ones_are_bad() -> None:
    model = CODECS[FORMAT].quantize(SMALL, weights(SMALL, 1), Budget(1.0, 1))
    data = pack(model)
    assert sum(account(model).values()) == len(data)
    back = unpack(data, SMALL).reconstruct()
    assert all(np.array_equal(back[name], values) for name, values in model.reconstruct().items())
    with pytest.raises(BadPack):
        unpack(data[:-1], SMALL)


def test_without_their_rows_there_is_no_such_format_and_no_such_method() -> None:
    with pytest.raises(BadPack, match="format 200, known are 1, 2"):
        unpack(PREFIX.pack(FORMAT, SMALL.digest), SMALL)
    with pytest.raises(ValueError, match="method: must be one of fedavg,"):
        Training(method="int8")


def test_the_tables_of_codecs_and_methods_are_complete() -> None:
    named = {name: value for name, value in vars(formats).items() if name.isupper()}
    assert set(CODECS) == set(named.values()) == {1, 2}
    assert {method.format for method in METHODS.values()} == set(CODECS)
    assert list(METHODS) == ["fedavg", "fedavg-zstd", "spacedml", "spacedml-fast"]
    packed = quantize_average(SMALL, weights(SMALL, 1), 1.0)
    for number, codec in CODECS.items():
        model = codec.quantize(SMALL, packed.reconstruct(), Budget(1.0, 4))
        assert model.format == number == pack(model)[0]
        codec.check(unpack(pack(model), SMALL), Budget(1.0, 4))
