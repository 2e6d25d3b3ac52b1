"""Founds a mission: one folder with mission.toml, a key for every board, and what to copy to each board."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from groundstation.config import MISSION_FILE, MissionSection, TrainSection, load_mission
from hw_profiles import load_board, load_link
from onboard.config import load_node
from onboard.keys import new_key, save_key
from onboard.learn.graph import TrainGraph

NODE_KEYS = ("board", "link", "port", "board_port", "data", "cpu_share")
BOARD, LINK = "raspberry-pi-4", "bench-serial-115k2"


class SetupError(ValueError):
    """A mission that cannot be founded as asked; one line that names what and why."""


@dataclass(frozen=True)
class NodeSpec:
    """One `--node`: NAME[,board=PROFILE][,link=PROFILE],port=URL[,board-port=URL][,data=SOURCE]."""

    name: str
    port: str
    board: str = BOARD
    link: str = LINK
    board_port: str = ""
    data: str = "npz:data.npz"
    cpu_share: str = ""

    @classmethod
    def parse(cls, text: str) -> NodeSpec:
        """Raises SetupError that names the part that is wrong."""
        name, *parts = text.split(",")
        fields: dict[str, str] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            key = key.strip().replace("-", "_")
            if not equals or key not in NODE_KEYS:
                known = ", ".join(f"{name}=".replace("_", "-") for name in NODE_KEYS)
                raise SetupError(f"--node {text!r}: {part!r} is not one of {known}")
            fields[key] = value
        if not name or not name.replace("-", "").replace("_", "").isalnum():
            raise SetupError(f"--node {text!r}: the name {name!r} must be letters, digits, - and _")
        if not fields.get("port"):
            raise SetupError(f"--node {text!r}: port= is missing, e.g. port=/dev/ttyUSB0")
        fields.setdefault("board", name if _is_board(name) else BOARD)
        return cls(name=name, **fields)


@dataclass(frozen=True)
class Wishes:
    """What `init` was asked for, beyond the nodes."""

    name: str
    data: str
    model: str
    rounds: int
    target: float | None
    select: int
    quorum: int
    deadline_s: float
    seed: int


def found(folder: Path, specs: list[NodeSpec], wishes: Wishes) -> Iterator[str]:
    """Writes the mission and yields a line about each thing written.

    Raises SetupError, ConfigError. Nothing is written over: keys that boards already hold must not change.
    """
    if (folder / MISSION_FILE).exists():
        raise SetupError(f"{folder / MISSION_FILE}: there is a mission already; choose another folder")
    names = [spec.name for spec in specs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SetupError(f"--node {twice}: given twice")
    try:
        graph = TrainGraph.load(wishes.model)
        for spec in specs:
            load_board(spec.board)
            load_link(spec.link)
        rules = MissionSection(
            name=wishes.name, model=wishes.model, data=wishes.data, rounds=wishes.rounds,
            target_accuracy=wishes.target, select=wishes.select, quorum=wishes.quorum,
            deadline_s=wishes.deadline_s, seed=wishes.seed,
        )  # fmt: skip
    except ValueError as error:
        raise SetupError(str(error)) from None
    (folder / "keys").mkdir(parents=True, exist_ok=True)
    for number, spec in enumerate(specs, start=1):
        yield _found_node(folder, number, spec, graph.input_shape)
    (folder / MISSION_FILE).write_text(_mission_toml(rules, specs))
    load_mission(folder)
    yield f"{folder / MISSION_FILE}: {wishes.rounds} rounds of {wishes.model} on {wishes.data}"


def _found_node(folder: Path, number: int, spec: NodeSpec, shape: tuple[int, int, int]) -> str:
    key = folder / "keys" / f"{spec.name}.key"
    board = folder / "boards" / spec.name
    board.mkdir(parents=True, exist_ok=True)
    save_key(key, new_key())
    shutil.copy2(key, board / "node.key")
    (board / "node.toml").write_text(_node_toml(number, spec, shape))
    load_node(board / "node.toml")
    return f"{board}: copy this folder to {spec.name} and start `onboard run node.toml` in it"


def _node_toml(number: int, spec: NodeSpec, shape: tuple[int, int, int]) -> str:
    budget = f"\n[budget]\ncpu_share = {spec.cpu_share}\n" if spec.cpu_share else ""
    return f"""\
# One board. Every key: docs/operate.md
[node]
id = {number}
name = {_text(spec.name)}
board = {_text(spec.board)}

[link]
port = {_text(spec.board_port or spec.port)}
profile = {_text(spec.link)}

[data]
source = {_text(spec.data)}
shape = {json.dumps(shape)}
{budget}"""


def _mission_toml(rules: MissionSection, specs: list[NodeSpec]) -> str:
    nodes = "".join(
        f"""
[[node]]
id = {number}
name = {_text(spec.name)}
board = {_text(spec.board)}
link = {_text(spec.link)}
port = {_text(spec.port)}
key = {_text(f"keys/{spec.name}.key")}
"""
        for number, spec in enumerate(specs, start=1)
    )
    return (
        "# A mission. Every key: docs/operate.md\n"
        f"[mission]\n{_section(rules)}\n[train]\n{_section(TrainSection())}{nodes}"
    )


def _section(section: msgspec.Struct) -> str:
    values = msgspec.to_builtins(section)
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items() if value is not None)


def _value(value: object) -> str:
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _is_board(name: str) -> bool:
    try:
        load_board(name)
    except ValueError:
        return False
    return True
