"""Every row has a digest, and the ledger holds their sum: a row that a disk changed, lost or brought back is
seen.

SQLite checks how its pages refer to each other, and not their content. Triggers of the writer's connection
compute the digests, so that no statement can omit one. A changed row fails its own digest; a lost row, or one
that came back from an older log, fails the sum. The ledger also counts the transactions (`generation`), which
tells the later of two intact copies.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2s
from typing import Any

import msgspec

TABLES: Mapping[str, tuple[str, ...]] = {
    "mission": ("id",),
    "node": ("id",),
    "round": ("number",),
    "answer": ("round", "node"),
    "counter": ("node", "name"),
    "model": ("number",),
    "command": ("id",),
}
"""What is kept, in an order in which rows may be entered, and which columns name a row."""
_LATER = frozenset({"command"})
"""Of these, what an earlier form of the database is without."""
DIGEST_BYTES = 16
_TRIGGERS = ("new", "set", "sum", "gone")
_SUMS = 2 ** (8 * DIGEST_BYTES)


def row_digest(table: str, *pairs: Any) -> bytes:
    """The digest of a row, given the names and values of its columns in turn. A NULL does not count, so that
    a column can be added. Raises ValueError for text that is not valid Unicode."""
    told = sorted(zip(pairs[::2], pairs[1::2], strict=True))
    held = [(name, value) for name, value in told if value is not None]
    return blake2s(msgspec.msgpack.encode((table, held)), digest_size=DIGEST_BYTES).digest()


def is_whole(table: str, row: Mapping[str, Any]) -> bool:
    """Whether a row is as it was written. A row of a form without digests is accepted."""
    if "digest" not in row:
        return True
    pairs = [each for name, value in row.items() if name != "digest" for each in (name, value)]
    try:
        return bool(row_digest(table, *pairs) == row["digest"])
    except ValueError:
        return False


@dataclass
class Findings:
    """What an examination found. `why` is empty for an intact database; `generation` is None if the ledger
    cannot be trusted; `rows` are the intact rows; `bad` names the others, as far as they can be named."""

    generation: int | None = None
    why: str = ""
    rows: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.why


class Ledger:
    """The ledger of a connection that writes: its triggers keep the digests, and it keeps their sum."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._change = self._next = 0
        db.create_function("row_digest", -1, row_digest, deterministic=True)
        db.create_function("account", 2, self._account)
        there = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self._tables = [table for table in TABLES if table in there]
        for table in self._tables:
            _watch(db, table)
        self._schema = _schema(db)
        found = db.execute("SELECT generation, sum FROM ledger").fetchone()
        self.generation: int = 0 if found is None else found[0]
        self._sum = 0 if found is None else int.from_bytes(found[1], "big")

    def adopt(self) -> None:
        """Computes the digests of all rows again, inside the transaction that has changed their columns."""
        for table in self._tables:
            self._db.execute(f"UPDATE {table} SET digest = {_call(self._db, table)}")

    def begin(self) -> None:
        """Begins a transaction; changes of an earlier one that was rolled back do not count."""
        self._change = 0

    def enter(self, after: int = 0) -> None:
        """Executes the last statement of a transaction, which gives it the next number, and one above
        `after`."""
        self._next = max(self.generation, after) + 1
        total = ((self._sum + self._change) % _SUMS).to_bytes(DIGEST_BYTES, "big")
        self._db.execute(
            "INSERT INTO ledger (id, generation, sum, digest) VALUES (1, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
            "SET generation = excluded.generation, sum = excluded.sum, digest = excluded.digest",
            (self._next, total, _ledger_digest(self._next, total, self._schema)),
        )

    def entered(self) -> None:
        """Notes that the transaction is on the disk."""
        self._sum = (self._sum + self._change) % _SUMS
        self.generation, self._change = self._next, 0

    def leave(self) -> None:
        """Removes the triggers."""
        for table in self._tables:
            for name in _TRIGGERS:
                self._db.execute(f"DROP TRIGGER temp.{table}_{name}")

    def _account(self, before: bytes | None, after: bytes | None) -> None:
        for digest, sign in ((before, -1), (after, 1)):
            if digest is not None:
                self._change += sign * int.from_bytes(digest, "big")


def examine(db: sqlite3.Connection) -> Findings:
    """Reads a whole database and checks it. Raises sqlite3.Error only if it is locked or the machine
    fails."""
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
    missing = sorted(TABLES.keys() - tables - _LATER)  # the ledger vouches for what there is
    if missing:
        found.why = f"it has no table {missing[0]}"
    if found.bad:
        found.why = f"rows are not as they were written: {', '.join(found.bad[:5])}"
    if not found.why and (check := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
        found.why = str(check).splitlines()[-1]
    if "ledger" in tables:
        found.generation = _generation(db, total % _SUMS, found)
    return found


def is_believable(db: sqlite3.Connection) -> bool:
    """Whether the ledger's row is as it was written, and with it the tables' definitions and the form's
    number. A ledger without a row, into which nothing was entered yet, is accepted."""
    row = db.execute("SELECT generation, sum, digest FROM ledger").fetchone()
    try:
        return row is None or bool(_ledger_digest(row[0], row[1], _schema(db)) == row[2])
    except (TypeError, ValueError):
        return False


def _generation(db: sqlite3.Connection, total: int, found: Findings) -> int | None:
    """The ledger's count of transactions if the ledger can be trusted; notes in `found` what is wrong with
    it."""
    row = db.execute("SELECT generation, sum FROM ledger").fetchone()
    if row is None and not any(found.rows.values()):
        return 0  # it was made, and nothing was entered yet
    if row is None:
        found.why = found.why or "its ledger is empty"
        return None
    if not is_believable(db):
        found.why = found.why or "its ledger or its tables are not as they were written"
        return None
    if int.from_bytes(row[1], "big") != total:
        found.why = found.why or "rows are gone, or are those of an earlier time"
    return int(row[0])


def _all_rows(db: sqlite3.Connection, table: str, found: Findings) -> list[dict[str, Any]]:
    """The rows of a table; if one of its pages is damaged, the rows before it and those after it."""
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


def _watch(db: sqlite3.Connection, table: str) -> None:
    columns = ", ".join(_columns(db, table))
    renew = f"UPDATE {table} SET digest = {_call(db, table)} WHERE rowid = NEW.rowid"
    occasions = (
        ("INSERT", renew),
        (f"UPDATE OF {columns}", renew),
        ("UPDATE OF digest", "SELECT account(OLD.digest, NEW.digest)"),
        ("DELETE", "SELECT account(OLD.digest, NULL)"),
    )
    for name, (when, what) in zip(_TRIGGERS, occasions, strict=True):
        db.execute(f"CREATE TEMP TRIGGER {table}_{name} AFTER {when} ON main.{table} BEGIN {what}; END")


def _call(db: sqlite3.Connection, table: str) -> str:
    pairs = ", ".join(f"'{name}', {name}" for name in _columns(db, table))
    return f"row_digest('{table}', {pairs})"


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] != "digest"]


def _schema(db: sqlite3.Connection) -> str:
    """The tables' definitions and the form's number, if it has one."""
    found = db.execute("SELECT name, sql FROM main.sqlite_master WHERE sql IS NOT NULL ORDER BY name")
    number = db.execute("PRAGMA main.user_version").fetchone()[0]
    return "\n".join([f"{row[0]}: {row[1]}" for row in found] + [f"user_version: {number}"] * (number > 0))


def _ledger_digest(generation: int, total: bytes, schema: str) -> bytes:
    return row_digest("ledger", "generation", generation, "sum", total, "schema", schema)
