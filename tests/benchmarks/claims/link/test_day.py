"""A few hours of passes keep every bound, and a bound that is not kept is seen."""

from __future__ import annotations

import pytest

from benchmarks.claims.link import day
from benchmarks.harness import leg
from benchmarks.harness.result import Row
from onboard.wire.events import Event
from onboard.wire.framing.frame import Origin
from onboard.wire.medium.contact_gate import ByteQuota
from onboard.wire.security.seal import ReplayWindow
from onboard.wire.session import Session


def played(hours: float) -> dict[str, Row]:
    one = day.Day(1, hours=hours, boards=1)
    one.play()
    return {row.what: row for row in day.rows_of([one])}


def broken(rows: dict[str, Row]) -> set[str]:
    return {row.what for row in rows.values() if not row.holds}


def test_four_hours_keep_every_bound() -> None:
    rows = played(4.0)
    assert not broken(rows)
    for what in ("objects delivered", "objects ended by their deadline", "kills", "replays"):
        assert rows[f"  {what}"].value > 0, what
    assert rows["most that a board used of a contact's allowance"].value > 0.9


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Session.receive

    def leak(session: Session, frame: bytes, now: float, origin: Origin = None) -> list[Event]:
        session.__dict__.setdefault("_kept", []).extend(frame[nth:] for nth in range(8))
        return receive(session, frame, now, origin)

    monkeypatch.setattr(Session, "receive", leak)
    monkeypatch.setattr(day, "WARM_S", 0.0)
    monkeypatch.setattr(day, "DRAIN_S", 20_000.0)
    assert {"longest table", "  bytes grown since two orbits"} <= broken(played(2.0))


def test_an_allowance_that_does_not_hold_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteQuota, "opens_at", lambda self, now, count_bytes, bulk=False: now)
    monkeypatch.setattr(day, "DRAIN_S", 7200.0)
    assert "most that a board used of a contact's allowance" in broken(played(1.0))


def test_objects_that_do_not_go_on_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "receive", lambda self, frame, now, origin=None: [])
    monkeypatch.setattr(day, "DRAIN_S", 7200.0)
    found = broken(played(2.0))
    assert {"objects that never came to an end", "longest contact in which nothing went on"} <= found


def test_a_replay_that_is_taken_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = ReplayWindow.accept
    monkeypatch.setattr(ReplayWindow, "accept", lambda self, epoch, seq: accept(self, epoch, seq) or True)
    monkeypatch.setattr(leg, "REMEMBERED", 1.0)
    monkeypatch.setattr(day, "DRAIN_S", 7200.0)
    assert "replays taken" in broken(played(2.0))
