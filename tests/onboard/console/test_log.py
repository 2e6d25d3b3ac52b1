"""An event is one line, as text or as JSON, whatever its fields hold."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onboard.console.log import Format, say, start
from onboard.mission.health import State

log = logging.getLogger("onboard.test")


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def said(capsys: pytest.CaptureFixture[str], form: Format, event: str, **fields: Any) -> str:
    """What one event looks like on standard output."""
    capsys.readouterr()
    start(form)
    say(log, event, **fields)
    return capsys.readouterr().out


def test_text_is_a_clock_an_event_and_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, "text", "trained", round=3, loss=0.123456, digest=bytes(range(16)), why="disk full")
    assert line[2] == line[5] == ":"
    assert line[8:] == " trained round=3 loss=0.1235 digest=00010203 why='disk full'\n"


def test_what_is_wrong_says_how_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    start("text")
    say(log, "port-lost", level=logging.ERROR, port="/dev/x")
    assert capsys.readouterr().out[8:] == " ERROR port-lost port=/dev/x\n"
    start("json")
    say(log, "port-lost", level=logging.ERROR, port="/dev/x")
    assert json.loads(capsys.readouterr().out)["level"] == "error"


def test_json_keeps_numbers_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    line = json.loads(
        said(
            capsys, "json", "closed", round=np.int64(3), loss=np.float32(0.5), bits=1.25,
            state=State.TRAINING, digest=b"\xab\xcd", names=("a", "b"), link={"eta_s": None, 5: {1}}, ok=True,
        )
    )  # fmt: skip
    assert {key: line.pop(key) for key in ("level", "from", "event")} == {
        "level": "info", "from": "onboard.test", "event": "closed",
    }  # fmt: skip
    assert isinstance(line.pop("at"), float)
    assert line == {
        "round": 3, "loss": 0.5, "bits": 1.25, "state": 1, "digest": "abcd", "names": ["a", "b"],
        "link": {"eta_s": None, "5": [1]}, "ok": True,
    }  # fmt: skip


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), np.float32("nan")])
def test_a_loss_that_is_no_number_is_null(capsys: pytest.CaptureFixture[str], loss: float) -> None:
    line = said(capsys, "json", "epoch", loss=loss, link={"loss": [loss]})
    assert "NaN" not in line
    assert "Infinity" not in line
    assert json.loads(line)["loss"] is None
    assert json.loads(line)["link"] == {"loss": [None]}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(value=st.text() | st.floats() | st.binary() | st.lists(st.text(max_size=3), max_size=3))
def test_an_event_is_one_line_whatever_it_holds(capsys: pytest.CaptureFixture[str], value: object) -> None:
    text = said(capsys, "text", "heard", what=value)
    assert len(text.splitlines()) == 1
    assert text.endswith("\n")
    text = said(capsys, "json", "heard", what=value)
    assert text.count("\n") == 1
    assert "what" in json.loads(text)


def test_an_exception_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    start("json")
    try:
        raise OSError("full")
    except OSError:
        log.exception("crashed")
    line = json.loads(capsys.readouterr().out)
    assert line["event"] == "crashed"
    assert line["traceback"].endswith("OSError: full")


def test_quieter_events_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    start("text", level=logging.WARNING)
    say(log, "epoch")
    assert capsys.readouterr().out == ""


def test_a_reader_of_a_pipe_gets_every_line_at_once() -> None:
    script = (
        "import logging, sys; from onboard.console.log import say, start; start('json');"
        "say(logging.getLogger('x'), 'first'); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["event"] == "first"  # while the child is still running
        assert child.poll() is None
        child.communicate("\n", timeout=20)
