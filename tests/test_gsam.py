"""GSAM against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers_regularizers import POINT, A, quadratic
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers

pytestmark = pytest.mark.usefixtures("x64")


@settings(max_examples=25)
@given(st.floats(0.01, 2), st.floats(0, 2), st.integers(0, 2**31 - 1))
def test_gsam_adds_only_what_is_orthogonal_to_g_p(rho, alpha, seed):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(4, 4))
    a, w = m @ m.T, rng.normal(size=4)

    def loss(x):
        return 0.5 * x @ a @ x

    g = a @ w
    g_p = a @ (w + rho * g / np.linalg.norm(g))
    _, grad = regularizers.GSAM(rho, alpha).value_and_grad(loss, jnp.asarray(w))
    added = np.asarray(grad) - g_p
    assert abs(added @ g_p) <= 1e-6 * np.linalg.norm(g_p) * np.linalg.norm(g)
    # What is removed lies in the plane of g and g_p: alpha of g's part across g_p.
    np.testing.assert_allclose(
        added, -alpha * (g - (g @ g_p) / (g_p @ g_p) * g_p), rtol=1e-7, atol=1e-9
    )


def test_the_surrogate_gap_to_second_order():
    """On a quadratic, L(w + e) - L(w) = rho ||g|| + rho^2 / 2 g'Ag / ||g||^2 exactly."""
    rho, alpha, w = 0.2, 0.7, jnp.asarray(POINT)
    g = A @ POINT
    gap = rho * np.linalg.norm(g) + rho**2 / 2 * (g @ A @ g) / (g @ g)
    value = regularizers.GSAM(rho, alpha).value(quadratic, w)
    np.testing.assert_allclose(value, quadratic(w) + (1 + alpha) * gap, rtol=1e-10)
