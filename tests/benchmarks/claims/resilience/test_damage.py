"""A few damages are played to their end, and what the benchmark is to find is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import onboard.agents.federated
from benchmarks.__main__ import main
from benchmarks.claims.resilience.damage import RULES, VICTIMS, DamageCase, Wish, undamaged
from benchmarks.harness.missions import founded_in
from onboard.agents.federated_state import FederatedState
from onboard.storage.journal import Journal

USED, NOT_TOLD = RULES[2], RULES[3]


@pytest.fixture(autouse=True, scope="module")
def _founded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with founded_in(tmp_path_factory.mktemp("missions")):
        yield


def played(number: int, victim: str, file: str, harm: str) -> DamageCase:
    case = DamageCase(0, number, Wish(victim, file, harm))
    case.play()
    return case


def test_every_sort_of_file_is_there_at_some_moment() -> None:
    kept = {victim: set(undamaged(mission, True).seen[victim]) for victim, mission in VICTIMS.items()}
    assert kept["board-1"] >= {
        "journal.0", "journal.1", "lock", "model.bin", "update.bin", "training.npz", "deployed.bin",
        "spool/finished", "spool/*.part", "spool/*.map",
    }  # fmt: skip
    assert kept["node-2"] >= {"gossip.npz", "model.npz", "exchanges/*.sent", "exchanges/*.taken"}
    assert kept["ground"] >= {"mission.sqlite", "mission.sqlite-wal", "mission.sqlite-shm", "lock"}


@pytest.mark.parametrize(
    ("victim", "file", "harm"),
    [("board-1", "model.bin", "bit"), ("ground", "mission.sqlite-shm", "zeros"), ("node-2", "lock", "gone")],
)
def test_a_mission_outlives_a_damage(victim: str, file: str, harm: str) -> None:
    case = played(1, victim, file, harm)
    assert f"{file}, {harm}" in case.what
    assert not [rule for rule, _ in case.broken if "told" not in rule]


def test_a_case_is_its_number() -> None:
    one, again = (played(3, "board-1", "lock", "gone") for _ in range(2))
    assert (one.what, one.broken, one.told) == (again.what, again.broken, again.told)


def test_an_object_that_is_used_unchecked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(journal: Journal[FederatedState], name: str, kind: int, digest: bytes) -> bytes | None:
        return journal.fetch(name)

    monkeypatch.setattr(onboard.agents.federated, "kept_object", unchecked)
    # Not in each: the ground may have the update already, or the bit may be one of those that it checks.
    broken = (dict(played(number, "board-1", "update.bin", "bit").broken).keys() for number in range(6))
    assert any(rules >= {USED, NOT_TOLD} for rules in broken)


def test_a_program_that_does_not_come_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = []

    def load(journal: Journal[FederatedState]) -> FederatedState:
        lives.append(journal)
        if len(lives) > 2:  # of two boards
            raise ValueError("a state that nobody foresaw")
        return FederatedState(links={})

    monkeypatch.setattr(Journal, "load", load)
    done = CliRunner().invoke(
        main, ["damage", "--only", "2", "--victim", "board-1", "--file", "lock", "--json"]
    )
    assert done.exit_code == 1
    assert "ValueError: a state that nobody foresaw" in done.stderr
    assert "case 2 (board-1" in done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert not rows[f"cases in which {RULES[0]}"]["holds"]


def test_a_case_that_was_played_is_not_played_again(tmp_path: Path) -> None:
    words = ["damage", "--only", "5", "--victim", "board-1", "--file", "lock", "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(main, words)
    kept = (tmp_path / "out").read_text()
    again = CliRunner().invoke(main, words)
    assert (first.exit_code, first.stdout) == (again.exit_code, again.stdout)
    assert (tmp_path / "out").read_text() == kept


def test_a_file_that_the_program_never_has_is_bad_input() -> None:
    done = CliRunner().invoke(main, ["damage", "--victim", "ground", "--file", "model.bin", "--count", "1"])
    assert done.exit_code == 2
    assert "ground has no file 'model.bin'; there are lock" in done.stderr
