"""What two boards learn from images that lie otherwise than the mission's, or the line that refuses them.

Each situation is one of the second board's images alone: the first one's and the ground's are right. The
digits are written as real files, read as a board reads them, and trained on in rounds without a link
(LeNet-5, fast). Images that come out as those of the clean run, to the bit, are not trained on again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from hashlib import blake2s
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from onboard.data import loading
from onboard.data.images import DataError, Images
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.scoring import evaluate
from onboard.learn.training import Training
from onboard.mission.objects import Update, encode_object
from onboard.mission.server import MissionTerms, Server, averaged
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Failed, Job, TrainingDone

ROUNDS = 5
POINTS = 1.0  # below the clean run, at most
MISSION = b"mission1"

Write = Callable[[Path, Images], str]
"""Writes images into a folder in some way; returns the source to read them from."""


def measure(tell: ProgressLine) -> list[Row]:
    """Trains some rounds for the clean run and for what differs from it; takes about a minute."""
    whole, test = loading.load("digits"), loading.load("digits", part="test")
    first, second = (whole.take(np.arange(start, len(whole), 2)) for start in (0, 1))
    rows: list[Row] = []
    done: dict[bytes, float] = {}
    for name, write, maps in SITUATIONS:
        tell(name)
        with tempfile.TemporaryDirectory() as folder:
            try:
                taken = read(write, Path(folder), second)
            except DataError as error:
                line = str(error).replace(f"{folder}/", "").replace(folder, "folder")
                rows.append(Row(f"{name}: {line}", 1.0, "refused", 2.0 if maps else 1.0, at_least=True))
                continue
        digest = prints(taken)
        if digest not in done:
            done[digest] = 100 * _accuracy([first, taken], test)
        clean = next(iter(done.values()))
        bound = clean - POINTS if maps else 101.0
        rows.append(Row(name, done[digest], "% accuracy", bound, at_least=True))
    return rows


def read(write: Write, folder: Path, images: Images) -> Images:
    """What a board takes of what `write` makes of the images. Raises DataError."""
    return loading.load(write(folder, images), part="own", names=images.classes)


def prints(images: Images) -> bytes:
    """The same for the same images with the same labels, in any order."""
    each = (bytes([y]) + x.tobytes() for x, y in zip(images.x, images.y, strict=True))
    return blake2s(b"".join(sorted(each))).digest()


def _accuracy(boards: list[Images], test: Images) -> float:
    """Of the model after ROUNDS rounds."""
    graph, infer = TrainGraph.load("lenet5"), InferGraph.load("lenet5")
    server = Server(
        MissionTerms(
            id=MISSION,
            seed=1,
            deadline_s=900.0,
            training=Training(),
            classes=test.classes,
        ),
        graph,
    )
    packed = b""
    for number in range(1, ROUNDS + 1):
        model = server.model(number, packed)
        updates = {node: _trained(images, model, node, number) for node, images in enumerate(boards, start=1)}
        packed = averaged(server, number, packed, updates)
    return [*evaluate(infer, server.weights(packed), test.x, test.y)][-1].value


def _trained(images: Images, model: bytes, node: int, number: int) -> bytes:
    """The update of one board. Raises DataError where the trainer cannot."""
    trainer = LocalTrainer(images)
    trainer.begin(Job(model=model, node=node))
    while True:
        (report,) = trainer.reports()
        if isinstance(report, Failed):
            raise DataError(report.why)
        if isinstance(report, TrainingDone):
            update = Update(
                mission=MISSION, round=number, node=node, samples=report.samples, loss=report.loss, cpu_s=0.0,
                energy_j=0.0, train_s=0.0,
            )  # fmt: skip
            return encode_object(update, report.packed)
        trainer.step()


def _files(folder: Path, images: Images, names: dict[int, str] | None = None, suffix: str = "png") -> str:
    """A file for each image, in a folder for each class."""
    for row, (x, y) in enumerate(zip(images.x, images.y, strict=True)):
        name = images.classes[y] if names is None else names.get(int(y), "")
        if name:
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(x[0]).save(folder / name / f"{row}.{suffix}")
    return f"folder:{folder}"


def _missing(folder: Path, images: Images) -> str:
    return _files(folder, images, {label: str(label) for label in range(10) if label != 3})


def _unknown(folder: Path, images: Images) -> str:
    return _files(folder, images, {label: str(label) for label in range(9)} | {9: "x"})


def _stray(folder: Path, images: Images) -> str:
    for name in (".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "lost+found", "New folder"):
        (folder / name).mkdir()
        if name != "New folder":
            Image.fromarray(images.x[0, 0]).save(folder / name / "1.png")
    (folder / "1").mkdir()
    (folder / "1" / "._1.png").write_bytes(b"\0\5\x16\7")
    return _files(folder, images)


def _reordered(folder: Path, images: Images) -> str:
    moved = np.roll(np.arange(10), 3)
    names = np.empty(10, "U1")
    names[moved] = list(images.classes)
    np.savez(folder / "data.npz", x=images.x, y=moved[images.y], classes=names)
    return f"npz:{folder / 'data.npz'}"


def _deep(folder: Path, images: Images) -> str:
    for row, (x, y) in enumerate(zip(images.x, images.y, strict=True)):
        (folder / str(y)).mkdir(exist_ok=True)
        Image.fromarray(x[0].astype(np.uint16) * 257).save(folder / str(y) / f"{row}.png")
    return f"folder:{folder}"


def _turned(folder: Path, images: Images) -> str:
    exif = Image.Exif()
    exif[0x0112] = 6  # was taken with the camera on its side
    for row, (x, y) in enumerate(zip(images.x, images.y, strict=True)):
        (folder / str(y)).mkdir(exist_ok=True)
        Image.fromarray(np.rot90(x[0]).copy()).save(folder / str(y) / f"{row}.png", exif=exif)
    return f"folder:{folder}"


def _clear(folder: Path, images: Images) -> str:
    """All black, and the digit is what is transparent."""
    for row, (x, y) in enumerate(zip(images.x, images.y, strict=True)):
        (folder / str(y)).mkdir(exist_ok=True)
        pixels = np.dstack([np.zeros((28, 28, 3), np.uint8), 255 - x[0]])
        Image.fromarray(pixels, "RGBA").save(folder / str(y) / f"{row}.png")
    return f"folder:{folder}"


def _npz(change: Callable[[Images], tuple[np.ndarray, np.ndarray]]) -> Write:
    def write(folder: Path, images: Images) -> str:
        x, y = change(images)
        np.savez(folder / "data.npz", x=x, y=y)
        return f"npz:{folder / 'data.npz'}"

    return write


SITUATIONS: tuple[tuple[str, Write, bool], ...] = (
    ("clean", _files, True),
    ("a class's folder is missing", _missing, True),
    ("names in another order", _reordered, True),
    ("folders of systems and tools", _stray, True),
    ("GIF files", lambda folder, images: _files(folder, images, suffix="gif"), True),
    ("pictures of 16 bits", _deep, True),
    ("pictures that EXIF turns", _turned, True),
    ("pictures in their transparency", _clear, True),
    ("a class that the mission does not know", _unknown, False),
    ("labels one too high", _npz(lambda images: (images.x, images.y + 1)), False),
    ("an id in place of a label", _npz(lambda images: (images.x, images.y + (images.y == 3) * 2**32)), False),
    ("pixels of 0..1", _npz(lambda images: (images.x // 255, images.y)), False),
    ("floats", _npz(lambda images: (images.x / np.float32(255), images.y)), False),
    ("channels last", _npz(lambda images: (images.x.transpose(0, 2, 3, 1), images.y)), False),
)  # fmt: skip
