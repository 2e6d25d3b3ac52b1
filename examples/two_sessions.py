"""Two sessions over a socket pair: one object crosses a link that loses a tenth of the frames.

    python examples/two_sessions.py

A session does no I/O. This loop is all that it needs of a program: frames and the time go in, frames and
events come out. A datagram socket keeps frames apart; a byte stream wants one of `onboard.link`'s framings.
"""

from __future__ import annotations

import os
import random
import select
import socket
import time

from hw_profiles import load_link
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Delivered, Rekeyed
from onboard.wire.session import Session

KEY = os.urandom(32)  # both ends hold it; see `onboard.storage.keys` for keys in files
LINK = load_link("bench-serial-115k2")  # sets the pace
PHOTO = 7  # the application's number for a kind of object


def end(node: int, peer: int) -> Session:
    """One end of the link; the ground, node 0, is its primary. Count epochs on a disk: each is used once."""
    return Session(Identity(node, peer, primary=node == 0), Medium(LINK), Security(KEY, nonce=os.urandom),
                   SessionState(epoch=1), now=time.monotonic())  # fmt: skip


def main() -> None:
    """Offers an object at one end, accepts it at the other, and ends when its delivery is confirmed."""
    ground_socket, board_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ends = {ground_socket: end(0, 1), board_socket: end(1, 0)}
    ends[board_socket].offer(PHOTO, os.urandom(20_000), time.monotonic())
    delivered = False
    while not delivered:
        wakeup = min(session.wakeup(time.monotonic()) for session in ends.values())
        readable, _, _ = select.select(list(ends), [], [], max(0.0, wakeup - time.monotonic()))
        for port, session in ends.items():
            now = time.monotonic()
            events = session.tick(now)
            if port in readable and (frame := port.recv(2048)) and random.random() > 0.1:  # a tenth is lost
                events += session.receive(frame, now)
            for event in events:
                print(f"node {session.node}: {type(event).__name__}")
                if isinstance(event, Rekeyed):  # both ends have agreed on a salt for their keys
                    session.rekey(event.salt)
                elif isinstance(event, Arrived):  # a real receiver stores the payload first
                    session.accept(event.digest, now)
                delivered |= isinstance(event, Delivered)
            while (sent := session.transmit(now)) is not None:
                port.send(sent)


if __name__ == "__main__":
    main()
