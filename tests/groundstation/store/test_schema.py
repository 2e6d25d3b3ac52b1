"""A database of every earlier form becomes the newest with all that it holds; a newer one is left alone."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from groundstation.cli import main
from groundstation.store.database import TABLES, Ledger
from groundstation.store.recovery import examine
from groundstation.store.schema import SCHEMA
from groundstation.store.store import Store, StoreForeign
from onboard.mission.objects import UPDATE
from onboard.wire.messages import digest
from tests.groundstation.store.forms import LAST_UNNUMBERED, form

FORMS = range(1, SCHEMA + 1)
ROWS: dict[str, list[dict[str, Any]]] = {
    "mission": [{"id": bytes(8), "name": "m", "seed": 3, "graph": b"graphgra", "classes": '["land","sea"]'}],
    "node": [
        {"id": node, "name": f"board-{node}", "epoch": 7, "salt": b"saltsalt", "floor_epoch": 2,
         "floor_seq": 9, "spent": '{"total":1200}', "offered": b"an object",
         "fragment_bytes": 80, "heard_at": 120.0}
        for node in (1, 2)
    ],
    "round": [
        {"number": 1, "opened_at": 1.0, "deadline_at": 9.0, "model": b"", "left_s": 0.5, "closed_at": 8.0,
         "accuracy": 0.5, "loss": 0.25, "bits_down": 0.1},
        {"number": 2, "opened_at": 10.0, "deadline_at": 90.0, "model": b"the model", "left_s": 4.0},
    ],
    "answer": [
        {"round": 1, "node": 1, "state": "answered", "changed_at": 3.0, "asking": 1, "samples": 600,
         "loss": 0.3, "train_s": 2.0, "cpu_s": 1.0, "energy_j": 5.0, "payload": b"\xab\xcd",
         "object": digest(UPDATE, b"\xab\xcd")},
        {"round": 2, "node": 2, "state": "lost", "changed_at": 4.0, "asking": 0, "why": "no use"},
    ],
    "counter": [{"node": 1, "name": "frames_sent", "value": 30.0}],
    "model": [{"number": 1, "payload": b"weights"}],
    "command": [
        {"id": b"command1", "node": 1, "name": "ping", "arguments": "{}", "state": "done", "queued_at": 5.0,
         "expires_at": 9.0, "ended_at": 6.0, "result": '{"uptime_s":60}'},
    ],
}  # fmt: skip


def make_old(path: Path, number: int) -> dict[str, list[dict[str, Any]]]:
    """A database of an earlier form, with what its program would have stored; returns the rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(form(number))
        if number > LAST_UNNUMBERED:
            db.execute(f"PRAGMA user_version = {number}")
        made = {
            table: [{name: row[name] for name in row if name in columns(db, table)} for row in rows]
            for table, rows in ROWS.items()
            if columns(db, table)
        }
        statements = [
            (f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
            for table, rows in made.items()
            for row in rows
        ]
        if not columns(db, "ledger"):
            for statement, values in statements:
                db.execute(statement, values)
            return made
        with Ledger(db).transaction():
            for statement, values in statements:
                db.execute(statement, values)
    return made


def columns(db: sqlite3.Connection, table: str) -> dict[str, tuple[Any, ...]]:
    """A table's columns by name: type, whether it may be empty, default, place in the key."""
    return {row[1]: row[2:] for row in db.execute(f"PRAGMA table_info({table})")}


def content(path: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of a database, with their digests."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return {
            table: [dict(row) for row in db.execute(f"SELECT * FROM {table}")]
            for table in TABLES
            if columns(db, table)
        }


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mission.sqlite"


@pytest.mark.parametrize("number", FORMS)
def test_a_database_of_an_earlier_form_keeps_all_that_it_holds(
    number: int, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_old(path, number)
    Store(path.with_name("new.sqlite")).close()
    for _ in range(2):
        store = Store(path)
        assert store.taken(1) == [digest(UPDATE, b"\xab\xcd")]
        assert (store.model(1), store.rounds()[1].model, store.counters(1)) == (
            b"weights",
            b"the model",
            {"frames_sent": 30.0},
        )
        store.close()
        with (
            closing(sqlite3.connect(path)) as db,
            closing(sqlite3.connect(path.with_name("new.sqlite"))) as new,
        ):
            assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
            assert examine(db).why == ""
            for table in (*TABLES, "ledger"):
                expected = columns(new, table)
                assert columns(db, table).keys() == expected.keys(), table
                for name, column in columns(db, table).items():
                    assert column == expected[name], (table, name)
        for table, rows in content(path).items():
            for row, before in zip(rows, made.get(table, []), strict=True):
                assert row["digest"] is not None
                assert {name: row[name] for name in before if name in row} == {
                    name: value for name, value in before.items() if name in row
                }
    assert [record.getMessage() for record in caplog.records if "database" in record.getMessage()] in (
        [], ["database-damaged"],  # nobody has made its backup and its witness yet
    )  # fmt: skip
    assert Store(path).enter_node(1, "board-1").epoch == 8


@pytest.mark.parametrize("number", FORMS)
def test_who_only_looks_at_an_earlier_form_sees_it_and_changes_nothing(number: int, path: Path) -> None:
    make_old(path, number)
    before = files(path.parent)
    store = Store(path, read_only=True)
    assert [row.closed_at for row in store.rounds()] == [8.0, None]
    [answer] = store.answers(1)
    assert (answer["state"], answer["bytes"], answer["asking"]) == (
        "answered",
        2,
        1 if number >= 5 else None,
    )
    assert [node["name"] for node in store.nodes()] == ["board-1", "board-2"]
    assert store.counters(1) == {"frames_sent": 30.0}
    store.close()
    assert files(path.parent) == before


KILLED = """
import os, signal, sqlite3, sys
from groundstation.store.database import migrate

class Mortal(sqlite3.Connection):
    left = int(sys.argv[2])
    def execute(self, statement, *values):
        if statement.split()[0] in ("ALTER", "CREATE", "UPDATE", "COMMIT"):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(statement, *values)

migrate(sqlite3.connect(sys.argv[1], isolation_level=None, factory=Mortal))
"""


@pytest.mark.parametrize("nth", [0, 3, 9, 17, 20, 24])
def test_a_kill_in_mid_migration_leaves_the_earlier_form(nth: int, path: Path) -> None:
    made = make_old(path, 1)
    before = content(path)
    ended = subprocess.run([sys.executable, "-c", KILLED, path, str(nth)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert content(path) == before
    store = Store(path)
    assert [dict(node)["name"] for node in store.nodes()] == [node["name"] for node in made["node"]]
    store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)


def raise_number(path: Path, number: int) -> None:
    """Makes a database one that a newer version wrote."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE node ADD COLUMN of_tomorrow TEXT")
        db.execute(f"PRAGMA user_version = {number}")
        with Ledger(db).transaction():
            db.execute("UPDATE node SET of_tomorrow = 'x'")


@pytest.mark.parametrize("which", ["mission.sqlite", "mission.sqlite.backup"])
def test_a_database_of_a_newer_version_is_refused_and_stays_as_it_is(
    which: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(path)
    store.begin(bytes(8), "m", 3, bytes(8))
    store.enter_node(1, "pi")
    store.back_up()
    store.close()
    newer = path.with_name(which)
    raise_number(newer, SCHEMA + 2)
    before = files(path.parent)
    told = rf"^{newer}: was written by a newer version \(schema {SCHEMA + 2}, this program knows {SCHEMA}\)$"
    with pytest.raises(StoreForeign, match=told):
        Store(path)
    assert files(path.parent) == before
    if newer == path:
        with pytest.raises(StoreForeign, match=told):
            Store(path, read_only=True)
    assert files(path.parent) == before
    assert not caplog.records


def test_a_new_database_of_a_newer_version_in_which_nothing_was_entered_is_refused(path: Path) -> None:
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(StoreForeign, match="newer version"):
        Store(path)


def test_a_number_that_a_disk_has_damaged_is_not_believed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(path)
    store.begin(bytes(8), "m", 3, bytes(8))
    store.enter_node(1, "pi")
    store.close()
    for number in (SCHEMA + 1, SCHEMA - 1, 1):
        caplog.clear()
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {number}")
        store = Store(path)
        assert [record.getMessage() for record in caplog.records] == ["database-damaged"]
        assert [node["name"] for node in store.nodes()] == ["pi"]
        store.close()


def test_the_commands_refuse_a_newer_database_with_exit_code_2(path: Path) -> None:
    folder = path.parent / "mission"
    started = CliRunner().invoke(main, ["init", str(folder), "--node", "pi,port=/dev/ttyUSB0"])
    assert started.exit_code == 0, started.output
    path = folder / "mission.sqlite"
    store = Store(path)
    store.begin(bytes(8), "m", 3, bytes(8))
    store.close()
    raise_number(path, SCHEMA + 1)
    before = files(folder)
    for command in ("serve", "status"):
        result = CliRunner().invoke(main, [command, str(folder)])
        assert (result.exit_code, result.output.count("was written by a newer version")) == (2, 1), (
            result.output
        )
    assert files(folder) == before
