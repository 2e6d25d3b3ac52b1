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
from onboard.data.inspection import Levels, Shard
from onboard.inference.rules import DownlinkSection, InferConfig, InferSection, NodeFolder
from onboard.learn.networks import resolved
from onboard.learn.objectives import ClassLabel, Kind, Objective
from onboard.learn.training import Recipe
from onboard.link.ports.port import BadUrl
from onboard.link.ports.schemes import facts_of

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
    """Who this node is."""

    id: EndId
    """Number of the node, unique in the mission. 0 is the ground station, which may gossip too."""
    name: str
    """Name of the node: 1 to 64 letters, digits, `-` and `_`."""
    board: Text
    """Board profile: a name, or the path of a .toml file."""
    key: Text = "node.key"
    """Key file, the same at both ends, with mode 0600: 64 hexadecimal digits, or a few lines of them with an
    id (0 to 3) before each, the oldest first."""
    state: Text = "state"
    """Folder for everything that must survive a power cut."""

    def __post_init__(self) -> None:
        check_name(self.name)


class LinkSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """This end of the link with the ground station."""

    port: str
    """This end's port: `/dev/ttyUSB0`, `serial:/dev/ttyUSB0?baud=115200`, any pyserial URL,
    `kiss:/dev/ttyUSB0?port=0` or `kiss+tcp://HOST:PORT` (a TNC), `udp://HOST:PORT` (the other end), or
    `udp://?bind=HOST:PORT` (learns where the other end is; at one end only)."""
    profile: Text
    """Link profile: a name, or the path of a .toml file. Both ends of a link must have the same."""
    contacts: Text | None = None
    """Contact plan, a .toml file. Left out: the link is always up."""
    bytes_per_contact: Bytes | None = None
    """Quota of bytes that this end may send in one contact of the plan, framing included. Left out: no
    limit."""
    bytes_per_day: Bytes | None = None
    """Quota of bytes that this end may send in any 24 hours, framing included. Left out: no limit."""
    encrypt: bool = False
    """Whether frames are encrypted. Both ends must say the same."""

    def __post_init__(self) -> None:
        check_port(self.port)
        if self.bytes_per_contact is not None and self.contacts is None:
            raise ValueError("bytes_per_contact: needs contacts, the plan that says when one begins")


class GossipSection(Recipe, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A node with this table trains for itself and mixes its model with its neighbours', without a server.

    `model`, `seed`, `sparsity`, `values` and the classes are the same at all nodes. A node whose classes,
    `model`, `seed` or `sparsity` differ is refused by its neighbours (`exchange-refused`)."""

    model: Text = "lenet5"
    """Name of a shipped network, or the folder of another one (`groundstation export`), seen from this
    file."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Seed of the first weights, of the masks, and of the order of images."""
    sparsity: Annotated[float, Meta(ge=2**-16, le=1)] = 0.1
    """Share p of the model that an exchange carries. 1 is D-PSGD."""
    values: Literal["fp32", "fp16", "int8", "alq"] = "fp32"
    """Form in which this node's values travel. A neighbour may send another form."""
    every: Annotated[int, Meta(ge=1, le=2**31)] = 1
    """Batches of training between two exchanges."""
    patience_s: Seconds = 10.0
    """Time that training waits for an exchange. A node whose epochs are done ends after this much contact
    with each neighbour in which it has not heard it."""
    trains: bool = True
    """With `false` the node needs no `[data]`: it holds the first model, answers the exchanges that its
    neighbours open, and mixes until it is stopped, as a ground station does."""
    epochs: Annotated[int, Meta(ge=0, le=2**31)] = 0
    """Passes over the node's images. 0 is for ever."""


class NeighbourSection(LinkSection, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The link with one neighbour that this node gossips with: one table for each, at both ends of the link.

    The end with the lower id sends at the profile's downlink rate."""

    id: EndId
    """Number of the neighbour."""
    key: Text
    """Key file of this link, the same at both ends and of no other link."""
    weight: Share
    """Weight W_ij of the mixing, the same at both ends; all weights of a node sum to 1 at most. 1 / (1 + the
    larger of the two nodes' numbers of neighbours) suits any network: a third on a ring."""
    wait: bool = True
    """Whether training waits for exchanges with this neighbour, `patience_s` at most. `false` is for a ground
    station. A neighbour out of contact is not waited for."""


class DataSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The images that this node trains on."""

    source: Text = "npz:data.npz"
    """Where the images are: `npz:PATH` (arrays `x` uint8, `y`, and `classes`, the names, if it has any),
    `folder:PATH` (one subfolder of images a class, or the folders `images` and `masks`), `digits`, `mnist`,
    `eurosat` (the subset of 2,500 images where it is in the folder), `eurosat-full`, or `eurosat-water` (its
    photographs with masks)."""
    task: Kind = "classify"
    """What the mission's model does, as `groundstation init` writes it: `classify`, `segment`, `regress` or
    `reconstruct`. The images are looked at by it before a mission's task comes; then the model's own holds.
    Of a node that gossips: its model's."""
    ignore: ClassLabel | None = None
    """Label of pixels that count for nothing, with `segment`. Left out: all pixels count."""
    folder: Text | None = None
    """Data folder of `mnist` and `eurosat`. Left out: SPACEDML_DATA."""
    shape: Shape = (1, 28, 28)
    """Channels, height and width that the model takes."""
    rows: tuple[int, int] | None = None
    """First row of the set that this node has, and the one after its last. No others are read into memory.
    Left out: all."""
    validation: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    """Share of the images that is held out of training, always the same ones. What a round's training has
    made is judged on them, and the ground is told with the update."""
    classes: Classes | None = None
    """Names of the mission's classes in its order, as in mission.toml; the set's own are brought to them by
    name. Of a node that gossips: the same at all nodes. Left out: the set's own."""
    channel_means: tuple[Annotated[float, Meta(ge=0, le=255)], ...] | None = None
    """Mean of each channel in the mission's test data, which `groundstation init` measures; the node's pixels
    are compared with it. Left out: none."""
    channel_stds: tuple[Annotated[float, Meta(ge=0, le=128)], ...] | None = None
    """Standard deviation of each channel, likewise; give both or none. Left out: none."""

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
    """What training may take of the board."""

    cpu_share: Share | None = None
    """Share of one CPU that training takes, held by sleeping between steps. Left out: the board profile's."""
    memory_mb: Annotated[int, Meta(ge=1, le=2**24)] | None = None
    """Memory that the agent and the process that trains for it may fill with data together; beyond it the
    training fails and the agent lives on. Left out: the board profile's."""
    checkpoint_s: Seconds = 30.0
    """Least time between two checkpoints. A board takes them after any step. A node that gossips takes them
    at the end of an epoch, after an exchange if it does not train, and when the log of its exchanges has
    grown by four times the checkpoint's size."""


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of NODE.toml, as written."""

    node: NodeSection
    link: LinkSection | None = None
    gossip: GossipSection | None = None
    neighbour: tuple[NeighbourSection, ...] = ()
    data: DataSection = msgspec.field(default_factory=DataSection)
    budget: BudgetSection = msgspec.field(default_factory=BudgetSection)
    infer: InferSection | None = None
    downlink: DownlinkSection | None = None

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
        if self.gossip is not None and self.infer is not None:
            raise ValueError("infer: is for a board with a link to the ground, which deploys its model")
        if self.downlink is not None and self.infer is None:
            raise ValueError("downlink: needs [infer], whose answers it sends")
        wanted = self.downlink.classes if self.downlink is not None else None
        if odd := [name for name in wanted or () if name not in (self.data.classes or (name,))]:
            raise ValueError(f"downlink.classes: {odd[0]!r} is none of data.classes")
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
    shard: Shard
    """The images that it trains on."""
    cpu_share: float
    memory_bytes: int
    checkpoint_s: float

    @property
    def node_folder(self) -> NodeFolder:
        beside = str(self.path.resolve().parent)
        return NodeFolder(state=str(self.state), beside=beside, classes=self.shard.classes)


class LinkEnd(msgspec.Struct, frozen=True, kw_only=True):
    """This end of one link, checked; `id` is the other end's. `weight` and `wait` are a neighbour's."""

    id: int = GROUND
    link: Link
    port: str
    key_path: Path
    contacts_path: Path | None = None
    bytes_per_contact: float = math.inf
    bytes_per_day: float = math.inf
    encrypt: bool = False
    weight: float = 0.0
    wait: bool = False


class NodeConfig(OwnConfig, frozen=True, kw_only=True):
    """NODE.toml of a node with a link to the ground."""

    ground: LinkEnd
    infer: InferConfig | None = None


class GossipConfig(OwnConfig, frozen=True, kw_only=True):
    """NODE.toml of a node that gossips; `TrainGraph.load` takes its `model`."""

    gossip: GossipSection
    model: str
    neighbours: tuple[LinkEnd, ...]

    def holding(self) -> GossipConfig:
        """Returns the same node without training: it answers its neighbours with the model that it has."""
        return msgspec.structs.replace(self, gossip=msgspec.structs.replace(self.gossip, trains=False))


def ends_of(config: NodeConfig | GossipConfig) -> dict[str, LinkEnd]:
    """Returns the ends of a node's links by the tables of NODE.toml that describe them."""
    if isinstance(config, NodeConfig):
        return {"link": config.ground}
    return {f"neighbour[{index}]": each for index, each in enumerate(config.neighbours)}


def load_node(path: Path, *, port: str | None = None) -> NodeConfig:
    """Reads NODE.toml of a node with a link to the ground."""
    config = load_own(path, port=port)
    if not isinstance(config, NodeConfig):
        raise ConfigError(f"{path}: link: missing, and it is required here")
    return config


def load_own(path: Path, *, port: str | None = None) -> NodeConfig | GossipConfig:
    """Reads NODE.toml of either kind of node; `port` replaces that of the link to the ground. Raises
    ConfigError in one line with file, key and value."""
    file = read(path, NodeFile)
    if file.gossip is not None and port is not None:
        raise ConfigError(f"--port {port!r}: a node that gossips has a port for each neighbour, in its file")
    if port is not None:
        try:
            check_port(port)
        except ValueError as error:
            raise ConfigError(f"--port {port!r}: {str(error).removeprefix('port: ')}") from None
    base = path.resolve().parent
    ends = tuple(
        _end(path, f"neighbour[{index}]", each, each.key) for index, each in enumerate(file.neighbour)
    )
    if file.link is not None:
        ground = _end(path, "link", file.link, file.node.key)
        ground = ground if port is None else msgspec.structs.replace(ground, port=port)
        return NodeConfig(**_own(path, file), ground=ground, infer=_infer(file, base))
    assert file.gossip is not None, "the file's own check"
    return GossipConfig(
        **_own(path, file), gossip=file.gossip, model=resolved(file.gossip.model, base), neighbours=ends
    )


def _end(path: Path, table: str, link: LinkSection, key: str) -> LinkEnd:
    base = path.resolve().parent
    if link.encrypt:
        check_cipher(f"{path}: {table}.encrypt = true")
    end = LinkEnd(
        link=profile(path, f"{table}.profile", link.profile, load_link, base),
        port=link.port, key_path=base / key, encrypt=link.encrypt,
        contacts_path=base / link.contacts if link.contacts else None,
        bytes_per_contact=link.bytes_per_contact or math.inf,
        bytes_per_day=link.bytes_per_day or math.inf,
    )  # fmt: skip
    if isinstance(link, NeighbourSection):
        return msgspec.structs.replace(end, id=link.id, weight=link.weight, wait=link.wait)
    return end


def _infer(file: NodeFile, base: Path) -> InferConfig | None:
    said = file.infer
    if said is None:
        return None
    return InferConfig(
        watch=base / said.watch, every_s=said.every_s, confidence=said.confidence,
        memory_bytes=said.memory_mb << 20, keep_bytes=said.keep_mb << 20, downlink=file.downlink,
    )  # fmt: skip


def _own(path: Path, file: NodeFile) -> dict[str, Any]:
    base, budget, data = path.resolve().parent, file.budget, file.data
    board = profile(path, "node.board", file.node.board, load_board, base)
    memory_bytes = board.agent_memory_bytes if budget.memory_mb is None else budget.memory_mb * 2**20
    if file.infer is not None:
        if (left_bytes := memory_bytes - (file.infer.memory_mb << 20)) <= 0:
            raise ConfigError(
                f"{path}: infer.memory_mb = {file.infer.memory_mb}: leaves nothing of the budget of "
                f"{memory_bytes >> 20} MB for training"
            )
        memory_bytes = left_bytes
    levels = None
    if data.channel_means is not None and data.channel_stds is not None:
        levels = Levels(means=data.channel_means, stds=data.channel_stds)
    shard = Shard(
        source=relative_source(data.source, base),
        folder=str(base / data.folder) if data.folder else None,
        shape=data.shape, rows=data.rows, classes=data.classes, levels=levels,
        tasked=file.gossip is None, budget_bytes=memory_bytes,
        objective=Objective(kind=data.task, ignore=data.ignore), copies=str(base / file.node.state),
        validation=data.validation,
    )  # fmt: skip
    return {
        "path": path, "id": file.node.id, "name": file.node.name, "state": base / file.node.state,
        "board": board, "shard": shard, "memory_bytes": memory_bytes, "checkpoint_s": budget.checkpoint_s,
        "cpu_share": board.cpu_share if budget.cpu_share is None else budget.cpu_share,
    }  # fmt: skip


def relative_source(source: str, base: Path) -> str:
    """Resolves `npz:` and `folder:` paths against the folder of the file that names them."""
    scheme, colon, where = source.partition(":")
    if colon and scheme in ("npz", "folder"):
        return f"{scheme}:{base / where}"
    return source


def check_name(name: str) -> None:
    """Raises ValueError for a node name that cannot name a folder."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ValueError("name: must be 1 to 64 letters, digits, - and _")


def check_classes(names: Classes | None) -> None:
    """Raises ValueError if a class name is there twice."""
    for index, name in enumerate(names or ()):
        if name in (names or ())[:index]:
            raise ValueError(f"classes: {name!r} is there twice")


def check_port(port: str) -> None:
    """Raises ValueError unless `onboard.link.ports.schemes.open_port` takes the URL."""
    if not port:
        raise ValueError("port: must not be empty; give a device such as /dev/ttyUSB0 or udp://HOST:PORT")
    try:
        facts_of(port)
    except BadUrl as error:
        raise ValueError(f"port: {error}") from None


def check_cipher(where: str) -> None:
    """Raises ConfigError, led by `where`, if the package that encrypts is not installed."""
    try:
        import onboard.wire.security.cipher  # noqa: F401 - loaded only where it is needed
    except ImportError as error:
        raise ConfigError(f"{where}: {unusable('cryptography', error)}") from None


def profile(path: Path, key: str, name: str, load: Any, base: Path) -> Any:
    """Loads a profile by name, or by the path of a TOML file relative to `base`."""
    try:
        return load(str(base / name) if name.endswith(".toml") else name)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: {key} = {name!r}: {error}") from None
