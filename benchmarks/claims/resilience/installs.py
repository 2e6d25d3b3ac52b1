"""Brown-outs of a board that installs, checks, switches and rolls back networks leave it with a whole one.

A ground station and a board, the programs' own loops on a virtual clock, with a disk that loses what was not
synced: at a cut every sector and name that changed since then is the old one or the new one, by chance. The
ground has the board install three versions of LeNet-5 in turn and roll back, and the power goes at a sync
that is drawn: anywhere in a command, or when the new network is whole in its slot and is checked and
switched to. After each cut the network that the journal calls active has to be there, digest by digest, and
at last every command has to be done. Then a bit flips in a file of a slot: whoever is to use that network
has to find that before, and to mend it.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import numpy as np
from safetensors.numpy import save

from benchmarks.harness.disk import Disk, watched
from benchmarks.harness.lab import LabError
from benchmarks.harness.missions import VirtualRounds, founded_in
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import Row
from firmware_sim.world.disk import scratch
from groundstation.commands import CommandRequest, CommandState, all_commands
from groundstation.config import load_mission
from groundstation.library import NetworkLibrary, install_arguments
from groundstation.models.folder import write_network
from onboard.agents.federated_state import FederatedState
from onboard.learn.graph import TrainGraph
from onboard.learn.networks import DESCRIPTION, INFER, PARAMETERS, TRAIN, Network, NetworkError, PartName
from onboard.storage.journal import Journal
from onboard.storage.model_slots import SLOTS, NetworkRecord

CUTS, FLIPS = 100, 24
VERSIONS = 3
COMMANDS_EACH = 6  # of one board's life on its disk
CUTS_EACH = 3  # of one command at most, so that it ends
SYNCS = 60  # within so many a cut comes; an install has some tens
LIMIT_S = 900.0  # of virtual time, for a command without a cut
BOARD = "board-1"

OPTIONS = (
    click.Option(["--cuts"], type=click.IntRange(1), default=CUTS, show_default=True),
    click.Option(["--flips"], type=click.IntRange(0), default=FLIPS, show_default=True),
    click.Option(["--seed"], type=int, default=0, show_default=True, help="Of all instants and losses."),
)


class InstallCase:
    """One board with its disk, from its first start on."""

    def __init__(self, folder: Path, seed: str, versions: list[Network]) -> None:
        self._random = random.Random(seed)
        self._versions = versions
        self.mission = VirtualRounds(folder, seed, encrypted=False)
        self.ground, self.state = folder / "ground", folder / BOARD / "state"
        self.cuts: Counter[str] = Counter()
        self.broken: list[str] = []
        self._queued = 0

    def play(self, cuts: int, flips: int) -> None:
        """Plays commands with so many cuts in all, and flips bits at last."""
        mission = self.mission
        with mission.on():
            for name in ("ground", BOARD):
                mission.boot(name)
            self._command("install", self._versions[0])
            self._until_over("the first install")
            disk = Disk(self.state)
            with watched([disk]):
                for nth in range(COMMANDS_EACH):
                    if self.cuts.total() >= cuts:
                        break
                    is_back = nth % 3 == 2
                    target = None if is_back else self._another()
                    self._command("roll-back" if is_back else "install", target)
                    self._with_cuts(disk, target, cuts)
            for _ in range(flips):
                self._flip()
            self._stop()

    def _another(self) -> Network:
        """A version that is not in use; mostly one that no slot holds."""
        active = self._record().active
        others = [each for each in self._versions if each.digest != active]
        lacking = [each for each in others if not self._holds(each)]
        return self._random.choice(lacking if lacking and self._random.random() < 0.8 else others)

    def _command(self, name: str, network: Network | None) -> None:
        self._queued += 1
        arguments = {} if network is None else msgspec.to_builtins(install_arguments(network, again=True))
        if network is not None:
            NetworkLibrary(self.ground).keep(network)
        request = CommandRequest(
            id=f"{self._queued:016x}", node=1, name=name, arguments=arguments,
            queued_at=self.mission.world.wall(), expires_at=self.mission.world.wall() + 1e9,
        )  # fmt: skip
        (self.ground / "commands").mkdir(exist_ok=True)
        (self.ground / "commands" / f"{request.id}.json").write_bytes(msgspec.json.encode(request))

    def _is_over(self) -> bool:
        rows = all_commands(load_mission(self.ground))
        return any(row.id == self._queued.to_bytes(8, "big") and row.state.is_final for row in rows)

    def _until_over(self, what: str) -> bool:
        """Lets the command end, unless the power goes before; returns whether it ended."""
        world = self.mission.world
        began_s, looked_s = world.now, -1.0

        def over() -> bool:
            nonlocal looked_s
            if world.ended(BOARD):
                return True
            if world.now < looked_s + 0.5:
                return False
            looked_s = world.now
            return self._is_over()

        world.run(over, LIMIT_S)
        if not world.ended(BOARD) and not self._is_over():
            raise LabError(f"{what}: not over after {world.now - began_s:.0f} s")
        return not world.ended(BOARD)

    def _with_cuts(self, disk: Disk, target: Network | None, most: int) -> None:
        """Lets the power go up to CUTS_EACH times before the command ends."""
        world = self.mission.world
        for nth in range(CUTS_EACH + 1):
            is_last = nth == CUTS_EACH or self.cuts.total() >= most
            disk.syncs_left = None
            if not is_last:
                if target is not None and self._random.random() < 0.5:
                    self._until_whole(target)
                    disk.syncs_left = self._random.randrange(3)
                else:
                    disk.syncs_left = self._random.randrange(3 if target is None else SYNCS)
            if self._until_over(f"command {self._queued}"):
                disk.syncs_left = None
                return
            if "PowerCut" not in world.ended(BOARD):
                raise LabError(
                    f"the board ended: {world.ended(BOARD)} {self.mission.errors.getvalue()[-200:]}"
                )
            disk.cut(self._random)
            self.cuts[self._phase(target)] += 1
            self._judge()
            self.mission.boot(BOARD)

    def _until_whole(self, network: Network) -> None:
        """Runs until its description is in a slot, which comes last: it is whole, and not in use yet."""
        description = (network.folder / DESCRIPTION).read_bytes()
        paths = [self.state / "models" / slot / DESCRIPTION for slot in SLOTS]
        world = self.mission.world

        def whole() -> bool:
            there = any(path.exists() and path.read_bytes() == description for path in paths)
            return there or bool(world.ended(BOARD))

        world.run(whole, LIMIT_S)

    def _phase(self, target: Network | None) -> str:
        if target is None:
            return "rolling back"
        if self._record().active == target.digest:
            return "switched, and not told yet"
        return "checking, switching" if self._holds(target) else "installing"

    # what must hold

    def _record(self) -> NetworkRecord:
        known = Journal(self.state, FederatedState).load()
        return NetworkRecord() if known is None else known.networks

    def _holds(self, network: Network) -> bool:
        """Whether a slot has it, digest by digest."""
        for slot in SLOTS:
            try:
                held = Network.load(self.state / "models" / slot)
                for name in held.file.files:
                    held.part(name)
            except NetworkError:
                continue
            if held.digest == network.digest:
                return True
        return False

    def _judge(self) -> None:
        active = self._record().active
        named = next((each for each in self._versions if each.digest == active), None)
        if named is None:
            self.broken.append(f"the journal's active network is {active.hex() or 'none'}")
        elif not self._holds(named):
            self.broken.append(f"the active network {active.hex()} is not whole")

    def _flip(self) -> None:
        """A bit flips in a slot while the board is off; then that network is wanted."""
        world, source = self.mission.world, self._random
        self._stop()
        slot = source.choice(
            [each for each in SLOTS if (self.state / "models" / each / DESCRIPTION).exists()]
        )
        folder = self.state / "models" / slot
        network = Network.load(folder)
        wanted = next(each for each in self._versions if each.digest == network.digest)
        path = source.choice(sorted(each for each in folder.iterdir() if each.is_file()))
        raw = bytearray(path.read_bytes())
        raw[source.randrange(len(raw))] ^= 1 << source.randrange(8)
        path.write_bytes(raw)
        told = len(world.said)
        self.mission.boot(BOARD)
        self._command("install", wanted)
        self._until_over(f"the install after a bit of {path.name} flipped")
        self.cuts["a bit flips"] += 1
        if not self._holds(wanted) or self._record().active != wanted.digest:
            self.broken.append(f"{path.name} of slot {slot}: not mended")
        if not any(each.program == BOARD and each.event == "unreadable" for each in world.said[told:]):
            self.broken.append(f"{path.name} of slot {slot}: not told")

    def _stop(self) -> None:
        world = self.mission.world
        world.run(lambda: False, 1.0)  # only who has begun can be stopped in order
        world.stop(BOARD)

    def commands_done(self) -> tuple[int, int]:
        """How many commands were done, and how many there were."""
        rows = all_commands(load_mission(self.ground))
        return sum(row.state is CommandState.DONE for row in rows), len(rows)


def measure(tell: ProgressLine, cuts: int = CUTS, flips: int = FLIPS, seed: int = 0) -> list[Row]:
    """Takes two minutes on one core with 100. Raises LabError."""
    total: Counter[str] = Counter()
    broken: list[str] = []
    done = asked = 0
    with scratch() as folder, founded_in(folder):
        versions = [_version(folder / f"version-{nth}", nth) for nth in range(VERSIONS)]
        number = 0
        while (left := cuts - sum(count for what, count in total.items() if what != "a bit flips")) > 0:
            more = min(4, flips - total["a bit flips"])
            case = InstallCase(folder / f"case-{number}", f"{seed}/{number}", versions)
            case.play(left, more)
            total += case.cuts
            broken += [f"case {number}: {each}" for each in case.broken]
            ended, there = case.commands_done()
            done, asked, number = done + ended, asked + there, number + 1
            shutil.rmtree(case.mission.folder)
            tell(f"{cuts - left} of {cuts} cuts, {len(broken)} broken so far")
    for each in broken:
        click.echo(each, err=True)
    return list(_rows(total, broken, done, asked))


def _version(folder: Path, nth: int) -> Network:
    """LeNet-5 with weights of its own, a little further from the first version's each time."""
    shipped = Network.load("lenet5")
    weights = TrainGraph.load(shipped).initial(1)
    moved = {name: (value + np.float32(nth * 1e-4)).astype(np.float32) for name, value in weights.items()}
    parts: dict[PartName, bytes] = {
        TRAIN: shipped.part(TRAIN),
        INFER: shipped.part(INFER),
        PARAMETERS: save(moved),
    }
    write_network(folder, msgspec.structs.replace(shipped.file, files={}), parts)
    return Network.load(folder)


def _rows(total: Counter[str], broken: list[str], done: int, asked: int) -> Iterator[Row]:
    flips = total.pop("a bit flips", 0)
    yield Row("brown-outs", total.total(), "")
    for what, count in sorted(total.items()):
        yield Row(f"  while {what}", count, "")
    yield Row("flipped bits", flips, "")
    yield Row(
        "in which the board has no whole network, or a damage is not told or mended", len(broken), "", 0
    )
    yield Row("commands", asked, "")
    yield Row("  not done at last", asked - done, "", 0)
