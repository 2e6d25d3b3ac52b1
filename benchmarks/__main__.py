"""`python -m benchmarks NAME` measures one claim; exit 0 if every bound holds, 1 if one is broken."""

from __future__ import annotations

import importlib
import signal
import sys
from functools import partial
from types import ModuleType
from typing import Any

import click

from benchmarks.harness.lab import LabError
from benchmarks.harness.progress import ProgressLine
from benchmarks.harness.result import json_line, table
from onboard.data.images import DataError

NAMES = {
    name: f"benchmarks.claims.{folder}.{name}"
    for folder, names in {
        "learning": (
            "data",
            "codec",
            "alq",
            "table1",
            "gossip",
            "consensus",
            "convergence",
            "epoch",
            "train",
            "quality",
        ),
        "link": ("transfer", "frame", "ports", "others", "hardship", "schedules", "day", "files"),
        "peers": ("flower",),
        "resilience": ("footprint", "memory", "kills", "fuzz", "damage", "installs", "insider"),
    }.items()
    for name in names
}
"""The module that measures each claim."""


class Claims(click.Group):
    """A command for each benchmark, imported when it is asked for: `measure` gets a `ProgressLine` and what
    the module's OPTIONS, if it has any, were given, in one struct where the module has SETTINGS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in NAMES:
            raise click.UsageError(f"no benchmark {cmd_name!r}; there are {', '.join(NAMES)}")
        module = importlib.import_module(NAMES[cmd_name])
        promise, _, rest = (module.__doc__ or "").partition("\n")
        as_json = click.Option(
            ["--json", "as_json"], is_flag=True, help="End with one JSON line, for a program."
        )
        return click.Command(
            cmd_name,
            params=[*getattr(module, "OPTIONS", ()), as_json],
            callback=partial(run, cmd_name, module),
            help=f"{promise}\n{rest}",
            short_help=promise,
        )


@click.group(
    cls=Claims, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.pass_context
def main(context: click.Context) -> None:
    """Measures what the documents promise, one claim a NAME. Without NAME: lists them.

    \b
    Example:
      python -m benchmarks footprint
      python -m benchmarks footprint --json | tail -n 1 | jq .rows
    """
    if context.invoked_subcommand is None:
        for name, module in NAMES.items():
            promise = (importlib.import_module(module).__doc__ or "").partition("\n")[0]
            click.echo(f"{name:<12}{promise}")


def run(name: str, module: ModuleType, as_json: bool, **options: Any) -> None:
    """Measures, prints the table, and ends the process with the verdict."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up, as Ctrl-C does
    tell = ProgressLine(name)
    try:
        settings = getattr(module, "SETTINGS", None)
        rows = module.measure(tell, settings(**options)) if settings else module.measure(tell, **options)
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
