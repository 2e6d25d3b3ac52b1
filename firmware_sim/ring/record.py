"""What a ring's run leaves in its folder, so that one that was stopped goes on after its last whole epoch.

ring.json       what was asked for; a run that asks for something else does not touch the folder
epochs.jsonl    a line for every epoch that is over
state.bin       the ring after the last of them; none after the last that was asked for
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from firmware_sim.ring.result import EpochResult
from firmware_sim.ring.state import RingState, pack, unpack
from firmware_sim.runs import folder as run_folder
from onboard.storage.journal import replace_durably

WISHES, EPOCHS, STATE = "ring.json", "epochs.jsonl", "state.bin"


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

    def load(self) -> tuple[list[EpochResult], RingState | None]:
        """The epochs that are over, and the ring after them; None before the first and after the last.

        Raises ValueError for a state that this program did not write, OSError.
        """
        try:
            lines = (self.folder / EPOCHS).read_bytes().splitlines()
            results = [msgspec.convert(json.loads(line), EpochResult) for line in lines]
            if len(results) == self._epochs:
                return results, None
            state = unpack((self.folder / STATE).read_bytes())
        except FileNotFoundError:
            return [], None
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}; choose another folder with --out") from None
        return results[: state.epochs], state  # a kill between the two files leaves a line too many

    def claim(self) -> None:
        """The folder is this run's. Raises OSError."""
        run_folder.claim(self.folder / WISHES, self._wishes)

    def keep(self, results: Sequence[EpochResult], state: RingState) -> None:
        """Stores the epochs that are over, and the ring after them. Raises OSError."""
        lines = b"".join(json.dumps(asdict(result)).encode() + b"\n" for result in results)
        replace_durably(self.folder / EPOCHS, lines)
        if len(results) < self._epochs:
            replace_durably(self.folder / STATE, pack(state))
        else:
            (self.folder / STATE).unlink(missing_ok=True)
