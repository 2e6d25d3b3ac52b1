"""Options of a command made from the fields of a struct: each has its field's range and its sentence.

A field is said once, where the struct is: its sentence is the docstring below it. So the command line, the
files and the wire cannot come to disagree.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
import msgspec
from msgspec.inspect import FloatType, IntType, LiteralType, Metadata, StructType, VarTupleType

F = TypeVar("F", bound=Callable[..., Any])


def options_of(
    kind: type[msgspec.Struct],
    defaults: Mapping[str, object],
    *,
    left_out: str = "",
    flags: Mapping[str, tuple[str, str]] | None = None,
) -> Callable[[F], F]:
    """A decorator that adds an option for each field of `kind`, by the field's name.

    `defaults`: of the options that have one. The others are None where they are not given, and `left_out`
    says what holds then. `flags`: by field, the option and the metavar that stand in for the usual ones.
    """
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, StructType), kind

    def decorate(command: F) -> F:
        for field in reversed(described.fields):
            flag, metavar = (flags or {}).get(field.name, (f"--{field.name.replace('_', '-')}", None))
            command = click.option(
                flag, field.name, type=_range_of(field.type), metavar=metavar,
                multiple=isinstance(field.type, VarTupleType), default=defaults.get(field.name),
                show_default=True if field.name in defaults else left_out,
                help=sentences(kind)[field.name].replace("`", ""),
            )(command)  # fmt: skip
        return command

    return decorate


def _range_of(kind: msgspec.inspect.Type) -> click.ParamType[Any]:
    """What click checks of a field of this type."""
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
    """What the docstrings below a class's fields say, the fields of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.partition(".")[0] in ("builtins", "msgspec"):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:]):  # noqa: B905 - the last field may have none
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(doc.value.value).split())
    return found
