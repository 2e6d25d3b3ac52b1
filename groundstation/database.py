"""The mission's SQLite file: one connection, one writer (the daemon's only thread).

Write-ahead log with full sync: a committed transaction survives a power cut, and `groundstation status` reads
beside the running daemon.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from groundstation.onlooker import open_to_read

_ADDED = (
    ("round", "left_s", "REAL"),
    ("answer", "asking", "INTEGER NOT NULL DEFAULT 0"),
    ("answer", "why", "TEXT"),
    ("mission", "classes", "TEXT"),
)
OPEN_WITHIN_S = 5.0  # at the start, while another program reads or holds the database
BUSY_MS = 50  # later


class StoreError(OSError):
    """The database cannot be read or written: names the file and SQLite's reason; nothing stored is lost."""


class StoreBusy(StoreError):  # noqa: N818 - a state of the world rather than a mistake
    """Another program holds the database. It is as it was; try again."""


class Database:
    """Opens or makes the file at `path`. Raises StoreError from every method when SQLite fails."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None  # device and inode, of a database that is written
        with self.errors():
            if read_only:
                self._db = open_to_read(path)
            else:
                self._db = sqlite3.connect(path, isolation_level=None, timeout=OPEN_WITHIN_S)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'mission'").fetchone():
                    schema = resources.files("groundstation").joinpath("schema.sql").read_text()
                    self._db.executescript(f"BEGIN; {schema} COMMIT;")
                self._add_columns()
                self._file = _identity(path)
            self._db.row_factory = sqlite3.Row

    def _add_columns(self) -> None:
        """What a database of an earlier version lacks."""
        for table, column, kind in _ADDED:
            present = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
            if column not in present:
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")

    def never_wait(self) -> None:
        """From now on a database that another program holds is StoreBusy at once: a loop tries again later,
        and does not wait in SQLite while its links go unheard."""
        with self.errors():
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def close(self) -> None:
        """Closes the file; the write-ahead log is folded in by SQLite."""
        with self.errors():
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, on the disk when the block ends."""
        with self.errors():
            if self._file is not None and _identity(self.path) != self._file:
                # SQLite would go on in a file that has no name any more, and all of it would be lost.
                raise StoreError(f"{self.path}: was removed or replaced while this program ran; restart it")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                raise

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        """One statement, inside of a transaction."""
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """One statement for each of the rows, inside of a transaction."""
        self._db.executemany(statement, rows)

    def one(self, query: str, *values: Any) -> Mapping[str, Any] | None:
        """The first row that a query finds."""
        with self.errors():
            row = self._db.execute(query, values).fetchone()
        return None if row is None else dict(row)

    def all(self, query: str, *values: Any) -> list[Any]:
        """All rows that a query finds."""
        with self.errors():
            return [dict(row) for row in self._db.execute(query, values)]

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What SQLite and what is stored raise becomes StoreError."""
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise StoreBusy(f"{self.path}: {error}: another program holds it") from error
            raise StoreError(f"{self.path}: {error}") from error
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self.path}: holds what this version does not read: {error}") from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
