"""The documents say what the code does: options, keys, defaults, events, counters, profiles; no dead link."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from docs import generate
from groundstation.setup import NODE_KEYS, NodeSpec
from groundstation.station import COUNTED
from onboard.link.pump import PortSnapshot
from onboard.wire.events import LinkSnapshot, Progress
from tests.test_layering import ARROWS, imports

ROOT = Path(__file__).parent.parent
TOP_PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*DOCS.rglob("*.md"), *TOP_PAGES])
GENERATED = generate.pages()
COMMANDS = {
    f"{program} {name}": command
    for program, group in generate.PROGRAMS.items()
    for name, command in group.commands.items()
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


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_every_generated_page_is_fresh(path: Path) -> None:
    """It has every command, option, key and profile, with its default and its sentence."""
    assert path.read_text(encoding="utf-8") == GENERATED[path], (
        "stale: run make docs, which is python docs/generate.py"
    )


def test_a_key_or_an_option_without_a_sentence_is_refused() -> None:
    class Silent(msgspec.Struct):
        told: int = 0
        """What it is."""
        untold: int = 0

    class Open(msgspec.Struct):
        limit: int | None = None
        """A limit, and not a word on what holds without it."""

    for kind, why in ((Silent, "untold: no docstring"), (Open, "limit: its docstring does not end")):
        with pytest.raises(generate.Undocumented, match=why):
            generate.keys(kind)
    mute, open_ = click.Option(["--quiet"]), click.Option(["--quiet"], help="Says little.")
    for option, why in ((mute, "no help"), (open_, "show_default")):
        with pytest.raises(generate.Undocumented, match=why):
            generate.option_row("onboard run", option)


def test_every_command_has_its_example() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        assert re.search(rf"Examples?.*:\n(.*\n)* +{name} ", command.help), f"{name}: no example"


def test_every_key_of_a_node_option_is_a_field_with_a_sentence() -> None:
    fields = [field.name for field in dataclasses.fields(NodeSpec)]
    assert {"name", *NODE_KEYS} == set(fields)
    told = first_cells(
        section((REFERENCE / "groundstation.md").read_text(encoding="utf-8"), "groundstation init")
    )
    assert told >= {key.replace("_", "-") for key in NODE_KEYS}


def said_events() -> set[str]:
    """The events that the programs log: the second argument of every `say` and `record_of`, and the first of
    every `PortEvent`."""
    found = set[str]()
    for package in ("onboard", "groundstation", "firmware_sim"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = node.func if isinstance(node, ast.Call) else None
                if isinstance(called, ast.Name) and called.id in ("say", "record_of", "PortEvent"):
                    assert isinstance(node, ast.Call)
                    event = node.args[called.id != "PortEvent"]
                    if isinstance(event, ast.Constant):
                        found.add(str(event.value))
                    else:  # the one that logs a `PortEvent`
                        assert ast.unparse(event) == "line.name", f"{path}:{node.lineno}"
    return found


def test_every_log_event_is_in_the_reference_and_no_other() -> None:
    assert first_cells((REFERENCE / "events.md").read_text(encoding="utf-8")) == said_events()


def test_every_counter_is_in_the_reference_and_no_other() -> None:
    text = (REFERENCE / "counters.md").read_text(encoding="utf-8")
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


def test_every_page_is_in_the_index() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    listed = {(DOCS / target.partition("#")[0]).resolve() for target in re.findall(r"\]\(([^)\s]+)\)", text)}
    assert {page for page in DOCS.rglob("*.md") if page.resolve() not in listed} == {DOCS / "README.md"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
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
            r"^(?:.*/)?(onboard|groundstation|firmware-sim) +([a-z][a-z-]*)((?:.*\\\n)*.*)$",
            block,
            re.MULTILINE,
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


def mermaid(page: Path) -> list[str]:
    """The diagrams of a page."""
    return re.findall(r"^```mermaid\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def arrows(diagram: str) -> set[tuple[str, str]]:
    """What points at what, by the nodes' ids."""
    bare = re.sub(r'\["[^"]*"\]', "", diagram)  # ids without their labels
    return set(re.findall(r"^ *(\w+) +(?:-->|-\..*\.->) +(\w+)", bare, re.MULTILINE))


def test_the_picture_of_the_layers_shows_the_imports() -> None:
    """Between packages all that are allowed; in `onboard` no arrow without an import, and none goes back."""
    drawn = arrows(mermaid(DOCS / "design.md")[0])
    packages = {(package, other) for package, others in ARROWS.items() for other in others}
    assert {arrow for arrow in drawn if set(arrow) <= set(ARROWS)} == packages
    there = {
        (path.relative_to(ROOT).parts[1], name.split(".")[1])
        for path in (ROOT / "onboard").rglob("*.py")
        for name in imports(path)
        if name.startswith("onboard.")
    }
    inside = drawn - packages
    assert len(inside) >= 8
    assert inside - there == set(), "drawn, and not imported"
    assert {(b, a) for a, b in inside} & there == set(), "an import goes back up"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    """A path from the root, or the bare name of a file of the project; a folder ends with a slash."""
    text = page.read_text(encoding="utf-8")
    if page.name in ("CHANGELOG.md", "CONTRIBUTING.md"):  # earlier names, and names that nobody may give
        return
    bare = {
        path.name
        for package in [*ARROWS, "tests", "benchmarks", "docs", "examples"]
        for path in (ROOT / package).rglob("*.py")
    }
    named = set(re.findall(r"(?<![\w/.~<>-])((?:[a-z_]+/)*[a-z_0-9]+\.py)\b", text))
    folders = set(
        re.findall(
            r"`((?:onboard|groundstation|firmware_sim|hw_profiles|tests|benchmarks|docs)/[\w/]*/)`", text
        )
    )
    gone = {name for name in named if not ((ROOT / name).is_file() if "/" in name else name in bare)}
    assert gone | {name for name in folders if not (ROOT / name).is_dir()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_diagram_is_whole(page: Path) -> None:
    """A kind that forges draw, every arrow between nodes that are there, quotes and blocks in pairs."""
    for diagram in mermaid(page):
        first, *lines = diagram.splitlines()
        assert first.split()[0] in ("flowchart", "stateDiagram-v2", "sequenceDiagram")
        assert diagram.count('"') % 2 == 0
        assert sum(line.split()[0] == "subgraph" for line in lines if line.strip()) == len(
            re.findall(r"^ *end$", diagram, re.MULTILINE)
        )
        if first.startswith("flowchart"):
            defined = set(re.findall(r"(\w+)\[", diagram)) | set(re.findall(r"subgraph (\w+)", diagram))
            assert {end for arrow in arrows(diagram) for end in arrow} <= defined


def test_every_page_that_the_code_names_is_there() -> None:
    gone = set()
    for package in (*ARROWS, "benchmarks", "tests", "examples"):
        for path in (ROOT / package).rglob("*.py"):
            for name in re.findall(
                r"(?<![\w/.-])((?:docs/)?[a-z/-]+\.md)\b", path.read_text(encoding="utf-8")
            ):
                if not any((folder / name).is_file() for folder in (ROOT, DOCS, REFERENCE, DOCS / "results")):
                    gone.add(f"{path.relative_to(ROOT)}: {name}")
    assert gone == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_and_block_is_whole(page: Path) -> None:
    """A row with a cell too many or too few is not drawn as it is meant; an open block swallows the page."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) % 2 == 0
    width = 0
    for line in re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        bare = re.sub(r"\\\||`[^`]*`", "", line.strip())  # a bar that is escaped ends no cell
        cells = bare.count("|") - 1 if bare.startswith("|") else 0
        assert not (width and cells) or cells == width, f"{page.name}: {line}"
        width = cells
