"""Every form that a mission's database ever had, as `groundstation/store/schema.sql` said it then."""

from __future__ import annotations

from pathlib import Path

import groundstation.store.schema as current

LAST_UNNUMBERED = 8
_LEDGER = """CREATE TABLE ledger (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  generation INTEGER NOT NULL,
  sum BLOB NOT NULL,
  digest BLOB NOT NULL
);
"""
_COMMAND = """CREATE TABLE command (
  id BLOB NOT NULL PRIMARY KEY,
  node INTEGER NOT NULL,
  name TEXT NOT NULL,
  arguments TEXT NOT NULL,
  state TEXT NOT NULL,
  queued_at REAL NOT NULL,
  expires_at REAL NOT NULL,
  sent_at REAL,
  acknowledged_at REAL,
  ended_at REAL,
  why TEXT,
  result TEXT,
  digest BLOB
);
"""
_CHANGES: dict[int, tuple[tuple[str, str], ...]] = {
    2: (("floor_epoch INTEGER NOT NULL,", "salt BLOB NOT NULL,\n  floor_epoch INTEGER NOT NULL,"),),
    3: (("floor_seq INTEGER NOT NULL,", "floor_seq INTEGER NOT NULL,\n  spent TEXT,"),),
    4: (("spent TEXT,", "spent TEXT,\n  offered BLOB,\n  fragment_bytes INTEGER,"),),
    5: (
        ("deadline_at REAL NOT NULL,", "deadline_at REAL NOT NULL,\n  left_s REAL,"),
        ("changed_at REAL NOT NULL,", "changed_at REAL NOT NULL,\n  asking INTEGER NOT NULL DEFAULT 0,"),
    ),
    6: (("graph BLOB NOT NULL,", "graph BLOB NOT NULL,\n  classes TEXT,"),),
    7: (("payload BLOB,", "payload BLOB,\n  why TEXT,"),),
    8: (
        ("why TEXT\n", "why TEXT,\n  digest BLOB\n"),
        ("health TEXT\n", "health TEXT,\n  digest BLOB\n"),
        ("bits_down REAL\n", "bits_down REAL,\n  digest BLOB\n"),
        ("why TEXT,\n  PRIMARY", "object BLOB,\n  why TEXT,\n  digest BLOB,\n  PRIMARY"),
        ("value REAL NOT NULL,", "value REAL NOT NULL,\n  digest BLOB,"),
        ("payload BLOB NOT NULL\n);\n", f"payload BLOB NOT NULL,\n  digest BLOB\n);\n{_LEDGER}"),
    ),
    9: (("salt BLOB NOT NULL,\n  floor_epoch INTEGER NOT NULL,\n  floor_seq INTEGER NOT NULL,\n  ", ""),),
    10: (("CREATE TABLE ledger", f"{_COMMAND}CREATE TABLE ledger"),),
}
"""What each form changed in the text of the one before it; `first.sql` is the first."""


def form(number: int) -> str:
    """The text of one form."""
    if number == current.SCHEMA:
        return (Path(current.__file__).parent / "schema.sql").read_text()
    text = (Path(__file__).parent / "first.sql").read_text()
    for each in range(2, number + 1):
        for before, after in _CHANGES[each]:
            assert text.count(before) == 1, (each, before)
            text = text.replace(before, after)
    return text
