"""A contact plan as a file: what is wrong is told in one line, and a session follows it by the wall clock."""

from __future__ import annotations

import math
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from hw_profiles import load_link
from onboard.console.toml import ConfigError
from onboard.runtime.contact_plan import LOOK_AGAIN_S, ContactPlan
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.medium.contact_gate import Window
from onboard.wire.session import Session

NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc).timestamp()


def contact(rise: str, end: str, node: object = 3, peer: object = 0, rate: str = "") -> str:
    """One table; times as hh:mm of a day, UTC."""
    day = "2026-11-21T"
    return (
        f"[[contact]]\nnode = {node}\npeer = {peer}\nrise = {day}{rise}:00Z\nset = {day}{end}:00Z\n{rate}\n"
    )


def plan_of(folder: Path, *contacts: str) -> ContactPlan:
    """The plan of node 3 and the ground."""
    (folder / "contacts.toml").write_text("".join(contacts), encoding="utf-8")
    return ContactPlan(folder / "contacts.toml", 3, 0)


def session() -> Session:
    """Of node 3, at time 0 of its clock."""
    return Session(
        Identity(3, 0, primary=False),
        Medium(load_link("uhf-9k6")),
        Security(bytes(32)),
        SessionState(epoch=1),
    )


def test_a_session_that_takes_the_place_of_another_keeps_to_the_plan_too(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, contact("12:10", "12:20"))
    for life in (session(), session()):
        assert life.contacts.is_up(0.0)
        plan.keep(life, 0.0, NOON)
        assert not life.contacts.is_up(0.0)


def test_the_contacts_of_two_nodes_whichever_is_named_first(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        contact("12:10", "12:20", rate="rate_bps = 1200"),
        contact("12:00", "12:10", node=0, peer=3),
        contact("12:05", "12:15", node=4),
        contact("12:00", "13:00", peer=4).replace(":00Z", ":00+01:00"),
    )
    assert sorted(plan.windows(NOON), key=lambda window: window.rise) == [
        Window(0.0, 600.0),
        Window(600.0, 1200.0, 1200.0),
    ]
    assert ContactPlan(plan.path, 4, 3).windows(NOON) == [Window(-3600.0, 0.0)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "contact: missing"),
        (contact("12:00", "12:10", node=4), "contact: none between node 3 and node 0"),
        (contact("12:00", "12:10", node=255), "contact[0].node = 255: expected int <= 254"),
        (contact("12:00", "12:10", peer=3), "contact[0].peer = 3: is the node itself"),
        (contact("12:10", "12:10"), "contact[0].set = 2026-11-21T12:10:00+00:00: must be after rise"),
        (contact("12:00", "12:10", rate="rate_bps = 0"), "contact[0].rate_bps = 0: expected float > 0"),
        (contact("12:00", "12:10", rate="rate = 9600"), "contact[0].rate = 9600: unknown key"),
        (contact("12:00", "12:10").replace("0Z", "0"), "contact[0].rise = 2026-11-21T12:00:00: expected"),
        (
            contact("12:05", "12:10") + contact("12:00", "12:06", node=0, peer=3),
            "contact[0].rise = 2026-11-21T12:05:00+00:00: is before the contact from 2026-11-21T12:00",
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_value(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'contacts.toml'}: {says}")
    assert "\n" not in str(error.value)


def test_a_session_follows_the_plan_by_the_wall_clock(tmp_path: Path) -> None:
    plan, board = plan_of(tmp_path, contact("12:10", "12:20")), session()
    board.send_message(b"health", 0.0)
    plan.keep(board, 0.0, NOON)
    assert board.transmit(599.0) is None
    assert board.wakeup(0.0) == pytest.approx(600.0, abs=1.0)
    plan.keep(board, 100.0, NOON + 100.4)  # slower than it should be, which is borne
    assert board.wakeup(100.0) == pytest.approx(600.0, abs=1.0)
    plan.keep(board, 200.0, NOON + 650.0)  # it was set: in contact since 50 s
    assert board.contacts.is_up(200.0)
    assert board.wakeup(200.0) < 201.0
    plan.keep(board, 201.0, NOON)  # and back
    assert not board.contacts.is_up(201.0)


def test_a_plan_that_is_replaced_holds_soon_and_a_broken_one_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    plan, board = plan_of(tmp_path, contact("12:10", "12:20")), session()
    plan.keep(board, 0.0, NOON)

    def replace(text: str, nth: int) -> None:
        plan.path.write_text(text, encoding="utf-8")
        os.utime(plan.path, (nth, nth))  # a file system's clock may be as coarse as 2 s

    replace(contact("12:01", "12:02"), 1)
    plan.keep(board, 1.0, NOON + 1)
    assert not board.contacts.is_up(61.0)
    plan.keep(board, LOOK_AGAIN_S, NOON + LOOK_AGAIN_S)
    assert board.contacts.is_up(61.0)
    replace("[[contact]]\nnode = 3", 2)
    plan.keep(board, 2 * LOOK_AGAIN_S, NOON + 2 * LOOK_AGAIN_S)
    assert board.contacts.is_up(61.0)
    plan.path.unlink()
    plan.keep(board, 3 * LOOK_AGAIN_S, NOON + 3 * LOOK_AGAIN_S)
    assert board.contacts.is_up(61.0)
    assert board.wakeup(130.0) == math.inf
    assert [record.getMessage() for record in caplog.records] == ["contacts", "contacts"] + [
        "contacts-refused"
    ] * 2


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "folder", "other's"])
def test_a_start_with_a_damaged_plan_goes_by_the_last_good_one(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, state = tmp_path / "contacts.toml", tmp_path / "state"
    state.mkdir()
    path.write_text(contact("12:10", "12:20"))
    good = ContactPlan(path, 3, 0, state)
    windows = good.windows(NOON)
    path.write_text(contact("12:30", "12:40"))
    os.utime(path, (1, 1))
    good.keep(session(), 0.0, NOON)  # replaced while it runs: the newest one is what counts
    assert good.windows(NOON) != windows
    text = path.read_text()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_text({"cut": text[:40], "empty": "", "other's": contact("12:00", "12:10", node=4)}[damage])
    again = ContactPlan(path, 3, 0, state)
    assert again.windows(NOON) == good.windows(NOON)
    again.keep(session(), 0.0, NOON)
    assert [record.getMessage() for record in caplog.records].count("contacts-refused") == 1
    with pytest.raises(ConfigError):
        ContactPlan(path, 4 if damage != "other's" else 5, 0, state)  # of which there is no copy


def test_a_copy_that_is_damaged_itself_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "contacts.toml"
    path.write_text(contact("12:10", "12:20"))
    assert ContactPlan(path, 3, 0, tmp_path)
    path.write_text("")
    (copy,) = tmp_path.glob("*.kept")
    content = copy.read_bytes()
    for at in range(0, len(content), 7):
        copy.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ConfigError):
            ContactPlan(path, 3, 0, tmp_path)
    copy.write_bytes(content)
    assert ContactPlan(path, 3, 0, tmp_path)


def test_a_disk_that_is_full_costs_the_copy_alone(tmp_path: Path) -> None:
    path = tmp_path / "contacts.toml"
    path.write_text(contact("12:10", "12:20"))
    (tmp_path / "state").write_text("a file where the folder should be")
    plan = ContactPlan(path, 3, 0, tmp_path / "state")
    assert len(plan.windows(NOON)) == 1
