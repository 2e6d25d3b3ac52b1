"""The documents say what the code does: options, keys, defaults, events, counters, profiles; no dead link."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

import firmware_sim.cli
import groundstation.cli
import groundstation.config as mission_config
import onboard.cli
import onboard.config as node_config
import onboard.runtime.contact_plan
from groundstation.setup import NODE_KEYS
from groundstation.station import COUNTED
from hw_profiles import Board, Link, names
from onboard.link.pump import PortSnapshot
from onboard.wire.events import LinkSnapshot, Progress

ROOT = Path(__file__).parent.parent
TOP_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *TOP_PAGES])
OPERATE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
PROFILES = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
PROGRAMS = {
    "onboard": onboard.cli.main,
    "groundstation": groundstation.cli.main,
    "firmware-sim": firmware_sim.cli.main,
}
COMMANDS = {
    f"{program} {name}": command
    for program, group in PROGRAMS.items()
    for name, command in group.commands.items()
}
SECTIONS: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("NODE.toml", "[node]"): node_config.NodeSection,
    ("NODE.toml", "[link]"): node_config.LinkSection,
    ("NODE.toml", "[gossip]"): node_config.GossipSection,
    ("NODE.toml", "[[neighbour]]"): node_config.NeighbourSection,
    ("NODE.toml", "[data]"): node_config.DataSection,
    ("NODE.toml", "[budget]"): node_config.BudgetSection,
    ("mission.toml", "[mission]"): mission_config.MissionSection,
    ("mission.toml", "[train]"): mission_config.TrainSection,
    ("mission.toml", "[[node]]"): mission_config.BoardSection,
    ("Contact plan", "[[contact]]"): onboard.runtime.contact_plan.Contact,
}


def section(page: str, heading: str) -> str:
    """What stands under the heading that begins so, up to the next one of its own level or above."""
    found = re.search(rf"^(#+) `?{re.escape(heading)}[^\n]*$", page, re.MULTILINE)
    assert found, f"no heading {heading!r}"
    rest = page[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the table rows in a text, without headings and rules."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| ---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def first_cells(text: str) -> set[str]:
    """What is named in the first column, in code marks."""
    return {name for cells in rows(text) for name in re.findall(r"`([^`]+)`", cells[0])}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_operators_page(name: str) -> None:
    text = section(OPERATE, name)
    told = {
        option.split()[0]: cells for cells in rows(text) for option in re.findall(r"`(--[^`]+)`", cells[0])
    }
    options = {
        option.opts[0]: option
        for option in COMMANDS[name].params
        if isinstance(option, click.Option) and option.opts[0] != "--help"
    }
    assert set(told) == set(options)
    for option, cells in told.items():
        param = options[option]
        default = param.to_info_dict()["default"]
        if param.required:
            assert cells[1] == "required", option
        elif param.is_flag:
            assert cells[1] == "off", option
        elif isinstance(default, str | int | float | Path):
            assert cells[1] == f"`{default}`", option


def test_every_command_and_program_has_its_heading_and_example() -> None:
    headings = set(
        re.findall(r"^#### `((?:onboard|groundstation|firmware-sim) [a-z]+)", OPERATE, re.MULTILINE)
    )
    assert headings == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert command.help, name
        assert re.search(rf"Examples?.*:\n(.*\n)* +{name} ", command.help), f"{name}: no example"


def test_every_key_of_a_node_option_is_on_the_operators_page() -> None:
    told = {name for name in first_cells(section(OPERATE, "groundstation init")) if not name.startswith("--")}
    assert told == {key.replace("_", "-") for key in NODE_KEYS}


@pytest.mark.parametrize(("page", "heading"), SECTIONS, ids=str)
def test_every_key_has_its_row_with_its_default(page: str, heading: str) -> None:
    told = {
        cells[0].strip("`"): cells
        for cells in rows(section(section(OPERATE, page), heading))
        if cells[0] != "key"
    }
    fields = {field.name: field for field in msgspec.structs.fields(SECTIONS[page, heading])}
    assert list(told) == list(fields)
    for key, (_, _, default, meaning) in told.items():
        field = fields[key]
        assert meaning
        if field.required:
            assert default == "required", key
        elif field.default is None:
            assert "`" not in default, key
        else:
            assert default == f"`{_literal(field.default)}`", key


def _literal(value: Any) -> str:
    return json.dumps(value)


def test_every_file_of_sections_is_covered() -> None:
    for page, kind in (("NODE.toml", node_config.NodeFile), ("mission.toml", mission_config.MissionFile)):
        named = {heading.strip("[]") for name, heading in SECTIONS if name == page}
        assert named == {field.name for field in msgspec.structs.fields(kind)}


def said_events() -> set[str]:
    """The events that the programs log: the second argument of every `say` and `record_of`."""
    found = set[str]()
    for package in ("onboard", "groundstation", "firmware_sim"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Name) and called.id in ("say", "record_of"):
                    assert isinstance(node, ast.Call)
                    event = node.args[1]
                    if isinstance(event, ast.Constant):
                        found.add(str(event.value))
                    else:  # the one that names the link's event: Refused or Corrupt
                        assert ast.unparse(event) == "type(event).__name__.lower()", f"{path}:{node.lineno}"
                        found |= {"refused", "corrupt"}
    return found


def test_every_log_event_is_on_the_operators_page_and_no_other() -> None:
    assert first_cells(section(OPERATE, "Log events")) == said_events()


def test_every_counter_is_on_the_operators_page_and_no_other() -> None:
    text = section(OPERATE, "Counters")
    shown = {field.name for field in dataclasses.fields(LinkSnapshot)} - {"now", "last_heard"}
    shown |= {"heard_s_ago", "port"}
    stored = {*COUNTED, "updates_late", "updates_refused"}
    assert first_cells(text) == shown | stored
    assert {cells[0].split("`")[1] for cells in rows(text) if cells[0].endswith("*")} == stored
    objects = {field.name for field in dataclasses.fields(Progress)} - {"size"} | {"bytes"}
    port = {field.name for field in dataclasses.fields(PortSnapshot)}
    for name, fields in (("objects", objects), ("port", port)):
        told = next(cells[-1] for cells in rows(text) if cells[0] == f"`{name}`")
        assert set(re.findall(r"`(\w+)`", told)) == fields


def test_every_profile_field_and_every_profile_is_on_the_profiles_page() -> None:
    for heading, kind in (("Links", Link), ("Boards", Board)):
        text = section(PROFILES, heading)
        fields = {field.name for field in dataclasses.fields(kind)} - {"name", "title", "sources"}
        assert first_cells(text) - {"key"} == fields
    for name in [*names("link"), *names("board")]:
        assert f"`{name}`" in PROFILES


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        assert to.exists(), f"{page.name}: {target}"
        assert to.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor:
            assert anchor in anchors(to), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_an_example_exists(page: Path) -> None:
    for block in re.findall(
        r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        for program, name, rest in re.findall(
            r"^(?:.*/)?(onboard|groundstation|firmware-sim) +([a-z]+)((?:.*\\\n)*.*)$", block, re.MULTILINE
        ):
            assert f"{program} {name}" in COMMANDS, f"{page.name}: {program} {name}"
            known = {opt for param in COMMANDS[f"{program} {name}"].params for opt in param.opts}
            options = re.findall(r"(?<!\S)--[a-z-]+", rest)
            assert set(options) <= known | {"--help"}, f"{page.name}: {program} {name}"


def test_every_test_that_the_threat_model_names_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tests = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert len(tests) >= 5
    assert [path for path in tests if not (ROOT / path).is_file()] == []
