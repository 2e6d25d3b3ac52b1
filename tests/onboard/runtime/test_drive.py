"""What a trainer's steps cost is booked once and paces the next, and one that does not end is told."""

from __future__ import annotations

import logging

import pytest

from onboard.board.budget import CpuShare, Pace
from onboard.learn.training import Stepped
from onboard.mission.health import Failure
from onboard.runtime.federated import STALLED_S, Drive
from onboard.trainer.job import Begun, Failed, Job, Report, TrainingDone


class Hand:
    """A trainer whose reports a test gives it."""

    fds: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.told: list[Report] = []
        self.asked = 0

    def begin(self, job: Job) -> None: ...

    def step(self, *, save: bool = False) -> None:
        self.asked += 1

    def reports(self) -> list[Report]:
        told, self.told = self.told, []
        return told

    def stop(self) -> None: ...


class DrivenBoard:
    """An agent with a training, on a disk that is full while `full`."""

    def __init__(self) -> None:
        self.trainer = Hand()
        self.work: object | None = object()
        self.ready = False
        self.flops_a_step = 1e9
        self.cpu_s = 0.0
        self.taken: list[Report] = []
        self.full = False

    def ask(self, now: float) -> None:
        self.ready = False
        self.trainer.step()

    def charge(self, cpu_s: float) -> None:
        self.cpu_s += cpu_s

    def take(self, report: Report, now: float) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.taken.append(report)
        self.ready = True
        if isinstance(report, TrainingDone | Failed):
            self.work, self.ready = None, False


STEPPED = Stepped(epoch=1, epochs=1, batch=1, batches=9, loss=1.0, epoch_loss=1.0, cpu_s=0.25)


def turn(drive: Drive, now: float) -> None:
    drive.turn(now, lambda: now)


@pytest.fixture
def board() -> DrivenBoard:
    return DrivenBoard()


@pytest.fixture
def driven(board: DrivenBoard) -> Drive:
    """At half of a CPU, one step asked for at 10 s."""
    drive = Drive(board, CpuShare(Pace(0.5)))
    board.trainer.told = [Begun(flops_a_step=1e9)]
    turn(drive, 10.0)
    assert board.trainer.asked == 1
    return drive


def test_the_next_step_begins_when_the_share_allows(board: DrivenBoard, driven: Drive) -> None:
    turn(driven, 10.1)
    assert (board.trainer.asked, driven.running_s(10.1)) == (1, pytest.approx(0.1))
    board.trainer.told = [STEPPED]
    turn(driven, 10.3)
    assert (board.cpu_s, board.trainer.asked, driven.wakeup()) == (0.25, 1, 10.5)
    assert driven.running_s(10.4) == 0.0
    turn(driven, 10.5)
    assert board.trainer.asked == 2


def test_a_start_that_took_cpu_counts(board: DrivenBoard) -> None:
    drive = Drive(board, CpuShare(Pace(0.1)))
    turn(drive, 5.0)
    board.trainer.told = [Begun(flops_a_step=1e9, cpu_s=1.0)]
    turn(drive, 6.0)
    assert (board.trainer.asked, board.cpu_s, drive.wakeup()) == (0, 1.0, 15.0)


def test_an_emulated_board_is_as_fast_as_its_profile_and_starts_at_no_cost(board: DrivenBoard) -> None:
    drive = Drive(board, CpuShare(Pace(1.0, train_flops=1e8)))
    board.trainer.told = [Begun(flops_a_step=1e9, cpu_s=1.0)]
    turn(drive, 1.0)
    board.trainer.told = [STEPPED]
    turn(drive, 1.1)
    assert (board.cpu_s, drive.wakeup()) == (10.0, 11.0)


def test_what_the_disk_refuses_is_told_again_and_costs_once(board: DrivenBoard, driven: Drive) -> None:
    board.full = True
    board.trainer.told = [STEPPED]
    for now in (10.3, 15.3):
        with pytest.raises(OSError, match="No space"):
            turn(driven, now)
    board.full = False
    turn(driven, 20.3)
    assert board.taken[1:] == [STEPPED]
    assert (board.cpu_s, board.trainer.asked) == (0.25, 2)


def test_what_the_disk_refused_of_a_training_that_was_superseded_is_forgotten(
    board: DrivenBoard, driven: Drive
) -> None:
    board.full = True
    board.trainer.told = [STEPPED]
    with pytest.raises(OSError, match="No space"):
        turn(driven, 10.3)
    board.full, board.work, board.ready = False, object(), False
    turn(driven, 20.3)
    assert len(board.taken) == 1


def test_a_step_that_does_not_end_is_told_once(
    board: DrivenBoard, driven: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for now in (11.0, 10.0 + STALLED_S, 10.5 + STALLED_S, 20.0 + STALLED_S):
        turn(driven, now)
    (record,) = caplog.records
    assert record.getMessage() == "training-stalled"
    board.trainer.told = [Failed(failure=Failure.PROCESS, why="killed")]
    turn(driven, 300.0)
    assert (driven.running_s(400.0), driven.wakeup()) == (0.0, float("inf"))
