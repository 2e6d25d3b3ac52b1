"""What the tests of agents share."""

from __future__ import annotations

from pathlib import Path

import pytest

from onboard.config import NodeConfig, load_node
from onboard.storage.keys import new_key, save_key


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """A node whose port is never opened: the test is its link."""
    save_key(tmp_path / "node.key", new_key())
    (tmp_path / "node.toml").write_text(
        '[node]\nid = 1\nname = "pi"\nboard = "raspberry-pi-4"\n'
        '[link]\nport = "udp://127.0.0.1:9"\nprofile = "bench-udp"\n[budget]\ncheckpoint_s = 0.001\n'
    )
    return load_node(tmp_path / "node.toml")
