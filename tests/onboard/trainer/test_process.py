"""A training in a process of its own: the same bits as in this one, and whatever ends it is a reason and no
more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from onboard.codec.layout import flat
from onboard.codec.pack import unpack
from onboard.data import loading
from onboard.data.images import Images, save
from onboard.data.inspection import Shard
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.networks import Network
from onboard.learn.self_check import check_vector
from onboard.learn.training import BoardTraining, Stepped
from onboard.mission.health import Failure
from onboard.mission.objects import Task, encode_object
from onboard.trainer.in_process import LocalTrainer
from onboard.trainer.job import Begun, Checked, Failed, Job, NetworkCheck, Report, Trainer, TrainingDone
from onboard.trainer.process import BadImages, ProcessTrainer
from tests.line import write_line

ROOMY = 4 * 2**30  # what the process of the tests itself holds counts too


def job(checkpoint: bytes | None = None, *, fields: Mapping[str, Any] | None = None, **knobs: Any) -> Job:
    told: dict[str, Any] = {
        "mission": b"missionA", "round": 1, "model": "lenet5", "graph": TrainGraph.load("lenet5").digest,
        "seed": 1, "weights": "seed", "deadline_s": 60.0,
        "training": BoardTraining(**{"epochs": 1, "shift_pixels": 2, "distortion": 0.0} | knobs),
    } | dict(fields or {})  # fmt: skip
    return Job(
        model=encode_object(Task(**told), b""),
        node=1,
        checkpoint=checkpoint,
    )


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Twenty digits on the disk."""
    save(tmp_path / "data.npz", loading.load("digits", part="train").take(np.arange(20)))
    return Shard(source=f"npz:{tmp_path / 'data.npz'}", folder=None, shape=(1, 28, 28), rows=None)


@pytest.fixture
def trainers() -> Iterator[list[ProcessTrainer]]:
    """Whatever a test puts here is stopped at its end."""
    started: list[ProcessTrainer] = []
    yield started
    for each in started:
        each.stop()


def until(met: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + 30.0
    while not met():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def report(trainer: Trainer) -> Report:
    """The next one, waited for."""
    found: list[Report] = []
    until(lambda: bool(found.extend(trainer.reports()) or found), "no report")
    (one,) = found
    return one


def trained(trainer: Trainer, of: Job, *, save: bool = False) -> list[Report]:
    trainer.begin(of)
    reports = [report(trainer)]
    while not isinstance(reports[-1], TrainingDone | Failed):
        trainer.step(save=save)
        step = report(trainer)
        if isinstance(step, Stepped) and step.state is not None:  # which the next step may overwrite
            step = msgspec.structs.replace(step, state=memoryview(bytes(step.state)), state_bytes=0)
        reports.append(step)
    return reports


@pytest.mark.parametrize("method", ["spacedml-fast", "spacedml", "fedavg"])
def test_a_process_trains_to_the_same_bits_and_ends(
    method: str, shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    here = trained(LocalTrainer(shard.load()), job(method=method), save=True)
    there = trained(trainer, job(method=method), save=True)
    assert len(there) == len(here)
    for ours, theirs in zip(here, there, strict=True):
        if isinstance(ours, Stepped) and isinstance(theirs, Stepped):
            assert (ours.loss, ours.state) == (theirs.loss, theirs.state)
            assert ours.state is not None
    ours, theirs = here[-1], there[-1]
    assert isinstance(ours, TrainingDone)
    assert isinstance(theirs, TrainingDone)
    assert (ours.packed, ours.loss, ours.samples) == (theirs.packed, theirs.loss, theirs.samples)
    assert theirs.peak_bytes > 20 * 2**20
    assert trainer.pid is None
    assert trainer.fds == ()


def test_what_an_update_had_no_bits_for_goes_into_the_next(
    shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    first = job(error_feedback=0.5)
    second = job(error_feedback=0.5, learning_rate=1e-9, fields={"round": 2})  # trains, and moves nothing
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    here, there = trained(LocalTrainer(shard.load()), first)[-1], trained(trainer, first)[-1]
    assert isinstance(here, TrainingDone)
    assert isinstance(there, TrainingDone)
    assert here.residual is not None
    assert there.residual is not None
    assert here.residual == there.residual
    assert here.residual_bytes == 0
    layout = TrainGraph.load("lenet5").layout
    rest = np.frombuffer(here.residual, "<f2")
    sent = flat(layout, unpack(here.packed, layout).reconstruct())
    assert rest.shape == (layout.parameters,)
    assert np.linalg.norm(rest.astype(np.float32)) > np.linalg.norm(sent) / 2  # 0.05 bit says little
    owing = msgspec.structs.replace(second, residual=bytes(here.residual))
    moves = {}
    for name, each in {"with": owing, "without": second}.items():
        ours, theirs = trained(LocalTrainer(shard.load()), each)[-1], trained(trainer, each)[-1]
        assert isinstance(ours, TrainingDone)
        assert isinstance(theirs, TrainingDone)
        assert (ours.packed, ours.residual) == (theirs.packed, theirs.residual)
        assert ours.residual is not None
        unsaid = np.frombuffer(ours.residual, "<f2").astype(np.float32)
        moves[name] = unsaid + flat(layout, unpack(ours.packed, layout).reconstruct())
    owed = rest.astype(np.float32)
    assert moves["with"] - moves["without"] == pytest.approx(owed / 2, abs=1e-4)


@pytest.mark.parametrize("knobs", [{}, {"method": "spacedml", "error_feedback": 0.5}, {"method": "fedavg"}])
def test_only_what_has_error_feedback_leaves_a_residual(knobs: dict[str, Any], shard: Shard) -> None:
    done = trained(LocalTrainer(shard.load()), job(**knobs))[-1]
    assert isinstance(done, TrainingDone)
    assert (done.residual, done.residual_bytes) == (None, 0)


def test_a_checkpoint_goes_on_in_another_process(shard: Shard, trainers: list[ProcessTrainer]) -> None:
    whole = trained(LocalTrainer(shard.load()), job(epochs=2))[-1]
    trainers.append(first := ProcessTrainer(shard, ROOMY))
    first.begin(job(epochs=2))
    state = None
    while state is None:
        step = report(first)
        state = bytes(step.state) if isinstance(step, Stepped) and step.state is not None else None
        first.step(save=True)
    first.stop()
    trainers.append(second := ProcessTrainer(shard, ROOMY))
    begun, *_, done = trained(second, job(state, epochs=2))
    assert isinstance(begun, Begun)
    assert (begun.epoch, begun.batch, begun.dropped) == (0, 1, "")
    assert isinstance(whole, TrainingDone)
    assert isinstance(done, TrainingDone)
    assert done.packed == whole.packed


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_a_damaged_checkpoint_is_dropped(
    damaged: bytes, shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.begin(job(damaged))
    begun = report(trainer)
    assert isinstance(begun, Begun)
    assert begun.dropped


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_process_that_is_killed_is_a_failure_and_the_next_job_trains(
    number: signal.Signals, shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.begin(job())
    assert isinstance(report(trainer), Begun)
    assert trainer.pid is not None
    os.kill(trainer.pid, number)
    trainer.step()  # it may find nobody
    failed = report(trainer)
    assert isinstance(failed, Failed)
    assert failed.failure == Failure.PROCESS
    assert number.name in failed.why
    assert trainer.pid is None
    assert isinstance(trained(trainer, job())[-1], TrainingDone)


def test_signals_that_are_meant_for_the_agent_do_not_end_a_training(
    shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.begin(job())
    assert isinstance(report(trainer), Begun)
    assert trainer.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(trainer.pid, number)
    trainer.step()
    assert isinstance(report(trainer), Stepped)


def test_a_job_is_superseded_by_the_next(shard: Shard, trainers: list[ProcessTrainer]) -> None:
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.begin(job(epochs=50))
    assert isinstance(report(trainer), Begun)
    trainer.step()
    old = trainer.pid
    done = trained(trainer, job())
    assert trainer.pid != old
    assert not Path(f"/proc/{old}").exists()
    assert [type(each) for each in done] == [Begun, *[Stepped] * 4, TrainingDone]


def test_a_limit_below_the_need_says_what_is_needed_and_the_next_job_is_heard_too(
    shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    for allowed_mb in (1, 34):  # less than is held before an image is loaded, and less than a step takes
        trainers.append(trainer := ProcessTrainer(shard, _held() + allowed_mb * 2**20))
        for _ in range(2):
            *_, failed = trained(trainer, job(batch_size=20))
            assert isinstance(failed, Failed), failed
            assert failed.failure == Failure.MEMORY, failed
            assert trainer.pid is None


def _held() -> int:
    from onboard.board.budget import anonymous_bytes

    return anonymous_bytes()


def test_memory_that_is_reserved_and_empty_does_not_count(
    shard: Shard, trainers: list[ProcessTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy 2.5.5 on aarch64 reserves 188 MiB at its import; here every Python does."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import mmap\nkept = mmap.mmap(-1, 188 * 2**20, flags=mmap.MAP_PRIVATE)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    trainers.append(trainer := ProcessTrainer(shard, _held() + 96 * 2**20))
    assert isinstance(trained(trainer, job())[-1], TrainingDone)


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"graph": b"otherone"}, Failure.MODEL),
        ({"model": "no-such-model"}, Failure.MODEL),
        ({"model": "lenet5-rgb", "graph": TrainGraph.load("lenet5-rgb").digest}, Failure.DATA),
        ({"training": None}, Failure.OTHER),
    ],
)
def test_what_cannot_be_trained_is_a_failure_of_its_kind(
    changes: dict[str, object], failure: Failure, shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.begin(job(fields=changes))
    failed = report(trainer)
    assert isinstance(failed, Failed)
    assert failed.failure == failure
    assert "\n" not in failed.why


def test_images_that_went_away_are_a_failure_of_the_data(
    shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.look()
    path = Path(shard.source.removeprefix("npz:"))
    path.unlink()
    trainer.begin(job())
    failed = report(trainer)
    assert isinstance(failed, Failed)
    assert (failed.failure, failed.why) == (Failure.DATA, f"{path}: no such file")
    with pytest.raises(BadImages, match="no such file"):
        trainer.look()


def test_an_interpreter_that_is_gone_is_a_failure(
    shard: Shard, trainers: list[ProcessTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.begin(job())
    failed = report(trainer)
    assert isinstance(failed, Failed)
    assert failed.failure == Failure.PROCESS
    assert "/no/such/python" in failed.why
    trainer.look()  # says so in the log


def test_a_library_that_cannot_be_loaded_is_not_called_missing(
    shard: Shard, trainers: list[ProcessTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "onnxruntime").mkdir(parents=True)
    library = tmp_path / "site" / "onnxruntime" / "__init__.py"
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    says = {
        "raise ImportError('library: wrong ELF class')": "does not load: library: wrong ELF class",
        "import no_such_part": "does not load: No module named 'no_such_part'",
        "raise ModuleNotFoundError(name='onnxruntime')": "onnxruntime is not installed: pip install",
    }
    for code, words in says.items():
        library.write_text(code)
        trainers.append(trainer := ProcessTrainer(shard, ROOMY))
        trainer.begin(job())
        failed = report(trainer)
        assert isinstance(failed, Failed)
        assert words in failed.why
        assert failed.failure == Failure.GRAPH


PARENT = """
import sys, time
from pathlib import Path
from typing import Any
import onboard.agents.federated, onboard.runtime.federated, onboard.cli
from onboard import link
from onboard.link.ports.framing import cobs_stream
from onboard.data.inspection import Shard
from onboard.trainer.job import Job
from onboard.trainer.process import ProcessTrainer
stream = cobs_stream(1400)
assert stream.feed(stream.encode(bytes(1400))) == [bytes(1400)]
shard = Shard(source=sys.argv[1], folder=None, shape=(1, 28, 28), rows=None)
trainer = ProcessTrainer(shard)
trainer.begin(Job(model=Path(sys.argv[2]).read_bytes(), node=1))
while not trainer.reports():
    time.sleep(0.01)
trainer.step()
print(trainer.pid, "numpy" in sys.modules, flush=True)
time.sleep(60)
"""


def test_a_training_dies_with_its_agent_which_has_not_loaded_numpy(shard: Shard, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(job(epochs=1000).model)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, shard.source, str(tmp_path / "model.bin")],
        stdout=subprocess.PIPE, text=True,
    ) as agent:  # fmt: skip
        assert agent.stdout is not None
        pid, numpy = agent.stdout.readline().split()
        assert numpy == "False"
        agent.kill()
        agent.wait()
        until(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in _status(pid), "an orphan")


def _status(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ"


def test_a_network_is_checked_in_a_process_and_used_from_its_folder(
    tmp_path: Path, shard: Shard, trainers: list[ProcessTrainer]
) -> None:
    write_line(tmp_path / "line")
    line = Network.load(tmp_path / "line")
    expected = check_vector(TrainGraph.load(line), InferGraph.load(line), seed=3)
    trainers.append(trainer := ProcessTrainer(shard, ROOMY))
    trainer.check(NetworkCheck(folder=str(line.folder), expected=expected))
    assert report(trainer) == Checked(why="")
    assert trainer.pid is None  # its memory is given back
    wrong = msgspec.structs.replace(expected, logits=tuple(1 - each for each in expected.logits))
    trainer.check(NetworkCheck(folder=str(line.folder), expected=wrong))
    assert "its logits are off by" in report(trainer).why  # type: ignore[union-attr]
    fields = {"model": "line", "graph": line.digest}
    asked = msgspec.structs.replace(job(fields=fields), network=str(line.folder))
    assert isinstance(trained(trainer, asked)[-1], TrainingDone)
    (line.folder / "infer.onnx").write_bytes(b"rot")
    trainer.check(NetworkCheck(folder=str(line.folder)))
    assert "infer.onnx: is damaged" in report(trainer).why  # type: ignore[union-attr]


@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
def test_more_images_than_memory_train_from_the_disk(
    save_as: Callable[..., None], tmp_path: Path, trainers: list[ProcessTrainer]
) -> None:
    """47 MB of them, with 24 MB for all that a training holds beyond its libraries."""
    digits = loading.load("digits", part="train", rows=range(100))
    x, y = np.tile(digits.x, (600, 1, 1, 1)), np.tile(digits.y, 600)
    save_as(tmp_path / "data.npz", x=x, y=y)
    shard = Shard(
        source=f"npz:{tmp_path / 'data.npz'}", shape=(1, 28, 28), budget_bytes=64 << 20, copies=str(tmp_path)
    )
    there = first_losses(shard, trainers)
    images = Images(x, y, digits.classes)
    here = LocalTrainer(images)
    here.begin(job(method="fedavg"))
    assert isinstance(report(here), Begun)
    for loss in there:
        here.step()
        step = report(here)
        assert isinstance(step, Stepped)
        assert step.loss == loss


def first_losses(shard: Shard, trainers: list[ProcessTrainer]) -> list[float]:
    """Of the first three steps, in a process that may fill 24 MB beyond its libraries."""
    trainers.append(trainer := ProcessTrainer(shard))
    trainer.begin(job(method="fedavg"), allowed_bytes=56 << 20)
    begun = report(trainer)
    assert isinstance(begun, Begun), begun
    losses = []
    for _ in range(3):
        trainer.step()
        step = report(trainer)
        assert isinstance(step, Stepped), step
        losses.append(step.loss)
    return losses
