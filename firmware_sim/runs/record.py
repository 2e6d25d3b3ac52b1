"""What a run leaves in its folder, so that one that was stopped goes on after its last whole step.

A step is a round of a fleet or an epoch of a ring. The folder has what was asked for (a run that asks for
something else does not touch it), a line of JSON for every step that is over, and the run's state after the
last of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from firmware_sim.runs import folder as run_folder
from onboard.storage.files import replace_durably

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RecordNames:
    """How the files of a record are called."""

    asked: str
    """What the run was asked for, as JSON."""
    results: str
    """A line for every step that is over."""
    state: str
    """The state after a step, a file or a folder; `*` stands for the step's number."""


class RunRecord(Generic[R]):
    """The folder of one run. `result`: the dataclass of a step's result; `asked`: what the run was asked for,
    as JSON has it; `free`: keys of it in which an earlier part of the run may differ.

    Raises FolderError where the folder is in use or holds anything but an earlier part of the same run, and
    OSError.
    """

    def __init__(
        self,
        folder: Path,
        names: RecordNames,
        result: type[R],
        asked: Mapping[str, Any],
        free: Collection[str] = (),
    ) -> None:
        mark = folder / names.asked
        run_folder.check(mark, asked, free)
        self._held = run_folder.hold(folder)
        run_folder.check(mark, asked, free)  # another run may just have begun or ended in it
        self.folder, self._names, self._result, self._asked = folder, names, result, asked

    def close(self) -> None:
        """Lets other runs into the folder."""
        self._held.close()

    def load(self, whole: int | None = None) -> tuple[list[R], Path | None]:
        """Returns the results of the steps that are over, and where the state after them is, if it is there.
        A run of `whole` steps that is over has none.

        Raises OSError.
        """
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
        """The folder is this run's. Raises OSError."""
        run_folder.claim(self.folder / self._names.asked, self._asked)

    def keep(self, results: Sequence[R], save: Callable[[Path], object] | None) -> None:
        """Stores the results of the steps that are over, and by `save` the state after them, at a path where
        nothing is; None for no state. Raises OSError."""
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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
