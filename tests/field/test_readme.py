"""The commands of README.md and docs/howto/, as printed, on two computers with the addresses of the text:
the rounds close, through kills, a lost disk, and addresses that change.

Of the commands only the numbers of rounds and images are others; of what `init` writes, a round's epochs.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from firmware_sim.runs.processes import ProcessGroup
from onboard.data import loading
from onboard.data.images import save
from tests.field.commands import blocks, the
from tests.field.machines import Lan, Machine, why_not
from tests.missions.bench import change

GROUND, BOARD = "192.168.7.1", "192.168.7.2"
IMAGES = 40  # of each board: what a round teaches is not the matter here


@pytest.fixture(scope="module", autouse=True)
def _two_computers() -> None:
    if why := why_not():
        pytest.skip(why)


@contextmanager
def lan(folder: Path, cable: dict[str, dict[str, Path]] | None = None) -> Iterator[Lan]:
    made = Lan(folder, GROUND, BOARD, cable or {})
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[dict[str, dict[str, Path]]]:
    """A cable from the ground's /dev/ttyUSB0 to the board's /dev/serial0."""
    ends = {"ground": tmp_path / "ground-end", "board": tmp_path / "board-end"}
    crew = ProcessGroup(tmp_path / "cable")
    paths = [argument for side, path in ends.items() for argument in (f"--{side}", str(path))]
    crew.start("cable", "firmware_sim", "cable", "--link", "bench-serial-115k2", *paths)
    until(lambda: all(path.exists() for path in ends.values()))
    yield {"ground": {"ttyUSB0": ends["ground"].resolve()}, "board": {"serial0": ends["board"].resolve()}}
    list(crew.stop())


def until(met: Callable[[], object], within_s: float = 60.0, say: Callable[[], object] = lambda: "") -> float:
    began = time.monotonic()
    while not met():
        assert time.monotonic() < began + within_s, f"not within {within_s} s: {say()}"
        time.sleep(0.05)
    return time.monotonic() - began


class Field:
    """A mission, founded by the commands of a page. `boards`: what each of them is told, by its name."""

    def __init__(self, on: Lan, commands: list[str], *, rounds: int, epochs: int) -> None:
        """Runs the ground's commands up to the one that serves, which `serve` starts."""
        self.on, self.ground, self.board = on, on.ground, on.board
        self.boards: dict[str, list[str]] = {}
        self._lives: dict[str, int] = {}  # where in each log the words of the program that runs now begin
        serve = next(index for index, line in enumerate(commands) if line.startswith("groundstation serve"))
        self._serve = commands[serve]
        init = next(line for line in commands if line.startswith("groundstation init"))
        init = f"{re.sub(r' --rounds [0-9]+', '', init)} --rounds {rounds}"
        self.ground.run([init])
        self.mission = self.ground.home / "mission"
        change(self.mission / "mission.toml", epochs=epochs)
        sampled = [line.split()[-1] for line in commands if line.startswith("groundstation sample")]
        for node in (self.mission / "boards").iterdir():
            if node.name not in sampled and not (node / "data.npz").exists():
                save(node / "data.npz", loading.load("digits", part="train").take(range(IMAGES)))
        for line in commands[:serve]:
            if not line.startswith("groundstation init"):
                few = f" --images {IMAGES}" if line.startswith("groundstation sample") else ""
                self.ground.run([line + few])

    def copy(self, line: str) -> None:
        """The `scp` of a page."""
        self.ground.run([line])

    def serve(self) -> None:
        self._lives["ground"] = _size(self.ground.log("ground"))
        self.ground.start("ground", [self._serve])

    def fly(self, name: str, commands: list[str]) -> None:
        """Runs a board's agent, by the last of its commands."""
        self.boards[name] = commands
        self._lives[name] = _size(self.board.log(name))
        self.board.start(name, [f"cd ~/{name}", commands[-1]])

    def met(self, name: str) -> bool:
        """Whether the ground and a board have heard each other since both were started."""
        logs = {"ground": self.ground.log("ground"), name: self.board.log(name)}
        said = [log.read_bytes()[self._lives[who] :] if log.exists() else b"" for who, log in logs.items()]
        return f"in-sight node={name}".encode() in said[0] and b"in-sight peer=ground" in said[1]

    def kill(self, name: str) -> None:
        """The ground or a board has a power cut, and starts again."""
        self._off(name)
        self._on(name)

    def lose(self, name: str) -> None:
        """It has an empty disk then: of its state nothing is left, of its keys and settings all."""
        self._off(name)
        if name == "ground":
            for file in (*self.mission.glob("mission.sqlite*"), self.mission / "spool"):
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.board.home / name / "state", ignore_errors=True)
        self._on(name)

    def _off(self, name: str) -> None:
        (self.ground if name == "ground" else self.board).kill(name)

    def _on(self, name: str) -> None:
        if name == "ground":
            self.serve()
        else:
            self.fly(name, self.boards[name])

    def closed(self) -> int:
        """Rounds that are closed, in all lives of the ground."""
        return self.ground.said("ground", "closed")

    def until(self, met: Callable[[], object], within_s: float = 60.0) -> float:
        return until(met, within_s, self.last_words)

    def last_words(self) -> str:
        """For a test that fails."""
        logs = sorted([*self.ground.home.glob("*.log"), *self.board.home.glob("*.log")])
        return "\n".join(f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()[-12:])


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


class ReadmeState:
    """Over UDP, who knows where the other one is, at the ground and at the board. As long as one of them
    does, they find each other."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._by = {"ground": True, "nano": False}  # init's port says where the board is

    def may(self, deed: str, whom: str) -> bool:
        """Whether a deed leaves one of them who knows; if so it is noted."""
        if self._field.met("nano"):
            self._by = dict.fromkeys(self._by, True)
        after = dict(self._by)
        if deed == "move":
            after["nano" if whom == "ground" else "ground"] = False
        elif deed == "lose" and whom == "nano":
            after["nano"] = False
        elif (
            deed == "lose" and whom == "ground"
        ):  # it has another port, and looks where the mission file says
            after = {"ground": self._field.on.addresses["board"] == BOARD, "nano": False}
        if any(after.values()):
            self._by = after
        return any(after.values())


def as_on_a_pi() -> list[str]:
    return the(blocks("README.md", "On a Raspberry Pi"), "~/spacedml/bin/onboard")


def check(machine: Machine, node: str, commands: list[str]) -> None:
    """Every line of `doctor` says ok."""
    doctor = next(line for line in commands if " doctor " in line)
    said = machine.run([f"cd ~/{node}", doctor])
    assert "FAIL" not in said
    assert "ok" in said


def test_a_raspberry_pi_as_in_the_readme(tmp_path: Path, wire: dict[str, dict[str, Path]]) -> None:
    page = blocks("README.md", "On a Raspberry Pi")
    with lan(tmp_path, wire) as on:
        field = Field(on, the(page, "groundstation init"), rounds=2, epochs=2)
        pi = as_on_a_pi()
        check(field.board, "pi", pi)
        field.serve()
        field.fly("pi", pi)
        field.until(lambda: field.board.said("pi", "epoch"))
        field.board.kill("pi")
        field.fly("pi", pi)
        field.until(lambda: field.ground.said("ground", "finished"))
        assert field.closed() == 2


def as_on_a_jetson() -> list[str]:
    """As on the Pi, in the folder of the other board."""
    return [line.replace("~/pi", "~/nano") for line in as_on_a_pi()]


@contextmanager
def jetson(folder: Path, *, rounds: int, epochs: int) -> Iterator[Field]:
    """README's Jetson, its folder copied and examined, nothing started."""
    page = blocks("README.md", "On a Raspberry Pi")
    _, *same = [re.sub(r"\bpi(?= |$)", "nano", line) for line in the(page, "groundstation init")]
    (init,) = the(blocks("README.md", "On a Jetson"), "groundstation init")
    with lan(folder) as on:
        field = Field(on, [init, *same], rounds=rounds, epochs=epochs)
        check(field.board, "nano", as_on_a_jetson())
        yield field


def test_a_jetson_as_in_the_readme(tmp_path: Path) -> None:
    """The board starts first, and is killed in training; a power cut at both, after which the board is not
    where the mission file says; then the ground is not where the board heard it. Nobody waits for a
    deadline."""
    with jetson(tmp_path, rounds=3, epochs=2) as field:
        field.fly("nano", as_on_a_jetson())
        field.serve()
        field.until(lambda: field.board.said("nano", "epoch"))
        field.board.kill("nano")
        field.fly("nano", as_on_a_jetson())
        field.until(lambda: field.closed() == 1)
        field.ground.kill("ground")
        field.board.kill("nano")
        field.on.move("board", "192.168.7.3")
        field.serve()
        field.fly("nano", as_on_a_jetson())
        field.until(lambda: field.closed() == 2)
        field.on.move("ground", "192.168.7.9")
        field.until(lambda: field.ground.said("ground", "finished"))
        assert field.closed() == 3
        assert "round" in field.ground.run(["groundstation status mission"])


def test_both_boards_as_in_the_guide(tmp_path: Path, wire: dict[str, dict[str, Path]]) -> None:
    """docs/howto/'s mission with both boards; the ground loses its disk, and begins its mission again."""
    with guide(tmp_path, wire, rounds=2, epochs=1) as field:
        field.serve()
        for name in field.boards:
            field.fly(name, field.boards[name])
        field.until(lambda: field.closed() == 1)
        field.lose("ground")
        field.until(lambda: field.ground.said("ground", "finished"))
        assert field.closed() == 3


@contextmanager
def guide(folder: Path, wire: dict[str, dict[str, Path]], *, rounds: int, epochs: int) -> Iterator[Field]:
    """docs/howto/'s mission, its boards' folders copied, nothing started."""
    (scp,) = the(blocks("docs/howto/raspberry-pi.md", "A Raspberry Pi"), "scp")
    run = the(blocks("docs/howto/raspberry-pi.md", "A Raspberry Pi"), "~/spacedml/bin/onboard")
    commands = the(blocks("docs/howto/ground-station.md", "The ground station"), "groundstation init")
    with lan(folder, wire) as on:
        field = Field(on, commands, rounds=rounds, epochs=epochs)
        for name in ("pi", "nano"):
            field.copy(scp.replace("/pi ", f"/{name} "))
            field.boards[name] = run
        check(field.board, "pi", run)
        yield field


@pytest.mark.by_hand
def test_a_jetson_without_its_disk(tmp_path: Path) -> None:
    """It does not know where the ground is, and the ground has nothing to say: it asks after 15 s."""
    with jetson(tmp_path, rounds=2, epochs=3) as field:
        field.serve()
        field.fly("nano", as_on_a_jetson())
        field.until(lambda: field.board.said("nano", "epoch"))
        field.lose("nano")
        field.until(lambda: field.ground.said("ground", "finished"), within_s=100.0)
        assert field.closed() == 2


@pytest.mark.by_hand
def test_a_board_by_its_name_is_found_at_its_new_address(tmp_path: Path) -> None:
    """It lost its disk and is elsewhere when it starts again: only its name says where."""
    with lan(tmp_path) as on:
        on.ground.hosts({"nano.local": BOARD})
        (init,) = the(blocks("README.md", "On a Jetson"), "groundstation init")
        scp = "scp -r mission/boards/nano pi@nano.local:"
        init = init.replace("192.168.7.2", "nano.local")
        field = Field(on, [init, scp, "groundstation serve mission"], rounds=2, epochs=2)
        field.serve()
        field.fly("nano", as_on_a_jetson())
        field.until(lambda: field.closed() == 1)
        on.move("board", "192.168.7.4")
        on.ground.hosts({"nano.local": "192.168.7.4"})
        field.lose("nano")
        field.until(lambda: field.ground.said("ground", "finished"), within_s=100.0)
        assert field.closed() == 2


@pytest.mark.by_hand
@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_the_rounds_close(
    tmp_path: Path, wire: dict[str, dict[str, Path]], seed: int
) -> None:
    """The guide's mission, and eight times at random: an end is killed, or loses its disk, or moves. What
    nobody can mend does not happen: that neither end of the UDP link knows any more where the other is."""
    chance = random.Random(seed)
    with guide(tmp_path, wire, rounds=4, epochs=3) as field:
        starts = [field.serve, *(partial(field.fly, name, field.boards[name]) for name in field.boards)]
        chance.shuffle(starts)
        for start in starts:
            start()
        known = ReadmeState(field)
        free = [f"192.168.7.{host}" for host in range(3, 250)]
        for _ in range(8):
            time.sleep(chance.uniform(0.0, 6.0))
            if field.ground.said("ground", "finished"):
                break
            deed = chance.choice(["kill", "kill", "kill", "lose", "move"])
            whom = chance.choice(["ground", "pi", "nano"])
            if not known.may(deed, whom):
                deed = "kill"
            print(f"{time.strftime('%H:%M:%S')} {deed} {whom}")
            if deed != "move":
                getattr(field, deed)(whom)
                continue
            mover = "ground" if whom == "ground" else "board"
            other, name = (field.board, "nano") if mover == "ground" else (field.ground, "ground")
            before = other.said(name, "peer-at")
            field.on.move(mover, free.pop(chance.randrange(100)))
            found_s = field.until(
                lambda other=other, name=name, before=before: (
                    other.said(name, "peer-at") > before or field.ground.said("ground", "finished")
                ),
                within_s=100.0,
            )
            print(f"found after {found_s:.1f} s")
        took_s = field.until(lambda: field.ground.said("ground", "finished"), within_s=400.0)
        print(f"left alone, it took {took_s:.0f} s")
        rounds = json.loads(field.ground.run(["groundstation status mission --json"]))["rounds"]
        assert [row["state"] for row in rounds] == ["closed"] * 4
