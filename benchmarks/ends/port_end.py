"""`python -m benchmarks.ends.port_end SPEC` is one end of a real link: a pump on a port, and nothing else.

The board's end offers an object as soon as its port is open, the ground's accepts what arrives. Events are
JSON lines with the time (`at_s`, the computer's monotonic clock) and the process's CPU time so far.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from pathlib import Path

import msgspec

from benchmarks.ends.tell import tell
from benchmarks.harness import netns
from hw_profiles import Link
from onboard.console.signals import stop_signals
from onboard.link.ports.port import PortEvent
from onboard.link.ports.schemes import facts_of, opener
from onboard.link.pump import Pump, wait
from onboard.link.spool import Spool
from onboard.mission.objects import UPDATE
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Delivered, PeerHeard
from onboard.wire.session import Session

NODES = {"ground": 0, "board": 1}
LONGEST_WAIT_S = 5.0  # as on a board


class EndSpec(msgspec.Struct, kw_only=True):
    """What an end is told, in JSON. `offer_bytes`: size of the object that it offers, 0 for none.
    `namespace`: a path of the network namespace that its port is in, if not this process's."""

    side: str
    url: str
    link: Link
    folder: str
    offer_bytes: int = 0
    namespace: str = ""


def main() -> None:
    """Runs until SIGTERM."""
    spec = msgspec.json.decode(sys.argv[1], type=EndSpec)
    if spec.namespace:
        netns.enter(spec.namespace)
    node, peer = NODES[spec.side], NODES["board" if spec.side == "ground" else "ground"]
    session = Session(
        Identity(node, peer, primary=node == 0),
        Medium(spec.link, wire_bytes=facts_of(spec.url).wire_bytes),
        Security(bytes(range(32))),
        SessionState(epoch=1),
        limits=facts_of(spec.url).limits,
        now=time.monotonic(),
    )
    pump = Pump(opener(spec.url, spec.link), session, Spool(Path(spec.folder), 1 << 30))
    payload = random.Random(1).randbytes(spec.offer_bytes)
    with stop_signals() as stop:
        while not stop.asked:
            now = time.monotonic()
            for event in pump.poll(now):
                if isinstance(event, Arrived):
                    session.accept(event.digest, now)
                is_open = isinstance(event, PortEvent) and event.name == "port-open"
                if is_open or isinstance(event, Arrived | Delivered | PeerHeard):
                    tell("PortUp" if is_open else type(event).__name__)
                if isinstance(event, Arrived):
                    tell("Whole", sha256=hashlib.sha256(event.payload).hexdigest())
                if is_open and payload:
                    tell("Offered")
                    session.offer(UPDATE, payload, now)
            wait([pump], min(LONGEST_WAIT_S, pump.wakeup(now) - time.monotonic()), also=[stop.fd])
    pump.close(time.monotonic())


if __name__ == "__main__":
    main()
