"""The journal gives back the last state that was saved: after damage, kill -9 and a full disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.storage.files import replace_durably, sole_user
from onboard.storage.journal import Journal, JournalError


class Saved(msgspec.Struct, kw_only=True):
    number: int = 0
    name: str = ""
    digest: bytes = b""


STATES = st.builds(
    Saved, number=st.integers(0, 2**60), name=st.text(max_size=40), digest=st.binary(max_size=99)
)


def slots(folder: Path) -> list[Path]:
    """The two slots, older first, by which was written last: `save` is the only writer."""
    paths = [folder / "journal.0", folder / "journal.1"]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


def test_a_new_folder_holds_nothing(tmp_path: Path) -> None:
    assert Journal(tmp_path / "a" / "b", Saved).load() is None


@given(st.lists(STATES, min_size=1, max_size=6))
def test_the_last_of_any_number_of_saves_comes_back(states: list[Saved]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), Saved)
        for state in states:
            journal.save(state)
            assert journal.load() == state
            assert Journal(Path(folder), Saved).load() == state


@given(STATES, STATES, STATES)
def test_a_process_that_saves_before_it_loads_is_not_behind(one: Saved, two: Saved, three: Saved) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first = Journal(Path(folder), Saved)
        first.save(one)
        first.save(two)
        Journal(Path(folder), Saved).save(three)
        assert Journal(Path(folder), Saved).load() == three


@given(st.data(), STATES, STATES)
def test_any_damage_to_one_slot_leaves_a_state_that_was_saved(
    data: st.DataObject, old: Saved, new: Saved
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(folder, Saved)
        journal.save(old)
        os.utime(folder / "journal.1", ns=(1, 1))
        journal.save(new)
        older, newer = slots(folder)
        damaged = data.draw(st.sampled_from([older, newer]))
        content = damaged.read_bytes()
        if data.draw(st.booleans()):
            damaged.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        else:
            bits = data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=8))
            flipped = int.from_bytes(content, "big")
            for bit in bits:
                flipped ^= 1 << bit
            damaged.write_bytes(flipped.to_bytes(len(content), "big"))
        left = Journal(folder, Saved)
        assert left.load() == (new if damaged == older else old)
        left.save(Saved(number=7))  # and the damage is written over, not the state that is left
        assert Journal(folder, Saved).load() == Saved(number=7)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_in_both_slots_are_nothing(one: bytes, two: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "journal.0").write_bytes(one)
        (Path(folder) / "journal.1").write_bytes(two)
        assert Journal(Path(folder), Saved).load() is None


def test_a_state_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    class Later(msgspec.Struct):
        number: str = "seven"

    Journal(tmp_path, Later).save(Later())
    with pytest.raises(JournalError, match=r"^state of another version of this program: Expected `int`"):
        Journal(tmp_path, Saved).load()
    assert Journal(tmp_path, Later).load() == Later()


SAVE_FOREVER = """
import sys
from pathlib import Path
from onboard.storage.journal import Journal
from tests.onboard.storage.test_journal import Saved
journal = Journal(Path(sys.argv[1]), Saved)
state = journal.load() or Saved()
while True:
    state.number += 1
    print(state.number, flush=True)      # told before it is saved: never less than what the disk can hold
    state.digest = bytes([state.number % 256]) * (state.number % 5000)
    journal.save(state)
    print(-state.number, flush=True)     # told after it is saved: never more than what the disk must hold
"""


def test_kill_9_at_any_moment_leaves_the_last_state_or_the_one_being_saved(tmp_path: Path) -> None:
    chance = random.Random(1)
    at_least = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(chance.randrange(3, 400))]
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.read().splitlines(keepends=True)
        told = [int(line) for line in lines if line.endswith("\n")]
        begun, saved = max(told), -min(told)
        state = Journal(tmp_path, Saved).load()
        assert state is not None
        assert max(at_least, saved) <= state.number <= begun
        assert state.digest == bytes([state.number % 256]) * (state.number % 5000)
        at_least = state.number
    assert at_least > 6


FILL = """
import resource, signal, sys
from pathlib import Path
from onboard.storage.journal import Journal
from tests.onboard.storage.test_journal import Saved
journal = Journal(Path(sys.argv[1]), Saved)
journal.save(Saved(number=1))
journal.save(Saved(number=2))
journal.keep("model.bin", b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # EFBIG where ENOSPC would be
big = bytes(9000)
for write in (lambda: journal.save(Saved(number=3, digest=big)), lambda: journal.keep("model.bin", big)):
    try:
        write()
    except OSError:
        print("refused")
assert journal.load() == Saved(number=2), journal.load()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.save(Saved(number=4, digest=bytes(9000)))
"""


def test_a_full_disk_refuses_and_damages_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "refused\nrefused\n", done.stderr
    assert done.returncode == 0, done.stderr
    journal = Journal(tmp_path, Saved)
    assert journal.load() == Saved(number=4, digest=bytes(9000))
    assert journal.fetch("model.bin") == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.0", "journal.1", "model.bin"]


def test_kept_files_come_back_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Saved)
    assert journal.fetch("update.bin") is None
    journal.keep("update.bin", b"one")
    journal.keep("update.bin", b"two")
    assert journal.fetch("update.bin") == b"two"
    journal.drop("update.bin", "absent.bin")
    assert journal.fetch("update.bin") is None


def test_a_cut_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    replace_durably(tmp_path / "model.bin", b"old")
    (tmp_path / "model.bin.new").write_bytes(b"ne")  # what a power cut in the middle leaves
    assert Journal(tmp_path, Saved).fetch("model.bin") == b"old"
    replace_durably(tmp_path / "model.bin", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
    assert (tmp_path / "model.bin").read_bytes() == b"new"


HOLD = """
import sys
from pathlib import Path
from onboard.storage.files import sole_user
with sole_user(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_one_process_at_a_time_has_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), sole_user(tmp_path):
            pass
        child.kill()  # the kernel lets go, whatever became of the process
        child.wait(timeout=20)
        with sole_user(tmp_path):
            pass
