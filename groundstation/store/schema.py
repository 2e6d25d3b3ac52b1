"""The form of a mission's database has a number, SQLite's `user_version`; a start migrates an older form.

`schema.sql` is the newest form. `migrations/NNN_name.sql` makes form NNN of the one before it: a new form is
one more such file, and the same change in `schema.sql` (a test compares the two). A file that a newer version
of the program wrote is refused, and stays as it is.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path

from groundstation.store.ledger import Ledger, is_believable
from groundstation.store.onlooker import open_to_read

APPLICATION_ID = 0x53444D4C  # "SDML", at byte 68 of the file
_FOLDER = resources.files("groundstation.store")
_MIGRATIONS = {
    int(script.name[:3]): script.read_text()
    for script in sorted(_FOLDER.joinpath("migrations").iterdir(), key=lambda script: script.name)
    if script.name.endswith(".sql")
}
SCHEMA = max(_MIGRATIONS)
"""The number of the form that this program reads and writes."""
_UNNUMBERED = (
    ("node", "salt"), ("node", "spent"), ("node", "offered"), ("round", "left_s"), ("mission", "classes"),
    ("answer", "why"), ("answer", "digest"),
)  # fmt: skip
"""What the second form and those after it added, up to the last one that had no number."""


class NewerFile(ValueError):  # noqa: N818 - it is right where it is
    """A database that a newer version of the program wrote."""


def make_new(db: sqlite3.Connection) -> None:
    """Makes the tables in an empty database."""
    schema = _FOLDER.joinpath("schema.sql").read_text()
    db.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; BEGIN; {schema} PRAGMA user_version = {SCHEMA}; COMMIT;"
    )


def migrate(db: sqlite3.Connection) -> None:
    """Brings a database of an earlier form to the newest one, all or nothing. Raises sqlite3.Error."""
    if _schema_of(db) >= SCHEMA:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for number in range(_schema_of(db) + 1, SCHEMA + 1):
            for statement in _statements(_MIGRATIONS[number]):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        ledger = Ledger(db)
        ledger.begin()
        ledger.adopt()
        ledger.enter()
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
            db.execute("ROLLBACK")
        raise
    ledger.leave()


def refuse_newer(path: Path) -> None:
    """Raises NewerFile for a database of a newer form, which is left as it is. Whatever else is wrong with
    the file is not found here: a number that a disk has damaged is not believed."""
    if not path.is_file():
        return
    with contextlib.suppress(sqlite3.Error), closing(open_to_read(path)) as db:
        number = _schema_of(db)
        if number > SCHEMA and is_believable(db):
            raise NewerFile(
                f"{path}: was written by a newer version (schema {number}, this program knows {SCHEMA})"
            )


def _schema_of(db: sqlite3.Connection) -> int:
    """The number of a database's form; one without a number is known by its columns."""
    number: int = db.execute("PRAGMA user_version").fetchone()[0]
    if number:
        return number
    number = 1
    for table, column in _UNNUMBERED:
        if column not in {row[1] for row in db.execute(f"PRAGMA table_info({table})")}:
            break
        number += 1
    return number


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
