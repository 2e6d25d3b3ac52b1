"""The commands of README.md and docs/howto/, as they are printed there."""

from __future__ import annotations

import re

from tests.field.machines import ROOT

# What installs, or reaches another computer, which is here already: the rest of a line is run as it is.
_ELSEWHERE = re.compile(r"^(sudo |python3 -m venv |\S*pip |ssh |git |\. |#)")


def blocks(page: str, heading: str) -> list[list[str]]:
    """The shell blocks under a heading of a page, each as its commands, what a test cannot do left out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"{page}: no heading {heading!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    section = rest[: end.start()] if end else rest
    made = []
    for indent, block in re.findall(r"^( *)```sh\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL):
        lines = re.sub(rf"^{indent}", "", block, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
        commands = [line.split("  # ")[0].strip() for line in lines]
        made.append([line for line in commands if line and not _ELSEWHERE.match(line)])
    return [block for block in made if block]


def the(blocks_: list[list[str]], begins: str) -> list[str]:
    """The one block with a command that begins so."""
    (block,) = [block for block in blocks_ if any(line.startswith(begins) for line in block)]
    return block
