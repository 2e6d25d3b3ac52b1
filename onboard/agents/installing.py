"""Installs networks on a board: what the ground sends becomes a network in the slot that is not in use, is
checked there, and only then is used; what kills the agent twice is rolled back.

An install is a command whose result comes when it is over. It is in the journal before it is acknowledged,
and begins again from what is on the disk after every start: files that are there are not asked for, and of
half a file only the parts that lack. `_life` is that course, read from top to bottom."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from onboard.console.log import say
from onboard.learn.networks import DESCRIPTION, PARAMETERS, Network, NetworkError
from onboard.mission.commands import PRIORITY as COMMAND_PRIORITY
from onboard.mission.commands import CommandRefused, InstallArguments, Outcome, Value
from onboard.mission.files import MAX_FILE_BYTES, MOST_FILES, FileRequest, decode_part, encode_request
from onboard.mission.objects import REQUEST
from onboard.storage import files
from onboard.storage.model_slots import ModelSlots, NetworkRecord
from onboard.storage.partial_file import RESERVE_BYTES, PartialFile, TooLarge, digest_of
from onboard.trainer.job import Checked, NetworkCheck
from onboard.wire.events import Arrived
from onboard.wire.messages import BadMessage

if TYPE_CHECKING:
    from onboard.agents.federated import FederatedAgent

log = logging.getLogger(__name__)

TRIES = 3  # how often a file may arrive with a wrong digest


class NetworkInstaller:
    """Installs networks for one agent, into its slots. `step` does a slice of the work."""

    def __init__(self, agent: FederatedAgent, slots: ModelSlots) -> None:
        self._agent, self.slots = agent, slots
        self._partials: dict[bytes, PartialFile] = {}  # what is asked for, in order
        self._course: Iterator[bool] | None = None
        self._is_busy = False
        self._now, self._asked, self._request = 0.0, 0, b""
        self._report: Checked | None = None
        self._checks = False  # whether the trainer has been asked to, and may yet report
        self.received_bytes = 0

    # the agent's side

    def resume(self, now: float) -> None:
        """Goes on where the last run was cut."""
        self._now = now
        if self._record.is_doomed:
            self._withdraw_active("the agent died twice while using it")
        if self._agent.known.commands.under_way:
            self._begin()

    @property
    def taken(self) -> tuple[bytes, ...]:
        """Digests of the parts that were taken last, of what is still asked for."""
        return tuple(name for partial in self._partials.values() for name in partial.taken)

    def install(self, wanted: InstallArguments, now: float) -> None:
        """Begins an install. Raises CommandRefused."""
        known = self._agent.known
        if known.commands.under_way:
            raise CommandRefused(f"{known.installing.get('name')} is being installed; roll back to end that")
        if wanted.digest in known.networks.withdrawn and not wanted.again:
            raise CommandRefused(f"{wanted.name} was rolled back here; install it by hand to use it again")
        try:
            wanted.expected  # noqa: B018 - whether it can be read
        except BadMessage as error:
            raise CommandRefused(str(error)) from None
        known.installing = msgspec.to_builtins(wanted)
        self._now = now
        self._begin()

    def roll_back(self, now: float) -> Mapping[str, Value]:
        """Ends the install that is under way, or goes back to the network before. Raises CommandRefused."""
        self._now = now
        known = self._agent.known
        if known.commands.under_way:  # it ends in the next step, or in the next life
            name, known.installing = known.installing.get("name"), {}
            self._begin()
            return {"ended": name}
        if not self._record.active:
            raise CommandRefused("no network was installed: there is none to go back from")
        self._withdraw_active("the ground asked for it", save=False)
        return {"network": self._record.active.hex() or None}

    def use(self, digest: bytes) -> str:
        """Returns the folder of the network that a task means, or nothing where it can only be a shipped one,
        by its name. A use of one that is not proven is counted durably. Raises NetworkError for one that was
        rolled back."""
        if self._record.is_doomed:
            self._withdraw_active("its training crashed twice")
        if digest in self._record.withdrawn:
            raise NetworkError(f"network {digest.hex()} was rolled back here")
        network = self.slots.find(digest, self._record)
        if network is None and digest == self._record.active:
            self._tell_lost()
        if digest == self._record.active and not self._record.is_proven:
            self._keep(self._record.tried())
        return "" if network is None or network.is_shipped else str(network.folder)

    def used(self, digest: bytes, *, proven: bool) -> None:
        """Notes durably that a use had a result, or for the next save that it ended without a death."""
        record = self._record
        if digest != record.active or record.is_proven:
            return
        if proven:
            self._keep(record.proven())
        else:
            self._agent.known.networks = record.survived()

    def take(self, arrived: Arrived, now: float) -> None:
        """Makes a part of a file durable. Raises BadMessage for one that nobody asked for; OSError."""
        part = decode_part(arrived.payload)
        partial = self._partials.get(part.digest)
        if partial is None and self._is_expected(part.digest):
            partial = PartialFile(self.slots.incoming, part.digest)
        if partial is None:
            raise BadMessage(f"a part of file {part.digest.hex()}, which is not asked for")
        try:
            partial.take(part, arrived.digest, MAX_FILE_BYTES)
        except TooLarge as error:
            self._end("refused", why=f"a file has {error.strerror}")
            raise BadMessage(str(error.strerror)) from None
        self.received_bytes += len(part.data)
        self._is_busy = True

    def asks_again(self, now: float) -> None:
        """Asks once more for what lacks, as the other end may have started and know nothing."""
        self._now = now
        if self._partials and self._agent.known.installing:
            self._ask()

    def is_asked_by(self, request: bytes) -> bool:
        return bool(request) and request == self._request

    def refused(self) -> None:
        """Ends an install whose files the ground does not have."""
        self._end("refused", why="the ground has not all of its files")

    def checked(self, report: Checked) -> None:
        self._report, self._is_busy = report, True

    def check_was_ended(self) -> None:
        """Notes that the trainer was stopped: a check that was under way is asked for once more."""
        self._checks = False

    def step(self, now: float) -> None:
        """Does a slice of what is to be done. Raises OSError (disk full): call it again later."""
        self._now = now
        if self._course is None:
            return
        try:
            self._is_busy = next(self._course, False)
        except OSError:
            self._course = None
            if self._agent.known.commands.under_way:
                self._begin()
            raise

    def wakeup(self, now: float) -> float:
        """Returns when `step` next has something to do."""
        return now if self._is_busy else float("inf")

    @property
    def status(self) -> dict[str, Any]:
        """What `doing` says of an install; nothing without one."""
        if not self._agent.known.commands.under_way:
            return {}
        left = sum(max(0, each.size - each.held_bytes) for each in self._partials.values())
        told = {
            "name": self._agent.known.installing.get("name"),
            "files": len(self._partials),
            "left_bytes": left,
        }
        return {"installing": told}

    # the course of an install

    def _begin(self) -> None:
        self._partials.clear()
        self._report, self._is_busy, self._request = None, True, b""
        self._course = self._life()

    def _life(self) -> Iterator[bool]:
        """Plays an install to its result. Yields True in the middle of work, False while it waits."""
        try:
            if not self._agent.known.installing:
                raise CommandRefused("it was rolled back before it was installed")
            wanted = self._wanted
            network = (yield from self._whole(wanted.digest)) or (yield from self._filled(wanted))
            why = yield from self._check(network, wanted)
            if why:
                self._withdraw(wanted.digest)
                raise CommandRefused(f"its check failed: {why}")
        except CommandRefused as error:
            self._end("refused", why=str(error))
        else:
            self._end("done", network=network)

    def _whole(self, digest: bytes) -> Generator[bool, None, Network | None]:
        """Returns the network if it is here, with every file as its description means it."""
        is_told = False
        for network in self.slots.networks(self._record):
            if network.digest != digest:
                continue
            wrong = []
            for name, of in network.file.files.items():
                if not (yield from self._is_file(network.folder / name, bytes.fromhex(of))):
                    wrong.append(name)
            if not wrong:
                return network
            path = str(network.folder / wrong[0])
            say(log, "unreadable", level=logging.ERROR, path=path, why="not what was written: it comes again")
            is_told = True
        record = self._record
        if digest in (record.active, record.before, *record.withdrawn) and not is_told:
            self._tell_lost()
        return None

    def _filled(self, wanted: InstallArguments) -> Generator[bool, None, Network]:
        """Returns the network that was made in a slot, of the files that another network here has and of
        those that the ground sends. The description comes last, which makes a network of it."""
        slot = self.slots.slot_for(wanted.digest, self._record)
        folder, held = self.slots.folder(slot), self.slots.held(slot)
        self.slots.clear(slot, wanted.files.keys(), keep=held is not None and held.digest == wanted.digest)
        for name, (digest, _) in wanted.files.items():
            if (yield from self._is_file(folder / name, digest)):
                continue
            files.remove_file(folder / name)
            if not (yield from self._copied(digest, folder / name)):
                self._partials[digest] = PartialFile(self.slots.incoming, digest)
        self._check_room(wanted)
        wrong = 0
        while self._partials:
            self._ask(with_bases=not wrong)
            for name, (digest, _) in wanted.files.items():
                if (partial := self._partials.get(digest)) is None:
                    continue
                while not partial.is_complete:
                    yield False
                base = next(iter(self.slots.holders().get(partial.base, ())), None)
                if (yield from partial.finish(folder / name, base)):
                    del self._partials[digest]
                    continue
                say(log, "corrupt", level=logging.WARNING, object=digest.hex())
                wrong += 1
                if wrong >= TRIES:
                    raise CommandRefused(f"{name} arrived {TRIES} times with another digest")
                break  # all that still lacks is asked for again
        network = self.slots.held(slot)
        if network is None or network.digest != wanted.digest:
            raise CommandRefused("its description is another network's")
        return network

    def _ask(self, *, with_bases: bool = True) -> None:
        """Asks the ground for what lacks, in place of what was asked before."""
        agent, session = self._agent, self._agent.session
        if self._request:
            session.cancel(self._request, self._now)
        # Parts that came once, for another install or with a wrong digest, are to come again.
        session.forget(*set(session.done) - {*agent.known.taken, *self.taken})
        self._asked += 1
        asking = agent.known.links[session.peer].epoch << 16 | self._asked & 0xFFFF
        weights = self._wanted.files.get(PARAMETERS, (b"", 0))[0]
        bases = self.slots.versions()[:MOST_FILES] if with_bases else ()
        lacking = tuple(
            each.wanted(bases if digest == weights else ()) for digest, each in self._partials.items()
        )
        payload = encode_request(FileRequest(asking=asking, files=lacking))
        self._request = session.offer(REQUEST, payload, self._now, priority=COMMAND_PRIORITY)

    def _check_room(self, wanted: InstallArguments) -> None:
        """Raises CommandRefused where the disk has no room."""
        lacking = sum(
            size - self._partials[digest].held_bytes
            for digest, size in wanted.files.values()
            if digest in self._partials
        )
        room = shutil.disk_usage(self.slots.state).free - RESERVE_BYTES
        if lacking > room:
            raise CommandRefused(f"the disk has room for {max(room, 0)} B, and {lacking} B are to come")

    def _check(self, network: Network, wanted: InstallArguments) -> Generator[bool, None, str]:
        """Has the network loaded and run where a training would be; returns what is wrong."""
        agent, self._checks = self._agent, False
        while self._report is None:
            if agent.work is not None:  # a training is under way, and took the check's place if there was one
                self._checks = False
            elif not self._checks:
                agent.trainer.check(NetworkCheck(folder=str(network.folder), expected=wanted.expected))
                self._checks = True
            yield False
        return self._report.why

    def _end(self, outcome: Outcome, *, why: str = "", network: Network | None = None) -> None:
        """Keeps the result with its effect in one save, and removes what is not needed any more."""
        known, name = self._agent.known, self._agent.known.installing.get("name")
        before = known.networks, known.commands, known.installing
        values: dict[str, Value] = {}
        if network is not None:
            known.networks = known.networks.installed(network.digest)
            values = {"network": network.digest.hex(), "received_bytes": self.received_bytes}
            say(log, "installed", network=network.digest.hex(), name=name)
        else:
            say(log, "install-failed", level=logging.WARNING, name=name, why=why)
        known.commands, known.installing = known.commands.end(outcome, why, values), {}
        try:
            self._agent.journal.save(known)
        except OSError:  # it is still under way
            known.networks, known.commands, known.installing = before
            raise
        if self._request:
            self._agent.session.cancel(self._request, self._now)
        with contextlib.suppress(OSError):  # what is left takes room, and is known for what it is
            for partial in self._partials.values():
                partial.drop()
        self._partials.clear()
        self._course, self._is_busy, self._request, self.received_bytes = None, False, b"", 0
        self._agent.offer_result(self._now)

    def _withdraw(self, digest: bytes) -> None:
        """Whatever names this network does not get it; the next save keeps that."""
        known = self._agent.known
        others = [each for each in known.networks.withdrawn if each != digest]
        known.networks = msgspec.structs.replace(known.networks, withdrawn=(*others, digest)[-2:])

    # helpers

    @property
    def _wanted(self) -> InstallArguments:
        return msgspec.convert(self._agent.known.installing, InstallArguments)

    @property
    def _record(self) -> NetworkRecord:
        return self._agent.known.networks

    def _keep(self, record: NetworkRecord) -> None:
        self._agent.known.networks = record
        self._agent.journal.save(self._agent.known)

    def _withdraw_active(self, why: str, *, save: bool = True) -> None:
        was = self._record.active
        self._agent.known.networks = self._record.rolled_back()
        if save:
            self._agent.journal.save(self._agent.known)
        back = self._record.active.hex() or "the shipped ones"
        say(log, "rolled-back", level=logging.WARNING, network=was.hex(), to=back, why=why)

    def _is_expected(self, digest: bytes) -> bool:
        """Returns whether a part comes early: after a restart, the other end may still be sending it."""
        if self._request or not self._agent.known.installing or not self.slots.incoming.is_dir():
            return False
        return any(digest == of for of, _ in self._wanted.files.values())

    def _tell_lost(self) -> None:
        why = "a network that was installed is gone, or its description is not what was written"
        say(log, "unreadable", level=logging.ERROR, path=str(self.slots.state), why=why)

    def _is_file(self, path: Path, digest: bytes) -> Generator[bool, None, bool]:
        """Returns whether the file is there and right; a damaged one is logged."""
        found = b""
        try:
            with files.open_to_read(path) as file:
                for found in digest_of(file):  # noqa: B007 - the last one counts
                    yield True
        except FileNotFoundError:
            return False
        except OSError as error:
            say(log, "unreadable", level=logging.ERROR, path=str(path), why=str(error))
            return False
        return found == digest

    def _copied(self, digest: bytes, to: Path) -> Generator[bool, None, bool]:
        """Copies a file that another network here has; returns whether there is a whole one."""
        if to.name == DESCRIPTION:
            return False
        for path in self.slots.holders().get(digest, []):
            if path == to or not (yield from self._is_file(path, digest)):
                continue
            with files.open_to_read(path) as source, files.replacing(to) as copy:
                while piece := source.read(2**20):
                    copy.write(piece)
                    yield True
            return True
        return False
