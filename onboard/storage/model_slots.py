"""The networks that a board holds, found by their digests: two slots that the ground installs into, what was
set up by hand beside NODE.toml, and the shipped ones.

`state/models/a` and `state/models/b` are networks' folders. One that is in use is never written to, but for a
file of it that is damaged; the other one takes the next network, and is a network only when all of its files
are there, because its model.toml comes last. Which of them is in use the journal says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from onboard.config import OwnConfig
from onboard.learn import networks
from onboard.learn.networks import DESCRIPTION, PARAMETERS, Network, NetworkError
from onboard.storage import files
from onboard.storage.partial_file import PartialFile

SLOTS = ("a", "b")
TRIES = 2  # deaths while a network is used that is not proven yet: then it is rolled back


class NetworkRecord(msgspec.Struct, array_like=True, frozen=True):
    """Which networks were installed, by their digests; part of the journal's state.

    `active`: what was installed last, empty before; `before`: what a roll-back goes to. `is_proven`: a
    training with it took a step; `attempts`: those that did not, as the agent died. `withdrawn`: what was
    rolled back and may not be used until it is installed by hand."""

    active: bytes = b""
    before: bytes = b""
    is_proven: bool = True
    attempts: int = 0
    withdrawn: tuple[bytes, ...] = ()

    @property
    def is_doomed(self) -> bool:
        return not self.is_proven and self.attempts >= TRIES

    def installed(self, digest: bytes) -> NetworkRecord:
        """Returns the record after that network was checked."""
        others = tuple(each for each in self.withdrawn if each != digest)
        if digest == self.active:
            return msgspec.structs.replace(self, withdrawn=others)
        return NetworkRecord(digest, self.active, is_proven=False, withdrawn=others)

    def tried(self) -> NetworkRecord:
        """Returns the record before a use of the active network, which may be the agent's death."""
        return msgspec.structs.replace(self, attempts=self.attempts + 1)

    def proven(self) -> NetworkRecord:
        return msgspec.structs.replace(self, is_proven=True, attempts=0)

    def survived(self) -> NetworkRecord:
        """Returns the record after a use that ended without a result, and without a death."""
        return msgspec.structs.replace(self, attempts=0)

    def rolled_back(self) -> NetworkRecord:
        withdrawn = (*(each for each in self.withdrawn if each != self.active), self.active)[-len(SLOTS) :]
        return NetworkRecord(self.before, b"", withdrawn=withdrawn)


class ModelSlots:
    """The slots in the folder `state`, and the networks in folders of the folder `beside`."""

    def __init__(self, state: Path, beside: Path) -> None:
        self.state, self._beside = state, beside
        self.incoming = state / "incoming"

    def folder(self, slot: str) -> Path:
        return self.state / slot

    def find(self, digest: bytes, record: NetworkRecord) -> Network | None:
        """Returns a network that was not withdrawn; its files are checked when they are read."""
        if digest in record.withdrawn:
            return None
        return next((each for each in self.networks(record) if each.digest == digest), None)

    def networks(self, record: NetworkRecord | None = None) -> Iterator[Network]:
        """Yields what can be described here, the active slot's first."""
        slots = [network for slot in SLOTS if (network := self.held(slot)) is not None]
        if record is not None:
            slots.sort(key=lambda network: network.digest != record.active)
        yield from slots
        beside = [path.parent for path in sorted(self._beside.glob(f"*/{DESCRIPTION}"))]
        for folder in (*beside, *(networks.SHIPPED / name for name in networks.shipped())):
            if (network := _described(folder)) is not None:
                yield network

    def held(self, slot: str) -> Network | None:
        """Returns the network in a slot. A description that cannot be read is logged, and dropped."""
        path = self.folder(slot) / DESCRIPTION
        if not path.exists():
            return None
        if (network := _described(path.parent)) is None:
            files.discard_file(path)
        return network

    def slot_for(self, digest: bytes, record: NetworkRecord) -> str:
        """Returns the slot to install a network into: the one that holds it or what is left of it, else one
        that is neither in use nor what a roll-back goes to, else the latter."""

        def worth(slot: str) -> tuple[bool, int]:
            network = self.held(slot)
            name = b"" if network is None else network.digest
            return name != digest, (name == record.active) * 2 + (name == record.before)

        return min(SLOTS, key=worth)

    def holders(self) -> dict[bytes, list[Path]]:
        """Returns where files lie that a network here is made of, by their BLAKE2s-128."""
        found: dict[bytes, list[Path]] = {}
        for network in self.networks():
            for name, digest in network.file.files.items():
                found.setdefault(bytes.fromhex(digest), []).append(network.folder / name)
        return found

    def versions(self) -> tuple[bytes, ...]:
        """Returns the digests of the weights that networks here bring."""
        digests = (network.file.files.get(PARAMETERS) for network in self.networks())
        return tuple(dict.fromkeys(bytes.fromhex(each) for each in digests if each))

    @property
    def taken(self) -> tuple[bytes, ...]:
        """Digests of the parts that were taken last, of all files that lack some."""
        names = [path.stem for path in self.incoming.glob("*.map")]
        digests = [bytes.fromhex(name) for name in names if re.fullmatch("[0-9a-f]{32}", name)]
        return tuple(name for digest in digests for name in PartialFile(self.incoming, digest).taken)

    def clear(self, slot: str, names: Collection[str], *, keep: bool) -> None:
        """Makes a slot ready for the files `names` of a network: it is none until its description is there.
        `keep`: its description is right. Raises OSError."""
        folder = self.folder(slot)
        for path in (self.state, self.incoming, folder):
            files.clear_the_way(path, "folder")
            path.mkdir(parents=True, exist_ok=True)
        if not keep and files.remove_file(folder / DESCRIPTION):
            files.sync_folder(folder)
        for path in folder.iterdir():
            if path.is_file() and path.name not in names:
                files.remove_file(path)
        files.sync_folder(self.state)


def model_slots(config: OwnConfig) -> ModelSlots:
    """Returns the slots of a node, and the networks beside its file."""
    return ModelSlots(config.state / "models", config.path.parent / "models")


def _described(folder: Path) -> Network | None:
    try:
        return Network.load(folder)
    except NetworkError:
        return None
