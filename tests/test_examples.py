"""Every example runs as it stands, is as short as the documentation says, and is linked from there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hw_profiles import load_link
from onboard.link.ports.framing import FRAMINGS
from onboard.link.recording import Recorder
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.session import Session

ROOT = Path(__file__).parents[1]
EXAMPLES = {
    "two_sessions.py": 60,
    "one_node.py": 40,
    "decode_recording.py": 45,
    "use_the_model.py": 40,
    "own_network.py": 20,
}
"""How many lines each may have."""


def run(name: str, *arguments: str | Path) -> list[str]:
    """What an example prints."""
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_each_example_is_short_and_linked_from_the_documentation() -> None:
    found = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "examples").glob("*.py")}
    assert found.keys() == EXAMPLES.keys()
    assert {name: lines for name, lines in found.items() if lines > EXAMPLES[name]} == {}
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [name for name in EXAMPLES if f"examples/{name})" not in pages] == []


def test_two_sessions_deliver_an_object() -> None:
    told = run("two_sessions.py")
    assert told[-2:] == ["node 0: Arrived", "node 1: Delivered"]


def test_one_node_trains_and_packs_its_update() -> None:
    *epochs, size = run("one_node.py")
    assert [line.partition(":")[0] for line in epochs] == [f"epoch {number}" for number in (1, 2, 3, 4)]
    packed, plain = (int(word) for word in size.split() if word.isdecimal())
    assert packed < plain / 100


@pytest.mark.parametrize("url", ["/dev/ttyUSB0", "udp://127.0.0.1:4800"])
def test_a_recording_is_decoded_frame_by_frame(url: str, tmp_path: Path) -> None:
    link, now = load_link("bench-serial-115k2"), 0.0
    recorder = Recorder(tmp_path / "pass.sdml", clock=lambda: now)
    record = recorder.link(url, link, local=1, peer=0)
    stream = FRAMINGS["cobs" if url.startswith("/") else "datagram"].make(link.mtu_bytes, 0)
    identity = Identity(node=1, peer=0, primary=False)
    session = Session(identity, Medium(link), Security(bytes(range(32))), SessionState(epoch=3))
    session.send_message(b"hello", now)
    while (frame := session.transmit(now)) is None:
        now = session.wakeup(now)
    record("out", stream.encode(frame))
    record("in", stream.encode(b"no frame of ours"))
    recorder.close()
    begin, said, noise, end = run("decode_recording.py", tmp_path / "pass.sdml")
    assert begin == f"link of node 1 with node 0 on {url}"
    assert said.endswith("OUT  MSG      from 1 seq 3.1, 5 B")
    assert " IN " in noise
    assert "from" not in noise
    assert end == "0 damaged records"
