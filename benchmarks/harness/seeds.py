"""`--seeds 0,1,2`: the runs that a benchmark averages, a seed each."""

from __future__ import annotations

import click


def option(default: str | None, help_text: str = "Runs to average.") -> click.Option:
    """Gives a tuple of whole numbers; with a default of None an empty one where it is not said."""
    return click.Option(
        ["--seeds"], callback=_numbers, default=default, show_default=default is not None, help=help_text
    )


def _numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(",")) if text is not None else ()
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: must be whole numbers joined by commas", context, parameter
        ) from None
