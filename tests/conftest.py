"""What all tests share: how hypothesis plays its examples, where folders lie, and how much the log says."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's affair, which other tests share; bounds have tests of their own.
settings.register_profile("suite", deadline=None)
settings.register_profile("few", settings.get_profile("suite"), max_examples=10)  # for `make floors`
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

MEMORY, ROOM_BYTES = Path("/dev/shm"), 4 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Tests' folders lie in memory where it has the room: the programs sync each step to their disk, and on a
    real one the suite waits for that. --basetemp names another place."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
    # Programs that the tests start keep what they compile, as a user's do: it is a third of a start's CPU.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


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
