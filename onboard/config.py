"""A node's configuration: every mistake in it is one line that names the file, the key and the value.

`read` serves every TOML file that a person edits: the node's here, the mission's on the ground.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hw_profiles import Board, Link, load_board, load_link

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T", bound=msgspec.Struct)

NODE_IDS = range(1, 255)  # 0 is the ground station, 255 is broadcast (the frame's address byte)


class ConfigError(ValueError):
    """A configuration that cannot be used; the text is one line: file, key, value, what would be right."""


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[node]`: who this node is. `key` and `state` are paths relative to the file."""

    id: int
    name: str
    board: str
    key: str = "node.key"
    state: str = "state"

    def __post_init__(self) -> None:
        if self.id not in NODE_IDS:
            raise ValueError(f"node id must be {NODE_IDS.start} to {NODE_IDS.stop - 1}, got {self.id}")
        if not self.name:
            raise ValueError("node name must not be empty")


class LinkSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[link]`: the way to the ground. `port` is a device, any pyserial URL, or `udp://HOST:PORT`."""

    port: str
    profile: str

    def __post_init__(self) -> None:
        if not self.port:
            raise ValueError("port must not be empty; give a device such as /dev/ttyUSB0 or udp://HOST:PORT")


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[data]`: the local shard.

    `source` is npz:PATH, folder:PATH, digits, mnist or eurosat; `folder` the data folder of the named sets;
    `shape` what a model takes (C, H, W); `rows` the first row and the one after the last, all if left out.
    """

    source: str = "npz:data.npz"
    folder: str | None = None
    shape: tuple[int, int, int] = (1, 28, 28)
    rows: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"shape must be three sizes of at least 1, got {list(self.shape)}")
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise ValueError(f"rows must be [first, end] with first below end, got {list(self.rows)}")


class BudgetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[budget]`: what training may take; a key left out comes from the board's profile."""

    cpu_share: float | None = None
    memory_mb: int | None = None
    checkpoint_s: float = 30.0

    def __post_init__(self) -> None:
        if self.cpu_share is not None and not 0.0 < self.cpu_share <= 1.0:
            raise ValueError(f"cpu_share must be above 0 and at most 1, got {self.cpu_share}")
        if self.memory_mb is not None and self.memory_mb < 1:
            raise ValueError(f"memory_mb must be at least 1, got {self.memory_mb}")
        if self.checkpoint_s <= 0:
            raise ValueError(f"checkpoint_s must be above 0, got {self.checkpoint_s}")


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of NODE.toml, as written."""

    node: NodeSection
    link: LinkSection
    data: DataSection = msgspec.field(default_factory=DataSection)
    budget: BudgetSection = msgspec.field(default_factory=BudgetSection)


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """NODE.toml, checked: profiles loaded, paths resolved against the file's folder, defaults filled in."""

    path: Path
    id: int
    name: str
    board: Board
    link: Link
    port: str
    key_path: Path
    state: Path
    data_source: str
    data_folder: Path | None
    data_shape: tuple[int, int, int]
    data_rows: range | None
    cpu_share: float
    memory_bytes: int
    checkpoint_s: float


def load_node(path: Path, *, port: str | None = None) -> NodeConfig:
    """Reads NODE.toml. `port` replaces the file's, so that a cable can be moved without an editor.

    Raises ConfigError in one line that names file, key and value.
    """
    file = read(path, NodeFile)
    base = path.resolve().parent
    board = profile(path, "node.board", file.node.board, load_board, base)
    link = profile(path, "link.profile", file.link.profile, load_link, base)
    budget = file.budget
    return NodeConfig(
        path=path,
        id=file.node.id,
        name=file.node.name,
        board=board,
        link=link,
        port=port or file.link.port,
        key_path=base / file.node.key,
        state=base / file.node.state,
        data_source=relative_source(file.data.source, base),
        data_folder=base / file.data.folder if file.data.folder else None,
        data_shape=file.data.shape,
        data_rows=range(*file.data.rows) if file.data.rows else None,
        cpu_share=board.cpu_share if budget.cpu_share is None else budget.cpu_share,
        memory_bytes=board.agent_memory_bytes if budget.memory_mb is None else budget.memory_mb * 2**20,
        checkpoint_s=budget.checkpoint_s,
    )


def relative_source(source: str, base: Path) -> str:
    """`npz:` and `folder:` paths are meant relative to the file that names them."""
    scheme, colon, where = source.partition(":")
    if colon and scheme in ("npz", "folder"):
        return f"{scheme}:{base / where}"
    return source


def read(path: Path, kind: type[T]) -> T:
    """Reads a TOML file into a Struct.

    Raises ConfigError: a file that is missing, not TOML, with an unknown key, a missing one, or a value of
    the wrong type or range.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error), raw)}") from None


def _explain(message: str, raw: Any) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.node.id`" as "node.id = 'x': expected int, got str"."""
    text, _, where = message.partition(" - at ")
    text = text.replace("`", "")
    steps = re.findall(r"\.([\w-]+)|\[(\d+)\]", where.strip("`").removeprefix("$"))
    key = "".join(f".{name}" if name else f"[{index}]" for name, index in steps).lstrip(".")
    if unknown := re.fullmatch(r"Object contains unknown field (.+)", text):
        return f"{key + '.' if key else ''}{unknown[1]}: unknown key"
    if missing := re.fullmatch(r"Object missing required field (.+)", text):
        return f"{key + '.' if key else ''}{missing[1]}: missing, and it is required"
    value = raw
    for name, index in steps:
        value = value[name] if name else value[int(index)]
    shown = "" if isinstance(value, dict | list) else f" = {value!r}"
    return f"{key}{shown}: {text[:1].lower()}{text[1:]}"


def profile(path: Path, key: str, name: str, load: Any, base: Path) -> Any:
    """A profile by its name, or by the path of a TOML file relative to `base`."""
    try:
        return load(str(base / name) if name.endswith(".toml") else name)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: {key} = {name!r}: {error}") from None
