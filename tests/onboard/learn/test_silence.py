"""Running a graph tells nobody: no file outside the program's own places, no thread that reports home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import pathlib
from onboard.learn.graph import TrainGraph, initial
import numpy as np
graph = TrainGraph.load("lenet5")
graph.step(initial(graph.shapes, 1), np.zeros((2, *graph.input_shape), np.float32), np.zeros(2, np.int64))
print(len(list(pathlib.Path("/proc/self/task").iterdir())))
"""


def test_a_training_step_leaves_no_file_and_no_thread_behind(tmp_path: Path) -> None:
    """In an environment that says nothing of CI or telemetry: onnxruntime keeps quiet there by itself."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temporary),
             "PYTHONPATH": str(Path(__file__).parents[3]), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(home.iterdir()), "a device id or a cache of events"
    assert not list(temporary.iterdir())
    assert int(done.stdout) == 1, f"{done.stdout.strip()} threads"
