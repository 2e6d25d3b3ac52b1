"""Every source loads into the same value; whatever is wrong with one is told in one line that names it."""

import gzip
import io
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from onboard.data import loading
from onboard.data.arrays import idx_array, rows_of
from onboard.data.images import DataError
from onboard.learn.objectives import Objective
from tests.images_made import idx, mnist

BESIDE = Path(__file__).resolve().parents[4] / "shared" / "data"
REAL = Path(os.environ.get("SPACEDML_DATA") or BESIDE)
needs_mnist = pytest.mark.skipif(not (REAL / "mnist").is_dir(), reason="MNIST is not on this machine")
needs_eurosat = pytest.mark.skipif(not (REAL / "eurosat").is_dir(), reason="EuroSAT is not on this machine")
in_tmp_path = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_rows(path: Path, rows: np.ndarray | None, axes: int) -> np.ndarray:
    """These rows in this order, or all of them."""
    with idx_array(path, axes) as array:
        if rows is None:
            return array.whole()
        found = np.empty((len(rows), *array.shape[1:]), np.uint8)
    for places, values in rows_of(idx_array(path, axes), rows):
        found[places] = values
    return found


# --- sources


def test_digits() -> None:
    train, test = loading.load("digits"), loading.load("digits", part="test")
    assert train.shape == test.shape == (1, 28, 28)
    assert len(train) + len(test) == 1797
    assert len(test) / 1797 == pytest.approx(0.2, abs=0.001)
    assert np.bincount(test.y).min() >= 34  # a fifth of 174 to 183 of each
    for part in (train, test):
        framed = part.x.copy()
        framed[:, :, 4:24, 4:24] = 0
        assert not framed.any()
        assert part.x.max() == 255
    seen = {image.tobytes() for image in train.x}
    assert sum(image.tobytes() in seen for image in test.x) == 0
    assert loading.load("digits", (3, 32, 32), rows=5).x.shape == (5, 3, 32, 32)


def test_rows_are_taken_in_the_order_asked_for(tmp_path: Path) -> None:
    x, y = mnist(tmp_path / "mnist")
    for source in ("digits", "mnist"):
        whole = loading.load(source, folder=tmp_path)
        some = loading.load(source, folder=tmp_path, rows=[7, 3, 3, 0])
        assert np.array_equal(some.x, whole.x[[7, 3, 3, 0]])
        assert np.array_equal(some.y, whole.y[[7, 3, 3, 0]])
        assert np.array_equal(loading.load(source, folder=tmp_path, rows=6).x, whole.x[:6])
        with pytest.raises(DataError, match="was asked for row 99999"):
            loading.load(source, folder=tmp_path, rows=[1, 99999])
        with pytest.raises(DataError, match="no images"):
            loading.load(source, folder=tmp_path, rows=[])
    assert np.array_equal(loading.load("mnist", folder=tmp_path).x[:, 0], x)
    assert np.array_equal(loading.load("mnist", folder=tmp_path, part="test").y, y)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inside", ["mnist", "."])
def test_mnist_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, packed: bool, inside: str
) -> None:
    x, _ = mnist(tmp_path / inside, packed=packed)
    monkeypatch.setenv("SPACEDML_DATA", str(tmp_path))
    assert np.array_equal(loading.load("mnist").x[:, 0], x)
    assert loading.load("mnist", (1, 14, 14)).shape == (1, 14, 14)


def eurosat(folder: Path, form: str) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    x = rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    x = np.repeat(np.repeat(x, 8, axis=1), 8, axis=2)  # 64x64 in flat blocks, which JPEG keeps
    rest: dict[str, Any] = {
        "labels": (np.arange(10) % 2).astype(np.uint8),
        "class_names": np.array(["Forest", "River"]),
        "train_idx": np.array([9, 1, 2, 3, 4, 5], np.int32),
        "test_idx": np.array([0, 6, 7, 8], np.int32),
    }
    if form == "images":
        np.savez(folder / "eurosat_rgb_2500.npz", images=x, **rest)
    else:
        files = []
        for image in x:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=100, subsampling=0)
            files.append(buffer.getvalue())
        offsets = np.cumsum([0, *map(len, files)])
        joined = np.frombuffer(b"".join(files), np.uint8)
        np.savez(folder / "eurosat_rgb_full_jpeg.npz", jpeg=joined, offsets=offsets, **rest)
    return x


@pytest.mark.parametrize("form", ["images", "jpeg"])
def test_eurosat_in_both_forms(tmp_path: Path, form: str) -> None:
    x = eurosat(tmp_path / "eurosat", form).transpose(0, 3, 1, 2)
    train = loading.load("eurosat", (3, 64, 64), folder=tmp_path)
    assert train.classes == ("Forest", "River")
    assert train.y.tolist() == [1, 1, 0, 1, 0, 1]
    assert np.abs(train.x.astype(int) - x[[9, 1, 2, 3, 4, 5]]).max() <= (0 if form == "images" else 6)
    test = loading.load("eurosat", (3, 8, 8), folder=tmp_path, part="test", rows=[1, 0])
    assert np.abs(test.x.astype(int) - x[[6, 0]][:, :, ::8, ::8]).max() <= (0 if form == "images" else 6)
    assert loading.load("eurosat", (1, 28, 28), folder=tmp_path).shape == (1, 28, 28)


def test_the_full_eurosat_is_asked_for_by_name(tmp_path: Path) -> None:
    x = eurosat(tmp_path, "images").transpose(0, 3, 1, 2)
    assert np.array_equal(loading.load("eurosat", (3, 64, 64), folder=tmp_path, rows=[1]).x, x[[1]])
    with pytest.raises(DataError, match=r"no eurosat_rgb_full_jpeg.npz in"):
        loading.load("eurosat-full", (3, 64, 64), folder=tmp_path)
    eurosat(tmp_path, "jpeg")
    assert np.any(loading.load("eurosat-full", (3, 64, 64), folder=tmp_path, rows=[1]).x != x[1])  # a JPEG


def pictures(folder: Path, classes: dict[str, int], size: tuple[int, int] = (20, 10)) -> None:
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (number * 40, i, 0)).save(folder / name / f"{i}.png")


def test_image_folders(tmp_path: Path) -> None:
    pictures(tmp_path, {"sea": 3, "land": 4})
    (tmp_path / "sea" / "notes.txt").write_text("not an image")
    images = loading.load(f"folder:{tmp_path}", (3, 10, 20), part="own")
    assert images.classes == ("land", "sea")
    assert images.shape == (3, 10, 20)
    assert sorted(zip(images.y.tolist(), images.x[:, 0, 0, 0].tolist(), strict=True)) == [
        *[(0, 40)] * 4,
        *[(1, 0)] * 3,
    ]
    assert sorted(images.x[images.y == 1][:, 1, 3, 3].tolist()) == [0, 1, 2]
    assert loading.load(f"folder:{tmp_path}", (1, 28, 28), rows=2).x.shape == (2, 1, 28, 28)


def test_a_folder_without_parts_is_split_by_class(tmp_path: Path) -> None:
    pictures(tmp_path, {"sea": 10, "land": 5})
    train, test = (loading.load(f"folder:{tmp_path}", (3, 10, 20), part=part) for part in ("train", "test"))
    assert (len(train), len(test)) == (12, 3)
    assert np.bincount(test.y).tolist() == [1, 2]
    seen = {(each.y[i], each.x[i].tobytes()) for each in (train, test) for i in range(len(each))}
    assert len(seen) == 15


def test_image_folders_with_parts_number_their_classes_alike(tmp_path: Path) -> None:
    pictures(tmp_path / "train", {"a": 1, "b": 2, "c": 1})
    pictures(tmp_path / "test", {"c": 2})
    test = loading.load(f"folder:{tmp_path}", (3, 4, 4), part="test")
    assert test.classes == ("a", "b", "c")
    assert test.y.tolist() == [2, 2]
    assert len(loading.load(f"folder:{tmp_path}", (3, 4, 4))) == 4


def test_npz_with_parts(tmp_path: Path) -> None:
    x = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2)
    path = tmp_path / "set.npz"
    np.savez(path, x=x[:4], y=np.array([0, 1, 2, 0], np.uint8), x_test=x[4:], y_test=np.array([1, 1]))
    train = loading.load(f"npz:{path}", (1, 2, 2), rows=[3, 1])
    assert np.array_equal(train.x[:, 0], x[[3, 1]])
    assert (train.y.tolist(), train.classes) == ([0, 1], ("0", "1", "2"))
    assert loading.load(f"npz:{path}", (1, 2, 2), part="test").y.tolist() == [1, 1]


# --- what is wrong


@pytest.mark.parametrize("source", ["", "cifar", "npz", "npz:", "folder:", "digits:8", "mnist:"])
def test_an_unknown_source_lists_the_known(source: str) -> None:
    with pytest.raises(
        DataError, match=r"digits, mnist, eurosat, eurosat-full, eurosat-water, npz:PATH, folder:PATH"
    ):
        loading.load(source)


def test_a_missing_set_says_where_what_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACEDML_DATA", raising=False)
    with pytest.raises(DataError, match=r"mnist: no data folder: give --data-dir or set SPACEDML_DATA"):
        loading.load("mnist")
    for source, file, how in (
        ("mnist", "train-images-idx3-ubyte.gz", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        ("eurosat", "eurosat_rgb_2500.npz", "zenodo.org"),
    ):
        with pytest.raises(DataError) as caught:
            loading.load(source, folder=tmp_path)
        told = str(caught.value)
        assert str(tmp_path) in told
        assert file in told
        assert how in told
        assert "\n" not in told


def test_too_many_classes_for_the_model() -> None:
    assert len(loading.load("digits", objective=Objective(outputs=10)).classes) == 10
    with pytest.raises(DataError, match="digits: has 10 classes, the model tells 8 apart"):
        loading.load("digits", objective=Objective(outputs=8))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((3, 28, 28), np.uint8)}, "needs y too"),
        ({"x": np.zeros((3, 28, 28)), "y": np.zeros(3, int)}, r"x is float64 \(3, 28, 28\), needs uint8"),
        (
            {"x": np.zeros((3, 27, 28), np.uint8), "y": np.zeros(3, int)},
            r"\(3, 27, 28\), needs uint8 \(N, 1, 28, 28\)",
        ),
        ({"x": np.zeros((3, 28, 28, 1), np.uint8), "y": np.zeros(3, int)}, r"needs uint8 \(N, 1, 28, 28\)"),
        ({"x": np.zeros((), np.uint8), "y": np.zeros(3, int)}, "needs uint8"),
        (
            {"x": np.zeros((3, 28, 28), np.uint8), "y": np.zeros(2, int)},
            r"y is int64 \(2,\), needs whole numbers \(3,\)",
        ),
        ({"x": np.zeros((3, 28, 28), np.uint8), "y": np.zeros(3)}, "y is float64"),
        ({"x": np.zeros((1, 28, 28), np.uint8), "y": np.array([-1])}, "labels run -1"),
        (
            {"x": np.zeros((1, 28, 28), np.uint8), "y": np.array([2]), "classes": np.array(["a", "b"])},
            "labels run 2",
        ),
        ({"x": np.zeros((0, 28, 28), np.uint8), "y": np.zeros(0, int)}, "no images"),
        ({"x": np.array([{}], dtype=object), "y": np.zeros(1, int)}, "not a readable npz"),
    ],
)
def test_an_npz_of_another_form_is_refused(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    path = tmp_path / "shard.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=says) as caught:
        loading.load(f"npz:{path}")
    assert str(path) in str(caught.value)


def test_an_npz_without_a_test_part_says_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 28, 28), np.uint8), y=np.zeros(1, int))
    with pytest.raises(DataError, match="holds x, y; needs x_test, y_test too"):
        loading.load(f"npz:{tmp_path / 'a.npz'}", part="test")
    with pytest.raises(DataError, match="no such file"):
        loading.load(f"npz:{tmp_path / 'b.npz'}")


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(2 * 784, dtype=np.uint8).reshape(2, 28, 28), y=np.array([0, 1]))
    return buffer.getvalue()


NPZ = npz_bytes()


@in_tmp_path
@given(st.data())
def test_damaged_npz_never_crashes(tmp_path: Path, draw: st.DataObject) -> None:
    damaged = bytearray(NPZ)
    for at in draw.draw(st.lists(st.integers(0, len(NPZ) - 1), max_size=4)):
        damaged[at] ^= draw.draw(st.integers(1, 255))
    path = tmp_path / "damaged.npz"
    path.write_bytes(damaged[: draw.draw(st.integers(0, len(NPZ)))])
    try:
        images = loading.load(f"npz:{path}")
    except DataError as error:
        told = str(error)
    else:
        told = f"{path}: {images.x.dtype} {images.shape}"
        assert told == f"{path}: uint8 (1, 28, 28)"
    assert told.startswith(f"{path}: ")


@in_tmp_path
@given(st.binary(max_size=200))
def test_any_bytes_are_no_set(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.npz").write_bytes(content)
    with pytest.raises(DataError):
        loading.load(f"npz:{tmp_path / 'any.npz'}")
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / f"{name}.gz").write_bytes(content)
    with pytest.raises(DataError):
        loading.load("mnist", folder=tmp_path)


def test_eurosat_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "eurosat_rgb_2500.npz"
    good: dict[str, Any] = {
        "images": np.zeros((4, 8, 8, 3), np.uint8),
        "labels": np.zeros(4, np.uint8),
        "class_names": np.array(["a"]),
        "train_idx": np.arange(4),
        "test_idx": np.arange(4),
    }
    np.savez(path, **good)
    assert len(loading.load("eurosat", (3, 8, 8), folder=tmp_path)) == 4
    for wrong, says in (
        ({"labels": np.zeros(3, np.uint8)}, "train_idx runs to 3"),
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "holds neither"),
        ({"labels": np.ones(4, np.uint8)}, r"labels run 1\.\.1"),
        ({"train_idx": np.array([-1])}, "train_idx"),
    ):
        np.savez(path, **{**good, **wrong})
        with pytest.raises(DataError, match=says):
            loading.load("eurosat", (3, 8, 8), folder=tmp_path)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images: needs one subfolder a class"):
        loading.load(f"folder:{tmp_path / 'absent'}")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"no images: needs one subfolder a class"):
        loading.load(f"folder:{tmp_path}")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(DataError, match=r"broken\.png: not a readable image"):
        loading.load(f"folder:{tmp_path}")


# --- IDX


@in_tmp_path
@given(st.integers(1, 2000), st.integers(1, 20), st.booleans(), st.data())
def test_idx_rows(tmp_path: Path, count: int, width: int, packed: bool, draw: st.DataObject) -> None:
    array = np.random.default_rng(count).integers(0, 256, (count, 30, width), dtype=np.uint8)
    path = tmp_path / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(idx(array), 1) if packed else idx(array))
    rows = np.array(draw.draw(st.lists(st.integers(0, count - 1), max_size=30)), np.int64)
    assert np.array_equal(read_rows(path, rows, axes=3), array[rows])
    assert np.array_equal(read_rows(path, None, axes=3), array)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_cut_short_anywhere_is_named(tmp_path: Path, *, packed: bool) -> None:
    raw = idx(np.arange(60, dtype=np.uint8).reshape(5, 3, 4))
    content = gzip.compress(raw) if packed else raw
    path = tmp_path / ("cut.gz" if packed else "cut")
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="cut"):
            read_rows(path, None, axes=3)


def test_idx_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(idx(np.arange(3, dtype=np.uint8)))
    with pytest.raises(DataError, match="starts with 00000801, need IDX of uint8 with 3 axes"):
        read_rows(path, None, axes=3)
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 28, 28))
    with pytest.raises(DataError, match="header says"):
        read_rows(path, None, axes=3)
    path.write_bytes(idx(np.arange(3, dtype=np.uint8)) + b"?")
    with pytest.raises(DataError, match="goes on after its 3 rows"):
        read_rows(path, None, axes=1)
    with pytest.raises(DataError, match="no such file"):
        read_rows(tmp_path / "absent", None, axes=1)


def test_a_few_rows_of_many_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.gz"
    big = np.random.default_rng(0).integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
    path.write_bytes(gzip.compress(idx(big), 1))
    rows = np.arange(0, 10_000, 100)
    read_rows(path, rows, axes=3)
    tracemalloc.start()
    try:
        found = read_rows(path, rows, axes=3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(found, big[rows])
    assert peak < big.nbytes / 4


# --- the real sets


@needs_mnist
def test_real_mnist() -> None:
    test = loading.load("mnist", folder=REAL, part="test")
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    few = loading.load("mnist", folder=REAL, rows=[59_999, 0])
    assert few.y.tolist() == [8, 5]  # the training set ends with an 8 and starts with a 5


@needs_eurosat
def test_real_eurosat() -> None:
    test = loading.load("eurosat", (3, 28, 28), folder=REAL, part="test")
    assert np.bincount(test.y).tolist() == [50] * 10
    assert test.classes[0] == "AnnualCrop"
    brightness = test.x.mean(axis=(1, 2, 3))
    assert brightness[test.y == test.classes.index("SeaLake")].mean() < brightness.mean()
