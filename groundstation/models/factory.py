"""Finds the torch module that a command line means: `MODULE:FACTORY`, `FILE.py:FACTORY` or a call of it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class FactoryError(ValueError):
    """What was named makes no torch module; one line says why."""


def network(text: str) -> Any:
    """Returns the torch module of "nets:tiny", "path/to/nets.py:tiny", or "nets:sized(8, bias=False)", in
    which all arguments are literals. What is named may also be the module itself. Raises FactoryError."""
    import torch

    place, colon, called = text.partition(":")
    if not (place and colon and called):
        raise FactoryError(f"{text}: needs MODULE:FACTORY or FILE.py:FACTORY")
    name, arguments, named = _call(text, called)
    held = _imported(place)
    made = getattr(held, name, None)
    if made is None:
        raise FactoryError(f"{place}: has no {name}")
    if not isinstance(made, torch.nn.Module):
        if not callable(made):
            raise FactoryError(
                f"{text}: is a {type(made).__name__}, needs a torch.nn.Module or what makes one"
            )
        try:
            made = made(*arguments, **named)
        except Exception as error:  # whatever a stranger's code raises
            raise FactoryError(f"{text}: {_said(error)}") from error
    if not isinstance(made, torch.nn.Module):
        raise FactoryError(f"{text}: gives a {type(made).__name__}, needs a torch.nn.Module")
    return made.float().cpu()


def _call(text: str, called: str) -> tuple[str, list[Any], dict[str, Any]]:
    try:
        node = ast.parse(called, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            named = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
            return node.func.id, [ast.literal_eval(each) for each in node.args], named
    except (SyntaxError, ValueError):
        pass
    raise FactoryError(f"{text}: {called!r} is no name, and no call with plain arguments; text needs quotes")


def _imported(place: str) -> ModuleType:
    """Imports a module as a program in this folder would, or a file as a program beside it would."""
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise FactoryError(f"{place}: no such file")
    sys.path.insert(0, str(path.resolve().parent if is_file else Path.cwd()))
    try:
        if not is_file:
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        held = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(held)
        return held
    except Exception as error:  # whatever a stranger's code raises
        raise FactoryError(f"{place}: cannot be imported: {_said(error)}") from error
    finally:
        del sys.path[0]


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
