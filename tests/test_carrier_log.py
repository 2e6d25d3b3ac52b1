"""What befalls a link is one line that names the link, the object where there is one, and why."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from onboard.carrier import tell_of_link
from onboard.link.pump import PumpEvent, SpoolFull
from onboard.wire.events import Expired, Refused, UnknownPeer, WrongKey
from onboard.wire.messages import Reason

NAME = bytes(range(16))


@pytest.mark.parametrize(
    ("event", "says", "fields"),
    [
        (UnknownPeer(9), "unknown-peer", {"source": 9}),
        (WrongKey(), "wrong-key", {}),
        (Refused(NAME, Reason.TOO_LARGE), "refused", {"object": NAME.hex(), "why": "too_large"}),
        (Expired(NAME), "expired", {"object": NAME.hex()}),
        (
            SpoolFull(Path("/spool"), NAME, OSError(28, "No space left on device")),
            "disk-full",
            {"object": NAME.hex(), "path": "/spool", "why": "[Errno 28] No space left on device"},
        ),
    ],
)
def test_a_mishap_is_a_line_that_names_peer_and_object(
    event: PumpEvent, says: str, fields: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # commands that other tests call set the level of the whole process
    tell_of_link(event, node="pi")
    (record,) = caplog.records
    assert record.levelno >= logging.WARNING
    assert record.getMessage() == says
    assert json.loads(json.dumps(record.__dict__["fields"])) == {"node": "pi", **fields}
