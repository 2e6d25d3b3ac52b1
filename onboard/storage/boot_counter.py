"""Every start of a node counts, durably and before anything is sent: its epoch is one that it never used.

Where the journal's last state may be lost, the number that it held was used. What is left is one save older,
and at a save the count rises by one at most, so that a skip of two would do. It is SKIPPED, as a slot that is
left may be an older copy itself, and its age is not known: these are three years of a start a day. The state
is then saved twice, which heals both slots: if it were in one of them alone, and that were lost too, the next
start would skip to the same number again.

The salt that both ends draw at every start (`onboard.wire.security.hello`) keeps numbers from coming twice
under one key whatever this file does. The count has to be right for the other end's sake: it tells a start
from a copy of an earlier one by it.
"""

from __future__ import annotations

import logging
from typing import TypeVar

import msgspec

from onboard.console.log import say
from onboard.storage.journal import Journal
from onboard.wire.security.seal import next_epoch

log = logging.getLogger(__name__)

SKIPPED = 1024


class Counted(msgspec.Struct, kw_only=True):
    """What every node keeps in its journal, whatever else it does."""

    epoch: int = 0  # how often it has started


S = TypeVar("S", bound=Counted)


def count_start(journal: Journal[S], new: S) -> S:
    """The journal's state, or `new` where there is none, with the epoch of this start; durable on return.

    Logs what is wrong with the journal, a line for each slot. Raises OSError.
    """
    kept = journal.load()
    known = new if kept is None else kept
    for fault in journal.faults:
        left = "nothing: it starts as a new one" if kept is None else "the other slot"
        level = logging.ERROR if kept is None else logging.WARNING
        say(log, "journal-damaged", level=level, path=str(fault.path), why=fault.why, left=left)
    known.epoch = next_epoch(known.epoch, SKIPPED if journal.faults else 0)
    journal.save(known)
    if journal.faults:
        journal.save(known)
    return known
