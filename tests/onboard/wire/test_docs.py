"""docs/wire.md says what the code does: every table and every example."""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from pathlib import Path

import msgspec
import pytest

from onboard.mission import files, health
from onboard.mission.commands import Command, CommandResult
from onboard.mission.health import Failure, State
from onboard.mission.objects import KINDS, Task, Update
from onboard.wire.framing.frame import _HEADER, HEADER_BYTES, TAG_BYTES, Type
from onboard.wire.messages import Cancel, Done, Offer, Reason, Report
from onboard.wire.security.security_context import Hello
from tests.onboard.wire.examples import VECTORS

PAGE = (Path(__file__).parent.parent.parent.parent / "docs" / "wire.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text under a heading, up to the next of the same or a higher level."""
    level = heading.split()[0]
    _, _, rest = PAGE.partition(f"\n{heading}\n")
    assert rest, f"docs/wire.md has no heading {heading!r}"
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def table(heading: str, first_column: str) -> list[list[str]]:
    """The rows of the table under a heading that starts with this column."""
    rows: list[list[str]] = []
    inside = False
    for line in section(heading).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first_column:
            inside = True
        elif inside and not cells[0].startswith("---"):
            rows.append(cells)
    assert rows, f"no table {first_column!r} under {heading!r}"
    return rows


def widths(layout: struct.Struct) -> list[int]:
    """The widths of a struct's fields."""
    fields = re.findall(r"\d+s|[a-zA-Z]", layout.format)
    return [struct.calcsize(f">{field}") for field in fields]


LAYOUTS = {
    "### OFFER": Offer._LAYOUT,
    "### REPORT": Report._LAYOUT,
    "### DONE": Done._LAYOUT,
    "### CANCEL": Cancel._LAYOUT,
    "### HELLO": Hello._LAYOUT,
    "### Health": health._HEALTH,
    "### Answers in health": health._ANSWERS,
    "### File": files._PART,
    "## Frame": _HEADER,
}


@pytest.mark.parametrize("heading", LAYOUTS)
def test_offsets_and_widths(heading: str) -> None:
    rows = table(heading, "offset")
    documented = [(int(row[0]), int(row[1])) for row in rows if row[0].isdecimal() and row[1].isdecimal()]
    expected = []
    offset = 0
    for width in widths(LAYOUTS[heading]):
        expected.append((offset, width))
        offset += width
    assert documented == expected


def test_the_frame_s_tag() -> None:
    payload, tag = table("## Frame", "offset")[-2:]
    assert payload[:2] == [str(HEADER_BYTES), "L"]
    assert tag[:2] == [f"{HEADER_BYTES} + L", str(TAG_BYTES)]


@pytest.mark.parametrize(
    ("heading", "column", "enum"),
    [
        ("## Frame", "type", Type),
        ("### CANCEL", "reason", Reason),
        ("### Health", "state", State),
        ("### Health", "failure", Failure),
    ],
)
def test_numbers_have_their_names(heading: str, column: str, enum: type[IntEnum]) -> None:
    documented = [(int(row[0]), row[1]) for row in table(heading, column)]
    assert documented == [(member.value, member.name) for member in enum]


def test_every_kind_of_object_has_its_row() -> None:
    documented = {int(row[0]): row[1].lower() for row in table("## Objects", "kind")}
    assert documented == KINDS


HEADERS: dict[str, type[msgspec.Struct]] = {
    "### Task": Task,
    "### Update": Update,
    "### Command": Command,
    "### Result": CommandResult,
    "### Request": files.FileRequest,
    "### Wanted file": files.WantedFile,
}


@pytest.mark.parametrize(("heading", "header"), HEADERS.items())
def test_headers_have_their_fields_in_order(heading: str, header: type[msgspec.Struct]) -> None:
    assert tuple(row[0] for row in table(heading, "field")) == header.__struct_fields__


def test_every_golden_file_is_shown_and_every_example_is_a_golden_file() -> None:
    shown = dict(re.findall(r"```hex ([a-z-]+)\n([0-9a-f \n]+)```", PAGE))
    golden = [
        "frame", "frame-encrypted", "cobs", "kiss", "offer", "report-bitmap", "report-runs", "report-sums",
        "report-unknown", "done", "cancel", "hello", "health", "health-failed",
        "health-answers", "task", "update", "record",
        "command", "result", "file", "request", "answers",
    ]  # fmt: skip
    assert sorted(shown) == sorted(golden)
    for name, text in shown.items():
        assert bytes.fromhex(text) == (VECTORS / f"{name}.bin").read_bytes(), name
