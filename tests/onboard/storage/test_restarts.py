"""What a restart finds beside the journal is used whole or dropped; a new link has its own epoch."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from onboard.agents.federated_state import CHECKPOINT, KEPT, FederatedState
from onboard.agents.training_files import TrainingFiles, seal, training_name
from onboard.storage.journal import Journal, count_restart, count_start
from onboard.storage.keys import new_key, newest, roll, save_key

NAME = training_name(bytes(16), 1)


def files(journal: Journal[FederatedState]) -> TrainingFiles:
    return TrainingFiles(journal, FederatedState(links={}), 1)


@pytest.fixture
def journal(tmp_path: Path) -> Journal[FederatedState]:
    return Journal(tmp_path, FederatedState, KEPT)


def test_a_checkpoint_comes_back_to_its_own_training(journal: Journal[FederatedState]) -> None:
    assert files(journal).checkpoint(NAME) is None  # there is none, which is nothing to log
    journal.keep(CHECKPOINT, b"the state", seal(NAME, b"the state"))
    assert files(journal).checkpoint(NAME) == b"the state"


@pytest.mark.parametrize("name", [NAME, training_name(bytes(16), 2)], ids=["damaged", "another training's"])
def test_a_checkpoint_that_does_not_fit_is_dropped_and_logged_once(
    name: bytes, journal: Journal[FederatedState], caplog: pytest.LogCaptureFixture
) -> None:
    journal.keep(CHECKPOINT, b"the state", seal(NAME, b"the state"))
    if name == NAME:
        path = journal.folder / CHECKPOINT
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for _ in range(2):
        assert files(journal).checkpoint(name) is None
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno) == ("checkpoint-dropped", logging.WARNING)
    assert not (journal.folder / CHECKPOINT).exists()


def test_a_link_that_begins_again_has_an_epoch_of_its_own(journal: Journal[FederatedState]) -> None:
    known = count_start(journal, [0, 5])
    assert count_restart(journal, known, 5).epoch == 2
    stored = journal.load()
    assert stored is not None
    assert {peer: link.epoch for peer, link in stored.links.items()} == {0: 1, 5: 2}


def test_keys_roll_until_the_ids_are_used_up(tmp_path: Path) -> None:
    keys = {3: bytes(32)}
    for number in range(3):
        keys = roll(keys, bytes([number + 1]) * 32)
    assert list(keys) == [3, 0, 1, 2]
    assert newest(keys) == {2: bytes([3]) * 32}
    with pytest.raises(ValueError, match="no more ids"):
        roll(keys, new_key())
    with pytest.raises(ValueError, match="a key has 32 B"):
        save_key(tmp_path / "node.key", b"short")
