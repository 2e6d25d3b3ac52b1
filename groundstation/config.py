"""A mission's configuration, `mission.toml`: what is trained, by whom, over which ports, and when to stop."""

from __future__ import annotations

from pathlib import Path

import msgspec

from hw_profiles import Board, Link, load_board, load_link
from onboard.config import NODE_IDS, ConfigError, profile, read, relative_source

MISSION_FILE = "mission.toml"


class MissionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[mission]`: the model, the test data, the rule of a round and the stop rule."""

    name: str
    model: str = "lenet5"
    data: str = "digits"
    data_folder: str | None = None
    rounds: int = 10
    target_accuracy: float | None = None
    select: int = 3
    quorum: int = 2
    deadline_s: float = 900.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name must not be empty")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if not 1 <= self.quorum <= self.select:
            raise ValueError(f"quorum must be 1 to select ({self.select}), got {self.quorum}")
        if self.deadline_s <= 0:
            raise ValueError(f"deadline_s must be above 0, got {self.deadline_s}")
        if self.target_accuracy is not None and not 0.0 < self.target_accuracy <= 1.0:
            raise ValueError(f"target_accuracy must be above 0 and at most 1, got {self.target_accuracy}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be 0 to 2^32 - 1, got {self.seed}")


class TrainSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[train]`: how a board trains and how many bits a weight travel. Defaults: see docs/operate.md."""

    epochs: int = 3
    pretrain_epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 3e-3
    learning_rate_decay: float = 0.9
    bits_up: float = 0.08
    bits_down: float = 0.12
    max_bases: int = 4
    shift_pixels: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_bases"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("pretrain_epochs", "shift_pixels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "learning_rate_decay", "bits_up", "bits_down"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.max_bases > 8:
            raise ValueError(f"max_bases must be at most 8, got {self.max_bases}")


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[node]]`: one board. `port` is the ground's end; `key` is the file that both ends hold."""

    id: int
    name: str
    board: str
    link: str
    port: str
    key: str

    def __post_init__(self) -> None:
        if self.id not in NODE_IDS:
            raise ValueError(f"node id must be {NODE_IDS.start} to {NODE_IDS.stop - 1}, got {self.id}")
        if not self.port:
            raise ValueError("port must not be empty; give a device such as /dev/ttyUSB0 or udp://HOST:PORT")


class MissionFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of mission.toml, as written."""

    mission: MissionSection
    train: TrainSection = msgspec.field(default_factory=TrainSection)
    node: list[NodeSection] = msgspec.field(default_factory=list)


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One board of the mission, with its profiles loaded."""

    id: int
    name: str
    board: Board
    link: Link
    port: str
    key_path: Path


class Mission(msgspec.Struct, frozen=True, kw_only=True):
    """mission.toml, checked: profiles loaded, paths resolved against the mission's folder."""

    path: Path
    folder: Path
    rules: MissionSection
    train: TrainSection
    nodes: tuple[Node, ...]
    data_source: str
    data_folder: Path | None

    @property
    def database(self) -> Path:
        """The mission's SQLite file."""
        return self.folder / "mission.sqlite"


def load_mission(folder: Path) -> Mission:
    """Reads FOLDER/mission.toml.

    Raises ConfigError in one line that names file, key and value.
    """
    path = folder / MISSION_FILE
    if not path.exists():
        raise ConfigError(f"{path}: no such file; `groundstation init {folder}` makes one")
    file = read(path, MissionFile)
    rules = file.mission
    if not file.node:
        raise ConfigError(f"{path}: node: missing, and at least one [[node]] is required")
    for key in ("id", "name", "port"):
        seen: set[object] = set()
        for index, node in enumerate(file.node):
            value = getattr(node, key)
            if value in seen:
                raise ConfigError(f"{path}: node[{index}].{key} = {value!r}: used by another node")
            seen.add(value)
    if rules.select > len(file.node):
        raise ConfigError(
            f"{path}: mission.select = {rules.select}: only {len(file.node)} nodes are configured"
        )
    base = folder.resolve()
    nodes = tuple(
        Node(
            id=node.id,
            name=node.name,
            board=profile(path, f"node[{index}].board", node.board, load_board, base),
            link=profile(path, f"node[{index}].link", node.link, load_link, base),
            port=node.port,
            key_path=base / node.key,
        )
        for index, node in enumerate(file.node)
    )
    return Mission(
        path=path,
        folder=base,
        rules=rules,
        train=file.train,
        nodes=nodes,
        data_source=relative_source(rules.data, base),
        data_folder=base / rules.data_folder if rules.data_folder else None,
    )
