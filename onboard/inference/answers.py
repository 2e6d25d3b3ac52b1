"""What a model says of an image: classes with probabilities, a mask, numbers, or an error.

Probabilities are the softmax of the logits. Confidence is the largest of an image, and for `segment` the mean
over its pixels; `reconstruct` has the mean squared error over pixels of 0..1 instead."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onboard.codec.layout import Floats
from onboard.inference.model import AnsweringModel, ModelInfo
from onboard.learn.graph import prepare

Mask = NDArray[np.uint8]


class ClassAnswer(msgspec.Struct, frozen=True, kw_only=True, rename={"name": "class"}):
    """One class: its probability, or the share of the image's pixels that it has."""

    name: str
    label: int
    share: float


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer for one image, as `--json` prints it. `classes`: the most probable first, or those with
    pixels, the largest first. `values`: the outputs of `regress`, by name."""

    image: str
    confidence: float | None = None
    classes: tuple[ClassAnswer, ...] = ()
    values: dict[str, float] = {}
    error: float | None = None
    mask: str = ""

    @property
    def score(self) -> float:
        """The one number by which populations of images are compared (`inference.drift`)."""
        if self.confidence is not None:
            return self.confidence
        return self.error if self.error is not None else next(iter(self.values.values()))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities over axis 1."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def answers(
    model: AnsweringModel, names: Sequence[str], x: NDArray[np.uint8], top: int
) -> Iterator[tuple[Answer, Mask | None]]:
    """Answers images uint8 (N, C, H, W), `top` classes each; `segment` also gives a mask of labels, uint8
    (H, W). Raises GraphError."""
    info, titles, logits = model.info, model.classes, model.logits(x)
    if info.task == "reconstruct":
        errors = np.square(logits.astype(np.float64) - prepare(x)).mean(axis=(1, 2, 3))
        yield from ((Answer(image=name, error=float(error)), None)
                    for name, error in zip(names, errors, strict=True))  # fmt: skip
    elif info.task == "regress":
        for name, row in zip(names, logits, strict=True):
            yield Answer(image=name, values=dict(zip(titles, map(float, row), strict=True))), None
    elif info.task == "segment":
        for name, each in zip(names, logits, strict=True):
            yield _segmented(name, each, titles, top)
    else:
        for name, row in zip(names, softmax(logits), strict=True):
            order = np.argsort(-row, kind="stable")[:top].tolist()
            found = tuple(ClassAnswer(name=titles[at], label=at, share=float(row[at])) for at in order)
            yield Answer(image=name, confidence=float(row.max()), classes=found), None


def _segmented(name: str, logits: Floats, titles: Sequence[str], top: int) -> tuple[Answer, Mask]:
    probabilities = softmax(logits[None])[0]  # (classes, H, W)
    mask = probabilities.argmax(axis=0).astype(np.uint8)
    counts = np.bincount(mask.ravel(), minlength=len(titles))
    order = [at for at in np.argsort(-counts, kind="stable")[:top].tolist() if counts[at]]
    found = tuple(ClassAnswer(name=titles[at], label=at, share=float(counts[at] / mask.size)) for at in order)
    return Answer(image=name, confidence=float(probabilities.max(axis=0).mean()), classes=found), mask


# What a person reads


def line(answer: Answer) -> str:
    """The answer as a line of text, after the image's name."""
    told = [f"{each.name} {100 * each.share:.1f} %" for each in answer.classes]
    told += [f"{name} {value:.6g}" for name, value in answer.values.items()]
    if answer.error is not None:
        told.append(f"error {answer.error:.6f}")
    if answer.mask:
        told.append(answer.mask)
    return f"{answer.image}  {', '.join(told)}"


def header(info: ModelInfo, titles: Sequence[str], top: int) -> list[str]:
    """The columns of the CSV form."""
    if info.task == "reconstruct":
        return ["image", "error"]
    if info.task == "regress":
        return ["image", *titles]
    if info.task == "segment":
        return ["image", "confidence", *titles, "mask"]
    ranks = range(1, min(top, len(titles)) + 1)
    return ["image", *(f"{what}{rank}" for rank in ranks for what in ("class", "probability"))]


def row(answer: Answer, info: ModelInfo, titles: Sequence[str]) -> list[str]:
    """The answer in these columns."""
    if info.task == "segment":
        shares = {each.label: each.share for each in answer.classes}
        values = [answer.confidence, *(shares.get(label, 0.0) for label in range(len(titles))), answer.mask]
    elif info.task == "classify":
        values = [part for each in answer.classes for part in (each.name, each.share)]
    else:
        values = [*answer.values.values()] if answer.error is None else [answer.error]
    return [answer.image, *(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values)]


def csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
