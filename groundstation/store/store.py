"""The mission's memory: what each round asked, what the boards answered, and the state of each link."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from groundstation.store.command_table import CommandTable
from groundstation.store.database import Database, StoreBusy, StoreDamaged, StoreError, StoreForeign
from groundstation.store.pruning import LATEST, prune
from onboard.mission.objects import UPDATE
from onboard.storage.journal import LinkState
from onboard.wire.events import QuotaUsage
from onboard.wire.messages import digest
from onboard.wire.security.seal import next_epoch

__all__ = ["RoundRow", "Store", "StoreBusy", "StoreDamaged", "StoreError", "StoreForeign"]

_ANSWER = (
    "round", "node", "state", "changed_at", "samples", "loss", "train_s", "cpu_s", "energy_j", "asking",
    "why",
)  # fmt: skip


@dataclass(frozen=True)
class RoundRow:
    """One round as stored; `closed_at`, `accuracy`, `loss` and `bits_down` are None while it is open.

    `left_s` is the time that the round had left when that was last stored; `deadline_at`, on the wall clock,
    is for display only.
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


class Store:
    """The mission's database at `path`, created if need be. Every method raises StoreError when SQLite
    fails."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._db = Database(path, read_only=read_only)
        self.commands = CommandTable(self._db)
        self._entry: tuple[bytes, str, int, bytes] | None = None
        if not read_only:
            self._name_objects()

    def _name_objects(self) -> None:
        """Adds the digests of updates that an earlier version accepted without one."""
        unnamed = self._db.all("answer", "WHERE object IS NULL AND payload IS NOT NULL")
        if unnamed:
            named = [(digest(UPDATE, row["payload"]), row["round"], row["node"]) for row in unnamed]
            with self.transaction():
                self._db.executemany("UPDATE answer SET object = ? WHERE round = ? AND node = ?", named)

    def back_up(self) -> None:
        """See `Database.back_up`."""
        self._db.back_up()

    def mend(self) -> None:
        """See `Database.mend`; if nothing is left of the mission, it is entered again."""
        self._db.mend()
        if self._entry is not None:
            self.begin(*self._entry)

    def never_wait(self) -> None:
        """See `Database.never_wait`."""
        self._db.never_wait()

    def close(self) -> None:
        """See `Database.close`."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """See `Database.transaction`."""
        return self._db.transaction()

    # the mission and its nodes

    def begin(self, mission_id: bytes, name: str, seed: int, graph: bytes) -> tuple[bytes, bytes]:
        """Inserts the mission if the file is new; returns the stored (mission id, graph digest)."""
        self._entry = (mission_id, name, seed, graph)
        with self.transaction():
            row = self._db.one("mission")
            if row is None:
                self._db.execute(
                    "INSERT INTO mission (id, name, seed, graph) VALUES (?, ?, ?, ?)", self._entry
                )
                return mission_id, graph
        return bytes(row["id"]), bytes(row["graph"])

    def classes(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Stores the names of the mission's classes unless they are stored already; returns the stored
        ones."""
        told = msgspec.json.encode(classes).decode()
        with self.transaction():
            self._db.execute("UPDATE mission SET classes = ? WHERE classes IS NULL", (told,))
            row = self._db.one("mission")
            assert row is not None, "no mission was begun"
        with self._db.errors():
            return msgspec.json.decode(row["classes"], type=tuple[str, ...])

    def finish(self, why: str, now: float) -> None:
        """Marks the mission as finished, unless it is already."""
        with self.transaction():
            unfinished = "WHERE finished_at IS NULL"
            self._db.execute(f"UPDATE mission SET finished_at = ?, why = ? {unfinished}", (now, why))
        self._db.back_up()

    def mission(self) -> Mapping[str, Any] | None:
        """The mission's row, or None in a new file."""
        return self._db.one("mission")

    def enter_node(self, node: int, name: str) -> LinkState:
        """Raises our epoch towards `node` and returns the state of our end of its link, durable on return.

        No sequence number of an earlier run of this daemon is ever used again.
        """
        with self.transaction():
            self._db.execute(
                "INSERT INTO node (id, name, epoch) VALUES (?, ?, 0) "
                "ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                (node, name),
            )
            row = self._db.one("node", "WHERE id = ?", node)
            assert row is not None
            epoch = next_epoch(row["epoch"])
            self._db.execute("UPDATE node SET epoch = ? WHERE id = ?", (epoch, node))
        with self._db.errors():
            spent = (
                QuotaUsage() if row["spent"] is None else msgspec.json.decode(row["spent"], type=QuotaUsage)
            )
        return LinkState(epoch=epoch, spent=spent)

    def spend(self, node: int, spent: QuotaUsage) -> None:
        """Stores how much of a node's quota is used up."""
        with self.transaction():
            text = msgspec.json.encode(spent).decode()
            self._db.execute("UPDATE node SET spent = ? WHERE id = ?", (text, node))

    def set_fragment_size(self, node: int, digest: bytes, fragment_bytes: int) -> None:
        """Stores into what fragments an object that is offered to a node is divided."""
        with self.transaction():
            self._db.execute(
                "UPDATE node SET offered = ?, fragment_bytes = ? WHERE id = ?", (digest, fragment_bytes, node)
            )

    def fragment_bytes(self, node: int, digest: bytes) -> int | None:
        """The size that `set_fragment_size` stored, if that was for the same object; else None."""
        row = self._db.one("node", "WHERE id = ? AND offered = ?", node, digest)
        return None if row is None else int(row["fragment_bytes"])

    def hear(self, *heard: tuple[int, float, Mapping[str, Any] | None]) -> None:
        """Stores, in one transaction, when nodes were last heard and what they reported."""
        with self.transaction():
            for node, now, health in heard:
                self._hear(node, now)
                told = health and json.dumps(health), node
                self._db.execute("UPDATE node SET health = COALESCE(?, health) WHERE id = ?", told)

    def nodes(self) -> list[Mapping[str, Any]]:
        """The nodes' rows."""
        return [*self._db.all("node", "ORDER BY id")]

    # rounds

    def open_round(
        self, number: int, model: bytes, nodes: list[int], opened_at: float, deadline_at: float
    ) -> None:
        """Inserts a round and the nodes that it asks."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO round (number, opened_at, deadline_at, model, left_s) VALUES (?, ?, ?, ?, ?)",
                (number, opened_at, deadline_at, model, deadline_at - opened_at),
            )
            self._db.executemany(
                "INSERT INTO answer (round, node, state, changed_at) VALUES (?, ?, 'asked', ?)",
                [(number, node, opened_at) for node in nodes],
            )
            prune(self._db, number)
        self._db.back_up()

    def put_question(self, number: int, model: bytes) -> None:
        """Replaces the object that a round sends."""
        with self.transaction():
            self._db.execute("UPDATE round SET model = ? WHERE number = ?", (model, number))

    def ask_too(self, number: int, nodes: list[int], now: float) -> None:
        """Adds nodes to those that a round asks; an answer that one of them gave earlier is kept."""
        with self.transaction():
            self._db.executemany(
                "INSERT INTO answer (round, node, state, changed_at) VALUES (?, ?, 'asked', ?) "
                "ON CONFLICT (round, node) DO UPDATE SET state = 'asked'",
                [(number, node, now) for node in nodes],
            )

    def put_model(self, number: int, packed: bytes) -> None:
        """Replaces the weights that a round produced."""
        with self.transaction():
            self._put_model(number, packed)

    def _put_model(self, number: int, packed: bytes) -> None:
        self._db.execute(
            "INSERT INTO model (number, payload) VALUES (?, ?) "
            "ON CONFLICT (number) DO UPDATE SET payload = excluded.payload",
            (number, packed),
        )

    def reopen(self, number: int) -> None:
        """Opens a closed round again, and deletes all later rounds."""
        with self.transaction():
            for table in ("answer", "model"):
                column = "round" if table == "answer" else "number"
                self._db.execute(f"DELETE FROM {table} WHERE {column} > ?", (number,))
            self._db.execute("DELETE FROM model WHERE number = ?", (number,))
            self._db.execute("DELETE FROM round WHERE number > ?", (number,))
            self._db.execute(
                "UPDATE round SET closed_at = NULL, accuracy = NULL, loss = NULL, bits_down = NULL, "
                "left_s = NULL WHERE number = ?",
                (number,),
            )

    def ask_again(self, number: int, now: float, deadline_at: float) -> None:
        """Restarts the time of a round that nobody answered, and asks the nodes that failed again."""
        with self.transaction():
            self._db.execute(
                "UPDATE round SET deadline_at = ?, left_s = ? WHERE number = ?",
                (deadline_at, deadline_at - now, number),
            )
            self._db.execute(
                "UPDATE answer SET state = 'asked', changed_at = ?, asking = asking + 1 "
                "WHERE round = ? AND state IN ('failed', 'refused', 'lost')",
                (now, number),
            )

    def ask_once_more(self, number: int, node: int, now: float) -> int:
        """Asks one node of a round again; returns how often it was asked before, durable on return."""
        with self.transaction():
            self._db.execute(
                "UPDATE answer SET state = 'asked', changed_at = ?, asking = asking + 1 "
                "WHERE round = ? AND node = ?",
                (now, number, node),
            )
            row = self._db.one("answer", "WHERE round = ? AND node = ?", number, node)
        assert row is not None, f"round {number} did not ask node {node}"
        return int(row["asking"])

    def time_left(self, number: int, left_s: float, now: float) -> None:
        """Stores how much of a round's time is left and, for display, when the round will end."""
        with self.transaction():
            row = left_s, now + left_s, number
            self._db.execute("UPDATE round SET left_s = ?, deadline_at = ? WHERE number = ?", row)

    def close_round(
        self, number: int, packed: bytes, accuracy: float, loss: float, bits_down: float, now: float
    ) -> None:
        """Closes a round and stores the model that it produced, in one transaction."""
        with self.transaction():
            self._db.execute(
                "UPDATE round SET closed_at = ?, accuracy = ?, loss = ?, bits_down = ? WHERE number = ?",
                (now, accuracy, loss, bits_down, number),
            )
            self._put_model(number, packed)
        self._db.back_up()

    def round(self, number: int) -> RoundRow | None:
        """The round with that number, or None if it was never opened."""
        row = self._db.one("round", "WHERE number = ?", number)
        return None if row is None else RoundRow(**row)

    def rounds(self) -> list[RoundRow]:
        """All rounds, oldest first."""
        return [RoundRow(**row) for row in self._db.all("round", "ORDER BY number")]

    def asked(self, number: int) -> bytes | None:
        """The object that round `number` sent, or None."""
        row = self._db.one("round", "WHERE number = ?", number)
        return None if row is None else bytes(row["model"])

    def model(self, number: int) -> bytes | None:
        """The packed weights that round `number` produced, or None."""
        row = self._db.one("model", "WHERE number = ?", number)
        return None if row is None else bytes(row["payload"])

    def answers(self, number: int) -> list[Mapping[str, Any]]:
        """The nodes that a round asked and the state of each answer, without payloads."""
        found = self._db.all("answer", "WHERE round = ? ORDER BY node", number)
        return [
            {name: row.get(name) for name in _ANSWER} | {"bytes": _length(row["payload"])} for row in found
        ]

    def payload(self, number: int, node: int) -> bytes | None:
        """The update object of one node in one round, or None."""
        row = self._db.one("answer", "WHERE round = ? AND node = ?", number, node)
        return None if row is None or row["payload"] is None else bytes(row["payload"])

    def taken(self, node: int) -> list[bytes]:
        """Digests of a node's latest update objects, newest first, at most `LATEST`."""
        rows = self._db.all("answer", "WHERE node = ? ORDER BY round DESC", node)
        return [row["object"] for row in rows if row["object"]][:LATEST]

    def mark(self, number: int, node: int, state: str, now: float) -> None:
        """Stores the new state of one answer."""
        with self.transaction():
            self._db.execute(
                "UPDATE answer SET state = ?, changed_at = ? WHERE round = ? AND node = ?",
                (state, now, number, node),
            )

    def lose(self, number: int, node: int, why: str, now: float) -> None:
        """Marks an answer as unusable, with the reason; a merged one, which the round did not ask for, is
        deleted."""
        with self.transaction():
            self._db.execute(
                "DELETE FROM answer WHERE round = ? AND node = ? AND state = 'merged'", (number, node)
            )
            self._db.execute(
                "UPDATE answer SET state = 'lost', why = ?, changed_at = ?, payload = NULL "
                "WHERE round = ? AND node = ?",
                (why, now, number, node),
            )

    def take_update(
        self, number: int, node: int, payload: bytes, metrics: Mapping[str, float], now: float,
        *, merged: bool = False,
    ) -> None:  # fmt: skip
        """Stores an update in one transaction; only after that may DONE be sent.

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
                "UPDATE answer SET state = :state, changed_at = :now, payload = :payload, why = NULL, "
                "object = :object, "
                "samples = :samples, loss = :loss, train_s = :train_s, cpu_s = :cpu_s, energy_j = :energy_j "
                "WHERE round = :round AND node = :node",
                {
                    "state": state,
                    "now": now,
                    "payload": payload,
                    "object": digest(UPDATE, payload),
                    "round": number,
                    "node": node,
                    **metrics,
                },
            )
            self._hear(node, now)

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
        """A node's running totals, over all runs of the daemon."""
        rows = self._db.all("counter", "WHERE node = ?", node)
        return {row["name"]: row["value"] for row in rows}

    def _hear(self, node: int, now: float) -> None:
        self._db.execute("UPDATE node SET heard_at = ? WHERE id = ?", (now, node))


def _length(payload: bytes | None) -> int | None:
    return None if payload is None else len(payload)
