"""Schedules of the outer step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_regularizers import ANISOTROPIC, assert_trees, wiggly

from regularized_lopt import regularizers

pytestmark = pytest.mark.usefixtures("x64")


def test_schedules_are_read_at_the_outer_step():
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    sam = regularizers.SAM(optax.linear_schedule(0.1, 0.3, 10))
    _, scheduled = jax.jit(lambda s: sam.value_and_grad(wiggly, point, step=s))(jnp.asarray(5))
    _, constant = regularizers.SAM(0.2).value_and_grad(wiggly, point)
    assert_trees(scheduled, constant, rtol=1e-6)  # optax computes in float32.
    rate = optax.cosine_decay_schedule(1e-3, 100, 0.1)
    rho = regularizers.proportional_schedule(0.05, 0.25, rate, 100)
    np.testing.assert_allclose([rho(0), rho(100)], [0.25, 0.05], rtol=1e-5)
    share = (rate(30) - rate(100)) / (rate(0) - rate(100))
    np.testing.assert_allclose(rho(30), 0.05 + 0.2 * share, rtol=1e-5)
    constant = regularizers.proportional_schedule(0.1, 0.4, optax.constant_schedule(1.0), 10)
    assert constant(3) == 0.4  # As the authors have it: the maximum.
