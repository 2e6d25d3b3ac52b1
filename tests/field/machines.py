"""Two computers for a test: each has a network namespace, a home folder, and its own /dev and /etc/hosts.

The commands of a document run there as they are printed. What this computer cannot have is there by another
means under the same name: `/dev/ttyUSB0` is one end of a pseudo-terminal pair, `scp` copies between the two
homes, and what a `pip install` would bring is there already.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_PR_SET_PDEATHSIG = 1  # prctl(2)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PROGRAM = '#!/bin/sh\nexec "{python}" -m {module} "$@"\n'
_SCP = '#!/bin/sh\n# scp -r FOLDER USER@HOST:\nexec cp -r "$2" "{to}/"\n'


def why_not() -> str:
    """Why this computer cannot be two; empty if it can."""
    if shutil.which("ip") is None:
        return "needs the command `ip` (Debian: iproute2)"
    probe = f"sdml-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"needs network namespaces: {made.stderr.strip()}"
    command = ["ip", "netns", "exec", probe, "mount", "-t", "tmpfs", "probe", "/mnt"]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    _ip("netns", "del", probe)
    return f"needs to mount a file system: {mounted.stderr.strip()}" if mounted.returncode else ""


@dataclass
class Machine:
    """`name`: of its namespace; `home`: its user's folder; `devices`: what /dev has, by name."""

    name: str
    home: Path
    devices: Mapping[str, Path] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.home / "bin").mkdir(parents=True)
        (self.home / "spacedml" / "bin").mkdir(parents=True)
        for module in ("onboard", "groundstation", "firmware_sim"):
            for folder in (self.home / "bin", self.home / "spacedml" / "bin"):
                program = folder / module.replace("_", "-")
                program.write_text(_PROGRAM.format(python=sys.executable, module=module))
                program.chmod(0o755)
        self.hosts({})

    def reaches(self, other: Machine) -> None:
        """`scp` copies to the other one's home."""
        scp = self.home / "bin" / "scp"
        scp.write_text(_SCP.format(to=other.home))
        scp.chmod(0o755)

    def hosts(self, names: Mapping[str, str]) -> None:
        """What names stand for here, in place, as a name server's answer changes."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (self.home / "hosts").write_text("\n".join(lines) + "\n")

    def run(self, lines: list[str], timeout_s: float = 60.0) -> str:
        """Runs the lines of one shell to their end; returns what they said. Fails where one does."""
        done = subprocess.run(
            self._command(lines),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._env,
            check=False,
        )
        assert done.returncode == 0, f"{lines}: exit code {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, what: str, lines: list[str]) -> None:
        """Starts the lines of one shell, of which the last goes on; what it says is appended to a log."""
        *before, last = lines
        with self.log(what).open("ab") as log:
            self.processes[what] = subprocess.Popen(
                self._command([*before, f"exec {last}"]), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self._env, start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip

    def kill(self, what: str) -> None:
        """kill -9, as a power cut does."""
        self.processes[what].kill()
        self.processes[what].wait()

    def log(self, what: str) -> Path:
        """All that a program has said, in all its lives."""
        return self.home / f"{what}.log"

    def said(self, what: str, event: str) -> int:
        """How often a program has told of that event."""
        if not self.log(what).exists():
            return 0
        lines = self.log(what).read_text(errors="replace").splitlines()
        return sum(1 for line in lines if f" {event} " in f"{line} ")

    def stop(self) -> None:
        """Ends all of its programs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def _env(self) -> dict[str, str]:
        path = f"{self.home}/bin:{os.environ['PATH']}"
        return {**os.environ, "HOME": str(self.home), "PATH": path, "PYTHONPATH": str(ROOT)}

    def _command(self, lines: list[str]) -> list[str]:
        script = "\n".join([*self._prepare(), f"cd {shlex.quote(str(self.home))}", *lines])
        return ["ip", "netns", "exec", self.name, "sh", "-ec", script]

    def _prepare(self) -> list[str]:
        """`ip netns exec` gives each command mounts of its own: these are seen by nobody else."""
        lines = [f"mount --bind {shlex.quote(str(self.home / 'hosts'))} /etc/hosts"]
        if self.devices:
            lines += ["mount -t tmpfs dev /mnt", "mkdir /mnt/pts /mnt/shm"]
            lines += [f": >/mnt/{each}; mount --bind /dev/{each} /mnt/{each}" for each in _DEVICES]
            lines += [f"mount --rbind /dev/{each} /mnt/{each}" for each in ("pts", "shm")]
            lines += ["ln -s pts/ptmx /mnt/ptmx", "ln -s /proc/self/fd /mnt/fd"]
            lines += [
                f"ln -s {shlex.quote(str(device))} /mnt/{name}" for name, device in self.devices.items()
            ]
            lines += ["mount --rbind /mnt /dev"]
        return lines


class Lan:
    """A ground station and a board on one network, as the documents number them."""

    def __init__(
        self, folder: Path, ground: str, board: str, cable: Mapping[str, Mapping[str, Path]]
    ) -> None:
        """ground, board: their addresses. cable: the devices of each, by the machine's name."""
        names = [f"sdml-{os.getpid()}-{id(self):x}-{each}" for each in ("ground", "board")]
        self.ground, self.board = (
            Machine(name, folder / f"{each}-home", cable.get(each, {}))
            for name, each in zip(names, ("ground", "board"), strict=True)
        )
        self.addresses = {"ground": ground, "board": board}
        self.ground.reaches(self.board)
        for name in names:
            _ip("netns", "add", name)
        ends = [("name", "eth0", "netns", name) for name in names]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for machine, address in ((self.ground, ground), (self.board, board)):
            _ip("-n", machine.name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", machine.name, "link", "set", device, "up")

    def move(self, who: str, address: str) -> None:
        """That machine has another address from now on, and its old one no more."""
        machine: Machine = getattr(self, who)
        _ip("-n", machine.name, "addr", "del", f"{self.addresses[who]}/24", "dev", "eth0")
        _ip("-n", machine.name, "addr", "add", f"{address}/24", "dev", "eth0")
        self.addresses[who] = address

    def close(self) -> None:
        """Ends all programs and both machines."""
        for machine in (self.ground, self.board):
            machine.stop()
        for machine in (self.ground, self.board):
            _ip("netns", "del", machine.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
