"""Child processes that are started, read line by line and stopped, and that end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

STOP_WITHIN_S = 5.0
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass
class ChildProcess:
    """A child process, its log, and the line that it has not finished yet."""

    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    errors: Path
    tail: bytes = b""

    def last_words(self) -> str:
        """Returns the last line that it wrote to standard error."""
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"


class ProcessGroup:
    """Runs the project's own programs as `python -m MODULE ARGS`; their JSON lines are its events.

    Ctrl-C reaches only the parent, which ends the children in order; the kernel kills them when it dies."""

    def __init__(self, logs: Path) -> None:
        self.members: dict[str, ChildProcess] = {}
        self.refused: OSError | None = None  # why a line could not be logged; the run continues without
        self._logs = logs
        self._selector = selectors.DefaultSelector()
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, *arguments: str, interpreter: str = sys.executable) -> None:
        """Starts one child, with logs/NAME.jsonl for its lines and logs/NAME.err for its errors. A colon in
        NAME becomes a dash: scp would take what stands before it for a host."""
        file = name.replace(":", "-")
        errors = self._logs / f"{file}.err"
        log = (self._logs / f"{file}.jsonl").open("wb", buffering=0)
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [interpreter, "-m", module, *arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
                start_new_session=True, preexec_fn=partial(_die_with, os.getpid()),
            )  # fmt: skip
        member = ChildProcess(name, process, log, errors)
        self.members[name] = member
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, member)

    def listen(self, timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields what the children say within `timeout_s` as (name, event), in order for each child."""
        for key, _ in self._selector.select(timeout_s):
            member: ChildProcess = key.data
            chunk = member.process.stdout.read(1 << 16) if member.process.stdout else b""
            if not chunk:
                self._selector.unregister(key.fileobj)
                continue
            try:
                member.log.write(chunk)
            except OSError as error:
                error.filename = member.log.name
                self.refused = error
            *lines, member.tail = (member.tail + chunk).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):  # a warning of a library is no event; it is in the log
                    yield member.name, json.loads(line)

    def ended(self) -> list[ChildProcess]:
        return [member for member in self.members.values() if member.process.poll() is not None]

    def stop(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Ends all or the named children, by SIGTERM and after 5 s SIGKILL; yields their last events."""
        leaving = [self.members[name] for name in (self.members if names is None else names)]
        for member in leaving:
            member.process.terminate()
        deadline = time.monotonic() + STOP_WITHIN_S
        while time.monotonic() < deadline and any(member.process.poll() is None for member in leaving):
            yield from self.listen(0.05)
        for member in leaving:
            member.process.kill()
        yield from self.listen(0.0)
        for member in leaving:
            member.process.wait()
            member.log.close()
            if member.process.stdout is not None:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(member.process.stdout)
                member.process.stdout.close()
            del self.members[member.name]


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent was killed before prctl took effect
        os.kill(os.getpid(), signal.SIGKILL)


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Returns `count` UDP ports of `host` that are free now. They lie below those that the kernel gives to
    sockets that ask for none (from 32768), so that nobody is given one before its program has opened it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    free = set[int]()
    while len(free) < count:
        number = 20_000 + secrets.randbelow(12_000)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((host, number))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        free.add(number)
    return [*free]
