"""A node's answers on its disk: the newest, one JSON object a line, so that each image is answered once.

There are two files, as of a recording: when the newer one is full it takes the older one's place. A line is
durable when `append` returns, and carries a checksum: a kill or a power cut at any instant costs the line
that was being written, and a damaged line is left out. The first line of a file names the images whose
answers are gone while they still lie in the watched folder, so that the ring forgets none of these."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection, Iterator
from hashlib import blake2s
from pathlib import Path

import msgspec

from onboard.console.log import say
from onboard.storage import files

log = logging.getLogger(__name__)

NEWER, OLDER, TO_LABEL = "answers.jsonl", "answers.1.jsonl", "to-label.txt"
KEY_BYTES = 8
_CHECK_BYTES = 4
_HEAD = b'{"check":"'
_AFTER_CHECK = len(_HEAD) + 2 * _CHECK_BYTES + len(b'",')


class AnswerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer. `n` counts the node's answers; `key` names the file's content, by name, size and time;
    `at`: Unix seconds, by the node's clock; `model`: the digest of the deployed object; `label` and `share`:
    the first class; `score`: by which populations are compared; `doubtful`: to be labelled; `chosen`: for the
    downlink; `why`: the image cannot be answered. Digests are hexadecimal."""

    n: int
    image: str
    key: str
    at: float
    model: str
    label: int | None = None
    name: str = ""
    share: float | None = None
    confidence: float | None = None
    values: dict[str, float] = {}
    error: float | None = None
    score: float | None = None
    doubtful: bool = False
    chosen: bool = False
    why: str = ""


class _Answered(msgspec.Struct, frozen=True):
    """The first line of a file."""

    answered: list[str]


class AnswerRing:
    """The answers in `folder`, at most about `limit_bytes`. Raises OSError."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self._limit_bytes = folder, limit_bytes
        folder.mkdir(parents=True, exist_ok=True)
        new = self._path(NEWER).with_suffix(".new")
        if not self._path(NEWER).exists() and new.exists():
            new.replace(self._path(NEWER))  # the rotation was cut between its two names
        self._keys: dict[str, set[str]] = {}
        self._last_n = self.damaged = 0
        self._is_list_stale = False
        for name in (OLDER, NEWER):
            self._open(name)
        self._write_to_label()
        if self.damaged:
            say(log, "answers-damaged", level=logging.WARNING, path=str(folder), lines=self.damaged)

    @property
    def next_n(self) -> int:
        return self._last_n + 1

    def has(self, key: str) -> bool:
        """Whether an image was answered, as far as the ring knows."""
        return any(key in keys for keys in self._keys.values())

    def records(self) -> Iterator[AnswerRecord]:
        """Reads the answers, the oldest first; none is held in memory."""
        for name in (OLDER, NEWER):
            yield from (line for line in self._lines(name) if isinstance(line, AnswerRecord))

    def append(self, record: AnswerRecord, present: Collection[str]) -> bool:
        """Adds an answer, durably; returns whether older ones went for it. `present`: the keys of all images
        in the folder."""
        if self._is_list_stale:
            self._write_to_label()
        rotates = self._size(NEWER) >= self._limit_bytes // 2
        if rotates:
            self._rotate(present)
        self._write(NEWER, _line(record))
        self._keys[NEWER].add(record.key)
        self._last_n = record.n
        if record.doubtful:
            try:
                with self._path(TO_LABEL).open("a", encoding="utf-8", errors="surrogateescape") as listed:
                    listed.write(f"{record.image}\n")
            except OSError:  # the answer is durable: the list is made anew before the next one
                self._is_list_stale = True
        return rotates

    def _rotate(self, present: Collection[str]) -> None:
        gone = sorted(self._keys[OLDER].intersection(present) - self._keys[NEWER])
        new = self._path(NEWER).with_suffix(".new")
        files.replace_durably(new, _line(_Answered(gone)))
        self._path(NEWER).replace(self._path(OLDER))
        new.replace(self._path(NEWER))
        files.sync_folder(self.folder)
        self._keys = {OLDER: self._keys[NEWER], NEWER: {*gone}}
        self._write_to_label()

    def _write(self, name: str, line: bytes) -> None:
        """Appends a whole line, or leaves the file as it was."""
        path = self._path(name)
        is_new = not path.exists()
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            try:
                if os.write(handle, line) < len(line):
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
        if is_new:
            files.sync_folder(self.folder)

    def _open(self, name: str) -> None:
        """Cuts off a line that was being written, and notes whose answers the file has."""
        keys = self._keys[name] = set()
        path = self._path(name)
        if not path.exists():
            return
        raw = files.read_file(path)
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.truncate(path, whole)
        for line in self._lines(name):
            if line is None:
                self.damaged += 1
            elif isinstance(line, AnswerRecord):
                keys.add(line.key)
                self._last_n = max(self._last_n, line.n)
            else:
                keys.update(line.answered)

    def _lines(self, name: str) -> Iterator[AnswerRecord | _Answered | None]:
        """Yields what the lines say, None for a damaged one."""
        try:
            with files.open_to_read(self._path(name)) as file:
                for line in file:
                    yield _read_line(line.rstrip(b"\n"))
        except FileNotFoundError:
            return

    def _write_to_label(self) -> None:
        """Lists the images that are to be labelled: those of the ring, one a line."""
        names = "".join(f"{record.image}\n" for record in self.records() if record.doubtful)
        path = self._path(TO_LABEL)
        if names or path.exists():
            files.replace_durably(path, names.encode("utf-8", "surrogateescape"))
        self._is_list_stale = False

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _size(self, name: str) -> int:
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            return 0


def key_of(image: str, size: int, changed_ns: int) -> str:
    """Names the content of a file."""
    text = f"{image}\0{size}\0{changed_ns}".encode("utf-8", "surrogateescape")
    return blake2s(text, digest_size=KEY_BYTES).hexdigest()


def _line(content: AnswerRecord | _Answered) -> bytes:
    body = msgspec.json.encode(content)[1:]
    return _HEAD + _check(body) + b'",' + body + b"\n"


def _read_line(line: bytes) -> AnswerRecord | _Answered | None:
    """Returns what a line says; None if it is not as it was written."""
    body = line[_AFTER_CHECK:]
    if line[:_AFTER_CHECK] != _HEAD + _check(body) + b'",':
        return None
    kind: type[AnswerRecord] | type[_Answered]
    kind = _Answered if body.startswith(b'"answered"') else AnswerRecord
    try:
        return msgspec.json.decode(b"{" + body, type=kind)
    except msgspec.DecodeError:  # of another version of this program
        return None


def _check(body: bytes) -> bytes:
    return blake2s(body, digest_size=_CHECK_BYTES).hexdigest().encode()
