"""An object's life has one table at either end, which is complete and ends, and docs/wire.md shows it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import pytest

from onboard.wire.messages import Reason
from onboard.wire.transfer import states
from onboard.wire.transfer.incoming import Incoming
from onboard.wire.transfer.outgoing import Outgoing
from onboard.wire.transfer.states import (
    INCOMING,
    OUTGOING,
    IncomingEvent,
    IncomingState,
    OutgoingEvent,
    OutgoingState,
)

PAGE = (Path(__file__).parent.parent.parent.parent / "docs" / "wire.md").read_text(encoding="utf-8")
Table = Mapping[Enum, Mapping[Enum, Enum]]
BOTH = pytest.mark.parametrize(
    ("table", "kind"), [(OUTGOING, OutgoingState), (INCOMING, IncomingState)], ids=["outgoing", "incoming"]
)


def diagram(table: Table) -> str:
    """The table as Mermaid draws it, without the changes that lead back to the same state."""
    causes: dict[tuple[Enum, Enum], list[str]] = {}
    for before, row in table.items():
        for event, after in row.items():
            if before is not after:
                causes.setdefault((before, after), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(table)).name}"]
    lines += [
        f"    {before.name} --> {after.name} : {' / '.join(events)}"
        for (before, after), events in causes.items()
    ]
    return "\n".join([*lines, "    ENDED --> [*]"])


@BOTH
def test_the_page_shows_the_table(table: Table, kind: type[Enum]) -> None:
    shown = re.findall(r"```mermaid\n(stateDiagram-v2\n.*?)\n```", PAGE, flags=re.DOTALL)
    assert diagram(table) in shown, f"docs/wire.md is to have\n```mermaid\n{diagram(table)}\n```"


@BOTH
def test_every_state_can_be_entered_and_every_life_can_end(table: Table, kind: type[Enum]) -> None:
    first, ended = next(iter(kind)), list(kind)[-1]
    assert {first}.union(*(row.values() for row in table.values())) == set(kind)
    assert {state for state, row in table.items() if row} == set(kind) - {ended}
    for state in set(kind) - {ended}:
        reached, left = {state}, [state]
        while left:
            new = set(table[left.pop()].values()) - reached
            reached |= new
            left += new
        assert ended in reached, state


def test_whatever_a_peer_may_send_has_a_row_in_every_state() -> None:
    reports = {OutgoingEvent.HOLES_REPORTED, OutgoingEvent.WHOLE_REPORTED, OutgoingEvent.END}
    for sent in set(OutgoingState) - {OutgoingState.ENDED}:
        assert reports <= OUTGOING[sent].keys(), sent
    for got in set(IncomingState) - {IncomingState.ENDED}:
        assert {IncomingEvent.BOUND, IncomingEvent.UNBOUND, IncomingEvent.END} <= INCOMING[got].keys(), got


def test_any_other_event_is_an_error_of_this_program() -> None:
    outgoing = Outgoing(2, bytes(70), 7)
    outgoing.meet(OutgoingEvent.OFFER_SENT)
    outgoing.withdraw(Reason.WITHDRAWN)
    with pytest.raises(AssertionError, match="OFFER_SENT in state WITHDRAWN"):
        outgoing.meet(OutgoingEvent.OFFER_SENT)
    incoming = Incoming(outgoing.digest, 2, 70, 7)
    incoming.meet(IncomingEvent.END)
    with pytest.raises(AssertionError, match="BOUND in state ENDED"):
        incoming.bind(1)


def test_every_state_and_event_says_what_it_is() -> None:
    for node in ast.parse(inspect.getsource(states)).body:
        if isinstance(node, ast.ClassDef):
            members = [index for index, each in enumerate(node.body) if isinstance(each, ast.Assign)]
            assert members
            for index in members:
                said = node.body[index + 1]
                assert isinstance(said, ast.Expr), ast.unparse(node.body[index])
                assert isinstance(said.value, ast.Constant), ast.unparse(node.body[index])
