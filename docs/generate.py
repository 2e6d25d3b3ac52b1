"""Writes the pages of docs/reference/ that the code can write itself: `make docs`.

Commands and options come from click; keys, units, ranges and defaults from the structs that read the files.
The sentence about a key is the docstring below its field; that about an option is its help.
tests/test_docs.py fails when a page that is committed differs from what this file writes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import msgspec

import firmware_sim.cli
import groundstation.cli
import hw_profiles
import onboard.cli
from firmware_sim.runs.options import sentences
from groundstation.config import MissionFile
from groundstation.setup import NodeSpec
from onboard.config import NodeFile
from onboard.runtime.contact_plan import PlanFile

REFERENCE = Path(__file__).parent / "reference"
PROGRAMS: dict[str, click.Group] = {
    "onboard": onboard.cli.main,
    "groundstation": groundstation.cli.main,
    "firmware-sim": firmware_sim.cli.main,
}
UNITS = {
    "_s": "s",
    "_mb": "MiB",
    "_bps": "bit/s",
    "_hz": "Hz",
    "_w": "W",
    "_flops": "FLOP/s",
    "_bytes": "byte",
}
NOT_SET = "Left out: "
"""Before what holds where a key is not in the file: the last words of a field's docstring."""


class Undocumented(ValueError):  # noqa: N818 - "un" says error already
    """A field or an option without a sentence, or without a word on what holds where it is left out."""


# Structs


def number(value: float) -> str:
    """A bound as it is read: 2^32 - 1 and 65,534."""
    if isinstance(value, int) and value >= 2**24:
        for less in (0, 1):
            if (value + less).bit_count() == 1:
                return f"2^{(value + less).bit_length() - 1}" + (" - 1" if less else "")
    if 0 < value < 1e-3 and (1 / value).is_integer() and int(1 / value).bit_count() == 1:
        return f"2^-{int(1 / value).bit_length() - 1}"
    if value >= 1e6:
        return f"{value:g}".replace("e+0", "e")
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}"


def bounds(low: float | None, low_open: bool, high: float | None, high_open: bool) -> str:
    if low is not None and high is not None and not low_open and not high_open:
        return f"{number(low)} to {number(high)}"
    parts = [f"{'above' if low_open else 'at least'} {number(low)}"] if low is not None else []
    parts += [f"{'below' if high_open else 'at most'} {number(high)}"] if high is not None else []
    return ", ".join(parts)


def range_of(meta: msgspec.Meta) -> str:
    low, high = meta.ge if meta.gt is None else meta.gt, meta.le if meta.lt is None else meta.lt
    return bounds(low, meta.gt is not None, high, meta.lt is not None)


def kind_of(hint: Any) -> str:
    """A field's type and range in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, metas = kind_of(args[0]), [meta for meta in args[1:] if isinstance(meta, msgspec.Meta)]
        rows = [f"`{row}`" for meta in metas for row in (meta.extra or {}).get("rows", ())]
        kind = ", ".join(rows) or kind
        return ", ".join([kind, *filter(None, map(range_of, metas))])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (tuple, list):
        how_many = "" if origin is list or Ellipsis in args else f" {len(args)}"
        return f"list of{how_many}: {kind_of(args[0])}"
    if type(None) in args:
        return kind_of(next(arg for arg in args if arg is not type(None)))
    return {"str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`",
            "datetime": "time"}[hint.__name__]  # fmt: skip


def unit_of(name: str) -> str:
    if name.startswith("bytes_per_"):
        return "byte"
    if name.startswith("bits_") and name != "bits_per_byte":
        return "bit/weight"
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")


def fields_of(kind: type) -> Iterator[tuple[str, bool, Any]]:
    """Name, whether it is required, and default of each field."""
    if dataclasses.is_dataclass(kind):
        for each in dataclasses.fields(kind):
            if each.name not in ("name", "title", "sources"):
                required = each.default is dataclasses.MISSING
                yield each.name, required, None if required else each.default or None
        return
    for field in msgspec.structs.fields(kind):
        yield field.name, field.required, None if field.required else field.default


COLUMNS = ("key", "value", "unit", "default", "meaning")


def keys(kind: type, columns: tuple[str, ...] = COLUMNS) -> list[str]:
    """The table of a struct's keys."""
    hints, said = typing.get_type_hints(kind, include_extras=True), sentences(kind)
    lines = row(list(columns)) + row(["---"] * len(columns))
    for name, required, default in fields_of(kind):
        if not (meaning := said.get(name, "")):
            raise Undocumented(f"{kind.__name__}.{name}: no docstring below it")
        meaning, _, left_out = meaning.partition(NOT_SET)
        if not required and default is None and not left_out:
            raise Undocumented(f"{kind.__name__}.{name}: its docstring does not end with {NOT_SET!r}...")
        cells = {
            "key": f"`{name.replace('_', '-') if kind is NodeSpec else name}`",
            "value": kind_of(hints[name]),
            "unit": unit_of(name),
            "default": "required" if required else left_out.rstrip(".") or f"`{json.dumps(default)}`",
            "meaning": meaning.strip(),
        }
        lines += row([cells[column] for column in columns])
    return lines


def row(cells: list[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]


def text_of(kind: type) -> list[str]:
    return inspect.cleandoc(kind.__doc__ or "").splitlines()


def file_page(title: str, kind: type, source: str, intro: str) -> str:
    """The page of a TOML file: a table for each section of the struct that reads it."""
    lines = [*head(title, source), *intro.splitlines(), ""]
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        section, many = struct_in(hint)
        heading = f"[[{name}]]" if many else f"[{name}]"
        lines += [f"## `{heading}`", "", *text_of(section), "", *keys(section), ""]
    return "\n".join(lines)


def struct_in(hint: Any) -> tuple[type, bool]:
    """The struct in the type of a section, and whether there may be several."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint, False
    args = [arg for arg in typing.get_args(hint) if arg not in (type(None), Ellipsis)]
    found, many = struct_in(args[0])
    return found, many or typing.get_origin(hint) in (tuple, list)


def head(title: str, source: str) -> list[str]:
    return [f"# {title}", "", f"<!-- Written by `make docs` from {source}: edit it there. -->", ""]


# Commands


def command_page(program: str) -> str:
    """The page of a program: its commands by their names, with arguments, options and examples."""
    group = PROGRAMS[program]
    lines = [*head(f"`{program}`", "click's commands"), *prose(group), ""]
    lines += [f"- [`{program} {name}`](#{program}-{name})" for name in sorted(group.commands)]
    lines += ["", "Every command has `-h` and `--help`, and the program has `--version`.", ""]
    for name, command in sorted(group.commands.items()):
        arguments = [metavar(param) for param in command.params if isinstance(param, click.Argument)]
        usage = " ".join([program, name, *arguments, "[OPTION]..."])
        lines += [f"## `{program} {name}`", "", "```text", usage, "```", "", *prose(command), ""]
        lines += [command.epilog, ""] if command.epilog else []
        options = [param for param in command.params if isinstance(param, click.Option)]
        if options:
            lines += row(["option", "value", "default", "meaning"]) + row(["---"] * 4)
            for option in options:
                lines += option_row(f"{program} {name}", option)
            lines.append("")
        if command is groundstation.cli.init:
            lines += [
                "The keys of `--node`, after its NAME:",
                "",
                *keys(NodeSpec, ("key", "default", "meaning")),
                "",
            ]
    return "\n".join(lines)


def metavar(param: click.Parameter) -> str:
    return param.metavar or str(param.name).upper()


def option_row(command: str, option: click.Option) -> list[str]:
    if not option.help:
        raise Undocumented(f"{command} {option.opts[0]}: no help")
    names = f"`{option.opts[0]}{f' {option.metavar}' if option.metavar else ''}`"
    meaning = " ".join(option.help.split())
    if option.multiple and "epeat" not in meaning:
        meaning += " Repeatable."
    return row([names, values_of(option), default_of(command, option), meaning])


def values_of(option: click.Option) -> str:
    kind = option.type
    if option.is_flag:
        return ""
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{choice}`" for choice in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        whole = "whole number" if isinstance(kind, click.IntRange) else "number"
        text = bounds(kind.min, kind.min_open, kind.max, kind.max_open)
        return f"{whole}, {text}" if text else whole
    return {"integer": "whole number", "float": "number", "path": "path", "file": "path"}.get(
        kind.name, "text"
    )


def default_of(command: str, option: click.Option) -> str:
    default = option.to_info_dict()["default"]
    if option.required:
        return "required"
    if option.is_flag:
        return "off"
    if isinstance(option.show_default, str):
        return option.show_default
    if isinstance(default, list | tuple) and default:
        return ", ".join(f"`{each}`" for each in default)
    if isinstance(default, str | int | float | Path) and not isinstance(default, bool):
        return f"`{default}`"
    if option.envvar:
        return f"`{option.envvar}`"
    if option.multiple:
        return "none"
    raise Undocumented(f"{command} {option.opts[0]}: show_default does not say what holds without it")


def prose(command: click.Command) -> list[str]:
    """A command's help, its examples as blocks of shell."""
    lines: list[str] = []
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(command.help or "")):
        if not paragraph.startswith("\b"):
            lines += [*paragraph.splitlines(), ""]
            continue
        shell: list[str] = []
        for line in paragraph.splitlines()[1:]:
            if line.startswith(" "):
                shell.append(line[2:])
                continue
            lines += [*_shell(shell), line, ""]
            shell = []
        lines += _shell(shell)
    return lines[:-1]


def _shell(lines: list[str]) -> list[str]:
    return ["```sh", *lines, "```", ""] if lines else []


# Profiles

ALL_REQUIRED = ("key", "value", "unit", "meaning")


def profile_page() -> str:
    """Keys of a link's and a board's profile, and the profiles that ship."""
    source = "hw_profiles/__init__.py and its profiles"
    lines = [*head("Profiles", source), *PROFILES_INTRO.splitlines(), ""]
    links = [hw_profiles.load_link(name) for name in hw_profiles.names("link")]
    lines += ["## Links", "", *text_of(hw_profiles.Link), "", *keys(hw_profiles.Link, ALL_REQUIRED), ""]
    lines += row(["profile", "what it is", "up", "down", "largest frame"]) + row(["---"] * 5)
    for link in links:
        rates = [f"{rate / 1000:,g} kbit/s" for rate in (link.rate_up_bps, link.rate_down_bps)]
        lines += row([f"`{link.name}`", link.title, *rates, f"{link.mtu_bytes:,} B"])
    boards = [hw_profiles.load_board(name) for name in hw_profiles.names("board")]
    lines += ["", "## Boards", "", *text_of(hw_profiles.Board), ""]
    lines += [*keys(hw_profiles.Board, ALL_REQUIRED), "", *FLOPS.splitlines(), ""]
    lines += row(["profile", "what it is", "memory", "training"]) + row(["---"] * 4)
    for board in boards:
        training = f"{board.train_flops / 1e9:,g} GFLOP/s" if board.train_flops else "relays only"
        lines += row([f"`{board.name}`", board.title, f"{board.memory_bytes / 2**20:,.0f} MiB", training])
    return "\n".join([*lines, ""])


PROFILES_INTRO = """\
A profile describes one board or one link. It is a TOML file in `hw_profiles/boards/` or `hw_profiles/links/`,
and its name is the file's stem. Wherever a profile's name is taken, so is the path of a file of your own (it
must end in `.toml` or contain a `/`).

```toml
kind = "link"                     # or "board"
title = "UHF amateur-band radio, 9.6 kbit/s GMSK, half-duplex"

rate_up_bps = { value = 9600, source = "k: AMSAT and ISIS UHF transceivers, GMSK 9k6" }
```

Every value stands beside its source, and every source opens with a mark:

| mark | meaning |
| --- | --- |
| `s:` | found in public sources |
| `k:` | known from data sheets; verify before relying on it |
| `c:` | calculated or chosen; the source says how |
| `m:` | measured on the board or link itself |

Every key below is required. An unknown key, a missing key, a wrong type, an unknown unit or a missing source
is refused with one line that names the file, the key and the value. In Python:
`hw_profiles.load(name_or_path)`, `load_board`, `load_link`, `names("board")`, `names("link")`; `name` and
`title` are fields too, and `sources` maps each key to its source."""
FLOPS = """\
`train_flops` is calculated, never taken from a brochure: HPL's float64 result times 2 for float32, or the
GPU's float32 peak, times 0.25, the middle of the 20 to 35 % that training reaches. Int8 engines cannot train
and are left out."""

NODE_INTRO = """\
One board, or one node that gossips. Paths are relative to the file, and an unknown key is an error. A board
has `[link]`; a node that gossips has `[gossip]` and one `[[neighbour]]` or more.
[Images, classes and pixels](../howto/images.md), [contact plans and quotas](../contacts.md),
[encryption](../howto/encryption.md) and [memory](../budget.md) have pages of their own."""
MISSION_INTRO = """\
The mission, on the ground. Paths are relative to its folder. A running daemon reads the file once, at its
start. [What one board may count for](../rounds.md) explains `clip`, `clip_samples`, `max_samples` and
`leave_out`."""
PLAN_INTRO = """\
When which two nodes see each other: one file that the ground and the boards load, by the key `contacts` of
mission.toml and NODE.toml. [Contacts](../contacts.md) says how a link follows it.

```toml
[[contact]]
node = 3
peer = 0
rise = 2026-11-21T10:02:10Z
set = 2026-11-21T10:10:40Z
rate_bps = 9600
```"""


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    made = {
        "NODE.toml.md": file_page("NODE.toml", NodeFile, "onboard/config.py", NODE_INTRO),
        "mission.toml.md": file_page("mission.toml", MissionFile, "groundstation/config.py", MISSION_INTRO),
        "contact-plan.md": file_page("Contact plan", PlanFile, "onboard/runtime/contact_plan.py", PLAN_INTRO),
        "profiles.md": profile_page(),
    }
    made |= {f"{program}.md": command_page(program) for program in PROGRAMS}
    return {REFERENCE / name: text.rstrip("\n") + "\n" for name, text in made.items()}


def write() -> None:
    REFERENCE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
