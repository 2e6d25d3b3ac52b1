"""What `quality` rests on: every method is played once, and what is promised is held to FedAvg."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.claims.learning import quality
from benchmarks.claims.learning.quality import Learned, Study
from onboard.learn.networks import shipped

SMALL = Study(
    data="digits", test_data="digits", test_images=100, budgets=(0.1, 0.4, 1.0), most_bits=0.5, rounds=1
)


def test_each_shipped_network_is_studied_and_two_of_them_are_promised() -> None:
    assert set(quality.STUDIES) == set(shipped())
    promised = {name: each.most_bits for name, each in quality.STUDIES.items() if each.most_bits}
    assert promised == {"resnet20-64": 0.2, "unet-64": 0.3}


def test_every_method_is_played_once_and_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, small in {
        "STUDIES": {"lenet5": SMALL},
        "BOARDS": 3,
        "SELECT": 3,
        "IMAGES": 30,
        "ROUND_EPOCHS": 2,
        "SPACEDML_EPOCHS": 2,
        "EPOCHS": 2,
    }.items():
        monkeypatch.setattr(quality, constant, small)
    options = ["quality", "--network", "lenet5", "--out", str(tmp_path / "out"), "--json"]
    played = CliRunner().invoke(main, options)
    rows = {row["what"]: row for row in json.loads(played.stdout.splitlines()[-1])["rows"]}
    ways = {what.split(":")[0].removeprefix("lenet5, ") for what in rows}
    assert ways == {
        "fedavg", "spacedml", "spacedml-fast-0.1", "spacedml-fast-0.4", "spacedml-fast-1", "rd-psgd",
        "rd-psgd-alq",
    }  # fmt: skip
    assert rows["lenet5, spacedml-fast-0.1: bits"]["value"] < 0.15
    assert rows["lenet5, rd-psgd-alq: bits"]["value"] < rows["lenet5, rd-psgd: bits"]["value"] < 4
    assert rows["lenet5, spacedml-fast-0.4: bits up"]["bound"] == 0.5
    monkeypatch.setattr("onboard.data.loading.load", lambda *_, **__: pytest.fail("it was played again"))
    again = CliRunner().invoke(main, [*options, "--plot", str(tmp_path / "bits.png")])
    assert again.stdout == played.stdout
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("score", "bits", "held"), [(0.79, 0.2, True), (0.789, 0.2, False), (0.8, 0.21, False)]
)
def test_a_promise_is_broken_by_a_point_or_by_bits(score: float, bits: float, held: bool) -> None:
    runs = {
        "fedavg": [Learned(0.82, 32.0), Learned(0.78, 32.0)],
        f"spacedml-fast-{quality.STUDIES['resnet20-64'].budgets[1]:g}": [Learned(score, bits)],
    }
    rows = list(quality._rows("resnet20-64", runs))
    assert all(row.holds for row in rows) == held
