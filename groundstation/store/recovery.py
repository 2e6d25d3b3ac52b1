"""A database that a disk has damaged is kept under another name, and the mission continues from its intact
rows.

Each start reads the whole database (`ledger.examine`). If anything is wrong, a new one is made from the rows
that are as they were written, and from those in the backup, which the daemon renews whenever a round opens or
closes. A database that is older than its backup is replaced by it. Each repair is logged as one event, and
only the oldest of several damaged files is ever deleted.
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
from onboard.storage.files import cleared, sync_folder
from onboard.wire.security.seal import MAX_EPOCH

log = logging.getLogger(__name__)

OPEN_WITHIN_S = 5.0  # at the start, while another program reads or holds the database
SKIPPED_EPOCHS = 1000  # more than an older database can be behind
KEPT_ASIDE = 3
_SIDES = ("", "-wal", "-shm")
_MACHINE = ("locked", "unable to open", "disk i/o error", "disk is full", "out of memory")


class ForeignFile(ValueError):  # noqa: N818 - it may be right where it is
    """A file that is no mission's database has the place of one."""


def connect(path: Path) -> sqlite3.Connection:
    """Opens a connection that writes, and that can read rows whose text is not valid Unicode."""
    db = sqlite3.connect(path, isolation_level=None, timeout=OPEN_WITHIN_S)
    db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return db


def backup_of(path: Path) -> Path:
    """The path of a database's backup."""
    return path.with_name(f"{path.name}.backup")


def being_made(path: Path) -> Path:
    """The path at which a database or a backup is written before it is given its name."""
    return path.with_name(f"{path.name}.new")


def make_whole(path: Path, witness: ProgressWitness) -> bool:
    """Repairs the database at `path`, if there is or ever was one; returns whether anything was wrong.

    Raises sqlite3.Error if it is locked or the machine fails, OSError, and ForeignFile."""
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
    """Puts aside whatever has the name of one of the files and is not a regular file; returns what it was.
    SQLite could not open it, and a link to a log leads to another database's log. The database itself may be
    a link to a disk with more room, even before the file is made there."""
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
    """Whether it is a link to a path in an existing folder at which there is no file yet."""
    return file.is_symlink() and not file.exists() and file.resolve().parent.is_dir()


def put_aside(path: Path) -> Path | None:
    """Gives a database and its log another name, and returns it; None if there is no database."""
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
    """Gives a new database its final name, durably."""
    handle = os.open(new, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    new.replace(path)
    sync_folder(path.parent)


def _look(path: Path) -> Findings | None:
    """The findings about a database; None if there is none."""
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
    """Whether the cause is not the stored data but the machine: another program's lock, a full disk, a file
    that may not be written."""
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
    """Whether the backup is of the same mission and a later generation."""
    if spare is None or not spare.whole or spare.generation is None or main.generation is None:
        return False
    missions = main.rows["mission"].keys(), spare.rows["mission"].keys()
    return spare.generation > main.generation and (not missions[0] or missions[0] == missions[1])


_Rows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


def _united(main: Findings | None, spare: Findings | None) -> _Rows:
    """The intact rows of both files, the later version of each, as far as they form one mission."""
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
    """Makes a database of these rows, and puts the old one aside; returns its new path."""
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
    """A transaction of the ledger, whose number is above `generation`."""
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
    """Skips the epochs that lost transactions may have used, so that none is used twice."""
    with closing(connect(path)) as db:
        ledger = Ledger(db)
        with entering(db, ledger, generation):
            db.execute("UPDATE node SET epoch = (epoch + ?) % ?", (SKIPPED_EPOCHS, MAX_EPOCH))


def _told(names: list[str]) -> list[str]:
    return names if len(names) <= 10 else [*names[:10], f"and {len(names) - 10} more"]
