"""The networks that a mission's ground can send, in `models/` of its folder, and the files that they are made
of by digest; shipped ones are there too.

A network that is to be installed is copied there first, so that what a board asks for hours later is still
what was meant."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from hashlib import blake2s
from pathlib import Path

import msgspec

from onboard.console.toml import ConfigError
from onboard.learn import networks
from onboard.learn.graph import GraphError, InferGraph, TrainGraph
from onboard.learn.networks import DESCRIPTION, INFER, PARAMETERS, TRAIN, Network, NetworkError
from onboard.learn.self_check import check_vector
from onboard.mission.commands import InstallArguments
from onboard.mission.files import MAX_FILE_BYTES
from onboard.storage import delta, files

FOLDER = "models"
WORTH = 0.9  # of the file's size that a delta takes at most, else the file itself is sent


class NetworkLibrary:
    """The networks in `models/` of a mission's folder."""

    def __init__(self, mission: Path) -> None:
        self._folder = mission / FOLDER

    def networks(self) -> Iterator[Network]:
        own = (path.parent for path in sorted(self._folder.glob(f"*/{DESCRIPTION}")))
        for folder in (*own, *(networks.SHIPPED / name for name in networks.shipped())):
            try:
                yield Network.load(folder)
            except NetworkError:
                continue  # of no use, and its operator hears so when it is named

    def find_file(self, digest: bytes) -> Path | None:
        """Returns where a file with this BLAKE2s-128 lies."""
        for network in self.networks():
            for name, of in network.file.files.items():
                if of == digest.hex():
                    return network.folder / name
            if digest_of(network.folder / DESCRIPTION) == digest:
                return network.folder / DESCRIPTION
        return None

    def keep(self, network: Network) -> Network:
        """Copies a network here unless it is here, durably on return. Raises NetworkError, OSError."""
        if (
            known := next((each for each in self.networks() if each.digest == network.digest), None)
        ) is not None:
            return known
        free = (f"{network.name}-{nth}" if nth > 1 else network.name for nth in itertools.count(1))
        to = self._folder / next(name for name in free if not os.path.lexists(self._folder / name))
        copy_network(network, to)
        return Network.load(to)

    def delta(self, digest: bytes, bases: tuple[bytes, ...]) -> Iterator[tuple[Path, bytes] | None]:
        """Yields None between slices of the work, and then a smaller delta of the file against one of the
        `bases`, with that one's digest, if there is one. It is made once, and kept. Raises OSError."""
        new = self.find_file(digest)
        folder = self._folder / "deltas"
        for base in bases:
            old = self.find_file(base)
            if new is None or old is None or base == digest:
                continue
            size, path = new.stat().st_size, folder / f"{digest.hex()}-{base.hex()}"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                with old.open("rb") as before, new.open("rb") as after, files.replacing(path) as made:
                    for _ in delta.made(before, after, size, made):
                        yield None
            if 0 < path.stat().st_size <= WORTH * size:
                yield path, base
                return


def copy_network(network: Network, to: Path) -> None:
    """Copies a network's folder, durably on return: its description is the last, so that half a copy is no
    network. Raises NetworkError for a damaged one, OSError."""
    to.mkdir(parents=True, exist_ok=True)
    for name in network.file.files:
        path = network.folder / name
        if digest_of(path).hex() != network.file.files[name]:
            raise NetworkError(f"{path}: is damaged, or of another network: its digest is not model.toml's")
        with path.open("rb") as source, files.replacing(to / name) as copy:
            while piece := source.read(2**20):
                copy.write(piece)
    files.replace_durably(to / DESCRIPTION, (network.folder / DESCRIPTION).read_bytes())
    files.sync_folder(to.parent)


def install_arguments(network: Network, *, again: bool) -> InstallArguments:
    """Returns the arguments of an install, after the network was loaded and run here. Raises ConfigError."""
    try:
        vector = check_vector(TrainGraph.load(network), InferGraph.load(network))
        told = {name: _told(network.folder / name) for name in (*network.file.files, DESCRIPTION)}
    except (GraphError, OSError) as error:
        raise ConfigError(f"{network.folder}: {error}") from None
    return InstallArguments(
        network=network.digest.hex(), name=network.name, description=told[DESCRIPTION], train=told[TRAIN],
        infer=told[INFER], parameters=told.get(PARAMETERS, ""), check=msgspec.msgpack.encode(vector).hex(),
        again=again,
    )  # fmt: skip


def digest_of(path: Path) -> bytes:
    """Returns the BLAKE2s-128 of a file. Raises OSError."""
    whole = blake2s(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            whole.update(piece)
    return whole.digest()


def _told(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: {size} B, at most {MAX_FILE_BYTES} B can be sent")
    return f"{digest_of(path).hex()}:{size}"
