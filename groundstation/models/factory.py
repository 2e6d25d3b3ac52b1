"""Finds the torch module that a command line means: `MODULE:FACTORY`, `FILE.py:FACTORY` or a call of it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

OF_ANOTHER_TORCH = (
    "torchvision, which timm imports, was built for another torch: install both from one index, as for "
    "processors alone: pip install --force-reinstall torch torchvision "
    "--index-url https://download.pytorch.org/whl/cpu"
)


class FactoryError(ValueError):
    """What was named makes no torch module; one line says why."""


def network(text: str) -> Any:
    """Returns the torch module of "nets:tiny", "path/to/nets.py:tiny", or "nets:Net.sized(8, bias=False)", in
    which all arguments are literals. What is named may also be the module itself. What torch wraps about a
    module to run it faster or on several devices is taken off. Raises FactoryError."""
    import torch

    place, colon, called = text.partition(":")
    if not (place and colon and called):
        raise FactoryError(f"{text}: needs MODULE:FACTORY or FILE.py:FACTORY")
    path, arguments, named = _call(text, called)
    before = list(sys.path)
    try:
        made = _made(text, _imported(place), path, arguments, named)
    finally:
        sys.path[:] = before  # a factory may import too, when it is called
    if not isinstance(made, torch.nn.Module):
        raise FactoryError(f"{text}: gives a {type(made).__name__}, needs a torch.nn.Module")
    return _plain(made, text)


def _made(text: str, held: Any, path: list[str], arguments: list[Any], named: dict[str, Any]) -> Any:
    """Returns the module that is named, or what the call of what is named gives."""
    import torch

    place, made = text.partition(":")[0], held
    for name in path:
        if not hasattr(made, name):
            raise FactoryError(f"{place}: has no {'.'.join(path)}")
        made = getattr(made, name)
    if isinstance(made, torch.nn.Module):
        if arguments or named:
            raise FactoryError(f"{text}: {'.'.join(path)} is a module already, and takes no arguments")
        return made
    if not callable(made):
        raise FactoryError(f"{text}: is a {type(made).__name__}, needs a torch.nn.Module or what makes one")
    try:
        return made(*arguments, **named)
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises
        raise FactoryError(f"{text}: {_said(error)}") from error


def _plain(made: Any, text: str) -> Any:
    """Returns what a wrapper is about, in float32 on the CPU."""
    import torch

    made = _unwrapped(made)
    for part in made.modules():
        for name, child in part.named_children():
            setattr(part, name, _unwrapped(child))
    for name, part in made.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise FactoryError(f"{text}: {name or 'it'} is TorchScript, needs the module in Python")
    try:
        return made.float().cpu()
    except Exception as error:  # NotImplementedError of a meta device, RuntimeError of another
        raise FactoryError(f"{text}: {_said(error)}") from error


def _unwrapped(module: Any) -> Any:
    import torch

    wrappers = {
        torch.nn.DataParallel: "module", torch.nn.parallel.DistributedDataParallel: "module",
        torch._dynamo.OptimizedModule: "_orig_mod",
    }  # fmt: skip
    while type(module) in wrappers:
        module = getattr(module, wrappers[type(module)])
    return module


def _call(text: str, called: str) -> tuple[list[str], list[Any], dict[str, Any]]:
    """Returns the names that lead to what is called, and the call's arguments."""
    try:
        node = ast.parse(called, mode="eval").body
        arguments, named = list[Any](), dict[str, Any]()
        if isinstance(node, ast.Call):
            named = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
            arguments = [ast.literal_eval(each) for each in node.args]
            node = node.func
        path = ast.unparse(node).split(".")
        if all(name.isidentifier() for name in path):
            return path, arguments, named
    except (SyntaxError, ValueError):
        pass
    raise FactoryError(f"{text}: {called!r} is no name, and no call with plain arguments; text needs quotes")


def _imported(place: str) -> ModuleType:
    """Imports a module as a program in this folder would, and a file as a program beside it would, or as a
    part of its package, where an `__init__.py` says that it is one."""
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise FactoryError(f"{place}: no such file")
    root, name = (path.resolve().parent, path.stem) if is_file else (Path.cwd(), place)
    sys.path.insert(0, str(root))
    while is_file and (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
        sys.path.insert(1, str(root))
    try:
        if not is_file or root != path.resolve().parent:
            held = importlib.import_module(name)
        else:
            held = _run(name, path)
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises
        raise FactoryError(f"{place}: cannot be imported: {_said(error)}") from error
    if is_file and not path.samefile(held.__file__ or ""):
        raise FactoryError(f"{place}: is {name}, and there is another in {held.__file__}")
    return held


def _run(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    held = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, held)  # a file may be called as a package that is in use: onnx.py
    spec.loader.exec_module(held)
    return held


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"ends the program, by exit({'' if error.code is None else error.code})"
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{said}; {OF_ANOTHER_TORCH}" if "operator torchvision::" in said else said
