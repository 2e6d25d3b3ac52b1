"""What all tests share: how hypothesis plays its examples, and how much the log says."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair, which other tests share; bounds have tests of their own.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.fixture
def port() -> Iterator[str]:
    """A serial device of the test's own: the far end of a pseudo-terminal."""
    near, far = os.openpty()
    yield os.ttyname(far)
    os.close(near)
    os.close(far)


@pytest.fixture(autouse=True)
def _as_quiet_as_python_begins() -> None:
    """A command that ran in this process has set the level of its log, for all that come after it."""
    logging.getLogger().setLevel(logging.WARNING)
