"""A ground that offers more than a board can hold: the board refuses it, lives, and serves on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from hw_profiles import load_link
from onboard.link.ports.schemes import facts_of, opener
from onboard.link.pump import Pump, PumpEvent, wait
from onboard.link.spool import Spool
from onboard.mission.objects import MODEL
from onboard.storage.keys import load_keys
from onboard.wire.config import Identity, Medium, Security, SessionState
from onboard.wire.events import Cancelled, Rekeyed
from onboard.wire.messages import Reason
from onboard.wire.session import Session
from onboard.wire.transfer.incoming import Incoming
from tests.missions.bench import MissionBench, bench, change
from tests.missions.test_memory import budget, resident_kb

MIB = 1 << 20
MTU_BYTES = 1400  # of shorter frames 60 MiB would be more than an OFFER can say


class IntakeGround:
    """One that has the board's key and no scruples: the real session and pump on the real port."""

    def __init__(self, on: MissionBench, folder: Path) -> None:
        self.link = dataclasses.replace(load_link("bench-serial-115k2"), mtu_bytes=MTU_BYTES)
        url = str(on.ground_port)
        self.session = Session(
            Identity(0, 1, primary=True),
            Medium(self.link, wire_bytes=facts_of(url).wire_bytes),
            Security(
                load_keys(next(on.mission.glob("keys/*"))),
                nonce=lambda count: time.time_ns().to_bytes(count, "big"),
            ),
            SessionState(epoch=1),
            now=time.monotonic(),
        )
        self.pump = Pump(opener(url, self.link), self.session, Spool(folder, MIB))
        self.events: list[PumpEvent] = []

    def until(self, met: Callable[[], object], on: MissionBench) -> None:
        deadline = time.monotonic() + 30
        while not met():
            assert time.monotonic() < deadline, f"{self.events[-5:]} {on.last_words()}"
            for event in self.pump.poll(time.monotonic()):
                self.events.append(event)
                if isinstance(event, Rekeyed):
                    self.session.rekey(event.salt)
            wait([self.pump], 0.02)
            on.listen()

    def seen(self, kind: type) -> list[PumpEvent]:
        return [event for event in self.events if isinstance(event, kind)]


def test_an_offer_of_60_mib_is_refused_by_a_budget_of_64_and_the_agent_serves_on(tmp_path: Path) -> None:
    with bench(tmp_path) as on:
        budget(on, memory_mb=64)
        change(
            on.node_toml.parent / "link-profile" / "link.toml",
            mtu_bytes=f'{{ value = {MTU_BYTES}, source = "c: a test" }}',
        )
        on.start_cable()
        on.start_board()
        on.until(lambda: on.said("board", "port-open"))
        ground = IntakeGround(on, tmp_path / "spool")
        ground.until(lambda: ground.seen(Rekeyed), on)
        pid = on.crew.members["board"].process.pid
        before_kb = resident_kb(pid)
        large = bytes(60 * MIB)
        name = ground.session.offer(MODEL, large, time.monotonic())
        ground.until(lambda: ground.seen(Cancelled), on)
        assert ground.seen(Cancelled) == [Cancelled(name, Reason.TOO_LARGE)]
        assert resident_kb(pid, "VmHWM") < before_kb + 4 * 1024
        on.until(lambda: on.said("board", "refused"))
        (refused,) = on.said("board", "refused")
        assert (refused["why"], refused["bytes"], refused["limit_bytes"]) == ("too_large", 60 * MIB, 4 * MIB)
        small = ground.session.offer(MODEL, bytes(100), time.monotonic())  # it hears and answers as before
        ground.until(lambda: len(ground.seen(Cancelled)) == 2, on)
        assert ground.seen(Cancelled)[1] == Cancelled(small, Reason.REFUSED)
        on.kill("board")

        # As the version before left it: that one had taken the OFFER, and started with it ever after.
        spool = on.node_toml.parent / "state" / "spool"
        half = Incoming(name, MODEL, len(large), 1000)
        half.store(0, large[:1000])
        Spool(spool, 256 * MIB).save(half)
        (spool / f"{name.hex()}.part").open("r+b").truncate(len(large))
        on.seen.clear()
        on.start_board()
        on.until(lambda: on.said("board", "spool-dropped"))
        (dropped,) = on.said("board", "spool-dropped")
        assert (dropped["objects"], dropped["limit_bytes"]) == (1, 8 * MIB)
        assert resident_kb(on.crew.members["board"].process.pid, "VmHWM") < before_kb + 4 * 1024
        assert not list(spool.glob("*.part"))
