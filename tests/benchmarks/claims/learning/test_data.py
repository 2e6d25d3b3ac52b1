"""Images that lie otherwise come out as the clean ones, or are refused in one line, before any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims.learning.data import SITUATIONS, Write, prints, read
from onboard.data import loading
from onboard.data.images import DataError

DIGITS = loading.load("digits").take(np.arange(1, 240, 2))


@pytest.mark.parametrize(("name", "write", "maps"), SITUATIONS, ids=[name for name, _, _ in SITUATIONS])
def test_a_situation_is_mapped_or_refused(tmp_path: Path, name: str, write: Write, maps: bool) -> None:
    if not maps:
        with pytest.raises(DataError) as caught:
            read(write, tmp_path, DIGITS)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    elif "missing" in name:
        there = read(write, tmp_path, DIGITS)
        assert prints(there) == prints(DIGITS.take(np.flatnonzero(DIGITS.y != 3)))
    else:
        assert prints(read(write, tmp_path, DIGITS)) == prints(DIGITS)
