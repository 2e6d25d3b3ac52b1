"""A ground and its boards, each in a network namespace, an emulated link to each board: a star.

`python -m benchmarks.claims.peers.star SPEC` makes it and carries IP packets until SIGTERM: at the link's
rate, after its delay, behind a queue at either end. It tells how many bytes of IP packets have gone on the
air, by board and side, several times a second. Needs root.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import msgspec

from benchmarks.harness import netns
from benchmarks.harness.air import LinkNamespaces, carry, open_tun
from firmware_sim.world.channel import Channel, Impairments, Side
from hw_profiles import Link
from onboard.console.signals import stop_signals

MTU_BYTES = 1500
TELL_EVERY_S = 0.2
GROUND = "ground"


class StarSpec(msgspec.Struct, kw_only=True):
    """The links. `cut_after_bytes`: the first board's byte after which nothing passes for `cut_s`, once."""

    link: Link
    queue_bytes: int
    boards: list[str]
    cut_after_bytes: int | None = None
    cut_s: float = 0.0

    def links(self, now: float) -> list[LinkNamespaces]:
        """One for each board, as it is before the first packet."""
        impairments = [Impairments() for _ in self.boards]
        if self.cut_after_bytes is not None:
            impairments[0] = Impairments(cut_after_bytes=self.cut_after_bytes, cut_s=self.cut_s)
        channels = [Channel(self.link, each, seed=number) for number, each in enumerate(impairments)]
        return [LinkNamespaces(channel, self.queue_bytes, began_s=now) for channel in channels]


def address(number: int, side: Side) -> str:
    """Of one side of the link to board `number`, counted from 0."""
    return f"10.0.{number + 1}.{1 if side == 'ground' else 2}"


def main() -> None:
    """Tells where the namespaces are, then what the links carry, and at the end once more."""
    spec = msgspec.json.decode(sys.argv[1], type=StarSpec)
    namespaces: dict[str, str] = {}
    tuns: list[dict[Side, int]] = [{} for _ in spec.boards]
    try:
        namespaces[GROUND] = _namespace()
        for number in range(len(spec.boards)):
            tuns[number]["ground"] = open_tun(address(number, "ground"), MTU_BYTES, f"air{number}")
        for number, board in enumerate(spec.boards):
            namespaces[board] = _namespace()
            tuns[number]["board"] = open_tun(address(number, "board"), MTU_BYTES)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"cannot make network namespaces and TUN devices (root can): {error}")
    links = spec.links(time.monotonic())

    def tell(event: str) -> None:
        carried: dict[str, Any] = {
            board: {side: count["bytes"] for side, count in link.carried().items()}
            for board, link in zip(spec.boards, links, strict=True)
        }
        print(json.dumps({"event": event, "at_s": time.monotonic(), "carried": carried}), flush=True)

    with stop_signals() as stop:
        print(json.dumps({"event": "Up", "namespaces": namespaces}), flush=True)
        carry([*zip(links, tuns, strict=True)], stop, lambda: tell("Carrying"), TELL_EVERY_S)
    tell("Carried")


def _namespace() -> str:
    """Where others find a new namespace, which this process is in now."""
    path = netns.path_of(netns.new())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return path


if __name__ == "__main__":
    main()
