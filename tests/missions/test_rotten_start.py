"""The real programs on a folder that is damaged: they come up, and what others keep there stays as it is."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.missions.bench import bench
from tests.missions.rot import DAMAGES, PRECIOUS, litter
from tests.programs import onboard


def test_an_agent_comes_up_on_a_damaged_folder_and_its_round_is_answered(tmp_path: Path) -> None:
    chance = random.Random(1)
    with bench(tmp_path, epochs=4) as on:
        state = on.node_toml.parent / "state"
        on.node_toml.write_text(on.node_toml.read_text() + "\n[budget]\ncheckpoint_s = 0.01\n")
        on.start()
        on.until(lambda: on.said("board", "epoch", round=1) and (state / "training.npz").is_file())
        on.kill("board")
        DAMAGES["link"](state / "lock", chance)
        DAMAGES["pipe"](state / "training.npz", chance)
        DAMAGES["folder"](state / "spool" / "finished", chance)
        litter(state, chance)
        on.start_board()
        on.until(lambda: on.said("board", "trained", round=1))
        on.kill("board")
        DAMAGES["bit"](state / "update.bin", chance)
        on.start_board()
        on.until(lambda: on.said("ground", "answered", round=1))
        told = {Path(said["path"]).name for said in on.said("board", "put-aside")}
        assert {"lock"} <= told
        assert on.said("board", "checkpoint-dropped", path=str(state / "training.npz"))
        assert on.said("board", "unreadable", path=str(state / "update.bin"))
    assert {path.read_bytes() for path in state.rglob("somebody-s")} == {PRECIOUS}


def test_doctor_and_link_look_at_a_folder_full_of_strange_things(tmp_path: Path) -> None:
    with bench(tmp_path) as on:
        state = on.node_toml.parent / "state"
        state.mkdir()
        litter(state, random.Random(1))
        for name in ("lock", "model.bin", "journal.0"):
            os.mkfifo(state / name)
        found = onboard("doctor", str(on.node_toml))
        assert "ok    disk" in found.output
        assert "Traceback" not in found.output
        looked = onboard("link", str(on.node_toml), "--once")
        assert looked.exit_code == 1
        assert looked.output == f"{state}: no program runs on it\n"
