"""Removes from the database what is never read again, so that it hardly grows with the mission's rounds.

What stays of every round is who was asked and with what outcome; of every update, its digest; of the models,
the latest and the best.
"""

from __future__ import annotations

from typing import Any

from groundstation.store.database import Database

LATEST = 4
"""Updates of a node, and rounds: one that waits for its DONE is of the last round or the one before."""


def prune(db: Database, number: int) -> None:
    """Removes what is not needed once round `number` is open, inside that round's transaction."""
    db.execute("PRAGMA defer_foreign_keys = ON")  # a row is deleted, and entered again
    for row in db.all("round", "WHERE number <= ? AND length(model) > 0", number - LATEST):
        # Late answers are checked against what was asked.
        _enter_again(db, "round", row | {"model": b""}, "number")
    for row in db.all("answer", "WHERE round < ? AND payload IS NOT NULL", number - 1):
        # The last round can be averaged again, should its model be lost.
        _enter_again(db, "answer", row | {"payload": None}, "round", "node")
    db.execute(
        "DELETE FROM model WHERE number < ? AND number != "
        "(SELECT number FROM round ORDER BY accuracy DESC, number LIMIT 1)",
        (number - 2,),
    )


def _enter_again(db: Database, table: str, row: dict[str, Any], *key: str) -> None:
    """Deletes a row and inserts it again: SQLite merges nearly empty pages when a row is deleted, and not
    when one shrinks."""
    where = " AND ".join(f"{name} = ?" for name in key)
    db.execute(f"DELETE FROM {table} WHERE {where}", [row[name] for name in key])
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
