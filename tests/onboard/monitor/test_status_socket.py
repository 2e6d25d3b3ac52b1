"""A running program shows its state to whoever may ask, never waits for a viewer, and writes no file."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onboard.monitor.status_socket import Lookout, NobodyThere, look


@pytest.fixture
def lookout(tmp_path: Path) -> Iterator[Lookout]:
    lookout = Lookout(tmp_path)
    yield lookout
    lookout.close()


def looks(folder: Path) -> tuple[threading.Thread, list[Any]]:
    """A viewer on its way, and what it will have seen."""
    seen: list[Any] = []

    def run() -> None:
        try:
            seen.append(look(folder))
        except NobodyThere as error:
            seen.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, seen


def serve(lookout: Lookout, view: dict[str, Any], *threads: threading.Thread) -> int:
    """Answers until all viewers are content; returns how often the view was made."""
    made = 0

    def make() -> dict[str, Any]:
        nonlocal made
        made += 1
        return view

    while any(thread.is_alive() for thread in threads):
        lookout.answer(make)
        threads[0].join(0.001)
    return made


def test_a_viewer_sees_the_state_and_the_folder_stays_empty(lookout: Lookout, tmp_path: Path) -> None:
    thread, seen = looks(tmp_path)
    assert serve(lookout, {"round": 3, "loss": float("nan")}, thread) == 1
    assert seen == [{"round": 3, "loss": None}]
    assert list(tmp_path.iterdir()) == []


def test_a_view_is_made_only_when_somebody_asks(lookout: Lookout) -> None:
    made: list[int] = []
    lookout.answer(lambda: made.append(1))
    assert made == []


def test_a_view_larger_than_a_socket_takes_follows_in_parts(lookout: Lookout, tmp_path: Path) -> None:
    view = {"links": [{"node": f"board-{number}", "text": "x" * 5_000} for number in range(254)]}
    first, second = looks(tmp_path), looks(tmp_path)
    serve(lookout, view, first[0], second[0])
    assert first[1] == second[1] == [view]


def test_a_viewer_that_never_reads_holds_nobody_up(lookout: Lookout, tmp_path: Path) -> None:
    view = {"text": "x" * 1_000_000}
    stuck = socket.socket(socket.AF_UNIX)
    stuck.connect(name_of(tmp_path))
    thread, seen = looks(tmp_path)
    serve(lookout, view, thread)
    assert seen == [view]
    stuck.close()
    lookout.answer(lambda: pytest.fail("nobody asked"))


def name_of(folder: Path) -> bytes:
    """The socket's name, as /proc/net/unix shows it."""
    with Path("/proc/net/unix").open() as table:
        inode = f":{folder.stat().st_ino:x}"
        (name,) = {line.split()[-1] for line in table if line.rstrip().endswith(inode)}
    return name.replace("@", "\0").encode()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NobodyThere, match="no program runs on it"):
        look(tmp_path)
    with pytest.raises(NobodyThere, match="no program runs on it"):
        look(tmp_path / "not-made-yet")


def test_a_program_that_is_busy_is_not_waited_for_for_ever(lookout: Lookout, tmp_path: Path) -> None:
    with pytest.raises(NobodyThere, match=r"no answer within 0\.05 s"):
        look(tmp_path, timeout_s=0.05)


def test_a_program_that_ends_while_it_answers(
    lookout: Lookout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "onboard.monitor.status_socket._READ_BYTES", 1
    )  # a quick viewer could have all before the end
    thread, seen = looks(tmp_path)
    while not seen and thread.is_alive():
        lookout.answer(lambda: {"text": "x" * 1_000_000})
        lookout.close()
        thread.join(0.01)
    assert "ended" in seen[0] or "no program" in seen[0]


def test_another_name_taken_is_said_and_stops_nothing(
    lookout: Lookout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = Lookout(tmp_path)
    assert [record.getMessage() for record in caplog.records] == ["unwatched"]
    assert second.fds == ()
    second.answer(lambda: pytest.fail("nobody can ask"))
    second.close()
    thread, seen = looks(tmp_path)
    serve(lookout, {"round": 1}, thread)
    assert seen == [{"round": 1}]


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Inside the block this process is another user: the kernel notes who connects, and who listens."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_state_is_shown_to_its_owner_and_to_root_alone(lookout: Lookout, tmp_path: Path) -> None:
    name = name_of(tmp_path)
    with socket.socket(socket.AF_UNIX) as stranger:
        with somebody_else():
            stranger.connect(name)
        lookout.answer(lambda: pytest.fail("a stranger was answered"))
        assert stranger.recv(1) == b""


def test_another_user_s_program_is_not_believed(lookout: Lookout, tmp_path: Path) -> None:
    name = name_of(tmp_path)
    lookout.close()
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(name)
        with somebody_else():
            squatter.listen()
        with pytest.raises(NobodyThere, match="another user's program"):
            look(tmp_path)
