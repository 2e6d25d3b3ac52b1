"""`groundstation links` fits a terminal of 100 columns and says of every link what its counters are."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from groundstation.views.status import group
from tests.onboard.monitor.test_render import LINK

PI = LINK | {"node": "pi[0]", "profile": "uhf-9k6", "updates_late": 0, "updates_refused": 0}
NANO = PI | {
    "node": "nano", "profile": "bench-serial-115k2", "objects": [], "eta_out_s": None, "heard_s_ago": None,
    "bad_tags": 1_000, "port": LINK["port"] | {"open": False, "why": "cannot open: No such device"},
}  # fmt: skip
VIEW: dict[str, Any] = {"round": 4, "waiting": ["nano"], "links": [PI, NANO]}


def printed(view: dict[str, Any], before: dict[str, Any] | None, width: int = 100) -> list[str]:
    """The picture's lines, with one space between words."""
    text = StringIO()
    Console(file=text, width=width).print(group(view, before, 2.0))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [" ".join(line.split()) for line in lines]


def test_every_link_has_its_rows_and_every_object_its_own() -> None:
    before = VIEW | {"links": [PI | {"bytes_sent": PI["bytes_sent"] - 2_000}]}
    lines = printed(VIEW, before)
    assert lines[0] == "round 4, waiting for nano"
    assert "pi[0] heard 0.4 s ago 8 kbit/s 8.51 kbit/s 0 bit/s 1.2, 25.0 % 25 s" in lines
    assert "pi[0] 268,112 12,044 4 min 12 3 0 0 7" in lines
    assert "nano 268,112 12,044 4 min 12 3 1,000 0 7" in lines
    (update,) = [line for line in lines if "3f2a91bc" in line]
    assert update.startswith("pi[0] out update 3f2a91bc 64,000 ")
    assert update.endswith(" 62 % 25 s to go")


def test_what_takes_longest_says_when_all_is_done_and_in_how_many_passes() -> None:
    planned = PI | {"eta_out_passes": 1, "eta_in_s": 9_000.0, "eta_in_passes": 3}
    assert printed(VIEW | {"links": [planned]}, None)[3].endswith(" 2.5 h 3")
    away = PI | {"in_contact": False}
    assert printed(VIEW | {"links": [away]}, None)[3].startswith("pi[0] out of contact ")


def test_a_port_that_is_closed_says_why() -> None:
    lines = printed(VIEW, None, width=120)
    (nano,) = [line for line in lines if line.startswith("nano cannot open: No such device ")]
    assert nano.endswith(" ?")


def test_nothing_to_show() -> None:
    lines = printed({"round": 0, "waiting": [], "links": []}, None)
    assert (lines[0], lines[-1]) == ("round 0, waiting for nobody", "nothing is on its way")
