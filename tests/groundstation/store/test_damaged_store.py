"""A database that a disk has damaged: the start comes up, nothing damaged is used, and it is told once."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import groundstation.store.store as stores
from groundstation.cli import main
from groundstation.commands import CommandRequest, CommandState, CommandTable
from groundstation.store.database import TABLES
from groundstation.store.store import Store, StoreDamaged, StoreForeign

MISSION, GRAPH = bytes(range(8)), bytes(range(8, 16))
METRICS = {"samples": 600, "loss": 0.25, "train_s": 12.0, "cpu_s": 11.0, "energy_j": 70.0}
NAME = "mission.sqlite"


def copied(path: Path, to: Path) -> Path:
    """All files of a database, as a kill leaves them."""
    to.mkdir(parents=True)
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, to)
    return to / path.name


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The database of a ground that was killed in its third round, and an older copy, of the second."""
    folder, noise = tmp_path_factory.mktemp("ground"), random.Random(1)
    path = folder / "m" / NAME
    path.parent.mkdir()
    store = Store(path)
    store.begin(MISSION, "m", 3, GRAPH, ("land", "sea"))
    for node in (1, 2, 3):
        store.enter_node(node, f"board-{node}")
    store.back_up()
    for number in (1, 2, 3):
        queued = {"node": number, "name": "ping", "queued_at": 100.0 * number, "expires_at": 9e9}
        (row,) = CommandTable(store).queue([CommandRequest(id=f"{number:016x}", **queued)])
        CommandTable(store).move(row, CommandState.SENT, 100.0 * number + 1)
        store.open_round(number, noise.randbytes(3000), [1, 2, 3], 100.0 * number, 100.0 * number + 90)
        for node in (1, 2):
            store.mark(number, node, "delivered", 100.0 * number + 5)
            store.count(node, {"frames_sent": number * 10.0, "bytes_sent": number * 1000.0})
            store.take_update(number, node, noise.randbytes(2000), METRICS, 100.0 * number + 9)
        if number == 2:
            older = copied(path, folder / "older")
        if number < 3:
            store.close_round(number, noise.randbytes(3000), 0.5 + number / 10, 0.3, 0.1, 100.0 * number + 20)
    newest = copied(path, folder / "killed")
    store.close()
    return newest, older


def rows(path: Path) -> dict[str, dict[Any, dict[str, Any]]]:
    """All that is stored, but for epochs and digests."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return {
            table: {
                tuple(row[name] for name in key): {
                    name: value for name, value in dict(row).items() if name not in ("epoch", "digest")
                }
                for row in db.execute(f"SELECT * FROM {table}")
            }
            for table, key in TABLES.items()
        }


FILES = [NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}.backup", f"{NAME}.witness"]


def damage(folder: Path, older: Path, dice: random.Random) -> str:
    """One random damage to one file, or to two of them; says which."""
    told = []
    for name in dice.sample(FILES, dice.choice([1, 1, 1, 2])):
        file = folder / name
        kind = dice.choice(["bit", "bit", "cut", "zeros", "gone", "another's", "older"])
        if not file.exists():
            continue
        content = bytearray(file.read_bytes())
        at = dice.randrange(len(content))
        if kind == "bit":
            content[at] ^= 1 << dice.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "zeros":
            end = min(len(content), at + dice.choice([1, 100, 4096, 10**6]))
            content[at:end] = bytes(end - at)
        elif kind == "another's":
            content = bytearray(dice.randbytes(dice.choice([0, 10, 5000])))
        elif kind == "older" and (older.parent / name).exists():
            content = bytearray((older.parent / name).read_bytes())
        file.unlink() if kind == "gone" else file.write_bytes(content)
        told.append(f"{name} {kind} {at}")
    return ", ".join(told)


@pytest.mark.parametrize("block", range(8))
def test_whatever_is_damaged_the_start_comes_up_and_uses_nothing_of_it(
    block: int, killed: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest, older = killed
    good, before = rows(copied(newest, tmp_path / "good")), rows(copied(older, tmp_path / "before"))
    dice = random.Random(block)
    for turn in range(12):
        path = copied(newest, tmp_path / str(turn))
        what = f"{block} {turn}: {damage(path.parent, older, dice)}"
        caplog.clear()
        try:
            store = Store(path)
        except StoreForeign:  # nothing is left that says it was ours
            left = [path.with_name(name) for name in FILES[3:]]
            assert not any(each.exists() and each.stat().st_size for each in left), what
            continue
        events = [record.getMessage() for record in caplog.records]
        assert events in ([], ["database-damaged"]), what
        now = rows(path)
        if now != good:
            assert events, what
        for table, held in now.items():
            for key, row in held.items():
                known = [one for one in (good[table].get(key), before[table].get(key)) if one is not None]
                same = row in known or any(_is_between(row, one) for one in known)
                assert same, (what, table, key)
        if now["mission"]:
            assert store.begin(b"x" * 8, "other", 9, b"y" * 8)[:2] == (MISSION, GRAPH), what
            closed = [row.number for row in store.rounds() if row.closed_at is not None]
            assert closed == list(range(1, len(closed) + 1)), what
        store.enter_node(1, "board-1")
        store.back_up()
        store.close()
        caplog.clear()
        Store(path).close()
        assert [record.getMessage() for record in caplog.records] == [], what  # it is over


def _is_between(row: dict[str, Any], known: dict[str, Any]) -> bool:
    """Of a row that changes in a round: as it was at some time in it, as the backup saw it."""
    return all(
        value == known[name] or name in ("state", "changed_at", "left_s", "deadline_at", "value")
        or value in (None, 0, b"") or name in ("heard_at", "object")
        for name, value in row.items()
    )  # fmt: skip


GONE: list[tuple[str, ...]] = [
    ("",), ("-wal",), ("-shm",), ("", "-wal"), ("", "-shm"), ("-wal", "-shm"), ("", "-wal", "-shm"),
]  # fmt: skip


@pytest.mark.parametrize("sides", GONE, ids="+".join)
def test_a_file_that_is_gone_costs_what_came_after_the_round_opened_at_most(
    sides: tuple[str, ...], killed: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied(killed[0], tmp_path / "m")
    for side in sides:
        path.with_name(path.name + side).unlink()
    store = Store(path)
    assert [row.number for row in store.rounds()] == [1, 2, 3]
    assert store.model(2) == rows(killed[0].with_name(f"{NAME}.backup"))["model"][2,]["payload"]
    told = [record.getMessage() for record in caplog.records]
    assert told == ([] if sides == ("-shm",) else ["database-damaged"])
    if told:  # no epoch comes again
        assert store.enter_node(1, "board-1").epoch > 1000
    store.close()


def test_answers_that_are_whole_are_kept_where_others_are_not(
    killed: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied(killed[0], tmp_path / "m")
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        payload = shell.execute("SELECT payload FROM answer WHERE round = 3 AND node = 2").fetchone()[0]
        flipped = bytes([payload[0] ^ 1]) + payload[1:]
        shell.execute("UPDATE answer SET payload = ? WHERE round = 3 AND node = 2", (flipped,))
    store = Store(path)
    assert {a["node"]: a["state"] for a in store.answers(3)} == {1: "answered", 2: "asked", 3: "asked"}
    assert store.payload(3, 2) is None
    (told,) = [record.__dict__["fields"] for record in caplog.records]
    assert told["lost"] == ["answer 3 2"]
    assert Path(told["aside"]).exists()
    store.close()


def test_what_rots_while_the_daemon_runs_is_not_read(killed: tuple[Path, Path], tmp_path: Path) -> None:
    path = copied(killed[0], tmp_path / "m")
    store = Store(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("UPDATE model SET payload = x'00' WHERE number = 2")
    with pytest.raises(StoreDamaged, match=r"mission\.sqlite: model 2 is not as it was written"):
        store.model(2)
    store.mend()
    assert store.model(2) == rows(killed[0].with_name(f"{NAME}.backup"))["model"][2,]["payload"]
    store.close()


@pytest.mark.parametrize("name", [*FILES, f"{NAME}.new", f"{NAME}.backup.new"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link that leads nowhere", "link"])
def test_what_is_no_file_is_put_aside_in_one_event(
    kind: str, name: str, killed: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied(killed[0], tmp_path / "m")
    file, target = path.with_name(name), tmp_path / "target"
    file.unlink(missing_ok=True)
    if kind == "folder":
        file.mkdir()
        (file / "inside").write_bytes(b"x")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(target)
    if kind == "link":
        target.write_bytes(b"somebody else's")
    store = Store(path)
    assert [record.getMessage() for record in caplog.records] == ["database-damaged"]
    assert str(file) in caplog.records[0].fields["why"]
    assert store.begin(b"x" * 8, "other", 9, b"y" * 8)[:2] == (MISSION, GRAPH)
    store.close()
    assert target.read_bytes() == b"somebody else's" if kind == "link" else not target.exists()
    caplog.clear()
    Store(path).close()
    assert not caplog.records


def test_a_database_is_made_where_a_link_leads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "m" / NAME
    for folder in (path.parent, tmp_path / "disk"):
        folder.mkdir()
    path.symlink_to(tmp_path / "disk" / NAME)
    for _ in range(2):
        store = Store(path)
        assert store.begin(MISSION, "m", 9, GRAPH)[:2] == (MISSION, GRAPH)
        store.close()
    assert (tmp_path / "disk" / NAME).stat().st_size > 0
    assert path.is_symlink()
    assert not caplog.records


def test_a_database_that_is_a_link_to_another_disk_stays_one(
    killed: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied(killed[0], tmp_path / "m")
    store = Store(path)  # folds the log in
    store.close()
    (tmp_path / "disk").mkdir()
    path.rename(tmp_path / "disk" / NAME)
    path.symlink_to(tmp_path / "disk" / NAME)
    store = Store(path)
    assert store.begin(b"x" * 8, "other", 9, b"y" * 8)[:2] == (MISSION, GRAPH)
    store.close()
    assert path.is_symlink()
    assert not caplog.records


def test_a_new_database_is_told_of_in_no_event(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):  # killed before a mission was entered, and before its first round
        Store(tmp_path / NAME).close()
    for _ in range(3):
        store = Store(tmp_path / NAME)
        store.begin(MISSION, "m", 3, GRAPH)
        store.enter_node(1, "board-1")
        store.close()
    assert caplog.records == []


def test_an_empty_database_gives_way_to_its_backup(killed: tuple[Path, Path], tmp_path: Path) -> None:
    path = copied(killed[0], tmp_path / "m")
    for side in ("", "-wal", "-shm"):
        path.with_name(path.name + side).unlink()
    Store(tmp_path / "new.sqlite").close()
    shutil.copy(tmp_path / "new.sqlite", path)
    store = Store(path)
    assert [row.number for row in store.rounds()] == [1, 2, 3]
    store.close()


# -- what is not ours --------------------------------------------------------------------------------------


def text(path: Path) -> None:
    path.write_text("notes of an operator\n" * 40)


def others(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE mail (sender TEXT); INSERT INTO mail VALUES ('me');")


@pytest.mark.parametrize("foreign", [text, others])
def test_another_program_s_file_is_refused_and_left_as_it_is(
    foreign: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    assert CliRunner().invoke(main, ["init", str(folder), "--node", "pi,port=/dev/a"]).exit_code == 0
    foreign(folder / NAME)
    before = (folder / NAME).read_bytes()
    result = CliRunner().invoke(main, ["serve", str(folder)])
    assert result.exit_code == 2
    assert f"{folder / NAME}: is no mission's database" in result.stderr
    assert result.stderr.count("\n") == 1
    assert (folder / NAME).read_bytes() == before


@pytest.mark.parametrize("foreign", [text, others])
def test_another_program_s_file_in_the_mission_s_place_is_kept_aside(
    foreign: Callable[[Path], None], killed: tuple[Path, Path], tmp_path: Path
) -> None:
    path = copied(killed[0], tmp_path / "m")
    for side in ("", "-wal", "-shm"):
        path.with_name(path.name + side).unlink()
    foreign(path)
    before = path.read_bytes()
    store = Store(path)
    assert [row.number for row in store.rounds()] == [1, 2, 3]
    assert path.with_name(f"{NAME}.damaged-1").read_bytes() == before
    store.close()


def test_no_more_than_three_are_kept_aside(killed: tuple[Path, Path], tmp_path: Path) -> None:
    path = copied(killed[0], tmp_path / "m")
    for _ in range(6):
        path.with_name(f"{NAME}-wal").unlink(missing_ok=True)  # it holds all of the pages
        path.write_bytes(os.urandom(5000))
        Store(path).close()
    kept = sorted(each.name for each in path.parent.glob("*damaged-*"))
    assert kept == [f"{NAME}.damaged-{number}" for number in (4, 5, 6)]


# -- growth ------------------------------------------------------------------------------------------------


def test_a_database_does_not_grow_with_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "KEPT_MODEL_BYTES", 20_000)  # three of these models
    store, sizes = Store(tmp_path / NAME), list[int]()
    store.begin(MISSION, "m", 0, GRAPH)
    for node in range(1, 51):
        store.enter_node(node, f"board-{node}")
    for number in range(1, 10):
        store.open_round(number, os.urandom(7000), list(range(1, 51)), 0.0, 1.0)
        for node in range(1, 51):
            store.take_update(number, node, os.urandom(2900), METRICS, 0.0)
        store.close_round(number, os.urandom(7000), number / 20, 0.3, 0.1, 0.0)
        sizes.append(pages(store))
    grown = (sizes[-1] - sizes[4]) / 4
    assert grown < 15_000  # a round of 50 boards; it was 190,000
    assert store.model(9) is not None
    assert store.model(5) is None
    assert [len(store.taken(1)), len(set(store.taken(1)))] == [4, 4]
    store.close()


def pages(store: Store) -> int:
    count = store.db.execute("PRAGMA page_count").fetchone()[0]
    return int(count * store.db.execute("PRAGMA page_size").fetchone()[0])
