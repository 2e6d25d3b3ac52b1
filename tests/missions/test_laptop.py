"""The board's folder runs on a laptop for once, while the board is out of reach: that locks nobody out."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from firmware_sim.runs.processes import free_ports
from tests.missions.bench import JSON, bench, change


def test_the_real_board_goes_on_after_a_copy_of_it_ran(tmp_path: Path) -> None:
    """Real programs over UDP. The board itself never ends, so that it goes on under the salt that it had."""
    with bench(tmp_path, epochs=1, bits_up=0.4, bits_down=0.4) as on:
        (port,) = free_ports(1)
        change(on.mission / "mission.toml", port=f'"udp://?bind=127.0.0.1:{port}"', encrypt="true", rounds=1)
        change(on.node_toml, port=f'"udp://127.0.0.1:{port}"', encrypt="true")
        on.start_ground()
        on.start_board()
        on.until(lambda: on.said("board", "heard", round=1))
        board = on.crew.members["board"].process
        os.kill(board.pid, signal.SIGSTOP)
        copy = tmp_path / "laptop"
        shutil.copytree(on.node_toml.parent, copy, ignore=shutil.ignore_patterns("lock", "watch*", "*.sock"))
        arguments = ("run", str(copy / on.node_toml.name), "--wait", *JSON, "--report-every", "0.1")
        on.crew.start("laptop", "onboard", *arguments)
        on.until(lambda: on.said("laptop", "rekeyed") and len(on.said("ground", "rekeyed")) == 2)
        on.kill("laptop")
        os.kill(board.pid, signal.SIGCONT)
        on.finish()
        on.hear_out()
        told = on.said("ground", "out-of-step") + on.said("board", "out-of-step")
        assert 1 <= len(told) <= 2
        assert {line["refused"] for line in told} == {"tags"}
        for name in ("ground", "board"):
            for lie in ("wrong-key", "encryption-differs", "foreign-frames", "cloned-or-restored"):
                assert not on.said(name, lie), lie
        assert [row["answers"][0]["state"] for row in on.status()["rounds"]] == ["answered"]
