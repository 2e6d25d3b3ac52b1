"""What a program cannot do it says in one line on standard error, and ends: the same for all three."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from onboard.extras import root_cause, unusable, wanted


class OneLineErrors(click.Group):
    """A group of commands whose complaints about options, arguments and packages that are not installed are
    one line, led by the program's name and without the usage text, with exit code 2; 1 over a package that
    is installed and does not load."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """See `click.Group.main`; always ends the program."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as error:
            message = error.format_message()
            # A group without a command complains with its whole help text, which needs no prefix.
            click.echo(message if message.startswith("Usage: ") else f"{self.name}: {message}", err=True)
            code = error.exit_code
        except ImportError as error:
            package, program = wanted(error), self.name or ""
            line = unusable(package, error, program) if package else f"cannot start: {root_cause(error)}"
            click.echo(f"{program}: {line}", err=True)
            code = 2 if package and error.name == package else 1
        except click.Abort:
            code = 130
        sys.exit(code)


def refused(error: OSError, where: object) -> NoReturn:
    """Ends the program because the machine refuses; `where`: what to name if the system does not."""
    name = error.filename if isinstance(error.filename, str | os.PathLike) else where
    fail(f"{name}: {error.strerror or error}", code=1)


def fail(line: str, code: int = 2) -> NoReturn:
    """Ends the program with one line: exit code 2 over bad input, 1 where the machine refuses."""
    click.echo(line, err=True)
    sys.exit(code)
