"""A knob of training is one field: whatever reads it takes the same values and has the same default."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_sim.fleet.cli import fleet
from firmware_sim.ring.cli import ring
from groundstation.config import load_mission
from onboard.codec.quantized import MAX_BASES
from onboard.config import GossipSection
from onboard.console.toml import ConfigError
from onboard.learn import training
from onboard.learn.optimizers import OPTIMIZERS
from onboard.learn.training import (
    LEAST_RATE,
    METHODS,
    OPTIMIZER_NAMES,
    SCHEDULES,
    BoardTraining,
    Plan,
    Recipe,
    Training,
)
from onboard.mission.objects import decode_task, encode_object
from tests.onboard.learn.federated.plans import PLAN, changed
from tests.onboard.wire.examples import TASK


def fields_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    described: Any = msgspec.inspect.type_info(kind)
    return {field.name: field for field in described.fields}


FIELDS = fields_of(Training)
ON_BOARD = BoardTraining.__struct_fields__
NAMES = {"method": tuple(METHODS), "optimizer": OPTIMIZER_NAMES, "schedule": SCHEDULES}
NUMBERS = [name for name in FIELDS if name not in NAMES]


def limits(field: Any) -> tuple[float, bool, float | None, bool]:
    """The range of a knob: its lowest value, whether that is out of it, and the same of its highest."""
    kind = field.type
    return (
        kind.gt if kind.ge is None else kind.ge, kind.ge is None,
        kind.lt if kind.le is None else kind.le, kind.le is None,
    )  # fmt: skip


def at_and_beyond(field: Any) -> list[tuple[Any, bool]]:
    """Values at each end of the range and beyond it, and whether they are in it."""
    low, low_out, high, high_out = limits(field)
    if isinstance(field.default, int):
        found = [(int(low) - 1, False), (int(low), True)]
        return found if high is None else [*found, (int(high), True), (int(high) + 1, False)]
    assert high is not None
    below, above = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    inside = math.nextafter(low, math.inf), math.nextafter(high, -math.inf)
    return [
        (below, False), (low, not low_out), (inside[0], True),
        (inside[1], True), (high, not high_out), (above, False), (math.nan, False),
    ]  # fmt: skip


CASES = [(name, value, is_in) for name in NUMBERS for value, is_in in at_and_beyond(FIELDS[name])]
CASES += [(name, row, True) for name, rows in NAMES.items() for row in rows]
CASES += [(name, "another", False) for name in NAMES]


def passes_the_wire(knobs: BoardTraining) -> bool:
    try:
        payload = encode_object(msgspec.structs.replace(TASK, training=knobs), b"w")
    except ValueError:
        return False
    assert decode_task(payload)[0].training == knobs
    return True


def passes_the_plan(knobs: BoardTraining) -> bool:
    try:
        Plan(training=knobs, seed=0, round=1, node=1)
    except ValueError:
        return False
    return True


def passes_the_server(knobs: Training) -> bool:
    try:
        knobs.of_round(1)
    except ValueError:
        return False
    return True


def passes_the_file(folder: Path, name: str, value: Any) -> bool:
    written = f'"{value}"' if isinstance(value, str) else repr(value)
    (folder / "mission.toml").write_text(
        f'[mission]\nname = "a"\n[train]\n{name} = {written}\n'
        '[[node]]\nid = 1\nname = "a"\nboard = "raspberry-pi-4"\nlink = "bench-udp"\nport = "udp://[::1]:9"\n'
        'key = "a.key"\n'
    )
    try:
        return bool(getattr(load_mission(folder).train, name) == value)
    except ConfigError:
        return False


def passes_the_option(name: str, value: Any) -> bool:
    """Whether `firmware-sim fleet` takes it: click's range, then the struct's."""
    return option_of(fleet, Training, name, value)


def option_of(command: click.Command, kind: type[msgspec.Struct], name: str, value: Any) -> bool:
    asked = ["--" + name.replace("_", "-"), str(value)]
    try:
        given = command.make_context("command", asked).params[name]
        msgspec.convert({name: given}, kind)
    except (click.BadParameter, ValueError):
        return False
    assert given == value
    return True


def everywhere(folder: Path, name: str, value: Any) -> dict[str, bool]:
    told = {"file": passes_the_file(folder, name, value), "option": passes_the_option(name, value)}
    try:
        whole = Training(**{name: value})
    except ValueError:  # a name that no table has is refused where a struct is made of it
        raw = msgspec.to_builtins(BoardTraining())
        raw[ON_BOARD.index(name)] = value
        with pytest.raises(msgspec.ValidationError, match=f"{name}: must be one of"):
            msgspec.msgpack.decode(msgspec.msgpack.encode(raw), type=BoardTraining)
        return told
    if name in ON_BOARD:
        knobs = BoardTraining(**{name: value})
        told |= {"wire": passes_the_wire(knobs), "plan": passes_the_plan(knobs)}
        told |= {"server": passes_the_server(whole)}
    return told


@pytest.mark.parametrize(("name", "value", "is_in"), CASES)
def test_a_value_at_a_bound_or_beyond_it_is_treated_alike(
    name: str, value: Any, is_in: bool, tmp_path: Path
) -> None:
    assert set(everywhere(tmp_path, name, value).values()) == {is_in}


@pytest.mark.parametrize("name", NUMBERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(data=st.data())
def test_any_value_is_treated_alike(name: str, data: st.DataObject, tmp_path: Path) -> None:
    is_whole = isinstance(FIELDS[name].default, int)
    value = data.draw(st.integers(-2, 2**31) if is_whole else st.floats())
    assert len(set(everywhere(tmp_path, name, value).values())) == 1


def test_every_knob_has_a_default_in_its_range() -> None:
    for name, field in FIELDS.items():
        assert not field.required, name
        if name not in NAMES:
            low, _, high, _ = limits(field)
            assert high is not None
            assert low <= field.default <= high, name
    assert passes_the_plan(Training())
    assert training.MOST_BASES == MAX_BASES


def test_every_optimizer_has_its_name_where_no_numpy_is() -> None:
    assert tuple(OPTIMIZERS) == OPTIMIZER_NAMES


def test_what_an_optimizer_lacks_is_not_asked_of_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer: spacedml prunes by Adam's moments, and sgd has none"):
        BoardTraining(method="spacedml", optimizer="sgd")
    knobs = BoardTraining(method="fedavg", optimizer="sgd")
    assert passes_the_wire(knobs)


def test_a_knob_costs_nothing_on_the_wire_until_it_is_used() -> None:
    """So a board of before, which does not know it, is asked in words that it knows."""
    plain, used = (
        encode_object(msgspec.structs.replace(TASK, training=knobs), b"w")
        for knobs in (BoardTraining(), BoardTraining(momentum=0.5))
    )
    assert len(used) == len(plain) + len(msgspec.msgpack.encode("adam")) + 9
    assert decode_task(plain)[0].training == BoardTraining()


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(warmup=st.floats(0, 1), steps=st.integers(1, 400))
def test_a_rate_rises_to_the_mission_s_and_falls_as_the_schedule_says(
    schedule: str, warmup: float, steps: int
) -> None:
    knobs = BoardTraining(learning_rate=0.01, warmup=warmup, schedule=schedule)
    rates = [knobs.rate(step, steps) for step in range(steps)]
    top = int(np.argmax(rates))
    assert min(rates) > 0
    assert max(rates) <= 0.01
    assert all(later > earlier for earlier, later in itertools.pairwise(rates[: top + 1]))
    assert abs(top - warmup * steps) <= 1
    if schedule == "constant":
        assert set(rates[top:]) == {rates[top]}
    else:
        assert all(later < earlier for earlier, later in itertools.pairwise(rates[top + 1 :]))
        falling = max(1.0, steps * (1 - warmup))
        assert rates[-1] <= 0.01 * (math.pi / 2 / falling) ** 2 + 1e-9  # as sin(x) <= x


def test_a_task_s_training_is_the_mission_s_but_for_what_is_the_server_s_own() -> None:
    whole = Training(learning_rate=0.01, learning_rate_decay=0.5, bits_down=1.0)
    assert whole.of_round(1) == BoardTraining(learning_rate=0.01)
    assert whole.of_round(3) == BoardTraining(learning_rate=0.0025)
    assert whole.of_round(10_000) == BoardTraining(learning_rate=LEAST_RATE)
    assert set(Training.__struct_fields__) - set(ON_BOARD) == {"learning_rate_decay", "bits_down"}


DESCENT = {name: field for name, field in fields_of(Recipe).items() if name != "drops"}


@pytest.mark.parametrize(
    ("name", "value", "is_in"),
    [(name, value, is_in) for name, field in DESCENT.items() for value, is_in in at_and_beyond(field)],
)
def test_a_knob_of_gossip_is_treated_alike_by_the_node_s_file_and_the_ring(
    name: str, value: Any, is_in: bool
) -> None:
    try:
        passes = getattr(msgspec.convert({name: value}, GossipSection), name) == value
    except ValueError:
        passes = False
    assert (passes, option_of(ring, Recipe, name, value)) == (is_in, is_in)


TWO = changed(PLAN, epochs=2)


@pytest.mark.parametrize(
    ("method", "round_number", "expected"),
    [
        ("fedavg", 1, "plain plain"),
        ("fedavg-zstd", 4, "plain plain"),
        ("spacedml-fast", 1, "plain straight straight"),
        ("spacedml-fast", 4, "plain straight straight"),
        ("spacedml", 1, "plain prune prune prune prune bases coordinates straight straight"),
        ("spacedml", 4, "prune prune prune prune bases coordinates straight straight"),
    ],
)
def test_phases(method: str, round_number: int, expected: str) -> None:
    plan = changed(TWO, method=method, round=round_number)
    assert [phase.value for phase in plan.phases] == expected.split()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pretrain_epochs": 0}, "int` >= 1 - at `$.pretrain_epochs"),
        ({"method": "sgd"}, "method: must be one of fedavg, fedavg-zstd, spacedml, spacedml-fast"),
        ({"learning_rate": 0.0}, "float` > 0.0 - at `$.learning_rate"),
        ({"batch_size": 0}, "int` >= 1 - at `$.batch_size"),
        ({"prune_epochs": -1}, "int` >= 0 - at `$.prune_epochs"),
        ({"bits_up": float("nan")}, "float` > 0.0 - at `$.bits_up"),
        ({"bits_up": -0.1}, "float` > 0.0 - at `$.bits_up"),
        ({"max_bases": 9}, "int` <= 8 - at `$.max_bases"),
        ({"epochs": -1}, "int` >= 1 - at `$.epochs"),
        ({"prune_ratio": 1.1}, "float` <= 1.0 - at `$.prune_ratio"),
        ({"prune_ratio": float("nan")}, "float` >= 0.0 - at `$.prune_ratio"),
    ],
)
def test_plans_that_cannot_be_run(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        changed(TWO, **change)
