"""Boards get the mission's network before they are asked to train it.

A network that is not shipped is installed on every board by a command of the daemon's own; a board that has
it all the same (it was set up by hand, or by an operator) answers at once. A shipped one is installed only on
a board that says that it lacks it, as one of an older release may."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from groundstation.commands import CommandRequest, CommandRow, CommandState, CommandTable
from groundstation.library import NetworkLibrary, install_arguments
from groundstation.station import Station
from groundstation.store.store import Store
from onboard.console.log import say
from onboard.learn.networks import Network
from onboard.mission.commands import InstallArguments

log = logging.getLogger(__name__)

EXPIRES_S = 604_800.0
AGAIN_S = 600.0  # after an install that a board refused: a disk may have room again
FRESH_S = 60.0  # an install that is no older has done what it can


class NetworkSupply:
    """Which of a mission's boards have its network, by the installs in its database. `wall`: Unix seconds."""

    def __init__(
        self, network: Network, store: Store, folder: Path, stations: Mapping[int, Station],
        wall: Callable[[], float],
    ) -> None:  # fmt: skip
        self._network, self._table, self._folder = network, CommandTable(store), folder
        self._stations, self._wall = stations, wall
        self._has = set[int](stations) if network.is_shipped else set[int]()

    def has(self, node: int) -> bool:
        """Returns whether the board has the network, and installs it where it has not. Raises StoreError."""
        if node in self._has:
            return True
        latest = self._latest(node)
        if latest is not None and latest.state is CommandState.DONE:
            self._has.add(node)
            return True
        is_over = latest is None or latest.state.is_final
        if is_over and (latest is None or self._wall() >= (latest.ended_at or 0.0) + AGAIN_S):
            self._install(node)
        return False

    def lacks(self, node: int) -> None:
        """Notes that a board cannot use the network, and installs it, unless an install has just been done:
        then something else is wrong. Raises StoreError."""
        latest = self._latest(node)
        is_fresh = latest is not None and self._wall() < (latest.ended_at or 0.0) + FRESH_S
        if node in self._has and not is_fresh:
            self._has.discard(node)
            self._install(node)

    def _latest(self, node: int) -> CommandRow | None:
        digest = self._network.digest.hex()
        rows = [row for row in self._table.installs(node) if row.arguments.get("network") == digest]
        return rows[-1] if rows else None

    def _install(self, node: int) -> None:
        now = self._wall()
        request = CommandRequest(
            id=secrets.token_bytes(8).hex(), node=node, name="install",
            arguments=msgspec.to_builtins(self._arguments), queued_at=now, expires_at=now + EXPIRES_S,
        )  # fmt: skip
        self._table.queue([request])
        name = self._stations[node].node.name
        say(log, "command-queued", node=name, id=request.id, name=request.name)

    @cached_property
    def _arguments(self) -> InstallArguments:
        kept = NetworkLibrary(self._folder).keep(self._network)
        return install_arguments(kept, again=False)
