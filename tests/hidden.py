"""A package that is installed for the tests, as if it were not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

import pytest


class Hidden:
    """Python asks it before it looks on the disk."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, _path: Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def hide(monkeypatch: pytest.MonkeyPatch, package: str, *users: str) -> None:
    """Hides a package until the test is over; modules of ours that use it are imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package or name in users]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
