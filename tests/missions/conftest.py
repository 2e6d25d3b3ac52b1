"""What the tests of missions share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.missions.clockwork import Clockwork


@pytest.fixture
def clockwork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., Clockwork]:
    """Makes a mission on a clock of the test's: of so many boards, with these values in mission.toml."""
    return partial(Clockwork, tmp_path, monkeypatch, caplog)
