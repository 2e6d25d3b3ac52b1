"""A REPORT never says more than the receiver knows, however little room it has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.wire.messages import MAX_FRAGMENTS, BadMessage, Report
from tests.onboard.wire.examples import (
    DIGEST,
    REPORT_BITMAP,
    REPORT_RUNS,
    REPORT_SUMS,
    REPORT_UNKNOWN,
    VECTORS,
)

HEAD_BYTES = 13


def bitmap(runs: list[int]) -> int:
    """Held and missing fragments in turn, from fragment 0 on."""
    held = at = 0
    for turn, length in enumerate(runs):
        if turn % 2 == 0:
            held |= ((1 << length) - 1) << at
        at += length
    return held


bitmaps = st.one_of(
    st.integers(0, (1 << 400) - 1),
    st.lists(st.integers(0, 3000), max_size=20).map(bitmap),
    st.just((1 << MAX_FRAGMENTS) - 1),
)
reports = st.builds(
    Report,
    epoch=st.integers(0, 0xFFFF),
    seq=st.integers(0, 0xFFFFFFFF),
    prefix=st.binary(min_size=4, max_size=4),
    held=bitmaps,
    unknown=st.booleans(),
)
sums = st.dictionaries(st.integers(0, 255), st.integers(1, 255), max_size=20).map(
    lambda held: tuple(sorted(held.items()))
)


@given(reports, sums)
def test_with_room_all_is_said(report: Report, equations: tuple[tuple[int, int], ...]) -> None:
    report = replace(report, equations=equations)
    assert Report.decode(report.encode(HEAD_BYTES + 8192)) == report


@given(reports, st.integers(HEAD_BYTES, 80))
def test_with_little_room_what_is_said_is_true(report: Report, room: int) -> None:
    payload = report.encode(room)
    assert len(payload) <= room
    told = Report.decode(payload)
    below = (1 << told.covered) - 1
    assert told.held == report.held & below
    assert (told.epoch, told.seq, told.prefix, told.unknown) == (
        report.epoch,
        report.seq,
        report.prefix,
        report.unknown,
    )
    lowest_hole = (~report.held & (report.held + 1)).bit_length() - 1
    assert told.covered >= lowest_hole
    if told.covered < MAX_FRAGMENTS:  # a byte of bitmap tells of eight fragments: no room was wasted
        assert told.covered >= lowest_hole + 8 * (room - HEAD_BYTES)


@given(reports, sums, st.integers(HEAD_BYTES, 80))
def test_sums_take_a_quarter_of_the_room_at_most(
    report: Report, equations: tuple[tuple[int, int], ...], room: int
) -> None:
    report = replace(report, equations=equations)
    payload = report.encode(room)
    assert len(payload) <= room
    told = Report.decode(payload)
    assert told.equations == equations[: len(told.equations)]
    assert told.held == report.held & (1 << told.covered) - 1
    if told.equations:
        assert 1 + 2 * len(told.equations) <= (room - HEAD_BYTES) / 4


def test_328_fragments_fit_54_bytes_whatever_is_missing() -> None:
    scattered = int("10" * 164, 2)
    assert len(Report(1, 1, held=scattered).encode(200)) <= HEAD_BYTES + 41


def test_one_hole_in_a_large_object_takes_runs() -> None:
    assert len(REPORT_RUNS.encode(200)) == 16


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("report-bitmap", REPORT_BITMAP),
        ("report-runs", REPORT_RUNS),
        ("report-sums", REPORT_SUMS),
        ("report-unknown", REPORT_UNKNOWN),
    ],
)
def test_golden_bytes(name: str, report: Report) -> None:
    golden = (VECTORS / f"{name}.bin").read_bytes()
    assert report.encode(64) == golden
    assert Report.decode(golden) == report


@given(st.binary(max_size=60))
def test_any_bytes_decode_to_a_bounded_report_or_raise_bad_message(payload: bytes) -> None:
    try:
        report = Report.decode(payload)
    except BadMessage:
        return
    assert report.held.bit_length() <= MAX_FRAGMENTS
    assert 0 <= report.covered <= MAX_FRAGMENTS


def raw(flags: int, base: int, body: bytes) -> bytes:
    return bytes((flags,)) + bytes(6) + DIGEST[:4] + base.to_bytes(2, "big") + body


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        raw(0x10, 0, b""),  # a flag of some other version
        raw(0x08, 0, b""),  # sums of which nothing is said
        raw(0x08, 0, b"\0"),
        raw(0x08, 0, b"\2\0\1\1"),
        raw(0x08, 0, b"\1\0\0"),
        raw(0x08, 0, b"\2\1\1\1\1"),
        raw(0, 0, b"\x01"),  # its first hole is held
        raw(0, 65_530, b"\0" * 8 + b"\x01"),  # beyond the last fragment there can be
        raw(0x01, 0, b"\x00"),  # a run of nothing
        raw(0x01, 0, b"\x80"),  # half a number
        raw(0x01, 0, b"\xff\xff\xff\xff\x7f"),  # a number too long
        raw(0x01, 0, b"\xff\xff\x7f"),  # a run too long
        raw(0x01, 65_535, b"\x01\x01"),
    ],
    ids=range(14),
)
def test_contradictions_raise_bad_message(payload: bytes) -> None:
    with pytest.raises(BadMessage):
        Report.decode(payload)


@pytest.mark.parametrize(
    ("report", "room", "message"),
    [
        (Report(1, 1), 12, "12 B"),
        (Report(1, 1, held=1 << MAX_FRAGMENTS), 60, "65536"),
        (Report(1, 1, held=-1), 60, "held"),
        (Report(1, 1, prefix=b"abc"), 60, "abc"),
        (Report(1 << 16, 1), 60, "65536"),
        (Report(1, 1 << 32), 60, "4294967296"),
    ],
)
def test_a_field_out_of_range_is_refused(report: Report, room: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report.encode(room)
