"""What befalls a link is one line that names the link, the object where there is one, and why."""

from __future__ import annotations

import json
import logging

import pytest

from onboard.link.ports.port import PortEvent
from onboard.link.pump import PumpEvent
from onboard.runtime.endpoint import log_link_event
from onboard.wire.events import Expired, ForeignFrames, Refused, UnknownPeer, WrongKey
from onboard.wire.messages import Reason

NAME = bytes(range(16))


@pytest.mark.parametrize(
    ("event", "says", "fields"),
    [
        (UnknownPeer(9), "unknown-peer", {"source": 9}),
        (
            WrongKey(),
            "wrong-key",
            {
                "was_right": False,
                "why": "the two ends hold different keys, or these frames are somebody else's",
            },
        ),
        (
            WrongKey(was_right=True),
            "wrong-key",
            {
                "was_right": True,
                "why": "the other end was heard under this key: it has started with another since, "
                "or these frames are somebody else's",
            },
        ),
        (
            ForeignFrames(bad_tags=9, other_form=2),
            "foreign-frames",
            {
                "bad_tags": 9,
                "unknown_keys": 0,
                "other_form": 2,
                "why": "frames that are not the other end's came between such as are: another radio or "
                "program, or somebody who plays them in; nothing of them is taken",
            },
        ),
        (Refused(NAME, Reason.TOO_LARGE), "refused", {"object": NAME.hex(), "why": "too_large"}),
        (Expired(NAME), "expired", {"object": NAME.hex()}),
        (
            PortEvent("disk-full", {"object": NAME.hex(), "path": "/spool", "why": "full"}, logging.ERROR),
            "disk-full",
            {"object": NAME.hex(), "path": "/spool", "why": "full"},
        ),
    ],
)
def test_a_mishap_is_a_line_that_names_peer_and_object(
    event: PumpEvent, says: str, fields: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # commands that other tests call set the level of the whole process
    log_link_event(event, node="pi")
    (record,) = caplog.records
    assert record.levelno >= logging.WARNING
    assert record.getMessage() == says
    assert json.loads(json.dumps(record.__dict__["fields"])) == {"node": "pi", **fields}


@pytest.mark.parametrize("whose", [{"node": "pi"}, {"peer": "ground"}, {"peer": 4}])
@pytest.mark.parametrize(
    "event",
    [
        PortEvent("peer-unknown", {"port": "udp://?bind=h:1", "why": "unknown"}),
        PortEvent("peer-at", {"port": "udp://?bind=h:1", "at": "a:2"}, logging.INFO),
        PortEvent("local-port-taken", {"port": "udp://?bind=h:1", "local_port": 40_000, "why": "taken"}),
    ],
)
def test_where_the_other_end_is_is_a_line_of_every_program(
    event: PumpEvent, whose: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    log_link_event(event, **whose)
    (record,) = caplog.records
    fields = record.__dict__["fields"]
    assert fields.items() >= {**whose, "port": "udp://?bind=h:1"}.items()
    assert fields.get("at", "a:2") == "a:2"
