"""What slots tell of networks in them, and what a record says after each thing that can befall one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onboard.learn.networks import DESCRIPTION, SHIPPED, Network
from onboard.storage.model_slots import SLOTS, TRIES, ModelSlots, NetworkRecord

LENET5, RESNET20 = (Network.load(name) for name in ("lenet5", "resnet20"))
FIRST, SECOND = b"1" * 8, b"2" * 8


@pytest.fixture
def slots(tmp_path: Path) -> ModelSlots:
    return ModelSlots(tmp_path / "state", tmp_path / "models")


def install(slots: ModelSlots, slot: str, network: Network) -> None:
    slots.clear(slot, [DESCRIPTION, *network.file.files], keep=False)
    for name in (*network.file.files, DESCRIPTION):
        shutil.copy(network.folder / name, slots.folder(slot) / name)


def test_a_network_is_proven_by_a_step_and_doomed_by_two_deaths() -> None:
    record = NetworkRecord().installed(FIRST)
    assert (record.active, record.before, record.is_proven) == (FIRST, b"", False)
    for _ in range(TRIES):
        assert not record.is_doomed
        record = record.tried()
    assert record.is_doomed
    assert not record.survived().is_doomed
    proven = record.proven()
    assert (proven.is_proven, proven.attempts) == (True, 0)
    assert not proven.tried().tried().is_doomed


def test_what_was_rolled_back_is_not_used_until_it_is_installed_again() -> None:
    record = NetworkRecord().installed(FIRST).proven().installed(SECOND)
    back = record.rolled_back()
    assert (back.active, back.before, back.withdrawn, back.is_proven) == (FIRST, b"", (SECOND,), True)
    assert back.installed(SECOND).withdrawn == ()
    again = back.installed(FIRST)
    assert (again.active, again.withdrawn) == (FIRST, (SECOND,))
    assert FIRST in NetworkRecord(FIRST, withdrawn=(FIRST,)).rolled_back().withdrawn


def test_networks_are_found_where_they_lie_and_the_active_one_first(slots: ModelSlots) -> None:
    install(slots, "a", LENET5)
    install(slots, "b", RESNET20)
    record = NetworkRecord(active=RESNET20.digest, before=LENET5.digest)
    assert [each.folder for each in slots.networks(record)][:2] == [slots.folder("b"), slots.folder("a")]
    found = slots.find(RESNET20.digest, record)
    assert found is not None
    assert found.folder == slots.folder("b")
    assert slots.find(RESNET20.digest, record.rolled_back()) is None
    assert slots.find(b"nobody's", record) is None
    graph = bytes.fromhex(LENET5.file.files["train.onnx"])
    assert slots.holders()[graph] == [slots.folder("a") / "train.onnx", SHIPPED / "lenet5" / "train.onnx"]
    assert slots.versions() == ()  # no shipped network brings weights


def test_a_folder_beside_the_node_file_is_a_network_too(slots: ModelSlots, tmp_path: Path) -> None:
    shutil.copytree(LENET5.folder, tmp_path / "models" / "mine")
    assert next(slots.networks()).folder == tmp_path / "models" / "mine"


def test_the_next_network_goes_where_it_is_or_where_none_is_missed(slots: ModelSlots) -> None:
    assert slots.slot_for(LENET5.digest, NetworkRecord()) == SLOTS[0]
    install(slots, "b", LENET5)
    assert slots.slot_for(LENET5.digest, NetworkRecord()) == "b"
    install(slots, "a", RESNET20)
    active = NetworkRecord(active=RESNET20.digest, before=LENET5.digest)
    assert slots.slot_for(b"a third", active) == "b"
    assert slots.slot_for(b"a third", NetworkRecord(LENET5.digest, RESNET20.digest)) == "a"


def test_a_description_that_cannot_be_read_makes_an_empty_slot(slots: ModelSlots) -> None:
    install(slots, "a", LENET5)
    (slots.folder("a") / DESCRIPTION).write_text("name = [")
    assert slots.held("a") is None
    assert not (slots.folder("a") / DESCRIPTION).exists()
    assert slots.held("b") is None


def test_clearing_keeps_what_the_next_network_needs(slots: ModelSlots) -> None:
    install(slots, "a", LENET5)
    slots.clear("a", [DESCRIPTION, "train.onnx"], keep=True)
    assert {path.name for path in slots.folder("a").iterdir()} == {DESCRIPTION, "train.onnx"}
    slots.clear("a", ["train.onnx"], keep=False)
    assert slots.held("a") is None
    assert slots.taken == ()
