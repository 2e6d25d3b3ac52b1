"""Groups of a tensor: from shapes alone, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from onboard.codec.layout import MIN_GROUP, group_length, in_groups, layout
from tests.onboard.codec.examples import LENET5, SHAPES


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ((), 0),
        ((10,), 0),
        ((10, 7), 0),  # a coordinate would cost more than the basis
        ((0, 64), 0),
        ((10, 800), 400),
        ((10, 1021), 1021),  # prime: no equal parts
        ((10, 1022), 511),
        ((50, 20, 5, 5), 25),
        ((64, 128, 3, 3), 384),
        ((16, 3, 3, 3), 27),
        ((16, 1, 3, 3), 9),  # depthwise
        ((8, 4, 4, 4), 16),
        ((64, 64, 1, 1), 64),  # pointwise: as dense
        ((20, 128, 2, 2), 512),
        ((8, 4, 16), 16),
    ],
)
def test_group_rule(shape: tuple[int, ...], length: int) -> None:
    assert group_length(shape) == length


@given(SHAPES)
def test_groups_tile_their_tensors_and_come_back(shapes: list[tuple[int, ...]]) -> None:
    model = layout({f"t{i}": shape for i, shape in enumerate(shapes)})
    assert sum(t.size for t in model.grouped + model.raw) == model.parameters
    values = {t.name: np.arange(t.size, dtype=np.float32).reshape(t.shape) for t in model.tensors}
    groups = in_groups(model, values)
    for t in model.grouped:
        assert t.groups * t.group == t.size
        assert t.group >= MIN_GROUP
        assert groups[t.name].shape == (t.groups, t.group)
        assert np.array_equal(groups[t.name].reshape(t.shape), values[t.name])


def test_a_wrong_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"w has shape \(8, 2\), the layout says \(2, 8\)"):
        in_groups(layout({"w": (2, 8)}), {"w": np.zeros((8, 2), np.float32)})


def test_digest_tells_layouts_apart() -> None:
    base = layout({"a": (2, 30), "b": (4,)})
    others: list[dict[str, tuple[int, ...]]]
    others = [{"a": (2, 30), "c": (4,)}, {"a": (2, 30), "b": (5,)}, {"b": (4,), "a": (2, 30)}, {"a": (2, 30)}]
    assert len({base.digest, *(layout(o).digest for o in others)}) == 5
    assert layout(LENET5).digest.hex() == "c170650ffb911ee0"
