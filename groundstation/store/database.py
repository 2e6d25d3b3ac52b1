"""The mission's SQLite file: one connection, one writer (the daemon), and a digest of every row.

With a write-ahead log and full sync, a committed transaction survives a power cut, and `groundstation status`
can read while the daemon runs.

SQLite checks how its pages refer to each other, but not their content. So triggers of the writer's
connection, which no statement can bypass, compute a digest of each row, and the ledger holds their sum: a
changed row fails its own digest; a lost row, or one from an older log, fails the sum. Every row is checked
when it is read. The ledger and a file beside the database, the witness, count the transactions
(`generation`). `recovery` repairs what they find."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2s
from pathlib import Path
from typing import Any

import msgspec

from groundstation.store import schema
from onboard.storage.files import checked, sync_folder

OPEN_WITHIN_S = 5.0  # at the start, while another program reads or holds the database
SIDES = ("", "-wal", "-shm")
TABLES: Mapping[str, tuple[str, ...]] = {
    "mission": ("id",),
    "node": ("id",),
    "round": ("number",),
    "answer": ("round", "node"),
    "counter": ("node", "name"),
    "model": ("number",),
    "command": ("id",),
}
"""The tables, in an order in which rows may be inserted, and the columns that name a row."""
DIGEST_BYTES = 16
SUMS = 2 ** (8 * DIGEST_BYTES)
_MACHINE = ("locked", "unable to open", "disk i/o error", "disk is full", "out of memory")


class StoreError(OSError):
    """A failure of SQLite to read or write the database; the text says why. No stored row is lost."""


class StoreBusy(StoreError):  # noqa: N818 - a state of the world rather than a mistake
    """A lock of another program on the database, which is unchanged; try again later."""


class StoreDamaged(StoreError):  # noqa: N818 - as those above
    """A stored row that is not what was written. `Store.mend` continues from the intact rows."""


class StoreForeign(StoreError):  # noqa: N818 - it may be right where it is
    """A file of another program or of a newer version of this one, which is left unchanged."""


def _row_digest(table: str, row: Mapping[str, Any]) -> bytes:
    """Returns the digest of a row. A NULL does not count, so columns can be added. Raises ValueError for text
    that is not valid Unicode."""
    held = [(name, value) for name, value in sorted(row.items()) if value is not None and name != "digest"]
    return blake2s(msgspec.msgpack.encode((table, held)), digest_size=DIGEST_BYTES).digest()


def is_whole(table: str, row: Mapping[str, Any]) -> bool:
    """Whether a row is as it was written. A row without a digest column is accepted."""
    try:
        return "digest" not in row or bool(_row_digest(table, row) == row["digest"])
    except ValueError:
        return False


def is_believable(db: sqlite3.Connection) -> bool:
    """Whether the ledger is empty, or its row, the tables' definitions and the schema number are intact."""
    row = db.execute("SELECT generation, sum, digest FROM ledger").fetchone()
    try:
        return row is None or bool(_ledger_digest(row[0], row[1], _definitions(db)) == row[2])
    except (TypeError, ValueError):
        return False


class Ledger:
    """The ledger of a writing connection: the generation, and the sum of the digests that triggers keep."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._change = 0
        db.create_function("row_digest", -1, _digest_of, deterministic=True)
        db.create_function("account", 2, self._account)
        there = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        self._tables = [table for table in TABLES if table in there]
        for table in self._tables:
            _watch(db, table)
        self._schema = _definitions(db)
        found = db.execute("SELECT generation, sum FROM ledger").fetchone() or (0, b"")
        self.generation: int = found[0]
        self._sum = int.from_bytes(found[1], "big")

    @contextlib.contextmanager
    def transaction(self, after: int = 0) -> Iterator[None]:
        self._change = 0
        with _atomic(self._db):
            yield
            entered = self._enter(after)
        self.generation, self._sum = entered

    def adopt(self) -> None:
        """Recomputes all digests, in the transaction that changed the columns."""
        for table in self._tables:
            self._db.execute(f"UPDATE {table} SET digest = {_call(self._db, table)}")
        self._enter(0)

    def _enter(self, after: int) -> tuple[int, int]:
        generation, total = max(self.generation, after) + 1, (self._sum + self._change) % SUMS
        packed = total.to_bytes(DIGEST_BYTES, "big")
        self._db.execute(
            "INSERT INTO ledger (id, generation, sum, digest) VALUES (1, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
            "SET generation = excluded.generation, sum = excluded.sum, digest = excluded.digest",
            (generation, packed, _ledger_digest(generation, packed, self._schema)),
        )
        return generation, total

    def _account(self, before: bytes | None, after: bytes | None) -> None:
        self._change += int.from_bytes(after or b"", "big") - int.from_bytes(before or b"", "big")


def witness_of(path: Path) -> Path:
    """Returns the path of a file that counts the database's transactions, so that lost ones are noticed.

    Without its write-ahead log a database has lost transactions but looks intact. The count is written after
    each transaction without a sync: a power cut may leave it too low, which proves nothing. It is never too
    high."""
    return path.with_name(f"{path.name}.witness")


def read_witness(path: Path) -> int | None:
    """Returns the generation reached, or None without a witness. Raises ValueError for a damaged one."""
    witness = witness_of(path)
    try:
        with witness.open("rb") as file:
            content = file.read(len(_testimony(0)) + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{witness}: {error.strerror}") from None
    generation = int.from_bytes(content[4:12], "big")
    if content != _testimony(generation):
        raise ValueError(f"{witness}: is damaged")
    return generation


def write_witness(path: Path, generation: int) -> None:
    """Writes the count. A failure is ignored, since the database itself is written."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError), os.fdopen(os.open(witness_of(path), flags, 0o600), "wb") as file:
        file.write(_testimony(generation))
        file.truncate()


def _testimony(generation: int) -> bytes:
    return checked(b"SDW1" + generation.to_bytes(8, "big"))


class Database:
    """A connection to the file at `path`, created if missing. Every method raises StoreError."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._ledger: Ledger | None = None
        with errors(path):
            self._db = db = open_to_read(path) if read_only else connect(path)
            db.row_factory = sqlite3.Row
            if read_only:
                return
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                db.execute(f"PRAGMA {setting}")
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'mission'").fetchone():
                schema.make_new(db)
            migrate(db)
            self._ledger = Ledger(db)
            write_witness(path, self._ledger.generation)
            self._files = self._identity()

    def close(self) -> None:
        """Closes the file; SQLite merges the write-ahead log into it."""
        with errors(self.path):
            self._db.close()

    @property
    def generation(self) -> int:
        """The number of transactions so far; 0 on a read-only connection."""
        return self._ledger.generation if self._ledger else 0

    @property
    def is_displaced(self) -> bool:
        """Whether the file, or one that SQLite keeps beside it, was deleted or replaced."""
        return self._ledger is not None and self._identity() != self._files

    def _identity(self) -> list[tuple[int, int] | None]:
        return [_identity(self.path.with_name(self.path.name + side)) for side in SIDES]

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Applies all statements of the block or none, durably when it ends."""
        with errors(self.path):
            if self._ledger is None:
                raise StoreError(f"{self.path}: is a readonly database here: it was opened to be read")
            with self._ledger.transaction():
                yield
            write_witness(self.path, self._ledger.generation)

    def write_copy(self, path: Path) -> Path:
        """Writes a copy beside `path`, for `publish` to rename. Raises OSError, sqlite3.Error."""
        new = being_made(path)
        new.unlink(missing_ok=True)
        self._db.execute("VACUUM INTO ?", (str(new),))
        new.chmod(0o600)
        return new

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._db.executemany(statement, rows)

    def one(self, table: str, where: str = "", *values: Any) -> dict[str, Any] | None:
        """Returns the first row that meets a condition, checked. Raises StoreDamaged."""
        rows = self.all(table, f"{where} LIMIT 1", *values)
        return rows[0] if rows else None

    def all(self, table: str, where: str = "", *values: Any) -> list[dict[str, Any]]:
        """Returns all rows that meet a condition, checked. Raises StoreDamaged."""
        with errors(self.path):
            rows = [dict(row) for row in self._db.execute(f"SELECT * FROM {table} {where}", values)]
        for row in rows:
            if not is_whole(table, row):
                name = " ".join(str(row.get(column)) for column in TABLES[table])
                raise StoreDamaged(f"{self.path}: {table} {name} is not as it was written")
            row.pop("digest", None)
        return rows


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turns errors of SQLite, of the disk, and of decoding stored values into StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise StoreBusy(f"{path}: {error}: another program holds it") from error
        if type(error) is sqlite3.DatabaseError and not is_of_the_machine(error, path):
            raise StoreDamaged(f"{path}: {error}") from error
        raise StoreError(f"{path}: {error}") from error
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path}: holds what this version does not read: {error}") from error
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}") from None


def connect(path: Path) -> sqlite3.Connection:
    """Opens a connection that writes, and that can read rows whose text is not valid Unicode."""
    db = sqlite3.connect(path, isolation_level=None, timeout=OPEN_WITHIN_S)
    db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    return db


def migrate(db: sqlite3.Connection) -> None:
    """Brings an older database to the newest schema, completely or not at all. Raises sqlite3.Error."""
    if schema.number_of(db) < schema.SCHEMA:
        with _atomic(db):
            schema.upgrade(db)
            Ledger(db).adopt()


def backup_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.backup")


def being_made(path: Path) -> Path:
    """Returns the path of a database or backup before `publish` gives it its name."""
    return path.with_name(f"{path.name}.new")


def publish(new: Path, path: Path) -> None:
    sync_folder(new)  # which serves for a file, too
    new.replace(path)
    sync_folder(path.parent)


def is_of_the_machine(error: sqlite3.Error, path: Path) -> bool:
    """Whether the cause is the machine: another program's lock, a full disk, a write-protected file."""
    told = str(error).lower()
    if "readonly" in told:  # a damaged header gives the same message
        return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
    return any(each in told for each in _MACHINE)


@contextlib.contextmanager
def _atomic(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
            db.execute("ROLLBACK")
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _watch(db: sqlite3.Connection, table: str) -> None:
    columns = ", ".join(_columns(db, table))
    renew = f"UPDATE {table} SET digest = {_call(db, table)} WHERE rowid = NEW.rowid"
    for name, when, what in (
        ("new", "INSERT", renew),
        ("set", f"UPDATE OF {columns}", renew),
        ("sum", "UPDATE OF digest", "SELECT account(OLD.digest, NEW.digest)"),
        ("gone", "DELETE", "SELECT account(OLD.digest, NULL)"),
    ):  # a migration may have made them
        trigger = f"IF NOT EXISTS {table}_{name} AFTER {when} ON main.{table} BEGIN {what}; END"
        db.execute(f"CREATE TEMP TRIGGER {trigger}")


def _digest_of(table: str, *pairs: Any) -> bytes:
    """Returns the digest of a row from its columns' names and values in turn, for SQL."""
    return _row_digest(table, dict(zip(pairs[::2], pairs[1::2], strict=True)))


def _call(db: sqlite3.Connection, table: str) -> str:
    pairs = ", ".join(f"'{name}', {name}" for name in _columns(db, table))
    return f"row_digest('{table}', {pairs})"


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] != "digest"]


def _definitions(db: sqlite3.Connection) -> str:
    found = db.execute("SELECT name, sql FROM main.sqlite_master WHERE sql IS NOT NULL ORDER BY name")
    number = db.execute("PRAGMA main.user_version").fetchone()[0]
    return "\n".join([f"{row[0]}: {row[1]}" for row in found] + [f"user_version: {number}"] * (number > 0))


def _ledger_digest(generation: int, total: bytes, schema: str) -> bytes:
    return _row_digest("ledger", {"generation": generation, "sum": total, "schema": schema})


def open_to_read(path: Path) -> sqlite3.Connection:
    """Opens the database for a user who may write neither it nor its folder. Raises sqlite3.Error.

    Readers of a write-ahead log share an index in a file beside it, which SQLite creates if it is missing;
    after the daemon has stopped, such a user could not read at all. So a database without a log is opened as
    immutable, and if a log cannot be shared, a copy is read."""
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
    """Copies a database with its log into memory. Raises sqlite3.Error, OSError."""
    with tempfile.TemporaryDirectory(prefix="groundstation-") as folder:
        for file in files:
            shutil.copyfile(file, Path(folder) / file.name)
        with contextlib.closing(sqlite3.connect(Path(folder) / files[0].name)) as copied:
            memory = sqlite3.connect(":memory:")
            copied.backup(memory)
    return memory


def _looked_into(uri: str) -> sqlite3.Connection:
    """Opens a database and reads from it once: SQLite touches no file before that."""
    db = sqlite3.connect(uri, uri=True)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db
