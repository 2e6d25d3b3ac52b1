"""Makes a mission: a folder with mission.toml, a key for every board, and what to copy to each board."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from groundstation.config import MISSION_FILE, MissionFile, load_mission
from groundstation.library import FOLDER as NETWORKS
from groundstation.library import copy_network
from groundstation.mission_data import DataSummary, summarize
from hw_profiles import load_board, load_link
from onboard.config import NodeFile, check_cipher, load_node, relative_source
from onboard.console.toml import ConfigError, checked
from onboard.data.sources import check_source
from onboard.learn.graph import TrainGraph
from onboard.learn.networks import DESCRIPTION, Network
from onboard.link.ports.port import BadUrl
from onboard.link.ports.schemes import facts_of
from onboard.storage.files import sole_user, sync_folder, write_durably
from onboard.storage.keys import load_keys, new_key, newest, replace_keys, roll, save_key

NODE_KEYS = ("board", "link", "port", "board_port", "data", "cpu_share", "memory_mb", "encrypt")
BOARD, LINK = "raspberry-pi-4", "bench-serial-115k2"
COMMAND = "groundstation init"


@dataclass(frozen=True)
class NodeSpec:
    """One `--node`: its name, and then its keys."""

    name: str
    port: str
    """The ground's end of the link: a device, any pyserial URL, or `udp://HOST:PORT`."""
    board: str = BOARD
    """Board profile: a name, or a .toml file, which is copied into the mission. Left out: the profile called
    NAME, else `raspberry-pi-4`."""
    link: str = LINK
    """Link profile, likewise."""
    board_port: str = ""
    """The board's end of the link. Left out: the same device; for `udp://HOST:PORT` it is
    `udp://?bind=0.0.0.0:PORT`."""
    data: str = "npz:data.npz"
    """The board's images, seen from its folder."""
    cpu_share: str = ""
    """Share of one CPU for training. Left out: the board profile's."""
    memory_mb: str = ""
    """MiB that the agent and its training may fill. Left out: the board profile's."""
    encrypt: str = "false"
    """With `true` the link is encrypted, which is written into the files of both ends."""

    @classmethod
    def parse(cls, text: str) -> NodeSpec:
        """Parses a `--node`. Raises ConfigError that names the wrong part."""
        name, *parts = text.split(",")
        fields: dict[str, str] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            key = key.strip().replace("-", "_")
            if not equals or key not in NODE_KEYS:
                known = ", ".join(f"{name}=".replace("_", "-") for name in NODE_KEYS)
                raise ConfigError(f"--node {text!r}: {part!r} is not one of {known}")
            if key in fields:
                raise ConfigError(f"--node {text!r}: {part!r}: given twice")
            fields[key] = value
        if not fields.get("port"):
            raise ConfigError(f"--node {text!r}: port= is missing, e.g. port=/dev/ttyUSB0")
        if fields.get("encrypt", "true") not in ("true", "false"):
            raise ConfigError(f"--node {text!r}: encrypt={fields['encrypt']}: must be true or false")
        with suppress(ValueError):  # no profile has the board's name
            load_board(name)
            fields.setdefault("board", name)
        return cls(name=name, **fields)

    def node_toml(self, number: int, shape: tuple[int, int, int], test: DataSummary) -> dict[str, Any]:
        """Returns the sections of the board's NODE.toml, with what the test data say. Raises ConfigError."""
        board, link = _reference(self.board, "board"), _reference(self.link, "link")
        data: dict[str, Any] = {"source": self.data, "shape": list(shape)}
        if test.objective.kind != "classify":
            data["task"] = test.objective.kind
        if test.objective.ignore is not None:
            data["ignore"] = test.objective.ignore
        if test.classes is not None:
            data["classes"] = list(test.classes)
        if test.levels is not None:
            data["channel_means"] = [round(mean, 1) for mean in test.levels.means]
            data["channel_stds"] = [round(std, 1) for std in test.levels.stds]
        sections: dict[str, Any] = {
            "node": {"id": number, "name": self.name, "board": board},
            "link": {"port": self._port_on_board(), "profile": link, "encrypt": self.encrypts},
            "data": data,
        }
        if self.cpu_share or self.memory_mb:
            sections["budget"] = self._budget()
        return sections

    def _budget(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for key, text, kind in (("cpu_share", self.cpu_share, float), ("memory_mb", self.memory_mb, int)):
            try:
                found |= {key: kind(text)} if text else {}
            except ValueError:
                name = key.replace("_", "-")
                what = "whole number" if kind is int else "number"
                raise ConfigError(f"--node {self.name}: {name}={text}: not a {what}") from None
        return found

    def mission_toml(self, number: int) -> dict[str, Any]:
        folder = f"boards/{self.name}/"
        return {
            "id": number, "name": self.name, "board": _reference(self.board, "board", folder),
            "link": _reference(self.link, "link", folder), "port": self.port,
            "key": f"keys/{self.name}.key", "encrypt": self.encrypts,
        }  # fmt: skip

    @property
    def encrypts(self) -> bool:
        return self.encrypt == "true"

    def _port_on_board(self) -> str:
        """Returns the other end: the same device name, or the UDP port that the ground calls. Raises
        ConfigError where neither end says where the other is."""
        try:
            far_url = facts_of(self.port).far_url
        except BadUrl as error:
            raise ConfigError(f"--node {self.name}: port={error}") from None
        if not self.board_port:
            if far_url is None:
                raise ConfigError(
                    f"--node {self.name}: board-port= is missing: {self.port} does not say where the board is"
                )
            return far_url
        with suppress(BadUrl):  # the check of NODE.toml says what is wrong with it
            if far_url is None and facts_of(self.board_port).far_url is None:
                raise ConfigError(
                    f"--node {self.name}: board-port={self.board_port}: neither end says where the other is; "
                    "one of them must be udp://HOST:PORT"
                )
        return self.board_port


def create_mission(folder: Path, specs: list[NodeSpec], wishes: Mapping[str, Any]) -> Iterator[str]:
    """Writes the mission and yields a line about each thing written.

    wishes: the [mission] section, None for what is left out; paths are relative to the current folder. Raises
    ConfigError before anything is written, OSError where the disk refuses. Nothing is overwritten: keys that
    boards already hold must not change."""
    _check_new(folder, specs)
    data, data_folder = wishes["data"], wishes["data_folder"]
    rules = {key: value for key, value in wishes.items() if value is not None}
    rules["data"] = relative_source(data, Path.cwd())
    if data_folder is not None:
        rules["data_folder"] = str(data_folder.resolve())
    nodes = [spec.mission_toml(number) for number, spec in enumerate(specs, start=1)]
    first = checked(COMMAND, {"mission": rules, "node": nodes}, MissionFile)
    try:
        graph = TrainGraph.load(rules["model"])
        check_source(data)
        first.mission.target_of(graph.objective.metric)
        test = summarize(rules["data"], graph, data_folder)
        for spec in specs:
            load_board(spec.board)
            load_link(spec.link)
    except ValueError as error:
        raise ConfigError(f"{COMMAND}: {error}") from None
    network = graph.network
    if not network.is_shipped:
        rules["model"] = f"{NETWORKS}/{network.name}"
    if test.classes is not None:
        rules["classes"] = list(test.classes)
    mission = checked(COMMAND, {"mission": rules, "node": nodes}, MissionFile)
    files = dict[Path, bytes]()
    for number, spec in enumerate(specs, start=1):
        sections = spec.node_toml(number, graph.input_shape, test)
        checked(f"{COMMAND}: --node {spec.name}", sections, NodeFile)
        if spec.encrypts:
            check_cipher(f"{COMMAND}: --node {spec.name}: encrypt=true")
        files[board_folder(folder, spec) / "node.toml"] = _toml("One board", sections)
        for profile, kind in ((spec.board, "board"), (spec.link, "link")):
            if profile.endswith(".toml"):
                files[board_folder(folder, spec) / _reference(profile, kind)] = Path(profile).read_bytes()
    # This one is written last: it makes the folder a mission.
    files[folder / MISSION_FILE] = _toml("A mission", msgspec.to_builtins(mission))
    with _alone_in(folder):
        _check_new(folder, specs)  # another `init` may just have finished in it
        _write(folder, specs, files, network)
    for spec in specs:
        board = board_folder(folder, spec)
        yield f"{board}: copy this folder to {spec.name} and start `onboard run node.toml` in it"
    yield f"{folder / MISSION_FILE}: {rules['rounds']} rounds of {rules['model']} on {data}"
    yield f"test data: {test.told}"


def _write(folder: Path, specs: list[NodeSpec], files: Mapping[Path, bytes], network: Network) -> None:
    """Writes keys, `files`, and for mission and boards the network that is not shipped, durably on return.
    Removes them on failure: no board holds a key."""
    made: list[Path] = []
    homes = [] if network.is_shipped else [folder, *(board_folder(folder, spec) for spec in specs)]
    try:
        for home in homes:
            to = home / NETWORKS / network.name
            made += [to / name for name in (*network.file.files, DESCRIPTION)]
            copy_network(network, to)
        for spec in specs:
            key = new_key()
            for path in _keys(folder, spec):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_key(path, key)
                made.append(path)
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            made.append(path)
            write_durably(path, content)
        for path in {parent for file in made for parent in (file.parent, file.parent.parent)}:
            sync_folder(path)
        for spec in specs:
            load_node(board_folder(folder, spec) / "node.toml")
        load_mission(folder)
    except BaseException:
        for path in made:
            with suppress(OSError):
                path.unlink()
        raise


def _check_new(folder: Path, specs: list[NodeSpec]) -> None:
    """Raises ConfigError where a mission, or a key that a board may hold, exists already."""
    if (folder / MISSION_FILE).exists():
        raise ConfigError(f"{folder / MISSION_FILE}: there is a mission already; choose another folder")
    for spec in specs:
        for key in _keys(folder, spec):
            if key.exists():
                raise ConfigError(f"{key}: a board may hold this key; choose another folder")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other commands that write out of the folder. Raises ConfigError, OSError."""
    try:
        with sole_user(folder):
            yield
    except BlockingIOError:
        raise ConfigError(f"{folder}: another groundstation is writing in it; try again later") from None


def roll_key(folder: Path, name: str, *, drop_old: bool) -> str:
    """Gives a node a new key beside its others, or drops all but the newest; returns what to do next. Raises
    ConfigError, BadKey, and OSError where the disk refuses."""
    mission = load_mission(folder)
    node = mission.find_node(name)
    copy = mission.folder / "boards" / name / "node.key"
    with _alone_in(node.key_path.parent):  # not in the mission's folder, which a running daemon holds
        keys = load_keys(node.key_path)
        try:
            keys = newest(keys) if drop_old else roll(keys, new_key())
        except ValueError as error:
            raise ConfigError(f"{node.key_path}: {error}") from None
        replace_keys(node.key_path, keys)  # the ground's first: it takes whichever key the board uses
        if copy.parent.is_dir():
            replace_keys(copy, keys)
    ids = " and ".join(map(str, keys))
    return f"{name} holds key {ids}: restart the daemon, then copy {copy} to the board and restart the agent"


def board_folder(folder: Path, spec: NodeSpec) -> Path:
    return folder / "boards" / spec.name


def _keys(folder: Path, spec: NodeSpec) -> tuple[Path, Path]:
    return folder / "keys" / f"{spec.name}.key", board_folder(folder, spec) / "node.key"


def _reference(profile: str, kind: str, folder: str = "") -> str:
    """Returns a profile as a file in that folder names it: a shipped name, or where a file's copy lies."""
    return f"{folder}{kind}-profile/{Path(profile).name}" if profile.endswith(".toml") else profile


def _toml(what: str, sections: dict[str, Any]) -> bytes:
    """Writes TOML of sections and lists of sections, whose values are numbers, text and lists of them."""
    lines = [f"# {what}. Every key: docs/reference/"]
    for name, section in sections.items():
        head, tables = (f"[[{name}]]", section) if isinstance(section, list) else (f"[{name}]", [section])
        for table in tables:
            lines += ["", head]
            # JSON's literals and escapes are a subset of TOML's, but for a control that TOML forbids.
            lines += [
                f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
                for key, value in table.items()
                if value is not None
            ]
    return ("\n".join(lines) + "\n").encode()
