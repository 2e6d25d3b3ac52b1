"""What a fleet's run leaves in its folder, so that one that was stopped goes on after its last whole round.

fleet.json      what was asked for; a run that asks for something else does not touch the folder
rounds.jsonl    a line for every round that is over
model-N.bin     the packed weights that round N made, the last round's alone
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from firmware_sim.fleet.result import RoundResult
from firmware_sim.runs import folder as run_folder
from onboard.storage.journal import replace_durably

WISHES, ROUNDS = "fleet.json", "rounds.jsonl"
FREE = ("rounds", "target")  # a run may go on for longer than it was first asked to


class FleetRecord:
    """The folder of one run. `wishes`: what it was asked for, as JSON has it.

    Raises FolderError where the folder is in use or holds anything but an earlier part of the same run, and
    OSError.
    """

    def __init__(self, folder: Path, wishes: Mapping[str, Any]) -> None:
        self.folder = folder
        run_folder.check(folder / WISHES, wishes, FREE)
        self._held = run_folder.hold(folder)
        run_folder.check(folder / WISHES, wishes, FREE)  # another run may just have begun or ended in it
        run_folder.claim(folder / WISHES, wishes)

    def close(self) -> None:
        """Lets other runs into the folder."""
        self._held.close()

    def load(self) -> tuple[list[RoundResult], bytes]:
        """The rounds that are over, and the packed weights that the last of them made."""
        results: list[RoundResult] = []
        try:
            lines = (self.folder / ROUNDS).read_bytes().splitlines()
        except FileNotFoundError:
            return [], b""
        for line in lines:
            try:
                results.append(msgspec.json.decode(line, type=RoundResult))
            except msgspec.DecodeError:
                break  # cut short by a kill: that round is played again
        while results and not self._model(len(results)).exists():
            results.pop()
        packed = self._model(len(results)).read_bytes() if results else b""
        replace_durably(self.folder / ROUNDS, b"".join(_line(result) for result in results))
        return results, packed

    def keep(self, result: RoundResult, packed: bytes) -> None:
        """Stores a round that is over and the weights that it made."""
        replace_durably(self._model(result.round), packed)
        with (self.folder / ROUNDS).open("ab") as file:
            file.write(_line(result))
        self._model(result.round - 1).unlink(missing_ok=True)

    def _model(self, number: int) -> Path:
        return self.folder / f"model-{number}.bin"


def _line(result: RoundResult) -> bytes:
    return json.dumps(asdict(result)).encode() + b"\n"
