"""Decodes a recording: when each frame crossed the port, which way, and what it says of itself.

    onboard run node.toml --record pass.sdml
    python examples/decode_recording.py pass.sdml

It needs no key, so it proves nothing: `groundstation replay` checks every frame as its session did.
"""

from __future__ import annotations

import sys
from pathlib import Path

from onboard.link.ports.framing import FRAMINGS, Framing
from onboard.link.recording import Kind, Reader, start_of
from onboard.wire.framing.frame import BadFrame, unproven


def main(path: Path) -> None:
    """Prints one line a frame."""
    streams: dict[tuple[int, Kind], Framing] = {}  # each way of each link is a stream of its own
    reader = Reader(path)
    for record in reader:
        if record.kind is Kind.START:
            start = start_of(record)
            for way in (Kind.IN, Kind.OUT):
                streams[record.node, way] = FRAMINGS[start.framing].make(
                    start.link.mtu_bytes, start.kiss_port
                )
            print(f"link of node {start.local} with node {start.peer} on {start.url}")
            continue
        for raw in streams[record.node, record.kind].feed(record.data):
            try:
                frame = unproven(raw)
            except BadFrame as error:
                print(f"{record.at_s:10.3f} s  {record.kind.name:3}  {error}")
                continue
            print(f"{record.at_s:10.3f} s  {record.kind.name:3}  {frame.type.name:8} from {frame.source} "
                  f"seq {frame.epoch}.{frame.seq}, {len(frame.payload)} B")  # fmt: skip
    print(f"{reader.damaged} damaged records")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
