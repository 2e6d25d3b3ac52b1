"""`python -m benchmarks.ends.tcp_end SPEC` is one end of a link that the kernel's TCP uses: one file.

SPEC is JSON: side ("board" sends), namespace, address (of the ground), congestion (a name of the kernel's),
path and size_bytes (of the board's file). Events are JSON lines as those of `port_end`.
"""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import sys
from pathlib import Path

from benchmarks.ends.tell import tell
from benchmarks.harness import netns

PORT = 4000


def main() -> None:
    """Runs until SIGTERM."""
    spec = json.loads(sys.argv[1])
    netns.enter(spec["namespace"])
    if spec["side"] == "ground":
        _receive(spec["address"], spec["congestion"], spec["size_bytes"])
    else:
        _send(spec["address"], spec["congestion"], Path(spec["path"]).read_bytes())
    signal.pause()


def _receive(address: str, congestion: str, size_bytes: int) -> None:
    with _socket(congestion) as listener:
        listener.bind((address, PORT))
        listener.listen()
        tell("PortUp")
        connection, _ = listener.accept()
        with connection:
            received = bytearray()
            while len(received) < size_bytes and (chunk := connection.recv(1 << 16)):
                received += chunk
            tell("Arrived")
    tell("Whole", sha256=hashlib.sha256(received).hexdigest())


def _send(address: str, congestion: str, payload: bytes) -> None:
    """Done when the ground's closing of the connection is here: then it has all that was sent."""
    with _socket(congestion) as connection:
        tell("Offered")
        try:
            connection.connect((address, PORT))
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
        except OSError as error:
            tell("Failed", why=str(error))
            return
    tell("Delivered")


def _socket(congestion: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    return made


if __name__ == "__main__":
    main()
