"""A link's state as plain values: the same for the log, for JSON, and for rendering as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from onboard.agents.federated import FederatedAgent
from onboard.link.pump import Pump

if TYPE_CHECKING:  # it needs numpy, and a board that does not gossip does not
    from onboard.agents.gossip import GossipAgent


def board_view(agent: FederatedAgent, pump: Pump, now: float) -> dict[str, Any]:
    """All that `onboard link` shows: who the node is, what it is doing, and its link."""
    config = agent.config
    who = {"node": config.name, "board": config.board.name, "profile": config.ground.link.name}
    return who | agent.doing() | {"link": link_view(pump, now)}


def gossip_view(agent: GossipAgent, pumps: Mapping[int, Pump], now: float) -> dict[str, Any]:
    """The same for a node that gossips: its links are `links`, in the order of NODE.toml."""
    config = agent.config
    links = [
        {"peer": each.id, "profile": each.link.name, **link_view(pumps[each.id], now)}
        for each in config.neighbours
    ]
    return {"node": config.name, "board": config.board.name} | agent.doing() | {"links": links}


def link_view(pump: Pump, now: float) -> dict[str, Any]:
    """A link's counters and progress as plain values: one JSON object, with nothing that JSON lacks."""
    snapshot = pump.session.snapshot(now)
    view = asdict(snapshot)
    view["heard_s_ago"] = _finite(now - snapshot.last_heard)
    view["objects"] = [
        {
            "digest": progress.digest.hex(),
            "kind": progress.kind,
            "incoming": progress.incoming,
            "bytes": progress.size,
            "fragments": progress.fragments,
            "held": progress.held,
            "eta_s": _finite(progress.eta_s),
            "eta_passes": progress.eta_passes,
        }
        for progress in snapshot.objects
    ]
    view["eta_out_s"], view["eta_in_s"] = _finite(snapshot.eta_out_s), _finite(snapshot.eta_in_s)
    view["port"] = asdict(pump.port_snapshot())
    del view["now"], view["last_heard"]
    return view


def _finite(value_s: float) -> float | None:
    return round(value_s, 1) if math.isfinite(value_s) else None
