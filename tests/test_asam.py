"""ASAM against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers

pytestmark = pytest.mark.usefixtures("x64")


@settings(max_examples=25)
@given(st.floats(0, 2), st.integers(0, 2**31 - 1))
def test_asam_against_numpy(rho, seed):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(4, 4))
    a, w = m @ m.T, rng.normal(size=4)
    t = np.abs(w) + 0.01
    g = a @ w
    e = rho * t**2 * g / np.linalg.norm(t * g)
    _, grad = regularizers.ASAM(rho).value_and_grad(lambda x: 0.5 * x @ a @ x, jnp.asarray(w))
    np.testing.assert_allclose(grad, a @ (w + e), rtol=1e-9, atol=1e-12)
