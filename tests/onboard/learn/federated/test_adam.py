"""Adam against its paper's algorithm written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onboard.learn.federated.local import Adam


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(1e-5, 0.1), st.booleans())
def test_steps_are_the_papers(seed: int, steps: int, rate: float, amsgrad: bool) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=7).astype(np.float32)
    expected, m, v, top = weights.astype(np.float64), np.zeros(7), np.zeros(7), np.zeros(7)
    adam = Adam(7, amsgrad=amsgrad)
    for t in range(1, steps + 1):
        g = (rng.normal(size=7) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.float64(g) ** 2
        top = np.maximum(top, v) if amsgrad else v
        expected = expected - rate * (m / (1 - 0.9**t)) / (np.sqrt(top / (1 - 0.999**t)) + 1e-8)
        adam.step(weights, g.copy(), rate)
    assert weights == pytest.approx(expected, abs=1e-5 + 1e-4 * rate * steps)
    assert adam.mean() == pytest.approx(m / (1 - 0.9**steps), rel=1e-3, abs=1e-4)
    assert adam.curvature() == pytest.approx(np.sqrt(top / (1 - 0.999**steps)), rel=1e-3)


def test_before_the_first_step_nothing_is_curved() -> None:
    assert not Adam(3).curvature().any()
    assert not Adam(3).mean().any()
