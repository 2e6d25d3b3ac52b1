"""A port scheme is one class and one row: a toy one carries an object between two pumps."""

from __future__ import annotations

from collections import defaultdict, deque
from pathlib import Path

import pytest

from hw_profiles import Link
from onboard.config import check_port
from onboard.link.ports.framing import FRAMINGS
from onboard.link.ports.port import BadUrl, Port, PortEvent, PortFacts, Tap
from onboard.link.ports.schemes import PATH, PYSERIAL, SCHEMES, facts_of, scheme_of
from onboard.mission.objects import UPDATE
from onboard.wire.events import Arrived, Delivered
from tests.onboard.link.lan import PortLan
from tests.onboard.link.objects import payload

MAILBOXES: dict[str, deque[bytes]] = defaultdict(deque)
FORM = "mailbox:HERE/THERE"


class MailboxPort:
    """Frames lie in a list of this process until the other end takes them."""

    paths = None
    broken = rx_bytes = tx_bytes = 0

    def __init__(self, url: str, max_frame_bytes: int, tap: Tap | None) -> None:
        self.url, self.max_frame_bytes, self._tap = url, max_frame_bytes, tap
        self._here, self._there = url.removeprefix("mailbox:").split("/")

    def read(self) -> list[bytes]:
        frames = list(MAILBOXES[self._here])
        MAILBOXES[self._here].clear()
        self.rx_bytes += sum(map(len, frames))
        return frames

    def write(self, frame: bytes, lead: int = 0) -> None:
        MAILBOXES[self._there].append(frame)
        self.tx_bytes += len(frame)
        if self._tap is not None:
            self._tap("out", frame)

    def flush(self) -> None: ...

    def discard(self) -> None: ...

    def kept_bytes(self) -> int:
        return 0

    def queued_bytes(self) -> int:
        return 0

    def distrust(self, frame: bytes) -> None: ...

    def fault(self, link: Link) -> PortEvent | None:
        return None

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


class MailboxScheme:
    """See `PortScheme`."""

    form = FORM

    def facts(self, url: str) -> PortFacts:
        here, slash, there = url.removeprefix("mailbox:").partition("/")
        if not (here and slash and there):
            raise BadUrl(f"{url}: not {FORM}")
        return PortFacts(wire_bytes=lambda size: size, framing="datagram", far_url=f"mailbox:{there}/{here}")

    def open(self, url: str, link: Link, tap: Tap | None) -> Port:
        return MailboxPort(url, link.mtu_bytes, tap)


@pytest.fixture
def _mailboxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "mailbox", MailboxScheme())
    MAILBOXES.clear()


@pytest.mark.usefixtures("_mailboxes")
def test_a_toy_scheme_carries_an_object_between_two_pumps(tmp_path: Path) -> None:
    lan = PortLan(tmp_path, "mailbox:ground/board", "mailbox:board/ground")
    lan.meet()
    whole = payload(20_000)
    lan.board.pump.session.offer(UPDATE, whole, lan.clock.now)
    lan.run(20.0, lambda: bool(lan.board.told(Delivered)))
    assert [event.payload for event in lan.ground.events if isinstance(event, Arrived)] == [whole]
    crossed = lan.board.pump.port_snapshot()
    assert crossed.url == "mailbox:board/ground"
    assert crossed.tx_bytes > len(whole)


@pytest.mark.usefixtures("_mailboxes")
def test_the_configuration_takes_a_toy_schemes_urls_and_says_what_is_wrong_with_one() -> None:
    check_port("mailbox:ground/board")
    assert facts_of("mailbox:ground/board").far_url == "mailbox:board/ground"
    with pytest.raises(ValueError, match=rf"^port: mailbox:ground: not {FORM}$"):
        check_port("mailbox:ground")
    with pytest.raises(ValueError, match=rf"^port: 'mail': not a device's path, .*{FORM}"):
        check_port("mail")


def test_without_its_row_there_is_no_such_scheme() -> None:
    with pytest.raises(ValueError, match=r"^port: 'mailbox:ground/board': not a device's path"):
        check_port("mailbox:ground/board")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (PATH, "/dev/ttyUSB0"), ("serial", "serial:/dev/ttyUSB0?baud=9600"), ("kiss", "kiss:/dev/ttyUSB0"),
        ("kiss+tcp", "kiss+tcp://tnc:8001"), ("udp", "udp://127.0.0.1:4800"), (PYSERIAL, "loop://"),
    ],
)  # fmt: skip
def test_the_table_of_schemes_is_complete(name: str, url: str) -> None:
    assert set(SCHEMES) == {PATH, "serial", "kiss", "kiss+tcp", "udp", PYSERIAL}
    assert scheme_of(url) is SCHEMES[name]
    assert facts_of(url).framing in FRAMINGS
    assert facts_of(url).wire_bytes(100) >= 100
