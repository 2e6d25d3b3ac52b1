"""`onboard infer`: answers images one batch after another, and goes on past those that cannot be read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import msgspec
import numpy as np

from onboard.console.errors import fail, one_line
from onboard.console.lines import LineInPlace, is_terminal
from onboard.data.images import DataError, Pixels, fit
from onboard.data.pictures import decoded
from onboard.inference.answers import Answer, answers, csv_line, header, line, row
from onboard.inference.masks import MaskFolder
from onboard.inference.model import AnsweringModel
from onboard.inference.sources import NamedImage, images, known_count
from onboard.learn.graph import GraphError

TELL_AFTER_S = 2.0  # progress of what takes longer
_EVERY_S = 0.5


@dataclass(frozen=True)
class AnswerForm:
    """How a user wants the answers. `out`: the folder for masks, or None."""

    form: Literal["text", "json", "csv"]
    top: int
    batch: int
    out: Path | None = None


@dataclass(frozen=True, eq=False)
class FittedImage:
    """An image in the model's shape, and the height and width that it had."""

    named: NamedImage
    pixels: Pixels
    size: tuple[int, int]


def infer(model: AnsweringModel, names: Sequence[str], wanted: AnswerForm) -> int:
    """Prints the answers; returns the exit code: 1 if an image could not be read, 2 if there was none."""
    show, progress = _printer(model, wanted), _Progress(names)
    masks = None if wanted.out is None else MaskFolder(wanted.out)
    broken = answered = 0

    def complain(why: str) -> None:
        nonlocal broken
        broken += 1
        progress.clear()
        click.echo(one_line(why), err=True)

    for batch in _batches(_fitted(model, images(names), complain), wanted.batch):
        top = model.info.outputs if wanted.form == "csv" and model.info.task == "segment" else wanted.top
        stacked = np.stack([image.pixels for image in batch])
        try:
            found = list(answers(model, [image.named.name for image in batch], stacked, top))
        except GraphError as error:
            fail(str(error), code=1)
        for image, (answer, mask) in zip(batch, found, strict=True):
            progress.clear()
            if mask is not None and masks is not None:
                written = masks.write(image.named.place, mask, image.size)
                answer = msgspec.structs.replace(answer, mask=written)
            show(answer)
        sys.stdout.flush()  # whoever waits at the pipe has each batch at once
        answered += len(batch)
        progress.tell(answered + broken)
    progress.clear()
    if not answered and not broken:
        fail(f"no images in {', '.join(names)}")
    return 1 if broken else 0


def _fitted(
    model: AnsweringModel, found: Iterator[NamedImage], complain: Callable[[str], None]
) -> Iterator[FittedImage]:
    """Reads the images as a `folder:` of training images is read."""
    shape = model.info.input
    for image in found:
        try:
            pixels = decoded(image.name, image.file, shape[0])
            yield FittedImage(image, fit(pixels[None], shape)[0], (pixels.shape[1], pixels.shape[2]))
        except DataError as error:
            complain(str(error) if str(error).startswith(image.name) else f"{image.name}: {error}")


def _batches(found: Iterator[FittedImage], size: int) -> Iterator[list[FittedImage]]:
    held: list[FittedImage] = []
    for image in found:
        held.append(image)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def _printer(model: AnsweringModel, wanted: AnswerForm) -> Callable[[Answer], None]:
    if wanted.form == "json":
        return lambda answer: click.echo(msgspec.json.encode(answer))
    if wanted.form == "csv":
        titles = model.classes
        click.echo(csv_line(header(model.info, titles, wanted.top)))
        return lambda answer: click.echo(csv_line(row(answer, model.info, titles)))
    return lambda answer: click.echo(one_line(line(answer)))


class _Progress:
    """A line on the terminal that says how far a long run is, while the answers go elsewhere."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._count: int | None = None
        self._due_s = time.monotonic() + TELL_AFTER_S
        self._line = LineInPlace(None if is_terminal(sys.stdout) else sys.stderr)

    def tell(self, done: int) -> None:
        if not self._line.is_seen or time.monotonic() < self._due_s:
            return
        if self._count is None:
            self._count = known_count(self._names) or 0
        of = f" of {self._count:,}" if self._count else ""
        self._line.show(f"{done:,}{of} images")
        self._due_s = time.monotonic() + _EVERY_S

    def clear(self) -> None:
        self._line.clear()
