"""A fleet of six on digits: repeatable, honest about its bytes, not stopped by who is gone, late, hostile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import onboard.trainer.in_process
from firmware_sim.cli import main
from firmware_sim.fleet.result import RoundResult
from firmware_sim.fleet.simulation import FILES, Fleet, FleetSettings, without_losses
from firmware_sim.runs.folder import RunError
from firmware_sim.runs.live import RunProgress
from firmware_sim.runs.run import SimulationRun, iid
from hw_profiles import load_board, load_link
from onboard.codec.dense import Dense
from onboard.codec.layout import Layout
from onboard.codec.model import Model
from onboard.codec.pack import unpack
from onboard.data import loading
from onboard.learn.federated.rounds import choose
from onboard.learn.graph import InferGraph, TrainGraph
from onboard.learn.training import Training

TRAIN, INFER = TrainGraph.load("lenet5"), InferGraph.load("lenet5")
IMAGES = loading.load("digits", part="train")
TEST = loading.load("digits", part="test").take(np.arange(120))
SHARES = [IMAGES.take(rows) for rows in iid(IMAGES.y, 6, 40, 0)]
SETTINGS = FleetSettings(
    training=Training(epochs=1, bits_up=0.05, bits_down=0.1),
    devices=6, select=3, quorum=3, rounds=2, deadline_s=600.0, seed=4,
    boards=(load_board("raspberry-pi-4"), load_board("jetson-nano")), links=(load_link("sband-256k"),),
)  # fmt: skip


def play(folder: Path, **changes: Any) -> list[RoundResult]:
    """The results of a fleet with other settings."""
    fleet = Fleet(replace(SETTINGS, **changes), SHARES, TEST, folder, TRAIN, INFER)
    return [seen for seen in fleet.play() if isinstance(seen, RoundResult)]


def test_two_rounds_and_the_same_again(tmp_path: Path) -> None:
    settings = replace(SETTINGS, links=(without_losses(load_link("uhf-9k6"), 0.05),))
    fleet = Fleet(settings, SHARES, TEST, tmp_path / "one", TRAIN, INFER)
    seen = list(fleet.play())
    first, second = (one for one in seen if isinstance(one, RoundResult))
    assert (first.asked, first.answered, first.refused, first.late, first.gone) == (3, 3, 0, 0, 0)
    assert second.loss < first.loss < 2.302  # ln 10 is chance
    # No weights go down in the first round; then what the round before made, header and all.
    parameters = TRAIN.layout.parameters
    assert 8 * first.bits_down < 0.02
    assert 0 < second.width_down < 0.1
    assert second.width_down == unpack(*_last_packed(tmp_path, settings)).mean_width
    # What crosses the air is more than the objects, and not much more.
    for result in (first, second):
        objects_up = 3 * result.bits_up * parameters / 8
        assert objects_up < result.bytes_up < 1.5 * objects_up + 3000
        assert result.bytes_down > 3 * result.bits_down * parameters / 8
        assert result.airtime_up_s > result.bytes_up * 8 / 9600  # keying comes on top
        assert 0 < result.width_up < 0.05  # the budget, which holds coordinates too
        assert result.energy_j > 0
    assert first.clock_s < second.clock_s
    assert all(0 <= moment.done <= 1 for moment in seen if isinstance(moment, RunProgress))

    again = Fleet(settings, SHARES, TEST, tmp_path / "two", TRAIN, INFER)
    assert [one for one in again.play() if isinstance(one, RoundResult)] == [first, second]
    assert again.packed == fleet.packed


def _last_packed(folder: Path, settings: FleetSettings) -> tuple[bytes, Layout]:
    """What a fleet of one round makes."""
    fleet = Fleet(replace(settings, rounds=1), SHARES, TEST, folder / "short", TRAIN, INFER)
    list(fleet.play())
    return fleet.packed, TRAIN.layout


def test_a_round_can_move_further_what_few_boards_moved(tmp_path: Path) -> None:
    """Which is farther than the mean of all, where each board moves a few groups."""
    moves = {}
    for rule in ("mean", "sparse-mean"):
        fleet = Fleet(replace(SETTINGS, rounds=1, rule=rule), SHARES, TEST, tmp_path / rule, TRAIN, INFER)
        list(fleet.play())
        moved = unpack(fleet.packed, TRAIN.layout).reconstruct()
        moves[rule] = float(np.sqrt(sum(np.square(moved[t.name]).sum() for t in TRAIN.layout.grouped)))
    assert moves["sparse-mean"] > 1.1 * moves["mean"]


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    one, other = (play(tmp_path / str(seed), rounds=1, seed=seed)[0] for seed in (1, 2))
    assert (one.loss, one.bytes_up) != (other.loss, other.bytes_up)


def test_a_fleet_resumes_after_its_last_round(tmp_path: Path) -> None:
    whole = Fleet(SETTINGS, SHARES, TEST, tmp_path / "whole", TRAIN, INFER)
    results = [seen for seen in whole.play() if isinstance(seen, RoundResult)]
    begun = Fleet(replace(SETTINGS, rounds=1), SHARES, TEST, tmp_path / "begun", TRAIN, INFER)
    list(begun.play())
    rest = Fleet(SETTINGS, SHARES, TEST, tmp_path / "rest", TRAIN, INFER)
    rest.resume(begun.results, begun.packed)
    list(rest.play())
    assert rest.results[0] == results[0]
    # A link without losses has no luck: the second round is the same to the last bit of accuracy.
    assert (rest.results[1].score, rest.results[1].loss) == (results[1].score, results[1].loss)
    assert rest.packed == whole.packed


def test_a_shared_downlink_is_counted_once(tmp_path: Path) -> None:
    link = without_losses(load_link("uhf-9k6"), 0.05)
    alone, shared = (
        play(tmp_path / str(one), links=(link,), select=5, quorum=5, shared_downlink=one)
        for one in (False, True)
    )
    # The same models, whoever carried them.
    assert [r.score for r in shared] == [r.score for r in alone]
    assert [r.bits_down for r in shared] == [r.bits_down for r in alone]
    model_bytes = shared[1].bits_down * TRAIN.layout.parameters / 8
    assert model_bytes < shared[1].bytes_down < alone[1].bytes_down / 2
    assert alone[1].bytes_down > 5 * model_bytes
    assert shared[1].airtime_down_s > shared[1].bytes_down * 8 / 9600


def test_who_does_not_hear_a_shared_downlink_holds_up_nobody(tmp_path: Path) -> None:
    results = play(tmp_path, rounds=2, dropout=0.5, deadline_s=120.0, shared_downlink=True)
    assert sum(result.gone for result in results) > 0
    assert [result.answered for result in results] == [3 - result.gone for result in results]


def test_the_target_ends_a_run(tmp_path: Path) -> None:
    assert len(play(tmp_path, target=0.05)) == 1


@pytest.mark.parametrize("method", ["fedavg", "fedavg-zstd"])
def test_fedavg_sends_float32(tmp_path: Path, method: Any) -> None:
    training = Training(method=method, epochs=1, learning_rate=1e-3)
    first, second = play(tmp_path, training=training, select=1, quorum=1)
    assert first.width_up == second.width_down == 32.0
    for bits in (first.bits_up, second.bits_up, second.bits_down):
        assert (32 < bits < 32.01) if method == "fedavg" else (10 < bits < 32)
    assert Dense(TRAIN.layout, {}).mean_width == 32.0


def test_the_gone_do_not_hold_up_a_round(tmp_path: Path) -> None:
    results = play(tmp_path, rounds=3, dropout=0.5, deadline_s=120.0)
    assert [result.round for result in results] == [1, 2, 3]
    assert sum(result.gone for result in results) > 0
    before_s = 0.0
    for result in results:
        assert 1 <= result.answered <= 3
        if result.answered < 3:  # nobody knows that a device is gone: its round takes until the deadline
            assert result.clock_s - before_s >= 120.0
        before_s = result.clock_s


def test_nobody_in_contact_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 1: asked \d+ times, nobody answered within 0.5 s"):
        play(tmp_path, deadline_s=0.5, links=(load_link("lora-sf12"),))


FAST = load_board("raspberry-pi-4")
SLOW, SLOWEST = (replace(FAST, train_flops=FAST.train_flops / factor) for factor in (1.6, 20))


@pytest.mark.parametrize(("staleness", "merged", "late"), [(None, 0, 1), (0.5, 1, 0)])
def test_a_late_update_is_discarded_or_merged(
    tmp_path: Path, staleness: float | None, merged: int, late: int
) -> None:
    # Of three devices two are asked in a round and one answer closes it. Device 2 is slow enough to miss the
    # first round, and quick enough to be heard in the second, in which it is not asked. 1 is never heard.
    assert [2 in choose((1, 2, 3), 2, SETTINGS.seed, number) for number in (1, 2)] == [True, False]
    settings = replace(
        SETTINGS, devices=3, select=2, quorum=1, staleness=staleness, boards=(SLOWEST, SLOW, FAST)
    )  # fmt: skip
    fleet = Fleet(settings, SHARES[:3], TEST, tmp_path, TRAIN, INFER)
    results = [seen for seen in fleet.play() if isinstance(seen, RoundResult)]
    assert sum(result.merged for result in results) == merged
    assert sum(result.late for result in results) == late
    assert all(result.answered == 1 for result in results)


def spoiled(packed: bytes) -> bytes:
    return b"\xff" * len(packed)


def claims_a_gigabyte(packed: bytes) -> bytes:
    return packed[:9] + (2**30).to_bytes(4, "little") + packed[13:]


def infinite_step(packed: bytes) -> bytes:
    end = 13 + int.from_bytes(packed[9:13], "little")
    return packed[:end] + b"\x00\x7c" + packed[end + 2 :]


@pytest.mark.parametrize("spoil", [spoiled, claims_a_gigabyte, infinite_step], ids=lambda f: f.__name__)
def test_a_hostile_update_is_refused_and_the_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]
) -> None:
    packs = iter([spoil])
    honest = onboard.trainer.in_process.pack

    def pack(model: Model) -> bytes:
        return next(packs, bytes)(honest(model))

    monkeypatch.setattr(onboard.trainer.in_process, "pack", pack)
    (result,) = play(tmp_path, rounds=1)
    assert (result.refused, result.answered, result.asked) == (1, 2, 3)
    assert result.clock_s < SETTINGS.deadline_s  # the refused one is not waited for
    assert np.isfinite(result.loss)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"devices": 255}, "255 devices: a frame's address byte has room for 254"),
        ({"devices": 0}, "0 devices"),
        ({"select": 7}, "quorum 3, select 7, devices 6: each at most the next"),
        ({"quorum": 0}, "quorum 0"),
        ({"links": (load_link("uhf-9k6"),) * 2, "shared_downlink": True}, "a shared downlink is one link"),
        ({"dropout": 1.0}, "dropout 1.0: must be at least 0 and below 1"),
        ({"rule": "mode"}, "rule: must be one of mean, median, sparse-mean, not mode"),
        ({"rule": "sparse-mean", "training": Training(method="spacedml")}, "rule: spacedml sends whole"),
        ({"boards": (replace(SLOW, train_flops=0.0),)}, "raspberry-pi-4: .* cannot train"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says):
        replace(SETTINGS, **changes)


def test_devices_hold_images_out_and_tell_how_their_models_do_on_them(tmp_path: Path) -> None:
    """The table has it, and a run that holds out as many goes on."""
    options = "--validation", "0.25", "--out", tmp_path / "out", "--quorum", "2"
    (line,) = [line for line in run("--rounds", "1", *options).splitlines() if "on devices" in line]
    first, second = (json.loads(line) for line in run("--rounds", "2", *options, "--json").splitlines())
    assert 0.0 < first["validation"] <= 1.0
    assert 0.0 < second["validation"] <= 1.0
    assert f"2 of 2, {100 * first['validation']:.2f} % on devices" in line
    assert "validation 0.25, not None" in run("--out", tmp_path / "out", code=2)
    assert "0.6 is not in the range 0<=x<=0.5" in run("--validation", "0.6", code=2)


def test_a_folder_from_before_there_was_error_feedback_goes_on_without_any(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("--rounds", "1", "--out", out)
    assert "error_feedback" not in (out / "fleet.json").read_text()
    feeds_back = "--error-feedback", "0.5", "--out"
    assert "choose another folder" in run(*feeds_back, out, code=2)
    run("--rounds", "1", *feeds_back, tmp_path / "other")
    assert len(run("--rounds", "2", *feeds_back, tmp_path / "other", "--json").splitlines()) == 2


def test_a_share_for_each_device(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="6 devices, 5 shares"):
        Fleet(SETTINGS, SHARES[:5], TEST, tmp_path, TRAIN, INFER)


COMMAND = (
    "fleet", "--data", "digits", "--devices", "6", "--select", "2", "--images", "40", "--epochs", "1",
)  # fmt: skip


def run(*options: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(main, [*COMMAND, *map(str, options)])
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_leaves_its_results_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = run("--rounds", "1", "--out", out)
    assert "2 of 2" in told
    (line,) = (out / "rounds.jsonl").read_text().splitlines()
    assert (out / "rounds.png").read_bytes().startswith(b"\x89PNG")
    more = [json.loads(line) for line in run("--rounds", "2", "--out", out, "--json").splitlines()]
    assert more[0] == json.loads(line)
    assert [round["round"] for round in more] == [1, 2]
    assert sorted(path.name for path in out.iterdir()) == [
        "fleet.json", "lock", "model-2.bin", "rounds.jsonl", "rounds.png",
    ]  # fmt: skip
    assert "holds a run with seed 0, not 1" in run("--out", out, "--seed", "1", code=2)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "exists and is no fleet's folder" in run("--out", tmp_path, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class OneMoreRound:
    """A simulation that has one more round."""

    def __init__(self, result: RoundResult, state: bytes) -> None:
        self._result, self._state = result, state

    def play(self) -> Iterator[RoundResult]:
        yield self._result

    def save(self, path: Path) -> None:
        path.write_bytes(self._state)


def test_a_line_cut_short_is_played_again(tmp_path: Path) -> None:
    result = play(tmp_path / "journals", rounds=1)[0]

    def run_on(state: bytes | None = None) -> tuple[list[RoundResult], Path | None]:
        """What a run finds in the folder before it goes on by a round, if it has one."""
        run = SimulationRun("lenet5", tmp_path / "out", FILES, {"seed": 4})
        found = run.results[:], run.kept
        run.simulation = None if state is None else OneMoreRound(result, state)
        assert list(run.play()) == ([] if state is None else [result])
        return found

    assert run_on(b"weights") == ([], None)
    with (tmp_path / "out" / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 2, "accur')
    model = tmp_path / "out" / "model-1.bin"
    assert model.read_bytes() == b"weights"
    assert run_on(b"others") == ([result], model)
    assert (tmp_path / "out" / "rounds.jsonl").read_bytes().count(b"\n") == 2
    assert not model.exists()
    (tmp_path / "out" / "model-2.bin").unlink()
    assert run_on() == ([], None)


@pytest.mark.parametrize("shared", [False, True])
def test_devices_whose_training_fails_once_are_asked_again(
    shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([True, True, True])  # of all that the first round asks

    def graph(name: str) -> TrainGraph:
        if next(failures, False):
            raise MemoryError("needs more than there is")
        return TRAIN

    monkeypatch.setattr(Fleet, "_graph", lambda self, name: graph(name))
    first, second = play(tmp_path, shared_downlink=shared)
    assert (first.answered, second.answered) == (3, 3)
    assert first.clock_s < SETTINGS.deadline_s  # and not after it, by a boot


def test_a_fleet_that_has_run_for_very_long_resumes(tmp_path: Path) -> None:
    first = Fleet(replace(SETTINGS, rounds=1), SHARES, TEST, tmp_path / "one", TRAIN, INFER)
    *_, last = (seen for seen in first.play() if isinstance(seen, RoundResult))
    fleet = Fleet(replace(SETTINGS, rounds=5001), SHARES, TEST, tmp_path / "two", TRAIN, INFER)
    fleet.resume([replace(last, round=number) for number in range(1, 5001)], first.packed)
    *_, result = (seen for seen in fleet.play() if isinstance(seen, RoundResult))
    assert result.round == 5001
    assert result.answered == 3
