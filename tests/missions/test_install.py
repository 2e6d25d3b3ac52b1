"""A network goes from the ground into a slot of a board, is checked there and used; kills cost nothing."""

from __future__ import annotations

import os
import pty
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save

from benchmarks.harness.disk import Disk, PowerCut, watched
from groundstation.cli import main
from groundstation.commands import CommandInbox, CommandRow, CommandState, CommandTable, all_commands
from groundstation.config import load_mission
from groundstation.models.folder import write_network
from onboard.agents import installing
from onboard.config import load_node
from onboard.inference.model import of_node
from onboard.learn import self_check
from onboard.learn.networks import INFER, PARAMETERS, TRAIN, Network, NetworkError
from onboard.storage import model_slots
from tests.line import ABOUT, SHAPES, write_line
from tests.missions.bench import bench
from tests.missions.clockwork import Clockwork

Make = Callable[..., Clockwork]


def version(folder: Path, seed: int, moved: float = 0.0) -> Network:
    """The network `line` with weights of its own; `moved`: how far they are from those of the seed."""
    write_line(folder)
    plain, drawn = Network.load(folder), np.random.default_rng(seed)
    weights = {name: drawn.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    parts = {TRAIN: plain.part(TRAIN), INFER: plain.part(INFER)}
    write_network(
        folder, ABOUT, parts | {PARAMETERS: save({n: w + np.float32(moved) for n, w in weights.items()})}
    )
    return Network.load(folder)


def queue(on: Clockwork, *words: str) -> None:
    far = ("--expires", "1e9", "--id", f"{len(all_commands(load_mission(on.folder))) + 1:016x}")
    done = CliRunner().invoke(main, [words[0], str(on.folder), "board-1", *words[1:], *far])
    assert done.exit_code == 0, done.output


def last(on: Clockwork) -> CommandRow:
    waiting = CommandInbox(on.folder).requests()
    return waiting[-1].row if waiting else max(CommandTable(on.store).all(), key=lambda row: row.id)


def is_over(on: Clockwork) -> bool:
    return last(on).state.is_final


def held(on: Clockwork) -> dict[str, bytes]:
    """The whole networks in the board's slots."""
    found = {}
    for slot in model_slots.SLOTS:
        folder = on.boards[1].state / "models" / slot
        if (folder / "model.toml").exists():
            network = Network.load(folder)
            for name in network.file.files:
                network.part(name)
            found[slot] = network.digest
    return found


def active(on: Clockwork) -> bytes:
    agent = on.boards[1].agent
    assert agent is not None
    return agent.known.networks.active


def test_a_network_is_installed_and_the_next_one_and_rolled_back(clockwork: Make, tmp_path: Path) -> None:
    one, two = version(tmp_path / "one", 1), version(tmp_path / "two", 1, 1e-3)
    on = clockwork(rounds=1)
    on.boot()
    queue(on, "install", str(one.folder))
    shutil.rmtree(one.folder)  # what was queued is kept
    on.run(lambda: is_over(on))
    assert (last(on).state, last(on).why) == (CommandState.DONE, "")
    sent = last(on).result["received_bytes"]
    assert held(on) == {"a": one.digest}
    assert active(on) == one.digest
    queue(on, "install", str(two.folder))
    on.run(lambda: is_over(on))
    assert last(on).state is CommandState.DONE
    assert held(on) == {"a": one.digest, "b": two.digest}
    assert active(on) == two.digest
    # The graphs are shared and were not sent again, and the weights came as their difference.
    weights = (two.folder / PARAMETERS).stat().st_size
    assert last(on).result["received_bytes"] < 0.9 * weights < sent
    assert on.said("file", delta=True)
    queue(on, "roll-back")
    on.run(lambda: is_over(on))
    assert (last(on).state, active(on)) == (CommandState.DONE, one.digest)
    on.boards[1].kill()
    on.boards[1].boot(on.now)
    assert active(on) == one.digest
    queue(on, "install", str(two.folder))  # it is there: nothing is sent
    on.run(lambda: is_over(on))
    assert (last(on).result["received_bytes"], active(on)) == (0, two.digest)
    on.run(lambda: on.over)


def test_a_network_that_computes_something_else_is_refused(
    clockwork: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = version(tmp_path / "one", 1), version(tmp_path / "two", 2)
    on = clockwork(rounds=1)
    on.boot()
    queue(on, "install", str(one.folder))
    on.run(lambda: is_over(on))
    monkeypatch.setattr(self_check, "TOLERANCE", -1.0)
    queue(on, "install", str(two.folder))
    on.run(lambda: is_over(on))
    assert last(on).state is CommandState.REFUSED
    assert "its logits are off by" in last(on).why
    assert active(on) == one.digest
    monkeypatch.undo()


def test_an_agent_that_dies_twice_with_a_new_network_goes_back(clockwork: Make, tmp_path: Path) -> None:
    one, two = version(tmp_path / "one", 1), version(tmp_path / "two", 2)
    on = clockwork(rounds=1)
    on.boot()
    board = on.boards[1]
    for network in (one, two):
        queue(on, "install", str(network.folder))
        on.run(lambda: is_over(on))
    for death in range(3):
        assert board.agent is not None
        assert active(on) == (two.digest if death < 2 else one.digest)
        if death < 2:
            board.agent.installer.use(two.digest)
        board.kill()
        board.boot(on.now)
    assert [said["network"] for said in on.said("rolled-back")] == [two.digest.hex()]
    assert board.agent is not None
    with pytest.raises(NetworkError, match="rolled back"):
        board.agent.installer.use(two.digest)
    queue(on, "install", str(two.folder))  # by hand, it is given another chance
    on.run(lambda: is_over(on))
    assert active(on) == two.digest
    assert board.agent.installer.use(two.digest) == str(board.state / "models" / "b")
    board.agent.installer.used(two.digest, proven=True)
    assert board.agent.known.networks.is_proven


@pytest.mark.parametrize(
    ("slot", "name"), [("a", "train.onnx"), ("b", "model.toml"), ("a", PARAMETERS), ("b", PARAMETERS)]
)
def test_a_flipped_bit_in_a_slot_is_found_told_and_mended(
    slot: str, name: str, clockwork: Make, tmp_path: Path
) -> None:
    networks = dict(zip("ab", (version(tmp_path / "one", 1), version(tmp_path / "two", 2)), strict=True))
    on = clockwork(rounds=1)
    on.boot()
    for network in networks.values():
        queue(on, "install", str(network.folder))
        on.run(lambda: is_over(on))
    path = on.boards[1].state / "models" / slot / name
    rotten = bytearray(path.read_bytes())
    rotten[len(rotten) // 2] ^= 1
    path.write_bytes(rotten)
    queue(on, "install", str(networks[slot].folder))
    on.run(lambda: is_over(on))
    assert last(on).state is CommandState.DONE
    assert active(on) == networks[slot].digest
    assert held(on)[slot if name != "model.toml" else next(s for s in held(on) if held(on)[s] == active(on))]
    assert on.said("unreadable")
    assert last(on).result["received_bytes"] <= len(rotten)  # no more than what is damaged


def test_what_does_not_fit_the_disk_is_refused_at_once(
    clockwork: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = version(tmp_path / "one", 1)
    on = clockwork(rounds=1)
    on.boot()
    monkeypatch.setattr(installing, "RESERVE_BYTES", 2**60)
    queue(on, "install", str(one.folder))
    on.run(lambda: is_over(on))
    assert last(on).state is CommandState.REFUSED
    assert last(on).why.startswith("the disk has room for 0 B, and ")
    assert held(on) == {}


def test_a_file_that_the_ground_has_no_more_ends_the_install(clockwork: Make, tmp_path: Path) -> None:
    one = version(tmp_path / "one", 1)
    on = clockwork(rounds=1)
    on.boot()
    queue(on, "install", str(one.folder))
    shutil.rmtree(on.folder / "models")
    on.run(lambda: is_over(on))
    assert (last(on).state, last(on).why) == (CommandState.REFUSED, "the ground has not all of its files")


def test_a_roll_back_ends_an_install_that_is_under_way(clockwork: Make, tmp_path: Path) -> None:
    on = clockwork(rounds=1)
    on.boot()
    agent = on.boards[1].agent
    assert agent is not None
    queue(on, "install", str(version(tmp_path / "one", 1).folder))
    on.run(lambda: agent.installer.status)
    queue(on, "roll-back")
    on.run(lambda: is_over(on))
    assert last(on).result == {"ended": "line"}
    on.run(lambda: all(row.state.is_final for row in CommandTable(on.store).all()))
    assert CommandTable(on.store).all()[0].why == "it was rolled back before it was installed"
    assert active(on) == b""
    queue(on, "roll-back")
    on.run(lambda: is_over(on))
    assert last(on).why == "no network was installed: there is none to go back from"


@pytest.mark.parametrize("seed", range(4))
def test_brown_outs_leave_one_whole_network_and_no_command_undone(
    seed: int, clockwork: Make, tmp_path: Path
) -> None:
    """The power goes at random syncs, and what was not synced is lost by chance; the ground is killed too."""
    drawn = random.Random(seed)
    versions = [version(tmp_path / str(nth), 1, nth * 1e-3) for nth in range(3)]
    on = clockwork(rounds=1)
    on.boot()
    board = on.boards[1]
    queue(on, "install", str(versions[0].folder))
    on.run(lambda: is_over(on))
    disk = Disk(board.state)
    cuts = 0
    with watched([disk]):
        for step in range(6):
            queue(
                on, *(("roll-back",) if step % 3 == 2 else ("install", str(versions[(step + 1) % 3].folder)))
            )
            cuts_left = 2
            while not is_over(on):
                disk.syncs_left = drawn.randrange(40) if cuts_left else None
                try:
                    on.run(lambda: is_over(on))
                except PowerCut:
                    cuts, cuts_left = cuts + 1, cuts_left - 1
                    board.kill()
                    disk.cut(drawn)
                    if drawn.random() < 0.3:
                        on.kill_ground()
                        on.boot_ground()
                    board.boot(on.now)
                    assert active(on) in held(on).values()
            assert last(on).state is CommandState.DONE
            assert active(on) in held(on).values()
    assert cuts >= 4


def test_boards_get_the_mission_s_network_before_they_are_asked(clockwork: Make, tmp_path: Path) -> None:
    """The first was set up by hand and has it, the second lacks it, the third had another version."""
    line, older = version(tmp_path / "line", 1), version(tmp_path / "older", 2)
    on = clockwork(boards=3, network=line.folder, rounds=1)
    shutil.rmtree(line.folder)  # the mission has its own
    homes = {number: on.folder / "boards" / f"board-{number}" / "models" for number in (1, 2, 3)}
    assert all(Network.load(home / "line").digest == line.digest for home in homes.values())
    shutil.rmtree(homes[2])
    shutil.rmtree(homes[3] / "line")
    shutil.copytree(older.folder, homes[3] / "line")
    on.boot()
    on.run(lambda: on.over)
    assert on.states(1) == {1: "answered", 2: "answered", 3: "answered"}
    rows = {row.node: row for row in CommandTable(on.store).all()}
    received = {node: row.result["received_bytes"] for node, row in rows.items()}
    assert received[1] == 0 < received[3] < received[2]  # the third has the graphs
    for number in (2, 3):
        agent = on.boards[number].agent
        assert agent is not None
        assert agent.known.networks.is_proven
        node = load_node(on.boards[number].toml)
        on.run(lambda agent=agent: agent.known.deployed)
        assert of_node(node.node_folder).info.network == "line"  # and `onboard infer` finds it, too


def test_a_network_that_rots_on_a_board_is_sent_again_before_the_next_round(
    clockwork: Make, tmp_path: Path
) -> None:
    on = clockwork(network=version(tmp_path / "line", 1).folder, rounds=2)
    board = on.boards[1]
    shutil.rmtree(board.toml.parent / "models")
    on.boot()
    on.run(lambda: on.said("answered", round=1))
    weights = board.state / "models" / "a" / PARAMETERS
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    on.run(lambda: on.over, 2000.0)
    assert on.said("board-failed", failure="model")
    received = [row.result["received_bytes"] for row in CommandTable(on.store).all()]
    assert received[1] == len(weights.read_bytes())  # the damaged file alone


def test_a_user_installs_a_network_while_the_programs_run_and_the_board_is_killed(tmp_path: Path) -> None:
    """The real programs on a serial cable: kill -9 comes while the weights are on their way, of which whoever
    waits at a terminal sees how many bytes have come."""
    line = version(tmp_path / "line", 1)
    with bench(tmp_path, epochs=1, rounds=50) as on:
        mission = str(on.mission)
        on.start()
        terminal, slave = pty.openpty()
        words = ["install", mission, "pi", str(line.folder), "--wait", "60"]
        waiting = subprocess.Popen(
            [sys.executable, "-m", "groundstation", *words], stdout=subprocess.PIPE, stderr=slave
        )
        os.close(slave)
        on.until(lambda: on.said("ground", "file"))
        on.kill("board")
        on.start_board()
        on.until(lambda: on.said("ground", "command-done"))
        assert on.said("board", "installed", network=line.digest.hex())
        slot = on.node_toml.parent / "state" / "models" / "a"
        assert Network.load(slot).digest == line.digest
        on.until(lambda: waiting.poll() is not None)
        seen = os.read(terminal, 1 << 16).decode()
        os.close(terminal)
        assert waiting.communicate()[0].decode().split()[1] == "done:"
        assert "acknowledged: install" in seen
        counts = re.findall(r"\r\x1b\[Kparams.safetensors: ([\d,]+) of ([\d,]+) B, \d+ %", seen)
        assert {size for _, size in counts} == {f"{(slot / PARAMETERS).stat().st_size:,}"}
        assert len(counts) >= 2
        told = on.run("groundstation", "roll-back", mission, "pi", "--wait", "30").stdout
        assert "done: roll-back for pi" in told
