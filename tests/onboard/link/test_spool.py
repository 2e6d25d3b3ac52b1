"""Killed or cut at any instant, on a full disk or a worn one, the spool never vouches for a wrong byte."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2s
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onboard.link.spool import REMEMBERED, Spool
from onboard.storage import files
from onboard.wire.transfer.incoming import Incoming, Partial
from tests.disks import small_disk
from tests.onboard.link.objects import incoming, payload, receive

MIB = 1 << 20


def held_bytes(partial: Partial) -> dict[int, bytes]:
    """The fragments that a partial vouches for."""
    size = partial.fragment_bytes
    return {
        index: bytes(partial.data[index * size : index * size + size])
        for index in range(partial.held.bit_length())
        if partial.held >> index & 1
    }


def assert_true(partial: Partial, whole: bytes) -> None:
    """What the partial vouches for is what was sent."""
    size = partial.fragment_bytes
    assert partial.size == len(whole)
    for index, data in held_bytes(partial).items():
        assert data == whole[index * size : index * size + size]


@given(
    st.integers(0, 3000),
    st.integers(1, 400),
    st.lists(st.sets(st.integers(0, 40), max_size=10), max_size=5),
)
@settings(max_examples=40)
def test_what_was_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, size: int, fragment_bytes: int, batches: list[set[int]]
) -> None:
    whole = payload(size)
    folder = tmp_path_factory.mktemp("spool")
    spool, half = Spool(folder, MIB), incoming(whole, fragment_bytes)
    half.end_by(size, 0.0)
    spool.save(half)
    for batch in batches:
        receive(half, whole, (index for index in batch if index < half.count))
        spool.save(half)
        assert not half.dirty
        (loaded,) = Spool(folder, MIB).load()
        assert loaded.held == half.held
        assert (loaded.digest, loaded.kind) == (half.digest, half.kind)
        assert (loaded.fragment_bytes, loaded.deadline_s) == (fragment_bytes, size)
        assert_true(loaded, whole)


def test_what_was_not_saved_is_not_vouched_for(tmp_path: Path) -> None:
    whole = payload(1000)
    spool, half = Spool(tmp_path, MIB), incoming(whole, 100, [0, 1])
    spool.save(half)
    receive(half, whole, [2, 3])
    (loaded,) = Spool(tmp_path, MIB).load()
    assert loaded.held == 0b11


def test_finished_objects_are_remembered_and_their_bytes_dropped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, MIB)
    digests = [index.to_bytes(16, "big") for index in range(REMEMBERED + 10)]
    half = incoming(payload(100), 100, [0])
    spool.save(half)
    for digest in [*digests, half.digest, digests[-1]]:
        spool.finish(digest)
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]
    again = Spool(tmp_path, MIB)
    assert again.finished() == (*digests[11:], half.digest)
    assert again.load() == []


def test_a_dropped_object_is_gone(tmp_path: Path) -> None:
    spool, half = Spool(tmp_path, MIB), incoming(payload(500), 100, range(5))
    spool.save(half)
    spool.drop(half.digest)
    spool.drop(half.digest)
    assert Spool(tmp_path, MIB).load() == []
    assert list(tmp_path.iterdir()) == []


class Crash(Exception):  # noqa: N818 - a power cut is no error
    """The process ends here."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records the system calls that change the disk; `calls[0]` = "N" ends the process before the N-th."""
    made = ["none"]

    def watch(name: str, owner: Any, describe: Any) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if made[0] == str(len(made)):
                raise Crash
            made.append(describe(*args))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    def file_of(handle: int, *_: object) -> str:
        return Path(f"/proc/self/fd/{handle}").readlink().suffix or "folder"

    watch("pwrite", os, lambda handle, *_: f"write {file_of(handle)}")
    watch("fsync", os, lambda handle: f"sync {file_of(handle)}")
    watch("_open_to_write", files, lambda path, *_: f"open {path.suffix}")
    watch("replace", Path, lambda source, target: f"replace {target.suffix}")
    watch("unlink", Path, lambda path, **_: f"unlink {path.suffix}")
    yield made
    made[0] = "none"


def test_bytes_are_on_the_disk_before_the_map_and_the_map_before_its_name(
    tmp_path: Path, calls: list[str]
) -> None:
    folder = tmp_path / "spool"
    Spool(folder, MIB).save(incoming(payload(200), 100, [0, 1]))
    in_order = "write .part, write .part, sync .part, open .new, sync .new, replace .map, sync folder"
    assert ", ".join(calls[1:]) == in_order


@pytest.mark.parametrize("step", range(1, 15))
def test_cut_before_any_change_of_the_disk(tmp_path: Path, calls: list[str], step: int) -> None:
    whole = payload(400)
    spool, half = Spool(tmp_path, MIB), incoming(whole, 100, [0])
    spool.save(half)
    saved_before = half.held
    receive(half, whole, [1, 2, 3])
    del calls[1:]
    calls[0] = str(step)
    accepted = False
    try:
        spool.save(half)  # 8 changes
        saved_before, accepted = half.held, True
        spool.finish(half.digest)  # 6 changes
        raise AssertionError(f"{len(calls) - 1} changes were fewer than {step}")
    except Crash:
        pass
    calls[0] = "none"
    after = Spool(tmp_path, MIB)
    loaded = after.load()
    assert after.discarded == 0
    assert loaded or accepted
    for partial in loaded:
        assert partial.held & saved_before == saved_before
        assert_true(partial, whole)
    if not loaded:
        assert after.finished() == (half.digest,)
    assert not list(tmp_path.glob("*.new"))


WRITER = """
import sys
from pathlib import Path
from onboard.link.spool import Spool
from tests.onboard.link.objects import incoming, payload, receive
whole = payload(200_000)
spool, half = Spool(Path(sys.argv[1]), 1 << 20), incoming(whole, 100)
for start in range(0, half.count, 7):
    receive(half, whole, range(start, min(start + 7, half.count)))
    spool.save(half)
    print(half.have, flush=True)
"""


@pytest.mark.parametrize("saves", [1, 12, 40])
def test_killed_while_writing(tmp_path: Path, saves: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(saves)]
    child.send_signal(signal.SIGKILL)  # it is writing the next batch by now, somewhere
    said += [int(line) for line in child.stdout.read().split("\n")[:-1]]
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    spool = Spool(tmp_path, MIB)
    (loaded,) = spool.load()
    assert spool.discarded == 0
    assert said[-1] <= loaded.held.bit_count() <= said[-1] + 7
    assert_true(loaded, payload(200_000))
    half = Incoming.of(loaded)  # and goes on from there
    receive(half, payload(200_000), range(half.count))
    assert half.verified() == payload(200_000)


@pytest.mark.parametrize("suffix", ["map", "part"])
@given(data=st.data())
@settings(max_examples=40)
def test_a_damaged_file_is_dropped_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    whole = payload(1000)
    spool, half = Spool(folder, MIB), incoming(whole, 100, [0, 3, 4])
    spool.save(half)
    path = folder / f"{half.digest.hex()}.{suffix}"
    content = path.read_bytes()
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    path.write_bytes(data.draw(st.sampled_from([cut, b"", os.urandom(len(content)), content + b"x"])))
    spool = Spool(folder, MIB)
    loaded = spool.load()
    assert len(loaded) + spool.discarded == 1
    if suffix == "map":
        assert loaded == []
        assert list(folder.iterdir()) == []
    for partial in loaded:  # the bytes are the digest's to check; the map is still the one that was written
        assert partial.held == half.held
        assert len(partial.data) == partial.size


def test_a_map_under_another_name_is_dropped(tmp_path: Path) -> None:
    half = incoming(payload(100), 100, [0])
    Spool(tmp_path, MIB).save(half)
    for suffix in ("map", "part"):
        (tmp_path / f"{half.digest.hex()}.{suffix}").rename(tmp_path / f"{bytes(16).hex()}.{suffix}")
    spool = Spool(tmp_path, MIB)
    assert spool.load() == []
    assert spool.discarded == 1


@given(st.binary(max_size=100))
@settings(max_examples=40)
def test_a_damaged_list_of_finished_objects_starts_anew(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    (folder / "finished").write_bytes(content)
    spool = Spool(folder, MIB)
    assert spool.finished() == ()
    assert spool.discarded == 1
    spool.finish(bytes(16))
    assert Spool(folder, MIB).finished() == (bytes(16),)


def test_another_link_s_list_of_finished_objects_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = tmp_path / "board-1", tmp_path / "board-2"
    Spool(own, MIB).finish(bytes(16))
    Spool(other, MIB).finish(bytes(range(16)))
    (own / "finished").write_bytes((other / "finished").read_bytes())
    spool = Spool(own, MIB)
    assert spool.finished() == ()
    assert [record.fields["path"] for record in caplog.records] == [str(own / "finished")]
    assert Spool(other, MIB).finished() == (bytes(range(16)),)


def test_a_list_of_finished_objects_of_an_earlier_version_is_taken(tmp_path: Path) -> None:
    body = b"sdd1" + bytes(range(32))
    (tmp_path / "finished").write_bytes(body + blake2s(body, digest_size=16).digest())
    assert Spool(tmp_path, MIB).finished() == (bytes(range(16)), bytes(range(16, 32)))


def test_the_limit_holds_for_all_objects_together(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    first, second = incoming(payload(600, 1), 100, [0]), incoming(payload(600, 2), 100, [0])
    spool.save(first)
    with pytest.raises(OSError, match="limit") as caught:
        spool.save(second)
    assert caught.value.errno == errno.ENOSPC
    assert second.dirty == 0b1
    spool.save(first)
    spool.finish(first.digest)
    spool.save(second)
    assert [partial.digest for partial in Spool(tmp_path, 1000).load()] == [second.digest]


def test_more_than_the_limit_is_never_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As an earlier version left it, which had no such limit: the newest objects stay."""
    before = Spool(tmp_path, 100 * MIB)
    whole = [payload(size, size) for size in (300, 400, 500, 2000)]
    for age, content in enumerate(whole):
        half = incoming(content, 100, [0])
        before.save(half)
        os.utime(tmp_path / f"{half.digest.hex()}.map", (1000 + age, 1000 + age))
    spool = Spool(tmp_path, 1000)
    assert [partial.size for partial in spool.load()] == [400, 500]
    assert spool.discarded == 0
    assert len(list(tmp_path.iterdir())) == 4
    assert [partial.size for partial in Spool(tmp_path, 1000).load()] == [400, 500]
    (record,) = caplog.records
    assert record.getMessage() == "spool-dropped"
    told = {"path": str(tmp_path), "objects": 2, "limit_bytes": 1000}
    assert getattr(record, "fields", {}) == told


FILL = """
import sys
from pathlib import Path
from onboard.link.spool import Spool
from onboard.wire.transfer.fragments import indices
from tests.onboard.link.objects import incoming, payload, receive
limit = int(sys.argv[2])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
first, second = payload(20_000, 1), payload(200_000, 2)
spool = Spool(Path(sys.argv[1]), 1 << 20)
spool.save(incoming(first, 1000, range(20)))
half = incoming(second, 1000)
for index in range(half.count):
    receive(half, second, [index])
    try:
        spool.save(half)
    except OSError as error:
        print(error.errno, index, list(indices(half.dirty)))
        break
"""


def fill(folder: Path, limit: int) -> tuple[int, int]:
    """Runs FILL in a process of its own: the errno that stopped it, and at which fragment."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(folder), str(limit)], capture_output=True, text=True, check=True
    )
    number, index, dirty = done.stdout.split(maxsplit=2)
    assert dirty.strip() == f"[{index}]"  # only what could not be stored is still to be stored
    return int(number), int(index)


def assert_undamaged(folder: Path, stopped_at: int) -> None:
    spool = Spool(folder, MIB)
    loaded = {partial.size: partial for partial in spool.load()}
    assert spool.discarded == 0
    assert loaded[20_000].held == (1 << 20) - 1
    assert loaded[200_000].held == (1 << stopped_at) - 1
    assert_true(loaded[20_000], payload(20_000, 1))
    assert_true(loaded[200_000], payload(200_000, 2))


def test_a_file_that_may_not_grow_damages_nothing(tmp_path: Path) -> None:
    number, index = fill(tmp_path, 50_500)
    assert number == errno.EFBIG
    assert index == 50
    assert_undamaged(tmp_path, index)


def test_a_full_disk_damages_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "96k") as disk:
        number, index = fill(disk, 0)
        assert number == errno.ENOSPC
        assert index > 20
        assert_undamaged(disk, index)
