"""Data come in the form that a network's task needs, masks, numbers or images alone; or one line says why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from onboard.data import labels, loading
from onboard.data.cover import land_cover
from onboard.data.images import DataError, Images, StoredPixels, fit_masks, save
from onboard.data.inspection import Shard
from onboard.learn.objectives import Objective
from tests.onboard.data.test_loading import REAL, needs_eurosat

RNG = np.random.default_rng(5)
SHAPE = (3, 6, 6)
SEGMENT = Objective(kind="segment", outputs=3, ignore=255)
REGRESS = Objective(kind="regress", outputs=2)
RECONSTRUCT = Objective(kind="reconstruct", outputs=3)
X = RNG.integers(0, 256, (8, *SHAPE), dtype=np.uint8)


def masks(count: int = 8, side: int = 6) -> np.ndarray:
    return RNG.choice(np.array([0, 1, 2, 255], np.uint8), (count, side, side))


def write_pairs(folder: Path, names: str = "abcdef", size: tuple[int, int] = (12, 9)) -> None:
    """Writes photographs with masks, by palette or grey; the left third is 0, then 1, then 2."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    width, height = size
    thirds = np.broadcast_to(np.arange(width) * 3 // width, (height, width)).astype(np.uint8)
    for at, name in enumerate(names):
        Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            folder / "images" / f"{name}.jpg"
        )
        mask = Image.fromarray(thirds)
        if at % 2:
            mask = Image.fromarray(thirds).convert("P")
            mask.putdata(thirds.ravel().tolist())
            mask.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
        mask.save(folder / "masks" / f"{name}.png")


def test_masks_of_an_npz_are_read_by_rows(tmp_path: Path) -> None:
    y = masks()
    np.savez(tmp_path / "a.npz", x=X, y=y.astype(np.int64), classes=["land", "sea", "ice"])
    images = loading.load(f"npz:{tmp_path / 'a.npz'}", SHAPE, objective=SEGMENT, rows=[5, 0])
    assert (images.kind, images.classes, images.ignore) == ("segment", ("land", "sea", "ice"), 255)
    assert images.y.dtype == np.uint8
    assert np.array_equal(images.y, y[[5, 0]])
    assert np.array_equal(images.x, X[[5, 0]])


def test_a_masks_own_classes_are_brought_to_the_missions_by_name(tmp_path: Path) -> None:
    y = masks()
    np.savez(tmp_path / "a.npz", x=X, y=y, classes=["land", "sea", "ice"])
    images = loading.load(f"npz:{tmp_path / 'a.npz'}", SHAPE, objective=SEGMENT, names=("ice", "land", "sea"))
    assert np.array_equal(images.y, np.array([1, 2, 0] + 252 * [0] + [255])[y])


def test_a_shard_with_masks_is_what_was_saved(tmp_path: Path) -> None:
    images = Images(X, masks(), ("land", "sea", "ice"), ignore=255)
    save(tmp_path / "shard.npz", images)
    again = loading.load(f"npz:{tmp_path / 'shard.npz'}", SHAPE, objective=SEGMENT)
    assert np.array_equal(again.y, images.y)
    assert again.classes == images.classes


def test_numbers_are_read_as_float32(tmp_path: Path) -> None:
    y = RNG.normal(size=(8, 2))
    np.savez(tmp_path / "a.npz", x=X, y=y, x_test=X, y_test=y)
    source = f"npz:{tmp_path / 'a.npz'}"
    for part in ("train", "test"):
        images = loading.load(source, SHAPE, objective=REGRESS, part=part)  # type: ignore[arg-type]
        assert (images.kind, images.y.dtype, images.classes) == ("regress", np.float32, ())
        assert np.allclose(images.y, y)
    np.savez(tmp_path / "a.npz", x=X, y=np.arange(8))
    assert loading.load(source, SHAPE, objective=Objective(kind="regress")).y.tolist() == [
        [n] for n in range(8)
    ]


def test_whatever_has_images_serves_to_reconstruct(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", x=X, x_test=X)
    np.savez(tmp_path / "labelled.npz", x=X, y=np.arange(8), classes=list("abcdefgh"))
    write_pairs(tmp_path / "folder")
    for source in ("npz:bare.npz", "npz:labelled.npz", "folder:folder"):
        scheme, _, place = source.partition(":")
        images = loading.load(f"{scheme}:{tmp_path / place}", SHAPE, objective=RECONSTRUCT, part="own")
        assert (images.kind, images.classes, images.y.shape) == ("reconstruct", (), (len(images), 0))


def test_a_folder_of_plain_images_is_split(tmp_path: Path) -> None:
    for name in range(10):
        (tmp_path / str(name % 3)).mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 6, 3), 20 * name, np.uint8)).save(
            tmp_path / str(name % 3) / f"{name}.png"
        )
    parts = {
        part: loading.load(f"folder:{tmp_path}", SHAPE, objective=RECONSTRUCT, part=part)  # type: ignore[arg-type]
        for part in ("train", "test", "own")
    }
    values = {part: {int(x.flat[0]) for x in images.x} for part, images in parts.items()}
    assert (len(values["train"]), len(values["test"])) == (8, 2)
    assert values["train"] | values["test"] == values["own"] == {20 * name for name in range(10)}


def test_masks_in_a_folder_are_fitted_by_the_nearest_label(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    images = loading.load(f"folder:{tmp_path}", (3, 6, 6), objective=SEGMENT, part="own")
    assert len(images) == 6
    assert (images.y == np.array([0, 0, 1, 1, 2, 2])).all()
    train, test = (
        loading.load(f"folder:{tmp_path}", SHAPE, objective=SEGMENT, part=part)  # type: ignore[arg-type]
        for part in ("train", "test")
    )
    assert (len(train), len(test)) == (5, 1)


def test_train_and_test_have_folders_of_their_own(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", "abc")
    write_pairs(tmp_path / "test", "de")
    found = [
        len(loading.survey(f"folder:{tmp_path}", SHAPE, objective=SEGMENT, part=part))  # type: ignore[arg-type]
        for part in ("train", "test", "own")
    ]
    assert found == [3, 2, 3]


def test_a_photograph_on_its_side_has_a_mask_that_stands(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", (12, 9))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((12, 9, 3), np.uint8)).save(tmp_path / "images" / "a.jpg", exif=exif)
    assert len(loading.load(f"folder:{tmp_path}", SHAPE, objective=SEGMENT, part="own")) == 1


def unmade(folder: Path) -> None:
    (folder / "masks" / "b.png").unlink()


def orphaned(folder: Path) -> None:
    (folder / "images" / "b.jpg").unlink()


def shrunk(folder: Path) -> None:
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(folder / "masks" / "b.png")


def strange(folder: Path) -> None:
    Image.fromarray(np.full((9, 12), 7, np.uint8)).save(folder / "masks" / "b.png")


def coloured(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(folder / "masks" / "b.png")


def lossy(folder: Path) -> None:
    (folder / "masks" / "b.png").unlink()
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(folder / "masks" / "b.jpg")


def twice(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 12, 3), np.uint8)).save(folder / "images" / "b.png")


def moved(folder: Path) -> None:
    (folder / "masks").rename(folder / "annotations")


def torn(folder: Path) -> None:
    path = folder / "masks" / "b.png"
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (unmade, r"images/b\.jpg: has no mask .*masks/b\.png$"),
        (orphaned, r"masks/b\.png: is the mask of no image .*images/b\.\*$"),
        (shrunk, r"masks/b\.png: is 4x3 pixels, and b\.jpg is 12x9$"),
        (strange, r": a mask has the label 7, needs 0\.\.2 \(land, sea, ice\), or 255 for what"),
        (coloured, r"masks/b\.png: has pixels of mode RGB, needs labels: a palette, or 8 bits of grey$"),
        (lossy, r"masks/b\.jpg: a mask must be a \.png file"),
        (twice, r"images/b\.png: has the name of b\.jpg, needs its own$"),
        (moved, r": no folder masks; needs images/NAME\.\* and masks/NAME\.png$"),
        (torn, r"masks/b\.png: not a readable image"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_masks_is_one_line(tmp_path: Path, harm: object, why: str) -> None:
    write_pairs(tmp_path)
    harm(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match=why) as caught:
        loading.load(f"folder:{tmp_path}", SHAPE, objective=SEGMENT, part="own", names=("land", "sea", "ice"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "objective", "why"),
    [
        ({"y": np.zeros(8, int)}, SEGMENT, r"y is int64 \(8,\), needs whole numbers \(8, 6, 6\)"),
        ({"y": np.zeros((8, 6, 5), int)}, SEGMENT, r"needs whole numbers \(8, 6, 6\), one for each pixel"),
        ({"y": np.zeros((8, 6, 6))}, SEGMENT, r"y is float64 \(8, 6, 6\), needs whole numbers"),
        ({"y": np.full((8, 6, 6), 300)}, SEGMENT, r"a mask has the label 300, needs 0\.\.2, or 255"),
        ({"y": np.full((8, 6, 6), -1)}, SEGMENT, r"a mask has the label -1, needs 0\.\.2"),
        ({"y": np.zeros((8, 3))}, REGRESS, r"y has 3 numbers an image, the model answers with 2"),
        ({"y": np.full((8, 2), np.nan)}, REGRESS, r"y\[0\] is nan, needs finite numbers"),
        ({"y": np.array(list("abcdefgh"))}, REGRESS, r"y is <U1 \(8,\), needs numbers \(8, K\)"),
        ({}, SEGMENT, r"holds x; needs y too"),
    ],
)  # fmt: skip
def test_labels_of_another_form_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], objective: Objective, why: str
) -> None:
    np.savez(tmp_path / "a.npz", x=X, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=why):
        loading.load(f"npz:{tmp_path / 'a.npz'}", SHAPE, objective=objective)


def test_a_set_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="digits: holds a class for each image, and 'segment' needs masks"):
        loading.survey("digits", objective=SEGMENT)
    with pytest.raises(DataError, match="images alone say no numbers; 'regress' needs npz"):
        loading.survey("folder:anywhere", objective=REGRESS)


def photographs() -> tuple[np.ndarray, np.ndarray]:
    """Six scenes of 64x64, (N, H, W, 3), and what covers them: smooth blue sea, green wood, grey town."""
    colours = np.array([[40, 60, 80], [40, 66, 76], [125, 126, 128]])
    noise, cover = np.array([0.0, 3.0, 20.0]), np.array([1, 2, 0])
    kinds = np.arange(6) % 3
    scenes = (
        colours[kinds][:, None, None] + RNG.normal(size=(6, 64, 64, 1)) * noise[kinds][:, None, None, None]
    )
    return np.clip(scenes, 0, 255).astype(np.uint8), cover[kinds]


def test_water_and_vegetation_are_seen_in_photographs(tmp_path: Path) -> None:
    x, cover = photographs()
    np.savez(
        tmp_path / "eurosat_rgb_2500.npz", images=x, labels=np.arange(6) % 2, class_names=["Forest", "River"],
        train_idx=np.arange(6), test_idx=np.array([4, 2]),
    )  # fmt: skip
    train = loading.load("eurosat-water", (3, 64, 64), folder=tmp_path, objective=SEGMENT)
    assert train.classes == ("other", "water", "vegetation")
    assert np.array_equal(train.y, land_cover(train.x))
    for mask, label in zip(train.y, cover, strict=True):
        assert (mask == label).mean() > 0.9
    small = loading.load("eurosat-water", (3, 32, 32), folder=tmp_path, part="test", objective=SEGMENT)
    assert np.array_equal(small.y, fit_masks(train.y[[4, 2]], (3, 32, 32)))


@needs_eurosat
def test_real_seas_are_water_and_real_forests_vegetation() -> None:
    masks = loading.load("eurosat-water", (3, 64, 64), folder=REAL, part="test", objective=SEGMENT).y
    scenes = loading.load("eurosat", (3, 8, 8), folder=REAL, part="test")
    for scene, cover in (("SeaLake", 1), ("Forest", 2), ("Residential", 0)):
        assert (masks[scenes.y == scenes.classes.index(scene)] == cover).mean() > 0.7


def test_a_look_counts_pixels(tmp_path: Path) -> None:
    y = np.zeros((8, 6, 6), np.uint8)
    y[:, 0], y[:, 1] = 1, 255
    np.savez(tmp_path / "a.npz", x=X, y=y, classes=["land", "sea", "ice"])
    shard = Shard(source=f"npz:{tmp_path / 'a.npz'}", shape=SHAPE, objective=SEGMENT)
    found = shard.inspect()
    assert found.classes == {"land": 8 * 24, "sea": 8 * 6, "ice": 0}
    assert (
        "; pixels of classes land: 192, sea: 48, ice: 0, 48 count for nothing; WARNING: no pixels of ice"
        in found.line()
    )
    np.savez(tmp_path / "a.npz", x=X, y=y)
    assert shard.inspect(SEGMENT.form).classes == {"0": 192, "1": 48}


def test_the_same_images_are_held_out_in_memory_and_on_the_disk(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (40, *SHAPE), dtype=np.uint8), masks(40)
    np.savez(tmp_path / "a.npz", x=x, y=y, classes=["land", "sea", "ice"])
    shard = Shard(source=f"npz:{tmp_path / 'a.npz'}", shape=SHAPE, objective=SEGMENT, validation=0.25)
    taught, held = shard.load_parts()
    assert held is not None
    found = sorted([*(image.tobytes() for image in taught.x), *(image.tobytes() for image in held.x)])
    assert found == sorted(image.tobytes() for image in x)
    on_disk = msgspec.structs.replace(shard, budget_bytes=64).load_parts()
    for part, stored in zip((taught, held), on_disk, strict=True):
        assert stored is not None
        assert isinstance(stored.x, StoredPixels)
        assert np.array_equal(stored.x[:], part.x)
        assert np.array_equal(stored.y, part.y)
    assert f", {len(held)} of them held out of training, " in shard.inspect().line()


@pytest.mark.parametrize("wrong", ["dtype", "shape", "label"])
def test_masks_that_are_none_make_no_images(wrong: str) -> None:
    y = {
        "dtype": np.zeros((8, 6, 6), np.int64),
        "shape": np.zeros((8, 6, 5), np.uint8),
        "label": np.full((8, 6, 6), 3, np.uint8),
    }[wrong]
    with pytest.raises(DataError, match=r"labels"):
        Images(X, y, ("land", "sea", "ice"), ignore=255)


def test_a_network_takes_no_images_of_another_kind() -> None:
    images = Images(X, masks(), ("land", "sea", "ice"), ignore=255)
    assert labels.for_network(images, "it", SEGMENT) is images
    assert labels.for_network(images, "it", RECONSTRUCT).kind == "reconstruct"
    with pytest.raises(DataError, match="data: holds masks, and it, which is to regress, needs numbers"):
        labels.for_network(images, "it", REGRESS)
    numbers = Images(X, np.zeros((8, 5), np.float32), ())
    with pytest.raises(DataError, match="data: y has 5 numbers, it answers with 2"):
        labels.for_network(numbers, "it", REGRESS)
