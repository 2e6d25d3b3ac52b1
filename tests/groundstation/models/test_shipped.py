"""The shipped networks are what the code builds, byte for byte."""

from pathlib import Path

import pytest

from groundstation.models.__main__ import BUILDERS
from groundstation.models.folder import write_network
from onboard.learn.networks import SHIPPED

SLOW = ["resnet20-64", "mobilenetv3-small-64", "unet-64", "vit-tiny-64"]  # torch traces them for 7 to 25 s


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.by_hand] * (name in SLOW)) for name in BUILDERS]
)
def test_rebuilding_gives_the_shipped_bytes(name: str, tmp_path: Path) -> None:
    network, _ = BUILDERS[name](name)
    write_network(tmp_path / name, network.about, network.parts)
    built = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert built == {path.name: path.read_bytes() for path in (SHIPPED / name).iterdir()}
