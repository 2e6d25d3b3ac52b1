"""A mission over an encrypted link: nothing on it can be read, and ends that differ say so and what to do."""

from __future__ import annotations

import json
from pathlib import Path

from tests.missions.bench import QUICK_BPS, bench, change, run


def test_a_mission_with_encryption_once_both_ends_are_told(tmp_path: Path) -> None:
    with bench(tmp_path, QUICK_BPS) as on:
        change(on.mission / "mission.toml", encrypt="true")
        recording = on.folder / "ground.sdml"
        on.start_cable()
        on.start_ground("--record", str(recording))
        on.start_board()
        on.until(lambda: on.said("board", "encryption-differs") and on.said("ground", "encryption-differs"))
        [at_board] = on.said("board", "encryption-differs", peer="ground", peer_encrypts=True)
        [at_ground] = on.said("ground", "encryption-differs", node="pi", peer_encrypts=False)
        assert at_board["why"] == at_ground["why"]
        on.until(lambda: on.link().get("plain_dropped") and on.doing()["link"]["encrypted_dropped"] > 2)
        assert not on.said("board", "heard")
        on.hear_out("board")
        change(on.node_toml, encrypt="true")
        on.start_board()
        on.finish()
        assert [row["state"] for row in on.status()["rounds"]] == ["closed", "closed"]
        assert on.link()["encrypted"]
        replayed = run("groundstation", "replay", str(recording), "--mission", str(on.mission), "--json")
    *frames, totals = map(json.loads, replayed.stdout.splitlines())
    encrypted = [frame for frame in frames if frame["frame"]["encrypted"]]
    assert {frame["verdict"] for frame in encrypted} <= {"taken", "duplicate"}
    assert {frame["frame"]["type"] for frame in frames if frame["verdict"] == "plain_dropped"} == {"MSG"}
    assert {(one["way"], one["arrived"]) for one in totals["streams"]} == {("in", 2), ("out", 3)}
    sent = b"".join(bytes.fromhex(frame["frame"]["payload"]) for frame in encrypted)
    assert len(sent) > 10_000
    assert b"lenet5" not in sent  # a task's header names its model
