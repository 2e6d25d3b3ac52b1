"""What outlives a restart of one link: its epoch, which every start raises durably, and its spent quota.

A start counts before anything is sent, so that no epoch is used twice. Where the journal's last state may be
lost, the epoch that it held was used. What is left is one save older, and a save raises an epoch by one at
most, so that a skip of two would do. It is SKIPPED, as the slot that is left may be an older copy itself, of
unknown age: these are three years of one start a day. The state is then saved twice, which heals both slots:
if it were in one of them alone, and that were lost too, the next start would skip to the same epoch again.

The salt that both ends draw at every start (`onboard.wire.security.hello`) keeps frame numbers from coming
twice under one key whatever this file does, so salt and replay floor need not outlive a restart. The epoch
has to be right for the other end's sake: it tells a start from a copy of an earlier one by it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from onboard.console.log import say
from onboard.storage.journal import Journal
from onboard.wire.events import QuotaUsage
from onboard.wire.security.seal import next_epoch

log = logging.getLogger(__name__)

SKIPPED = 1024


class LinkState(msgspec.Struct, kw_only=True):
    """What one end of a link keeps, in a node's journal or in the ground's database."""

    epoch: int = 0
    """How often this end has started, modulo the epochs that a frame can say."""
    spent: QuotaUsage = QuotaUsage()
    """What was used of this end's quotas, as last recorded."""


class JournalState(msgspec.Struct, kw_only=True):
    """What every node keeps in its journal, whatever else it does. The field is required, so that a journal
    of a version without it is refused by name."""

    links: dict[int, LinkState]
    """By the peer's node number."""


S = TypeVar("S", bound=JournalState)


def count_start(journal: Journal[S], peers: Iterable[int]) -> S:
    """Returns the journal's state, or a new one, with the epochs of this start towards `peers`; durable on
    return.

    Logs what is wrong with the journal, a line for each slot. Raises OSError.
    """
    kept = journal.load()
    known = journal.kind(links={}) if kept is None else kept
    for peer in peers:
        known.links.setdefault(peer, LinkState())
    for fault in journal.faults:
        left = "nothing: it starts as a new one" if kept is None else "the other slot"
        level = logging.ERROR if kept is None else logging.WARNING
        say(log, "journal-damaged", level=level, path=str(fault.path), why=fault.why, left=left)
    for link in known.links.values():
        link.epoch = next_epoch(link.epoch, SKIPPED if journal.faults else 0)
    journal.save(known)
    if journal.faults:
        journal.save(known)
    return known


def count_restart(journal: Journal[S], known: S, peer: int) -> LinkState:
    """Returns the state of a link that begins again while its node runs on, in an epoch of its own; durable
    on return. Raises OSError."""
    link = known.links[peer]
    link.epoch = next_epoch(link.epoch)
    journal.save(known)
    return link
