"""Whatever happens to a command, in whatever order, the table of transitions holds, and the store with it."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundstation.commands import (
    KEPT,
    TRANSITIONS,
    CommandInbox,
    CommandRequest,
    CommandState,
    CommandTable,
)
from groundstation.store.store import Store

STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*CommandState, None])), max_size=30)


def request(number: int, queued_at: float = 5.0, **changes: object) -> CommandRequest:
    fields = {"id": f"{number:016x}", "node": 1, "name": "ping", "queued_at": queued_at, "expires_at": 9.0}
    return CommandRequest(**(fields | changes))  # type: ignore[arg-type]


def test_every_state_has_its_row_and_the_final_ones_lead_nowhere_but_to_the_truth() -> None:
    assert set(TRANSITIONS) == set(CommandState)
    reached = set().union(*TRANSITIONS.values())
    assert reached == set(CommandState) - {CommandState.QUEUED}
    ends = {state for state, after in TRANSITIONS.items() if not after}
    assert ends == {CommandState.DONE, CommandState.REFUSED}
    assert {state for state in CommandState if state.is_final} == ends | {CommandState.EXPIRED}
    assert TRANSITIONS[CommandState.EXPIRED] == ends
    for state, after in TRANSITIONS.items():
        assert state.is_final or CommandState.EXPIRED in after


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_the_store_takes_the_steps_of_the_table_and_no_others(
    steps: list[tuple[int, CommandState | None]],
) -> None:
    """None: the daemon is killed. The store is the model's, after each step and after each restart."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mission.sqlite"
        store, model = Store(path), dict[int, CommandState]()
        for number, state in steps:
            if state is None:
                store = Store(path)  # as a kill leaves it: what was open is not closed
            elif state is CommandState.QUEUED:
                new = CommandTable(store).queue([request(number)])
                assert len(new) == (number not in model)
                model.setdefault(number, state)
            elif (row := CommandTable(store).find(number.to_bytes(8, "big"))) is None:
                assert number not in model
            elif state in TRANSITIONS[row.state]:
                CommandTable(store).move(row, state, 6.0, result={"run": number})
                model[number] = state
            else:
                with pytest.raises(AssertionError, match="becomes"):
                    CommandTable(store).move(row, state, 6.0)
            rows = {int.from_bytes(row.id, "big"): row for row in CommandTable(store).all()}
            assert {number: row.state for number, row in rows.items()} == model
            unfinished = [row.id for row in CommandTable(store).unfinished()]
            assert unfinished == sorted(row.id for row in rows.values() if not row.state.is_final)
        store.close()


def test_of_those_that_are_over_the_last_are_kept_and_of_the_others_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundstation.commands.KEPT", 5)
    assert KEPT == 1000
    store = Store(tmp_path / "mission.sqlite")
    for number in range(20):
        (row,) = CommandTable(store).queue([request(number, queued_at=float(number))])
        if number % 4:
            CommandTable(store).move(row, CommandState.EXPIRED, 1.0)
    kept = [int.from_bytes(row.id, "big") for row in CommandTable(store).all()]
    assert kept == [0, 4, 8, 12, 15, 16, 17, 18, 19]
    store.close()
    assert len(CommandTable(Store(tmp_path / "mission.sqlite")).all()) == len(kept)


def test_the_queue_is_in_the_order_of_time_and_holds_an_id_once(tmp_path: Path) -> None:
    inbox, numbers = CommandInbox(tmp_path), list(range(9))
    assert inbox.requests() == []
    random.Random(1).shuffle(numbers)
    for number in numbers:
        inbox.put(request(number, queued_at=number / 10, arguments={"share": 0.5}))
    inbox.put(request(4, queued_at=0.4, arguments={"share": 0.5}))
    found = inbox.requests()
    assert [each.queued_at for each in found] == [number / 10 for number in range(9)]
    assert found[0].row.command.arguments == {"share": 0.5}
    for each in found:
        inbox.remove(each)
        inbox.remove(each)  # as after a kill in between
    assert inbox.requests() == []


def test_a_database_of_an_earlier_form_is_read_as_one_without_commands(tmp_path: Path) -> None:
    path = tmp_path / "mission.sqlite"
    store = Store(path)
    store.db.execute("DROP TABLE command")
    store.close()
    assert CommandTable(Store(path, read_only=True)).all() == []
