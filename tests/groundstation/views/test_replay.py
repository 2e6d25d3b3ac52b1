"""`groundstation replay` says of every frame of a recording what the session that heard it made of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from groundstation.cli import main
from groundstation.views.replay import Replay
from hw_profiles import load_link
from onboard.link.ports.schemes import opener
from onboard.link.pump import Pump
from onboard.link.recording import Recorder
from onboard.link.spool import Spool
from onboard.mission.objects import UPDATE
from onboard.storage.keys import save_key
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Delivered
from onboard.wire.session import Session
from tests.hidden import hide
from tests.onboard.link.cable import Clock, PtyCable
from tests.onboard.link.objects import payload
from tests.onboard.link.test_pump import accept_into, told

KEY = bytes(range(1, 33))
LINK = load_link("bench-serial-115k2")
SIZE = 20_000
FRAGMENTS = -(-SIZE // (LINK.mtu_bytes - 22))


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return record(tmp_path)


def record(tmp_path: Path, *, encrypted: bool = False) -> Path:
    """An object from board 3 to the ground, as the ground recorded it; some noise and a replay among it."""
    cable, clock, got = PtyCable(tmp_path), Clock(), list[bytes]()
    recorder = Recorder(tmp_path / "pass.sdml", clock=lambda: clock.now, wall=lambda: 1_700_000_000.0)
    tap = recorder.link(str(cable.a), LINK, local=0, peer=3, encrypted=encrypted)
    pumps = {}
    for name, node, port, given in (("ground", 0, cable.a, tap), ("board", 3, cable.b, None)):
        nonce = random.Random(node).randbytes
        session = Session(
            Identity(node, 3 - node, primary=node == 0),
            Medium(LINK),
            Security(KEY, nonce=nonce, encrypted=encrypted),
            SessionState(epoch=1),
        )
        pumps[name] = Pump(opener(str(port), LINK, given), session, Spool(tmp_path / name, 1 << 20))
    pumps["board"].session.offer(UPDATE, payload(SIZE), 0.0)
    clock.run(pumps, told(Delivered, "board"), carry=cable.carry, act=accept_into(got, pumps, clock))
    os.write(cable.master_of_a(), b"\x09noise\0")
    clock.run(pumps, lambda _: pumps["ground"].port_snapshot().broken == 1, carry=cable.carry)
    for end in pumps.values():
        end.close(clock.now)
    recorder.close()
    cable.pull()
    return tmp_path / "pass.sdml"


def replay(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["replay", *map(str, arguments)])


def as_json(*arguments: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The frames and the totals."""
    result = replay(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    *frames, totals = map(json.loads, result.stdout.splitlines())
    return frames, totals


@pytest.fixture
def key(tmp_path: Path) -> Path:
    save_key(tmp_path / "node.key", KEY)
    return tmp_path / "node.key"


def test_the_sessions_hear_again_what_the_programs_heard(recorded: Path, key: Path) -> None:
    frames, totals = as_json(recorded, "--key", key)
    assert {frame["verdict"] for frame in frames} == {"taken"}
    data = [frame for frame in frames if frame["frame"]["type"] == "DATA"]
    assert [frame["frame"]["fragment"] for frame in data] == list(range(FRAGMENTS))
    assert {(frame["node"], frame["way"]) for frame in data} == {(3, "in")}
    (arrived,) = [frame for frame in frames if "Arrived" in frame["events"]]
    assert arrived is data[-1] or arrived["frame"]["type"] == "REPAIR"
    assert [frame["unix_s"] for frame in frames] == sorted(frame["unix_s"] for frame in frames)
    assert frames[0]["unix_s"] >= 1_700_000_000.0
    heard, said = totals["streams"]
    assert (heard["way"], heard["fragments_received"], heard["arrived"]) == ("in", FRAGMENTS, 1)
    assert (heard["broken"], heard["bad_tags"], heard["loss_in"]) == (1, 0, 0.0)
    assert (said["way"], said["arrived"]) == ("out", 0)
    hellos = [frame for frame in frames if frame["way"] == "out" and frame["frame"]["type"] == "HELLO"]
    assert said["frames"] == said["frames_received"] + len(hellos)
    assert hellos
    assert totals["damaged"] == 0


def test_an_encrypted_recording_plays_as_a_plain_one_with_the_key(tmp_path: Path, key: Path) -> None:
    recording = record(tmp_path, encrypted=True)
    frames, totals = as_json(recording, "--key", key)
    assert {frame["verdict"] for frame in frames} == {"taken"}
    assert {frame["frame"]["type"] for frame in frames if not frame["frame"]["encrypted"]} == {"HELLO"}
    assert [stream["arrived"] for stream in totals["streams"]] == [1, 0]
    assert {frame["verdict"] for frame in as_json(recording)[0]} == {"unchecked"}
    (arrived,) = [line for line in replay(recording, "--key", key).stdout.splitlines() if "Arrived" in line]
    assert " ENC  taken" in arrived


def test_a_recording_over_a_change_to_encryption(tmp_path: Path, key: Path) -> None:
    whole = record(tmp_path).read_bytes()
    (tmp_path / "pass.sdml").unlink()
    record(tmp_path, encrypted=True)
    with (tmp_path / "pass.sdml").open("ab") as file:
        file.write(whole)
    frames, totals = as_json(tmp_path / "pass.sdml", "--key", key)
    assert {frame["verdict"] for frame in frames} == {"taken"}
    assert {frame["frame"]["encrypted"] for frame in frames} == {True, False}
    assert [stream["arrived"] for stream in totals["streams"]] == [2, 0]


def test_an_encrypted_recording_without_the_package_is_one_line(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = record(tmp_path, encrypted=True)
    hide(monkeypatch, "cryptography", "onboard.wire.security.cipher")
    result = replay(recording, "--key", key)
    assert result.exit_code == 2
    assert "its frames are encrypted: cryptography is not installed" in result.stderr
    assert replay(recording).exit_code == 0


def test_a_frame_that_comes_twice_and_one_that_was_altered_are_told_apart(recorded: Path, key: Path) -> None:
    """The whole file twice is a run after a restart in which every frame is replayed."""
    again = recorded.with_name("again.sdml")
    again.write_bytes(recorded.read_bytes())
    frames, _ = as_json(recorded, again, "--key", key)
    half = len(frames) // 2
    repeated = [frame for frame in frames[half:] if frame["frame"]["type"] != "HELLO"]  # no window guards it
    assert {frame["verdict"] for frame in repeated} == {"replays"}
    other = recorded.with_name("other.key")
    save_key(other, bytes(reversed(KEY)))
    frames, totals = as_json(recorded, "--key", other)
    assert {frame["verdict"] for frame in frames} == {"bad_tags"}
    assert sum(stream["bad_tags"] for stream in totals["streams"]) == len(frames)


def test_without_a_key_the_headers_are_shown_unchecked(recorded: Path) -> None:
    frames, totals = as_json(recorded)
    assert {frame["verdict"] for frame in frames} == {"unchecked"}
    assert "bad_tags" not in totals["streams"][0]
    text = replay(recorded).stdout.splitlines()
    assert len(text) == len(frames) + 1 + 2 + 1
    assert " node 3 in " in "\n".join(text)
    assert text[-1] == "records damaged: 0"


def test_the_text_says_the_same(recorded: Path, key: Path) -> None:
    lines = replay(recorded, "--key", key).stdout.splitlines()
    (arrived,) = [line for line in lines if line.endswith("taken Arrived")]
    assert " node 3 in " in arrived
    assert any(" OFFER  3>0 1:1 object 1 fragment 0" in line for line in lines)
    assert any(line.startswith("node 3 in: bytes ") and "arrived 1" in line for line in lines)


def test_a_recording_that_was_cut_anywhere_is_played_as_far_as_it_goes(recorded: Path, key: Path) -> None:
    whole = recorded.read_bytes()
    frames, _ = as_json(recorded, "--key", key)
    for end in range(0, len(whole), len(whole) // 23):
        recorded.write_bytes(whole[:end])
        some = list(Replay([recorded], lambda _: KEY))
        assert [(line.verdict, line.size) for line in some] == [
            (frame["verdict"], frame["size"]) for frame in frames[: len(some)]
        ]


def test_a_mission_brings_the_keys_of_its_boards(recorded: Path, tmp_path: Path) -> None:
    node = [f"--node=n{number},port=/dev/{number}" for number in (1, 2, 3)]
    assert CliRunner().invoke(main, ["init", str(tmp_path / "m"), *node]).exit_code == 0
    (tmp_path / "m" / "keys" / "n3.key").write_text(KEY.hex())
    frames, _ = as_json(recorded, "--mission", tmp_path / "m")
    assert {frame["verdict"] for frame in frames} == {"taken"}


def test_what_is_no_recording_is_said(tmp_path: Path) -> None:
    missing = replay(tmp_path / "none")
    assert (missing.exit_code, missing.stderr) == (2, f"{tmp_path / 'none'}: No such file or directory\n")
    (tmp_path / "text").write_text("no recording\0at all")
    frames, totals = as_json(tmp_path / "text")
    assert (frames, totals) == ([], {"streams": [], "damaged": 2})
    assert replay(tmp_path / "text", "--key", tmp_path / "none").exit_code == 2


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(recorded: Path) -> None:
    command = [sys.executable, "-m", "groundstation", "replay", *[str(recorded)] * 100]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as replayed:
        assert replayed.stdout is not None
        assert " node 3 " in replayed.stdout.readline()
        replayed.stdout.close()
        assert replayed.stderr is not None
        assert replayed.stderr.read() == ""
