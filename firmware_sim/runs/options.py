"""Options that commands share, and options generated from a struct's fields, their ranges and the sentences
below them: the command line, the files and the wire cannot disagree."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from msgspec.inspect import FloatType, IntType, LiteralType, Metadata, StructType, VarTupleType

from onboard.cli import all_of
from onboard.learn.networks import described

F = TypeVar("F", bound=Callable[..., Any])


def data_options(data: str, holder: str, images: int, seed: str) -> Callable[[F], F]:
    """Adds the options of the data: so many `images` for each `holder`, and what the `seed` decides."""
    return all_of(
        click.option("--seed", default=0, type=click.IntRange(0, 2**31), help=f"Seed of {seed}."),
        click.option("--data", default=data,
                     help="What is learned: digits, mnist, eurosat (the subset of 2,500 images where the "
                          "folder has it), eurosat-full, eurosat-water (with masks), npz:PATH or "
                          "folder:PATH."),
        click.option("--data-dir", "data_folder", type=click.Path(path_type=Path), envvar="SPACEDML_DATA",
                     show_envvar=True, help="Folder of mnist and eurosat."),
        click.option("--model", show_default="by the data",
                     help="Model to train, with the images that it takes: "
                          f"{described()}; or a network's folder."),
        click.option("--images", default=images, type=click.IntRange(min=1),
                     help=f"Images a {holder}, at most."),
    )  # fmt: skip


def run_options(name: str, step: str) -> Callable[[F], F]:
    """Adds where a run's results go, and in which form they are shown."""
    return all_of(
        click.option("--out", type=click.Path(path_type=Path), default=Path(f"{name}-out"),
                     help="Folder for results. A run that was stopped goes on from there."),
        click.option("--json", "as_json", is_flag=True,
                     help=f"A JSON object for each {step} in place of the table."),
    )  # fmt: skip


def options_of(
    kind: type[msgspec.Struct],
    defaults: Mapping[str, object],
    *,
    left_out: str = "",
    only: Collection[str] = (),
    flags: Mapping[str, tuple[str, str]] | None = None,
) -> Callable[[F], F]:
    """Adds an option for each field of `kind`, or for these `only`. defaults: by field; the others are None
    unless given, and `left_out` says what then holds; flags: by field, an option and a metavar in place of
    the usual ones."""
    described, said = msgspec.inspect.type_info(kind), sentences(kind)
    assert isinstance(described, StructType), kind
    options = []
    for field in described.fields:
        name = field.name
        if only and name not in only:
            continue
        flag, metavar = (flags or {}).get(name, (f"--{name.replace('_', '-')}", None))
        options.append(
            click.option(flag, name, type=_range_of(field.type), metavar=metavar, default=defaults.get(name),
                         multiple=isinstance(field.type, VarTupleType),
                         show_default=True if name in defaults else left_out,
                         help=said[name].replace("`", ""))
        )  # fmt: skip
    return all_of(*options)


def _range_of(kind: msgspec.inspect.Type) -> click.ParamType[Any]:
    if isinstance(kind, VarTupleType):
        return _range_of(kind.item_type)
    if isinstance(kind, Metadata) and kind.extra is not None:  # the names are a table's
        return click.Choice(list(kind.extra["rows"]))
    if isinstance(kind, LiteralType):
        return click.Choice([str(value) for value in kind.values])
    assert isinstance(kind, IntType | FloatType), kind
    low, high = (kind.ge if kind.gt is None else kind.gt), (kind.le if kind.lt is None else kind.lt)
    of: Any = click.IntRange if isinstance(kind, IntType) else click.FloatRange
    made: click.ParamType[Any] = of(low, high, min_open=kind.gt is not None, max_open=kind.lt is not None)
    return made


@functools.cache
def sentences(kind: type) -> dict[str, str]:
    """Returns the docstrings below the fields of a class and of its bases."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.partition(".")[0] in ("builtins", "msgspec"):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:]):  # noqa: B905 - the last field may have none
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=said)):
                    found[name] = " ".join(str(said).split())
    return found
