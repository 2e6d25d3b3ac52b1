"""A file of 350 MB crosses a link of 50 Mbit/s through kills of both ends, with some megabytes of memory.

It is as large as a ViT-B in float32, and goes from the ground to a board over the profile xband-50m with
50 Mbit/s both ways. Sessions, spools, pumps, parts and files are the programs' own, on a virtual clock, so
that no other work of this computer counts as the link's; the rows say what CPU it took. Each end is killed
once in the middle and starts from its disk 5 s later. Bytes beyond the file are counted on the air: headers,
answers, repetitions, and what the kills cost.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import blake2s
from pathlib import Path

import click
import numpy as np

from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.world.channel import Channel, Side
from firmware_sim.world.world import AirLink, World
from hw_profiles import load_link
from onboard.config import LinkEnd
from onboard.mission.files import (
    MAX_FILE_BYTES,
    FileRequest,
    FileSender,
    FileStream,
    decode_part,
    decode_request,
    encode_request,
)
from onboard.mission.objects import FILE, REQUEST
from onboard.runtime.endpoint import Endpoint, EndpointConfig, board_limits
from onboard.storage.journal import LinkState
from onboard.storage.keys import new_key, save_key
from onboard.storage.partial_file import PartialFile
from onboard.wire.events import Arrived, Event, Rekeyed

MB = 350
RATE_BPS = 50e6
OFF_S = 5.0
BUDGET_BYTES = 64 << 20  # of the board: what its link may hold at a time follows from it
MOST_MEMORY_MB = 32.0  # of both ends together, above what the process had before
MOST_OVERHEAD = 0.06  # frames of 1,115 B have 22 B of header and tag, and COBS takes some

OPTIONS = (
    click.Option(["--mb"], type=click.IntRange(1, MAX_FILE_BYTES // 10**6), default=MB, show_default=True),
    click.Option(
        ["--seed"], type=int, default=1, show_default=True, help="Of the file and the link's losses."
    ),
)


class FilePlace:
    """One end of the link, with what it has on its disk: the file, or a place for it."""

    def __init__(self, world: World, air: AirLink, side: Side, folder: Path, source: Path | None) -> None:
        self.world, self.air, self.side, self.folder, self.source = world, air, side, folder, source
        self._node, self._peer = (0, 1) if side == "ground" else (1, 0)
        self._epoch = 0
        self.endpoint: Endpoint | None = None
        self.sender: FileSender | None = None
        self.digest = b""
        self.target: PartialFile | None = None
        self.arrived = False
        self.work_s = 0.0
        (folder / "files").mkdir(parents=True, exist_ok=True)

    def boot(self, digest: bytes) -> None:
        self._epoch += 1
        self.digest = digest
        if self.source is None:
            self.target = PartialFile(self.folder / "files", digest)
        link = self.air.channel.link
        end = LinkEnd(id=self._peer, link=link, port="/dev/air", key_path=self.folder / "key")
        config = EndpointConfig(
            node=self._node, end=end, folder=self.folder, spool=self.folder / "spool",
            limits=board_limits(end, BUDGET_BYTES), label={},
            opener=partial(self.air.connect, self.side, self),
            nonce=lambda count: new_key()[:count],
        )  # fmt: skip
        taken = () if self.target is None else self.target.taken
        self.endpoint = Endpoint(config, LinkState(epoch=self._epoch), taken, self.world.now)
        self.world.add(self)

    def kill(self) -> None:
        """All that is in memory is gone."""
        self.endpoint = self.sender = self.target = None
        self.world.remove(self)
        self.air.disconnect(self.side)

    def act(self, now: float) -> None:
        began_s = time.process_time()
        while self.endpoint is not None and (events := self.endpoint.poll(now, now)):
            for event in events:
                self._handle(event, self.endpoint, now)
        if self.sender is not None and self.endpoint is not None:
            self.sender.step(self.endpoint.session, now)
        self.work_s += time.process_time() - began_s

    def wakeup(self, now: float) -> float:
        return float("inf") if self.endpoint is None else self.endpoint.wakeup(now)

    def _handle(self, event: Event, endpoint: Endpoint, now: float) -> None:
        session = endpoint.session
        if isinstance(event, Rekeyed):
            session.rekey(event.salt)
            if self.target is not None:
                wanted = FileRequest(asking=self._epoch + int(now), files=(self.target.wanted(),))
                session.offer(REQUEST, encode_request(wanted), now, priority=1)
        elif isinstance(event, Arrived) and event.kind == REQUEST and self.source is not None:
            (file,) = decode_request(event.payload).files
            stream = FileStream(self.digest, self.source.stat().st_size, self._read)
            self.sender = FileSender(stream, file.held)
            session.accept(event.digest, now)
        elif isinstance(event, Arrived) and event.kind == FILE and self.target is not None:
            self.target.take(decode_part(event.payload), event.digest, MAX_FILE_BYTES)
            session.accept(event.digest, now)
            if self.target.is_complete:
                self.arrived = all(self.target.finish(self.folder / "files" / "whole", None))
        elif self.sender is not None:
            self.sender.handle(event)

    def _read(self, offset: int, length: int) -> bytes:
        assert self.source is not None, "an end that sends"
        with self.source.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def measure(tell: ProgressLine, mb: int = MB, seed: int = 1) -> list[Row]:
    """Takes some minutes on one core with 350 MB."""
    with tempfile.TemporaryDirectory(prefix="spacedml-files-") as folder:
        return _measure(Path(folder), mb, seed, tell)


def _measure(folder: Path, mb: int, seed: int, tell: ProgressLine) -> list[Row]:
    source, size, digest = folder / "source", mb * 10**6, blake2s(digest_size=16)
    drawn = np.random.Generator(np.random.Philox(seed))
    with source.open("wb") as file:
        for _ in range(mb):
            piece = drawn.bytes(10**6)
            digest.update(piece)
            file.write(piece)
    link = replace(load_link("xband-50m"), rate_down_bps=RATE_BPS, rate_up_bps=RATE_BPS)
    world, key = World(1000.0), new_key()
    air = AirLink(world, Channel(link, seed=seed))
    ends = [
        FilePlace(world, air, "ground", folder / "ground", source),
        FilePlace(world, air, "board", folder / "board", None),
    ]
    for end in ends:
        save_key(end.folder / "key", key)
        end.boot(digest.digest())
    board, began_s = ends[1], world.now
    before = _peak_bytes()

    def held_bytes() -> int:
        return 0 if board.target is None else board.target.held_bytes

    def run(until: Callable[[], bool]) -> None:
        shown = -1
        while not until():
            world.advance(world.now + 1.0)
            if (percent := held_bytes() * 100 // size) != shown and board.target is not None:
                shown = percent
                tell(f"{mb} MB, of which {percent} % are held")

    for share, victim in ((1 / 3, board), (2 / 3, ends[0])):
        run(lambda share=share: held_bytes() >= share * size)  # type: ignore[misc]
        victim.kill()
        off_until_s = world.now + OFF_S
        run(lambda until_s=off_until_s: world.now >= until_s)  # type: ignore[misc]
        victim.boot(digest.digest())
    run(lambda: board.arrived)
    took_s = world.now - began_s - 2 * OFF_S
    used_bytes = _peak_bytes() - before
    sent_bytes = air.bytes_sent
    right = _digest_of(folder / "board" / "files" / "whole") == digest.digest()
    return [
        Row("file", mb, "MB"),
        Row("arrived, with the right digest", float(right), "", 1, at_least=True),
        Row("time on the air, without the ends' absence (virtual)", took_s, "s"),
        Row("  of the line's rate", 8 * size / took_s / RATE_BPS, "", 0.85, at_least=True),
        Row(
            "peak memory of both ends in one process, above its start", used_bytes / 1e6, "MB", MOST_MEMORY_MB
        ),
        Row("bytes on the air beyond the file, both ways", (sent_bytes - size) / 1e6, "MB"),
        Row("  share of the file", (sent_bytes - size) / size, "", MOST_OVERHEAD),
        Row("CPU of the sending end", ends[0].work_s, "s"),
        Row("CPU of the receiving end", ends[1].work_s, "s"),
    ]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _digest_of(path: Path) -> bytes:
    whole = blake2s(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            whole.update(piece)
    return whole.digest()
