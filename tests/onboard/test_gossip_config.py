"""NODE.toml of a node that gossips: what it says is checked, examined and shown like any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from hw_profiles import load_board, load_link
from onboard import doctor
from onboard.agents.gossip import GossipPhase
from onboard.agents.gossip_memory import MODEL
from onboard.board.budget import Pace
from onboard.cli import main
from onboard.config import GossipConfig, NodeConfig, load_node, load_own
from onboard.console.toml import ConfigError
from onboard.data import loading
from onboard.learn.gossip import topology
from onboard.monitor.render import gossip_picture
from onboard.runtime.gossip import GossipProgram, gossip_node
from onboard.storage.keys import BadKey, new_key, save_key
from tests.onboard.agents.gossip_net import load_gossip
from tests.onboard.test_config import toml
from tests.programs import onboard

GOSSIP_PAGE = Path(__file__).parent.parent.parent / "docs" / "howto" / "gossip.md"
IMAGES = loading.load("digits", part="train").take(np.arange(20))
GOOD: dict[str, dict[str, Any]] = {
    "node": {"id": 7, "name": "pi", "board": "raspberry-pi-4"},
    "gossip": {"sparsity": 0.2, "values": "fp16"},
    "[neighbour]": {
        "id": 8, "port": "udp://127.0.0.1:9", "profile": "isl-2mbyte", "key": "8.key", "weight": 0.5,
    },
    "budget": {"memory_mb": 128},
    "data": {"source": "digits"},
}  # fmt: skip


def write(folder: Path, sections: dict[str, dict[str, Any]]) -> Path:
    (folder / "node.toml").write_text(toml(sections))
    return folder / "node.toml"


def changed(section: str, key: str, value: object) -> dict[str, dict[str, Any]]:
    """The good file with one key set."""
    return GOOD | {section: GOOD.get(section, {}) | {key: value}}


@pytest.fixture
def config(tmp_path: Path) -> GossipConfig:
    save_key(tmp_path / "8.key", new_key())
    return load_gossip(write(tmp_path, GOOD))


def test_a_good_file_gives_checked_values(config: GossipConfig, tmp_path: Path) -> None:
    (neighbour,) = config.neighbours
    assert (config.id, config.board, config.state) == (7, load_board("raspberry-pi-4"), tmp_path / "state")
    assert (neighbour.id, neighbour.link, neighbour.weight) == (8, load_link("isl-2mbyte"), 0.5)
    assert neighbour.key_path == tmp_path / "8.key"
    assert (config.gossip.sparsity, config.gossip.values, config.gossip.every) == (0.2, "fp16", 1)
    assert load_own(config.path) == config
    limited = changed("[neighbour]", "bytes_per_day", 64_000)
    limited["[neighbour]"] |= {"contacts": "plan.toml", "bytes_per_contact": 9000, "encrypt": True}
    (neighbour,) = load_gossip(write(tmp_path, limited)).neighbours
    assert (neighbour.bytes_per_contact, neighbour.bytes_per_day, neighbour.encrypt) == (9000, 64_000, True)
    assert neighbour.contacts_path == tmp_path / "plan.toml"


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("gossip", "sparsity", 0, "gossip.sparsity = 0: expected float >= "),
        ("gossip", "values", "fp8", "gossip.values = 'fp8': invalid enum value 'fp8'"),
        ("gossip", "every", 0, "gossip.every = 0: expected int >= 1"),
        ("gossip", "momentum", 1.0, "gossip.momentum = 1.0: expected float < 1.0"),
        ("gossip", "drops", [0], "gossip.drops[0] = 0: expected int >= 1"),
        ("gossip", "speed", 1, "gossip.speed = 1: unknown key"),
        ("[neighbour]", "id", -1, "neighbour[0].id = -1: expected int >= 0"),
        ("[neighbour]", "id", 255, "neighbour[0].id = 255: expected int <= 254"),
        ("[neighbour]", "id", 7, "neighbour[0].id = 7: must be another node, each once"),
        ("[neighbour]", "weight", 1.5, "neighbour[0].weight = 1.5: expected float <= 1.0"),
        ("[neighbour]", "port", "ttyUSB0", "neighbour[0].port = 'ttyUSB0': "),
        ("[neighbour]", "profile", "isl", "neighbour[0].profile = 'isl': no link is named 'isl'"),
        ("[neighbour]", "bytes_per_day", 9, "neighbour[0].bytes_per_day = 9: expected int >= 4096"),
        ("[neighbour]", "bytes_per_contact", 9000, "neighbour[0].bytes_per_contact = 9000: needs contacts"),
        ("[neighbour]", "way", 1, "neighbour[0].way = 1: unknown key"),
        ("link", "port", "/dev/ttyUSB0", "link.profile: missing"),
    ],
)
def test_a_mistake_is_a_line_with_file_key_and_value(
    tmp_path: Path, section: str, key: str, value: object, says: str
) -> None:
    path = write(tmp_path, changed(section, key, value))
    with pytest.raises(ConfigError) as caught:
        load_own(path)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"gossip": None}, "gossip: missing, and it is required where there is a neighbour"),
        ({"[neighbour]": None}, "neighbour: missing, and gossip needs one at least"),
        ({"gossip": None, "[neighbour]": None}, "link: missing, and it is required without gossip"),
        (
            {"link": {"port": "/dev/ttyUSB0", "profile": "uhf-9k6"}},
            "link: a node gossips or has a link to the ground, not both",
        ),
        (
            {"gossip": {"drops": [3], "cosine_epochs": 5}},
            "gossip.cosine_epochs = 5: not together with drops",
        ),
    ],
)
def test_sections_that_do_not_go_together(tmp_path: Path, sections: dict[str, Any], says: str) -> None:
    whole = {name: keys for name, keys in (GOOD | sections).items() if keys is not None}
    with pytest.raises(ConfigError) as caught:
        load_own(write(tmp_path, whole))
    assert str(caught.value).startswith(f"{tmp_path / 'node.toml'}: {says}")


def test_neighbours_are_each_once_and_weigh_one_at_most(tmp_path: Path) -> None:
    text = toml(GOOD)
    for other, says in (
        (8, "neighbour[1].id = 8: must be another"),
        (9, "neighbour: the weights sum to 1.1"),
    ):
        more = GOOD["[neighbour]"] | {"id": other, "weight": 0.6}
        (tmp_path / "node.toml").write_text(text + toml({"[neighbour]": more}))
        with pytest.raises(ConfigError) as caught:
            load_own(tmp_path / "node.toml")
        assert says in str(caught.value)


def test_each_sort_of_node_is_named_where_the_other_is_asked_for(
    config: GossipConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="link: missing, and it is required here"):
        load_node(config.path)
    with pytest.raises(ConfigError, match="--port '/dev/x': a node that gossips has a port for each"):
        load_own(config.path, port="/dev/x")
    ground = write(
        tmp_path, {"node": GOOD["node"], "link": {"port": "udp://127.0.0.1:9", "profile": "bench-udp"}}
    )
    assert isinstance(load_own(ground), NodeConfig)


def test_the_doctor_looks_at_every_link(config: GossipConfig) -> None:
    told = onboard("doctor", str(config.path))
    assert told.exit_code == 0, told.output
    wanted = "python", "key 8", "port 8", "contacts 8", "model", "data", "memory", "disk"
    assert [line[:16] for line in told.stdout.splitlines()] == [f"ok    {what:<10}" for what in wanted]
    config.neighbours[0].key_path.unlink()
    (key,) = (finding for finding in doctor.examine(config) if finding.what == "key 8")
    assert not key.ok


def test_a_ground_that_holds_a_model_needs_no_data(tmp_path: Path) -> None:
    save_key(tmp_path / "8.key", new_key())
    ground = GOOD | {"node": GOOD["node"] | {"id": 0}, "gossip": {"model": "lenet5-rgb", "trains": False}}
    config = load_gossip(write(tmp_path, {name: keys for name, keys in ground.items() if name != "data"}))
    (found,) = (finding for finding in doctor.examine(config) if finding.what == "data")
    assert found.ok
    agent, _ = gossip_node(config, None, 0.0)
    agent.resume(0.0)
    assert (agent.phase, agent.trains) == (GossipPhase.HOLDING, False)
    agent.tick(config.checkpoint_s)
    with np.load(config.state / MODEL) as model:
        for name, values in agent.descent.weights.items():
            np.testing.assert_array_equal(model[name], values)


def test_the_ground_station_on_the_gossip_page_can_be_used(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", GOSSIP_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "node.toml").write_text(example)
    config = load_gossip(tmp_path / "node.toml")
    assert (config.id, config.gossip.trains) == (0, False)
    weights = topology.metropolis(topology.planes(range(1, 9), 4) | {(0, 1), (0, 5)})
    assert {each.id: each.weight for each in config.neighbours} == weights[0]


def test_what_keeps_a_node_from_starting_is_one_line(tmp_path: Path) -> None:
    for sections, says in (
        (GOOD, "neighbour[0].key: "),
        (changed("gossip", "model", "lenet6"), "gossip.model = 'lenet6': "),
        (changed("[neighbour]", "port", "/dev/none"), "neighbour[0].port = '/dev/none': no such device"),
        (changed("gossip", "model", "lenet5-rgb"), "gossip.model = 'lenet5-rgb': takes images of (3, "),
    ):
        done = CliRunner().invoke(main, ["run", str(write(tmp_path, sections))])
        assert done.exit_code == 2
        assert done.output.startswith(f"{tmp_path / 'node.toml'}: {says}"), done.output
        assert done.output.count("\n") == 1


def test_the_links_are_shown_with_what_the_node_is_at(config: GossipConfig) -> None:
    agent, links = gossip_node(config, IMAGES, 0.0)
    agent.resume(0.0)
    view = GossipProgram(agent, links, Pace(1.0), lambda: 1.0, lambda: 0.0).status(1.0)
    assert [link["peer"] for link in view["links"]] == [8]
    picture = gossip_picture(view, None, 0.0)
    assert "raspberry-pi-4: training, 0.00 epochs, 0 exchanges" in picture
    assert "node 8" in picture
    assert "not heard yet" in picture


def test_a_key_that_cannot_be_used_names_its_table(config: GossipConfig) -> None:
    config.neighbours[0].key_path.write_text("0" * 64)
    with pytest.raises(BadKey, match=r"^neighbour\[0\].key: .*known to everyone"):
        gossip_node(config, IMAGES, 0.0)
