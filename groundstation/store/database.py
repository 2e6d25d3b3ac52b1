"""The mission's SQLite file: one connection, one writer (the daemon's only thread).

The file has a write-ahead log with full sync: a committed transaction survives a power cut, and
`groundstation status` can read while the daemon runs. Every row is checked as it is read (`ledger`). Damage
by the disk is repaired at each start, and while the daemon runs (`recovery`).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from groundstation.store.ledger import TABLES, Ledger, is_whole
from groundstation.store.onlooker import open_to_read
from groundstation.store.recovery import (  # fmt: skip
    ForeignFile,
    backup_of,
    being_made,
    connect,
    entering,
    is_of_the_machine,
    make_whole,
    publish,
    put_aside,
)
from groundstation.store.schema import NewerFile, make_new, migrate, refuse_newer
from groundstation.store.witness import ProgressWitness
from onboard.console.log import say

log = logging.getLogger(__name__)

BUSY_MS = 50  # once the daemon runs


class StoreError(OSError):
    """The database cannot be read or written; the text names the file and SQLite's reason. No stored row is
    lost."""


class StoreBusy(StoreError):  # noqa: N818 - a state of the world rather than a mistake
    """Another program has locked the database, which is unchanged; try again later."""


class StoreDamaged(StoreError):  # noqa: N818 - as those above
    """A stored row is not what was written. `Database.mend` continues from the rows that are intact."""


class StoreForeign(StoreError):  # noqa: N818 - it may be right where it is
    """The file belongs to another program, or to a newer version of this one. It is left unchanged."""


class Database:
    """A connection to the file at `path`, which is created if need be. Every method raises StoreError when
    SQLite fails."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._busy_ms: int | None = None
        self._files: tuple[tuple[int, int] | None, ...] = ()
        self._witness = ProgressWitness(path)
        self._ledger: Ledger | None = None
        self._backup_failed = False
        with self.errors():
            self._open()

    def _open(self) -> None:
        try:
            refuse_newer(self.path)
            if self._read_only:
                self._db = open_to_read(self.path)
                self._db.row_factory = sqlite3.Row
                return
            refuse_newer(backup_of(self.path))
            was_wrong = make_whole(self.path, self._witness)
        except (ForeignFile, NewerFile) as error:
            raise StoreForeign(str(error)) from None
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror or error}") from None
        self._db = db = connect(self.path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        if self._busy_ms is not None:
            db.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'mission'").fetchone():
            make_new(db)
        migrate(db)
        self._ledger = Ledger(db)
        self._witness.write(self._ledger.generation)
        self._files = self._identity()
        db.row_factory = sqlite3.Row
        if was_wrong and self._ledger.generation:  # or the next start tells of the same backup again
            self.back_up()

    def never_wait(self) -> None:
        """Makes a database that another program has locked raise StoreBusy at once: the daemon's loop tries
        again later, and does not wait inside SQLite while nobody listens to its links."""
        self._busy_ms = BUSY_MS
        with self.errors():
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def close(self) -> None:
        """Closes the file; SQLite merges the write-ahead log into it."""
        with self.errors():
            self._db.close()
        self._witness.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction: all statements of the block or none take effect, and are on the disk when it
        ends."""
        with self.errors():
            if self._ledger is None:
                raise StoreError(f"{self.path}: is a readonly database here: it was opened to be read")
            if self._identity() != self._files:
                self._write_anew()
            with entering(self._db, self._ledger):
                yield
            self._witness.write(self._ledger.generation)

    def back_up(self) -> None:
        """Replaces the backup, completely or not at all. A failure is logged once and stops nothing, since
        the database itself is intact."""
        backup = backup_of(self.path)
        new = being_made(backup)
        try:
            new.unlink(missing_ok=True)
            self._db.execute("VACUUM INTO ?", (str(new),))
            new.chmod(0o600)
            publish(new, backup)
        except (OSError, sqlite3.Error) as error:
            if not self._backup_failed:
                say(log, "backup-failed", level=logging.WARNING, path=str(backup), why=str(error))
            self._backup_failed = True
        else:
            self._backup_failed = False

    def mend(self) -> None:
        """Closes the file, repairs it, and opens the result."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        with self.errors():
            self._open()

    def _write_anew(self) -> None:
        """Writes the database to its path again after the file, or its log, was deleted or replaced: SQLite
        would go on writing to a file without a name, and all of that would be lost. Whatever has the path now
        is put aside."""
        new = self.path.with_name(f"{self.path.name}.new")
        assert self._ledger is not None
        try:
            self.back_up()
            new.unlink(missing_ok=True)
            self._db.execute("VACUUM INTO ?", (str(new),))
            aside = put_aside(self.path)
            self._db.close()
            publish(new, self.path)
            self._witness.close()  # it may be gone, too
            self._witness.write(self._ledger.generation)
        except OSError as error:
            why = f"was removed or replaced, and cannot be written anew: {error.strerror or error}"
            raise StoreError(f"{self.path}: {why}") from None
        say(
            log, "database-rewritten", level=logging.WARNING, path=str(self.path),
            why="it or its log was removed or replaced while this program ran", aside=str(aside or ""),
        )  # fmt: skip
        self._open()

    def _identity(self) -> tuple[tuple[int, int] | None, ...]:
        """The device and inode of the file and of the files that SQLite keeps beside it."""
        return tuple(_identity(self.path.with_name(self.path.name + side)) for side in ("", "-wal", "-shm"))

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        """Executes one statement inside a transaction."""
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Executes one statement for each of the rows inside a transaction."""
        self._db.executemany(statement, rows)

    def has(self, table: str) -> bool:
        """Whether there is such a table."""
        with self.errors():
            found = self._db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        return found is not None

    def one(self, table: str, where: str = "", *values: Any) -> dict[str, Any] | None:
        """The first row of a table that meets a condition, checked. Raises StoreDamaged."""
        rows = self.all(table, f"{where} LIMIT 1", *values)
        return rows[0] if rows else None

    def all(self, table: str, where: str = "", *values: Any) -> list[dict[str, Any]]:
        """All rows of a table that meet a condition, checked. Raises StoreDamaged."""
        with self.errors():
            rows = [dict(row) for row in self._db.execute(f"SELECT * FROM {table} {where}", values)]
        for row in rows:
            if not is_whole(table, row):
                name = " ".join(str(row.get(column)) for column in TABLES[table])
                raise StoreDamaged(f"{self.path}: {table} {name} is not as it was written")
            row.pop("digest", None)
        return rows

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns exceptions of SQLite, and of decoding what is stored, into StoreError."""
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise StoreBusy(f"{self.path}: {error}: another program holds it") from error
            if type(error) is sqlite3.DatabaseError and not is_of_the_machine(error, self.path):
                raise StoreDamaged(f"{self.path}: {error}") from error
            raise StoreError(f"{self.path}: {error}") from error
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self.path}: holds what this version does not read: {error}") from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
