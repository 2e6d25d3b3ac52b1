"""The schema of a mission's database has a number, SQLite's `user_version`; a start migrates an older one.

`schema.sql` is the newest schema, and `migrations/NNN_name.sql` makes schema NNN from the one before: a new
one is one more such file and the same change in `schema.sql` (a test compares them)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib import resources

APPLICATION_ID = 0x53444D4C  # "SDML", at byte 68 of the file
_FOLDER = resources.files("groundstation.store")
_MIGRATIONS = {
    int(script.name[:3]): script.read_text()
    for script in sorted(_FOLDER.joinpath("migrations").iterdir(), key=lambda script: script.name)
    if script.name.endswith(".sql")
}
SCHEMA = max(_MIGRATIONS)
"""The schema number that this program reads and writes."""
_UNNUMBERED = (
    ("node", "salt"), ("node", "spent"), ("node", "offered"), ("round", "left_s"), ("mission", "classes"),
    ("answer", "why"), ("answer", "digest"),
)  # fmt: skip
"""What the second schema and its successors added, up to the last one without a number."""


def make_new(db: sqlite3.Connection) -> None:
    schema = _FOLDER.joinpath("schema.sql").read_text()
    db.executescript(
        f"PRAGMA application_id = {APPLICATION_ID}; BEGIN; {schema} PRAGMA user_version = {SCHEMA}; COMMIT;"
    )


def upgrade(db: sqlite3.Connection) -> None:
    """Migrates to the newest schema, inside the caller's transaction. Raises sqlite3.Error."""
    for number in range(number_of(db) + 1, SCHEMA + 1):
        for statement in _statements(_MIGRATIONS[number]):
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA}")


def number_of(db: sqlite3.Connection) -> int:
    """Returns a database's schema number; one without a number is known by its columns."""
    number: int = db.execute("PRAGMA user_version").fetchone()[0]
    if number:
        return number
    for unnumbered, (table, column) in enumerate(_UNNUMBERED, 1):
        if column not in {row[1] for row in db.execute(f"PRAGMA table_info({table})")}:
            return unnumbered
    return len(_UNNUMBERED) + 1


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
