"""A rotten bit in a board's journal costs at most what was last written into it, and the mission ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import onboard.wire.security.seal
from onboard.mission.health import State
from onboard.runtime.loop import RETRY_S
from onboard.storage.journal import SKIPPED, Journal
from tests.missions.bench import QUICK_BPS, bench, change
from tests.missions.clockwork import Clockwork

Make = Callable[..., Clockwork]


def rot(state: Path) -> Path:
    """One bit of the slot that was written last is another."""
    slot = max(state.glob("journal.?"), key=lambda slot: slot.read_bytes()[4:8])
    content = bytearray(slot.read_bytes())
    content[-3] ^= 0x10
    slot.write_bytes(content)
    return slot


WHEN: dict[str, Callable[[Clockwork], object]] = {
    "the model has come": lambda on: on.states(1) == {1: "delivered"},
    "an epoch is over": lambda on: on.said("epoch", round=1),
    "the update is offered": lambda on: on.said("trained", round=1),
    "the update is there": lambda on: on.said("delivered", round=1),
    "the second model has come": lambda on: on.said("heard", round=2),
    "the mission is over": lambda on: on.over,
}


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("drops", [False, True], ids=["files-stay", "files-went"])
def test_a_board_goes_on_with_what_is_left(when: str, drops: bool, clockwork: Make) -> None:
    """The state that is left is one save older than the files beside it, or than what the ground knows."""
    on = clockwork(epochs=2)
    on.boot()
    board = on.boards[1]
    on.run(lambda: WHEN[when](on))
    assert board.agent is not None
    epoch, salt = board.agent.session.epoch, board.agent.session.salt
    board.kill()
    slot = rot(board.state)
    if drops:
        for name in ("update.bin", "training.npz"):
            (board.state / name).unlink(missing_ok=True)
    board.boot(on.now)
    (line,) = on.said("journal-damaged")
    assert line == {"path": str(slot), "why": "its checksum is wrong", "left": "the other slot"}
    assert board.agent.session.epoch in (epoch + SKIPPED + 1, epoch + SKIPPED)
    on.run(lambda: on.over)
    on.run(lambda: board.agent.known.phase is State.IDLE)
    assert on.states(1) == on.states(2) == {1: "answered"}
    assert board.agent.session.salt != salt
    for lie in ("wrong-key", "cloned-or-restored", "out-of-step", "link-failed", "ground-went-back"):
        assert not on.said(lie)


def test_a_board_whose_journal_rots_goes_on_with_its_ground(tmp_path: Path) -> None:
    """The real programs: a bit in the newest slot, and a folder in the place of one after that."""
    with bench(tmp_path, QUICK_BPS, epochs=1, bits_up=0.4, bits_down=0.4) as on:
        change(on.mission / "mission.toml", encrypt="true", rounds=1)
        change(on.node_toml, encrypt="true")
        state = on.node_toml.parent / "state"
        on.start()
        on.until(lambda: on.said("board", "heard", round=1))
        on.kill("board")
        slot = rot(state)
        on.start_board()
        on.until(lambda: len(on.said("board", "rekeyed")) == 2)
        on.kill("board")
        (state / "journal.0").unlink()
        (state / "journal.0").mkdir()
        on.start_board()
        on.finish()
        on.hear_out()
        first, second = on.said("board", "journal-damaged")
        assert (first["path"], first["why"]) == (str(slot), "its checksum is wrong")
        assert (second["path"], second["why"]) == (str(state / "journal.0"), "no regular file")
        assert [row["answers"][0]["state"] for row in on.status()["rounds"]] == ["answered"]
        for lie in ("wrong-key", "cloned-or-restored", "out-of-step"):
            assert not on.said("ground", lie) + on.said("board", lie)


def test_numbers_that_are_used_up_on_a_full_disk_are_no_busy_loop(
    clockwork: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onboard.wire.security.seal, "MAX_SEQ", 25)
    on = clockwork(bits_up=0.4, bits_down=0.4)
    on.boot()
    board = on.boards[1]
    save, full = Journal.save, [False]

    def refuses(journal: Journal, state: object) -> None:  # type: ignore[type-arg]
        if full[0]:
            raise OSError(28, "No space left on device")
        save(journal, state)

    monkeypatch.setattr(Journal, "save", refuses)
    on.run(lambda: board.pump and board.pump.session.snapshot(on.now).frames_sent > 20)
    full[0] = True
    on.run(lambda: on.said("disk-full"))
    began = on.now
    assert board.endpoint is not None
    on.now += 0.01
    board.act(on.now)
    assert board.endpoint.is_suspended  # so that nobody waits for what comes in
    assert board.endpoint.wakeup(on.now) >= began + RETRY_S - 0.1
    on.pass_time(began + 60.0 - on.now)
    assert 2 <= len(on.said("disk-full")) <= 60 / RETRY_S + 1
    full[0] = False
    on.run(lambda: on.over)
