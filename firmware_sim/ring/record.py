"""What a ring's run leaves in its folder, so that one that was stopped goes on after its last whole epoch.

ring.json       what was asked for; a run that asks for something else does not touch the folder
epochs.jsonl    a line for every epoch that is over
state-N         the disks of the nodes after epoch N, the last that is over; none once all are
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from firmware_sim.ring.result import EpochResult
from firmware_sim.runs import folder as run_folder
from onboard.storage.journal import replace_durably, write_durably

WISHES, EPOCHS, STATE = "ring.json", "epochs.jsonl", "state-"


class RingRecord:
    """The folder of one run. `wishes`: what it was asked for, as JSON has it; `epochs`: of the whole run.

    Raises FolderError where the folder is in use or holds anything but an earlier part of the same run, and
    OSError.
    """

    def __init__(self, folder: Path, wishes: Mapping[str, Any], epochs: int) -> None:
        run_folder.check(folder / WISHES, wishes)
        self._held = run_folder.hold(folder)
        run_folder.check(folder / WISHES, wishes)  # another run may just have begun or ended in it
        self.folder, self._wishes, self._epochs = folder, wishes, epochs

    def close(self) -> None:
        """Lets other runs into the folder."""
        self._held.close()

    def load(self, disks: Path) -> list[EpochResult]:
        """The epochs that are over; the disks of the ring after them are put into a folder that is not there
        yet, before the first epoch and after the last none.

        Raises ValueError for a file that this program did not write, OSError.
        """
        try:
            lines = (self.folder / EPOCHS).read_bytes().splitlines()
            results = [msgspec.convert(json.loads(line), EpochResult) for line in lines]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}; choose another folder with --out") from None
        if len(results) < self._epochs:
            while results and not self._state(len(results)).exists():
                results.pop()
            if results:
                shutil.copytree(self._state(len(results)), disks)
        return results

    def claim(self) -> None:
        """The folder is this run's. Raises OSError."""
        run_folder.claim(self.folder / WISHES, self._wishes)

    def keep(self, results: Sequence[EpochResult], disks: Path) -> None:
        """Stores the epochs that are over, and the disks of the ring after them. Raises OSError."""
        kept = self._state(len(results))
        if len(results) < self._epochs:
            new = kept.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(disks, new, copy_function=_copy_durably)
            new.rename(kept)
        lines = b"".join(json.dumps(asdict(result)).encode() + b"\n" for result in results)
        replace_durably(self.folder / EPOCHS, lines)
        for path in self.folder.glob(STATE + "*"):
            if path != kept:
                shutil.rmtree(path)

    def _state(self, epoch: int) -> Path:
        return self.folder / f"{STATE}{epoch}"


def _copy_durably(source: str, target: str) -> None:
    write_durably(Path(target), Path(source).read_bytes())
