"""`groundstation init` makes a mission that both programs accept, or writes nothing and says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from groundstation.cli import main
from groundstation.config import load_mission
from onboard.config import load_node
from onboard.storage.keys import load_keys
from tests.hidden import hide

PI = "pi,port=/dev/ttyUSB0"
NANO = "nano,board=jetson-nano,link=sband-256k,port=udp://192.168.7.2:4800"


def init(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["init", str(folder), *options])


def test_the_two_ends_are_told_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "mission"
    result = init(folder, "--node", PI, "--node", NANO, "--rounds", "4", "--quorum", "1", "--target", "0.9")
    assert result.exit_code == 0, result.output
    mission = load_mission(folder)
    assert (mission.rules.name, mission.rules.rounds, mission.rules.target) == ("mission", 4, 0.9)
    assert (mission.rules.select, mission.rules.quorum) == (2, 1)
    for node in mission.nodes:
        board = load_node(folder / "boards" / node.name / "node.toml")
        assert (board.id, board.name, board.board, board.ground.link) == (
            node.id,
            node.name,
            node.board,
            node.link,
        )
        assert load_keys(board.ground.key_path) == load_keys(node.key_path)
        assert board.shard.shape == (1, 28, 28)
    assert load_keys(mission.nodes[0].key_path) != load_keys(mission.nodes[1].key_path)


def test_both_ends_of_a_link_encrypt_or_neither(tmp_path: Path) -> None:
    assert init(tmp_path, "--node", f"{PI},encrypt=true", "--node", NANO).exit_code == 0
    boards = [load_node(tmp_path / "boards" / name / "node.toml") for name in ("pi", "nano")]
    assert [node.encrypt for node in load_mission(tmp_path).nodes] == [True, False]
    assert [board.ground.encrypt for board in boards] == [True, False]


def test_encryption_without_its_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert init(tmp_path / "old", "--node", f"{PI},encrypt=true").exit_code == 0
    hide(monkeypatch, "cryptography", "onboard.wire.security.cipher")
    needs = "cryptography is not installed: pip install 'spacedml-edge[crypto]'"
    assert_refused(
        init(tmp_path / "new", "--node", f"{PI},encrypt=true"),
        f"groundstation init: --node pi: encrypt=true: {needs}",
    )
    assert not (tmp_path / "new").exists()
    assert_refused(
        CliRunner().invoke(main, ["serve", str(tmp_path / "old")]),
        f"{tmp_path / 'old' / 'mission.toml'}: node[0].encrypt = true: {needs}",
    )


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    assert init(tmp_path, "--node", PI).exit_code == 0
    keys = sorted(tmp_path.rglob("*.key"))
    assert len(keys) == 2
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)


def test_a_second_init_refuses_and_the_keys_stay(tmp_path: Path) -> None:
    init(tmp_path, "--node", PI)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = init(tmp_path, "--node", PI)
    assert_refused(result, f"{tmp_path / 'mission.toml'}: there is a mission already; choose another folder")
    (tmp_path / "mission.toml").unlink()
    del before[tmp_path / "mission.toml"]
    assert_refused(init(tmp_path, "--node", PI), f"{tmp_path / 'keys' / 'pi.key'}: a board may hold this key")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("given", "on_the_board"),
    [
        ("port=/dev/ttyUSB0", "/dev/ttyUSB0"),
        ("port=/dev/ttyUSB0,board-port=/dev/serial0", "/dev/serial0"),
        ("port=udp://192.168.7.2:4800", "udp://?bind=0.0.0.0:4800"),
        ("port=udp://[fe80::2]:4800", "udp://?bind=[::]:4800"),
        ("port=udp://?bind=0.0.0.0:4800,board-port=udp://192.168.7.1:4800", "udp://192.168.7.1:4800"),
    ],
)
def test_the_boards_end_of_the_link(tmp_path: Path, given: str, on_the_board: str) -> None:
    assert init(tmp_path, "--node", f"pi,{given}").exit_code == 0
    assert load_node(tmp_path / "boards" / "pi" / "node.toml").ground.port == on_the_board


def test_a_node_named_like_a_board_is_that_board(tmp_path: Path) -> None:
    init(
        tmp_path,
        "--node",
        "jetson-nano,port=/dev/a,cpu-share=0.5,memory-mb=77,data=digits",
        "--name",
        "Dawn [bold]",
    )
    board = load_node(tmp_path / "boards" / "jetson-nano" / "node.toml")
    assert (board.board.name, board.cpu_share, board.shard.source) == ("jetson-nano", 0.5, "digits")
    assert board.memory_bytes == 77 << 20
    assert load_mission(tmp_path).rules.name == "Dawn [bold]"


def test_own_profiles_travel_with_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path(__file__).parents[2] / "hw_profiles"
    (tmp_path / "node.toml").write_bytes((shipped / "boards" / "raspberry-pi-5.toml").read_bytes())
    (tmp_path / "radio.toml").write_bytes((shipped / "links" / "uhf-9k6.toml").read_bytes())
    monkeypatch.chdir(tmp_path)
    result = init(Path("mission"), "--node", "pi,board=node.toml,link=radio.toml,port=/dev/a")
    assert result.exit_code == 0, result.output
    (tmp_path / "radio.toml").unlink()
    monkeypatch.chdir("/")
    (node,) = load_mission(tmp_path / "mission").nodes
    board = load_node(tmp_path / "mission" / "boards" / "pi" / "node.toml")
    assert (node.board, node.link.rate_up_bps) == (board.board, 9600)
    assert (board.board.cpu, board.ground.link.name) == (node.board.cpu, "radio")


def test_a_path_to_test_data_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert init(Path("mission"), "--node", PI, "--data", "npz:test.npz").exit_code == 0
    assert load_mission(tmp_path / "mission").data_source == f"npz:{tmp_path / 'test.npz'}"


BAD_NODES = [
    ("pi", "--node 'pi': port= is missing"),
    ("pi,port=", "--node 'pi,port=': port= is missing"),
    ("pi,port=/dev/a,colour=red", "--node 'pi,port=/dev/a,colour=red': 'colour=red' is not one of"),
    ("pi,port=/dev/a,port=/dev/b", "--node 'pi,port=/dev/a,port=/dev/b': 'port=/dev/b': given twice"),
    ("../pi,port=/dev/a", "groundstation init: node[0].name = '../pi': must be 1 to 64 letters"),
    (",port=/dev/a", "groundstation init: node[0].name = '': must be 1 to 64 letters"),
    ("pi,port=ttyUSB0", "groundstation init: node[0].port = 'ttyUSB0': 'ttyUSB0': not a device"),
    ("pi,port=udp://x", "groundstation init: node[0].port = 'udp://x': "),
    ("pi,port=/dev/a,board-port=x", "groundstation init: --node pi: link.port = 'x': 'x': not"),
    ("pi,port=udp://?bind=0.0.0.0:1", "--node pi: board-port= is missing: udp://?bind=0.0.0.0:1 "),
    ("pi,port=/dev/a,board=raspi-4", "groundstation init: no board is named 'raspi-4'; nearest: rasp"),
    ("pi,port=/dev/a,board=pi.toml", "groundstation init: pi.toml: cannot be read: No such file"),
    ("pi,port=/dev/a,link=uhf", "groundstation init: no link is named 'uhf'; nearest: uhf-9k6"),
    ("pi,port=/dev/a,encrypt=on", "--node 'pi,port=/dev/a,encrypt=on': encrypt=on: must be true or"),
    (
        "pi,port=udp://?bind=0.0.0.0:1,board-port=udp://?bind=0.0.0.0:2",
        "--node pi: board-port=udp://?bind=0.0.0.0:2: neither end says where the other is; one of them",
    ),
    (
        "pi,port=udp://?bind=0.0.0.0:1,board-port=udp://?bind=nowhere",
        "groundstation init: --node pi: link.port = 'udp://?bind=nowhere': ",
    ),
    ("pi,port=/dev/a,cpu-share=x", "--node pi: cpu-share=x: not a number"),
    ("pi,port=/dev/a,memory-mb=1.5", "--node pi: memory-mb=1.5: not a whole number"),
    ("pi,port=/dev/a,cpu-share=2", "groundstation init: --node pi: budget.cpu_share = 2.0: expected"),
]
BAD = [
    *((["--node", node], says) for node, says in BAD_NODES),
    (["--node", PI, "--node", PI], "groundstation init: node[1].name = 'pi': used by another node"),
    (
        ["--node", PI, "--node", "b,port=/dev/ttyUSB0"],
        "groundstation init: node[1].port = '/dev/ttyUSB0': used",
    ),
    (["--node", PI, "--select", "2"], "groundstation init: mission.select = 2: must be at most the number"),
    (["--node", PI, "--quorum", "2"], "groundstation init: mission.quorum = 2: must be at most select (1)"),
    (
        ["--node", PI, "--deadline", "nan"],
        "groundstation: Invalid value for '--deadline': nan is not a finite number.",
    ),
    (
        ["--node", PI, "--rounds", "65535"],
        "groundstation init: mission.rounds = 65535: expected int <= 65534",
    ),
    (["--node", PI, "--model", "lenet"], "groundstation init: no model 'lenet'; nearest: lenet5"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[says[-40:] for _, says in BAD])
def test_a_bad_wish_is_one_line_and_nothing_is_written(tmp_path: Path, options: list[str], says: str) -> None:
    folder = tmp_path / "mission"
    assert_refused(init(folder, *options), says)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mission").write_text("a file")
    result = init(tmp_path / "mission", "--node", PI)
    assert result.exit_code == 1
    assert re.fullmatch(rf"{tmp_path}/mission.*: (File exists|Not a directory)\n", result.stderr)


def assert_refused(result: Result, begins: str) -> None:
    """Exit code 2, one line on stderr that begins so, and nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(begins)
    assert result.stderr.count("\n") == 1


def test_roll_gives_both_ends_a_second_key_and_drops_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "mission"
    assert CliRunner().invoke(main, ["init", str(folder), "--node", "pi,port=/dev/ttyUSB0"]).exit_code == 0
    files = [folder / "keys" / "pi.key", folder / "boards" / "pi" / "node.key"]
    (first,) = load_keys(files[0]).values()
    done = CliRunner().invoke(main, ["roll", str(folder), "pi"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("pi holds key 0 and 1: restart the daemon, then copy ")
    both = load_keys(files[0])
    assert list(both) == [0, 1]
    assert both[0] == first != both[1]
    assert load_keys(files[1]) == both
    done = CliRunner().invoke(main, ["roll", str(folder), "pi", "--drop-old"])
    assert done.exit_code == 0
    assert [load_keys(file) for file in files] == [{1: both[1]}] * 2
    wrong = CliRunner().invoke(main, ["roll", str(folder), "nano"])
    assert wrong.exit_code == 2
    assert wrong.stderr == f"{folder / 'mission.toml'}: no node 'nano'; there are pi\n"
