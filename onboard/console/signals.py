"""SIGTERM and SIGINT end a program between two steps of its loop, at once and in order."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn


@dataclass(frozen=True)
class Stop:
    """`fd` becomes readable when the program is asked to stop: a loop that waits for its ports waits for this
    too, because Python goes back to waiting after a signal (PEP 475)."""

    fd: int
    caught: list[int] = field(default_factory=list)

    @property
    def asked(self) -> bool:
        return bool(self.caught)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Inside the block SIGTERM and SIGINT do no more than to ask."""
    readable, written = os.pipe()
    os.set_blocking(written, False)
    stop = Stop(readable)
    before = {
        number: signal.signal(number, lambda caught, _: stop.caught.append(caught))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    wakeup_fd = signal.set_wakeup_fd(written)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(readable)
        os.close(written)


def loading() -> None:
    """Called first of all by a program: until `interruptible`, Ctrl-C ends it without a word. Loading takes a
    second and more on a small computer, and a traceback through somebody's import helps nobody."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and is not ignored, as by nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interruptible() -> None:
    """From now on Ctrl-C is an exception, by which what was begun is put in order."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)


def was_interrupted() -> bool:
    """Whether Ctrl-C was that exception. A library that was being loaded may have turned it into its own."""
    return bool(_interrupts)


_interrupts: list[int] = []


def _interrupt(number: int, _: object) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt
