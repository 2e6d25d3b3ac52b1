"""`groundstation status` says what is in the store: as JSON for a program, as a table for a person."""

from __future__ import annotations

import contextlib
import json
import re
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from groundstation.cli import main
from groundstation.config import Mission, load_mission
from groundstation.store.store import Store, StoreError
from groundstation.views import status
from onboard.mission.health import Failure, State

METRICS = {"samples": 600, "loss": 0.25, "train_s": 12.0, "cpu_s": 11.0, "energy_j": 70.0}
HEALTH = {"state": int(State.TRAINING), "round": 2, "loss": float("nan")}


@pytest.fixture
def mission(tmp_path: Path) -> Mission:
    """A founded mission of two boards."""
    result = CliRunner().invoke(
        main,
        ["init", str(tmp_path / "m"), "--name", "Dawn [bold]", "--rounds", "5", "--node", "pi,port=/dev/a",
         "--node", "nano,board=jetson-nano,link=sband-256k,port=udp://[fe80::2]:4800"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return load_mission(tmp_path / "m")


def fill(mission: Mission) -> Store:
    """One closed round, one open one, and a board that was heard."""
    store = Store(mission.database)
    store.begin(b"\x01" * 8, "Dawn", 0, b"\x02" * 8)
    for node in mission.nodes:
        store.enter_node(node.id, node.name)
    store.open_round(1, b"model", [1, 2], 1000.0, 1900.0)
    store.take_update(1, 1, b"x" * 640, METRICS, 1040.0)
    store.mark(1, 2, "failed", 1041.0)
    store.close_round(1, b"weights", 0.9125, 0.31, 0.118, 1050.0)
    store.open_round(2, b"model", [1, 2], 1050.0, 1950.0)
    store.report(1, 1060.0, HEALTH, 0.0)
    store.count(1, {"bytes_sent": 12345, "bytes_received": 678, "fragments_resent": 9})
    return store


def printed(mission: Mission, store: Store) -> str:
    text = StringIO()
    status.table(status.picture(mission, store), Console(file=text, width=200))
    return text.getvalue()


def test_json_holds_the_rounds_and_the_nodes(mission: Mission) -> None:
    fill(mission)  # and stays open: the daemon runs
    result = CliRunner().invoke(main, ["status", str(mission.folder), "--json"])
    assert result.exit_code == 0, result.output
    assert "NaN" not in result.stdout
    view = json.loads(result.stdout)
    assert (view["mission"], view["id"], view["model"]) == ("Dawn [bold]", "01" * 8, "lenet5")
    assert (view["rounds_wanted"], view["finished_at"], view["why"]) == (5, None, None)
    first, second = view["rounds"]
    assert (first["state"], first["accuracy"], first["bits_down"]) == ("closed", 0.9125, 0.118)
    assert [(answer["state"], answer["bytes"]) for answer in first["answers"]] == [
        ("answered", 640), ("failed", None),
    ]  # fmt: skip
    assert (second["state"], second["closed_at"], second["deadline_at"]) == ("open", None, 1950.0)
    pi, nano = view["nodes"]
    assert (pi["node"], pi["board"], pi["heard_at"]) == ("pi", "raspberry-pi-4", 1060.0)
    assert pi["health"] == {"state": 1, "round": 2, "loss": None}
    assert pi["counters"] == {"bytes_sent": 12345, "bytes_received": 678, "fragments_resent": 9}
    assert (nano["heard_at"], nano["health"], nano["counters"]) == (None, None, {})


def test_the_table_says_the_same_to_a_person(mission: Mission) -> None:
    lines = printed(mission, fill(mission)).splitlines()
    assert lines[0] == "Dawn [bold]  lenet5, 5 rounds wanted: running or resumable"
    (closed,) = (line.split() for line in lines if " closed " in line)
    assert closed == ["1", "closed", "91.25", "%", "0.310", "0.118", "1", "of", "2", "50"]
    (opened,) = (line.split() for line in lines if " open " in line)
    assert opened[:8] == ["2", "open", "-", "-", "-", "0", "of", "2"]
    (pi,) = (line for line in lines if line.lstrip().startswith("pi "))
    assert "training" in pi
    assert "12,345" in pi
    assert pi.split()[-1] == "9"
    (nano,) = (line for line in lines if line.lstrip().startswith("nano "))
    assert "never" in nano
    assert nano.split() == ["nano", "sband-256k", "0", "of", "2", "never", "-", "0", "0", "0"]
    assert "never answered: nano, never heard" in lines


def test_a_finished_mission_says_why(mission: Mission) -> None:
    store = fill(mission)
    store.finish("target", 1100.0)
    assert "finished (target)" in printed(mission, store)
    store.close()
    result = CliRunner().invoke(main, ["status", str(mission.folder)])
    assert result.exit_code == 0
    assert "finished (target)" in result.stdout


def test_a_mission_that_has_just_begun(mission: Mission) -> None:
    text = printed(mission, Store(mission.database))
    assert "no round yet" in text
    assert "no node heard yet" in text


def test_before_the_first_run_there_is_nothing_to_show(mission: Mission) -> None:
    result = CliRunner().invoke(main, ["status", str(mission.folder)])
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"{mission.database}: no such file; `groundstation serve {mission.folder}` makes it\n"
    )


def test_a_damaged_database_is_one_line(mission: Mission) -> None:
    mission.database.write_bytes(b"no database " * 50)
    result = CliRunner().invoke(main, ["status", str(mission.folder)])
    assert (result.exit_code, result.stderr) == (1, f"{mission.database}: file is not a database\n")


def test_a_board_that_failed_is_shown_with_its_reason(mission: Mission) -> None:
    store = fill(mission)
    health = {
        "state": int(State.FAILED),
        "round": 2,
        "failure": int(Failure.MEMORY),
        "why": "[bold] of 66 MB",
    }
    store.report(1, 1061.0, health, 10.0)
    assert "failed: [bold] of 66 MB" in printed(mission, store)
    store.report(1, 1062.0, health | {"why": ""}, 20.0)
    assert "failed: memory" in printed(mission, store)


@pytest.mark.parametrize("health", ["", "x", "[]", "{}", '{"state": 99}', '{"state": null}'])
def test_a_health_of_another_version_is_none(health: str, mission: Mission) -> None:
    with contextlib.closing(fill(mission)) as store, store.transaction():
        store.db.execute("UPDATE node SET health = ?", (health,))
    for form in ([], ["--json"]):
        result = CliRunner().invoke(main, ["status", str(mission.folder), *form])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("change", ["UPDATE node SET spent = 'x'", "UPDATE mission SET classes = '[1]'"])
def test_a_database_of_another_version_is_named(change: str, mission: Mission) -> None:
    with contextlib.closing(fill(mission)) as store, store.transaction():
        store.db.execute("UPDATE mission SET seed = 0")
        store.db.execute(change)
    store = Store(mission.database)
    with pytest.raises(StoreError, match=r"mission\.sqlite: holds what this version does not read: "):
        _ = store.enter_node(1, "pi"), store.begin(b"\x01" * 8, "Dawn", 0, b"\x02" * 8, ("a",))
    store.close()


def test_what_boards_hold_out_stands_beside_the_test_data(mission: Mission) -> None:
    store = fill(mission)
    assert "on boards" not in printed(mission, store)
    store.take_update(2, 1, b"x", METRICS | {"validation": 0.5}, 1060.0)
    store.take_update(2, 2, b"x", METRICS | {"samples": 1800, "validation": 0.9}, 1061.0)
    first, second = status.picture(mission, store)["rounds"]
    assert (first["validation"], second["validation"]) == (None, pytest.approx(0.8))
    assert [answer["validation"] for answer in second["answers"]] == [0.5, 0.9]
    table = printed(mission, store)
    assert "on boards" in table
    assert "80.00 %" in table


def test_a_file_on_its_way_is_shown_as_a_whole() -> None:
    """Its parts are objects like others, of which two are on their way at a time."""
    one = {"node": "pi", "file": "ab" * 16, "bytes": 13_000_000, "held_bytes": 6_500_000}
    shown = status.links_picture({"round": 1, "waiting": [], "links": [], "files": [one]}, None, 0.0)
    assert re.search(r"pi +out +whole file abababab +13,000,000 .* 50 %", shown)
    assert status.file_line(one, "train.onnx") == "train.onnx: 6,500,000 of 13,000,000 B, 50 %"
