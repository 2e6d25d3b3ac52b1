"""A node's configuration, NODE.toml, checked: profiles are loaded, paths resolved, defaults filled in."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from hw_profiles import Board, Link, load_board, load_link
from onboard.console.extras import unusable
from onboard.console.toml import ConfigError, read
from onboard.data.levels import Levels
from onboard.link import BadUrl, facts_of

GROUND = 0  # the ground station's node number, in the frame's address byte
NODE_IDS = range(1, 255)  # of boards; 255 is broadcast

# A range with both ends: it refuses TOML's nan and inf too.
NodeId = Annotated[int, Meta(ge=NODE_IDS.start, le=NODE_IDS.stop - 1)]
EndId = Annotated[int, Meta(ge=0, le=NODE_IDS.stop - 1)]  # the ground too
Share = Annotated[float, Meta(gt=0, le=1)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]  # as far as a task's deadline goes on the wire
Bytes = Annotated[int, Meta(ge=4096, le=2**50)]  # of an allowance: less has no room for a frame and answers
Text = Annotated[str, Meta(min_length=1)]
Shape = tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]]


Classes = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(min_length=1)]


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[node]`: who this node is. `key` and `state` are paths relative to the file."""

    id: EndId
    name: str
    board: Text
    key: Text = "node.key"
    state: Text = "state"

    def __post_init__(self) -> None:
        check_name(self.name)


class LinkSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[link]`: this end of the link with the ground. `port` is a device, any pyserial URL, or
    `udp://HOST:PORT`; `contacts` the file with the contact plan, none for a link that is always up;
    `bytes_per_*` this end's allowance; `encrypt` whether frames are encrypted, which both ends must do or
    neither."""

    port: str
    profile: Text
    contacts: Text | None = None
    bytes_per_contact: Bytes | None = None
    bytes_per_day: Bytes | None = None
    encrypt: bool = False

    def __post_init__(self) -> None:
        check_port(self.port)
        if self.bytes_per_contact is not None and self.contacts is None:
            raise ValueError("bytes_per_contact: needs contacts, the plan that says when one begins")


class GossipSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[gossip]`: the node trains for itself and mixes its model with its neighbours', without a server.

    The first four, and the weight of each `[[neighbour]]`, are the same at all nodes. `sparsity` is p, the
    share of the coordinates in an exchange, one of which comes every `every` batches and is waited for
    `patience_s`. A node that does not train only answers its neighbours. The others are as in
    `learn.descent.Recipe`. `epochs` 0 is for ever.
    """

    model: Text = "lenet5"
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    sparsity: Annotated[float, Meta(ge=2**-16, le=1)] = 0.1  # as a mask's share counts it
    values: Literal["fp32", "fp16", "int8", "alq"] = "fp32"
    every: Annotated[int, Meta(ge=1, le=2**31)] = 1
    patience_s: Seconds = 10.0
    trains: bool = True
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 32
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    drops: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    cosine_epochs: Annotated[int, Meta(ge=0)] = 0
    shift_pixels: Annotated[int, Meta(ge=0, le=255)] = 0
    distortion: Annotated[float, Meta(ge=0, le=4)] = 0.0
    epochs: Annotated[int, Meta(ge=0, le=2**31)] = 0

    def __post_init__(self) -> None:
        if self.cosine_epochs and self.drops:
            raise ValueError("cosine_epochs: not together with drops")


class NeighbourSection(LinkSection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[neighbour]]`: the link with one of those that this node gossips with. `key` is that of the edge, the
    same at both ends, and so is `weight`, W_ij. `wait`: whether training waits for it."""

    id: EndId
    key: Text
    weight: Share
    wait: bool = True


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[data]`: the local shard.

    `source` is one of `onboard.data.sources`; `folder` the data folder of the named sets;
    `shape` what a model takes (C, H, W); `rows` the first row and the one after the last, all if left out;
    `classes` the mission's class names in its order; `channel_means` and `channel_stds` what pixels
    of its test data are like.
    """

    source: Text = "npz:data.npz"
    folder: Text | None = None
    shape: Shape = (1, 28, 28)
    rows: tuple[int, int] | None = None
    classes: Classes | None = None
    channel_means: tuple[Annotated[float, Meta(ge=0, le=255)], ...] | None = None
    channel_stds: tuple[Annotated[float, Meta(ge=0, le=128)], ...] | None = None

    def __post_init__(self) -> None:
        check_classes(self.classes)
        if (self.channel_means is None) != (self.channel_stds is None):
            raise ValueError("channel_means: needs channel_stds, and the other way round; give both or none")
        for key in ("channel_means", "channel_stds"):
            if (given := getattr(self, key)) is not None and len(given) != self.shape[0]:
                raise ValueError(
                    f"{key}: must be one for each of {self.shape[0]} channels, got {list(given)}"
                )
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise ValueError(f"rows: must be [first, end] with first below end, got {list(self.rows)}")


class BudgetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[budget]`: what training may take; a key left out comes from the board's profile."""

    cpu_share: Share | None = None
    memory_mb: Annotated[int, Meta(ge=1, le=2**24)] | None = None
    checkpoint_s: Seconds = 30.0


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of NODE.toml, as written."""

    node: NodeSection
    link: LinkSection | None = None
    gossip: GossipSection | None = None
    neighbour: tuple[NeighbourSection, ...] = ()
    data: DataSection = msgspec.field(default_factory=DataSection)
    budget: BudgetSection = msgspec.field(default_factory=BudgetSection)

    def __post_init__(self) -> None:
        ids = [each.id for each in self.neighbour]
        if self.gossip is None and self.node.id not in NODE_IDS:
            raise ValueError("node.id: is the ground's, and a board is 1 to 254")
        if self.gossip is None and ids:
            raise ValueError("gossip: missing, and it is required where there is a neighbour")
        if self.gossip is None and self.link is None:
            raise ValueError("link: missing, and it is required without gossip")
        if self.gossip is not None and self.link is not None:
            raise ValueError("link: a node gossips or has a link to the ground, not both")
        if self.gossip is not None and not ids:
            raise ValueError("neighbour: missing, and gossip needs one at least")
        for index, number in enumerate(ids):
            if number == self.node.id or number in ids[:index]:
                raise ValueError(f"neighbour[{index}].id: must be another node, each once")
        if (total := sum(each.weight for each in self.neighbour)) > 1 + 1e-9:
            raise ValueError(f"neighbour: the weights sum to {total:g}, must be 1 at most")


class OwnConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What NODE.toml says of the node itself, checked, with paths resolved against the file's folder."""

    path: Path
    id: int
    name: str
    board: Board
    state: Path
    data_source: str
    data_folder: Path | None
    data_shape: tuple[int, int, int]
    data_rows: range | None
    data_classes: tuple[str, ...] | None = None
    data_levels: Levels | None = None
    cpu_share: float
    memory_bytes: int
    checkpoint_s: float


class LinkEnd(msgspec.Struct, frozen=True, kw_only=True):
    """This end of one link, checked; `link` is its profile."""

    link: Link
    port: str
    key_path: Path
    contacts_path: Path | None = None
    bytes_per_contact: float = math.inf
    bytes_per_day: float = math.inf
    encrypt: bool = False


class NodeConfig(OwnConfig, frozen=True, kw_only=True):
    """NODE.toml of a node with a link to the ground."""

    ground: LinkEnd


class Neighbour(LinkEnd, frozen=True, kw_only=True):
    """One `[[neighbour]]`, checked."""

    id: int
    weight: float
    wait: bool


class GossipConfig(OwnConfig, frozen=True, kw_only=True):
    """NODE.toml of a node that gossips. `model`: as `TrainGraph.load` takes it."""

    gossip: GossipSection
    model: str
    neighbours: tuple[Neighbour, ...]

    def holding(self) -> GossipConfig:
        """The same node without its training: it answers its neighbours, with the model that it has."""
        return msgspec.structs.replace(self, gossip=msgspec.structs.replace(self.gossip, trains=False))


def load_own(path: Path, *, port: str | None = None) -> NodeConfig | GossipConfig:
    """Reads NODE.toml of either sort of node; `port` as in `load_node`. Raises ConfigError."""
    if read(path, NodeFile).gossip is None:
        return load_node(path, port=port)
    if port is not None:
        raise ConfigError(f"--port {port!r}: a node that gossips has a port for each neighbour, in its file")
    return load_gossip(path)


def load_gossip(path: Path) -> GossipConfig:
    """Reads NODE.toml of a node that gossips. Raises ConfigError in one line that names file, key, value."""
    file = read(path, NodeFile)
    if file.gossip is None:
        raise ConfigError(f"{path}: gossip: missing, and it is required here")
    neighbours = tuple(
        Neighbour(id=each.id, weight=each.weight, wait=each.wait, **_link(path, table, each, each.key))
        for table, each in ((f"neighbour[{index}]", each) for index, each in enumerate(file.neighbour))
    )
    model = file.gossip.model
    model = str(path.resolve().parent / model) if model.endswith(".onnx") else model
    return GossipConfig(**_own(path, file), gossip=file.gossip, model=model, neighbours=neighbours)


def load_node(path: Path, *, port: str | None = None) -> NodeConfig:
    """Reads NODE.toml of a node with a link to the ground. `port` replaces the file's, so that a cable can be
    moved without an editor.

    Raises ConfigError in one line that names file, key and value.
    """
    file = read(path, NodeFile)
    if file.link is None:
        raise ConfigError(f"{path}: link: missing, and it is required here")
    if port is not None:
        try:
            check_port(port)
        except ValueError as error:
            raise ConfigError(f"--port {port!r}: {str(error).removeprefix('port: ')}") from None
    link = _link(path, "link", file.link, file.node.key)
    if port is not None:
        link["port"] = port
    return NodeConfig(**_own(path, file), ground=LinkEnd(**link))


def _link(path: Path, table: str, link: LinkSection, key: str) -> dict[str, Any]:
    """The fields of LinkEnd. Raises ConfigError."""
    base = path.resolve().parent
    if link.encrypt:
        check_cipher(f"{path}: {table}.encrypt = true")
    return {
        "link": profile(path, f"{table}.profile", link.profile, load_link, base),
        "port": link.port,
        "key_path": base / key,
        "contacts_path": base / link.contacts if link.contacts else None,
        "bytes_per_contact": link.bytes_per_contact or math.inf,
        "bytes_per_day": link.bytes_per_day or math.inf,
        "encrypt": link.encrypt,
    }


def _own(path: Path, file: NodeFile) -> dict[str, Any]:
    """The fields of OwnConfig. Raises ConfigError."""
    base, budget = path.resolve().parent, file.budget
    board = profile(path, "node.board", file.node.board, load_board, base)
    return {
        "path": path,
        "id": file.node.id,
        "name": file.node.name,
        "board": board,
        "state": base / file.node.state,
        "data_source": relative_source(file.data.source, base),
        "data_folder": base / file.data.folder if file.data.folder else None,
        "data_shape": file.data.shape,
        "data_rows": range(*file.data.rows) if file.data.rows else None,
        "data_classes": file.data.classes,
        "data_levels": _levels(file.data),
        "cpu_share": board.cpu_share if budget.cpu_share is None else budget.cpu_share,
        "memory_bytes": board.agent_memory_bytes if budget.memory_mb is None else budget.memory_mb * 2**20,
        "checkpoint_s": budget.checkpoint_s,
    }


def _levels(section: DataSection) -> Levels | None:
    if section.channel_means is None or section.channel_stds is None:
        return None
    return Levels(means=section.channel_means, stds=section.channel_stds)


def relative_source(source: str, base: Path) -> str:
    """`npz:` and `folder:` paths are meant relative to the file that names them."""
    scheme, colon, where = source.partition(":")
    if colon and scheme in ("npz", "folder"):
        return f"{scheme}:{base / where}"
    return source


def check_name(name: str) -> None:
    """A node's name becomes a folder's. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError("name: must be 1 to 64 letters, digits, - and _")


def check_classes(names: Classes | None) -> None:
    """Names of classes tell them apart. Raises ValueError."""
    for index, name in enumerate(names or ()):
        if name in (names or ())[:index]:
            raise ValueError(f"classes: {name!r} is there twice")


def check_port(port: str) -> None:
    """Whether `port` is a URL that `onboard.link.open_port` takes. Raises ValueError."""
    if not port:
        raise ValueError("port: must not be empty; give a device such as /dev/ttyUSB0 or udp://HOST:PORT")
    try:
        facts_of(port)
    except BadUrl as error:
        raise ValueError(f"port: {error}") from None


def check_cipher(where: str) -> None:
    """Raises ConfigError, which begins with `where`, if the package that encrypts is not installed."""
    try:
        import onboard.wire.security.cipher  # noqa: F401 - loaded only where it is needed
    except ImportError as error:
        raise ConfigError(f"{where}: {unusable('cryptography', error)}") from None


def profile(path: Path, key: str, name: str, load: Any, base: Path) -> Any:
    """A profile by its name, or by the path of a TOML file relative to `base`."""
    try:
        return load(str(base / name) if name.endswith(".toml") else name)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: {key} = {name!r}: {error}") from None
