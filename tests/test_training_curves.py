"""What is kept of runs: levels of the loss, and when the test set is evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt.measure import (
    convergence,
    training_curves,
)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), slope=st.floats(0.0, 0.3), noise=st.floats(0.0, 0.5))
def test_levels_keep_the_first_step_that_reached_them(seed, slope, noise):
    rng = np.random.default_rng(seed)
    losses = (np.exp(1 - slope * np.arange(80)) * np.exp(noise * rng.normal(size=80))).astype("f4")

    def step(carry, inputs):
        (poc, levels), (t, loss) = carry, inputs
        params = t.astype(jnp.float32)
        poc = convergence.update(poc, t, loss, params)
        return (poc, levels.update(t, poc.trailing_mean, params)), None

    start = jnp.asarray(-1.0)
    (_, state), _ = jax.lax.scan(
        step,
        (convergence.start(start), training_curves.LossLevels.start(start)),
        (jnp.arange(80), jnp.asarray(losses)),
    )
    means = np.array([losses[t - 19 : t + 1].mean() for t in range(19, 80)])
    for number, at in zip(np.asarray(state.level), np.asarray(state.step), strict=True):
        if at >= 0:
            bound = training_curves.LEVEL_RATIO ** -float(number)
            first = 19 + int(np.argmax(means <= bound * (1 + 1e-5)))
            assert abs(first - at) <= 1 or means[at - 19] <= bound * (1 + 1e-4)
            assert not np.any(means[: at - 19] < bound * (1 - 1e-4))
    kept = np.asarray(state.step) >= 0
    assert kept.any()
    # The params of a slot are those of its step, or of a lower level that was reached with it.
    lowest = int(np.argmax(np.where(kept, state.level, -(10**9))))
    assert float(state.params[lowest]) == float(state.step[lowest])


def test_eval_grid_has_start_quarter_and_end():
    grid = training_curves.eval_grid(2000)
    assert {0, 1, 500, 2000} <= set(grid.tolist())
    assert (np.diff(grid) > 0).all()
    assert training_curves.eval_grid(1).tolist() == [0, 1]
