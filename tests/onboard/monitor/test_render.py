"""A link's picture says in words what its counters are, on 80 columns."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.monitor.render import (
    bit_rate,
    board_picture,
    doing,
    dropped,
    duration,
    eta,
    peer_state,
    rate_bps,
)

LINK: dict[str, Any] = {
    "epoch": 7, "peer_epoch": 12, "frames_sent": 1_204, "bytes_sent": 268_112, "frames_received": 310,
    "bytes_received": 12_044, "malformed": 0, "bad_tags": 0, "replays": 0, "misaddressed": 0, "orphans": 0,
    "plain_dropped": 0, "encrypted_dropped": 0,
    "duplicates": 4, "corrupt": 0, "refused": 0, "expired": 0,
    "fragments_sent": 1_180, "fragments_resent": 12, "repairs_sent": 3,
    "fragments_received": 102, "loss_out": 0.012, "loss_in": 0.25, "airtime_s": 223.4,
    "goodput_out_bps": 8_512.0, "goodput_in_bps": 0.0, "silent": False, "heard_s_ago": 0.4,
    "eta_out_s": 25.0, "eta_out_passes": None, "eta_in_s": 0, "eta_in_passes": None, "in_contact": True,
    "port": {"url": "/dev/ttyUSB0", "open": True, "why": "", "rx_bytes": 1, "tx_bytes": 2, "broken": 3},
    "objects": [{"digest": "3f2a91bc" + "00" * 12, "kind": 2, "incoming": False, "bytes": 64_000,
                 "fragments": 100, "held": 62, "eta_s": 25.0, "eta_passes": None}],
}  # fmt: skip
BOARD: dict[str, Any] = {
    "node": "pi", "board": "raspberry-pi-4", "profile": "sband-256k", "phase": "training", "round": 3,
    "progress": 0.451, "loss": 0.2134, "link": LINK,
}  # fmt: skip


def plain(text: str) -> list[str]:
    return click.unstyle(text).splitlines()


def test_the_picture_of_a_board_that_answers_images() -> None:
    said = {"waiting": 2, "names": ["land", "sea"], "images": 1200, "doubtful": 14, "confidence": 0.912,
            "drift": None, "classes": [[1, 0.75], [7, 0.25]]}  # fmt: skip
    line = plain(board_picture(BOARD | {"answers": said}, None, 0.0))[1]
    assert line == "images answered: 1,200, sea 75 %, 7 25 %, 14 to label, confidence 0.91"
    waiting = {"answers": {"waiting": 2, "names": []}}
    assert plain(board_picture(BOARD | waiting, None, 0.0)) == plain(board_picture(BOARD, None, 0.0))


def test_the_picture_of_a_board() -> None:
    before = BOARD | {"link": LINK | {"bytes_sent": 267_112, "bytes_received": 12_044}}
    assert plain(board_picture(BOARD, before, 2.0)) == [
        "pi  raspberry-pi-4, sband-256k: training, round 3, 45 % trained, loss 0.213",
        "",
        "port    /dev/ttyUSB0  open",
        "ground  heard 0.4 s ago",
        "",
        "                           out            in",
        "frames                   1,204           310",
        "bytes                  268,112        12,044",
        "fragments                1,180           102",
        "  of them again             12             4",
        "repairs                      3",
        "lost                     1.2 %        25.0 %",
        "goodput            8.51 kbit/s       0 bit/s",
        "on the wire now       4 kbit/s       0 bit/s",
        "airtime                  4 min",
        "epoch                        7            12",
        "",
        "dropped   duplicates 4, noise 3",
        "",
        "out update  3f2a91bc       64,000 B  ━━━━━━━━━━━━━━━━━━━━  62 %  25 s to go",
        "all out: 25 s to go",
    ]


def test_the_first_picture_has_no_rate_yet_nor_has_one_across_a_restart() -> None:
    assert rate_bps(LINK, None, 1.0, "bytes_sent") is None
    assert rate_bps(LINK, LINK | {"epoch": 6}, 1.0, "bytes_sent") is None
    assert "on the wire now" in plain(board_picture(BOARD, None, 0.0))


def test_a_link_that_is_not_as_it_should_be() -> None:
    assert plain(peer_state(LINK | {"heard_s_ago": None})) == ["not heard yet"]
    assert plain(peer_state(LINK | {"in_contact": False})) == ["out of contact"]
    assert plain(peer_state(LINK | {"silent": True, "heard_s_ago": 300})) == ["silent, heard 5 min ago"]
    quiet = LINK | {"objects": [], "eta_out_s": 0, "duplicates": 0, "port": LINK["port"] | {"broken": 0}}
    assert dropped(quiet) == "dropped   nothing"
    lines = plain(board_picture(BOARD | {"link": quiet}, None, 0.0))
    assert lines[-1] == "nothing is on its way"
    lost = LINK | {"port": LINK["port"] | {"open": False, "why": "cannot open: No such file or directory"}}
    assert "port    /dev/ttyUSB0  cannot open: No such file or directory" in plain(
        board_picture(BOARD | {"link": lost}, None, 0.0)
    )


def test_what_an_agent_is_at() -> None:
    assert doing({"phase": "idle", "round": 0}) == "idle"
    assert doing({"phase": "training", "round": 1, "progress": 0.0, "loss": None}) == (
        "training, round 1, 0 % trained"
    )


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (45, "45 s"), (121, "2 min"), (7_199, "120 min"), (7_200, "2.0 h"),
     (100_000, "28 h"), (200_000, "2.3 d")],
)  # fmt: skip
def test_a_time_has_the_unit_that_fits_it(value_s: float, text: str) -> None:
    assert duration(value_s) == text


@given(st.floats(0, 9e11))
def test_no_time_and_no_rate_takes_more_room_than_its_column(value: float) -> None:
    assert len(duration(min(value, 1e9))) <= 9
    assert len(bit_rate(value)) <= 11


def test_what_was_dropped_is_named_as_its_counter() -> None:
    link = LINK | {"plain_dropped": 3, "encrypted_dropped": 2, "bad_tags": 1_000}
    assert dropped(link) == "dropped   bad tags 1,000, plain 3, encrypted 2, duplicates 4, noise 3"


def test_what_has_no_end_says_so() -> None:
    assert (eta(None, None), eta(3.0, None)) == ("no end in sight", "3.0 s to go")
    assert (eta(30.0, 1), eta(9_000.0, 3)) == ("30 s to go, 1 pass", "2.5 h to go, 3 passes")
