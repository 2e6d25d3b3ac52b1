"""Opens a database for anybody who may read its file, whether its daemon runs or not."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path


def open_to_read(path: Path) -> sqlite3.Connection:
    """Opens the database as it is, for a user who may write neither it nor its folder.

    Readers of a write-ahead log share an index in a file beside it, which SQLite creates if it is missing.
    Once the daemon has stopped, a reader without the right to create files could not even look. So a database
    without a log is opened as immutable, and if a log cannot be shared, a copy is read. Raises sqlite3.Error.
    """
    name = path.resolve().as_uri()
    log = path.with_name(f"{path.name}-wal")
    if not log.exists():
        return _looked_into(f"{name}?mode=ro&immutable=1")
    try:
        return _looked_into(f"{name}?mode=ro")
    except sqlite3.Error:
        try:
            return _copied(path, log)
        except OSError as error:
            raise sqlite3.OperationalError(error.strerror or str(error)) from None


def _copied(*files: Path) -> sqlite3.Connection:
    """A copy, in memory, of the database in a file and its log. Raises sqlite3.Error, OSError."""
    with tempfile.TemporaryDirectory(prefix="groundstation-") as folder:
        for file in files:
            shutil.copyfile(file, Path(folder) / file.name)
        with contextlib.closing(sqlite3.connect(Path(folder) / files[0].name)) as copied:
            memory = sqlite3.connect(":memory:")
            copied.backup(memory)
    return memory


def _looked_into(uri: str) -> sqlite3.Connection:
    """Opens a database and reads from it once, since SQLite touches no file before that."""
    db = sqlite3.connect(uri, uri=True)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db
