"""`python -m benchmarks NAME` measures one claim; exit 0 if every bound holds, 1 if one is broken."""

from __future__ import annotations

import importlib
import signal
import sys

import click

from benchmarks.lab import LabError
from benchmarks.progress import Progress
from benchmarks.result import json_line, table
from onboard.data import DataError

NAMES = ("footprint",)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", required=False, type=click.Choice(NAMES))
@click.option("--json", "as_json", is_flag=True, help="End with one JSON line, for a program.")
def main(name: str | None, as_json: bool) -> None:
    """Measures what the documents promise, one claim a NAME. Without NAME: lists them.

    \b
    Example:
      python -m benchmarks footprint
      python -m benchmarks footprint --json | tail -n 1 | jq .rows
    """
    if name is None:
        for each in NAMES:
            promise = (importlib.import_module(f"benchmarks.{each}").__doc__ or "").partition("\n")[0]
            click.echo(f"{each:<12}{promise}")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    tell = Progress(name)
    try:
        rows = importlib.import_module(f"benchmarks.{name}").measure(tell)
    except (LabError, DataError) as error:
        tell.end()
        click.echo(f"{name}: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        tell.end()
        sys.exit(128 + signal.SIGINT)
    tell.end()
    click.echo(table(rows))
    if as_json:
        click.echo(json_line(name, rows))
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
