"""A file that comes in parts is whole or not there, whatever is cut or damaged on the way."""

from __future__ import annotations

import random
from collections.abc import Generator
from hashlib import blake2s
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.disk import Disk, PowerCut, watched
from onboard.mission import files as protocol
from onboard.mission.files import MAX_FILE_BYTES, FilePart, FileSender, FileStream
from onboard.storage import partial_file
from onboard.storage.partial_file import PartialFile, TooLarge
from onboard.wire.events import Delivered
from onboard.wire.messages import digest
from tests.onboard.storage.test_delta import made

PART = 64


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (protocol, partial_file):
        monkeypatch.setattr(module, "PART_BYTES", PART)
    monkeypatch.setattr(partial_file, "SLICE_BYTES", 100)
    monkeypatch.setattr(partial_file, "RESERVE_BYTES", 0)


def digest_of(content: bytes) -> bytes:
    return blake2s(content, digest_size=16).digest()


def cut(content: bytes, named: bytes = b"", base: bytes = b"") -> list[FilePart]:
    name = named or digest_of(content)
    return [
        FilePart(name, len(content), at, content[at : at + PART], base) for at in range(0, len(content), PART)
    ]


def take(partial: PartialFile, parts: list[FilePart]) -> None:
    for part in parts:
        partial.take(part, digest(6, bytes(part.data)), MAX_FILE_BYTES)


def ended(steps: Generator[bool, None, bool]) -> bool:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return bool(end.value)


@given(st.binary(min_size=1, max_size=500), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=25)
def test_parts_in_any_order_become_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, source: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    parts = cut(content)
    source.shuffle(parts)
    for part in parts:
        partial = PartialFile(folder, digest_of(content))  # as after a kill
        assert not partial.is_complete
        take(partial, [part])
    partial = PartialFile(folder, digest_of(content))
    assert partial.is_complete
    assert ended(partial.finish(folder / "whole", None))
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("whole", content)]


@pytest.mark.parametrize("seed", range(30))
def test_a_power_cut_at_any_sync_loses_no_part_that_was_vouched_for(seed: int, tmp_path: Path) -> None:
    source = random.Random(seed)
    content = source.randbytes(300)
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    done: set[int] = set()
    with watched([disk]):
        while not (folder / "whole").exists():
            disk.syncs_left = source.choice([None, *range(6)])
            try:
                partial = PartialFile(folder, digest_of(content))
                held = int.from_bytes(partial.wanted().held, "little")
                if not partial.is_complete:
                    assert done <= {nth for nth in range(5) if held >> nth & 1}
                for part in cut(content):
                    if not held >> part.offset // PART & 1:
                        take(partial, [part])
                        done.add(part.offset // PART)
                if not ended(partial.finish(folder / "whole", None)):
                    done.clear()
            except PowerCut:
                disk.cut(source)
    assert (folder / "whole").read_bytes() == content


def test_a_flipped_bit_is_found_and_everything_comes_again(tmp_path: Path) -> None:
    content = bytes(range(200))
    partial = PartialFile(tmp_path, digest_of(content))
    take(partial, cut(content))
    (data,) = tmp_path.glob("*.parts")
    data.write_bytes(b"\1" + content[1:])
    assert not ended(partial.finish(tmp_path / "whole", None))
    assert list(tmp_path.iterdir()) == []
    assert not partial.is_complete
    take(partial, cut(content))
    assert ended(partial.finish(tmp_path / "whole", None))


def test_a_map_that_says_nonsense_is_nothing(tmp_path: Path) -> None:
    content = bytes(range(200))
    take(PartialFile(tmp_path, digest_of(content)), cut(content))
    (map_,) = tmp_path.glob("*.map")
    map_.write_bytes(map_.read_bytes()[:-1] + b"?")
    assert PartialFile(tmp_path, digest_of(content)).size == 0


def test_what_is_too_large_is_refused_before_a_byte_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialFile(tmp_path, bytes(16))
    with pytest.raises(TooLarge, match="limit is 100 B"):
        partial.take(FilePart(bytes(16), 101, 0, bytes(PART)), bytes(16), 100)
    monkeypatch.setattr(partial_file, "RESERVE_BYTES", 2**60)
    with pytest.raises(TooLarge, match="disk has room for 0 B"):
        partial.take(FilePart(bytes(16), 101, 0, bytes(PART)), bytes(16), 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_come_as_its_delta_or_change_its_mind(tmp_path: Path) -> None:
    source = random.Random(0)
    old = source.randbytes(1000)
    new = bytes(each ^ (nth % 4 == 0) for nth, each in enumerate(old))
    base = tmp_path / "old"
    base.write_bytes(old)
    partial = PartialFile(tmp_path, digest_of(new))
    take(partial, cut(new)[:3])  # then the sender finds that a delta is smaller
    stream = made(old, new)
    take(partial, cut(stream, digest_of(new), digest_of(old)))
    assert partial.wanted().base == digest_of(old)
    assert ended(partial.finish(tmp_path / "whole", base))
    assert (tmp_path / "whole").read_bytes() == new
    for wrong in (None, tmp_path / "whole"):
        take(partial, cut(stream, digest_of(new), digest_of(old)))
        assert not ended(partial.finish(tmp_path / "again", wrong))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "whole"]


def test_what_a_sender_sends_is_what_a_partial_takes(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(1000)

    class OpenHand:
        def offer(self, kind: int, payload: bytes, now: float, *, priority: int) -> bytes:
            name = digest(kind, payload)
            partial.take(protocol.decode_part(payload), name, MAX_FILE_BYTES)
            names.append(name)
            return name

    names: list[bytes] = []
    partial = PartialFile(tmp_path, digest_of(content))
    sender = FileSender(FileStream(digest_of(content), 1000, lambda at, count: content[at : at + count]))
    while not sender.is_over:
        sender.step(OpenHand(), 0.0)  # type: ignore[arg-type]
        sender.handle(Delivered(names.pop(0)))
    assert ended(partial.finish(tmp_path / "whole", None))
    assert (tmp_path / "whole").read_bytes() == content
