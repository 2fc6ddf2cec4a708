"""The point of convergence, found online."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt.measure import (
    convergence,
)


def reference_poc(losses):
    """method: the trailing 20-step mean has not improved for 100 steps; plain Python."""
    best, best_step = np.inf, 0
    for t in range(len(losses)):
        mean = np.mean(losses[t - 19 : t + 1]) if t >= 19 else np.inf
        if mean < best:
            best, best_step = mean, t
        if t - best_step >= 100:
            return t, best_step, True
    return len(losses) - 1, best_step, False


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    slope=st.sampled_from([0.0, 1e-3, 1e-2]),
    noise=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_convergence_is_found_online_where_a_second_look_finds_it(seed, slope, noise):
    rng = np.random.default_rng(seed)
    losses = (2 - slope * np.arange(260) + noise * rng.normal(size=260)).astype(np.float32)

    def step(state, inputs):
        t, loss = inputs
        return convergence.update(state, t, loss, t.astype(jnp.float32)), None

    state, _ = jax.lax.scan(
        step, convergence.start(jnp.asarray(-1.0)), (jnp.arange(260), jnp.asarray(losses))
    )
    # Means of equal losses differ in the last bit between orders of summation.
    if noise > 0:
        at, best_step, declared = reference_poc(losses.astype(np.float64))
        assert bool(state.declared) == declared
        assert int(state.step) == at
        assert int(state.best_step) == best_step
    assert float(state.params) == float(state.step)  # The params of that very step.


@pytest.mark.parametrize(("loss", "declared"), [(2.3, True), (np.nan, False), (np.inf, False)])
def test_convergence_is_declared_on_a_constant_loss_and_not_on_none(loss, declared):
    state, _ = jax.lax.scan(
        lambda state, t: (convergence.update(state, t, jnp.float32(loss), 0.0), None),
        convergence.start(jnp.asarray(0.0)),
        jnp.arange(150),
    )
    assert bool(state.declared) == declared
    assert int(state.step) == (119 if declared else 149)
