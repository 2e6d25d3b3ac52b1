"""Images are fitted without drift, split without loss, and saved whole or not at all."""

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.data import loading
from onboard.data.images import DataError, Images, fit, held_out, hold_out, order, save, shards, split_rows


def some(n: int, classes: int = 3, seed: int = 0, shape: tuple[int, int, int] = (1, 4, 4)) -> Images:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Images(x, rng.integers(0, classes, n), tuple(f"class {i}" for i in range(classes)))


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((2, 1, 4, 4), np.float32), np.zeros(2, np.int64), "float32"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), r"need uint8 \(N, C, H, W\)"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int32), "labels are int32"),
        (np.zeros((2, 1, 4, 4), np.uint8), np.zeros(3, np.int64), "2 images have 3 labels"),
        (np.zeros((0, 1, 4, 4), np.uint8), np.zeros(0, np.int64), "no images"),
        (np.zeros((1, 1, 4, 4), np.uint8), np.array([3]), r"labels run 3\.\.3, need 0\.\.2"),
        (np.zeros((1, 1, 4, 4), np.uint8), np.array([-1]), r"labels run -1"),
    ],
)
def test_contradictions_are_refused(x: np.ndarray, y: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Images(x, y, ("a", "b", "c"))


@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_an_order_is_a_permutation(count: int, seed: int) -> None:
    drawn = order(count, seed)
    assert sorted(drawn.tolist()) == list(range(count))
    assert np.array_equal(drawn, order(count, seed))


def test_an_order_is_golden() -> None:
    assert order(10, 42).tolist() == [9, 3, 1, 0, 7, 4, 6, 5, 8, 2]


@given(st.integers(1, 60), st.data())
def test_shards_are_a_partition(n: int, draw: st.DataObject) -> None:
    parts = draw.draw(st.integers(1, n))
    images = some(n)
    images = Images(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), images.y, images.classes)
    found = shards(images, parts, seed=draw.draw(st.integers(0, 1000)))
    sizes = [len(shard) for shard in found]
    assert len(found) == parts
    assert max(sizes) - min(sizes) <= 1
    ids = np.concatenate([shard.x.ravel() for shard in found])
    assert sorted(ids.tolist()) == list(range(n))
    for shard in found:
        assert np.array_equal(shard.y, images.y[shard.x.ravel()])


def test_more_shards_than_images_are_refused() -> None:
    with pytest.raises(DataError, match="3 images cannot make 4 shards"):
        shards(some(3), 4, seed=0)


@settings(max_examples=50)
@given(st.integers(40, 200), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_a_split_takes_its_fraction_of_every_class(n: int, fraction: float, seed: int) -> None:
    y = np.arange(n, dtype=np.int64) % 4
    images = Images(np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), y, ("a", "b", "c", "d"))
    rest, part = map(images.take, split_rows(images.y, fraction, seed))
    assert sorted([*rest.x.ravel().tolist(), *part.x.ravel().tolist()]) == list(range(n))
    for label in range(4):
        assert (part.y == label).sum() == round((y == label).sum() * fraction)
    with pytest.raises(ValueError, match="fraction"):
        split_rows(images.y, 1.0, seed)


sides = st.integers(1, 40)


@settings(max_examples=60)
@given(sides, sides, sides, sides, st.integers(0, 255))
def test_a_flat_image_stays_flat(h: int, w: int, new_h: int, new_w: int, value: int) -> None:
    fitted = fit(np.full((2, 1, h, w), value, np.uint8), (1, new_h, new_w))
    assert fitted.shape == (2, 1, new_h, new_w)
    assert fitted.dtype == np.uint8
    assert (fitted == value).all()


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(0, 1000))
def test_shrinking_by_a_whole_factor_is_the_mean_of_blocks(h: int, w: int, k: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, (3, 3, h * k, w * k), dtype=np.uint8)
    blocks = x.reshape(3, 3, h, k, w, k).mean(axis=(3, 5))
    assert np.abs(fit(x, (3, h, w)) - blocks).max() <= 0.5 + 1e-9


@settings(max_examples=60)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 1000))
def test_shrinking_keeps_the_mean(size: int, new: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 256, (1, 1, size, size), dtype=np.uint8)
    side = min(size, new)
    assert float(fit(x, (1, side, side)).mean()) == pytest.approx(float(x.mean()), abs=0.51)


def test_growing_is_linear_between_centres() -> None:
    row = fit(np.array([[[[0, 100]]]], np.uint8), (1, 1, 4))
    assert row.ravel().tolist() == [0, 25, 75, 100]


def test_channels_become_grey_or_three() -> None:
    red = np.zeros((1, 3, 2, 2), np.uint8)
    red[:, 0] = 200
    assert fit(red, (1, 2, 2)).ravel().tolist() == [60] * 4  # 0.299 * 200 = 59.8
    grey = some(2).x
    assert np.array_equal(fit(grey, (3, 4, 4)), np.repeat(grey, 3, axis=1))
    assert np.array_equal(fit(grey, (1, 4, 4)), grey)
    with pytest.raises(DataError, match="2 channels, need 3"):
        fit(np.zeros((1, 2, 2, 2), np.uint8), (3, 2, 2))


def test_many_images_fit_as_one_does() -> None:
    images = some(600, shape=(3, 9, 7))
    whole = fit(images.x, (3, 5, 4))
    assert np.array_equal(whole[599:], fit(images.x[599:], (3, 5, 4)))


def test_saved_is_loaded(tmp_path: Path) -> None:
    images = some(12, shape=(3, 5, 6))
    save(tmp_path / "shard.npz", images)
    again = loading.load(f"npz:{tmp_path / 'shard.npz'}", (3, 5, 6))
    assert np.array_equal(again.x, images.x)
    assert np.array_equal(again.y, images.y)
    assert again.classes == images.classes
    assert [path.name for path in tmp_path.iterdir()] == ["shard.npz"]


def test_a_disk_that_takes_no_more_damages_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses the write (a file size limit stands in for a full disk)."""
    path = tmp_path / "shard.npz"
    save(path, some(5))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(path, some(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["shard.npz"]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_what_is_held_out_stays_held_out(share: float) -> None:
    few, many = held_out(np.arange(300), share), held_out(np.arange(1000), share)
    assert (few != many[:300]).sum() <= 2
    assert abs(many.mean() - share) < 0.05
    less = held_out(np.arange(1000), share / 2)
    assert not (less & ~many).any()
    some = held_out(np.arange(100, 200), share)
    assert (some != many[100:200]).sum() <= 2  # one of any rows is held out, and one is not


def test_what_is_held_out_of_a_set_is_in_no_training() -> None:
    whole = some(50)
    images, held = hold_out(whole, 0.2)
    assert held is not None
    parts = [{image.tobytes() for image in each.x} for each in (images, held)]
    assert parts[0] | parts[1] == {image.tobytes() for image in whole.x}
    assert not parts[0] & parts[1]
    assert hold_out(whole, 0.0) == (whole, None)


def test_one_of_two_images_is_held_out_and_none_of_one() -> None:
    assert held_out(np.arange(2), 0.01).sum() == 1
    assert held_out(np.array([7, 3]), 0.5).sum() == 1
    with pytest.raises(DataError, match=r"validation: 0\.1 of 1 images cannot be held out"):
        held_out(np.arange(1), 0.1)
