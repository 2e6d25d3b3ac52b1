"""Where the agents of a ring meet on this computer: at UDP ports, with nothing between them but where frames
are to be lost or an edge is to be cut: there an emulated link is.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from firmware_sim.ring.settings import RingSettings, link_of
from firmware_sim.world.edge import contacts_around
from onboard.learn.gossip.topology import Edge

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Meeting:
    """`urls`: of a node's port to a neighbour, by (node, neighbour). `cables`: what `firmware-sim cable` is
    told, by edge."""

    urls: Mapping[tuple[int, int], str]
    cables: Mapping[Edge, tuple[str, ...]]


def meeting(settings: RingSettings) -> Meeting:
    """For all edges of a ring, at ports that were free a moment ago."""
    edges = settings.edges()
    emulated = {edge for edge in edges if edge in settings.cuts or link_of(settings, edge).frame_loss}
    ways = [way for edge in edges for way in (edge, edge[::-1])]
    free = [f"{HOST}:{port}" for port in _free_ports(2 * len(ways))]
    own = dict(zip(ways, free[::2], strict=True))  # a node's port to a neighbour
    far = dict(zip(ways, free[1::2], strict=True))  # the cable's end at that node, if there is one
    urls = {}
    for way in ways:
        there = far[way] if {way, way[::-1]} & emulated else own[way[::-1]]
        urls[way] = f"udp://{there}?bind={own[way]}"
    cables = {}
    for edge in emulated:
        low, high = (f"udp://{far[way]}?peer={own[way]}" for way in (edge, edge[::-1]))
        cables[edge] = ("--ground", low, "--board", high, *_air(settings, edge))
    return Meeting(urls, cables)


def _air(settings: RingSettings, edge: Edge) -> Iterable[str]:
    link = link_of(settings, edge)
    yield from ("--link", link.name, "--loss", str(link.frame_loss), "--seed", str(1 + settings.seed))
    for rise_s, set_s in contacts_around(settings.cuts.get(edge)):
        yield from ("--window", f"{rise_s}:{'' if math.isinf(set_s) else set_s}")


def _free_ports(count: int) -> list[int]:
    """So many UDP ports that are free."""
    with contextlib.ExitStack() as held:
        sockets = [
            held.enter_context(contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
            for _ in range(count)
        ]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
