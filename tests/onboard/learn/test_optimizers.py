"""Every optimizer against its paper's algorithm written out in float64."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onboard.codec.layout import flat, layout
from onboard.learn import optimizers
from onboard.learn.optimizers import OPTIMIZERS, Adam
from onboard.learn.training import BoardTraining

SHAPES = {"weight": (3, 2), "bias": (3,), "running": (2,), "long": (optimizers.BLOCK + 5,)}
LAYOUT = layout(SHAPES)
LEARNED = [name for name in SHAPES if name != "running"]


@given(
    seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 12), rate=st.floats(1e-5, 0.1),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)), method=st.sampled_from(["fedavg", "spacedml"]),
    decay=st.sampled_from([0.0, 0.05]),
)  # fmt: skip
def test_steps_are_the_papers(
    seed: int, steps: int, rate: float, optimizer: str, method: str, decay: float
) -> None:
    if optimizer == "sgd":
        method = "fedavg"
    knobs = BoardTraining(method=method, optimizer=optimizer, momentum=0.8, weight_decay=decay)
    stepping = OPTIMIZERS[optimizer](LAYOUT, knobs)
    rng = np.random.default_rng(seed)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    weights = flat(LAYOUT, start)
    exact = {name: value.astype(np.float64) for name, value in start.items()}
    m, v, top, velocity = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(4))
    for t in range(1, steps + 1):
        size = 10.0 ** rng.integers(-3, 3)
        gradients = {name: (rng.normal(size=SHAPES[name]) * size).astype(np.float32) for name in LEARNED}
        for name in LEARNED:
            g, decays = gradients[name].astype(np.float64), decay if len(SHAPES[name]) > 1 else 0.0
            if optimizer == "adamw":
                exact[name] *= 1 - rate * decays
            else:
                g += decays * exact[name]
            if optimizer == "sgd":
                velocity[name] = 0.8 * velocity[name] + g
                exact[name] -= rate * velocity[name]
                continue
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g**2
            top[name] = np.maximum(top[name], v[name]) if method == "spacedml" else v[name]
            corrected = np.sqrt(top[name] / (1 - 0.999**t)) + 1e-8
            exact[name] -= rate * (m[name] / (1 - 0.9**t)) / corrected
        stepping.step(weights, gradients, rate)
    near = 1e-5 + 2e-4 * rate * steps * (100 if optimizer == "sgd" else 1)
    for name, shape, first, last in LAYOUT.spans:
        np.testing.assert_allclose(weights[first:last].reshape(shape), exact[name], rtol=1e-5, atol=near)
    assert np.array_equal(weights[9:11], start["running"])
    if isinstance(stepping, Adam):
        np.testing.assert_allclose(stepping.mean()[:6], m["weight"].ravel() / (1 - 0.9**steps), 1e-3, 1e-4)
        np.testing.assert_allclose(
            stepping.curvature()[:6], np.sqrt(top["weight"].ravel() / (1 - 0.999**steps)), rtol=1e-3
        )


def test_before_the_first_step_nothing_is_curved() -> None:
    assert not Adam(LAYOUT).curvature().any()
    assert not Adam(LAYOUT).mean().any()
