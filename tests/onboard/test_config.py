"""NODE.toml: a good file gives checked values, and every bad one gives one line with its key and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from hw_profiles import load_board
from onboard.cli import main
from onboard.config import NodeFile, load_node
from onboard.console.toml import ConfigError, checked
from onboard.storage.keys import new_key, save_key
from tests.hidden import hide
from tests.programs import Ended, onboard

GOOD: dict[str, dict[str, Any]] = {
    "node": {"id": 7, "name": "pi", "board": "raspberry-pi-4"},
    "link": {"port": "/dev/ttyUSB0", "profile": "uhf-9k6"},
    "data": {},
    "budget": {},
}


def toml(sections: dict[str, dict[str, Any]]) -> str:
    """The sections as TOML; values are numbers, text and lists of them."""
    lines = []
    for name, keys in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_literal(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def changed(section: str, key: str, value: object) -> dict[str, dict[str, Any]]:
    """The good file with one key set, or removed where the value is None."""
    keys = GOOD[section] | {key: value}
    return GOOD | {section: {name: v for name, v in keys.items() if v is not None}}


def write(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text)
    return path


def test_the_profiles_fill_in_what_the_file_leaves_out(tmp_path: Path) -> None:
    config = load_node(write(tmp_path, toml(GOOD)))
    board = load_board("raspberry-pi-4")
    assert (config.id, config.name, config.ground.port) == (7, "pi", "/dev/ttyUSB0")
    assert config.board == board
    assert config.ground.link.name == "uhf-9k6"
    assert (config.cpu_share, config.memory_bytes) == (board.cpu_share, board.agent_memory_bytes)
    assert (config.checkpoint_s, config.shard.shape, config.shard.rows) == (30.0, (1, 28, 28), None)


def test_the_file_replaces_the_profiles_values(tmp_path: Path) -> None:
    sections = GOOD | {
        "budget": {"cpu_share": 0.25, "memory_mb": 96, "checkpoint_s": 5},
        "data": {"source": "mnist", "folder": "sets", "shape": [3, 8, 9], "rows": [10, 20]},
    }
    config = load_node(write(tmp_path, toml(sections)))
    assert (config.cpu_share, config.memory_bytes, config.checkpoint_s) == (0.25, 96 * 2**20, 5.0)
    assert config.shard.folder == str(tmp_path / "sets")
    assert (config.shard.source, config.shard.shape) == ("mnist", (3, 8, 9))
    assert config.shard.rows == (10, 20)


def test_paths_are_meant_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, toml(GOOD))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_node(Path("../node.toml"))
    assert config.ground.key_path == tmp_path / "node.key"
    assert config.state == tmp_path / "state"
    assert config.shard.source == f"npz:{tmp_path / 'data.npz'}"


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    config = load_node(write(tmp_path, toml(changed("node", "key", "/etc/spacedml/node.key"))))
    assert config.ground.key_path == Path("/etc/spacedml/node.key")


def test_the_command_line_moves_the_cable(tmp_path: Path) -> None:
    path = write(tmp_path, toml(GOOD))
    assert load_node(path, port="udp://10.0.0.1:4800").ground.port == "udp://10.0.0.1:4800"
    with pytest.raises(ConfigError, match=r"^--port 'ttyUSB0': .*not a device's path"):
        load_node(path, port="ttyUSB0")


def test_a_profile_may_be_a_file_beside_the_configuration(tmp_path: Path) -> None:
    shipped = Path(__file__).parent.parent.parent / "hw_profiles" / "links" / "uhf-9k6.toml"
    (tmp_path / "mine.toml").write_bytes(shipped.read_bytes())
    config = load_node(write(tmp_path, toml(changed("link", "profile", "mine.toml"))))
    assert (config.ground.link.name, config.ground.link.rate_up_bps) == ("mine", 9600)


BAD = [
    ("node", "id", 0, "node.id = 0: is the ground's, and a board is 1 to 254"),
    ("node", "id", 255, "node.id = 255: expected int <= 254"),
    ("node", "id", "one", "node.id = 'one': expected int, got str"),
    ("node", "id", True, "node.id = True: expected int, got bool"),
    ("node", "id", None, "node.id: missing, and it is required"),
    ("link", "encrypt", "yes", "link.encrypt = 'yes': expected bool, got str"),
    ("node", "name", "", "node.name = '': must be 1 to 64 letters"),
    ("node", "name", "../up", "node.name = '../up': must be 1 to 64 letters"),
    ("node", "board", "raspi-4", "node.board = 'raspi-4': no board is named 'raspi-4'; nearest"),
    ("node", "board", "uhf-9k6", "node.board = 'uhf-9k6': uhf-9k6 is a link, not a board"),
    ("node", "board", "none.toml", "node.board = 'none.toml': "),
    ("node", "key", "", "node.key = '': expected str of length >= 1"),
    ("node", "state", 3, "node.state = 3: expected str, got int"),
    ("node", "colour", "red", "node.colour = 'red': unknown key"),
    ("link", "port", "", "link.port = '': must not be empty"),
    ("link", "port", "ttyUSB0", "link.port = 'ttyUSB0': 'ttyUSB0': not a device's path"),
    ("link", "port", "serial:/dev/ttyS0?speed=9", "link.port = 'serial:/dev/ttyS0?speed=9': "),
    ("link", "port", "udp://x", "link.port = 'udp://x': udp://x: 'x' is not HOST:PORT"),
    ("link", "port", None, "link.port: missing, and it is required"),
    ("link", "profile", "uhf", "link.profile = 'uhf': no link is named 'uhf'; nearest: uhf-9k6"),
    ("link", "contacts", "", "link.contacts = '': expected str of length >= 1"),
    ("link", "bytes_per_contact", 9000, "link.bytes_per_contact = 9000: needs contacts"),
    ("link", "bytes_per_day", 4095, "link.bytes_per_day = 4095: expected int >= 4096"),
    ("data", "source", 1, "data.source = 1: expected str, got int"),
    ("data", "shape", [1, 28], "data.shape: expected array of length 3, got 2"),
    ("data", "shape", [1, 0, 28], "data.shape[1] = 0: expected int >= 1"),
    ("data", "rows", [20, 10], "data.rows: must be [first, end] with first below end, got [20, 10]"),
    ("data", "rows", [-1, 10], "data.rows: must be [first, end] with first below end, got [-1, 10]"),
    ("budget", "cpu_share", 0, "budget.cpu_share = 0: expected float > 0.0"),
    ("budget", "cpu_share", 1.5, "budget.cpu_share = 1.5: expected float <= 1.0"),
    ("budget", "cpu_share", float("nan"), "budget.cpu_share = nan: expected float > 0.0"),
    ("budget", "memory_mb", 0, "budget.memory_mb = 0: expected int >= 1"),
    ("budget", "memory_mb", 10**30, "budget.memory_mb = 1000000000000000000000000000000: "),
    ("budget", "memory_mb", 1.5, "budget.memory_mb = 1.5: expected int | null, got float"),
    ("budget", "checkpoint_s", float("inf"), "budget.checkpoint_s = inf: expected float <= 1000000000.0"),
]


@pytest.mark.parametrize(("section", "key", "value", "says"), BAD, ids=lambda value: str(value)[:24])
def test_a_bad_value_is_one_line_with_file_key_and_value(
    tmp_path: Path, section: str, key: str, value: object, says: str
) -> None:
    path = write(tmp_path, toml(changed(section, key, value)))
    assert_one_line(["run", str(path)], f"{path}: {says}")


BAD_FILES = [
    (b"[node\n", "not valid TOML: "),
    (b"\xff\xfe", "not UTF-8 at byte 0"),
    (b"", "node: missing, and it is required"),
    (b"node = 3\n", "node = 3: expected object, got int"),
    (b"[nodes]\n", "nodes: unknown key"),
]


@pytest.mark.parametrize(("content", "says"), BAD_FILES, ids=lambda value: str(value)[:16])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(content)
    assert_one_line(["run", str(path)], f"{path}: {says}")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    assert_one_line(["run", str(absent)], f"{absent}: no such file", by_itself=True)
    assert_one_line(["doctor", str(tmp_path)], f"{tmp_path}: cannot be read: Is a directory")


def good_folder(folder: Path) -> Path:
    """All that a run needs, with a port that cannot be mistaken for a device of the machine."""
    save_key(folder / "node.key", new_key())
    np.savez(folder / "data.npz", x=np.zeros((4, 28, 28), np.uint8), y=np.arange(4))
    return write(folder, toml(changed("link", "port", str(folder / "no-such-tty"))))


def test_a_device_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    path = good_folder(tmp_path)
    assert_one_line(
        ["run", str(path)], f"{path}: link.port = '{tmp_path}/no-such-tty': no such device; plug it in"
    )


def test_a_bad_key_file_is_bad_input(tmp_path: Path) -> None:
    path = good_folder(tmp_path)
    (tmp_path / "node.key").write_text("abc")
    assert_one_line(
        ["run", str(path), "--wait"], f"{path}: node.key: {tmp_path / 'node.key'}: a key is 64 hex"
    )


def test_encryption_is_off_until_it_is_asked_for(tmp_path: Path) -> None:
    assert not load_node(write(tmp_path, toml(GOOD))).ground.encrypt
    assert load_node(write(tmp_path, toml(changed("link", "encrypt", True)))).ground.encrypt


def test_encryption_without_its_package_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cryptography", "onboard.wire.security.cipher")
    path = write(tmp_path, toml(changed("link", "encrypt", True)))
    for command in ("run", "doctor"):
        result = CliRunner().invoke(main, [command, str(path)])
        assert result.exit_code == 2
        assert one_line(result) == (
            f"{path}: link.encrypt = true: cryptography is not installed: pip install 'spacedml-edge[crypto]'"
        )
    assert not load_node(write(tmp_path, toml(GOOD))).ground.encrypt


@pytest.mark.parametrize("digits", ["00" * 32, bytes(range(32)).hex(), ""], ids=["zeros", "examples", "none"])
def test_encryption_under_a_key_that_everyone_knows_is_bad_input(tmp_path: Path, digits: str) -> None:
    path = good_folder(tmp_path)
    path.write_text(path.read_text().replace("[link]", "[link]\nencrypt = true"))
    (tmp_path / "node.key").write_text(digits)
    assert_one_line(["run", str(path), "--wait"], f"{path}: node.key: {tmp_path / 'node.key'}: ")


def test_data_of_the_wrong_shape_is_bad_input(tmp_path: Path) -> None:
    path = good_folder(tmp_path)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4))
    assert_one_line(
        ["run", str(path), "--wait"],
        f"{path}: data.source: {tmp_path / 'data.npz'}: x is uint8 (4, 8, 8), needs uint8 (N, 1, 28, 28)",
        by_itself=True,
    )


def test_a_state_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    path = good_folder(tmp_path)
    (tmp_path / "state").write_text("a file where a folder should be")
    result = onboard("run", str(path), "--wait")
    assert result.exit_code == 1
    assert one_line(result) == f"{path}: node.state: {tmp_path / 'state'}: File exists"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["node", "link", "data", "id", "name", "port", "rows", "x\ny"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_a_file_holds_is_a_configuration_or_one_error(raw: object) -> None:
    raw = raw if isinstance(raw, dict) else {"node": raw}
    try:
        value = checked("node.toml", raw, NodeFile)
    except ConfigError as error:
        said = str(error)
    else:
        said = "node.toml: good" if msgspec.convert(msgspec.to_builtins(value), NodeFile) == value else ""
    assert said.startswith("node.toml: ")
    assert "\n" not in said


def assert_one_line(arguments: list[str], begins: str, *, by_itself: bool = False) -> None:
    """The command fails with exit code 2 and one line that begins so; `by_itself`: as a process, where images
    are loaded and the budget counts what this one holds."""
    result = onboard(*arguments) if by_itself else CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert one_line(result).startswith(begins)


def one_line(result: Ended | Result) -> str:
    """What the command wrote to stderr, which must be one line; and nothing on stdout."""
    assert result.stdout == ""
    line, end = result.stderr.rstrip("\n"), result.stderr[-1:]
    assert end == "\n"
    assert "\n" not in line
    return line
