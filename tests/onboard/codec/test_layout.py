"""Groups of a tensor: by kernel, pixel, channel and sub-channel, from shapes alone, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec.layout import MIN_GROUP, Grouping, Tensor, from_groups, group_length, in_groups, layout
from tests.onboard.codec.examples import LENET5, SHAPES

GROUPINGS: list[Grouping] = ["kernel", "pixel", "channel", "subchannel"]


@pytest.mark.parametrize(
    ("shape", "kernel", "pixel", "channel", "subchannel"),
    [
        ((), 0, 0, 0, 0),
        ((10,), 0, 0, 0, 0),
        ((10, 7), 0, 0, 0, 0),  # a coordinate would cost more than the basis
        ((0, 64), 0, 0, 0, 0),
        ((10, 800), 400, 400, 800, 400),
        ((10, 1021), 1021, 1021, 1021, 1021),  # prime: no equal parts
        ((10, 1022), 511, 511, 1022, 511),
        ((50, 20, 5, 5), 25, 20, 500, 500),
        ((64, 32, 3, 3), 9, 32, 288, 288),
        ((64, 128, 3, 3), 9, 128, 1152, 384),
        ((64, 64, 1, 1), 64, 64, 64, 64),  # pointwise: as dense
        ((20, 1, 5, 5), 25, 25, 25, 25),
        ((8, 4, 16), 16, 64, 64, 64),
    ],
)
def test_group_rule(shape: tuple[int, ...], kernel: int, pixel: int, channel: int, subchannel: int) -> None:
    assert [group_length(shape, by) for by in GROUPINGS] == [kernel, pixel, channel, subchannel]
    assert group_length(shape) == kernel


@given(SHAPES, st.sampled_from(GROUPINGS))
def test_groups_tile_their_tensors_and_come_back(shapes: list[tuple[int, ...]], by: Grouping) -> None:
    model = layout({f"t{i}": shape for i, shape in enumerate(shapes)}, by)
    assert sum(t.size for t in model.grouped + model.raw) == model.parameters
    for t in model.grouped:
        assert t.groups * t.group == t.size
        assert t.group >= MIN_GROUP
        values = np.arange(t.size, dtype=np.float32).reshape(t.shape)
        assert in_groups(t, values).shape == (t.groups, t.group)
        assert np.array_equal(from_groups(t, in_groups(t, values)), values)


def test_a_pixels_group_runs_over_the_input_channels() -> None:
    values = np.arange(2 * 9 * 3 * 3, dtype=np.float32).reshape(2, 9, 3, 3)
    [t] = layout({"conv": (2, 9, 3, 3)}, "pixel").tensors
    assert t == Tensor("conv", (2, 9, 3, 3), 9, across=True)
    assert np.array_equal(in_groups(t, values)[9 + 3 + 2], values[1, :, 1, 2])


def test_a_wrong_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"w has shape \(8, 2\), the layout says \(2, 8\)"):
        in_groups(Tensor("w", (2, 8), 8), np.zeros((8, 2), np.float32))


def test_digest_tells_layouts_apart() -> None:
    base = layout({"a": (2, 30), "b": (4,)})
    others: list[dict[str, tuple[int, ...]]]
    others = [{"a": (2, 30), "c": (4,)}, {"a": (2, 30), "b": (5,)}, {"b": (4,), "a": (2, 30)}, {"a": (2, 30)}]
    assert len({base.digest, *(layout(o).digest for o in others)}) == 5
    assert layout(LENET5).digest.hex() == "c170650ffb911ee0"
    assert len({layout({"a": (4, 9, 3, 3)}, by).digest for by in GROUPINGS}) == 3  # a channel is not cut
