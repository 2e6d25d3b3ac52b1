"""Chosen answers and images come down once, within their quota, and lie durably on the ground first."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundstation import received_answers
from groundstation.received_answers import AnswersDesk
from onboard.inference.downlink import AnswerDownlink, decode_answers, encode_answers, wants
from onboard.inference.ring import AnswerRecord, AnswerRing, key_of
from onboard.inference.rules import DownlinkSection, DownlinkState
from onboard.mission.objects import ANSWERS
from onboard.wire.events import Arrived, Cancelled, Delivered
from onboard.wire.messages import BadMessage, Reason, digest


@dataclass
class RecordedLink:
    """Both sessions: what the board offers, and what the ground answers to it."""

    offered: list[tuple[bytes, bytes, int]] = field(default_factory=list)
    accepted: list[bytes] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)

    def offer(self, kind: int, payload: bytes, now: float, *, priority: int) -> bytes:
        name = digest(kind, payload)
        self.offered.append((name, payload, priority))
        return name

    def accept(self, name: bytes, now: float) -> None:
        self.accepted.append(name)

    def refuse(self, name: bytes, reason: Reason, now: float) -> None:
        self.refused.append(name)


class Downlinked:
    """A board's answers, with the rules for them."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder, self.link, self.now = folder, RecordedLink(), 0.0
        self.kept = DownlinkState()
        self.rules = DownlinkSection(**{"bytes_per_day": 100_000} | rules)
        self.ring = AnswerRing(folder / "answers", 1 << 20)
        self.begin()

    def begin(self) -> None:
        self.downlink = AnswerDownlink(self.rules, self.folder, self.ring, self.kept, self.save)

    def save(self, state: DownlinkState) -> None:
        self.kept = state

    def answer(self, *confidences: float, size: int = 0) -> None:
        for confidence in confidences:
            n = self.ring.next_n
            path = self.folder / f"{n}.png"
            path.write_bytes(bytes([n % 256]) * size)
            found = path.stat()
            record = AnswerRecord(
                n=n, image=path.name, key=key_of(path.name, found.st_size, found.st_mtime_ns), at=1.0,
                model="m", name="ship", label=0, confidence=confidence, score=confidence,
            )  # fmt: skip
            self.ring.append(
                AnswerRecord(**{name: getattr(record, name) for name in record.__struct_fields__
                                if name != "chosen"}, chosen=wants(self.rules, record)), ()
            )  # fmt: skip

    def run(self, until_s: float) -> Iterator[tuple[list[int], int]]:
        """Delivers what is offered; yields the numbers of the answers and the size of the image."""
        while self.now <= until_s:
            count = len(self.link.offered)
            self.downlink.turn(self.link, self.now)  # type: ignore[arg-type]
            if len(self.link.offered) > count:
                name, payload, priority = self.link.offered[-1]
                assert priority == 7
                answers, image = decode_answers(payload)
                assert self.downlink.handle(Delivered(name))
                yield [answer.n for answer in answers], len(image)
            else:
                self.now = min(max(self.downlink.wakeup(), self.now + 60), until_s + 1)


def test_answers_travel_together_and_once(tmp_path: Path) -> None:
    board = Downlinked(tmp_path, confidence=(0.2, 0.8))
    board.answer(0.1, 0.5, 0.9, 0.8, 0.2)
    assert [*board.run(100)] == [([2, 4, 5], 0)]
    board.answer(0.3)
    board.begin()  # a restart
    assert [*board.run(200)] == [([6], 0)]
    board.begin()
    assert [*board.run(300)] == []


def test_more_answers_than_one_object_holds(tmp_path: Path) -> None:
    board = Downlinked(tmp_path)
    board.answer(*[0.5] * 100)
    assert [len(answers) for answers, _ in board.run(10)] == [64, 36]
    assert board.kept.done == 100


def test_images_travel_one_by_one_within_the_quota_of_a_day(tmp_path: Path) -> None:
    board = Downlinked(tmp_path, images=True, bytes_per_day=10_000)
    board.answer(*[0.5] * 6, size=4000)
    first = [*board.run(3600)]
    assert first == [([1], 4000), ([2], 4000)]
    board.begin()  # a restart gives no quota back
    assert [*board.run(7200)] == []
    day = [*board.run(86_400 + 7200)]
    assert 2 <= len(day) <= 3
    assert all(size == 4000 for _, size in day)


def test_an_image_that_cannot_travel_leaves_its_answer(tmp_path: Path) -> None:
    board = Downlinked(tmp_path, images=True, bytes_per_day=4096)
    board.answer(0.5, size=5000)  # beyond a whole day's quota
    board.answer(0.5, 0.5, size=100)
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").write_bytes(b"another image")
    assert [*board.run(10)] == [([1], 0), ([2], 0), ([3], 0)]


def test_what_the_ground_refuses_is_not_offered_again(tmp_path: Path) -> None:
    board = Downlinked(tmp_path)
    board.answer(0.5)
    board.downlink.turn(board.link, 0.0)  # type: ignore[arg-type]
    ((name, _, _),) = board.link.offered
    board.downlink.offer_again()  # the link began again
    board.downlink.turn(board.link, 1.0)  # type: ignore[arg-type]
    assert [each[0] for each in board.link.offered] == [name, name]
    assert not board.downlink.handle(Delivered(bytes(16)))
    assert board.downlink.handle(Cancelled(name, "refused"))
    board.downlink.turn(board.link, 2.0)  # type: ignore[arg-type]
    assert len(board.link.offered) == 2
    assert math.isinf(board.downlink.wakeup())


def arrived(image: str = "a.png", content: bytes = b"file", n: int = 7) -> Arrived:
    record = AnswerRecord(n=n, image=image, key="", at=1.0, model="m")
    payload = encode_answers((record,), content)
    return Arrived(digest(ANSWERS, payload), ANSWERS, payload)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("sub/scene 1.JPG", "scene_1.jpg"), ("../../etc/passwd", "passwd.bin"), ("a\x1b[2J.png", "a__2J.png"),
        ("x" * 300 + ".png", "x" * 80 + ".png"), ("..", "__.bin"), ("", ".bin"),
    ],
)  # fmt: skip
def test_the_ground_names_the_files(name: str, kept: str, tmp_path: Path) -> None:
    desk, link = AnswersDesk(tmp_path), RecordedLink()
    station: Any = SimpleNamespace(node=SimpleNamespace(name="pi"), session=link)
    for _ in range(2):  # it may come again
        assert desk.handle(station, arrived(name), 0.0)
    files = sorted((tmp_path / "images" / "pi").iterdir())
    assert len(files) == 2
    (image,) = (file for file in files if file.suffix != ".jsonl")
    assert (image.name.partition("-")[2].partition("-")[2].partition("-")[2], image.read_bytes()) == (
        kept,
        b"file",
    )
    (told,) = (file for file in files if file.suffix == ".jsonl")
    assert json.loads(told.read_text())["n"] == 7
    assert len(link.accepted) == 2


def test_nothing_is_acknowledged_that_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk, link = AnswersDesk(tmp_path), RecordedLink()
    station: Any = SimpleNamespace(node=SimpleNamespace(name="pi"), session=link)
    (tmp_path / "images").write_text("in the way")
    with caplog.at_level(logging.INFO):
        assert desk.handle(station, arrived(), 0.0)
        desk.step(10.0)
        assert (link.accepted, len(caplog.records)) == ([], 1)
        (tmp_path / "images").unlink()
        desk.step(20.0)
    assert len(link.accepted) == 1
    monkeypatch.setattr(received_answers, "MOST_BYTES", 100)
    desk.handle(station, arrived(n=8), 30.0)
    assert len(link.refused) == 1


@given(st.binary(max_size=200))
def test_any_bytes_are_answers_or_refused(payload: bytes) -> None:
    try:
        answers, _ = decode_answers(payload)
    except BadMessage:
        return
    assert answers
