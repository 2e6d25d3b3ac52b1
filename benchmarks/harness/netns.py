"""Network namespaces without names: each lasts as long as the processes that are in it or hold it open.

So nothing is left to remove, however a benchmark ends. Standard library only: other interpreters run it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CLONE_NEWNET = 0x40000000  # unshare(2), setns(2)
_OWN = "/proc/thread-self/ns/net"


def new() -> int:
    """Moves this process into a new network namespace; returns a descriptor that keeps it.

    Raises OSError (EPERM without CAP_SYS_ADMIN).
    """
    _checked(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET))
    # Router solicitations and multicast listener reports would be on the air as well.
    ipv6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if ipv6.exists():
        ipv6.write_text("1")
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def path_of(namespace: int) -> str:
    """Where other processes find a namespace that this one keeps, for as long as it does."""
    return f"/proc/{os.getpid()}/fd/{namespace}"


def enter(path: str) -> None:
    """Moves this process into another's namespace. Raises OSError."""
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET))
    finally:
        os.close(namespace)


def _checked(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
