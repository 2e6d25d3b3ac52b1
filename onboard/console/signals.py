"""SIGTERM and SIGINT end a program between two steps of its loop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn


@dataclass(frozen=True)
class Stop:
    """A request to stop, which makes `fd` readable: a loop waits for it with its ports, because Python goes
    back to waiting after a signal (PEP 475)."""

    fd: int
    caught: list[int] = field(default_factory=list)

    @property
    def asked(self) -> bool:
        return bool(self.caught)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Inside the block, SIGTERM and SIGINT only ask to stop."""
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
    """Lets Ctrl-C end a program without a traceback until `interruptible`; loading takes a second or more."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and is not ignored, as by nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def interruptible() -> None:
    """Makes Ctrl-C an exception from now on, so that what was begun is put in order."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, _interrupt)


def was_interrupted() -> bool:
    """Whether Ctrl-C was raised; a library that was loading may have turned it into its own exception."""
    return bool(_interrupts)


_interrupts: list[int] = []


def _interrupt(number: int, _: object) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt
