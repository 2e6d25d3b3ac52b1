"""Answers the images that appear in a folder: a child process works, and the agent keeps what it says.

A file is taken once it is the same at two looks, and answered once (`inference.ring`). The child ends when
nothing has come for a while, and with it goes the memory that it took. It shares the CPU with training."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from onboard.board.budget import CpuShare
from onboard.config import NodeConfig
from onboard.console.log import say
from onboard.data.suffixes import IMAGE_SUFFIXES, as_text, is_junk
from onboard.inference.downlink import wants
from onboard.inference.population import Population, ReferenceScores
from onboard.inference.process import ImageAnswered, InferOrder, InferReady, InferReport, request, start
from onboard.inference.ring import AnswerRecord, AnswerRing, key_of
from onboard.inference.rules import InferConfig
from onboard.mission.health import AnswerHealth, Failure
from onboard.storage.files import replace_durably
from onboard.trainer.child import WorkerProcess
from onboard.trainer.job import Failed

log = logging.getLogger(__name__)

REFERENCE = "reference.json"
LINGER_S = 60.0  # a child without work ends then: its start costs as much as hundreds of small images
HUNG_S = 600.0  # an image that takes longer is given up
LOOK_SHARE = 100  # looking takes a hundredth of the time at most, however many files there are
PAUSE_S, LONGEST_PAUSE_S = 10.0, 3600.0  # between two starts of a child that fails before its first answer


class WatchedImage(msgspec.Struct, frozen=True):
    """A file of the folder, by its path in it, and the key of its content."""

    name: str
    key: str
    changed_ns: int


class ImageWatch:
    """Watches the folder of `config`. `deployed` returns the digest of the deployed object, `charge` takes
    the seconds of CPU that were spent; `wall`: Unix seconds. Raises OSError where the disk refuses the ring,
    here and in `turn`, which is called again then."""

    def __init__(
        self, node: NodeConfig, config: InferConfig, deployed: Callable[[], bytes], cpu: CpuShare,
        charge: Callable[[float], None], wall: Callable[[], float],
    ) -> None:  # fmt: skip
        self._node, self._config, self._deployed = node, config, deployed
        self._cpu, self._charge, self._wall = cpu, charge, wall
        self.ring = AnswerRing(node.state / "answers", config.keep_bytes)
        self._model = ""
        self._population = Population("", ())
        self._reference: ReferenceScores | None = None
        self._wants_reference = False
        self._child: WorkerProcess[InferReport] | None = None
        self._is_ready = False
        self._asked: WatchedImage | None = None
        self._asked_s = 0.0  # or when the child was started
        self._untold: AnswerRecord | None = None  # the disk refused it
        self._seen: dict[str, str] = {}  # keys by name, of the files that wait and may still be growing
        self._present: frozenset[str] = frozenset()
        self._queue: deque[WatchedImage] = deque()
        self._look_s = self._end_s = self._again_s = -math.inf
        self._pause_s = PAUSE_S
        self._told = ""
        self._failed_key = ""

    # what the loop asks

    @property
    def fds(self) -> tuple[int, ...]:
        return () if self._child is None else (self._child.answers.fileno(),)

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.process.pid

    def turn(self, now: float, clock: Callable[[], float]) -> None:
        """Does all that can be done now."""
        self._follow_model()
        self._store()
        for report in self._child.answered() if self._child is not None else ():
            self._take(report, now)
        if now >= self._look_s:
            self._look(now, clock)
        if self._asked is not None and now >= self._asked_s + HUNG_S:
            self._give_up(Failed(failure=Failure.PROCESS, why=f"took more than {HUNG_S:.0f} s"), now)
        if self._child is None and self._queue and self._model:
            if now >= max(self._again_s, self._cpu.next_at):
                self._start(now)
            return
        if self._child is not None and self._is_ready and self._asked is None:
            if self._queue and now >= self._cpu.next_at:
                self._asked, self._asked_s = self._queue.popleft(), now
                self._end_s = now + LINGER_S
                self._child.ask(request(self._config.watch / self._asked.name))
            elif not self._queue and now >= self._end_s:
                self.stop()

    def wakeup(self) -> float:
        """When `turn` next has something to do, if the child says nothing before."""
        if self._asked is not None or (self._child is not None and not self._is_ready):
            return min(self._look_s, self._asked_s + HUNG_S)
        if self._queue and self._model:
            return min(self._look_s, max(self._cpu.next_at, self._again_s))
        return self._look_s if self._child is None else min(self._look_s, self._end_s)

    def stop(self) -> None:
        """Ends the child; the image that it had is answered by the next one."""
        child, self._child, self._is_ready = self._child, None, False
        if self._asked is not None:
            self._queue.appendleft(self._asked)
            self._asked = None
        if child is not None:
            child.end()

    def health(self) -> AnswerHealth | None:
        """What the ground is told of the answers by the deployed model."""
        return self._population.health(self._reference)

    def status(self) -> dict[str, Any]:
        said, waiting = self.health(), len(self._queue) + (self._asked is not None)
        names = [*(self._node.shard.classes or ())]
        return {"waiting": waiting, "names": names} | ({} if said is None else msgspec.to_builtins(said))

    # look, ask, take

    def _follow_model(self) -> None:
        named = self._deployed().hex()
        if named == self._model:
            return
        self.stop()
        self._model = named
        self._population = Population(named, self.ring.records())
        self._reference = self._stored_reference()
        self._wants_reference = self._reference is None
        self._again_s, self._pause_s = -math.inf, PAUSE_S

    def _look(self, now: float, clock: Callable[[], float]) -> None:
        began_s, found, seen = clock(), list[WatchedImage](), dict[str, str]()
        present = set[str]()
        try:
            for image in _images(self._config.watch, ""):
                present.add(image.key)
                if self.ring.has(image.key):
                    continue
                seen[image.name] = image.key
                if self._seen.get(image.name) == image.key and image != self._asked:
                    found.append(image)
        except OSError as error:
            if self._is_news(why := f"{error.filename}: {error.strerror}"):
                say(log, "watch-lost", level=logging.ERROR, path=str(self._config.watch), why=why)
        self._seen, self._present = seen, frozenset(present)
        self._queue = deque(sorted(found, key=lambda image: (image.changed_ns, image.name)))
        self._look_s = now + max(self._config.every_s, LOOK_SHARE * (clock() - began_s))

    def _start(self, now: float) -> None:
        shard = self._node.shard if self._wants_reference else None
        order = InferOrder(
            node=self._node.node_folder, model=self._model, memory_bytes=self._config.memory_bytes,
            shard=shard,
        )  # fmt: skip
        try:
            self._child, self._asked_s = start(order), now
        except OSError as error:  # no memory for a process, or too many of them
            self._give_up(Failed(failure=Failure.PROCESS, why=f"cannot start: {error}"), now)

    def _take(self, report: InferReport, now: float) -> None:
        if isinstance(report, Failed):
            self._give_up(report, now)
            return
        self._cpu.book(self._asked_s, report.cpu_s)
        self._charge(report.cpu_s)
        if isinstance(report, InferReady):
            self._is_ready, self._end_s, self._pause_s = True, now + LINGER_S, PAUSE_S
            if self._wants_reference:
                self._wants_reference = False
                self._keep_reference(report)
        elif self._asked is not None:
            image, self._asked = self._asked, None
            self._record(image, report)

    def _record(self, image: WatchedImage, said: ImageAnswered) -> None:
        config = self._config
        if said.confidence is not None:
            doubtful = said.confidence < config.confidence
        else:
            high = None if said.error is None or self._reference is None else self._reference.high
            doubtful = high is not None and said.error is not None and said.error > high
        self._untold = AnswerRecord(
            n=self.ring.next_n, image=as_text(image.name), key=image.key, at=round(self._wall(), 3),
            model=self._model,
            label=said.label, name=said.name, share=said.share, confidence=said.confidence,
            values=said.values, error=said.error, score=said.score, doubtful=doubtful, why=said.why,
        )  # fmt: skip
        if config.downlink is not None and wants(config.downlink, self._untold):
            self._untold = msgspec.structs.replace(self._untold, chosen=True)
        if said.why:
            say(log, "image-unread", level=logging.WARNING, image=as_text(image.name), why=said.why)
        self._store()

    def _store(self) -> None:
        """Makes the last answer durable. Raises OSError, and the answer waits."""
        record = self._untold
        if record is None:
            return
        went = self.ring.append(record, self._present)
        self._untold = None
        self._population.add(record)
        if went:  # older answers
            self._population = Population(self._model, self.ring.records())

    def _give_up(self, failed: Failed, now: float) -> None:
        """Begins again without the child. An image at which two children have died is not tried any more."""
        image, self._asked = self._asked, None
        self.stop()
        if image is None:
            self._again_s = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            if self._is_news(failed.why):
                say(log, "infer-failed", level=logging.ERROR, why=failed.why)
        elif image.key == self._failed_key:
            self._record(image, ImageAnswered(cpu_s=0.0, why=failed.why))
        else:
            self._failed_key = image.key
            self._queue.appendleft(image)

    def _is_news(self, why: str) -> bool:
        before, self._told = self._told, why
        return why != before

    # the scores of training images

    def _stored_reference(self) -> ReferenceScores | None:
        try:
            raw = (self.ring.folder / REFERENCE).read_bytes()
            reference = msgspec.json.decode(raw, type=ReferenceScores)
        except (OSError, msgspec.DecodeError):
            return None
        return reference if reference.model == self._model else None

    def _keep_reference(self, report: InferReady) -> None:
        """What the disk refuses is measured again at the next start."""
        self._reference = report.reference
        if report.reference is None:
            say(log, "no-reference", level=logging.WARNING, why=report.why)
            return
        with contextlib.suppress(OSError):
            replace_durably(self.ring.folder / REFERENCE, msgspec.json.encode(report.reference))


def _images(folder: Path, inside: str) -> Iterator[WatchedImage]:
    """Yields the image files of a folder and those below it. Raises OSError for the folder itself."""
    with os.scandir(folder / inside) as entries:
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if is_junk(entry.name):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from _images(folder, name)
                    continue
                if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:  # noqa: PTH122 - of many
                    continue
                found = entry.stat()
            except OSError:  # gone, or links that lead nowhere
                continue
            if stat.S_ISREG(found.st_mode) and found.st_size:
                key = key_of(name, found.st_size, found.st_mtime_ns)
                yield WatchedImage(name, key, found.st_mtime_ns)
