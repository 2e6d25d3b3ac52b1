"""The contact plan: when two nodes see each other, in one file that both ends of a link load.

Its times are of the wall clock, a session's are not: `ContactPlan.keep` updates the session when the wall
clock was set, or the file was replaced. An unreadable plan never replaces a readable one, nor at a start: a
copy of the last readable one lies in the state folder, with a checksum."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime
from hashlib import blake2s
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from onboard.config import EndId
from onboard.console.log import say
from onboard.console.toml import ConfigError, read
from onboard.storage.files import changed_at, read_file, replace_durably
from onboard.wire.medium.contact_gate import Contacts, Window
from onboard.wire.session import Session

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 10.0  # for a plan that was replaced
_MOST_BYTES = 2**24  # of a plan: a contact has about 120
_CHECK_BYTES = 16
CLOCK_STEP_S = 0.5  # the wall clock's step that is followed: three hours of drift at 50 ppm

Instant = Annotated[datetime, Meta(tz=True)]
Rate = Annotated[float, Meta(gt=0, le=1e12)]


class Contact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One contact between two nodes; tables may come in any order."""

    node: EndId
    """One of the two nodes. The ground station is 0."""
    peer: EndId
    """The other node."""
    rise: Instant
    """When the contact begins: a date and time with its zone, such as `Z`."""
    set: Instant
    """When the contact ends. The contacts of a link do not overlap."""
    rate_bps: Rate | None = None
    """Line rate of both directions in this contact. Left out: the link profile's."""

    def __post_init__(self) -> None:
        if self.node == self.peer:
            raise ValueError(f"peer: is the node itself, {self.node}")
        if self.set <= self.rise:
            raise ValueError(f"set: must be after rise, {self.rise.isoformat()}, got {self.set.isoformat()}")


class PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of a contact plan, as written."""

    contact: Annotated[list[Contact], Meta(min_length=1)]

    def __post_init__(self) -> None:
        latest: dict[frozenset[int], Contact] = {}
        for index, contact in sorted(enumerate(self.contact), key=lambda entry: entry[1].rise):
            before = latest.get(pair := frozenset((contact.node, contact.peer)))
            if before is not None and contact.rise < before.set:
                raise ValueError(
                    f"contact[{index}].rise: is before the contact from "
                    f"{before.rise.isoformat()} ends, at {before.set.isoformat()}"
                )
            latest[pair] = contact


class ContactPlan:
    """The contacts of one link, between `node` and `peer`, from the file at `path`. `folder`: where a copy of
    the last readable plan lies, for a start without one; None to keep none.

    Raises ConfigError, in one line that names file, key and value, also where the file has no contact of
    these two, most often for a wrong number. With a copy it logs `contacts-refused` and uses that instead."""

    def __init__(self, path: Path, node: int, peer: int, folder: Path | None = None) -> None:
        self.path, self.node, self.peer = path, node, peer
        self._copy = None if folder is None else folder / f"contacts-{node}-{peer}.kept"
        self._contacts: list[Contact] = []
        self._changed_at = -1
        self._reload()
        self._look_at = 0.0
        self._told: Session | None = None  # the session that keeps to the plan
        self._clock_s = 0.0  # the wall clock less the session's, as last told

    def windows(self, clock_s: float) -> list[Window]:
        """Return the windows on the session's clock, `clock_s` behind the wall clock (Unix seconds)."""
        return [
            Window(each.rise.timestamp() - clock_s, each.set.timestamp() - clock_s, each.rate_bps)
            for each in self._contacts
        ]

    def keep(self, session: Session, now: float, wall_s: float) -> None:
        """Hold the session to the plan, at `now` on its clock and `wall_s` (Unix seconds) on the wall's."""
        new = False
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN_S
            new = self._reload()
        clock_s = wall_s - now
        if session is not self._told or new or abs(clock_s - self._clock_s) > CLOCK_STEP_S:
            self._told, self._clock_s = session, clock_s
            windows = self.windows(clock_s)
            session.plan(windows, now)
            next_s = round(Contacts(windows).rises_at(now) - now, 1)
            say(log, "contacts", node=self.node, peer=self.peer, windows=len(windows), next_s=next_s)

    def _reload(self) -> bool:
        before_at, self._changed_at = self._changed_at, changed_at(self.path)
        if self._changed_at == before_at:
            return False
        try:
            self._contacts = _load(self.path, self.node, self.peer)
        except ConfigError as error:
            self._contacts = self._contacts or self._kept()
            if not self._contacts:
                raise
            say(log, "contacts-refused", level=logging.ERROR, node=self.node, peer=self.peer, why=str(error))
            return False
        if self._copy is not None and self._kept() != self._contacts:
            content = msgspec.json.encode(self._contacts)
            with contextlib.suppress(OSError):  # a disk that refuses costs only the copy
                replace_durably(self._copy, _check(content) + content)
        return True

    def _kept(self) -> list[Contact]:
        """Return the copy's contacts; none where there is no whole copy of this version."""
        with contextlib.suppress(OSError, ValueError):
            sealed = b"" if self._copy is None else read_file(self._copy, _MOST_BYTES)
            if sealed[:_CHECK_BYTES] == _check(sealed[_CHECK_BYTES:]):
                return msgspec.json.decode(sealed[_CHECK_BYTES:], type=list[Contact])
        return []


def _check(content: bytes) -> bytes:
    return blake2s(content, digest_size=_CHECK_BYTES).digest()


def _load(path: Path, node: int, peer: int) -> list[Contact]:
    contacts = [each for each in read(path, PlanFile).contact if {each.node, each.peer} == {node, peer}]
    if not contacts:
        raise ConfigError(f"{path}: contact: none between node {node} and node {peer}")
    return contacts
