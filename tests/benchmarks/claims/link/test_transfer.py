"""The bounds are the ones on paper, and a row is what a whole run gave."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.claims.link import transfer
from benchmarks.claims.link.transfer import (
    CASES,
    FAST,
    LONG_FRAMES,
    LOSSES,
    MIDDLE,
    SLOW,
    TransferCase,
    all_groups,
    best_bound_bps,
    bound_bps,
    radio,
    send,
)


@pytest.mark.parametrize(
    ("case", "shares"),  # of the rate: goodput's bound in docs/results/link-benchmarks.md
    [
        (SLOW, (0.893, 0.848, 0.714, 0.536)),
        (MIDDLE, (0.977, 0.928, 0.782, 0.586)),
        (FAST, (0.983, 0.934, 0.787, 0.590)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_bounds_are_what_frames_leave_for_their_payload(
    case: TransferCase, shares: tuple[float, ...]
) -> None:
    for loss, share in zip(LOSSES, shares, strict=True):
        assert bound_bps(case.link, loss) / case.link.rate_up_bps == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize(
    ("ber", "best", "share"), [(1e-5, 536, 0.915), (1e-4, 162, 0.751), (1e-3, 44, 0.375)]
)
def test_the_best_length_follows_from_bit_errors(ber: float, best: int, share: float) -> None:
    link = LONG_FRAMES.link
    assert best_bound_bps(link, ber) / link.rate_up_bps == pytest.approx(share, abs=6e-4)
    there = (1 - ber) ** (8 * (best + 24)) * best / (best + 24)
    assert best_bound_bps(link, ber) / link.rate_up_bps == pytest.approx(there, rel=1e-6)


def test_every_promise_of_the_link_is_a_row() -> None:
    names = [group.name for group in all_groups()]
    assert len(set(names)) == len(names)
    for case in CASES:
        independent = [name for name in names if name.startswith(f"{case.name},") and name.endswith("% lost")]
        bursts = [name for name in names if name.startswith(f"{case.name},") and name.endswith("in bursts")]
        assert (len(independent), len(bursts)) == (4, 3)


def test_one_row_by_its_name() -> None:
    done = CliRunner().invoke(main, ["transfer", "--seeds", "2", "--only", "9.6 kbit/s, 20 % lost", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output.splitlines()[-1])
    what = [row["what"] for row in told["rows"]]
    assert what[:2] == ["9.6 kbit/s, 20 % lost", "  in the worst run"]
    assert 0.85 < told["rows"][1]["value"] <= told["rows"][0]["value"] < 1.1
    assert told["rows"][0]["bound"] == 0.95


def test_a_name_that_no_row_has_is_refused() -> None:
    done = CliRunner().invoke(main, ["transfer", "--only", "9.7"])
    assert done.exit_code == 2
    assert "--only '9.7': no row begins so" in done.output


def test_a_run_is_its_seeds_and_nothing_else() -> None:
    case = TransferCase("short", radio(9600, 200), 8192, 0.0)
    assert send(case, 3, frame_loss=0.2) == send(case, 3, frame_loss=0.2) != send(case, 4, frame_loss=0.2)
    calm, cut = send(case, 3), send(case, 3, restart=("ground", 3.0))
    assert calm.wire_bytes < cut.wire_bytes
    assert calm.arrived_s < cut.arrived_s < calm.arrived_s + 3.0
    assert transfer.RESTART_S < 3.0
