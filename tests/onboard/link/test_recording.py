"""A recording holds what crossed the ports, whatever befalls its file, and never more than its limit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_profiles import load_link
from onboard.link import recording
from onboard.link.ports.schemes import open_port
from onboard.link.recording import BadRecord, Kind, Reader, Record, Recorder, Start
from onboard.wire.framing import cobs
from tests.disks import remount, small_disk
from tests.onboard.link.cable import PtyCable
from tests.onboard.link.test_serial import collect
from tests.onboard.wire.examples import VECTORS

LINK = load_link("bench-serial-115k2")

datas = st.binary(max_size=300)
records = st.builds(
    Record,
    st.sampled_from(Kind),
    st.integers(0, 255),
    st.integers(0, 10**15).map(lambda at_us: at_us / 1e6),
    datas,
)


class Clocks:
    """Both clocks of a recorder."""

    def __init__(self) -> None:
        self.now = 50.0

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def recorder(path: Path, clocks: Clocks, limit_bytes: int = 1 << 20) -> Recorder:
    return Recorder(path, limit_bytes, clock=lambda: clocks.now, wall=clocks.wall)


def read(path: Path) -> tuple[list[Record], int]:
    """The records of a file, and how many chunks were none."""
    reader = Reader(path)
    return list(reader), reader.damaged


@given(records)
def test_decode_undoes_encode(record: Record) -> None:
    stuffed = recording.encode(record)
    assert stuffed.count(0) == 1
    assert recording.decode(stuffed[:-1]) == record


@given(records, st.data())
def test_whatever_is_cut_off_or_flipped_is_no_record(record: Record, data: st.DataObject) -> None:
    stuffed = recording.encode(record)[:-1]
    cut = stuffed[: data.draw(st.integers(0, len(stuffed) - 1))]
    flipped = bytearray(stuffed)
    flipped[data.draw(st.integers(0, len(stuffed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (cut, bytes(flipped)):
        with pytest.raises(BadRecord):
            recording.decode(damaged)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_refused(chunk: bytes) -> None:
    with pytest.raises(BadRecord):
        recording.decode(chunk)


def test_golden_bytes() -> None:
    record = Record(Kind.IN, 3, 1.5, (VECTORS / "cobs.bin").read_bytes())
    assert recording.encode(record) == (VECTORS / "record.bin").read_bytes()


def test_a_record_longer_than_a_port_gives() -> None:
    with pytest.raises(ValueError, match="65537 B in a record"):
        recording.encode(Record(Kind.IN, 1, 0.0, bytes(65_537)))


@pytest.mark.parametrize("kind", ["serial", "udp"])
def test_what_crosses_a_port_is_recorded_both_ways(kind: str, tmp_path: Path, clocks: Clocks) -> None:
    cable = PtyCable(tmp_path)
    url = str(cable.a) if kind == "serial" else "udp://127.0.0.1:9?bind=127.0.0.1:0"
    made = recorder(tmp_path / "record", clocks)
    port = open_port(url, LINK, made.link(url, LINK, local=0, peer=3))
    clocks.now += 1.25
    port.write(b"frame")
    if kind == "serial":
        clocks.now += 2
        os.write(cable.master_of_a(), cobs.encode(b"answer"))
        assert collect(port, 1) == [b"answer"]
    port.close()
    made.close()
    (start, *crossed), damaged = read(tmp_path / "record")
    assert damaged == 0
    told = recording.start_of(start)
    assert told == Start(
        unix_s=1_700_000_050.0, url=url, framing="cobs" if kind == "serial" else "datagram", kiss_port=0,
        local=0, peer=3, link=dataclasses.replace(LINK),
    )  # fmt: skip
    if kind == "udp":
        assert crossed == [Record(Kind.OUT, 3, 1.25, b"frame")]
    else:
        assert b"".join(r.data for r in crossed if r.kind is Kind.OUT) == b"\0" + cobs.encode(b"frame")
        assert b"".join(r.data for r in crossed if r.kind is Kind.IN) == cobs.encode(b"answer")
        assert [r.at_s for r in crossed if r.kind is Kind.IN] == [3.25]
    cable.pull()


def test_the_links_of_a_node_are_told_apart(tmp_path: Path, clocks: Clocks) -> None:
    made = recorder(tmp_path / "record", clocks)
    for local, peer in ((5, 3), (5, 4), (5, 0)):
        made.link("udp://127.0.0.1:9", LINK, local=local, peer=peer)("out", bytes([peer]))
    made.close()
    crossed = [each for each in read(tmp_path / "record")[0] if each.kind is Kind.OUT]
    assert [(each.node, each.data) for each in crossed] == [(3, b"\3"), (4, b"\4"), (5, b"\0")]


def test_a_second_run_goes_on_behind_a_record_that_was_cut(tmp_path: Path, clocks: Clocks) -> None:
    path = tmp_path / "record"
    first = recorder(path, clocks)
    first.link("/dev/a", LINK, local=0, peer=3)("in", b"first")
    first.close()
    whole = path.read_bytes()
    length = len(recording.encode(Record(Kind.IN, 3, 0.0, b"first")))
    for cut in range(1, length + 1):
        path.write_bytes(whole[:-cut])
        second = recorder(path, clocks)
        second.link("/dev/a", LINK, local=0, peer=3)("out", b"second")
        second.close()
        found, damaged = read(path)
        assert [record.kind for record in found][-2:] == [Kind.START, Kind.OUT]
        assert found[-1].data == b"second"
        assert len(found) == 3 + (cut == 1)  # without its delimiter alone a record is still whole
        assert damaged == (1 < cut < length)


def test_a_program_that_is_killed_leaves_all_that_crossed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from hw_profiles import load_link\n"
        "from onboard.link.recording import Recorder\n"
        "tap = Recorder(Path(sys.argv[1])).link('/dev/a', load_link('uhf-9k6'), local=3, peer=0)\n"
        "for n in range(100): tap('out', bytes([n]))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "record")], check=False, timeout=60)
    assert done.returncode == -9
    found, damaged = read(tmp_path / "record")
    assert [record.data for record in found[1:]] == [bytes([n]) for n in range(100)]
    assert damaged == 0


def test_a_full_file_gives_way_to_a_new_one_that_can_be_read_alone(tmp_path: Path, clocks: Clocks) -> None:
    path = tmp_path / "record"
    made = recorder(path, clocks, limit_bytes=5_000)
    taps = [made.link(f"/dev/{node}", LINK, local=0, peer=node) for node in (1, 2)]
    for turn in range(200):
        clocks.now += 1
        taps[turn % 2]("in", turn.to_bytes(2, "big") * 50)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2 * 5_000
    made.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["record", "record.1"]
    (older, damaged), (newer, damaged_too) = read(tmp_path / "record.1"), read(path)
    assert damaged == damaged_too == 0
    for found in (older, newer):
        assert [record.kind for record in found[:3]] == [Kind.START, Kind.START, Kind.IN]
    turns = [int.from_bytes(r.data[:2], "big") for r in [*older, *newer] if r.kind is Kind.IN]
    assert turns == list(range(200 - len(turns), 200))
    assert newer[-1].at_s == 200.0


def test_a_full_disk_costs_records_and_nothing_else(
    tmp_path: Path, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        made = recorder(disk / "record", clocks)
        tap = made.link("/dev/a", LINK, local=0, peer=3)
        for turn in range(60):
            clocks.now += 1
            tap("in", bytes([turn]) * 1_000)
        assert made.lost > 40
        assert [record.getMessage() for record in caplog.records] == ["record-failed"]
        remount(disk, "size=1m")
        clocks.now += 10
        tap("in", b"there is room again")
        made.close()
        found, damaged = read(disk / "record")
    assert found[-1].data == b"there is room again"
    assert found[-2].kind is Kind.START
    assert damaged == 1  # the one that the disk cut


def test_a_folder_that_is_not_there_is_told_once_and_tried_again(
    tmp_path: Path, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    made = recorder(tmp_path / "stick" / "record", clocks)
    tap = made.link("/dev/a", LINK, local=0, peer=3)
    for _ in range(50):
        clocks.now += 1
        tap("in", b"x")
    assert made.lost == 50
    assert len(caplog.records) == 1
    (tmp_path / "stick").mkdir()
    clocks.now += 10
    tap("in", b"y")
    made.close()
    found, _ = read(tmp_path / "stick" / "record")
    assert [record.data for record in found[1:]] == [b"y"]
