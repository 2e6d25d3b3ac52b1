"""The folder of a run: a mark says what it holds, and a lock says who is using it now.

The mark outlives the run, so it cannot say whether the folder is in use; the kernel drops the lock with its
process, so it cannot say what the folder holds.

A run of steps (a fleet's rounds, a ring's epochs) also writes a JSON line per finished step, and its state
after the last one: a stopped run continues from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from onboard.storage.files import LOCK, replace_durably, sole_user

R = TypeVar("R")


class RunError(ValueError):
    """A run that cannot start or continue; the message is one line."""


def check_mark(mark: Path) -> None:
    """Raises RunError unless the folder of `mark` is missing, empty, or has that mark."""
    folder = mark.parent
    if mark.exists() or not folder.exists():
        return
    if not folder.is_dir() or any(entry.name != LOCK for entry in folder.iterdir()):
        raise RunError(f"{folder}: exists and is no {mark.stem}'s folder; choose another with --out")


def hold(mark: Path, check: Callable[[Path], None] = check_mark) -> ExitStack:
    """Makes the folder of `mark` and keeps other runs out until the stack is closed or the process ends.
    Raises RunError where another run is in it, what `check` raises, and OSError."""
    check(mark)
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_user(mark.parent))
        except BlockingIOError:
            raise RunError(f"{mark.parent}: another run is using it now; choose another with --out") from None
        check(mark)  # another run may just have started or ended in it
        return stack.pop_all()


def claim(mark: Path, asked: Mapping[str, Any]) -> None:
    """Marks the folder as this run's, with what it was asked for. Raises OSError."""
    replace_durably(mark, json.dumps(dict(asked), indent=2).encode() + b"\n")


def empty(mark: Path) -> None:
    """Removes what an earlier run left in a held folder. The mark stays: a kill half-way must not leave a
    folder that nobody recognizes. Raises OSError."""
    for entry in mark.parent.iterdir():
        if entry.name not in (LOCK, mark.name):
            _remove(entry)


@dataclass(frozen=True, slots=True)
class RecordNames:
    """The file names of a record."""

    asked: str  # what the run was asked for, as JSON: the folder's mark
    results: str  # a line per finished step
    state: str  # the state after a step, a file or a folder; `*` stands for the step's number


class RunRecord(Generic[R]):
    """The folder of a run of steps. result: dataclass of a step's result; asked: the run's settings as JSON;
    free: keys of `asked` that may change when the run continues.

    Raises OSError, and RunError where the folder is in use or holds anything but an earlier part of it."""

    def __init__(
        self, folder: Path, names: RecordNames, result: type[R], asked: Mapping[str, Any],
        free: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.folder, self._names, self._result, self._asked = folder, names, result, asked
        self._free = free
        self._held = hold(folder / names.asked, self._check)

    def close(self) -> None:
        self._held.close()

    def load(self, whole: int | None = None) -> tuple[list[R], Path | None]:
        """Returns the results of finished steps, and the path of the state after them. A run with all of its
        `whole` steps has no state. Raises OSError."""
        results: list[R] = []
        try:
            lines = (self.folder / self._names.results).read_bytes().splitlines()
        except FileNotFoundError:
            return [], None
        for line in lines:
            try:
                results.append(msgspec.json.decode(line, type=self._result))
            except msgspec.DecodeError:
                break  # cut short by a kill: that step is played again
        if len(results) == whole:
            return results, None
        while results and not self._state(len(results)).exists():
            results.pop()
        return results, self._state(len(results)) if results else None

    def claim(self) -> None:
        claim(self.folder / self._names.asked, self._asked)

    def keep(self, results: Sequence[R], save: Callable[[Path], object] | None) -> None:
        """Stores the results and, through `save(path)`, the state; None for no state. Raises OSError."""
        kept = self._state(len(results))
        if save is not None:
            new = kept.with_name(kept.name + ".new")
            _remove(new)
            save(new)
            _remove(kept)
            new.rename(kept)
        lines = b"".join(json.dumps(asdict(result)).encode() + b"\n" for result in results)  # type: ignore[call-overload]
        replace_durably(self.folder / self._names.results, lines)
        for pattern in (self._names.state, self._names.state + ".new"):
            for path in self.folder.glob(pattern):
                if save is None or path != kept:
                    _remove(path)

    def _state(self, step: int) -> Path:
        return self.folder / self._names.state.replace("*", str(step))

    def _check(self, mark: Path) -> None:
        try:
            kept = json.loads(mark.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            check_mark(mark)
            return
        except ValueError:
            raise RunError(f"{mark}: damaged; choose another folder with --out") from None
        before, now = _flat(kept), _flat(json.loads(json.dumps(self._asked)))
        for key in sorted(before.keys() | now.keys()):
            if key not in self._free and before.get(key) != now.get(key):
                raise RunError(
                    f"{self.folder}: holds a run with {key} {before.get(key)!r}, not {now.get(key)!r}; "
                    "choose another folder with --out"
                )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
