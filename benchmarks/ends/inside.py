"""`python -m benchmarks.ends.inside NAMESPACE PROGRAM ARGS` runs a program in a network namespace.

It runs as the first process of a process namespace of its own: whatever it starts ends with it, and it ends
with this one, so that nothing is left however a benchmark ends. As such a process it ends by SIGTERM only if
it handles that. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

from benchmarks.harness import netns

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000  # unshare(2)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Ends with the program's exit code; SIGTERM and SIGINT are passed on to it."""
    netns.enter(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID):
        error = ctypes.get_errno()
        sys.exit(f"unshare: {os.strerror(error)}")
    stops = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # until there is somebody to pass them on to
    child = os.fork()
    if child == 0:
        _become(sys.argv[2:], libc)
    for number in stops:
        signal.signal(number, lambda got, _: os.kill(child, got))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) % 256)


def _become(command: list[str], libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Programs that look for themselves in /proc shall find themselves, and nobody outside see the mount.
    for words in (("--make-rprivate", "/"), ("-t", "proc", "proc", "/proc")):
        subprocess.run(["mount", *words], check=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
