"""The database in other hands: a shell that holds it, another user who looks, a file that goes away. The
links live on, everything is closed at the end, and what is wrong is one line."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from firmware_sim.runs.processes import ProcessGroup, free_ports
from groundstation.cli import main
from groundstation.config import load_mission
from groundstation.daemon import _close
from groundstation.station import Station
from groundstation.store.store import Store, StoreBusy
from tests.disks import remount, small_disk
from tests.missions.bench import run


def images(path: Path, rows: int = 20) -> None:
    """Data that the ground can judge on and a board can train on."""
    x = np.zeros((rows, 1, 28, 28), np.uint8)
    x[:, 0, ::2] = np.arange(rows, dtype=np.uint8)[:, None, None] * 10
    y = np.arange(rows) % 10
    np.savez(path, x=x, y=y, x_test=x, y_test=y)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """A shell in which somebody has typed BEGIN IMMEDIATE."""
    shell = sqlite3.connect(path, isolation_level=None)
    try:
        shell.execute("BEGIN IMMEDIATE")
        yield
    finally:
        shell.close()


def ends_within(crew: ProcessGroup, name: str, within_s: float) -> int:
    process = crew.members[name].process
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=within_s)


def test_a_shell_that_holds_the_database_stops_no_link_and_no_end(tmp_path: Path) -> None:
    mission = tmp_path / "mission"
    images(tmp_path / "test.npz")
    here, there = (f"127.0.0.1:{port}" for port in free_ports(2))
    node = f"pi,port=udp://{there}?bind={here},board-port=udp://{here}?bind={there}"
    run("groundstation", "init", str(mission), "--node", node, "--data", f"npz:{tmp_path / 'test.npz'}")
    images(mission / "boards" / "pi" / "data.npz")
    crew, said = ProcessGroup(tmp_path / "logs"), list[dict[str, Any]]()

    def until(event: str, timeout_s: float = 30.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            for name, one in crew.listen(0.05):
                said.extend([one] if name == "ground" else [])
            if found := [one for one in said if one["event"] == event]:
                return found[0]
            assert time.monotonic() < deadline, said

    try:
        crew.start("ground", "groundstation", "serve", str(mission), "--log", "json", "--report-every", "0.1")
        until("links")
        with held(mission / "mission.sqlite"):
            crew.start("board", "onboard", "run", str(mission / "boards" / "pi" / "node.toml"))
            failed = until("store-failed")
            assert (
                failed["why"] == f"{mission / 'mission.sqlite'}: database is locked: another program holds it"
            )
            reports, began_s = len(said), time.monotonic()
            while time.monotonic() < began_s + 1.5:
                until("store-failed")
            at = [one["at"] for one in said[reports:] if one["event"] == "links"]
            assert max(later - one for one, later in itertools.pairwise(at)) < 0.7  # it was 10 s
            assert len([one for one in said if one["event"] == "store-failed"]) == 1
        until("store-works")
        with held(mission / "mission.sqlite"):
            assert ends_within(crew, "ground", 3.0) == 0  # it was 11 s
        until("close-failed")
        assert (tmp_path / "logs" / "ground.err").read_text() == ""
    finally:
        list(crew.stop())


def test_a_held_database_is_busy_at_once_and_nothing_is_half_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "mission.sqlite")
    store.begin(b"12345678", "m", 0, b"g")
    store.enter_node(1, "pi")
    store.never_wait()
    with held(store.path):
        began_s = time.monotonic()
        with pytest.raises(StoreBusy, match="database is locked: another program holds it"):
            store.count(1, {"frames_sent": 5.0})
        assert time.monotonic() - began_s < 0.5
        assert store.counters(1) == {}  # reading goes on
    store.count(1, {"frames_sent": 5.0})
    assert store.counters(1) == {"frames_sent": 5.0}
    store.close()


def test_every_link_is_closed_though_the_database_refuses(tmp_path: Path) -> None:
    nodes = [
        word
        for number in range(3)
        for word in ("--node", f"b{number},port=udp://127.0.0.1:9?bind=127.0.0.1:{free_ports(1)[0]}")
    ]
    run("groundstation", "init", str(tmp_path), *nodes)
    mission = load_mission(tmp_path)
    store = Store(mission.database)
    store.begin(b"12345678", "m", 0, b"g")
    stations = {node.id: Station(node, store, mission.folder, 0.0) for node in mission.nodes}
    store.never_wait()
    for station in stations.values():
        station.endpoint.poll(0.0, 0.0)
        assert station.endpoint.pump.is_open
    with held(mission.database):
        _close(stations, store)
    assert [station.endpoint.pump.is_open for station in stations.values()] == [False] * 3


@pytest.mark.parametrize(
    "fate", ["removed", "replaced", "moved away", "log removed", "index removed", "all removed"]
)
def test_a_database_that_goes_away_is_written_anew_with_all_that_was_in_it(
    fate: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mission.sqlite"
    store = Store(path)
    store.begin(b"12345678", "m", 0, b"g")
    store.enter_node(1, "pi")
    store.open_round(1, b"model", [1], 0.0, 1.0)
    if fate == "replaced":
        (tmp_path / "copy").write_bytes(b"what an operator has put there by mistake")
        (tmp_path / "copy").replace(path)
    elif fate == "moved away":
        path.rename(tmp_path / "elsewhere")
    else:
        sides = {"removed": [""], "log removed": ["-wal"], "index removed": ["-shm"]}
        for side in sides.get(fate, ["", "-wal", "-shm"]):
            path.with_name(path.name + side).unlink()
    store.count(1, {"frames_sent": 5.0})
    store.mark(1, 1, "delivered", 3.0)
    (told,) = [r for r in caplog.records if r.getMessage() == "database-rewritten"]
    fields = told.__dict__["fields"]
    store.db._db.close()  # a kill: nothing is folded in by an orderly end
    again = Store(path)
    assert again.counters(1) == {"frames_sent": 5.0}
    assert [answer["state"] for answer in again.answers(1)] == ["delivered"]
    assert len(caplog.records) == 1
    if fate == "replaced":
        assert Path(fields["aside"]).read_bytes() == b"what an operator has put there by mistake"
    again.close()


# -- another user ------------------------------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A mission that its user lets everybody look at."""
    folder = Path(tempfile.mkdtemp(prefix="mission-"))
    try:
        folder.chmod(0o755)
        run("groundstation", "init", str(folder / "m"), "--node", "pi,port=/dev/ttyUSB0")
        store = Store(folder / "m" / "mission.sqlite")
        store.begin(b"12345678", "m", 0, b"g")
        store.enter_node(1, "pi")
        store.open_round(1, b"model", [1], 0.0, 1.0)
        store.close()
        for path, mode in (("", 0o755), ("mission.toml", 0o644), ("mission.sqlite", 0o644)):
            (folder / "m" / path).chmod(mode)  # as docs/reference/files.md says, once
        yield folder / "m"
    finally:
        shutil.rmtree(folder)


def status_as_nobody(folder: Path) -> tuple[int, str]:
    """What `groundstation status --json` gives a user who may write nothing here; the exit code, the text."""
    CliRunner().invoke(main, ["status", "/nowhere"])  # so that all is imported
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            result = CliRunner().invoke(main, ["status", str(folder), "--json"])
            os.write(writable, result.output.encode())
            code = result.exit_code
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable) as told:
        text = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("state", ["stopped", "running", "killed", "copied without its index"])
def test_another_user_sees_where_the_mission_stands(state: str, public: Path) -> None:
    path = public / "mission.sqlite"
    if state == "stopped":
        assert status_as_nobody(public)[0] == 0
        rounds = 1
    else:
        writer = Store(path)
        writer.open_round(2, b"model", [1], 0.0, 1.0)
        rounds = 2
        if state != "running":
            kept = public.parent / "kept"
            shutil.copytree(public, kept)  # as a kill leaves it
            writer.close()
            shutil.rmtree(public)
            kept.rename(public)
            if state != "killed":
                (public / "mission.sqlite-shm").unlink()
    before = {entry.name for entry in public.iterdir()}
    code, text = status_as_nobody(public)
    assert code == 0, text
    assert [row["round"] for row in json.loads(text)["rounds"]] == list(range(1, rounds + 1))
    assert {entry.name for entry in public.iterdir()} == before
    if state == "running":
        writer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_mission_that_another_user_may_not_read_is_one_line(public: Path) -> None:
    (public / "mission.sqlite").chmod(0o600)
    code, text = status_as_nobody(public)
    assert code == 1
    assert text == f"{public / 'mission.sqlite'}: unable to open database file\n"
    public.chmod(0o700)
    code, text = status_as_nobody(public)
    assert code in (1, 2)
    assert text.count("\n") == 1
    assert str(public) in text


# -- disks -------------------------------------------------------------------------------------------------


def test_a_disk_that_cannot_be_written_is_one_line_and_status_still_tells(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "4m"):
        mission = disk / "m"
        images(tmp_path / "test.npz")
        run(
            "groundstation", "init", str(mission), "--node", "pi,port=/dev/ttyUSB0",
            "--data", f"npz:{tmp_path / 'test.npz'}",
        )  # fmt: skip
        store = Store(mission / "mission.sqlite")
        store.begin(b"12345678", "m", 0, b"g")
        store.close()
        remount(disk, "ro")
        told = run("groundstation", "serve", str(mission), code=1)
        assert told.stderr == f"{mission}/lock: Read-only file system\n"
        told = run("groundstation", "init", str(disk / "n"), "--node", "pi,port=/dev/a", code=1)
        assert told.stderr == f"{disk / 'n'}: Read-only file system\n"
        told = run("groundstation", "roll", str(mission), "pi", code=1)
        assert told.stderr == f"{mission}/keys/lock: Read-only file system\n"
        told = run("firmware_sim", "demo", "--out", str(disk / "demo"), code=1)
        assert told.stderr == f"{disk / 'demo'}: Read-only file system\n"
        assert json.loads(run("groundstation", "status", str(mission), "--json").stdout)["rounds"] == []


def test_an_init_that_the_disk_ends_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    disk, codes = tmp_path / "disk", list[int]()
    with small_disk(disk, "64k"):
        for pages in range(15, -1, -1):
            (disk / "ballast").write_bytes(bytes(4096 * pages))
            result = CliRunner().invoke(main, ["init", str(disk / "m"), "--node", "pi,port=/dev/ttyUSB0"])
            codes.append(result.exit_code)
            if result.exit_code == 1:
                assert result.stderr.count("\n") == 1
                assert result.stderr.endswith("No space left on device\n")
                assert result.stdout == ""
                assert not list(disk.rglob("*.key"))
    assert set(codes) == {0, 1, 2}  # full; enough; and then there is a mission already
    assert codes == sorted(codes, key=[1, 0, 2].index)


def test_a_mission_is_on_the_disk_before_it_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = set[tuple[int, int]](), os.fsync

    def noted(fd: int) -> None:
        found = os.fstat(fd)
        synced.add((found.st_dev, found.st_ino))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    folder = tmp_path / "m"
    assert CliRunner().invoke(main, ["init", str(folder), "--node", "pi,port=/dev/a"]).exit_code == 0
    made = [folder, *(path for path in folder.rglob("*") if path.name != "lock")]
    unsynced = [path for path in made if (path.stat().st_dev, path.stat().st_ino) not in synced]
    assert unsynced == []
    assert (tmp_path.stat().st_dev, tmp_path.stat().st_ino) in synced
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in folder.rglob("*.key"))
