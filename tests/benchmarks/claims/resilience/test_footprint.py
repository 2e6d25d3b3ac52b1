"""What the footprint's numbers rest on: a real agent is measured, and the busiest minute is found."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.claims.resilience import footprint
from benchmarks.claims.resilience.footprint import SERIAL, UNHEARD, busiest
from benchmarks.harness import process
from benchmarks.harness.lab import Lab, LabError
from onboard.data import loading

IMAGES = loading.load("digits", part="train").take(np.arange(20))


@given(
    st.lists(st.tuples(st.floats(0.1, 5.0), st.integers(0, 500)), min_size=2, max_size=60),
    st.floats(1.0, 20.0),
)
def test_the_busiest_span_is_that_of_all_pairs_of_readings(
    steps: list[tuple[float, int]], span_s: float
) -> None:
    times, counts = list(accumulate(s for s, _ in steps)), list(accumulate(n for _, n in steps))
    totals = list(zip(times, counts, strict=True))
    # Of every span that ends at a reading, the shortest one that is long enough.
    spans = [
        min(late - early for early_s, early in totals if early_s <= late_s - span_s)
        for late_s, late in totals
        if times[0] <= late_s - span_s
    ]
    if not spans:
        with pytest.raises(ValueError, match="do not cover"):
            busiest(totals, span_s)
    else:
        assert busiest(totals, span_s) == max(spans)


def test_a_burst_counts_in_full_wherever_it_lies() -> None:
    for burst_at in range(1, 121):
        totals = [(float(t), 400 if t >= burst_at else 0) for t in range(121)]
        assert busiest(totals, 60.0) == 400


def test_a_real_agent_that_nobody_answers_is_small_and_loads_no_torch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lab, imports = Lab(tmp_path), tmp_path / "imports"
    try:
        lab.create_mission("nobody", "digits", IMAGES, [UNHEARD])
        lab.lay(UNHEARD)
        pid = lab.start_agent("nobody", UNHEARD, imports=imports)
        lab.until(UNHEARD.name, "port-open", 30.0, lambda: None)
        assert process.memory(pid).resident_bytes <= footprint.IDLE_MB * 1e6
        assert process.cpu_s(pid) > 0.0
        lab.stop(UNHEARD.name)
    finally:
        lab.close()
    loaded = imports.read_text().split()
    assert "onboard.agents.federated" in loaded
    assert not [name for name in loaded if name.partition(".")[0] == "torch"]
    assert not Path(f"/proc/{pid}").exists()
    assert not list((tmp_path / "ports").iterdir()), "the cable takes its ports with it"


def test_an_agent_that_ends_before_its_time_ends_the_experiment_with_its_last_words(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    try:
        lab.create_mission("mission", "digits", IMAGES, [SERIAL])
        lab.start_agent("mission", SERIAL)  # without a cable: its port does not exist
        with pytest.raises(LabError, match=r"^serial ended: .*no such device"):
            lab.until(SERIAL.name, "port-open", 30.0, lambda: None)
    finally:
        lab.close()


def test_a_mission_that_cannot_be_founded_is_one_line(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    try:
        lab.create_mission("mission", "digits", IMAGES, [SERIAL])
        with pytest.raises(LabError, match=r"groundstation init: .*there is a mission already"):
            lab.create_mission("mission", "digits", IMAGES, [SERIAL])
    finally:
        lab.close()


def test_the_environment_is_a_users_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with footprint.environment_of_a_user():
        assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "MKL_NUM_THREADS" not in os.environ


def test_the_witness_names_what_a_program_imported_in_mid_run(tmp_path: Path) -> None:
    program = tmp_path / "late.py"
    program.write_text("import sys\nprint(sys.argv)\nimport colorsys\nsys.exit(3)\n")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ends.witness", str(tmp_path / "names"), "late", "a", "b"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"{[str(program), 'a', 'b']}\n"
    names = (tmp_path / "names").read_text().split()
    assert "colorsys" in names
    assert names == sorted(names)


def test_a_benchmark_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C of the real program while its agents run: exit, and neither a process nor a file remains."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "footprint"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
    ) as bench:  # fmt: skip
        assert bench.stderr is not None
        try:
            while "idle, before any training" not in (line := bench.stderr.readline()):
                assert line, "it ended by itself"
            began = _children(bench.pid)
            assert len(began) == 6, "three cables and three agents"
        finally:
            bench.terminate()
        bench.communicate(timeout=20)
    assert bench.returncode == 130
    assert not list(tmp_path.iterdir())
    assert not [pid for pid in began if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
