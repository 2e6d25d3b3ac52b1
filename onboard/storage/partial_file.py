"""A file that arrives in parts survives a kill or a power cut at any instant, and is never taken for whole
before its digest is right.

In its folder lie `HEX.parts` (the bytes, in place) and `HEX.map` (which parts of them are valid); HEX is the
digest of the file that comes of them. A part is on the disk before the map that vouches for it, so a cut
leaves the older map with the parts that it promised. No more than a slice is ever in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator, Iterator
from hashlib import blake2s
from pathlib import Path
from typing import BinaryIO

import msgspec

from onboard.mission.files import PART_BYTES, FileDigest, FilePart, PartsHeld, WantedFile, parts_of
from onboard.storage import delta, files

SLICE_BYTES = 2**21  # that is hashed in one turn of the loop: some 20 ms of a Raspberry Pi 4
RESERVE_BYTES = 2**25  # of the disk that no file may take: the journal and the spool need some
REMEMBERED = 8  # objects that were taken last, as one may be offered again after a restart
_MAX_MAP_BYTES = 4096


class TooLarge(OSError):  # noqa: N818 - "too large" says error already
    """A file does not fit the disk or the limit, and nothing of it is taken."""


class PartMap(msgspec.Struct, array_like=True, frozen=True):
    """What `HEX.map` says. `size`, `base`: of the stream; `held`: as in `WantedFile`; `taken`: digests of the
    last objects."""

    size: int = 0
    base: bytes = b""
    held: PartsHeld = b""
    taken: tuple[FileDigest, ...] = ()


class PartialFile:
    """The parts that are held of one file. Writing methods raise OSError and may be called again."""

    def __init__(self, folder: Path, digest: bytes) -> None:
        self.digest = digest
        self._data, self._map_path = folder / f"{digest.hex()}.parts", folder / f"{digest.hex()}.map"
        self._map = self._read_map()

    @property
    def taken(self) -> tuple[bytes, ...]:
        """Digests of the objects that were taken last."""
        return self._map.taken

    @property
    def held_bytes(self) -> int:
        """What is held, to within a part."""
        count = parts_of(self._map.size)
        return self._map.size * self._mask.bit_count() // count if count else 0

    @property
    def size(self) -> int:
        """Size of the stream, 0 before its first part."""
        return self._map.size

    @property
    def base(self) -> bytes:
        return self._map.base

    @property
    def is_complete(self) -> bool:
        return self.size > 0 and self._mask.bit_count() == parts_of(self.size)

    @property
    def _mask(self) -> int:
        return int.from_bytes(self._map.held, "little")

    def wanted(self, bases: tuple[bytes, ...] = ()) -> WantedFile:
        """What has to be asked for. `bases`: the files here that a delta could be put on."""
        known = self._map
        return WantedFile(digest=self.digest, size=known.size, base=known.base, held=known.held, bases=bases)

    def take(self, part: FilePart, name: bytes, limit_bytes: int) -> None:
        """Makes a part durable, which came as the object `name`. Raises TooLarge and takes nothing; OSError.

        A part of another stream than those before (the sender made another delta) takes their place."""
        known = self._map
        if (known.size, known.base) != (part.size, part.base):
            known = PartMap(part.size, part.base)
        if not known.held:
            self._check_room(part.size, limit_bytes)
        files.clear_the_way(self._data)
        handle = os.open(self._data, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            offset, rest = part.offset, memoryview(part.data)
            while rest:
                written = os.pwrite(handle, rest, offset)
                offset, rest = offset + written, rest[written:]
            os.ftruncate(handle, part.size)
            os.fsync(handle)
        finally:
            os.close(handle)
        mask = int.from_bytes(known.held, "little") | 1 << part.offset // PART_BYTES
        held = mask.to_bytes((mask.bit_length() + 7) // 8, "little")
        new = PartMap(part.size, part.base, held, (*known.taken, name)[-REMEMBERED:])
        files.replace_durably(self._map_path, files.checked(msgspec.msgpack.encode(new)))
        self._map = new

    def finish(self, to: Path, base: Path | None) -> Generator[bool, None, bool]:
        """Makes the file `to` of the parts, which are all held, and of the file `base` if they are a delta.

        Yields True between slices of the work, and returns whether the digest is right: then the file is
        there, durably. If not, all is dropped, and has to come again."""
        made = to.with_name(f"{to.name}.new")
        if self.base:
            files.clear_the_way(made)
            with contextlib.suppress(ValueError, OSError):
                if base is None:
                    raise OSError(errno.ENOENT, "the file that the delta is against is gone", str(to))
                with files.open_to_read(base) as old, self._data.open("rb") as stream, made.open("wb") as new:
                    for _ in delta.applied(old, stream, new):
                        yield True
                    new.flush()
                    os.fsync(new.fileno())
        else:
            made = self._data
        right = False
        with contextlib.suppress(FileNotFoundError), files.open_to_read(made) as whole:
            for found in digest_of(whole):
                right = found == self.digest
                yield True
        if right:
            files.clear_the_way(to)
            made.replace(to)
            files.sync_folder(to.parent)
        else:
            files.remove_file(made)
        self.drop()
        return right

    def drop(self) -> None:
        """Forgets what is held."""
        files.remove_file(self._map_path)  # first: parts without a map are nothing
        files.remove_file(self._data)
        self._map = PartMap()

    def _check_room(self, size: int, limit_bytes: int) -> None:
        if size > limit_bytes:
            raise TooLarge(errno.EFBIG, f"{size} B, the limit is {limit_bytes} B")
        free = shutil.disk_usage(self._data.parent).free - RESERVE_BYTES
        if size > free:
            raise TooLarge(errno.ENOSPC, f"{size} B, the disk has room for {max(free, 0)} B")

    def _read_map(self) -> PartMap:
        try:
            body = files.unchecked(files.read_file(self._map_path, _MAX_MAP_BYTES))
            known = msgspec.msgpack.decode(body, type=PartMap)
            if self._data.stat().st_size == known.size:
                return known
        except FileNotFoundError:
            return PartMap()
        except (OSError, ValueError):
            files.discard_file(self._map_path)
        return PartMap()


def digest_of(file: BinaryIO) -> Iterator[bytes]:
    """Yields b"" between slices, and at last the BLAKE2s-128 of a file's bytes from here on."""
    whole = blake2s(digest_size=16)
    while piece := file.read(SLICE_BYTES):
        whole.update(piece)
        yield b""
    yield whole.digest()
