"""An npz is read by rows, in little memory, and its labels are looked at before its pixels."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onboard.data import loading
from onboard.data.arrays import npz_array, rows_of
from onboard.data.images import DataError
from onboard.data.loading import Survey
from onboard.learn.objectives import Objective

RNG = np.random.default_rng(3)


def save_npy(path: Path, **arrays: Any) -> None:
    """The same arrays as npy files in a folder."""
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, save_npy])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_in_any_order(tmp_path: Path, save: Any, order: Any) -> None:
    x = np.array(RNG.integers(0, 256, (700, 30, 40), dtype=np.uint8), order=order)
    save(tmp_path / "a.npz", x=x, y=np.zeros(700, int))
    for wanted in ([], [5], [699, 3, 3, 0, 699], range(700), range(600, 700)):
        rows = np.array(wanted, np.int64)
        found = np.zeros((len(rows), 30, 40), np.uint8)
        for places, block in rows_of(npz_array(tmp_path / "a.npz", "x"), rows):
            found[places] = block
        assert np.array_equal(found, x[rows])
    with npz_array(tmp_path / "a.npz", "x") as array:
        assert np.array_equal(array.whole(), x)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, save_npy])
def test_a_set_larger_than_memory_takes_what_its_rows_take(tmp_path: Path, save: Any) -> None:
    x = np.zeros((60_000, 28, 28), np.uint8)  # 47 MB
    x[:, 0, 0] = np.arange(60_000) % 251
    save(tmp_path / "a.npz", x=x, y=np.arange(60_000) % 10)
    for look, most in ((len, 4e6), (Survey.load, 4e6), (Survey.inspect, 4e6)):
        tracemalloc.start()
        look(loading.survey(f"npz:{tmp_path / 'a.npz'}", rows=range(30_000, 30_200)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most
    tracemalloc.start()
    loading.survey(f"npz:{tmp_path / 'a.npz'}").inspect()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    taken = loading.load(f"npz:{tmp_path / 'a.npz'}", rows=range(30_000, 30_200))
    assert np.array_equal(taken.x[:, 0], x[30_000:30_200])


@pytest.mark.parametrize("rows", [None, range(200), range(0, 20_000, 7)])
def test_what_a_set_will_take_is_said_before(tmp_path: Path, rows: Any) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((20_000, 28, 28), np.uint8), y=np.arange(20_000) % 10)
    source = f"npz:{tmp_path / 'a.npz'}"
    said = loading.survey(source, rows=rows).load_bytes
    tracemalloc.start()
    loading.load(source, rows=rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.7 * (said - loading.WORKING_BYTES) < peak < said


@pytest.mark.parametrize(
    ("y", "says"),
    [
        ([1, 2, 10, 9], r"labels run 1\.\.10, need 0\.\.9: y\[2\] is 10; labels count from 0, not from 1"),
        ([0, 2**32 - 1], r"labels run 0\.\.4294967295, need 0\.\.9: y\[1\] is 4294967295$"),
        ([3, 2**63 + 5], r"y\[1\] is 9223372036854775813$"),
        ([0, 5, -1], r"labels run -1\.\.5, need 0\.\.9: y\[2\] is -1$"),
        ([0.0, 1.0], r"y is float64 \(2,\), needs whole numbers"),
    ],
)
def test_labels_are_checked_before_anything_is_taken(tmp_path: Path, y: list[Any], says: str) -> None:
    path = tmp_path / "a.npz"
    kind = np.uint64 if max(y) >= 2**63 else None
    np.savez(path, x=np.zeros((len(y), 28, 28), np.uint8), y=np.array(y, kind))
    tracemalloc.start()
    for look in (loading.survey, loading.load):
        for known in ({"objective": Objective(outputs=10)}, {"names": tuple("0123456789")}):
            with pytest.raises(DataError, match=says) as caught:
                look(f"npz:{path}", **known)  # type: ignore[arg-type]
            assert str(caught.value).startswith(f"{path}: ")
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_an_id_in_place_of_a_label_takes_no_memory_where_no_model_is_known(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 28, 28), np.uint8), y=np.array([0, 90_210]))
    with pytest.raises(DataError, match=r"need 0\.\.4095 at most: y\[1\] is 90210"):
        loading.load(f"npz:{tmp_path / 'a.npz'}")


def test_names_of_classes_are_brought_to_the_missions_order(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for names in (np.array(["sky", "sea", "air"]), np.array([b"sky", b"sea", b"air"])):
        np.savez(path, x=np.zeros((3, 28, 28), np.uint8), y=np.array([0, 1, 0]), classes=names)
        taken = loading.load(f"npz:{path}", names=("land", "sea", "sky"))
        assert (taken.y.tolist(), taken.classes) == ([2, 1, 2], ("land", "sea", "sky"))  # air has no images
    np.savez(path, x=np.zeros((3, 28, 28), np.uint8), y=np.array([0, 2, 0]), classes=names)
    with pytest.raises(
        DataError, match=r"class 'air' is not the mission's; here are sky, sea, air; the mission"
    ):
        loading.load(f"npz:{path}", names=("land", "sea", "sky"))


@pytest.mark.parametrize(
    ("names", "says"),
    [(["a", "a"], "two classes are called 'a'"), (["a", ""], "class 1 is called ''"),
     (["a", "b\n"], r"class 1 is called 'b\\n'"), ([f"{i}" for i in range(5000)], "5000 classes")],
)  # fmt: skip
def test_names_that_are_none_are_refused(tmp_path: Path, names: list[str], says: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((2, 28, 28), np.uint8), y=np.array([0, 1]), classes=np.array(names))
    with pytest.raises(DataError, match=says):
        loading.load(f"npz:{path}")


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((2, 32, 32, 3), np.uint8), r"its channels come last: np\.moveaxis\(x, -1, 1\)"),
        (np.zeros((2, 3, 32, 32), np.float32), r"floats of 0\.\.1 become pixels by"),
        (np.zeros((2, 3, 32, 32), np.uint16), r"16 bits become 8 by"),
    ],
)
def test_another_form_is_refused_with_what_to_do(tmp_path: Path, x: np.ndarray, says: str) -> None:
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1]))
    with pytest.raises(DataError, match=says):
        loading.survey(f"npz:{tmp_path / 'a.npz'}", (3, 32, 32))


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 28, 28)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(784))
        archive.writestr("y.npy", header.getvalue())
    with pytest.raises(DataError, match=r"\(10000000, 28, 28\) by its header, and has"):
        loading.load(f"npz:{tmp_path / 'a.npz'}")


def test_mnists_images_and_labels_are_of_one_set(tmp_path: Path) -> None:
    from tests.images_made import idx, mnist

    mnist(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(39, np.uint8)))
    for rows in (None, range(5)):
        with pytest.raises(
            DataError, match=r"train-images-idx3-ubyte: has 40 images, and train-labels.* has 39"
        ):
            loading.load("mnist", folder=tmp_path, rows=rows)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(40, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"labels run 0\.\.39, need 0\.\.9: label\[10\] is 10"):
        loading.load("mnist", folder=tmp_path)


def one_set(path: Path, y: Any, **more: Any) -> str:
    np.savez(path, x=np.full((len(y), 28, 28), 9, np.uint8), y=y, **more)
    return f"npz:{path}"


@pytest.mark.parametrize("name", ["class_names", "names", "label_names", "Classes", "target_names"])
def test_names_of_classes_under_another_name_are_not_passed_over(tmp_path: Path, name: str) -> None:
    source = one_set(tmp_path / "a.npz", np.arange(3), **{name: np.array(["sea", "sky", "land"])})
    for names in (None, ("land", "sea", "sky")):
        with pytest.raises(
            DataError, match=rf"a\.npz: holds {name}, which is not read: call the names of cl"
        ):
            loading.load(source, names=names)


def test_other_arrays_that_are_not_read_are_told(tmp_path: Path) -> None:
    source = one_set(tmp_path / "a.npz", np.arange(3), ids=np.arange(3), x_val=np.zeros(3))
    assert loading.survey(source).found.passed == {"array 'ids'": 1, "array 'x_val'": 1}


@pytest.mark.parametrize("y", [np.arange(180) % 9, 1 + np.arange(180) % 9])
def test_labels_without_names_that_lack_a_class_at_an_end_are_refused(tmp_path: Path, y: Any) -> None:
    """Who lacks a class has counted on past it, or from 1."""
    mission = tuple("abcdefghij")
    source = one_set(tmp_path / "a.npz", y)
    for look in (loading.survey, loading.load):
        with pytest.raises(
            DataError, match=rf"labels run {y.min()}\.\.{y.max()} and have no names, and the mi"
        ):
            look(source, names=mission)
    one_set(tmp_path / "a.npz", y, classes=np.array(mission))
    assert loading.survey(source, names=mission).y.tolist() == y.tolist()
    one_set(tmp_path / "a.npz", y[:50])  # so few may lack one by chance
    assert len(loading.survey(source, names=mission)) == 50
    one_set(tmp_path / "a.npz", np.arange(180) % 10)
    assert len(loading.survey(source, names=mission)) == 180


def test_a_folder_without_arrays_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "forest").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}: holds nothing; needs x, y too$"):
        loading.load(f"npz:{tmp_path}")
    np.save(tmp_path / "x.npy", np.zeros((4, 28, 28), np.uint8))
    with pytest.raises(DataError, match=r"holds x; needs y too$"):
        loading.load(f"npz:{tmp_path}")
    (tmp_path / "y.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=rf"^{tmp_path / 'y.npy'}: not a readable npz: "):
        loading.load(f"npz:{tmp_path}")


def test_a_pipe_in_a_folder_of_arrays_is_not_waited_for(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.arange(4))
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"it is a pipe or a device, and no file$"):
        loading.load(f"npz:{tmp_path}")
