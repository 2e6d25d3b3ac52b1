"""The shipped networks are what the code builds, byte for byte."""

from pathlib import Path

import pytest

from groundstation.models.__main__ import BUILDERS
from groundstation.models.folder import write_network
from onboard.learn.networks import SHIPPED, shipped

QUICK = ["lenet5", "lenet5-rgb", "resnet20", "resnet20-64"]


def test_what_ships_is_what_can_be_rebuilt() -> None:
    assert shipped() == sorted(BUILDERS)


@pytest.mark.parametrize("name", QUICK)
def test_rebuilding_gives_the_shipped_bytes(name: str, tmp_path: Path) -> None:
    network, _ = BUILDERS[name](name)
    write_network(tmp_path / name, network.about, network.parts)
    built = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert built == {path.name: path.read_bytes() for path in (SHIPPED / name).iterdir()}
