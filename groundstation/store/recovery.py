"""Keeps a damaged database, and continues the mission from its intact rows.

Each start reads the whole database. If anything is wrong, a new one is made from the intact rows and those of
the backup, which the daemon renews whenever a round opens or closes. A database that is older than its backup
is replaced by it. Each repair is one log event, and only the oldest of several damaged files is deleted."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundstation.store.database import (
    SIDES,
    SUMS,
    TABLES,
    Database,
    Ledger,
    StoreError,
    StoreForeign,
    backup_of,
    being_made,
    connect,
    errors,
    is_believable,
    is_of_the_machine,
    is_whole,
    open_to_read,
    publish,
    read_witness,
    witness_of,
    write_witness,
)
from groundstation.store.schema import APPLICATION_ID, SCHEMA, make_new, number_of
from onboard.console.log import say
from onboard.storage.files import cleared
from onboard.wire.security.seal import MAX_EPOCH

log = logging.getLogger(__name__)

SKIPPED_EPOCHS = 1000  # more than an older database can be behind
KEPT_ASIDE = 3
_LATER = frozenset({"command"})
"""Tables that databases of an earlier schema lack."""
_Rows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


@dataclass
class Findings:
    """The result of an examination: the intact `rows`, and the names of `bad` ones as far as they have some.
    `why` is empty for an intact database, and `generation` None for a ledger that cannot be trusted."""

    generation: int | None = None
    why: str = ""
    rows: _Rows = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)


def refuse_newer(path: Path) -> None:
    """Raises StoreForeign for a database of a newer schema, unless its schema number is damaged."""
    if not path.is_file():
        return
    with contextlib.suppress(sqlite3.Error), closing(open_to_read(path)) as db:
        number = number_of(db)
        if number > SCHEMA and is_believable(db):
            raise StoreForeign(
                f"{path}: was written by a newer version (schema {number}, this program knows {SCHEMA})"
            )


def write_anew(db: Database) -> None:
    """Writes the database to its path again after the file or its log was deleted or replaced, and closes it:
    SQLite would go on writing to a nameless file. Whatever has the path is put aside. Raises StoreError."""
    path = db.path
    with errors(path):
        try:
            new = db.write_copy(path)
            aside = put_aside(path)
            db.close()
            publish(new, path)
        except OSError as error:
            why = f"was removed or replaced, and cannot be written anew: {error.strerror or error}"
            raise StoreError(f"{path}: {why}") from None
    write_witness(path, db.generation)  # it may be gone too
    say(
        log, "database-rewritten", level=logging.WARNING, path=str(path),
        why="it or its log was removed or replaced while this program ran", aside=str(aside or ""),
    )  # fmt: skip


def open_whole(path: Path) -> tuple[Database, bool]:
    """Repairs the database at `path` if need be and opens it; returns also whether anything was wrong. Raises
    StoreError if it is locked, the machine fails, or the file is not ours."""
    with errors(path):
        for file in (path, backup_of(path)):
            refuse_newer(file)
        was_wrong = _make_whole(path)
    return Database(path), was_wrong


def _make_whole(path: Path) -> bool:
    backup, witness = backup_of(path), witness_of(path)
    trouble = _cleared(path)
    try:
        witnessed = read_witness(path)
    except ValueError as error:
        witnessed = None
        trouble.append(str(error))
    main, spare = _look(path), _look(backup)
    begun = spare is not None or witnessed is not None or bool(trouble)
    if main is None and not begun:
        return False
    if main is not None and not _is_ours(path, main):
        if not begun:
            raise StoreForeign(f"{path}: is no mission's database ({main.why or 'it has other tables'})")
        main.rows.clear()
    if spare is not None and spare.why:
        trouble.append(f"{backup}: {spare.why}")
    newest = max(witnessed or 0, *((each.generation or 0) if each else 0 for each in (main, spare)))
    if main is not None and not main.why and not _is_older(main, spare):
        if main.generation is not None and witnessed is not None and witnessed > main.generation:
            gone = witnessed - main.generation
            trouble.append(f"{path}: {gone} transactions are lost: its log is gone, or it is an older copy")
            with closing(connect(path)) as db, Ledger(db).transaction(witnessed):
                # Lost transactions may have used epochs, and none is used twice.
                db.execute("UPDATE node SET epoch = (epoch + ?) % ?", (SKIPPED_EPOCHS, MAX_EPOCH))
        elif main.generation and main.rows["round"] and not trouble:
            trouble += [f"{file}: is gone" for file in (backup, witness) if not file.exists()]
        if trouble:
            say(log, "database-damaged", level=logging.ERROR, why="; ".join(trouble), lost=[], aside="")
        return bool(trouble)
    why = f"{path}: {'is gone' if main is None else main.why or 'is older than its backup'}"
    rows, bad = _united(main, spare), main.bad if main else []
    aside = _replace(path, rows, newest)
    say(
        log, "database-damaged", level=logging.ERROR, why="; ".join([why, *trouble]),
        lost=bad if len(bad) <= 10 else [*bad[:10], f"and {len(bad) - 10} more"], aside=str(aside or ""),
        rounds=len(rows["round"]),
    )  # fmt: skip
    return True


def examine(db: sqlite3.Connection) -> Findings:
    """Reads and checks a whole database. Raises sqlite3.Error only if it is locked or the machine fails."""
    found, total = Findings(), 0
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, key in TABLES.items():
        found.rows[table] = {}
        if table not in tables:
            continue
        for row in _all_rows(db, table, found):
            if is_whole(table, row):
                total += int.from_bytes(row.get("digest") or b"", "big")
                found.rows[table][tuple(row[name] for name in key)] = row
            else:
                found.bad.append(" ".join([table, *(str(row[name])[:20] for name in key)]))
    missing = sorted(TABLES.keys() - tables - _LATER)  # the ledger covers the existing ones
    if missing:
        found.why = f"it has no table {missing[0]}"
    if found.bad:
        found.why = f"rows are not as they were written: {', '.join(found.bad[:5])}"
    if not found.why and (check := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
        found.why = str(check).splitlines()[-1]
    if "ledger" not in tables:
        return found
    ledger, why = db.execute("SELECT generation, sum FROM ledger").fetchone(), ""
    if ledger is None and not any(found.rows.values()):
        found.generation = 0  # it is new and empty
    elif ledger is None:
        why = "its ledger is empty"
    elif not is_believable(db):
        why = "its ledger or its tables are not as they were written"
    else:
        found.generation = int(ledger[0])
        if int.from_bytes(ledger[1], "big") != total % SUMS:
            why = "rows are gone, or are those of an earlier time"
    found.why = found.why or why
    return found


def _all_rows(db: sqlite3.Connection, table: str, found: Findings) -> list[dict[str, Any]]:
    rows = dict[int, dict[str, Any]]()
    for order in ("ASC", "DESC"):
        cursor = db.execute(f"SELECT rowid AS at, * FROM {table} ORDER BY rowid {order}")
        names = [column[0] for column in cursor.description]
        try:
            for values in cursor:
                rows[values[0]] = dict(zip(names[1:], values[1:], strict=True))
        except sqlite3.DatabaseError as error:
            found.why = f"{table}: {error}"
        else:
            break
    return list(rows.values())


def _cleared(path: Path) -> list[str]:
    """Puts aside whatever has the name of one of the files but is not a regular file; returns what it was.
    SQLite could not open it, and a link to a log leads to another database's. The database may be a link."""
    backup = backup_of(path)
    beside = (being_made(path), backup, being_made(backup), witness_of(path))
    trouble = [f"{file}: {told}" for file in beside if (told := cleared(file))]
    is_to_be_made = path.is_symlink() and not path.exists() and path.resolve().parent.is_dir()
    for side in SIDES[1:] if is_to_be_made and not backup.exists() else SIDES:
        file = path.with_name(path.name + side)
        if (side or not file.is_file()) and (told := cleared(file)):
            trouble.append(f"{file}: {told}")
    return trouble


def put_aside(path: Path) -> Path | None:
    """Renames a database with its log; returns the new path, or None if there is no database."""
    names = [each.name.rpartition("-")[2] for each in path.parent.glob(f"{path.name}.damaged-*")]
    taken = sorted(int(name) for name in names if name.isdecimal())
    for number in taken[: max(0, len(taken) - KEPT_ASIDE + 1)]:
        for side in SIDES:
            path.with_name(f"{path.name}.damaged-{number}{side}").unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.damaged-{taken[-1] + 1 if taken else 1}")
    there = False
    for side in reversed(SIDES):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(aside.with_name(aside.name + side))
            there = True
    return aside if there else None


def _look(path: Path) -> Findings | None:
    try:
        if path.stat().st_size == 0:
            return None
    except FileNotFoundError:
        return None
    try:
        with closing(connect(path)) as db:
            is_empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            return None if is_empty else examine(db)
    except sqlite3.Error as error:
        if is_of_the_machine(error, path):
            raise
        return Findings(why=str(error))


def _is_ours(path: Path, found: Findings) -> bool:
    if any(found.rows.get(table) for table in ("mission", "round", "node")) or found.generation is not None:
        return True
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(72)[68:] == APPLICATION_ID.to_bytes(4, "big")
    return False


def _is_older(main: Findings, spare: Findings | None) -> bool:
    if spare is None or spare.why or spare.generation is None or main.generation is None:
        return False
    missions = main.rows["mission"].keys(), spare.rows["mission"].keys()
    return spare.generation > main.generation and (not missions[0] or missions[0] == missions[1])


def _united(main: Findings | None, spare: Findings | None) -> _Rows:
    """Merges the intact rows of both files, the later version of each, as far as they form one mission."""
    main, spare = main or Findings(), spare or Findings()
    later, earlier = (main, spare)
    if main.generation is not None and spare.generation is not None and main.generation < spare.generation:
        later, earlier = (spare, Findings() if not spare.why else main)
    missions = [each.rows["mission"].keys() for each in (later, earlier) if each.rows.get("mission")]
    if len(missions) == 2 and missions[0] != missions[1]:
        earlier = Findings()
    rows = {table: earlier.rows.get(table, {}) | later.rows.get(table, {}) for table in TABLES}
    if not rows["mission"]:  # the rounds cannot be attributed
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
    """Makes a database of these rows and puts the old one aside; returns that one's new path."""
    new = being_made(path)
    for side in (*SIDES, "-journal"):
        new.with_name(new.name + side).unlink(missing_ok=True)
    with closing(connect(new)) as db:
        make_new(db)
        with Ledger(db).transaction(generation):
            for table, held in rows.items():
                known = {each[1] for each in db.execute(f"PRAGMA table_info({table})")} - {"digest"}
                for row in held.values():
                    names = [name for name in row if name in known]
                    marks = ", ".join(f":{name}" for name in names)
                    db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", row)
    aside = put_aside(path)
    publish(new, path)
    return aside
