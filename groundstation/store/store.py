"""The mission's memory: what each round asked, what the boards answered, and the state of each link.

What is never read again is deleted when a round opens, so the file hardly grows. What stays of every round is
who was asked and with what outcome; of every update, its digest; of the models, the best and the newest up to
KEPT_MODEL_BYTES."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from groundstation.store.database import (
    Database,
    StoreBusy,
    StoreDamaged,
    StoreError,
    StoreForeign,
    backup_of,
    errors,
    publish,
)
from groundstation.store.recovery import open_whole, refuse_newer, write_anew
from onboard.console.log import say
from onboard.mission.objects import UPDATE
from onboard.storage.journal import LinkState
from onboard.wire.events import QuotaUsage
from onboard.wire.messages import digest
from onboard.wire.security.seal import next_epoch

__all__ = ["RoundRow", "Store", "StoreBusy", "StoreDamaged", "StoreError", "StoreForeign"]

log = logging.getLogger(__name__)

LATEST = 4
"""How many rounds and updates of a node are kept; one that waits for its DONE is of the last two rounds."""
KEPT_MODEL_BYTES = 8 << 20
"""Of packed models: some 300 rounds of LeNet-5 at half a bit a weight. Each backup copies them."""
REPORTS_EVERY_S = 5.0
BUSY_MS = 50  # once the daemon runs
_ONE_ANSWER = "WHERE round = ? AND node = ?"
_PUT_MODEL = (
    "INSERT INTO model (number, payload) VALUES (?, ?) "
    "ON CONFLICT (number) DO UPDATE SET payload = excluded.payload"
)
_FIRST_OF_ALL = (  # the highest and the lowest: which of them is the best is the metric's to say
    "SELECT number FROM (SELECT number FROM round ORDER BY accuracy DESC, number LIMIT 1) UNION SELECT "
    "number FROM (SELECT number FROM round WHERE accuracy IS NOT NULL ORDER BY accuracy, number LIMIT 1)"
)
_SET_TIME = "UPDATE round SET left_s = ?, deadline_at = ? WHERE number = ?"
METRICS = ("samples", "loss", "train_s", "cpu_s", "energy_j", "validation")  # of an update
_ANSWER = ("round", "node", "state", "changed_at", *METRICS, "asking", "why")


@dataclass(frozen=True)
class RoundRow:
    """One round as stored: `closed_at` and the three after it are None while it is open. `left_s` is the
    remaining time when it was last stored; `deadline_at` (wall clock) is only displayed."""

    number: int
    opened_at: float
    deadline_at: float
    model: bytes
    closed_at: float | None
    accuracy: float | None
    loss: float | None
    bits_down: float | None
    left_s: float | None = None


class Store:
    """The mission's database at `path`, created if missing. Every method raises StoreError when SQLite fails,
    and StoreDamaged for a stored row that is not what was written."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._entry: tuple[bytes, str, int, bytes, tuple[str, ...]] | None = None
        self._reports: dict[int, tuple[float, str, int]] = {}
        self._reported_s = -math.inf
        self._never_waits = self._backup_failed = False
        if read_only:
            with errors(path):
                refuse_newer(path)
            self.db = Database(path, read_only=True)
        else:
            self._open()

    def _open(self) -> None:
        self.db, was_wrong = open_whole(self.path)
        if self._never_waits:
            self.never_wait()
        # Otherwise the next start reports the same backup again.
        if was_wrong and self.db.generation:
            self.back_up()
        # An earlier version took updates without noting their digests.
        unnamed = self.db.all("answer", "WHERE object IS NULL AND payload IS NOT NULL")
        if unnamed:
            named = [(digest(UPDATE, row["payload"]), row["round"], row["node"]) for row in unnamed]
            with self.db.transaction():
                self.db.executemany("UPDATE answer SET object = ? WHERE round = ? AND node = ?", named)

    def back_up(self) -> None:
        """Replaces the backup, completely or not at all. A failure is logged once and stops nothing."""
        backup = backup_of(self.path)
        try:
            publish(self.db.write_copy(backup), backup)
        except (OSError, sqlite3.Error) as error:
            if not self._backup_failed:
                say(log, "backup-failed", level=logging.WARNING, path=str(backup), why=str(error))
            self._backup_failed = True
        else:
            self._backup_failed = False

    def mend(self) -> None:
        """Repairs the file and opens the result; if nothing is left of the mission, it is entered again."""
        with contextlib.suppress(StoreError):
            self.db.close()
        self._open()
        if self._entry is not None:
            self.begin(*self._entry)

    def never_wait(self) -> None:
        """Makes a locked database raise StoreBusy at once: the daemon's loop retries, and does not wait
        inside SQLite while nobody serves its links."""
        self._never_waits = True
        with errors(self.path):
            self.db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def close(self) -> None:
        self.db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        if self.db.is_displaced:
            self.back_up()
            write_anew(self.db)
            self._open()
        with self.db.transaction():
            yield

    def _write(self, statement: str, *values: Any) -> None:
        with self.transaction():
            self.db.execute(statement, values)

    # the mission and its nodes

    def begin(
        self, mission_id: bytes, name: str, seed: int, graph: bytes, classes: tuple[str, ...] = ()
    ) -> tuple[bytes, bytes, tuple[str, ...]]:
        """Inserts the mission if the file is new; returns the stored mission id, graph digest and classes.
        A mission without classes, of an earlier version, gets these if its graph is this one."""
        self._entry = (mission_id, name, seed, graph, classes)
        told = msgspec.json.encode(classes).decode()
        with self.transaction():
            if self.mission() is None:
                insert = "INSERT INTO mission (id, name, seed, graph) VALUES (?, ?, ?, ?)"
                self.db.execute(insert, (mission_id, name, seed, graph))
            named = "UPDATE mission SET classes = ? WHERE classes IS NULL AND graph = ?"
            self.db.execute(named, (told, graph))
            row = self.mission()
        assert row is not None
        with errors(self.path):
            kept = msgspec.json.decode(row["classes"] or "[]", type=tuple[str, ...])
        return row["id"], row["graph"], kept

    def finish(self, why: str, now: float) -> None:
        self._write("UPDATE mission SET finished_at = ?, why = ? WHERE finished_at IS NULL", now, why)
        self.back_up()

    def mission(self) -> Mapping[str, Any] | None:
        return self.db.one("mission")

    def enter_node(self, node: int, name: str) -> LinkState:
        """Raises our epoch towards `node` and returns our end's link state, durable on return: no sequence
        number of an earlier run is ever reused."""
        with self.transaction():
            self.db.execute(
                "INSERT INTO node (id, name, epoch) VALUES (?, ?, 0) "
                "ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                (node, name),
            )
            row = self.db.one("node", "WHERE id = ?", node)
            assert row is not None
            epoch = next_epoch(row["epoch"])
            self.db.execute("UPDATE node SET epoch = ? WHERE id = ?", (epoch, node))
        with errors(self.path):
            spent = msgspec.json.decode(row["spent"] or "{}", type=QuotaUsage)
        return LinkState(epoch=epoch, spent=spent)

    def spend(self, node: int, spent: QuotaUsage) -> None:
        self._write("UPDATE node SET spent = ? WHERE id = ?", msgspec.json.encode(spent).decode(), node)

    def set_fragment_size(self, node: int, digest: bytes, fragment_bytes: int) -> None:
        """Stores the fragment size of an object that is offered to a node."""
        self._write(
            "UPDATE node SET offered = ?, fragment_bytes = ? WHERE id = ?", digest, fragment_bytes, node
        )

    def fragment_bytes(self, node: int, digest: bytes) -> int | None:
        """Returns the size that `set_fragment_size` stored for this object; else None."""
        row = self.db.one("node", "WHERE id = ? AND offered = ?", node, digest)
        return None if row is None else int(row["fragment_bytes"])

    def report(self, node: int, at: float, health: Mapping[str, Any], now: float) -> None:
        """Takes a board's health as of the wall time `at`, and stores all waiting reports if that is due.

        Stored at once, a report of 100 B would cost the ground a disk barrier. A kill loses the last seconds
        of them, which boards repeat within a minute."""
        self._reports[node] = (at, json.dumps(health), node)
        self.store_reports(now)

    def store_reports(self, now: float, *, at_once: bool = False) -> None:
        if self._reports and (at_once or now >= self._reported_s + REPORTS_EVERY_S):
            self._reported_s = now
            with self.transaction():
                report = "UPDATE node SET heard_at = ?, health = ? WHERE id = ?"
                self.db.executemany(report, [*self._reports.values()])
            self._reports.clear()

    def nodes(self) -> list[Mapping[str, Any]]:
        return [*self.db.all("node", "ORDER BY id")]

    # rounds

    def open_round(
        self, number: int, model: bytes, nodes: list[int], opened_at: float, deadline_at: float
    ) -> None:
        with self.transaction():
            self.db.execute(
                "INSERT INTO round (number, opened_at, deadline_at, model, left_s) VALUES (?, ?, ?, ?, ?)",
                (number, opened_at, deadline_at, model, deadline_at - opened_at),
            )
            self._ask(number, nodes, opened_at)
            self._prune(number)
        self.back_up()

    def ask_too(self, number: int, nodes: list[int], now: float) -> None:
        """Adds nodes to those that a round asks, and keeps earlier answers."""
        with self.transaction():
            self._ask(number, nodes, now)

    def _ask(self, number: int, nodes: list[int], now: float) -> None:
        self.db.executemany(
            "INSERT INTO answer (round, node, state, changed_at) VALUES (?, ?, 'asked', ?) "
            "ON CONFLICT (round, node) DO UPDATE SET state = 'asked'",
            [(number, node, now) for node in nodes],
        )

    def _prune(self, number: int) -> None:
        self.db.execute("PRAGMA defer_foreign_keys = ON")  # rows are deleted and inserted again
        for row in self.db.all("round", "WHERE number <= ? AND length(model) > 0", number - LATEST):
            # Late answers are checked against what was asked.
            self._enter_again("round", row | {"model": b""}, "number")
        for row in self.db.all("answer", "WHERE round < ? AND payload IS NOT NULL", number - 1):
            # The last round can be averaged again, should its model be lost.
            self._enter_again("answer", row | {"payload": None}, "round", "node")
        self.db.execute(
            f"DELETE FROM model WHERE number < ? AND number NOT IN ({_FIRST_OF_ALL}) AND number IN (SELECT "
            "number FROM (SELECT number, sum(length(payload)) OVER (ORDER BY number DESC) AS held FROM model)"
            " WHERE held > ?)",
            (number - 2, KEPT_MODEL_BYTES),
        )

    def _enter_again(self, table: str, row: dict[str, Any], *key: str) -> None:
        """SQLite merges nearly empty pages when a row is deleted, but not when it shrinks."""
        where = " AND ".join(f"{name} = :{name}" for name in key)
        self.db.execute(f"DELETE FROM {table} WHERE {where}", row)
        marks = ", ".join(f":{name}" for name in row)
        self.db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", row)

    def put_question(self, number: int, model: bytes) -> None:
        self._write("UPDATE round SET model = ? WHERE number = ?", model, number)

    def put_model(self, number: int, packed: bytes) -> None:
        self._write(_PUT_MODEL, number, packed)

    def reopen(self, number: int) -> None:
        """Opens a closed round again, and deletes all later rounds."""
        with self.transaction():
            for which in ("answer WHERE round >", "model WHERE number >=", "round WHERE number >"):
                self.db.execute(f"DELETE FROM {which} ?", (number,))
            self.db.execute(
                "UPDATE round SET closed_at = NULL, accuracy = NULL, loss = NULL, bits_down = NULL, "
                "left_s = NULL WHERE number = ?",
                (number,),
            )

    def ask_again(self, number: int, now: float, deadline_at: float) -> None:
        """Restarts the time of a round that nobody answered, and asks the nodes that failed again."""
        with self.transaction():
            self.db.execute(_SET_TIME, (deadline_at - now, deadline_at, number))
            self._count_asking("WHERE round = ? AND state IN ('failed', 'refused', 'lost')", now, number)

    def ask_once_more(self, number: int, node: int, now: float) -> int:
        """Asks one node again; returns how often it was asked before, durable on return."""
        with self.transaction():
            self._count_asking(_ONE_ANSWER, now, number, node)
            row = self.db.one("answer", _ONE_ANSWER, number, node)
        assert row is not None, f"round {number} did not ask node {node}"
        return int(row["asking"])

    def _count_asking(self, where: str, now: float, *values: int) -> None:
        asked = "UPDATE answer SET state = 'asked', changed_at = ?, asking = asking + 1"
        self.db.execute(f"{asked} {where}", (now, *values))

    def time_left(self, number: int, left_s: float, now: float) -> None:
        self._write(_SET_TIME, left_s, now + left_s, number)

    def close_round(
        self, number: int, packed: bytes, accuracy: float, loss: float, bits_down: float, now: float
    ) -> None:
        with self.transaction():
            self.db.execute(
                "UPDATE round SET closed_at = ?, accuracy = ?, loss = ?, bits_down = ? WHERE number = ?",
                (now, accuracy, loss, bits_down, number),
            )
            self.db.execute(_PUT_MODEL, (number, packed))
        self.back_up()

    def round(self, number: int) -> RoundRow | None:
        row = self.db.one("round", "WHERE number = ?", number)
        return None if row is None else RoundRow(**row)

    def rounds(self) -> list[RoundRow]:
        return [RoundRow(**row) for row in self.db.all("round", "ORDER BY number")]

    def model(self, number: int) -> bytes | None:
        row = self.db.one("model", "WHERE number = ?", number)
        return None if row is None else bytes(row["payload"])

    def models(self) -> list[int]:
        """Returns the numbers of the rounds whose models are kept."""
        return [row["number"] for row in self.db.all("model", "ORDER BY number")]

    def answers(self, number: int) -> list[Mapping[str, Any]]:
        """Returns the nodes that a round asked and the state of each answer, without payloads."""
        found = self.db.all("answer", "WHERE round = ? ORDER BY node", number)
        return [
            {name: row.get(name) for name in _ANSWER}
            | {"bytes": None if row["payload"] is None else len(row["payload"])}
            for row in found
        ]

    def payload(self, number: int, node: int) -> bytes | None:
        row = self.db.one("answer", _ONE_ANSWER, number, node)
        return None if row is None else row["payload"]

    def taken(self, node: int) -> list[bytes]:
        """Returns the digests of a node's latest updates, newest first, at most `LATEST`."""
        rows = self.db.all("answer", "WHERE node = ? ORDER BY round DESC", node)
        return [row["object"] for row in rows if row["object"]][:LATEST]

    def mark(self, number: int, node: int, state: str, now: float) -> None:
        self._write(f"UPDATE answer SET state = ?, changed_at = ? {_ONE_ANSWER}", state, now, number, node)

    def lose(self, number: int, node: int, why: str, now: float) -> None:
        """Marks an answer as unusable; deletes a merged one, which the round did not ask for."""
        lost = "UPDATE answer SET state = 'lost', why = ?, changed_at = ?, payload = NULL"
        with self.transaction():
            self.db.execute(f"DELETE FROM answer {_ONE_ANSWER} AND state = 'merged'", (number, node))
            self.db.execute(f"{lost} {_ONE_ANSWER}", (why, now, number, node))

    def take_update(
        self, number: int, node: int, payload: bytes, metrics: Mapping[str, float], now: float,
        *, merged: bool = False,
    ) -> None:  # fmt: skip
        """Stores an update; DONE may be sent only after that. `merged`: it answers an earlier round."""
        values = {
            "state": "merged" if merged else "answered", "changed_at": now, "payload": payload,
            "object": digest(UPDATE, payload), **metrics,
        }  # fmt: skip
        settings = ", ".join(f"{name} = :{name}" for name in values)
        values |= {"round": number, "node": node}
        with self.transaction():
            if merged:
                self.db.execute(
                    "INSERT OR IGNORE INTO answer (round, node, state, changed_at) "
                    "VALUES (:round, :node, :state, :changed_at)",
                    values,
                )
            self.db.execute(
                f"UPDATE answer SET {settings}, why = NULL WHERE round = :round AND node = :node", values
            )
            self.db.execute("UPDATE node SET heard_at = ? WHERE id = ?", (now, node))

    # counters

    def count(self, node: int, counters: Mapping[str, float]) -> None:
        with self.transaction():
            self.db.executemany(
                "INSERT INTO counter (node, name, value) VALUES (?, ?, ?) "
                "ON CONFLICT (node, name) DO UPDATE SET value = excluded.value",
                [(node, name, value) for name, value in counters.items()],
            )

    def counters(self, node: int) -> dict[str, float]:
        """Returns a node's running totals, over all runs of the daemon."""
        rows = self.db.all("counter", "WHERE node = ?", node)
        return {row["name"]: row["value"] for row in rows}
