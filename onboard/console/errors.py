"""A program that cannot go on says why in one line on standard error, and ends: the same for all three."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click
from click.types import FloatParamType

from onboard.console.extras import root_cause, unusable, wanted
from onboard.console.signals import interruptible, was_interrupted
from onboard.console.toml import ConfigError


class OneLineErrors(click.Group):
    """A group of commands whose errors are one line, without the usage text. Exit code 2 is for bad options,
    arguments and files and for packages that are not installed; 1 for a package that does not load. A
    ConfigError names its own subject; the program's name leads all other lines."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        given = args[0] if args else kwargs.get("args")
        told, code = "", 0
        try:
            interruptible()
            for argument in sys.argv[1:] if given is None else given:
                try:
                    argument.encode("utf-8")  # no file of the programs could hold what is not
                except UnicodeEncodeError:
                    raise click.UsageError(f"argument {argument!r} is not UTF-8") from None
            code = super().main(*args, **kwargs)
        except ConfigError as error:
            fail(str(error))
        except click.ClickException as error:
            told, code = error.format_message(), error.exit_code
        except ImportError as error:
            package = wanted(error)
            told = f"cannot start: {root_cause(error)}"
            if package:
                told = unusable(package, error, self.name or "")
            code = 2 if package and error.name == package else 1
        except click.Abort:
            code = 130
        except OSError as error:  # of whatever a command did not expect to fail
            name = f"{error.filename}: " if isinstance(error.filename, str | os.PathLike) else ""
            told, code = f"{name}{error.strerror or error}", 1
        except Exception as error:  # a fault of the program's, which a user cannot read out of a traceback
            if os.environ.get(TRACEBACK):
                raise
            told, code = f"internal error: {where(error)}; {TRACEBACK}=1 shows more", 1
        if told:
            # A group without a command complains with its whole help text, which needs no prefix.
            line = told if told.startswith("Usage: ") else one_line(f"{self.name}: {told}")
            click.echo(line, err=True)
        if code:
            forget_unwritten(sys.stdout)
        sys.exit(code)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, SystemExit) as error:
            # A library may make bad input of an interrupt, which a command then complains about.
            is_end = isinstance(error, SystemExit) and error.code != 2
            if was_interrupted() and not is_end:
                raise click.Abort from None
            raise

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Adds a command whose numbers can be neither infinite nor NaN."""
        for param in cmd.params:
            if isinstance(param.type, FloatParamType):
                param.callback = _finite(param.callback)
        super().add_command(cmd, name)


TRACEBACK = "SPACEDML_TRACEBACK"
_MOST_CHARACTERS = 2000
Callback = Callable[[click.Context, click.Parameter, Any], Any]


def _finite(then: Callback | None) -> Callback:
    """NaN is in every range, so it is refused before the option's own callback runs."""

    def check(context: click.Context, param: click.Parameter, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise click.BadParameter(f"{value} is not a finite number.", context, param)
        return value if then is None else then(context, param, value)

    return check


def finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


def forget_unwritten(stream: TextIO | None) -> None:
    """Discards what a stream could not write; else Python tries again at exit and prints a traceback."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno() if stream is not None else 1)


def where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in frames)
    return one_line(f"{type(error).__name__}: {error}") + place


def one_line(text: str) -> str:
    """Makes a text safe to show: a path in it may hold line ends, escape sequences, or a megabyte."""
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def refused(error: OSError, where: object) -> NoReturn:
    """Ends the program because the machine failed; `where` is named if the system names no file. A closed
    pipe is no failure, as its reader has seen enough: that error is raised again."""
    if error.errno == errno.EPIPE:
        raise error
    name = error.filename if isinstance(error.filename, str | os.PathLike) else where
    fail(f"{name}: {error.strerror or error}", code=1)


def fail(line: str, code: int = 2) -> NoReturn:
    """Ends the program with one line; the exit code is 2 for bad input, 1 if the machine failed."""
    click.echo(one_line(line), err=True)
    sys.exit(code)
