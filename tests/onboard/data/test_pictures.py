"""A picture reaches training as a viewer shows it, or its file is refused by name: nothing is cut off."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onboard.data import loading
from onboard.data.images import DataError
from onboard.data.pictures import decoded

RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
EIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def one(tmp_path: Path, name: str, channels: int = 1) -> np.ndarray:
    return decoded(name, tmp_path / name, channels)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_are_scaled_by_their_depth(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    for channels in (1, 3):
        assert np.array_equal(one(tmp_path, name, channels)[0], EIGHT)


def test_a_pgm_of_16_bits_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    assert np.array_equal(one(tmp_path, "a.pgm")[0], EIGHT)
    (tmp_path / "b.pgm").write_bytes(b"P5 2 1 1023\n" + np.array([0, 1023], ">u2").tobytes())
    assert one(tmp_path, "b.pgm").tolist() == [[[0, 255]]]


@pytest.mark.parametrize(("array", "kind"), [(np.ones((4, 4), np.float32), "float"),
                                             (np.ones((4, 4), np.int32), "32-bit")])  # fmt: skip
def test_pixels_whose_range_nobody_knows_are_refused(tmp_path: Path, array: np.ndarray, kind: str) -> None:
    Image.fromarray(array).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif: has {kind} pixels"):
        one(tmp_path, "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_what_exif_says_is_turned_is_turned_back(tmp_path: Path, name: str, orientation: int) -> None:
    picture = Image.fromarray(
        np.kron(np.array([[0, 80, 160], [200, 240, 40]], np.uint8), np.ones((8, 8), np.uint8))
    )
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's Transpose that undoes each
    seen = picture if orientation == 1 else picture.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / name, exif=exif)
    assert np.abs(one(tmp_path, name)[0].astype(int) - np.asarray(seen)).max() <= 4  # a JPEG's loss


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    clear = np.zeros((4, 4, 4), np.uint8)
    clear[:2, :, 3] = 255  # a black half, and nothing
    picture = Image.fromarray(clear, "RGBA")
    picture.convert(mode).save(tmp_path / "a.png") if mode != "P" else _palette(clear).save(
        tmp_path / "a.png", transparency=1
    )
    for channels in (1, 3):
        assert (one(tmp_path, "a.png", channels)[:, :2] == 0).all()
        assert (one(tmp_path, "a.png", channels)[:, 2:] == 255).all()


def _palette(clear: np.ndarray) -> Image.Image:
    picture = Image.fromarray((clear[..., 3] == 0).astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 9, 9, 9])
    return picture


def test_half_transparent_grey_is_composed(tmp_path: Path) -> None:
    Image.new("LA", (2, 2), (0, 128)).save(tmp_path / "a.png")
    assert np.unique(one(tmp_path, "a.png")).tolist() == [127]


def test_one_bit_cmyk_and_palettes_keep_their_colours(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "bit.png")
    assert one(tmp_path, "bit.png").tolist() == [[[0, 255]]]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red = one(tmp_path, "cmyk.jpg", 3)[:, 0, 0]
    assert red[0] > 240
    assert red[1:].max() < 15
    Image.new("RGB", (2, 2), (10, 200, 30)).quantize(4).save(tmp_path / "p.gif")
    assert one(tmp_path, "p.gif", 3)[:, 0, 0].tolist() == [10, 200, 30]


def test_a_file_of_several_frames_is_refused_and_a_phones_mpo_is_not(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (10, 20)]
    for name in ("a.gif", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=rf"{name}: has 2 frames, needs one"):
            one(tmp_path, name)
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(one(tmp_path, "a.jpg").astype(int) - 10).max() <= 1


@pytest.mark.parametrize("cut", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif"])
def test_a_file_that_was_cut_is_named(tmp_path: Path, name: str, cut: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * cut)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=rf"^{name}: not a readable image"):
            one(tmp_path, name)


def test_pixels_of_0_to_1_are_refused_and_one_value_is_told(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 2, (20, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(20) % 10)
    for look in (loading.Survey.load, loading.Survey.inspect):
        with pytest.raises(DataError, match=r"a\.npz: pixels run 0\.\.1, need 0\.\.255: multiply by 255"):
            look(loading.survey(f"npz:{tmp_path / 'a.npz'}"))
    for number in range(12):
        folder = tmp_path / "set" / f"{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[number]).save(folder / f"{number}.png")
    with pytest.raises(DataError, match=r"pixels run 0\.\.1"):
        loading.load(f"folder:{tmp_path / 'set'}", part="own")


def test_the_range_of_a_set(tmp_path: Path) -> None:
    x = np.zeros((4, 28, 28), np.uint8)
    x[1, 3, 3], x[2], x[3, 0, 0] = 200, 7, 100
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(4))
    seen = loading.survey(f"npz:{tmp_path / 'a.npz'}").inspect()
    assert (seen.low, seen.high, seen.blank) == (0, 200, 2)
    assert seen.levels.mean == pytest.approx(x.mean())


def test_a_cameras_picture_is_fitted_in_little_memory(tmp_path: Path) -> None:
    """12 million pixels in float64 are 288 MB; the strips give the same pixels."""
    import tracemalloc

    from onboard.data import images

    ramp = np.add.outer(np.arange(3000), np.arange(4000)) % 251
    picture = np.stack([ramp, ramp // 2, 255 - ramp]).astype(np.uint8)[None]
    tracemalloc.start()
    small = images.fit(picture, (3, 64, 64))
    grey = images.fit(picture, (1, 28, 28))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    down, across = images._resampling(3000, 64), images._resampling(4000, 64).T
    assert np.abs(small[0, 0] - (down @ picture[0, 0] @ across)).max() <= 0.5 + 1e-9
    assert grey.shape == (1, 1, 28, 28)


def test_a_cameras_picture_is_decoded_without_copies_of_it(tmp_path: Path) -> None:
    """Of 12 million pixels Pillow holds 48 MB; each copy of them is as much again."""
    import subprocess
    import sys

    path = tmp_path / "a.jpg"
    Image.effect_noise((80, 60), 60).convert("RGB").resize((4000, 3000)).save(path)
    code = (
        "import sys; from pathlib import Path; from PIL import Image; import numpy\n"
        "from onboard.data.pictures import decoded\n"
        "status = lambda: Path('/proc/self/status').read_text()\n"
        "most = lambda: int(status().split('VmHWM:')[1].split()[0]) / 1024\n"
        "before = most(); decoded('a', Path(sys.argv[1]), 3); print(most() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 150
