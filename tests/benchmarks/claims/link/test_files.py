"""A small file takes the way of the claim's large one, kills and all."""

from __future__ import annotations

from benchmarks.claims.link import files
from benchmarks.harness.progress import ProgressLine


def test_a_small_file_crosses_through_two_kills() -> None:
    rows = {row.what.strip(): row for row in files.measure(ProgressLine("files"), mb=2)}
    assert rows["arrived, with the right digest"].value == 1
    assert rows["bytes on the air beyond the file, both ways"].value < 2
