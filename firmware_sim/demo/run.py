"""The demo: a ground daemon and three boards, real processes over emulated links, from nothing to a summary.

A board can be a real one: `--real NAME=PORT` leaves its emulated board and cable out, and the ground daemon
talks to PORT, where the same agent runs on hardware.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firmware_sim.demo.scene import Scene
from firmware_sim.demo.view import DemoView
from firmware_sim.runs import folder
from firmware_sim.runs.plot import draw
from firmware_sim.runs.processes import ProcessGroup
from onboard.console.signals import stop_signals
from onboard.data import loading
from onboard.learn.graph import TrainGraph

MARK = "demo.json"  # says that a folder is a demo's and may be replaced by the next one
REPORT_EVERY_S = "0.5"


class DemoError(RuntimeError):
    """The demo cannot start or cannot go on; one line."""


@dataclass(frozen=True)
class DemoBoard:
    """One place at the table: a board's profile, its link's, and what the air does to it."""

    name: str
    link: str
    udp: bool = False
    loss: float | None = None
    cut_after_bytes: int | None = None
    cut_s: float = 0.0
    cpu_share: float = 1.0

    def cable_options(self, seed: int) -> list[str]:
        """What the cable is told of the air."""
        options = ["--link", self.link, "--seed", str(seed)]
        if self.loss is not None:
            options += ["--loss", str(self.loss)]
        if self.cut_after_bytes is not None:
            options += ["--cut-after-bytes", str(self.cut_after_bytes), "--cut-seconds", str(self.cut_s)]
        return options


BOARDS = (
    DemoBoard("raspberry-pi-4", "bench-serial-115k2"),
    DemoBoard("jetson-nano", "sband-256k", udp=True),
    # The contact closes once when the board is in the middle of sending its first update.
    DemoBoard("xiphos-q8s", "uhf-9k6", loss=0.05, cut_after_bytes=2_000, cut_s=12.0),
)


@dataclass(frozen=True)
class DemoConfig:
    """What the demo was asked for."""

    out: Path
    data: str = "digits"
    data_folder: Path | None = None
    model: str = "lenet5"
    rounds: int = 6
    images: int = 600  # a board, at most
    seed: int = 0
    real: dict[str, str] = field(default_factory=dict)  # board -> the port that leads to it


Ends = tuple[str, str]  # URLs of the ground's and the board's end of a link


def images_of(wishes: DemoConfig, graph: TrainGraph) -> loading.Images:
    """The images that the boards share. Raises DataError."""
    return loading.load(
        wishes.data, graph.input_shape, folder=wishes.data_folder, part="train",
        rows=None if wishes.data == "digits" else range_of(wishes), classes=graph.classes,
    )  # fmt: skip


def prepare(wishes: DemoConfig, images: loading.Images) -> tuple[Path, dict[str, Ends]]:
    """Makes the mission and every board's shard in a folder that is held; returns the mission's folder and
    the ends of every link. Raises DemoError, OSError."""
    mission = wishes.out / "mission"
    ends = {board.name: ends_of(board, wishes) for board in BOARDS}
    nodes = []
    for board in BOARDS:
        here, there = ends[board.name]
        spec = (
            f"board={board.name},link={board.link},port={here},board-port={there},cpu-share={board.cpu_share}"
        )
        nodes += ["--node", f"{board.name},{spec}"]
    _groundstation(
        "init", str(mission), "--data", _absolute(wishes.data), "--model", wishes.model, "--rounds",
        str(wishes.rounds), "--seed", str(wishes.seed), *nodes,
    )  # fmt: skip
    for board, shard in zip(BOARDS, loading.shards(images, len(BOARDS), wishes.seed), strict=True):
        loading.save(mission / "boards" / board.name / "data.npz", shard)
    return mission, ends


def range_of(wishes: DemoConfig) -> range:
    """The rows of the training part that the boards share."""
    return range(wishes.images * len(BOARDS))


def hold_folder(out: Path) -> contextlib.ExitStack:
    """An empty folder for the run, which no other may use until the stack is closed. What an earlier demo
    left is replaced, anything else is left alone. Raises FolderError, OSError."""
    folder.check_mark(out / MARK)
    held = folder.hold(out)
    try:
        folder.check_mark(out / MARK)
        folder.empty(out / MARK)
        folder.claim(out / MARK, {"made_by": "firmware-sim demo"})
        (out / "ports").mkdir()
    except BaseException:
        held.close()
        raise
    return held


def ends_of(board: DemoBoard, wishes: DemoConfig) -> Ends:
    """Where the ground and the board meet their cable; a real board brings its own."""
    if board.name in wishes.real:
        return wishes.real[board.name], wishes.real[board.name]
    if board.udp:
        return f"udp://127.0.0.1:{_free_port()}", f"udp://127.0.0.1:{_free_port()}"
    ports = wishes.out.resolve() / "ports"
    return str(ports / f"{board.name}.ground"), str(ports / f"{board.name}.board")


def run(wishes: DemoConfig, view: DemoView) -> dict[str, Any]:
    """The whole demo; returns the summary, which is also in OUT/summary.json.

    Raises DemoError, DataError, GraphError, FolderError, and OSError where the disk refuses. Ctrl-C ends it
    in order: KeyboardInterrupt after the cleaning up.
    """
    graph = TrainGraph.load(wishes.model)
    images = images_of(wishes, graph)
    with hold_folder(wishes.out):
        mission, ends = prepare(wishes, images)
        return _play(wishes, view, mission, ends, graph)


def _play(
    wishes: DemoConfig, view: DemoView, mission: Path, ends: dict[str, Ends], graph: TrainGraph
) -> dict[str, Any]:
    scene = Scene([board.name for board in BOARDS], graph.layout.parameters, time.monotonic())
    crew = ProcessGroup(wishes.out / "logs")
    with stop_signals() as stop:
        try:
            start(crew, wishes, mission, ends)
            with view.live(scene):
                while not (scene.finished and "ground" not in crew.members) and not stop.asked:
                    for name, event in crew.listen(0.25):
                        scene.hear(name, event)
                    view.show(scene)
                    _check(crew, scene)
        finally:
            for names in ([n for n in crew.members if not n.startswith("cable:")], None):
                for name, event in crew.stop(names):  # the cables last: they count to the end
                    scene.hear(name, event)
            shutil.rmtree(wishes.out / "ports", ignore_errors=True)
    if stop.asked and not scene.finished:
        raise KeyboardInterrupt
    summary = sum_up(wishes, scene)
    (wishes.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(summary, wishes.out / "summary.png")
    return summary


def start(crew: ProcessGroup, wishes: DemoConfig, mission: Path, ends: dict[str, Ends]) -> None:
    """Starts cables, ground and boards; the ports exist before anyone opens them."""
    for board in BOARDS:
        if board.name not in wishes.real:
            here, there = ends[board.name]
            crew.start(
                f"cable:{board.name}", "firmware_sim", "cable", "--ground", here, "--board", there,
                "--report-every", REPORT_EVERY_S, *board.cable_options(wishes.seed + 1),
            )  # fmt: skip
    ports = [
        wishes.out / "ports" / f"{b.name}.board" for b in BOARDS if not b.udp and b.name not in wishes.real
    ]
    deadline = time.monotonic() + 20.0
    while not all(port.exists() for port in ports):
        for member in crew.ended():
            raise DemoError(f"{member.name}: {member.last_words()}")
        if time.monotonic() > deadline:
            raise DemoError(f"the cables' ports did not appear in {wishes.out / 'ports'}")
        list(crew.listen(0.05))
    for board in BOARDS:
        if board.name not in wishes.real:
            crew.start(
                f"board:{board.name}", "firmware_sim", "board", str(_node_toml(mission, board.name)),
                "--log", "json", "--report-every", REPORT_EVERY_S,
            )  # fmt: skip
    crew.start(
        "ground", "groundstation", "serve", str(mission), "--exit-when-finished", "--log", "json",
        "--report-every", REPORT_EVERY_S,
    )  # fmt: skip


def sum_up(wishes: DemoConfig, scene: Scene) -> dict[str, Any]:
    """The run in numbers. Bytes are what the ports sent, headers and retransmissions included."""
    boards = {board: scene.sent(board) for board in scene.boards}
    answers = {
        board: {"answered": answered, "asked": asked, "failure": scene.failure.get(board)}
        for board, (answered, asked) in ((board, scene.answers(board)) for board in scene.boards)
    }
    total = scene.total_bytes()
    fp32 = scene.fp32_bytes()
    return {
        "data": wishes.data,
        "model": wishes.model,
        "seed": wishes.seed,
        "rounds": len(scene.rounds),
        "accuracy": [row["accuracy"] for row in scene.rounds],
        "final_accuracy": scene.rounds[-1]["accuracy"] if scene.rounds else None,
        "bytes_after_round": [row["bytes"] for row in scene.rounds],
        "boards": boards,
        "answers": answers,
        "never_answered": scene.never_answered(),
        "bytes": total,
        "fp32_fedavg_bytes": fp32,
        "ratio": fp32 / total if total else None,
        "seconds": round(scene.elapsed_s(), 1),
        "happened": scene.happened,
    }


def _check(crew: ProcessGroup, scene: Scene) -> None:
    """A process that ended before its time ends the demo, with its last words; so does a full disk."""
    if crew.refused is not None:
        raise crew.refused
    for member in crew.ended():
        if member.name == "ground" and member.process.returncode == 0:
            for name, event in crew.stop(["ground"]):
                scene.hear(name, event)
        else:
            raise DemoError(f"{member.name} ended: {member.last_words()}")


def _groundstation(*arguments: str) -> None:
    """A ground station is started, not imported: the two packages meet only on a cable."""
    done = subprocess.run([sys.executable, "-m", "groundstation", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"groundstation {arguments[0]}: {done.stderr.strip()}")


def _node_toml(mission: Path, board: str) -> Path:
    return mission / "boards" / board / "node.toml"


def _absolute(source: str) -> str:
    """A source's path, seen from the mission's folder."""
    scheme, colon, place = source.partition(":")
    return f"{scheme}:{Path(place).resolve()}" if colon else source


def _free_port() -> int:
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
