"""The agent alone, told events on a clock of the test's: what it takes, what it refuses, what survives."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from onboard.agents.federated import FederatedAgent
from onboard.agents.federated_state import FederatedState
from onboard.config import NodeConfig, load_node
from onboard.data import loading
from onboard.learn.graph import TrainGraph
from onboard.learn.training import BoardTraining
from onboard.mission.health import State
from onboard.mission.objects import MODEL, UPDATE, Task, decode_update, encode_object
from onboard.runtime.federated import board_agent
from onboard.storage.journal import Journal
from onboard.storage.keys import load_keys, new_key, save_key
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Begun, Job
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Arrived, Cancelled, Delivered, Event, QuotaUsage, Rekeyed
from onboard.wire.messages import Reason, digest
from onboard.wire.security.seal import NO_SALT
from onboard.wire.session import Session

GRAPH = TrainGraph.load("lenet5")
IMAGES = loading.load("digits", part="train").take(np.arange(20))


def model(round_number: int = 1, mission: bytes = b"missionA", **changes: object) -> Arrived:
    fields: dict[str, object] = {
        "mission": mission, "round": round_number, "model": "lenet5", "graph": GRAPH.digest, "seed": 1,
        "weights": "seed", "deadline_s": 60.0,
        "training": BoardTraining(epochs=1, shift_pixels=0, distortion=0.0),
    }  # fmt: skip
    payload = encode_object(Task(**(fields | changes)), b"")  # type: ignore[arg-type]
    return Arrived(digest(MODEL, payload), MODEL, payload)


def a_ground(config: NodeConfig, now: float) -> Session:
    """A run of the ground's program."""
    return Session(
        Identity(0, 1, primary=True),
        Medium(config.ground.link),
        Security(load_keys(config.ground.key_path), nonce=os.urandom),
        SessionState(epoch=1),
        now=now,
    )


def arrive(
    agent: FederatedAgent, arrived: Arrived, config: NodeConfig, now: float, ground: Session | None = None
) -> None:
    """Sends the object over the wire to the agent's session, and tells the agent. Each time from another run
    of the ground's program, unless one is given."""
    ground = ground or a_ground(config, now)
    ground.offer(arrived.kind, arrived.payload, now)
    told: list[object] = []
    for step in range(4000):
        at = now + step * 1e-3
        for sender, receiver in ((ground, agent.session), (agent.session, ground)):
            while (frame := sender.transmit(at)) is not None:
                for event in receiver.receive(frame, at):
                    if isinstance(event, Rekeyed) and receiver is ground:
                        ground.rekey(event.salt)
                    elif isinstance(event, Rekeyed):
                        agent.handle(event, at)
                    elif isinstance(event, Arrived) and receiver is agent.session:
                        told.append(event)
        if told:
            break
    assert told == [arrived]
    agent.handle(arrived, now)


def told(agent: FederatedAgent, now: float) -> None:
    """The agent takes what its trainer reports; a step has cost 10 ms."""
    for report in agent.trainer.reports():
        agent.charge(0.0 if isinstance(report, Begun) else 0.01)
        agent.take(report, now)


def train(agent: FederatedAgent, now: float = 100.0, steps: int = 10_000) -> None:
    told(agent, now)
    for step in range(steps):
        if agent.work is None:
            return
        agent.ask(now + step)
        told(agent, now + step)


def offered(agent: FederatedAgent) -> list[int]:
    return [p.kind for p in agent.session.snapshot(0.0).objects if not p.incoming]


def test_a_task_becomes_a_durable_update_and_is_dropped_only_when_delivered(config: NodeConfig) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    arrive(agent, model(), config, 0.0)
    assert agent.known.phase is State.TRAINING
    train(agent)
    assert agent.known.phase is State.OFFERING
    kept = (config.state / "update.bin").read_bytes()
    update, weights = decode_update(kept)
    assert (update.mission, update.round, update.node, update.samples) == (b"missionA", 1, 1, 20)
    assert update.cpu_s == pytest.approx(0.01 * 5)  # four batches, and the step that found no more
    assert len(weights) < 0.1 * GRAPH.layout.parameters / 8
    agent.handle(Delivered(digest(UPDATE, kept)), 2.0)
    assert agent.known.phase is State.IDLE
    assert not (config.state / "update.bin").exists()


def test_what_was_spent_of_an_allowance_is_durable(config: NodeConfig) -> None:
    ground = msgspec.structs.replace(config.ground, bytes_per_day=64_000.0)
    config = msgspec.structs.replace(config, ground=ground)
    agent, link = board_agent(config, LocalTrainer(IMAGES), 0.0)
    (spent,) = [event for event in link.session.tick(0.0) if isinstance(event, QuotaUsage)]
    assert spent == QuotaUsage(2000, ((0.0, 2000),))
    agent.handle(spent, 0.0)
    after, link = board_agent(config, LocalTrainer(IMAGES), 50.0)
    assert after.known.links[0].spent == spent
    (again,) = [event for event in link.session.tick(50.0) if isinstance(event, QuotaUsage)]
    assert again == QuotaUsage(4000, ((0.0, 4000),))  # what was counted ahead stays spent


def test_what_was_trained_survives_a_power_cut(config: NodeConfig) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    arrive(agent, model(), config, 0.0)
    train(agent)
    kept = (config.state / "update.bin").read_bytes()
    after, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    after.resume(0.0)
    assert offered(after) == [UPDATE]
    assert after.known.update == digest(UPDATE, kept)
    assert after.known.links[0].epoch == agent.known.links[0].epoch + 1


def test_a_training_that_was_cut_ends_in_the_same_update(config: NodeConfig, tmp_path: Path) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    arrive(agent, model(training=BoardTraining(epochs=3, shift_pixels=0, distortion=0.0)), config, 0.0)
    train(agent, steps=5)  # into the third epoch
    after, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    after.resume(0.0)
    told(after, 0.0)
    assert after.work is not None
    assert after.work.epoch == 2
    train(after)
    cut = decode_update((config.state / "update.bin").read_bytes())
    (tmp_path / "whole").mkdir()
    for name in ("node.toml", "node.key"):
        (tmp_path / "whole" / name).write_bytes((tmp_path / name).read_bytes())
    other = load_node(tmp_path / "whole" / "node.toml")
    whole, _ = board_agent(other, LocalTrainer(IMAGES), 0.0)
    arrive(whole, model(training=BoardTraining(epochs=3, shift_pixels=0, distortion=0.0)), other, 0.0)
    train(whole)
    assert bytes(cut[1]) == bytes(decode_update((other.state / "update.bin").read_bytes())[1])


class Told(LocalTrainer):
    """Remembers its jobs."""

    def __init__(self) -> None:
        super().__init__(IMAGES)
        self.jobs: list[Job] = []

    def begin(self, job: Job) -> None:
        self.jobs.append(job)
        super().begin(job)


def owing(round_number: int, **changes: object) -> Arrived:
    knobs = BoardTraining(epochs=1, shift_pixels=0, distortion=0.0, error_feedback=0.5)
    return model(round_number, **{"training": knobs} | changes)  # type: ignore[arg-type]


def asked(config: NodeConfig, *tasks: Arrived) -> list[bool]:
    """Whether a board that starts anew before each of these tasks begins it with a residual."""
    found = []
    for at, task in enumerate(tasks):
        trainer = Told()
        agent, _ = board_agent(config, trainer, 1000.0 * at)
        agent.resume(1000.0 * at)
        arrive(agent, task, config, 1000.0 * at)
        train(agent, 1000.0 * at)
        agent.handle(Delivered(agent.known.update), 1000.0 * at)
        found.append(trainer.jobs[-1].residual is not None)
    return found


def test_what_an_update_had_no_bits_for_is_there_in_later_rounds_of_its_mission(config: NodeConfig) -> None:
    rounds = [owing(1), owing(3), owing(3, asking=1), owing(7), owing(8, mission=b"missionB"), owing(9)]
    assert asked(config, *rounds[:4]) == [False, True, False, True]  # who asks again may have lost it
    assert len([path for path in config.state.iterdir() if path.name.startswith("residual")]) == 1
    assert asked(config, *rounds[4:]) == [False, False]
    without = model(10)
    assert asked(config, without, owing(11)) == [False, False]  # too old to be true


def test_a_residual_that_the_journal_does_not_name_is_not_used(config: NodeConfig) -> None:
    asked(config, owing(1))
    (kept,) = config.state.glob("residual.*")
    other = config.state / ("residual.0" if kept.name == "residual.1" else "residual.1")
    other.write_bytes(kept.read_bytes())  # a power cut came before the journal
    trainer = Told()
    agent, _ = board_agent(config, trainer, 5000.0)
    agent.resume(5000.0)
    arrive(agent, owing(2), config, 5000.0)
    assert trainer.jobs[-1].residual == kept.read_bytes()[: 2 * GRAPH.layout.parameters]
    assert not other.exists()


def test_a_damaged_residual_costs_itself_alone(config: NodeConfig, caplog: pytest.LogCaptureFixture) -> None:
    asked(config, owing(1))
    (kept,) = config.state.glob("residual.*")
    content = bytearray(kept.read_bytes())
    content[1000] ^= 1
    kept.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert asked(config, owing(2), owing(3)) == [False, True]
    assert [record.message for record in caplog.records].count("residual-dropped") == 1


def test_a_disk_without_room_for_the_residual_keeps_the_update(
    config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Journal.keep

    def full(journal: Journal[FederatedState], name: str, *content: bytes) -> None:
        if name.startswith("residual"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        keep(journal, name, *content)

    monkeypatch.setattr(Journal, "keep", full)
    agent, _ = board_agent(config, Told(), 0.0)
    arrive(agent, owing(1), config, 0.0)
    train(agent)
    assert agent.known.phase is State.OFFERING
    assert agent.known.residual is None
    monkeypatch.undo()
    assert asked(config, owing(2), owing(3)) == [False, True]


def test_a_newer_round_supersedes_and_an_older_one_that_comes_late_is_refused(config: NodeConfig) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    ground = a_ground(config, 0.0)
    arrive(agent, model(2), config, 0.0, ground)
    arrive(agent, model(3), config, 10.0, ground)
    assert agent.work is not None
    assert agent.work.task.round == 3
    arrive(agent, model(2, seed=9), config, 20.0, ground)
    assert agent.work.task.round == 3
    train(agent)
    assert decode_update((config.state / "update.bin").read_bytes())[0].round == 3


@pytest.mark.parametrize("restarts", [False, True], ids=["the board runs on", "the board starts again, too"])
@pytest.mark.parametrize("same", [False, True], ids=["another question", "the very question of then"])
def test_a_ground_that_was_restored_asks_an_earlier_round_and_is_answered(
    same: bool, restarts: bool, config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    agent, link = board_agent(config, LocalTrainer(IMAGES), 0.0)
    ground = a_ground(config, 0.0)
    for number in (1, 2, 3):
        arrive(agent, model(number), config, 100.0 * number, ground)
        train(agent, 100.0 * number + 10)
        agent.handle(Delivered(agent.known.update), 100.0 * number + 90)
    if restarts:
        link.pump.close(400.0)
        agent, _ = board_agent(config, LocalTrainer(IMAGES), 400.0)
        agent.resume(400.0)
    arrive(agent, model(1) if same else model(1, seed=5), config, 500.0)
    train(agent, 510.0)
    assert decode_update((config.state / "update.bin").read_bytes())[0].round == 1
    told = [record for record in caplog.records if record.getMessage() == "ground-went-back"]
    assert [record.__dict__["fields"]["before"] for record in told] == [3]


@pytest.mark.parametrize(
    "end", [Delivered, partial(Cancelled, reason=Reason.REFUSED)], ids=["delivered", "refused"]
)
def test_what_became_of_an_update_says_nothing_of_the_round_that_was_heard_before(
    end: Callable[[bytes], Event], config: NodeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    caplog.set_level(logging.INFO)
    ground = a_ground(config, 0.0)
    arrive(agent, model(1), config, 0.0, ground)
    train(agent)
    late = end(agent.known.update)  # one read of the port brought the next question and then this
    arrive(agent, model(2), config, 200.0, ground)
    agent.handle(late, 200.0)
    assert agent.known.phase is State.TRAINING
    assert not {"delivered", "update-cancelled"} & {record.getMessage() for record in caplog.records}
    again, _ = board_agent(config, LocalTrainer(IMAGES), 300.0)  # after a power cut
    again.resume(300.0)
    train(again, 300.0)
    assert decode_update((config.state / "update.bin").read_bytes())[0].round == 2


def test_a_new_mission_begins_at_its_first_round(config: NodeConfig) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    arrive(agent, model(7), config, 0.0)
    arrive(agent, model(1, mission=b"missionB"), config, 10.0)
    assert (agent.known.mission, agent.known.round) == (b"missionB", 1)
    assert agent.work is not None


def test_every_start_is_under_no_salt_until_the_ground_agrees_and_so_with_a_new_key(
    config: NodeConfig,
) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    arrive(agent, model(1), config, 0.0)
    again, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    assert again.session.salt == NO_SALT != agent.session.salt
    config.ground.key_path.unlink()
    save_key(config.ground.key_path, new_key())
    renewed, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    arrive(renewed, model(2), config, 10.0)
    assert renewed.session.salt not in (agent.session.salt, NO_SALT)


@pytest.mark.parametrize("changes", [{"graph": b"otherone"}, {"model": "lenet5-rgb"}, {"model": "none"}])
def test_what_cannot_be_trained_fails_and_the_next_task_is_taken(
    changes: dict[str, object], config: NodeConfig
) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    arrive(agent, model(1, **changes), config, 0.0)
    told(agent, 0.0)
    assert agent.known.phase is State.FAILED
    assert agent.work is None
    arrive(agent, model(2), config, 10.0)
    assert agent.known.phase is State.TRAINING


def test_a_final_model_is_kept_and_not_trained(config: NodeConfig) -> None:
    agent, _ = board_agent(config, LocalTrainer(IMAGES), 0.0)
    final = model(5, training=None)
    arrive(agent, final, config, 0.0)
    assert agent.known.phase is State.IDLE
    assert agent.work is None
    assert (config.state / "deployed.bin").read_bytes() == final.payload
