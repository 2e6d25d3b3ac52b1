"""The ends of a benchmark are the programs' own parts: what they say crosses, what they saved survives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.harness.pair import KEY, NODES, Broken, EndState, LinkPair
from firmware_sim.world.channel import Channel, Impairments
from firmware_sim.world.disk import scratch
from firmware_sim.world.world import AirPort
from hw_profiles import Link
from onboard.link.ports.port import Port
from onboard.storage.journal import Journal
from onboard.wire.events import Arrived, Delivered, Expired
from onboard.wire.framing import cobs
from onboard.wire.framing.frame import Type
from onboard.wire.security.seal import Sealer
from tests.onboard.wire.pair import FULL, HALF

WHOLE = random.Random(1).randbytes(20_000)


def pair(folder: Path, link: Link = FULL, **channel: object) -> LinkPair:
    return LinkPair(folder, Channel(link, Impairments(**channel), seed=1))  # type: ignore[arg-type]


@pytest.mark.parametrize("link", [FULL, HALF], ids=["full", "half"])
def test_objects_cross_both_ways(tmp_path: Path, link: Link) -> None:
    both = pair(tmp_path, link, frame_loss=0.1)
    up, down = both.board.offer(2, WHOLE, 0.0), both.ground.offer(1, WHOLE[:5000], 0.0)
    both.run(1000.0, lambda: not both.board.offers and not both.ground.offers)
    assert both.ground.taken == {up: WHOLE}
    assert both.board.taken == {down: WHOLE[:5000]}
    assert both.now < 200.0
    for side, end in both.ends.items():
        assert end.port.tx_bytes == both.channel.counters(side).bytes
        assert [event for _, event in end.events if isinstance(event, Delivered)]
    assert not list(tmp_path.glob("*/spool/*.part"))


def test_a_killed_end_goes_on_from_its_disk(tmp_path: Path) -> None:
    both = pair(tmp_path)
    both.board.offer(2, WHOLE, 0.0)
    for end in (both.ground, both.board):
        both.run(both.now + 7.0)
        end.kill()
        with pytest.raises(ValueError, match=f"{end.side} is down"):
            _ = end.session
        both.run(both.now + 1.0)
        end.boot(both.now)
        assert end.session.epoch == 2
    both.run(1000.0, lambda: not both.board.offers)
    assert list(both.ground.taken.values()) == [WHOLE]
    sent = both.board.session.snapshot(both.now).fragments_sent
    assert sent < 70, "of 100 fragments: what had arrived before the restarts did not go again"


def test_a_deadline_holds_through_a_restart(tmp_path: Path) -> None:
    both = pair(tmp_path, windows=())
    digest = both.board.offer(2, WHOLE, 0.0, deadline_s=30.0)
    both.run(10.0)
    both.board.kill()
    both.board.boot(both.now)
    both.run(1000.0, lambda: not both.board.offers)
    assert both.now == pytest.approx(30.0)
    assert (both.now, Expired(digest)) in both.board.events
    both.board.kill()
    both.board.boot(both.now)
    assert not both.board.session.snapshot(both.now).objects


def test_an_object_with_a_second_effect_is_told(tmp_path: Path) -> None:
    both = pair(tmp_path)
    both.board.offer(2, b"once", 0.0)
    both.run(100.0, lambda: not both.board.offers)
    both.ground.kill()
    journal = Journal(tmp_path / "ground", EndState)
    known = journal.load()
    assert known is not None
    known.taken.clear()  # a disk that forgets what it promised
    journal.save(known)
    (tmp_path / "ground" / "spool" / "finished").unlink()
    with pytest.raises(Broken, match="what was saved is there"):
        both.ground.boot(both.now)
    taken, both.ground.taken = both.ground.taken, {}
    both.ground.boot(both.now)
    both.ground.taken = taken
    both.board.offer(2, b"once", both.now)
    with pytest.raises(Broken, match="nothing is delivered twice"):
        both.run(both.now + 100.0)


def test_its_port_gives_whole_frames_and_counts_the_others() -> None:
    written: list[bytes] = []
    port = AirPort("board", FULL, written.append)
    frame = Sealer(KEY, source=NODES["board"], destination=NODES["ground"], epoch=1).seal(Type.MSG, b"\0x")
    port.write(frame)
    assert written == [cobs.encode(frame)]
    port.hear(written[0][:5])
    assert port.read() == []
    for rest in (written[0][5:], b"\5\1\0", written[0]):
        port.hear(rest)
    assert port.read() == [frame, frame]
    assert (port.broken, port.rx_bytes, port.tx_bytes) == (1, 2 * len(written[0]) + 3, len(written[0]))
    as_port: Port = port
    assert as_port.queued_bytes() == as_port.kept_bytes() == 0


def test_a_scratch_folder_is_gone_afterwards() -> None:
    with scratch() as folder:
        (folder / "file").write_bytes(b"x")
    assert not folder.exists()


def test_arrivals_are_events_with_their_time(tmp_path: Path) -> None:
    both = pair(tmp_path)
    digest = both.board.offer(2, WHOLE, 0.0)
    both.run(1000.0, lambda: not both.board.offers)
    (at,) = [at for at, event in both.ground.events if isinstance(event, Arrived)]
    assert len(WHOLE) * 8 / 9600 < at <= both.now
    assert digest in both.ground.taken
