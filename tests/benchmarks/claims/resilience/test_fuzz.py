"""The fuzzer repeats a run, gets past the first check of each decoder, and sees an exception."""

from __future__ import annotations

import random

import pytest

from benchmarks.claims.resilience import fuzz
from benchmarks.claims.resilience.fuzz import Sealed, Target, all_targets, mutated
from benchmarks.harness.progress import ProgressLine


def test_a_seed_repeats_its_mutations() -> None:
    first, again = (random.Random(3) for _ in range(2))
    assert [mutated(first, (b"example",)) for _ in range(99)] == [
        mutated(again, (b"example",)) for _ in range(99)
    ]


def test_every_decoder_is_reached_behind_its_first_check() -> None:
    """Of 2,000 mutated examples some are still read, but for what a tag or a checksum guards."""
    guarded = {"frame", "frame, encrypted", "recording"}
    for target in all_targets(1):
        source, read = random.Random(1), 0
        for _ in range(2_000 if target.name != "session" else 200):
            try:
                target.feed(mutated(source, target.examples))
                read += 1
            except target.foreseen:
                pass
        assert (read > 0) or target.name in guarded, target.name
        for example in target.examples:
            target.feed(example)


def test_the_session_takes_what_it_is_fed() -> None:
    sealed = Sealed(1)
    for _ in range(300):
        sealed.feed(b"x" * 50)
    snapshot = sealed._session.snapshot(sealed._now)
    assert snapshot.frames_received + snapshot.malformed >= 300 - snapshot.misaddressed - snapshot.bad_tags
    assert snapshot.frames_received > 200


def test_an_exception_that_is_not_foreseen_breaks_its_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fragile(data: bytes) -> None:
        if data[:1] == b"e":
            raise LookupError

    monkeypatch.setattr(fuzz, "all_targets", lambda seed: [Target("fragile", fragile, (b"example",))])
    exceptions, memory, speed = fuzz.measure(ProgressLine("fuzz"), inputs=500, seed=1)
    assert exceptions.value > 100
    assert not exceptions.holds
    assert memory.holds
    assert speed.value > 0
    assert capsys.readouterr().err.count("fragile: LookupError on 65") == 3
