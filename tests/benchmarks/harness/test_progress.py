"""Progress is one rewritten line on a terminal, and a line now and then in a log."""

from __future__ import annotations

import io

from benchmarks.harness.progress import LINE_EVERY_S, ProgressLine


class FakeTerminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_for_every_stage_and_every_ten_seconds() -> None:
    now, out = [0.0], io.StringIO()
    tell = ProgressLine("footprint", out, lambda: now[0])
    for now[0] in (0.0, 1.0, 2.0, 5.0, 11.9, 12.0, 13.0):
        tell("start" if now[0] < 2.0 else "wait", None if now[0] < 2.0 else 20.0 - now[0])
    tell.end()
    assert out.getvalue().splitlines() == [
        "footprint    0 s  start",
        "footprint    2 s  wait, 18 s to go",
        f"footprint {2 + LINE_EVERY_S:4.0f} s  wait, 8 s to go",
    ]


def test_a_terminal_sees_one_line_that_is_cleared_at_the_end() -> None:
    now, out = [0.0], FakeTerminal()
    tell = ProgressLine("footprint", out, lambda: now[0])
    for now[0] in (0.0, 1.0, 2.0):
        tell("start", 1.0 - now[0])
    tell.end()
    assert "\n" not in out.getvalue()
    assert [line.strip() for line in out.getvalue().split("\r\033[K")] == [
        "",
        "footprint    0 s  start, 1 s to go",
        "footprint    1 s  start, 0 s to go",
        "footprint    2 s  start, 0 s to go",
        "",
    ]
