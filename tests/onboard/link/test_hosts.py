"""A port's URL that nobody can ever open is bad input, at once and in one line, and no port that may come."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import groundstation.cli
from hw_profiles import load_link
from onboard.config import load_node
from onboard.console.toml import ConfigError
from onboard.link.ports.port import PortLost
from onboard.link.ports.schemes import open_port
from tests.missions.bench import run

LONG = 64 * "a"
NEVER = [
    "udp://pi..local:4800",
    f"udp://{LONG}:4800",
    "udp://127.0.0.1:4800?bind=pi..local:4800",
    "udp://pi@192.168.7.2:4800",  # as for ssh
    "udp://192.168.7.2:0",
    "udp://255.255.255.255:4800",
    "udp://224.0.0.1:4800",
    "udp://[ff02::1]:4800",
    "socket://pi..local:2000",
    "socket://server:2000?baud=9600",
    f"kiss+tcp://{LONG}:8001",
    "rfc2217://",
    "rfc2217://server",
    "rfc2217://server:70000",
    "rfc2217://pi..local:2000",
    "rfc2217://server:2000?baud=9600",
    "rfc2217://server:2000?logging=loud",
    "rfc2217://server:2000?timeout=soon",
    "loop://?logging=loud",
]
GOOD = [
    "udp://raspberrypi.local:4800",
    "udp://raspberrypi.local.:4800",
    "udp://b\u00fccher.example:4800",
    "udp://my_board:4800",
    "udp://[fe80::1%eth0]:4800",
    "udp://?bind=0.0.0.0:0",
    "rfc2217://server:2000?ign_set_control&timeout=3",
    "socket://server:2000/",
    "loop://",
]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    arguments = ["init", str(tmp_path / "m"), "--node", "pi,port=/dev/ttyUSB0"]
    assert CliRunner().invoke(groundstation.cli.main, arguments).exit_code == 0
    return tmp_path / "m" / "boards" / "pi" / "node.toml"


@pytest.mark.parametrize("url", NEVER)
def test_a_url_that_can_never_be_opened_is_refused_with_its_name(url: str, node: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_node(node, port=url)
    assert url in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("url", GOOD)
def test_a_url_that_may_be_opened_one_day_is_taken(url: str, node: Path) -> None:
    assert load_node(node, port=url).ground.port == url


def test_an_agent_told_to_wait_does_not_wait_for_a_host_that_is_no_name(node: Path) -> None:
    done = run("onboard", "run", str(node), "--wait", "--port", "udp://pi..local:4800", code=2)
    assert done.stderr == (
        "--port 'udp://pi..local:4800': udp://pi..local:4800: 'pi..local' is no name of a host\n"
    )


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/urandom"])
def test_what_is_no_serial_device_is_called_that(device: str) -> None:
    with pytest.raises(PortLost, match=f"{device}: cannot open: it is no serial device$"):
        open_port(device, load_link("uhf-9k6"))
