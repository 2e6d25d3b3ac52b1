"""Renders what `groundstation replay` prints, a line for each frame and the counters, as text or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import msgspec

from groundstation.views.replay import Replay, ReplayedFrame, Stream
from onboard.monitor.render import bit_rate

COUNTERS = (
    "frames_received", "bad_tags", "unknown_keys", "plain_dropped", "encrypted_dropped", "replays",
    "malformed", "misaddressed", "fragments_received", "duplicates", "orphans", "corrupt", "loss_in",
    "goodput_in_bps",
)  # fmt: skip


def lines(replay: Replay, *, as_json: bool) -> Iterator[str]:
    """The lines to print. Raises OSError if the recording cannot be read."""
    for line in replay:
        yield msgspec.json.encode(_values(line)).decode() if as_json else _text(line)
    totals = [_totals(stream) for stream in replay.streams.values()]
    if as_json:
        yield msgspec.json.encode({"streams": totals, "damaged": replay.damaged}).decode()
        return
    yield ""
    for each in totals:
        told = [f"{name.removesuffix('_in').replace('_', ' ')} {count}" for name, count in each.items()
                if name not in ("node", "way", "loss_in", "goodput_in_bps")]  # fmt: skip
        if "loss_in" in each:
            told += [f"loss {100 * each['loss_in']:.1f} %", f"goodput {bit_rate(each['goodput_in_bps'])}"]
        yield f"node {each['node']} {each['way']}: {', '.join(told)}"
    yield f"records damaged: {replay.damaged}"


def _values(line: ReplayedFrame) -> dict[str, Any]:
    values = asdict(line) | {"frame": None}
    if line.frame is not None:
        values["frame"] = msgspec.structs.asdict(line.frame) | {"type": line.frame.type.name}
        values["frame"]["payload"] = line.frame.payload.hex()
    return values


def _text(line: ReplayedFrame) -> str:
    at = datetime.fromtimestamp(line.unix_s, timezone.utc).strftime("%H:%M:%S.%f")
    text = f"{at} node {line.node} {line.way:<3} {line.size:4} B  "
    if (frame := line.frame) is not None:
        text += f"{frame.type.name:<6} {frame.source}>{frame.destination} {frame.epoch}:{frame.seq}"
        text += f" object {frame.object_id} fragment {frame.fragment}"
        text += f"{' POLL' * frame.poll}{' OVER' * frame.over}{' ENC' * frame.encrypted}"
    return f"{text}  {' '.join([line.verdict, *line.events])}"


def _totals(stream: Stream) -> dict[str, Any]:
    totals: dict[str, Any] = {
        "node": stream.node, "way": stream.way, "bytes": stream.bytes, "frames": stream.frames,
        "broken": stream.broken + stream.framing.broken, "arrived": stream.arrived,
    }  # fmt: skip
    if (snapshot := stream.snapshot()) is not None:
        totals |= {name: getattr(snapshot, name) for name in COUNTERS}
    return totals
