"""The demo: a ground daemon and three boards as real processes over emulated links, down to a summary.

`--real NAME=PORT` replaces an emulated board and its cable: the daemon talks to the hardware behind PORT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firmware_sim.demo.view import DemoView, Scene, draw
from firmware_sim.runs import folder
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.processes import ProcessGroup, free_ports
from hw_profiles import load_board
from onboard.console.signals import stop_signals
from onboard.data import loading
from onboard.data.images import save, shards
from onboard.learn.graph import TrainGraph

MARK = "demo.json"  # marks a folder as a demo's: the next demo may replace it
REPORT_EVERY_S = "0.5"


@dataclass(frozen=True)
class DemoBoard:
    """One board of the demo, with its profile, its link's profile, and the faults of that link."""

    name: str
    link: str
    udp: bool = False
    air: tuple[str, ...] = ()  # further options of the cable


BOARDS = (
    DemoBoard("raspberry-pi-4", "bench-serial-115k2"),
    DemoBoard("jetson-nano", "sband-256k", udp=True),
    # The contact closes once when the board is in the middle of sending its first update.
    DemoBoard(
        "xiphos-q8s", "uhf-9k6", air=("--loss", "0.05", "--cut-after-bytes", "2000", "--cut-seconds", "12")
    ),
)


@dataclass(frozen=True)
class DemoConfig:
    """The options of a demo."""

    out: Path
    data: str = "digits"
    data_folder: Path | None = None
    model: str = "lenet5"
    rounds: int = 6
    images: int = 600  # a board, at most
    seed: int = 0
    real: dict[str, str] = field(default_factory=dict)  # board -> the port that leads to it


OWN_BYTES, PARAMETER_BYTES = 64 << 20, 96
"""What an agent and its training fill beside images, and for each parameter, where an update is compressed:
measured with ResNet-18, EfficientNet-B0 and MobileNetV3, and rounded up."""
BATCH = 10  # images, the mission's default


def needed_mb(graph: TrainGraph) -> int:
    """Returns how many MiB a board needs to train a network, by its size: enough, and not the least."""
    images = 2 * BATCH * graph.network.file.image_bytes
    return -(-(OWN_BYTES + PARAMETER_BYTES * graph.layout.parameters + images) >> 20)


def memory_of(board: DemoBoard, graph: TrainGraph) -> int:
    """Returns the MiB that a board of the demo gets: its profile's, or more for a network that needs it."""
    return max(load_board(board.name).agent_memory_bytes >> 20, needed_mb(graph))


Ends = tuple[str, str]  # URLs of the ground's and the board's end of a link


def run(config: DemoConfig, view: DemoView) -> dict[str, Any]:
    """Plays the demo in place of an earlier one; returns its summary, which is also in OUT/summary.json.
    Raises RunError, DataError, GraphError, OSError, and on Ctrl-C KeyboardInterrupt after cleaning up."""
    graph = TrainGraph.load(config.model)
    rows = None if config.data == "digits" else range(config.images * len(BOARDS))
    images = loading.load(
        config.data, graph.input_shape, folder=config.data_folder, part="train", rows=rows,
        objective=graph.objective,
    )  # fmt: skip
    with folder.hold(config.out / MARK):
        folder.empty(config.out / MARK)
        folder.claim(config.out / MARK, {"made_by": "firmware-sim demo"})
        (config.out / "ports").mkdir()
        ends = {board.name: _ends_of(board, config) for board in BOARDS}
        _create_mission(config, ends, {board.name: memory_of(board, graph) for board in BOARDS})
        for board, shard in zip(BOARDS, shards(images, len(BOARDS), config.seed), strict=True):
            save(_board_folder(config, board) / "data.npz", shard)
        scene = Scene([board.name for board in BOARDS], graph.layout.parameters, time.monotonic())
        scene.metric = graph.objective.metric
        _play(config, ends, scene, view)
        summary = sum_up(config, scene)
        (config.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        draw(summary, config.out / "summary.png")
        return summary


def _ends_of(board: DemoBoard, config: DemoConfig) -> Ends:
    if board.name in config.real:
        return config.real[board.name], config.real[board.name]
    if board.udp:
        here, there = (f"udp://127.0.0.1:{port}" for port in free_ports(2))
        return here, there
    ports = config.out.resolve() / "ports"
    return str(ports / f"{board.name}.ground"), str(ports / f"{board.name}.board")


def _board_folder(config: DemoConfig, board: DemoBoard) -> Path:
    return config.out / "mission" / "boards" / board.name


def _create_mission(config: DemoConfig, ends: Mapping[str, Ends], memory_mb: Mapping[str, int]) -> None:
    """Calls the ground station as a process: the two packages meet only on a cable."""
    scheme, colon, place = config.data.partition(":")
    data = f"{scheme}:{Path(place).resolve()}" if colon else config.data  # as seen from the mission's folder
    words = ["--data", data, "--model", config.model, "--rounds", str(config.rounds)]
    words += ["--seed", str(config.seed)]
    if config.data_folder is not None:
        words += ["--data-dir", str(config.data_folder)]
    for board in BOARDS:
        here, there = ends[board.name]
        where = f"board={board.name},link={board.link},port={here},board-port={there}"
        words += ["--node", f"{board.name},{where},cpu-share=1.0,memory-mb={memory_mb[board.name]}"]
    command = [sys.executable, "-m", "groundstation", "init", str(config.out / "mission"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"groundstation init: {done.stderr.strip()}")


def _play(config: DemoConfig, ends: Mapping[str, Ends], scene: Scene, view: DemoView) -> None:
    crew = ProcessGroup(config.out / "logs")
    with stop_signals() as stop:
        try:
            _start(crew, config, ends)
            with view.live(scene):
                while not (scene.finished and "ground" not in crew.members) and not stop.asked:
                    for name, event in crew.listen(0.25):
                        scene.handle(name, event)
                    view.show(scene)
                    _check(crew, scene)
        finally:
            for names in ([n for n in crew.members if not n.startswith("cable:")], None):
                for name, event in crew.stop(names):  # the cables last: they count to the end
                    scene.handle(name, event)
            shutil.rmtree(config.out / "ports", ignore_errors=True)
    if stop.asked and not scene.finished:
        raise KeyboardInterrupt


def _start(crew: ProcessGroup, config: DemoConfig, ends: Mapping[str, Ends]) -> None:
    """Starts the cables, and once their ports exist the boards and the ground."""
    told = ("--report-every", REPORT_EVERY_S)
    emulated = [board for board in BOARDS if board.name not in config.real]
    for board in emulated:
        here, there = ends[board.name]
        options = ("--link", board.link, "--seed", str(config.seed + 1), *board.air)
        ports = ("--ground", here, "--board", there)
        crew.start(f"cable:{board.name}", "firmware_sim", "cable", *ports, *options, *told)
    terminals = [Path(ends[board.name][1]) for board in emulated if not board.udp]
    deadline = time.monotonic() + 20.0
    while not all(terminal.exists() for terminal in terminals):
        for member in crew.ended():
            raise RunError(f"{member.name}: {member.last_words()}")
        if time.monotonic() > deadline:
            raise RunError(f"the cables' ports did not appear in {config.out / 'ports'}")
        list(crew.listen(0.05))
    for board in emulated:
        node = str(_board_folder(config, board) / "node.toml")
        crew.start(f"board:{board.name}", "firmware_sim", "board", node, "--log", "json", *told)
    mission = str(config.out / "mission")
    crew.start("ground", "groundstation", "serve", mission, "--exit-when-finished", "--log", "json", *told)


def _check(crew: ProcessGroup, scene: Scene) -> None:
    """Raises on a full disk, or with the last words of a process that ended too early."""
    if crew.refused is not None:
        raise crew.refused
    for member in crew.ended():
        if member.name == "ground" and member.process.returncode == 0:
            for name, event in crew.stop(["ground"]):
                scene.handle(name, event)
        else:
            raise RunError(f"{member.name} ended: {member.last_words()}")


def sum_up(config: DemoConfig, scene: Scene) -> dict[str, Any]:
    """Returns the run in numbers. Bytes are counted at the ports, headers and retransmissions included."""
    answers = {}
    for board in scene.boards:
        answered, asked = scene.answers(board)
        answers[board] = {"answered": answered, "asked": asked, "failure": scene.failure.get(board)}
    total, fp32, key = scene.total_bytes(), scene.fp32_bytes(), scene.metric.key
    return {
        "data": config.data,
        "model": config.model,
        "seed": config.seed,
        "rounds": len(scene.rounds),
        "metric": key,
        key: [row[key] for row in scene.rounds],
        f"final_{key}": scene.rounds[-1][key] if scene.rounds else None,
        "bytes_after_round": [row["bytes"] for row in scene.rounds],
        "boards": {board: scene.sent(board) for board in scene.boards},
        "answers": answers,
        "never_answered": scene.never_answered(),
        "bytes": total,
        "fp32_fedavg_bytes": fp32,
        "ratio": fp32 / total if total else None,
        "seconds": round(scene.elapsed_s(), 1),
        "happened": scene.happened,
    }
