"""A mission's configuration, `mission.toml`: what is trained, by whom, over which ports, and when to stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from hw_profiles import Board, load_board, load_link
from onboard.config import (
    NODE_IDS,
    Bytes,
    Classes,
    LinkEnd,
    NodeId,
    Seconds,
    Share,
    Text,
    check_cipher,
    check_classes,
    check_name,
    check_port,
    profile,
    relative_source,
)
from onboard.console.toml import ConfigError, read
from onboard.learn.federated.clipping import Bounds
from onboard.learn.federated.rounds import RULES, check_rule
from onboard.learn.networks import resolved
from onboard.learn.objectives import Metric
from onboard.learn.training import Training as TrainSection

MISSION_FILE = "mission.toml"
DEFAULT_BOUNDS = Bounds()
SELECT, QUORUM = 3, 2  # unless the file says otherwise, and where there are so many boards


class MissionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model, the test data, the rule of a round and the rule to stop."""

    name: Text
    """Name of the mission, free text."""
    model: Text = "lenet5"
    """Name of a shipped network, or the folder of another one, seen from this file. `groundstation init`
    copies it to `models/NAME`. A board that lacks it gets it before it is asked."""
    data: Text = "digits"
    """Test data, on which every round's model is judged, and its running statistics, if it has any, are
    measured."""
    data_folder: Text | None = None
    """Data folder of `mnist` and `eurosat`. Left out: SPACEDML_DATA."""
    classes: Classes | None = None
    """Names of the classes in the order of their labels; `groundstation init` writes them here and into each
    NODE.toml. Left out: the test data's."""
    rounds: Annotated[int, Meta(ge=1, le=0xFFFE)] = 10  # the wire's 16 bits, less one for the last model
    """Rounds at most."""
    target: Annotated[float, Meta(gt=0)] | None = None
    """Value on the test data at which the mission stops: the least accuracy or mean IoU, 0 to 1, or the
    largest RMSE, by what the model's task is judged by. Left out: none."""
    target_accuracy: Share | None = None
    """What `target` was called before there were other tasks than `classify`. Left out: none."""
    select: Annotated[int, Meta(ge=1, le=len(NODE_IDS))] | None = None
    """Number K of boards that are asked in a round, at most the number of nodes. Left out: 3, or all where
    there are fewer."""
    quorum: Annotated[int, Meta(ge=1, le=len(NODE_IDS))] | None = None
    """Answers that end a round, at most `select`. Left out: 2, or all that are asked where these are
    fewer."""
    deadline_s: Seconds = 900.0
    """Time after which a round ends with the answers that it has. A round without an answer is asked
    again."""
    staleness: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Exponent of the weight (1 + rounds late)^-staleness with which an update that comes in a later round is
    merged. Left out: a late update is discarded."""
    clip: Annotated[float, Meta(ge=0, le=1e6)] = DEFAULT_BOUNDS.clip
    """Distance that a board's update may move the model, in multiples of the round's median. What is longer
    is scaled down; 0 leaves it."""
    clip_samples: Annotated[float, Meta(ge=0, le=1e6)] = DEFAULT_BOUNDS.clip_samples
    """Samples that a board may count for in the average, in multiples of the round's median. 0 takes as many
    as it says."""
    max_samples: Annotated[int, Meta(ge=1, le=0xFFFFFFFF)] | None = None
    """Samples (images) that a board counts for at most, whatever the others say. Left out: no limit."""
    leave_out: bool = DEFAULT_BOUNDS.leave_out
    """Of three answers or more, whether the only one that points against the sum of the others counts for
    nothing, and the only one that shares nothing with it counts half."""
    rule: Annotated[str, Meta(extra={"rows": RULES})] = "mean"
    """What the updates of a round come to: their mean, weighted by samples, or their median at each weight,
    where all boards count alike, or their `sparse-mean`, which moves further what few boards moved. The
    median is for `fedavg`: with few bits most updates leave most weights out, and then so does their median.
    It takes the memory of all updates of a round. The sparse mean is for `spacedml-fast` in many rounds of
    small moves; where moves are long it goes too far."""
    contacts: Text | None = None
    """Contact plan of all nodes, a .toml file. Left out: all links are always up."""
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    """Seed of the first weights (both ends draw them), the choice of boards, and the order of images."""

    def __post_init__(self) -> None:
        check_classes(self.classes)
        if self.target is not None and self.target_accuracy is not None:
            raise ValueError("target_accuracy: not together with target, which says the same")

    def target_of(self, metric: Metric) -> float | None:
        """Returns the value of the model's metric at which the mission stops. Raises ValueError for one that
        cannot be of this metric."""
        if self.target_accuracy is not None and metric.key != "accuracy":
            raise ValueError(f"mission.target_accuracy: the model is judged by {metric.title}: use target")
        if self.target is not None and metric.is_share and self.target > 1:
            raise ValueError(f"mission.target = {self.target:g}: must be at most 1, as it is {metric.title}")
        return self.target_accuracy if self.target is None else self.target

    @property
    def bounds(self) -> Bounds:
        return msgspec.convert(self, Bounds, from_attributes=True)


class BoardSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One board of the mission."""

    id: NodeId
    """Number of the node, as in the board's NODE.toml."""
    name: str
    """Name of the node, as in the board's NODE.toml."""
    board: Text
    """Board profile: a name, or the path of a .toml file."""
    link: Text
    """Link profile; it must be the board's."""
    port: str
    """The ground's end of the link, in the same forms as a board's `link.port`."""
    key: Text
    """The ground's copy of the board's key."""
    bytes_per_contact: Bytes | None = None
    """Quota of bytes that the ground may send to this board in one contact, framing included. Left out: no
    limit."""
    bytes_per_day: Bytes | None = None
    """Quota of bytes that the ground may send to this board in any 24 hours. Left out: no limit."""
    encrypt: bool = False
    """Whether frames are encrypted, as in the board's NODE.toml."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_port(self.port)


class MissionFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of mission.toml, as written."""

    mission: MissionSection
    train: TrainSection = msgspec.field(default_factory=TrainSection)
    node: Annotated[list[BoardSection], Meta(min_length=1)]

    def __post_init__(self) -> None:
        for key in ("id", "name", "port"):
            seen: set[object] = set()
            for index, node in enumerate(self.node):
                value = getattr(node, key)
                if value in seen:
                    raise ValueError(f"node[{index}].{key}: used by another node")
                seen.add(value)
        for index, node in enumerate(self.node):
            if node.bytes_per_contact is not None and self.mission.contacts is None:
                raise ValueError(
                    f"node[{index}].bytes_per_contact: needs mission.contacts, which says when one begins"
                )
        try:
            check_rule(self.mission.rule, self.train.method, sends_whole=self.train.rule.sends_whole)
        except ValueError as error:
            raise ValueError(f"mission.{error}") from None
        count = len(self.node)
        if self.select > count:
            raise ValueError(
                f"mission.select: must be at most the number of nodes ({count}), got {self.select}"
            )
        if self.quorum > self.select:
            raise ValueError(f"mission.quorum: must be at most select ({self.select}), got {self.quorum}")

    @property
    def select(self) -> int:
        return min(SELECT, len(self.node)) if self.mission.select is None else self.mission.select

    @property
    def quorum(self) -> int:
        return min(QUORUM, self.select) if self.mission.quorum is None else self.mission.quorum


class Node(LinkEnd, frozen=True, kw_only=True):
    """A board of the mission with its profiles, and the ground's end of its link."""

    id: int
    name: str
    board: Board


class Mission(msgspec.Struct, frozen=True, kw_only=True):
    """A checked mission.toml: profiles are loaded, and paths are resolved against the mission's folder."""

    path: Path
    folder: Path
    rules: MissionSection
    train: TrainSection
    nodes: tuple[Node, ...]
    select: int
    quorum: int
    model: str
    data_source: str
    data_folder: Path | None

    def find_node(self, name: str) -> Node:
        """Returns the board of that name. Raises ConfigError."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise ConfigError(f"{self.path}: no node {name!r}; there are {known}")

    @property
    def database(self) -> Path:
        return self.folder / "mission.sqlite"


def load_mission(folder: Path) -> Mission:
    """Reads FOLDER/mission.toml. Raises ConfigError in one line that names file, key and value."""
    path = folder / MISSION_FILE
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long, a folder that this user may not enter
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not there:
        raise ConfigError(f"{path}: no such file; `groundstation init {folder}` makes one")
    file, base, nodes = read(path, MissionFile), folder.resolve(), list[Node]()
    rules = file.mission
    for index, node in enumerate(file.node):
        if node.encrypt:
            check_cipher(f"{path}: node[{index}].encrypt = true")
        end = Node(
            id=node.id, name=node.name, port=node.port, key_path=base / node.key, encrypt=node.encrypt,
            board=profile(path, f"node[{index}].board", node.board, load_board, base),
            link=profile(path, f"node[{index}].link", node.link, load_link, base),
            contacts_path=base / rules.contacts if rules.contacts else None,
            bytes_per_contact=node.bytes_per_contact or math.inf,
            bytes_per_day=node.bytes_per_day or math.inf,
        )  # fmt: skip
        nodes.append(end)
    return Mission(
        path=path, folder=base, rules=rules, train=file.train, nodes=tuple(nodes), select=file.select,
        quorum=file.quorum, model=resolved(rules.model, base), data_source=relative_source(rules.data, base),
        data_folder=base / rules.data_folder if rules.data_folder else None,
    )  # fmt: skip
