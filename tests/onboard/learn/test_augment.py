"""Augmentation moves and distorts images, invents no light, and repeats from its seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.learn.augment import augmented, shifted, warped
from onboard.learn.graph import prepare

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 2, 9, 11), dtype=np.uint8)
LABELS = np.arange(4)


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_nothing_asked_changes_nothing() -> None:
    assert np.array_equal(augmented(IMAGES, LABELS, generator(), 0, 0.0)[0], prepare(IMAGES))
    assert np.allclose(warped(IMAGES, generator(), 0, 0.0), IMAGES, atol=1e-3)


@given(seed=st.integers(0, 1000), pixels=st.integers(0, 3), distortion=st.floats(0, 2))
def test_values_stay_within_the_image_and_shapes_within_bounds(
    seed: int, pixels: int, distortion: float
) -> None:
    out = augmented(IMAGES, LABELS, generator(seed), pixels, distortion)[0]
    assert out.shape == IMAGES.shape
    assert out.dtype == np.float32
    assert out.min() >= -1e-4  # float32 between neighbours
    assert out.max() <= IMAGES.max() / 255 + 1e-4
    assert np.array_equal(out, augmented(IMAGES, LABELS, generator(seed), pixels, distortion)[0])


def test_a_shift_by_warp_is_the_shift_of_the_pixels() -> None:
    """Without distortion a warp is a translation: the mean position of the light moves as drawn."""
    spot = np.zeros((64, 1, 15, 15), np.uint8)
    spot[:, :, 7, 7] = 255
    out = warped(spot, generator(), 3.0, 0.0)[:, 0]
    grid = np.arange(15.0)
    rows = (out.sum(axis=2) * grid).sum(axis=1) / out.sum(axis=(1, 2))
    draw = generator()
    draw.uniform(-1, 1, (2, 64))
    draw.uniform(-1, 1, (2, 64))
    down, _ = draw.uniform(-3, 3, (2, 64))
    assert rows == pytest.approx(7 - down, abs=1e-3)


def test_a_distortion_keeps_the_centre_and_turns_the_rest() -> None:
    cross = np.zeros((32, 1, 21, 21), np.uint8)
    cross[:, :, 10, :] = 200
    out = warped(cross, generator(), 0, 1.0)[:, 0]
    assert (out[:, 10, 10] > 150).all()
    ends = out[:, 10, 0]
    assert (ends < 100).mean() > 0.5  # most are turned away from the row's end
    assert out[:, 9:12, 10].sum(axis=1) == pytest.approx(np.full(32, 200.0), rel=0.35)


def test_shifts_move_whole_images_by_at_most_the_pixels_asked() -> None:
    x = np.zeros((200, 2, 9, 9), np.uint8)
    x[:, 0, 4, 4], x[:, 1, 4, 5] = 1, 2
    moved = shifted(x, generator(), 2)
    at = np.argwhere(moved[:, 0])
    assert np.array_equal(at[:, 0], np.arange(200))
    assert {(r - 4, c - 4) for _, r, c in at.tolist()} == {(r, c) for r in range(-2, 3) for c in range(-2, 3)}
    assert np.array_equal(np.argwhere(moved[:, 1]), at + np.array([0, 0, 1]))
    assert shifted(x, generator(), 0) is x


@pytest.mark.parametrize(("pixels", "distortion"), [(0, 0.0), (2, 0.0), (3, 1.0), (0, 2.0)])
def test_images_move_alike_whatever_their_labels_are(pixels: int, distortion: float) -> None:
    masks = np.zeros((4, 9, 11), np.uint8)
    numbers, nothing = np.ones((4, 3), np.float32), np.empty((4, 0), np.float32)
    moved = [
        augmented(IMAGES, y, generator(), pixels, distortion)[0] for y in (LABELS, masks, numbers, nothing)
    ]
    assert all(np.array_equal(each, moved[0]) for each in moved)
    for y in (LABELS, numbers, nothing):
        assert augmented(IMAGES, y, generator(), pixels, distortion)[1] is y


@pytest.mark.parametrize(("pixels", "distortion"), [(0, 0.0), (3, 0.0), (0, 1.0), (4, 2.0)])
def test_a_mask_stays_on_its_image(pixels: int, distortion: float) -> None:
    """A bright square with its mask: wherever the image is bright the mask is 1, whatever the draw."""
    x, masks = np.zeros((40, 1, 32, 32), np.uint8), np.zeros((40, 32, 32), np.uint8)
    x[:, 0, 8:20, 12:26], masks[:, 8:20, 12:26] = 255, 1
    images, moved = augmented(x, masks, generator(), pixels, distortion)
    assert moved.dtype == np.int64
    bright, dark = images[:, 0] > 0.99, images[:, 0] < 0.01
    assert (moved[bright] == 1).all()
    assert (moved[dark] != 1).all()
    assert np.array_equal(moved, augmented(x, masks, generator(), pixels, distortion)[1])


@pytest.mark.parametrize(("pixels", "distortion"), [(3, 0.0), (0, 1.0), (4, 2.0)])
@pytest.mark.parametrize("shade", [1, 255])
def test_no_darkness_comes_in_from_beyond_an_edge(pixels: int, distortion: float, shade: int) -> None:
    """Statistics of images with black borders are of no image that is answered."""
    x = np.full((20, 3, 16, 24), shade, np.uint8)
    masks = np.full((20, 16, 24), 7, np.uint8)
    images, moved = augmented(x, masks, generator(), pixels, distortion)
    assert images == pytest.approx(np.full(x.shape, shade / 255), rel=1e-5)
    assert (moved == 7).all()


def test_beyond_an_edge_is_the_mirror_image() -> None:
    x = np.arange(30, dtype=np.uint8).reshape(1, 1, 5, 6).repeat(300, axis=0)
    around = np.pad(x[0, 0], 2, mode="reflect")
    seen = {each.tobytes() for each in shifted(x, generator(), 2)}
    assert seen == {around[r : r + 5, c : c + 6].tobytes() for r in range(5) for c in range(5)}


@given(seed=st.integers(0, 1000), height=st.integers(1, 4), width=st.integers(1, 4))
def test_images_smaller_than_their_shifts_stay_images(seed: int, height: int, width: int) -> None:
    x = np.random.default_rng(seed).integers(1, 256, (5, 2, height, width), dtype=np.uint8)
    for distortion in (0.0, 2.0):
        images = augmented(x, LABELS, generator(seed), 9, distortion)[0]
        assert images.min() >= x.min() / 255 - 1e-4
        assert images.max() <= x.max() / 255 + 1e-4
