"""Each board has its turn at the ground, and what one says often is stored seldom."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import pytest

from groundstation.daemon import GroundProgram
from groundstation.store.store import REPORTS_EVERY_S, Store
from onboard.mission.health import Health
from onboard.runtime.loop import MOST_WAITING, EventQueue
from onboard.wire.events import Arrived, Event, Message

LENGTHY_S = 0.3  # to unpack and check a quantized LeNet-5


def test_a_board_that_sends_object_after_object_takes_a_fifth_of_the_time() -> None:
    now = [0.0]
    queue, hostile, honest = EventQueue(lambda: now[0], GroundProgram.object_pause), 1, 2
    spent: dict[int, float] = {1: 0.0, 2: 0.0}
    heard: list[Event] = []

    def tell(peer: int, event: Event) -> None:
        heard.append(event)
        if isinstance(event, Arrived):
            now[0] += LENGTHY_S
            spent[peer] += LENGTHY_S

    for nth in range(100):
        queue.add(hostile, [Arrived(b"%d" % nth, 2, b"")])
    for turn in range(300):
        queue.add(honest, [Message(b"%d" % turn)])
        queue.handle(tell)
        assert Message(b"%d" % turn) in heard  # never behind the other's
        now[0] += 0.1
    assert spent[1] == pytest.approx(0.2 * now[0], rel=0.1)
    order = [event.digest for event in heard if isinstance(event, Arrived)]
    assert order == [b"%d" % nth for nth in range(len(order))]
    assert queue.wakeup() <= now[0] + 5 * LENGTHY_S


def test_what_cannot_be_stored_waits_in_its_order_and_the_link_is_heard_no_further() -> None:
    queue = EventQueue(lambda: 0.0)

    def fails(*_: object) -> None:
        raise OSError("full")

    queue.add(1, [Message(b"%d" % nth) for nth in range(MOST_WAITING)])
    for _ in range(3):
        with pytest.raises(OSError, match="full"):
            queue.handle(fails)
    assert (queue.is_full(1), queue.is_full(2)) == (True, False)
    heard: list[Event] = []
    queue.handle(lambda peer, event: heard.append(event))
    assert heard == [Message(b"%d" % nth) for nth in range(MOST_WAITING)]
    assert not queue.is_full(1)


def test_health_costs_a_barrier_every_few_seconds_and_the_last_is_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "mission.sqlite")
    for node in (1, 2):
        store.enter_node(node, f"board-{node}")
    barriers = 0
    real = store.transaction

    def counted() -> AbstractContextManager[None]:
        nonlocal barriers
        barriers += 1
        return real()

    store.transaction = counted  # type: ignore[method-assign]
    for nth in range(2000):
        health = Health(state=0, round=1, uptime_s=nth, airtime_s=0.0, energy_j=0.0, cpu_s=0.0)
        store.report(1 + nth % 2, 1e9 + nth, asdict(health), 0.01 * nth)
    assert barriers <= 20 / REPORTS_EVERY_S + 1
    store.store_reports(20.0 + REPORTS_EVERY_S)
    assert [node["heard_at"] for node in store.nodes()] == [1e9 + 1998, 1e9 + 1999]
    assert ['"uptime_s": 1998' in row["health"] for row in store.nodes()] == [True, False]
    store.close()
