"""A start of a node is counted once, whatever became of a slot of its journal, and what is wrong is told."""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onboard.storage.journal
from firmware_sim.world.disk import scratch
from onboard.agents.federated_state import KEPT, FederatedState
from onboard.agents.gossip_memory import GossipState
from onboard.storage.journal import SKIPPED, Journal, LinkState, count_start
from onboard.wire.events import QuotaUsage
from onboard.wire.security.seal import MAX_EPOCH

Damage = Callable[[Path, random.Random], None]


def flip(slot: Path, drawn: random.Random) -> None:
    content = bytearray(slot.read_bytes())
    content[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
    slot.write_bytes(content)


def cut(slot: Path, drawn: random.Random) -> None:
    os.truncate(slot, drawn.randrange(slot.stat().st_size))


def zeros(slot: Path, drawn: random.Random) -> None:
    slot.write_bytes(bytes(slot.stat().st_size))


def gone(slot: Path, drawn: random.Random) -> None:
    slot.unlink()


def other_slot(slot: Path, drawn: random.Random) -> None:
    other = slot.with_name("journal.1" if slot.name == "journal.0" else "journal.0")
    slot.write_bytes(other.read_bytes())


def other_file(slot: Path, drawn: random.Random) -> None:
    slot.write_bytes(drawn.randbytes(drawn.randrange(3000)))


def a_folder(slot: Path, drawn: random.Random) -> None:
    slot.unlink()
    slot.mkdir()


def link(slot: Path, drawn: random.Random) -> None:
    slot.rename(slot.with_name("elsewhere"))
    slot.symlink_to("elsewhere")


def pipe(slot: Path, drawn: random.Random) -> None:
    slot.unlink()
    os.mkfifo(slot)


def more(slot: Path, drawn: random.Random) -> None:
    os.truncate(slot, 0)
    os.truncate(slot, 2**40)  # sparse: whoever reads it whole has no memory left


DAMAGE: list[Damage] = [flip, cut, zeros, gone, other_slot, other_file, a_folder, link, pipe, more]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The lines of damage since it was asked last."""
    caplog.set_level(logging.WARNING)

    def since() -> list[dict[str, Any]]:
        lines = [r.__dict__["fields"] for r in caplog.records if r.getMessage() == "journal-damaged"]
        caplog.clear()
        return lines

    return since


Told = Callable[[], list[dict[str, Any]]]


def newest(state: Path) -> Path:
    """The slot that was written last: both hold their generation behind four bytes."""
    return max(state.glob("journal.?"), key=lambda slot: slot.read_bytes()[4:8])


def start(state: Path) -> tuple[Journal[FederatedState], FederatedState]:
    journal = Journal(state, FederatedState, KEPT)
    return journal, count_start(journal, [0])


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["newest", "older"])
def test_a_damaged_slot_is_named_once_and_no_epoch_comes_twice(
    damage: Damage, which: str, tmp_path: Path, told: Told
) -> None:
    drawn = random.Random(5)
    used = [start(tmp_path)[1].links[0].epoch for _ in range(5)]
    assert told() == []
    for saves in (0, 1, 2):
        journal, known = start(tmp_path)
        used.append(known.links[0].epoch)
        for number in range(saves):
            known.round = number
            journal.save(known)
        slot = newest(tmp_path)
        if which == "older":
            slot = slot.with_name("journal.1" if slot.name == "journal.0" else "journal.0")
        damage(slot, drawn)
        used.append(start(tmp_path)[1].links[0].epoch)
        (line,) = told()
        assert line["left"] == "the other slot"
        assert line["path"] == str(slot)
        assert line["why"]
        used.append(start(tmp_path)[1].links[0].epoch)
        assert told() == []  # it is healed
    assert len(set(used)) == len(used)
    assert used == sorted(used)


def test_an_older_version_of_one_slot_is_noticed(tmp_path: Path, told: Told) -> None:
    """Where the newest is exchanged, the epoch that was used in it may not come again."""
    for name in ("journal.0", "journal.1"):
        used = [start(tmp_path)[1].links[0].epoch for _ in range(4)]
        old = (tmp_path / name).read_bytes()
        used += [start(tmp_path)[1].links[0].epoch for _ in range(12 + (newest(tmp_path).name != name))]
        assert newest(tmp_path).name == name
        (tmp_path / name).write_bytes(old)
        used.append(start(tmp_path)[1].links[0].epoch)
        (line,) = told()
        assert line["path"] == str(tmp_path / name)
        assert "a copy of another time" in line["why"]
        assert len(set(used)) == len(used)


def test_slots_that_changed_places_are_noticed_and_set_right(tmp_path: Path, told: Told) -> None:
    used = [start(tmp_path)[1].links[0].epoch for _ in range(4)]
    (tmp_path / "journal.0").rename(tmp_path / "other")
    (tmp_path / "journal.1").rename(tmp_path / "journal.0")
    (tmp_path / "other").rename(tmp_path / "journal.1")
    used += [start(tmp_path)[1].links[0].epoch for _ in range(2)]
    assert [line["why"] for line in told()] == ["has changed places with the other one"]
    assert len(set(used)) == len(used)


@pytest.mark.parametrize("name", ["journal.0", "journal.1"])
def test_a_sector_that_cannot_be_read_costs_one_slot(
    name: str, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No device here fails on demand, so read(2) is made to."""
    used = [start(tmp_path)[1].links[0].epoch for _ in range(4)]
    real = os.fdopen
    bad = (tmp_path / name).stat().st_ino

    def fdopen(handle: int, *arguments: Any, **options: Any) -> Any:
        if os.fstat(handle).st_ino == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(handle, *arguments, **options)

    monkeypatch.setattr(onboard.storage.journal.os, "fdopen", fdopen)
    used += [start(tmp_path)[1].links[0].epoch for _ in range(3)]
    (line,) = told()
    assert (line["path"], line["why"]) == (str(tmp_path / name), "Input/output error")
    assert (tmp_path / f"{name}.bad1").stat().st_ino == bad  # its sectors are not written to again
    assert len(set(used)) == len(used)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_node_whose_slots_are_both_damaged_starts_as_a_new_one_and_says_so(
    damage: Damage, tmp_path: Path, told: Told
) -> None:
    drawn = random.Random(6)
    used = [start(tmp_path)[1].links[0].epoch for _ in range(4)]
    (tmp_path / KEPT[0]).write_bytes(b"a model")
    damage(tmp_path / "journal.0", drawn)
    if damage is other_slot:
        (tmp_path / "journal.1").write_bytes(b"")
        (tmp_path / "journal.0").write_bytes(b"")
    else:
        damage(tmp_path / "journal.1", drawn)
    _, known = start(tmp_path)
    assert [line["left"] for line in told()] == ["nothing: it starts as a new one"] * 2
    assert (known.round, known.model) == (0, b"")
    assert known.links[0].epoch not in used
    assert start(tmp_path)[1].links[0].epoch == known.links[0].epoch + 1
    assert told() == []


def test_a_new_node_and_one_that_started_once_are_no_damage(tmp_path: Path, told: Told) -> None:
    assert [start(tmp_path)[1].links[0].epoch for _ in range(4)] == [1, 2, 3, 4]
    assert told() == []


def test_the_power_goes_in_the_first_write_of_all(tmp_path: Path, told: Told) -> None:
    (tmp_path / "journal.1").write_bytes(b"SDJ")
    assert start(tmp_path)[1].links[0].epoch == SKIPPED + 1
    (line,) = told()
    assert line["path"].endswith("journal.1")


def test_a_folder_of_another_user_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def refused(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(onboard.storage.journal.os, "open", refused)  # as root a test may read everything
        with pytest.raises(PermissionError):
            start(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kill_between_the_two_saves_that_heal_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, used = random.Random(7), [start(tmp_path)[1].links[0].epoch for _ in range(4)]
    flip(newest(tmp_path), drawn)
    saves, save = iter(range(9)), Journal.save

    def killed(journal: Journal[FederatedState], state: FederatedState) -> None:
        if next(saves) == 1:
            raise KeyboardInterrupt
        save(journal, state)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
    flip(newest(tmp_path), drawn)
    used.append(start(tmp_path)[1].links[0].epoch)
    assert len(set(used)) == len(used)


def test_two_hundred_starts_with_damage_in_every_third() -> None:
    with scratch() as folder:
        _starts(folder, random.Random(8))


def _starts(folder: Path, drawn: random.Random) -> None:
    for life in range(12):  # each of them before the epochs go round
        state = folder / str(life)
        used = []
        for _ in range(18):
            journal, known = start(state)
            used.append(known.links[0].epoch)
            for _ in range(drawn.randrange(4)):
                journal.save(known)
            if drawn.random() < 0.33:
                slots = sorted(state.glob("journal.?"))
                drawn.choice(DAMAGE[:-1] if len(slots) == 2 else [flip, cut, zeros])(
                    drawn.choice(slots), drawn
                )
        assert len(set(used)) == len(used)


def test_epochs_that_go_round_skip_as_well(tmp_path: Path) -> None:
    journal, known = start(tmp_path)
    known.links[0].epoch = MAX_EPOCH
    journal.save(known)
    assert start(tmp_path)[1].links[0].epoch == 1  # and the slot of it is lost, so that 65,535 seems the last
    flip(newest(tmp_path), random.Random(9))
    assert start(tmp_path)[1].links[0].epoch == SKIPPED + 1


def test_what_a_node_that_gossips_may_send_its_neighbours_outlives_a_slot(tmp_path: Path, told: Told) -> None:
    links = {
        2: LinkState(epoch=1, spent=QuotaUsage(contact_bytes=700)),
        5: LinkState(epoch=1, spent=QuotaUsage(contact_bytes=90)),
    }
    journal = Journal(tmp_path, GossipState)
    used = [count_start(journal, [2, 5]).links[2].epoch]
    for _ in range(3):
        journal.save(GossipState(links=links))
    flip(newest(tmp_path), random.Random(3))
    known = count_start(Journal(tmp_path, GossipState), [2, 5])
    assert known.links[2].epoch not in used
    assert {peer: link.spent for peer, link in known.links.items()} == {
        peer: link.spent for peer, link in links.items()
    }
    assert len(told()) == 1
