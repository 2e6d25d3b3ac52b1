"""A folder's classes are its folders and nobody's leavings; whatever is not taken is counted and told."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onboard.data import loading
from onboard.data.images import DataError
from onboard.data.pictures import is_junk


def images(folder: Path, *names: str) -> None:
    """An image under each name; what the suffix is not, is a PNG."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".gif": "GIF", ".jp2": "JPEG2000", ".tga": "TGA"}.get(path.suffix.lower(), "PNG")
        kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpe", ".jfif", ".jpeg") else kind
        Image.fromarray(np.full((8, 8), 40 * (len(name) % 5), np.uint8)).save(path, kind)


def look(folder: Path, **options: object) -> loading.Survey:
    return loading.survey(f"folder:{folder}", part="own", **options)  # type: ignore[arg-type]


LEFT = [
    ".git/x.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/land/._1.png", "@eaDir/1.png",
    "lost+found/x.png", "#recycle/x.png", "$RECYCLE.BIN/x.png", "System Volume Information/x.png",
    "__pycache__/x.png", "Thumbs.db/x.png",
]  # fmt: skip


@pytest.mark.parametrize("left", LEFT)
def test_what_systems_and_tools_leave_is_no_class(tmp_path: Path, left: str) -> None:
    images(tmp_path, "land/1.png", "sea/1.png", left)
    seen = look(tmp_path)
    assert seen.classes == ("land", "sea")
    assert seen.found.passed == {"hidden or a system's": 1}
    assert loading.load(f"folder:{tmp_path}", part="own").y.tolist().count(0) == 1


def test_what_they_leave_among_the_images_is_no_image(tmp_path: Path) -> None:
    images(tmp_path, "land/1.png")
    for name in ("._1.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / "land" / name).write_bytes(b"\0\5\x16\7")
        assert is_junk(name)
    assert loading.load(f"folder:{tmp_path}", part="own").classes == ("land",)
    assert look(tmp_path).found.passed == {"hidden or a system's": 4}


def test_every_image_that_is_called_one_is_taken(tmp_path: Path) -> None:
    names = ["a.PNG", "b.gif", "c.jfif", "d.jpe", "e.jp2", "f.JPG", "g.tga"]
    images(tmp_path, *(f"land/{name}" for name in names))
    assert len(loading.load(f"folder:{tmp_path}", part="own")) == len(names)
    assert look(tmp_path).found.passed == {}


def test_what_is_passed_over_is_told_with_its_reason(tmp_path: Path) -> None:
    images(tmp_path, "land/1.png", "land/2020/1.png", "land/2020/2.png", "0.png")
    (tmp_path / "land" / "notes.TXT").write_text("x")
    (tmp_path / "land" / "README").write_text("x")
    (tmp_path / "land" / "cut.png").touch()
    (tmp_path / "land" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "land" / "there.png").symlink_to("1.png")
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "later").mkdir()
    seen = look(tmp_path)
    assert len(seen) == 2
    assert seen.found.passed == {
        "in folders inside 'land'": 2,
        "no image by its name (.txt)": 1,
        "no image by its name (no suffix)": 1,
        "no image by its name (.csv)": 1,
        "empty files": 1,
        "links that lead nowhere": 1,
        "beside the classes' folders": 1,
        "folder 'later' without images": 1,
    }


def test_a_set_one_folder_too_deep_says_so(tmp_path: Path) -> None:
    images(tmp_path, "EuroSAT_RGB/land/1.png", "EuroSAT_RGB/sea/1.png")
    with pytest.raises(
        DataError, match=r"no images: .*; did you mean folder:.*/EuroSAT_RGB\?; 2 passed over \(2 in"
    ):
        look(tmp_path)
    assert look(tmp_path / "EuroSAT_RGB").classes == ("land", "sea")


def test_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    images(tmp_path, *(f"{number}/1.png" for number in range(11)))
    assert look(tmp_path).classes == tuple(map(str, range(11)))


MISSION = ("land", "sea", "sky")


def test_folders_go_to_the_missions_classes_by_name(tmp_path: Path) -> None:
    images(tmp_path, "sky/1.png", "sea/1.png", "sea/2.png")
    seen = look(tmp_path, names=MISSION)
    assert seen.counts == {"land": 0, "sea": 2, "sky": 1}
    assert [name for name, count in seen.counts.items() if not count] == ["land"]
    assert sorted(loading.load(f"folder:{tmp_path}", part="own", names=MISSION).y.tolist()) == [1, 1, 2]


@pytest.mark.parametrize(
    ("folder", "hint"),
    [
        ("Sea", "did you mean 'sea'"),
        ("sea ", "did you mean 'sea'"),
        ("skye", "did you mean 'sky'"),
        ("fire", ""),
    ],
)
def test_a_class_that_the_mission_does_not_know_is_refused_with_both_lists(
    tmp_path: Path, folder: str, hint: str
) -> None:
    images(tmp_path, "land/1.png", f"{folder}/1.png")
    for of in (look, lambda path, **names: loading.load(f"folder:{path}", part="own", **names)):
        with pytest.raises(DataError) as caught:
            of(tmp_path, names=MISSION)  # type: ignore[operator]
        told = str(caught.value)
        assert told.startswith(f"{tmp_path}: class {folder!r} is not the mission's")
        assert told.endswith(
            f"here are {', '.join(sorted(['land', folder]))}; the mission has land, sea, sky"
        )
        assert hint in told
        assert ("did you mean" in told) == bool(hint)


def test_numbers_with_zeros_before_them_are_other_names(tmp_path: Path) -> None:
    images(tmp_path, "00/1.png", "01/1.png")
    with pytest.raises(DataError, match=r"class '00' is not the mission's \(did you mean '0'\?\)"):
        look(tmp_path, names=tuple("0123456789"))


def test_an_empty_folder_that_the_mission_does_not_know_is_passed_over(tmp_path: Path) -> None:
    images(tmp_path, "land/1.png")
    (tmp_path / "New folder").mkdir()
    seen = look(tmp_path, names=MISSION)
    assert seen.found.passed == {"folder 'New folder' without images": 1}


def test_names_are_compared_as_unicode_says(tmp_path: Path) -> None:
    """A folder that came from macOS has its accents apart."""
    images(tmp_path, unicodedata.normalize("NFD", "Forêt") + "/1.png")
    assert look(tmp_path, names=("Forêt",)).counts == {"Forêt": 1}
    images(tmp_path, "Forêt/1.png")
    with pytest.raises(DataError, match="two folders are called 'Forêt'"):
        look(tmp_path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    images(tmp_path, "land/1.png")
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")  # noqa: PTH102 - a Path cannot hold it
    with pytest.raises(DataError, match=r"'caf\\udce9', needs a name that can be printed"):
        look(tmp_path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    images(tmp_path, "land/1.png")
    (tmp_path / "land").chmod(0)
    with pytest.raises(DataError, match=r"land: Permission denied"):
        look(tmp_path)


def test_parts_and_what_is_beside_them(tmp_path: Path) -> None:
    images(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/1.png", "val/a/1.png", ".git/x.png")
    for part in ("train", "own", "test"):
        seen = loading.survey(f"folder:{tmp_path}", part=part)  # type: ignore[arg-type]
        assert seen.classes == ("a", "b")
        assert seen.found.passed == {"beside train and test": 1, "hidden or a system's": 1}
    only = tmp_path / "only"
    images(only, "train/a/1.png", "train/b/1.png")
    assert loading.survey(f"folder:{only}", part="own").classes == ("a", "b")
    with pytest.raises(DataError, match=r"no test part: there is train, and no folder test beside it"):
        loading.survey(f"folder:{only}", part="test")


def test_classes_that_are_called_train_and_test_are_classes(tmp_path: Path) -> None:
    images(tmp_path, "train/1.png", "car/1.png")
    assert look(tmp_path).classes == ("car", "train")


def test_what_would_never_end_to_be_read_is_passed_over(tmp_path: Path) -> None:
    """A link in a circle, and a pipe into which nobody writes."""
    images(tmp_path, "land/1.png")
    (tmp_path / "land" / "circle.png").symlink_to("circle.png")
    (tmp_path / "land" / "itself").symlink_to(tmp_path / "land")
    os.mkfifo(tmp_path / "land" / "pipe.png")
    assert len(loading.load(f"folder:{tmp_path}", part="own")) == 1
    assert look(tmp_path).found.passed == {
        "links that lead nowhere": 1, "no regular files": 1, "in folders inside 'land'": 3,
    }  # fmt: skip


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/absent: no such folder"):
        look(tmp_path / "absent")
