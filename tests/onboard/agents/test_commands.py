"""A board runs each command once, whatever becomes of link, ground or power, and answers it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.agents.federated import FederatedAgent
from onboard.agents.federated_state import MOST_WAITING, REMEMBERED, CommandLog
from onboard.config import NodeConfig
from onboard.mission.commands import (
    COMMANDS,
    Command,
    CommandHandler,
    CommandResult,
    CommandTarget,
    decode_body,
    encode_body,
    run_command,
)
from onboard.mission.health import AnswerHealth, Health, State
from onboard.mission.objects import COMMAND, RESULT
from onboard.runtime.federated import board_agent
from onboard.trainer.in_process import LocalTrainer
from onboard.wire.events import Arrived, Cancelled, Delivered, Message
from onboard.wire.messages import Reason, digest
from tests.onboard.agents.test_federated import IMAGES, arrive, model, offered, train

ANSWERS = AnswerHealth(812, 14, 0.75, 0.125, ((8, 0.5),))


class FailedBoard:
    """A board whose card is damaged."""

    def uptime_s(self, now: float) -> int:
        return 3

    def health(self, now: float) -> Health:
        return Health(State.FAILED, 2, 3, 4.0, 5.0, 6.0, 7.0, 0.5, 8.0, 1, 5, "its card", ANSWERS)


def asked(name: str = "ping", number: int = 1, **arguments: object) -> Arrived:
    body = Command(id=number.to_bytes(8, "big"), name=name, arguments=arguments)  # type: ignore[arg-type]
    payload = encode_body(body)
    return Arrived(digest(COMMAND, payload), COMMAND, payload)


def boot(config: NodeConfig, now: float = 0.0) -> FederatedAgent:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), now)
    agent.resume(now)
    return agent


def answer(agent: FederatedAgent) -> CommandResult:
    """What the board has to say, which is on its way."""
    result = agent.known.commands.waiting
    assert result is not None
    names = [each.digest for each in agent.session.snapshot(0.0).objects if each.kind == RESULT]
    assert digest(RESULT, encode_body(result)) in names
    return result


def heard(agent: FederatedAgent) -> None:
    agent.handle(Delivered(digest(RESULT, encode_body(answer(agent)))), 9.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command `count` whose runs are seen."""
    runs: list[str] = []

    def count(target: CommandTarget, arguments: object, now: float) -> dict[str, int]:
        runs.append("count")
        return {"runs": len(runs)}

    monkeypatch.setitem(COMMANDS, "count", CommandHandler(count, "counts"))
    return runs


def test_a_ping_is_answered_with_the_boards_time(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    agent = boot(config, 100.0)
    arrive(agent, asked(), config, 160.0)
    result = answer(agent)
    assert (result.outcome, result.values) == ("done", {"time": 1.8e9, "uptime_s": 60})
    heard(agent)
    assert offered(agent) == [RESULT]  # only the peer's DONE takes it from the link
    assert agent.known.commands.waiting is None


def test_a_report_is_the_health_at_once_while_the_board_trains(config: NodeConfig) -> None:
    agent = boot(config)
    arrive(agent, model(round_number=3), config, 1.0)
    train(agent, steps=2)
    arrive(agent, asked("report"), config, 2.0)
    values = answer(agent).values
    assert (values["state"], values["round"], values["failure"]) == ("training", 3, "none")
    assert values["progress"] == agent.health(2.0).progress
    assert "why" not in values
    train(agent)
    assert agent.known.phase is State.OFFERING


def test_every_field_of_health_is_in_a_report() -> None:
    result = run_command(Command(id=bytes(8), name="report"), FailedBoard(), 0.0)
    answers = {f"answers_{name}" for name in ("images", "doubtful", "confidence", "drift")}
    fields = {field.name for field in dataclasses.fields(Health)} - {"answers"}
    assert set(result.values) == fields | answers
    assert (result.values["state"], result.values["failure"]) == ("failed", "disk")
    assert decode_body(encode_body(result), CommandResult) == result


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (asked("reboot"), "unknown command reboot; this board knows ping, report, install, roll-back"),
        (asked("ping", loudly=True), "Object contains unknown field `loudly`"),
    ],
)
def test_a_command_that_cannot_be_run_is_answered(config: NodeConfig, command: Arrived, why: str) -> None:
    agent = boot(config)
    arrive(agent, command, config, 1.0)
    result = answer(agent)
    assert (result.outcome, result.why) == ("refused", why)


def test_a_handler_that_fails_is_answered(config: NodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = CommandHandler(lambda target, arguments, now: {"ratio": 1 // 0}, "divides")
    monkeypatch.setitem(COMMANDS, "divide", handler)
    agent = boot(config)
    arrive(agent, asked("divide"), config, 1.0)
    assert answer(agent).outcome == "refused"
    assert answer(agent).why.startswith("ZeroDivisionError: ")
    monkeypatch.setitem(COMMANDS, "long", CommandHandler(lambda *_: {"text": "x" * 9000}, "says too much"))
    arrive(agent, asked("long", 2), config, 1.0)
    heard(agent)
    assert "9" in answer(agent).why


def test_a_command_that_comes_again_is_not_run_again(config: NodeConfig, counted: list[str]) -> None:
    agent = boot(config)
    arrive(agent, asked("count"), config, 1.0)
    agent = boot(config)  # its DONE was lost, and so was its result
    assert answer(agent).values == {"runs": 1}
    arrive(agent, asked("count"), config, 2.0)
    assert answer(agent).values == {"runs": 1}
    heard(agent)
    agent = boot(config)
    assert agent.known.commands.waiting is None
    arrive(agent, asked("count"), config, 3.0)  # a ground that went back to an older database
    assert (answer(agent).outcome, answer(agent).values) == ("done", {})
    assert answer(agent).why == "the result was delivered before"
    assert counted == ["count"]


def test_results_are_offered_one_at_a_time_in_order(config: NodeConfig, counted: list[str]) -> None:
    agent = boot(config)
    for number in range(1, 4):
        arrive(agent, asked("count", number), config, 1.0)
    seen = []
    while agent.known.commands.waiting is not None:
        result = agent.known.commands.waiting
        seen.append(result.values["runs"])
        agent.handle(Delivered(digest(RESULT, encode_body(result))), 2.0)
    assert seen == [1, 2, 3]


def test_a_result_that_the_ground_refuses_is_not_offered_for_ever(
    config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    agent = boot(config)
    arrive(agent, asked(), config, 1.0)
    agent.handle(Cancelled(digest(RESULT, encode_body(answer(agent))), Reason.REFUSED), 2.0)
    assert agent.known.commands.waiting is None
    assert "result-cancelled" in caplog.messages


def test_a_full_disk_runs_a_command_once(
    config: NodeConfig, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = boot(config)

    def full(state: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(agent.journal, "save", full)
        with pytest.raises(OSError, match="No space"):
            arrive(agent, asked("count"), config, 1.0)
    assert offered(agent) == []
    agent.handle(asked("count"), 2.0)  # as the runtime tells it again
    assert answer(agent).values == {"runs": 1}
    assert boot(config).known.commands == agent.known.commands
    assert counted == ["count"]


def test_a_board_that_cannot_answer_takes_no_more_commands(config: NodeConfig, counted: list[str]) -> None:
    agent = boot(config)
    for number in range(MOST_WAITING + 1):
        agent.handle(asked("count", number), 1.0)
    assert len(counted) == MOST_WAITING
    agent.handle(asked("count", 0), 1.0)  # one that it knows is no further one
    heard(agent)
    agent.handle(asked("count", 99), 1.0)
    assert len(counted) == MOST_WAITING + 1


def test_what_is_not_for_a_board_is_never_dropped_in_silence(
    config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    agent = boot(config)
    agent.handle(Message(b"\x02hello"), 1.0)
    assert "bad-message" in caplog.messages
    for kind, payload in ((RESULT, b"\x90"), (99, b""), (COMMAND, b"nonsense")):
        arrive(agent, Arrived(digest(kind, payload), kind, payload), config, 1.0)
    assert caplog.messages.count("refused") == 3
    assert agent.known.commands == CommandLog()


@given(st.lists(st.one_of(st.integers(0, 90), st.just("deliver")), max_size=300))
def test_the_log_runs_each_command_once_and_loses_no_result(steps: list[int | str]) -> None:
    """Of the last REMEMBERED commands; commands come in any order, and again."""
    runs: list[int] = []

    def count(target: CommandTarget, arguments: object, now: float) -> dict[str, int]:
        runs.append(len(runs))
        return {"run": runs[-1]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMMANDS, "count", CommandHandler(count, "counts"))
        log, told = CommandLog(), list[int]()
        for step in steps:
            if step == "deliver":
                if log.waiting is not None:
                    assert log.is_about(digest(RESULT, encode_body(log.waiting)))
                    told += [log.waiting.values["run"]] if log.waiting.values else []
                    log = log.deliver()
            else:
                assert isinstance(step, int)
                kept = [each.result for each in log.taken if each.result.command == step.to_bytes(8, "big")]
                before, ran = next(iter(kept), None), len(runs)
                if before is None and sum(not each.delivered for each in log.taken) == MOST_WAITING:
                    continue
                log = log.run(Command(id=step.to_bytes(8, "big"), name="count"), FailedBoard(), 0.0)
                assert (before is None) == (len(runs) == ran + 1)
            assert len(log.taken) <= REMEMBERED
            assert [each.delivered for each in log.taken] == sorted(
                (each.delivered for each in log.taken), reverse=True
            )
        while log.waiting is not None:
            told += [log.waiting.values["run"]] if log.waiting.values else []
            log = log.deliver()
        assert told == runs  # each once, in order
