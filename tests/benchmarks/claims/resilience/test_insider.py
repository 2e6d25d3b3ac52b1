"""A few hostile kinds against each end, and what the benchmark is to find is found."""

from __future__ import annotations

from typing import Any

import pytest

import onboard.mission.server
from benchmarks.claims.resilience.insider import KINDS_OF, against
from benchmarks.claims.resilience.insider_learning import KINDS, accuracy
from benchmarks.claims.resilience.insider_world import Hostile, Siege
from firmware_sim.world.disk import scratch
from groundstation.rounds.rounds import Rounds
from onboard.learn.federated.clipping import Claim, Share
from onboard.wire.framing.frame import Type


def test_forty_kinds_and_more_are_played() -> None:
    assert len(KINDS_OF["ground"]) + len(KINDS) >= 40
    assert len({kind for kinds in KINDS_OF.values() for kind in kinds} | set(KINDS)) >= 60


@pytest.mark.parametrize(
    ("victim", "kind"), [("ground", "REPORTs that make no sense"), ("board", "one OFFER, cut anew each time")]
)
def test_an_honest_update_arrives_beside_a_hostile_end(victim: str, kind: str) -> None:
    outcome = against(victim, kind, KINDS_OF[victim][kind])
    assert outcome.ended == ()
    assert 6.0 < outcome.seconds < 16.0  # 1.7 MB at 2 Mbit/s


def test_a_program_that_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def struck(*_: Any) -> None:
        raise SystemExit(1)

    def play(hostile: Hostile) -> None:
        hostile.raw(Type.DONE, bytes(16))

    monkeypatch.setattr(Rounds, "step", struck)
    outcome = against("ground", "anything", play)
    assert outcome.ended == ("ground: exit 1",)
    assert outcome.seconds == 120.0


def test_what_a_program_does_is_charged_to_it() -> None:
    with scratch() as folder:
        siege = Siege(folder, "charged", master=False)
        with siege.on():
            began_s = siege.world.now
            siege.boot("ground")
            siege.world.run(lambda: any(said.event == "round" for said in siege.world.said), 60.0)
            assert siege.world.now - began_s > 0.02  # of fsyncs alone


def test_a_board_that_decides_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "its update turned, ten times, of 2^32-1 samples"
    assert accuracy(kind, 0, rounds=2, images=60) > 0.2

    def as_claimed(claims: dict[int, Claim], *_: Any) -> Any:
        return {node: Share(1.0, claim.samples) for node, claim in claims.items()}, []

    monkeypatch.setattr(onboard.mission.server, "shares", as_claimed)
    assert accuracy(kind, 0, rounds=2, images=60) < 0.15
