"""kill -9 of either end in mid-transfer, in both directions: the same round completes, and at most a tenth of
the object is sent again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.missions.bench import MissionBench, bench


def transfer(view: dict[str, Any], *, incoming: bool) -> dict[str, Any]:
    """The object in that direction in a link's view."""
    return next((o for o in view.get("objects", []) if o["incoming"] is incoming and o["fragments"] > 50), {})


def in_the_middle(view: dict[str, Any], *, incoming: bool) -> bool:
    part = transfer(view, incoming=incoming)
    return bool(part) and 0.4 <= part["held"] / part["fragments"] <= 0.8


def finished(on: MissionBench, rounds: int = 2) -> dict[str, Any]:
    """Every round was closed once, with the board's answer."""
    on.finish()
    status = on.status()
    assert [row["state"] for row in status["rounds"]] == ["closed"] * rounds
    assert all(row["answers"][0]["state"] == "answered" for row in status["rounds"])
    assert status["why"] == "rounds"
    return status


@pytest.mark.parametrize("victim", ["ground", "board"])
def test_an_update_goes_on_after_a_kill(victim: str, tmp_path: Path) -> None:
    with bench(tmp_path, rounds=1, bits_up=0.66, bits_down=0.1) as on:
        on.start()
        on.until(lambda: in_the_middle(on.doing().get("link", {}), incoming=False))
        size = transfer(on.doing()["link"], incoming=False)["fragments"]
        assert size >= 100
        before = on.doing()["link"]["fragments_sent"]
        heard_before = on.link()["fragments_received"]
        on.kill(victim)
        getattr(on, f"start_{victim}")()
        on.until(lambda: on.said("ground", "answered", round=1))
        if victim == "ground":  # the board counted all that it sent
            on.until(lambda: on.doing()["link"]["fragments_sent"] > before)
            sent = on.doing()["link"]["fragments_sent"]
            assert sent - size <= size / 10
        else:  # the ground heard all that was sent; the cable loses nothing
            heard = on.link()
            assert heard["fragments_received"] > heard_before
            assert heard["duplicates"] <= size / 10
            assert on.said("board", "resumed", phase="offering", round=1)
        finished(on, rounds=1)


@pytest.mark.parametrize("victim", ["ground", "board"])
def test_a_model_goes_on_after_a_kill(victim: str, tmp_path: Path) -> None:
    with bench(tmp_path, bits_up=0.68, bits_down=0.68) as on:
        on.start()
        on.until(lambda: in_the_middle(on.link(), incoming=False))
        size = transfer(on.link(), incoming=False)["fragments"]
        assert size >= 100
        on.kill(victim)
        getattr(on, f"start_{victim}")()
        on.until(lambda: on.said("board", "heard", round=2))
        if victim == "ground":
            assert on.doing()["link"]["duplicates"] <= size / 10
        else:
            on.until(lambda: on.said("ground", "answered", round=2))
            assert on.link()["fragments_resent"] <= size / 10
        finished(on)


def test_a_board_killed_while_it_trains_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    with bench(tmp_path, epochs=20) as on:
        with on.node_toml.open("a") as toml:
            toml.write("\n[budget]\ncheckpoint_s = 0.2\n")
        on.start()
        on.until(lambda: on.said("board", "epoch", epoch=8))
        on.kill("board")
        on.start_board()
        on.until(lambda: on.said("ground", "answered", round=1))
        [checkpoint] = on.said("board", "checkpoint")
        assert checkpoint["epoch"] >= 4
        again = [event["epoch"] for event in on.seen["board"] if event.get("event") == "epoch"]
        assert again.index(checkpoint["epoch"] + 1, again.index(8) + 1) > 0  # the first epoch after the kill
