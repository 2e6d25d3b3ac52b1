"""Images that are too many for the memory stay on the disk, and are those that a load would have read."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onboard.data import loading
from onboard.data.images import DataError, Images, StoredPixels
from onboard.data.inspection import Shard

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40) % 10


def plain(top: Path) -> str:
    np.savez(top / "a.npz", classes=[f"a{n}" for n in range(10)], x=PIXELS, y=LABELS)
    return f"npz:{top / 'a.npz'}"


def compressed(top: Path) -> str:
    np.savez_compressed(top / "b.npz", x=PIXELS[:, None], y=LABELS)
    return f"npz:{top / 'b.npz'}"


def columns_first(top: Path) -> str:
    np.savez(top / "c.npz", x=np.asfortranarray(PIXELS), y=LABELS)
    return f"npz:{top / 'c.npz'}"


def files(top: Path) -> str:
    for place, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (top / "set" / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(top / "set" / f"class{label}" / f"{place}.png")
    return f"folder:{top / 'set'}"


def mnist(top: Path) -> str:
    head = bytes([0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 28, 0, 0, 0, 28])
    (top / "train-images-idx3-ubyte").write_bytes(head + PIXELS.tobytes())
    (top / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 40]) + bytes(LABELS.tolist()))
    return "mnist"


def taken(source: str, top: Path, rows: tuple[int, int] | None = None, *, budget_bytes: int = 8) -> Images:
    (top / "state").mkdir(exist_ok=True)
    shard = Shard(
        source=source, folder=str(top), shape=(1, 28, 28), rows=rows, budget_bytes=budget_bytes,
        copies=str(top / "state"),
    )  # fmt: skip
    return shard.load()


@pytest.mark.parametrize("rows", [None, (7, 31)])
@pytest.mark.parametrize("made", [plain, compressed, columns_first, files, mnist])
def test_what_stays_on_the_disk_is_what_would_have_been_loaded(
    made: Callable[[Path], str], rows: tuple[int, int] | None, tmp_path: Path
) -> None:
    source = made(tmp_path)
    there, here = taken(source, tmp_path, rows), taken(source, tmp_path, rows, budget_bytes=10**9)
    assert isinstance(there.x, StoredPixels)
    assert isinstance(here.x, np.ndarray)
    assert (there.x.shape, there.classes, there.shape) == (here.x.shape, here.classes, here.shape)
    assert np.array_equal(there.y, here.y)
    chosen = np.array([3, 0, 3, len(here) - 1])
    assert np.array_equal(there.x[chosen], here.x[chosen])
    assert np.array_equal(there.x[:5], here.x[:5])
    part = there.take(chosen)
    assert isinstance(part.x, StoredPixels)
    assert np.array_equal(part.x[np.array([2, 3])], here.x[chosen[2:]])
    copies = list((tmp_path / "state").iterdir())
    assert len(copies) == (made not in (plain, mnist))


def test_a_copy_is_made_once_and_anew_for_another_set(tmp_path: Path) -> None:
    source = compressed(tmp_path)
    state = tmp_path / "state"
    taken(source, tmp_path)
    [first] = state.iterdir()
    written_at = first.stat().st_mtime_ns
    (state / "images-0123.raw.new").write_bytes(b"left by a kill")
    taken(source, tmp_path)
    assert first.stat().st_mtime_ns == written_at
    np.savez_compressed(tmp_path / "b.npz", x=PIXELS[::-1, None], y=LABELS)
    os.utime(tmp_path / "b.npz", ns=(1, 1))  # whatever the clock's steps are
    assert np.array_equal(taken(source, tmp_path).x[:2][:, 0], PIXELS[:-3:-1])
    [second] = state.iterdir()
    assert second.name != first.name
    second.write_bytes(second.read_bytes()[:-1])
    assert np.array_equal(taken(source, tmp_path).x[np.array([39])][0, 0], PIXELS[0])


def test_without_room_on_the_disk_images_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert isinstance(taken(compressed(tmp_path), tmp_path).x, np.ndarray)
    assert not list((tmp_path / "state").iterdir())


def test_a_file_that_is_cut_short_is_said_in_a_line(tmp_path: Path) -> None:
    images = taken(mnist(tmp_path), tmp_path)
    os.truncate(tmp_path / "train-images-idx3-ubyte", 16 + 784 * 20 + 5)
    assert np.array_equal(images.x[:20][:, 0], PIXELS[:20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: ends 779 bytes early, in image 20$"):
        images.x[np.array([2, 20])]


def test_bytes_of_0_and_1_are_refused_there_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=PIXELS // 128, y=LABELS)
    with pytest.raises(DataError, match=r"pixels run 0\.\.1, need 0\.\.255"):
        taken(f"npz:{tmp_path / 'a.npz'}", tmp_path)


def test_a_budget_counts_what_stays_on_the_disk_as_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((9_000, 28, 28), np.uint8), y=np.zeros(9_000, np.uint8))
    shard = Shard(source=f"npz:{tmp_path / 'a.npz'}", shape=(1, 28, 28), budget_bytes=5 << 20)
    assert shard.inspect().load_bytes < 5 << 20
    assert loading.survey(shard.source).load_bytes > 9_000 * 28 * 28
