"""A database that a disk has damaged is kept aside, and the mission goes on from what is whole.

At each start all of it is read (`ledger.examine`). Where something is wrong, a new one is made of the rows
that are as they were written, and of those in the backup which the daemon makes whenever a round opens or
closes. A database that came back older than its backup gives way to that. Each is one event, and nothing is
deleted but the oldest of several that were kept aside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from groundstation.store.ledger import TABLES, Findings, Ledger, examine
from groundstation.store.schema import APPLICATION_ID, make_new
from groundstation.store.witness import ProgressWitness
from onboard.console.log import say
from onboard.storage.files import cleared
from onboard.storage.journal import sync_folder
from onboard.wire.security.seal import MAX_EPOCH

log = logging.getLogger(__name__)

OPEN_WITHIN_S = 5.0  # at the start, while another program reads or holds the database
SKIPPED_EPOCHS = 1000  # more than an older database can be behind
KEPT_ASIDE = 3
_SIDES = ("", "-wal", "-shm")
_MACHINE = ("locked", "unable to open", "disk i/o error", "disk is full", "out of memory")


class ForeignFile(ValueError):  # noqa: N818 - it may be right where it is
    """A file that is no mission's database, where one is to be made."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that writes; rows whose text is none can be looked at."""
    db = sqlite3.connect(path, isolation_level=None, timeout=OPEN_WITHIN_S)
    db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return db


def backup_of(path: Path) -> Path:
    """Where the backup of a database lies."""
    return path.with_name(f"{path.name}.backup")


def being_made(path: Path) -> Path:
    """Where a database or a backup is made, before it gets its name."""
    return path.with_name(f"{path.name}.new")


def make_whole(path: Path, witness: ProgressWitness) -> bool:
    """Leaves a whole database at `path`, or none where none was begun; whether anything was wrong.

    Raises sqlite3.Error where it is held or the machine refuses, OSError, and ForeignFile."""
    backup = backup_of(path)
    trouble = _cleared(path, witness.path)
    try:
        witnessed = witness.read()
    except ValueError as error:
        witnessed = None
        trouble.append(str(error))
    main, spare = _look(path), _look(backup)
    begun = spare is not None or witnessed is not None or bool(trouble)
    if main is None and not begun:
        return False
    if main is not None and not _is_ours(path, main):
        if not begun:
            raise ForeignFile(f"{path}: is no mission's database ({main.why or 'it has other tables'})")
        main.rows.clear()
    if spare is not None and not spare.whole:
        trouble.append(f"{backup}: {spare.why}")
    newest = max(witnessed or 0, *((each.generation or 0) if each else 0 for each in (main, spare)))
    if main is not None and main.whole and not _is_older(main, spare):
        if main.generation is not None and witnessed is not None and witnessed > main.generation:
            gone = witnessed - main.generation
            trouble.append(f"{path}: {gone} transactions are lost: its log is gone, or it is an older copy")
            _skip_epochs(path, witnessed)
        elif main.generation and main.rows["round"] and not trouble:
            trouble += [f"{file}: is gone" for file in (backup, witness.path) if not file.exists()]
        if trouble:
            say(log, "database-damaged", level=logging.ERROR, why="; ".join(trouble), lost=[], aside="")
        return bool(trouble)
    why = f"{path}: {'is gone' if main is None else main.why or 'is older than its backup'}"
    rows = _united(main, spare)
    aside = _replace(path, rows, newest)
    say(
        log, "database-damaged", level=logging.ERROR, why="; ".join([why, *trouble]),
        lost=_told(main.bad if main else []), aside=str(aside or ""), rounds=len(rows["round"]),
    )  # fmt: skip
    return True


def _cleared(path: Path, witness: Path) -> list[str]:
    """Puts aside what has the name of one of the files and is none, as SQLite cannot open it, and a link to a
    log leads to another database's; says what. The database itself may be a link to where there is room, also
    before it is made there."""
    backup = backup_of(path)
    beside = (being_made(path), backup, being_made(backup), witness)
    trouble = [f"{file}: {told}" for file in beside if (told := cleared(file))]
    for side in _SIDES:
        file = path.with_name(path.name + side)
        if not side and _is_a_place(file) and not backup_of(path).exists():
            continue
        if (side or not file.is_file()) and (told := cleared(file)):
            trouble.append(f"{file}: {told}")
    return trouble


def _is_a_place(file: Path) -> bool:
    """Whether it is a link to where there is room for a file, and none yet."""
    return file.is_symlink() and not file.exists() and file.resolve().parent.is_dir()


def put_aside(path: Path) -> Path | None:
    """Gives a database, with its log, another name; None where there is none."""
    names = [each.name.rpartition("-")[2] for each in path.parent.glob(f"{path.name}.damaged-*")]
    taken = sorted(int(name) for name in names if name.isdecimal())
    for number in taken[: max(0, len(taken) - KEPT_ASIDE + 1)]:
        for side in _SIDES:
            path.with_name(f"{path.name}.damaged-{number}{side}").unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.damaged-{taken[-1] + 1 if taken else 1}")
    there = False
    for side in reversed(_SIDES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(aside.with_name(aside.name + side))
            there = True
    return aside if there else None


def publish(new: Path, path: Path) -> None:
    """Gives a new database its name, durably."""
    handle = os.open(new, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    new.replace(path)
    sync_folder(path.parent)


def _look(path: Path) -> Findings | None:
    """What is in a database; None where there is none."""
    try:
        if path.stat().st_size == 0:
            return None
    except FileNotFoundError:
        return None
    try:
        with closing(connect(path)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            found = examine(db)
            is_empty = not db.execute("SELECT 1 FROM sqlite_master").fetchone()
            return None if is_empty else found
    except sqlite3.Error as error:
        if is_of_the_machine(error, path):
            raise
        return Findings(why=str(error))


def is_of_the_machine(error: sqlite3.Error, path: Path) -> bool:
    """Whether it is no fault of what is stored: another program, a full disk, a file that may not be
    written."""
    told = str(error).lower()
    if "readonly" in told:  # a damaged header says so, too
        return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
    return any(each in told for each in _MACHINE)


def _is_ours(path: Path, found: Findings) -> bool:
    if any(found.rows.get(table) for table in ("mission", "round", "node")) or found.generation is not None:
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(72)[68:] == APPLICATION_ID.to_bytes(4, "big")
    return False


def _is_older(main: Findings, spare: Findings | None) -> bool:
    """Whether the backup has come further, of the same mission."""
    if spare is None or not spare.whole or spare.generation is None or main.generation is None:
        return False
    missions = main.rows["mission"].keys(), spare.rows["mission"].keys()
    return spare.generation > main.generation and (not missions[0] or missions[0] == missions[1])


_Rows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


def _united(main: Findings | None, spare: Findings | None) -> _Rows:
    """The whole rows of both, of each the later one, as far as they make a mission."""
    main, spare = main or Findings(), spare or Findings()
    later, earlier = (main, spare)
    if main.generation is not None and spare.generation is not None and main.generation < spare.generation:
        later, earlier = (spare, Findings() if spare.whole else main)
    missions = [each.rows["mission"].keys() for each in (later, earlier) if each.rows.get("mission")]
    if len(missions) == 2 and missions[0] != missions[1]:
        earlier = Findings()
    rows = {table: earlier.rows.get(table, {}) | later.rows.get(table, {}) for table in TABLES}
    if not rows["mission"]:  # nobody knows whose rounds they are
        rows = {table: {} for table in TABLES} | {"node": rows["node"]}
    number = 1
    while (row := rows["round"].get((number,))) is not None and row["closed_at"] is not None:
        number += 1
    rows["round"] = {key: row for key, row in rows["round"].items() if key[0] <= number}
    rows["answer"] = {
        key: row for key, row in rows["answer"].items()
        if (key[0],) in rows["round"] and (key[1],) in rows["node"]
    }  # fmt: skip
    rows["counter"] = {key: row for key, row in rows["counter"].items() if (key[0],) in rows["node"]}
    rows["model"] = {key: row for key, row in rows["model"].items() if key in rows["round"]}
    for row in rows["node"].values():
        row["epoch"] = (row["epoch"] + SKIPPED_EPOCHS) % MAX_EPOCH
    return rows


def _replace(path: Path, rows: _Rows, generation: int) -> Path | None:
    """Makes a database of these rows and puts the one that was aside; returns where."""
    new = being_made(path)
    for side in (*_SIDES, "-journal"):
        new.with_name(new.name + side).unlink(missing_ok=True)
    with closing(connect(new)) as db:
        make_new(db)
        with entering(db, Ledger(db), generation):
            for table, held in rows.items():
                for row in held.values():
                    _insert(db, table, row)
    aside = put_aside(path)
    publish(new, path)
    return aside


@contextlib.contextmanager
def entering(db: sqlite3.Connection, ledger: Ledger, generation: int = 0) -> Iterator[None]:
    """One transaction, and one after `generation` at least."""
    db.execute("BEGIN IMMEDIATE")
    try:
        ledger.begin()
        yield
        ledger.enter(generation)
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
            db.execute("ROLLBACK")
        raise
    ledger.entered()


def _insert(db: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    known = {each[1] for each in db.execute(f"PRAGMA table_info({table})")} - {"digest"}
    names = [name for name in row if name in known]
    marks = ", ".join("?" * len(names))
    db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", [row[name] for name in names])


def _skip_epochs(path: Path, generation: int) -> None:
    """No epoch that the lost transactions may have begun is begun again."""
    with closing(connect(path)) as db:
        ledger = Ledger(db)
        with entering(db, ledger, generation):
            db.execute("UPDATE node SET epoch = (epoch + ?) % ?", (SKIPPED_EPOCHS, MAX_EPOCH))


def _told(names: list[str]) -> list[str]:
    return names if len(names) <= 10 else [*names[:10], f"and {len(names) - 10} more"]
