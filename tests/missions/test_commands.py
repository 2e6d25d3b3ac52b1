"""Commands from the ground's queue to a board and back: whatever is killed or cut, each is run once."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from groundstation.cli import main
from groundstation.commands import CommandInbox, CommandRequest, CommandRow, CommandState, CommandTable
from onboard.mission.commands import COMMANDS, CommandHandler, CommandResult, CommandTarget, encode_body
from onboard.mission.objects import RESULT
from tests.missions.bench import bench
from tests.missions.clockwork import Clockwork

Make = Callable[..., Clockwork]
DONE, SENT = CommandState.DONE, CommandState.SENT


def ask(on: Clockwork, number: int, name: str = "ping", node: int = 1, expires_s: float = 1e6) -> None:
    """Queues a command as `groundstation command` does."""
    request = CommandRequest(
        id=f"{number:016x}", node=node, name=name, queued_at=on.wall(), expires_at=on.wall() + expires_s
    )
    CommandInbox(on.folder).put(request)


def state(on: Clockwork, number: int) -> CommandRow | None:
    return CommandTable(on.store).find(number.to_bytes(8, "big"))


def is_at(on: Clockwork, number: int, *states: CommandState) -> bool:
    row = state(on, number)
    return row is not None and row.state in states


def row_of(on: Clockwork, number: int) -> CommandRow:
    row = state(on, number)
    assert row is not None
    return row


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A command `toy` in the table, and when boards ran it. Nothing else of the product knows of it."""
    ran: list[float] = []

    def toy(target: CommandTarget, arguments: object, now: float) -> dict[str, int]:
        ran.append(now)
        return {"run": len(ran)}

    monkeypatch.setitem(COMMANDS, "toy", CommandHandler(toy, "plays"))
    return ran


def test_a_board_answers_while_it_trains_and_while_it_has_no_task(clockwork: Make) -> None:
    on = clockwork(rounds=1)
    on.boot()
    on.run(lambda: on.boards[1].agent is not None and on.boards[1].agent.work is not None)
    ask(on, 1, "report")
    on.run(lambda: is_at(on, 1, DONE), 5.0)
    assert row_of(on, 1).result["state"] == "training"
    on.run(lambda: on.over)
    ask(on, 2, "report")
    ask(on, 3)
    on.run(lambda: is_at(on, 2, DONE), 5.0)
    assert row_of(on, 2).result["state"] == "idle"
    assert on.run(lambda: is_at(on, 3, DONE)) < 2.0
    assert row_of(on, 3).result.keys() == {"time", "uptime_s"}
    row = row_of(on, 3)
    assert None not in (row.sent_at, row.acknowledged_at, row.ended_at)
    assert [on.said(f"command-{word}", id=f"{3:016x}") != [] for word in ("queued", "sent", "done")] == [
        True
    ] * 3
    assert on.states(1) == {1: "answered"}


def test_a_command_waits_for_contact_and_no_byte_of_it_leaves_before(clockwork: Make) -> None:
    on = clockwork()
    on.cut = True
    on.boot()
    ask(on, 1)
    on.pass_time(60.0)
    assert row_of(on, 1).state is CommandState.QUEUED
    on.cut = False
    on.run(lambda: is_at(on, 1, DONE))


def test_one_that_expires_out_of_contact_is_never_run(clockwork: Make, runs: list[float]) -> None:
    on = clockwork()
    on.cut = True
    on.boot()
    ask(on, 1, "toy", expires_s=30.0)
    on.run(lambda: is_at(on, 1, CommandState.EXPIRED))
    assert row_of(on, 1).why == "it was not sent"
    on.cut = False
    ask(on, 2, "toy")
    on.run(lambda: is_at(on, 2, DONE))
    assert len(runs) == 1


def test_one_that_expires_on_its_way_is_withdrawn(clockwork: Make, runs: list[float]) -> None:
    on = clockwork()
    on.boot()
    on.run(lambda: on.said("round", number=1))
    on.pass_time(2.0)
    ask(on, 1, "toy", expires_s=30.0)
    on.run(lambda: is_at(on, 1, SENT))
    on.cut = True
    on.run(lambda: is_at(on, 1, CommandState.EXPIRED))
    assert row_of(on, 1).why == "the board did not acknowledge it"
    on.cut = False
    on.pass_time(60.0)
    assert row_of(on, 1).state is CommandState.EXPIRED
    assert runs == []


def test_a_result_that_comes_late_is_the_truth(clockwork: Make, runs: list[float]) -> None:
    on = clockwork()
    on.boot()
    ask(on, 1, "toy", expires_s=30.0)
    on.run(lambda: runs)
    on.cut = True
    on.run(lambda: is_at(on, 1, CommandState.EXPIRED))
    on.cut = False
    on.run(lambda: is_at(on, 1, DONE))
    assert len(runs) == 1


def test_the_same_id_twice_has_one_effect(clockwork: Make, runs: list[float]) -> None:
    on = clockwork()
    on.boot()
    ask(on, 1, "toy")
    on.run(lambda: is_at(on, 1, DONE))
    ask(on, 1, "toy")
    on.pass_time(20.0)
    assert len(runs) == 1
    assert len(CommandTable(on.store).all()) == 1
    assert CommandInbox(on.folder).requests() == []


def test_a_board_runs_its_commands_in_order_and_others_do_not_wait(
    clockwork: Make, runs: list[float]
) -> None:
    on = clockwork(boards=2)
    on.boot_ground()
    on.boards[2].boot(on.now)
    for number in range(1, 4):
        ask(on, number, "toy", node=1)
    ask(on, 9, "toy", node=2)
    on.run(lambda: is_at(on, 9, DONE))
    on.boards[1].boot(on.now)
    on.run(lambda: all(is_at(on, number, DONE) for number in (1, 2, 3)))
    assert [row_of(on, number).result["run"] for number in (9, 1, 2, 3)] == [1, 2, 3, 4]


def test_a_refusal_is_told_with_its_reason(clockwork: Make) -> None:
    on = clockwork()
    on.boot()
    ask(on, 1, "reboot")  # a newer ground's
    on.run(lambda: is_at(on, 1, CommandState.REFUSED))
    assert row_of(on, 1).why == "unknown command reboot; this board knows ping, report, install, roll-back"
    assert on.said("command-refused", id=f"{1:016x}")[0]["why"] == row_of(on, 1).why


def test_a_board_answers_for_itself_alone(clockwork: Make, runs: list[float]) -> None:
    """Results of another board's command, of none that is known, and such as are none."""
    on = clockwork(boards=2)
    on.boot_ground()
    on.boards[2].boot(on.now)
    ask(on, 1, "toy", node=1)
    on.run(lambda: is_at(on, 1, CommandState.QUEUED) and on.said("in-sight", node="board-2"))
    liar = on.boards[2].agent
    assert liar is not None
    for command_id in (row_of(on, 1).id, b"nobody's"):
        liar.session.offer(RESULT, encode_body(CommandResult(command=command_id, outcome="done")), on.now)
    liar.session.offer(RESULT, b"\x93", on.now)
    on.run(lambda: len(on.said("result-discarded", node="board-2")) == 2 and on.said("bad-message"))
    assert row_of(on, 1).state is CommandState.QUEUED
    on.boards[1].boot(on.now)
    on.run(lambda: is_at(on, 1, DONE))
    assert len(runs) == 1


@pytest.mark.parametrize("state", [CommandState.QUEUED, SENT, None], ids=str)
def test_a_ground_on_an_older_database_believes_the_board(
    state: CommandState | None, clockwork: Make, runs: list[float], tmp_path: Path
) -> None:
    on = clockwork()
    on.cut = state is CommandState.QUEUED
    on.boot()
    if state is not None:
        ask(on, 1, "toy")
        on.run(lambda: is_at(on, 1, state))
    on.kill_ground()
    on.store.close()
    older = tmp_path / "older"
    shutil.copy(on.folder / "mission.sqlite", older)
    on.cut = False
    on.boot_ground()
    if state is None:
        ask(on, 1, "toy")
    on.run(lambda: runs)
    on.kill_ground()  # before the result is here
    on.store.close()
    for file in on.folder.glob("mission.sqlite*"):
        file.unlink()
    shutil.copy(older, on.folder / "mission.sqlite")
    on.boot_ground()
    on.run(lambda: on.said("result-discarded") if state is None else is_at(on, 1, DONE))
    on.pass_time(30.0)
    assert len(runs) == 1
    assert not on.said("link-failed")
    assert on.boards[1].agent is not None
    assert on.boards[1].agent.known.commands.waiting is None


class KillHere(BaseException):
    """A kill at an exact place in the program: nothing catches it."""


def kill_at(
    patch: pytest.MonkeyPatch, owner: object, method: str, when: Callable[..., bool], *, after: bool
) -> None:
    """The program dies in the first such call, before it does anything or after all is done."""
    whole = getattr(owner, method)

    def dying(*arguments: Any, **options: Any) -> Any:
        if not when(*arguments):
            return whole(*arguments, **options)
        if after:
            whole(*arguments, **options)
        raise KillHere

    patch.setattr(owner, method, dying)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("state", ["queued", "sent", "acknowledged", "done"])
def test_a_ground_that_is_killed_at_a_change_of_state_goes_on(
    state: str, after: bool, clockwork: Make, runs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    on = clockwork(rounds=1)
    on.boot()
    ask(on, 1, "toy")
    with monkeypatch.context() as patch:
        if state == "queued":
            kill_at(patch, CommandTable, "queue", lambda table, new: len(new) > 0, after=after)
        else:
            kill_at(patch, CommandTable, "move", lambda *told: told[2].value == state, after=after)
        with pytest.raises(KillHere):
            on.run(lambda: False)
    on.kill_ground()
    on.pass_time(3.0)
    on.boot_ground()
    on.run(lambda: is_at(on, 1, DONE) and on.over)
    assert row_of(on, 1).result == {"run": 1}
    assert CommandInbox(on.folder).requests() == []
    assert len(runs) == 1


@pytest.mark.parametrize("moment", ["save", "accept", "offer", "delivered"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_board_that_is_killed_over_a_command_goes_on(
    moment: str, after: bool, clockwork: Make, runs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    on = clockwork(rounds=1)
    on.boot()
    agent = on.boards[1].agent
    assert agent is not None
    ask(on, 1, "toy")
    with monkeypatch.context() as patch:
        owner, method = (agent.session, moment) if moment in ("accept", "offer") else (agent.journal, "save")
        taken = [moment == "delivered"]

        def it_is(*_: object) -> bool:
            log = agent.known.commands.taken
            return bool(log) if owner is agent.session else [each.delivered for each in log] == taken

        kill_at(patch, owner, method, it_is, after=after)
        with pytest.raises(KillHere):
            on.run(lambda: False)
    on.boards[1].kill()
    on.pass_time(3.0)
    on.boards[1].boot(on.now)
    on.run(lambda: is_at(on, 1, DONE) and on.over)
    # What ran and was not saved has no effect on what a board keeps, and is run again.
    assert len(runs) == (2 if (moment, after) == ("save", False) else 1)
    assert row_of(on, 1).result == {"run": len(runs)}


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_each_command_is_run_at_most_once_and_told_as_it_was(
    seed: int, clockwork: Make, runs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills, cuts, repeated ids, expiry and a ground that is off, by chance; then all works."""
    drawn, on, asked = random.Random(seed), clockwork(rounds=1), 0
    on.boot()
    for _ in range(40):
        step = drawn.choice(["ask", "ask", "ask", "repeat", "cut", "cut", "ground", "board"])
        if step == "ask":
            asked += 1
            ask(on, asked, "toy", expires_s=drawn.choice([20.0, 1e6]))
        elif step == "repeat" and asked:
            ask(on, drawn.randint(1, asked), "toy")
        elif step == "cut":
            on.cut = not on.cut
        elif step == "ground":
            on.boot_ground() if on.rounds is None else on.kill_ground()
        elif step == "board":
            on.boards[1].boot(on.now) if on.boards[1].agent is None else on.boards[1].kill()
        on.pass_time(drawn.choice([0.1, 0.5, 4.0, 9.0]))
    on.cut = False
    if on.rounds is None:
        on.boot_ground()
    if on.boards[1].agent is None:
        on.boards[1].boot(on.now)
    on.run(
        lambda: all(is_at(on, n, *CommandState) and row_of(on, n).state.is_final for n in range(1, asked + 1))
    )
    on.pass_time(60.0)
    rows = [row_of(on, number) for number in range(1, asked + 1)]
    done = [row for row in rows if row.state is DONE]
    assert {row.state for row in rows} <= {DONE, CommandState.EXPIRED}
    assert [row.result["run"] for row in done] == list(range(1, len(runs) + 1))  # each once, in order


def command(*words: str) -> Any:
    return CliRunner().invoke(main, ["command", *words])


def test_the_user_s_mistakes_are_one_line_each(clockwork: Make) -> None:
    folder = str(clockwork().folder)
    for words, says in (
        ((folder, "board-9", "ping"), "no node 'board-9'; there are board-1"),
        ((folder, "board-9"), "no node 'board-9'"),
        (
            (folder, "board-1", "reboot"),
            "unknown command 'reboot'; boards know ping, report, install, roll-back",
        ),
        ((folder, "board-1", "ping", "loudly=1"), "command ping: Object contains unknown field `loudly`"),
        ((folder, "board-1", "ping", "loudly"), "arguments are KEY=VALUE"),
        ((folder, "board-1", "ping", "--expires", "0"), "--expires"),
        ((folder, "board-1", "ping", "--expires", "soon"), "--expires"),
        ((folder, "board-1", "ping", "--id", "no"), "command ping: "),
        ((folder, "board-1", "ping", "--id", "00"), "command ping: "),
        ((folder + "x",), "no such file"),
    ):
        told = command(*words)
        assert (told.exit_code, told.stdout, told.stderr.count("\n")) == (2, "", 1), words
        assert says in told.stderr
    assert not (Path(folder) / "commands").exists()


def test_a_command_is_seen_before_the_daemon_ever_ran_and_queued_once(clockwork: Make) -> None:
    on = clockwork()
    on.store.close()
    (on.folder / "mission.sqlite").unlink()
    folder, number = str(on.folder), f"{7:016x}"
    assert command(folder).stdout == "no commands\n"
    told = command(folder, "board-1", "ping", "--id", number)
    assert (told.exit_code, told.stdout) == (0, f"{number} queued: ping for board-1, 0 s ago\n")
    assert command(folder, "board-1", "ping", "--id", number).stdout == told.stdout
    assert "is that of another command" in command(folder, "board-1", "report", "--id", number).stderr
    told = command(folder, "board-1", "ping", "--id", number, "--wait", "0.1", "--json")
    assert (told.exit_code, json.loads(told.stdout)["state"]) == (1, "queued")
    (listed,) = json.loads(command(folder, "board-1", "--json").stdout)
    assert (listed["id"], listed["node"], listed["name"], listed["state"]) == (
        number,
        "board-1",
        "ping",
        "queued",
    )
    assert listed["expires_at"] == listed["queued_at"] + 604_800
    assert number in command(folder).stdout


def test_what_lies_in_the_queue_and_is_no_command_is_put_aside(clockwork: Make) -> None:
    on = clockwork()
    ask(on, 1)
    queue = on.folder / "commands"
    for name, text in (
        ("a.json", "{"),
        (f"{2:016x}.json", "[]"),
        (f"{3:016x}.json", (queue / f"{1:016x}.json").read_text()),
    ):
        (queue / name).write_text(text)
    on.boot()
    on.run(lambda: is_at(on, 1, DONE))
    assert len(on.said("unreadable")) == 3
    assert sorted(path.suffix for path in queue.iterdir()) == [".bad1"] * 3


def test_a_user_commands_a_board_while_the_daemon_runs_and_both_are_killed(tmp_path: Path) -> None:
    """The real programs on a serial cable: a second process queues, and kill -9 comes between the states."""
    with bench(tmp_path, epochs=1, rounds=1) as on:
        mission = str(on.mission)

        def listed() -> list[dict[str, Any]]:
            return list(json.loads(on.run("groundstation", "command", mission, "--json").stdout))

        on.run("groundstation", "command", mission, "pi", "ping", "--id", f"{1:016x}")
        assert [row["state"] for row in listed()] == ["queued"]
        on.start_ground(ends=False)
        on.until(lambda: on.said("ground", "command-queued"))
        on.kill("ground")  # before there is a cable
        assert [row["state"] for row in listed()] == ["queued"]
        on.start_cable()
        on.start_board()
        on.start_ground(ends=False)
        on.until(lambda: on.said("ground", "command-sent"))
        on.kill("board")
        on.kill("ground")
        on.start_ground(ends=False)
        on.start_board()
        on.until(lambda: on.said("ground", "command-done", id=f"{1:016x}"))
        told = on.run("groundstation", "command", mission, "pi", "report", "--wait", "30").stdout
        assert re.fullmatch(
            r"[0-9a-f]{16} done: report for pi, \d+ s ago: state [a-z]+, .*uptime_s .*\n", told
        )
        on.until(lambda: on.said("ground", "finished"))
        assert [(row["name"], row["state"]) for row in listed()] == [("ping", "done"), ("report", "done")]
        assert len([said for said in on.said("board", "command") if said["name"] == "ping"]) == 1
        on.kill("board")
        on.kill("ground")
        on.run("groundstation", "command", mission, "pi", "ping", "--id", f"{3:016x}", "--expires", "600")
        on.start_ground()  # the mission is over, and so is it at once
        on.finish()
        (pending,) = on.said("ground", "command-pending")
        assert (pending["node"], pending["name"], pending["id"]) == ("pi", "ping", f"{3:016x}")
        assert (pending["state"], 500 < pending["expires_in_s"] <= 600) == ("queued", True)
        assert listed()[-1]["state"] == "queued"
