"""The folders of a ring's nodes: what would be copied to each board and to the ground station.

FOLDER/N/               node.toml, data.npz, a key for each neighbour; and later the node's state
FOLDER/contacts.toml    when gateways see the ground, if there is one
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from firmware_sim.ring.seats import section
from firmware_sim.ring.settings import GroundNode, RingError, RingSettings, link_of
from onboard.config import GROUND
from onboard.data import loading
from onboard.learn.gossip import topology
from onboard.storage.keys import new_key, save_key

PLAN = "contacts.toml"


def found(
    folder: Path,
    settings: RingSettings,
    shares: Sequence[loading.Images],
    urls: Mapping[tuple[int, int], str],
) -> dict[int, Path]:
    """Writes each node's folder, the ground's too; returns the NODE.toml files. Earlier ones are replaced.

    urls: see `links.Meeting`. Raises RingError for a node without neighbours.
    """
    shutil.rmtree(folder, ignore_errors=True)
    weights = topology.metropolis(settings.edges())
    if alone := set(range(1, settings.nodes + 1)) - weights.keys():
        raise RingError(f"nodes {sorted(alone)} have no neighbours: nothing to gossip with")
    keys = {edge: new_key() for edge in settings.edges()}
    files = {}
    for node in weights:
        own = folder / str(node)
        own.mkdir(parents=True)
        for peer in weights[node]:
            save_key(own / f"{peer}.key", keys[min(node, peer), max(node, peer)])
        name = "ground" if node == GROUND else f"node-{node}"
        tables = [("[node]", {"id": node, "name": name, "board": settings.board.name})]
        tables += [("[gossip]", msgspec.to_builtins(section(settings, trains=node != GROUND)))]
        if node != GROUND:
            images = shares[node - 1]
            loading.save(own / "data.npz", images)
            tables += [("[data]", {"shape": list(images.shape), "classes": list(images.classes)})]
        else:
            tables += [("[data]", {"classes": list(shares[0].classes)})]
        # A checkpoint at the end of every epoch: it is what the epoch is judged by.
        tables += [("[budget]", {"cpu_share": 1.0, "checkpoint_s": 1e-3})]
        for peer, weight in weights[node].items():
            way = {"id": peer, "port": urls[node, peer], "key": f"{peer}.key", "weight": weight}
            tables.append(("[[neighbour]]", way | _link(settings, node, peer)))
        lines = [line for head, table in tables for line in _lines(head, table)]
        files[node] = own / "node.toml"
        files[node].write_text("\n".join(lines), encoding="utf-8")
    return files


def plan(folder: Path, ground: GroundNode, began: datetime) -> None:
    """Writes the contact plan of a ring that began then."""
    lines = []
    for gateway, passes in ground.passes.items():
        for rise_s, set_s in passes:
            rise, set_ = (began + timedelta(seconds=at_s) for at_s in (rise_s, set_s))
            lines += ["[[contact]]", f"node = {GROUND}", f"peer = {gateway}"]
            lines += [f"rise = {rise.isoformat()}", f"set = {set_.isoformat()}", ""]
    (folder / PLAN).write_text("\n".join(lines), encoding="utf-8")


def _link(settings: RingSettings, node: int, peer: int) -> dict[str, Any]:
    """What a node's file says of the link with that neighbour."""
    link = link_of(settings, (min(node, peer), max(node, peer)))
    plan = {"contacts": f"../{PLAN}", "wait": peer != GROUND} if GROUND in (node, peer) else {}
    return {"profile": link.name} | plan


def _lines(head: str, table: Mapping[str, Any]) -> list[str]:
    """A table as TOML, of which JSON's literals and escapes are a subset."""
    return [head, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table.items()), ""]
