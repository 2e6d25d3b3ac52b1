"""mission.toml: a good file gives a mission, and every bad one gives one line with its key and value."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from groundstation.cli import main
from groundstation.config import MissionSection, TrainSection, load_mission
from onboard.learn.objectives import METRICS

NODE = """
[[node]]
id = {id}
name = "{name}"
board = "raspberry-pi-4"
link = "uhf-9k6"
port = "{port}"
key = "keys/{name}.key"
"""
MISSION = '[mission]\nname = "m"\nselect = 2\nquorum = 1\n'
TWO = NODE.format(id=1, name="a", port="/dev/a") + NODE.format(id=2, name="b", port="udp://10.0.0.2:4800")
GOOD = f"{MISSION}[train]\n{TWO}"


def write(folder: Path, text: str) -> Path:
    (folder / "mission.toml").write_text(text)
    return folder


def test_defaults_and_resolved_paths(tmp_path: Path) -> None:
    mission = load_mission(write(tmp_path, GOOD))
    assert (mission.rules.model, mission.rules.rounds, mission.rules.deadline_s) == ("lenet5", 10, 900.0)
    assert mission.train == TrainSection()  # docs/reference/mission.toml.md has the values
    assert [(node.id, node.name, node.link.name) for node in mission.nodes] == [
        (1, "a", "uhf-9k6"), (2, "b", "uhf-9k6"),
    ]  # fmt: skip
    assert mission.nodes[0].key_path == tmp_path / "keys" / "a.key"
    assert mission.database == tmp_path / "mission.sqlite"


def test_the_file_replaces_defaults(tmp_path: Path) -> None:
    text = GOOD.replace("[train]", "[train]\nepochs = 9\nlearning_rate = 0.5").replace(
        "quorum = 1", "rounds = 3"
    )
    mission = load_mission(write(tmp_path, text))
    assert mission.train == TrainSection(epochs=9, learning_rate=0.5)
    assert (mission.rules.rounds, mission.quorum, mission.rules.target_accuracy) == (3, 2, None)


def test_data_lies_relative_to_the_mission(tmp_path: Path) -> None:
    text = GOOD.replace("select = 2", 'select = 2\ndata = "npz:test.npz"\ndata_folder = "sets"')
    mission = load_mission(write(tmp_path, text))
    assert mission.data_source == f"npz:{tmp_path / 'test.npz'}"
    assert mission.data_folder == tmp_path / "sets"


BAD = [
    ('name = "m"', "", "mission.name: missing, and it is required"),
    ('name = "m"', 'name = ""', "mission.name = '': expected str of length >= 1"),
    ("select = 2", "select = 3", "mission.select = 3: must be at most the number of nodes (2), got 3"),
    ("quorum = 1", "quorum = 3", "mission.quorum = 3: must be at most select (2), got 3"),
    (
        "[train]",
        'rule = "sparse-mean"\n[train]\nmethod = "spacedml"',
        "mission.rule = 'sparse-mean': spacedml sends whole models, in which every board moves all",
    ),
    ("quorum = 1", "quorum = 0", "mission.quorum = 0: expected int >= 1"),
    ("quorum = 1", "rounds = 65535", "mission.rounds = 65535: expected int <= 65534"),
    ("quorum = 1", "rounds = 2.5", "mission.rounds = 2.5: expected int, got float"),
    ("quorum = 1", "target_accuracy = 98", "mission.target_accuracy = 98: expected float <= 1.0"),
    ("quorum = 1", "deadline_s = nan", "mission.deadline_s = nan: expected float > 0.0"),
    ("quorum = 1", "deadline_s = inf", "mission.deadline_s = inf: expected float <= 1000000000.0"),
    ("quorum = 1", "seed = -1", "mission.seed = -1: expected int >= 0"),
    ("quorum = 1", "colour = 1", "mission.colour = 1: unknown key"),
    (
        'port = "/dev/a"',
        'port = "/dev/a"\nbytes_per_day = 100',
        "node[0].bytes_per_day = 100: expected int >= 4096",
    ),
    (
        'port = "/dev/a"',
        'port = "/dev/a"\nbytes_per_contact = 9000',
        "node[0].bytes_per_contact = 9000: needs mission.contacts",
    ),
    ("[train]", "[train]\nepochs = 0", "train.epochs = 0: expected int >= 1"),
    ("[train]", "[train]\npretrain_epochs = 0", "train.pretrain_epochs = 0: expected int >= 1"),
    ("[train]", "[train]\nbatch_size = 0", "train.batch_size = 0: expected int >= 1"),
    ("[train]", "[train]\nlearning_rate = 1", "train.learning_rate = 1: expected float < 1.0"),
    ("[train]", "[train]\nlearning_rate_decay = 2", "train.learning_rate_decay = 2: expected float <= 1.0"),
    ("[train]", "[train]\nbits_up = 0", "train.bits_up = 0: expected float > 0.0"),
    ("[train]", "[train]\nbits_down = inf", "train.bits_down = inf: expected float <= 32.0"),
    ("[train]", "[train]\nmax_bases = 9", "train.max_bases = 9: expected int <= 8"),
    ("[train]", "[train]\nshift_pixels = -1", "train.shift_pixels = -1: expected int >= 0"),
    ("[train]", "[trains]", "trains: unknown key"),
    ("id = 2", "id = 1", "node[1].id = 1: used by another node"),
    ("id = 2", "id = 255", "node[1].id = 255: expected int <= 254"),
    ('name = "b"', 'name = "a"', "node[1].name = 'a': used by another node"),
    ('name = "b"', 'name = "b/c"', "node[1].name = 'b/c': must be 1 to 64 letters"),
    ("udp://10.0.0.2:4800", "/dev/a", "node[1].port = '/dev/a': used by another node"),
    ("udp://10.0.0.2:4800", "", "node[1].port = '': must not be empty"),
    ("udp://10.0.0.2:4800", "udp://10.0.0.2", "node[1].port = 'udp://10.0.0.2': "),
    ('board = "raspberry-pi-4"', 'board = "pi"', "node[0].board = 'pi': no board is named 'pi'"),
    ('link = "uhf-9k6"', 'link = "uhf"', "node[0].link = 'uhf': no link is named 'uhf'; nearest: uhf-9k6"),
    ('key = "keys/a.key"', "", "node[0].key: missing, and it is required"),
    (TWO, "", "node: missing, and it is required"),
    (TWO, "node = []", "train.node: unknown key"),
    (GOOD, "[mission", "not valid TOML: "),
]


@pytest.mark.parametrize(("old", "new", "says"), BAD, ids=[says[:32] for *_, says in BAD])
def test_a_bad_mission_is_one_line_with_file_key_and_value(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    assert old in GOOD
    write(tmp_path, GOOD.replace(old, new))
    for command in ("serve", "status"):
        result = CliRunner().invoke(main, [command, str(tmp_path)])
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith(f"{tmp_path / 'mission.toml'}: {says}")
        assert result.stderr.count("\n") == 1


def test_a_folder_without_a_mission_says_how_to_make_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert result.exit_code == 2
    path = tmp_path / "mission.toml"
    assert result.stderr == f"{path}: no such file; `groundstation init {tmp_path}` makes one\n"


def test_what_serve_needs_beside_the_file_is_checked_too(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("select = 2", 'select = 2\ndata = "npz:test.npz"'))
    result = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (
        2, f"{tmp_path / 'mission.toml'}: mission.data: {tmp_path / 'test.npz'}: no such file\n",
    )  # fmt: skip
    write(tmp_path, GOOD.replace("select = 2", 'select = 2\nmodel = "lenet"'))
    result = CliRunner().invoke(main, ["serve", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{tmp_path / 'mission.toml'}: mission.model: no model 'lenet'; nearest")


def test_a_target_is_a_value_of_the_metric_and_its_old_name_still_holds() -> None:
    accuracy, iou, rmse = (METRICS[kind] for kind in ("classify", "segment", "regress"))
    assert MissionSection(name="m", target_accuracy=0.9).target_of(accuracy) == 0.9
    assert MissionSection(name="m", target=0.9).target_of(accuracy) == 0.9
    assert MissionSection(name="m", target=12.5).target_of(rmse) == 12.5
    assert MissionSection(name="m").target_of(iou) is None
    with pytest.raises(ValueError, match=r"mission.target = 12.5: must be at most 1, as it is mean IoU"):
        MissionSection(name="m", target=12.5).target_of(iou)
    with pytest.raises(ValueError, match=r"target_accuracy: the model is judged by RMSE: use target"):
        MissionSection(name="m", target_accuracy=0.9).target_of(rmse)
    with pytest.raises(ValueError, match="not together with target"):
        MissionSection(name="m", target=0.9, target_accuracy=0.9)
