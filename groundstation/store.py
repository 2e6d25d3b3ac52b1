"""The mission's memory in SQLite: what was asked, what was answered, and how far each node's keys have come.

One connection, one writer (the daemon's only thread). Write-ahead log with full sync: a committed
transaction survives a power cut, and `groundstation status` reads beside the running daemon.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from groundstation.onlooker import open_to_read
from onboard.wire.events import Spent
from onboard.wire.seal import NO_SALT, next_epoch

_LATEST = 4  # of a node's updates: one that waits for its DONE is of the last round or the one before
_ADDED = (
    ("round", "left_s", "REAL"),
    ("answer", "asking", "INTEGER NOT NULL DEFAULT 0"),
    ("mission", "classes", "TEXT"),
)


OPEN_WITHIN_S = 5.0  # at the start, while another program reads or holds the database
BUSY_MS = 50  # later


class StoreError(OSError):
    """The database cannot be read or written: names the file and SQLite's reason; nothing stored is lost."""


class StoreBusy(StoreError):  # noqa: N818 - a state of the world rather than a mistake
    """Another program holds the database. It is as it was; try again."""


@dataclass(frozen=True)
class RoundRow:
    """One round as stored; `closed_at`, `accuracy`, `loss` and `bits_down` are None while it is open.

    `left_s` is what was left of its time when that was last noted; `deadline_at`, on the wall's clock, is
    only for display.
    """

    number: int
    opened_at: float
    deadline_at: float
    model: bytes
    closed_at: float | None
    accuracy: float | None
    loss: float | None
    bits_down: float | None
    left_s: float | None = None


@dataclass(frozen=True)
class Floor:
    """Our epoch towards a node, the salt of the link's keys, the replay floor of the node's frames, and what
    was spent of what may be sent to it."""

    epoch: int
    salt: bytes
    floor: tuple[int, int]
    spent: Spent


class Store:
    """Opens or makes the database at `path`. Raises StoreError from every method when SQLite fails."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None  # device and inode, of a database that is written
        with self._errors():
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
        with self._errors():
            self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def close(self) -> None:
        """Closes the file; the write-ahead log is folded in by SQLite."""
        with self._errors():
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, on the disk when the block ends."""
        with self._errors():
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

    # the mission and its nodes

    def begin(self, mission_id: bytes, name: str, seed: int, graph: bytes) -> tuple[bytes, bytes]:
        """Enters the mission if the file is new; returns the stored (mission id, graph digest)."""
        with self.transaction():
            row = self._db.execute("SELECT id, graph FROM mission").fetchone()
            if row is None:
                self._db.execute(
                    "INSERT INTO mission (id, name, seed, graph) VALUES (?, ?, ?, ?)",
                    (mission_id, name, seed, graph),
                )
                return mission_id, graph
        return bytes(row["id"]), bytes(row["graph"])

    def classes(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Notes what the mission's labels mean, if nobody has yet; returns what is stored."""
        told = msgspec.json.encode(classes).decode()
        with self.transaction():
            self._db.execute("UPDATE mission SET classes = ? WHERE classes IS NULL", (told,))
            row = self._db.execute("SELECT classes FROM mission").fetchone()
        with self._errors():
            return msgspec.json.decode(row["classes"], type=tuple[str, ...])

    def finish(self, why: str, now: float) -> None:
        """Marks the mission as finished."""
        with self.transaction():
            self._db.execute("UPDATE mission SET finished_at = ?, why = ?", (now, why))

    def mission(self) -> Mapping[str, Any] | None:
        """The mission's row, or None in a new file."""
        return self._one("SELECT * FROM mission")

    def enter_node(self, node: int, name: str) -> Floor:
        """Raises our epoch towards `node` and returns it with the stored replay floor, durable on return.

        So no sequence number of an earlier run of this daemon is ever used again.
        """
        with self.transaction():
            self._db.execute(
                "INSERT INTO node (id, name, epoch, salt, floor_epoch, floor_seq) VALUES (?, ?, 0, ?, 0, 0) "
                "ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                (node, name, NO_SALT),
            )
            row = self._db.execute(
                "SELECT epoch, salt, floor_epoch, floor_seq, spent FROM node WHERE id = ?", (node,)
            ).fetchone()
            epoch = next_epoch(row["epoch"])
            self._db.execute("UPDATE node SET epoch = ? WHERE id = ?", (epoch, node))
        with self._errors():
            spent = Spent() if row["spent"] is None else msgspec.json.decode(row["spent"], type=Spent)
        return Floor(epoch, bytes(row["salt"]), (row["floor_epoch"], row["floor_seq"]), spent)

    def rekey(self, node: int, salt: bytes) -> None:
        """Notes the salt of a node's link, under which nothing was heard yet."""
        with self.transaction():
            self._db.execute(
                "UPDATE node SET salt = ?, floor_epoch = 0, floor_seq = 0 WHERE id = ?", (salt, node)
            )

    def spend(self, node: int, spent: Spent) -> None:
        """Notes what was spent of what may be sent to a node."""
        with self.transaction():
            text = msgspec.json.encode(spent).decode()
            self._db.execute("UPDATE node SET spent = ? WHERE id = ?", (text, node))

    def cut(self, node: int, digest: bytes, fragment_bytes: int) -> None:
        """Notes how an object that is offered to a node is cut."""
        with self.transaction():
            self._db.execute(
                "UPDATE node SET offered = ?, fragment_bytes = ? WHERE id = ?", (digest, fragment_bytes, node)
            )

    def fragment_bytes(self, node: int, digest: bytes) -> int | None:
        """As `cut` noted it, if that was the last object for the node."""
        row = self._one("SELECT fragment_bytes FROM node WHERE id = ? AND offered = ?", node, digest)
        return None if row is None else int(row["fragment_bytes"])

    def hear(self, node: int, now: float, floor: tuple[int, int], health: Mapping[str, Any] | None) -> None:
        """Notes when and what a node was heard to say last, and its replay floor."""
        with self.transaction():
            self._hear(node, now, floor)
            if health is not None:
                self._db.execute("UPDATE node SET health = ? WHERE id = ?", (json.dumps(health), node))

    def nodes(self) -> list[Mapping[str, Any]]:
        """The nodes' rows."""
        return self._all("SELECT * FROM node ORDER BY id")

    # rounds

    def open_round(
        self, number: int, model: bytes, nodes: list[int], opened_at: float, deadline_at: float
    ) -> None:
        """Enters a round and whom it asks."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO round (number, opened_at, deadline_at, model, left_s) VALUES (?, ?, ?, ?, ?)",
                (number, opened_at, deadline_at, model, deadline_at - opened_at),
            )
            self._db.executemany(
                "INSERT INTO answer (round, node, state, changed_at) VALUES (?, ?, 'asked', ?)",
                [(number, node, opened_at) for node in nodes],
            )

    def ask_again(self, number: int, now: float, deadline_at: float) -> None:
        """Gives a round that nobody answered its time once more; the nodes that failed are asked anew."""
        with self.transaction():
            self._db.execute(
                "UPDATE round SET deadline_at = ?, left_s = ? WHERE number = ?",
                (deadline_at, deadline_at - now, number),
            )
            self._db.execute(
                "UPDATE answer SET state = 'asked', changed_at = ?, asking = asking + 1 "
                "WHERE round = ? AND state IN ('failed', 'refused')",
                (now, number),
            )

    def ask_once_more(self, number: int, node: int, now: float) -> int:
        """Asks one node of a round anew; returns which asking it is, durable on return."""
        with self.transaction():
            self._db.execute(
                "UPDATE answer SET state = 'asked', changed_at = ?, asking = asking + 1 "
                "WHERE round = ? AND node = ?",
                (now, number, node),
            )
            row = self._db.execute(
                "SELECT asking FROM answer WHERE round = ? AND node = ?", (number, node)
            ).fetchone()
        return int(row["asking"])

    def time_left(self, number: int, left_s: float, now: float) -> None:
        """Notes how much of a round's time is left, and when that will be over, for display."""
        with self.transaction():
            self._db.execute(
                "UPDATE round SET left_s = ?, deadline_at = ? WHERE number = ?",
                (left_s, now + left_s, number),
            )

    def close_round(
        self, number: int, packed: bytes, accuracy: float, loss: float, bits_down: float, now: float
    ) -> None:
        """Closes a round with the model that it made, whole."""
        with self.transaction():
            self._db.execute(
                "UPDATE round SET closed_at = ?, accuracy = ?, loss = ?, bits_down = ? WHERE number = ?",
                (now, accuracy, loss, bits_down, number),
            )
            self._db.execute("INSERT OR REPLACE INTO model (number, payload) VALUES (?, ?)", (number, packed))

    def rounds(self) -> list[RoundRow]:
        """All rounds, oldest first."""
        return [RoundRow(**row) for row in self._all("SELECT * FROM round ORDER BY number")]

    def asked(self, number: int) -> bytes | None:
        """The object that round `number` sent."""
        row = self._one("SELECT model FROM round WHERE number = ?", number)
        return None if row is None else bytes(row["model"])

    def model(self, number: int) -> bytes | None:
        """The packed weights that round `number` made."""
        row = self._one("SELECT payload FROM model WHERE number = ?", number)
        return None if row is None else bytes(row["payload"])

    def answers(self, number: int) -> list[Mapping[str, Any]]:
        """Who was asked in a round and what became of it, without the payloads."""
        return self._all(
            "SELECT round, node, state, changed_at, samples, loss, train_s, cpu_s, energy_j, asking, "
            "length(payload) AS bytes FROM answer WHERE round = ? ORDER BY node",
            number,
        )

    def payload(self, number: int, node: int) -> bytes | None:
        """The update object of one node in one round."""
        row = self._one("SELECT payload FROM answer WHERE round = ? AND node = ?", number, node)
        return None if row is None or row["payload"] is None else bytes(row["payload"])

    def updates(self, node: int) -> list[bytes]:
        """The latest update objects of one node, at most `_LATEST`, the last first."""
        rows = self._all(
            "SELECT payload FROM answer WHERE node = ? AND payload IS NOT NULL ORDER BY round DESC LIMIT ?",
            node, _LATEST,
        )  # fmt: skip
        return [bytes(row["payload"]) for row in rows]

    def mark(self, number: int, node: int, state: str, now: float) -> None:
        """Notes a change of one answer's state."""
        with self.transaction():
            self._db.execute(
                "UPDATE answer SET state = ?, changed_at = ? WHERE round = ? AND node = ?",
                (state, now, number, node),
            )

    def take_update(
        self, number: int, node: int, payload: bytes, metrics: Mapping[str, float], floor: tuple[int, int],
        now: float, *, merged: bool = False,
    ) -> None:  # fmt: skip
        """Stores an update and the node's replay floor in one barrier: only then may DONE leave.

        `merged`: it answers an earlier round, and this one did not ask its node.
        """
        state = "merged" if merged else "answered"
        with self.transaction():
            if merged:
                self._db.execute(
                    "INSERT OR IGNORE INTO answer (round, node, state, changed_at) VALUES (?, ?, ?, ?)",
                    (number, node, state, now),
                )
            self._db.execute(
                "UPDATE answer SET state = :state, changed_at = :now, payload = :payload, "
                "samples = :samples, loss = :loss, train_s = :train_s, cpu_s = :cpu_s, energy_j = :energy_j "
                "WHERE round = :round AND node = :node",
                {"state": state, "now": now, "payload": payload, "round": number, "node": node, **metrics},
            )
            self._hear(node, now, floor)

    # counters

    def count(self, node: int, counters: Mapping[str, float]) -> None:
        """Replaces a node's running totals."""
        with self.transaction():
            self._db.executemany(
                "INSERT INTO counter (node, name, value) VALUES (?, ?, ?) "
                "ON CONFLICT (node, name) DO UPDATE SET value = excluded.value",
                [(node, name, value) for name, value in counters.items()],
            )

    def counters(self, node: int) -> dict[str, float]:
        """A node's running totals over all runs of the daemon."""
        rows = self._all("SELECT name, value FROM counter WHERE node = ?", node)
        return {row["name"]: row["value"] for row in rows}

    def _hear(self, node: int, now: float, floor: tuple[int, int]) -> None:
        self._db.execute(
            "UPDATE node SET heard_at = ?, floor_epoch = ?, floor_seq = ? WHERE id = ?", (now, *floor, node)
        )

    def _one(self, query: str, *values: Any) -> Mapping[str, Any] | None:
        with self._errors():
            row = self._db.execute(query, values).fetchone()
        return None if row is None else dict(row)

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._errors():
            return [dict(row) for row in self._db.execute(query, values)]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
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
