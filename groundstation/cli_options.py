"""What the groundstation's commands share: a folder, and how one that fails ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from groundstation.store.database import StoreError, StoreForeign
from onboard.console.errors import fail, refused

FOLDER = click.Path(path_type=Path)


@contextmanager
def one_line(folder: Path, *mistakes: type[Exception]) -> Iterator[None]:
    """Ends a failing command with one line, and exit code 2 for a user's mistake or 1 for the computer's."""
    known: tuple[type[Exception], ...] = (StoreForeign, *mistakes)
    try:
        yield
    except known as error:
        fail(str(error))
    except StoreError as error:
        fail(str(error), code=1)
    except OSError as error:
        refused(error, folder)
