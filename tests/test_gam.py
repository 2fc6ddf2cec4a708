"""GAM against closed forms, brute force and its authors' algorithm, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_regularizers import bent, random_quadratic
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers
from regularized_lopt.regularizers import Objective, Query

pytestmark = pytest.mark.usefixtures("x64")


@settings(max_examples=30)
@given(st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_gam_s_flatness_gradient_on_a_quadratic(rho, seed):
    """g = Aw, f = A g/|g|, w_adv = w + rho f/|f|, grad R = rho A g_adv/|g_adv|."""
    a, w = random_quadratic(seed)
    g = a @ w
    f = a @ g / np.linalg.norm(g)
    g_adv = a @ (w + rho * f / np.linalg.norm(f))
    expected = rho * a @ g_adv / np.linalg.norm(g_adv)
    gam = regularizers.GAM(rho, strength=0.7, form="hvp")

    def loss(x):
        return 0.5 * x @ a @ x

    x = jnp.asarray(w)
    np.testing.assert_allclose(
        gam.flatness_gradient(Query(Objective.of(loss), x, jax.grad(loss)(x))),
        expected,
        rtol=1e-8,
        atol=1e-11,
    )
    _, grad = gam.value_and_grad(loss, x)
    np.testing.assert_allclose(grad, g + 0.7 * expected, rtol=1e-8, atol=1e-11)
    value = gam.value(loss, x)
    np.testing.assert_allclose(
        value, loss(x) + 0.7 * rho * np.linalg.norm(g_adv), rtol=1e-8, atol=1e-11
    )
    # As a value, autodiff gives the same gradient: the perturbation is a constant in it.
    np.testing.assert_allclose(
        jax.grad(lambda x: gam.value(loss, x))(x), grad, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("seed", range(6))
def test_gam_s_r_against_brute_force_over_the_disc(seed):
    """rho max ||grad L|| over a disc in 2-D: one ascent step is within 5% for a small radius."""
    rng = np.random.default_rng(seed)
    centre, rho = rng.normal(size=2), 0.05
    gam = regularizers.GAM(rho, form="hvp")
    ours = float(gam.value(bent, jnp.asarray(centre)) - bent(jnp.asarray(centre)))
    radii, angles = np.meshgrid(np.linspace(0, rho, 40), np.linspace(0, 2 * np.pi, 200))
    grid = centre + np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1).reshape(-1, 2)
    norms = np.linalg.norm(jax.vmap(jax.grad(bent))(jnp.asarray(grid)), axis=-1)
    assert ours == pytest.approx(rho * norms.max(), rel=0.05)
    assert ours > rho * float(jnp.linalg.norm(jax.grad(bent)(jnp.asarray(centre))))


@pytest.mark.parametrize("seed", range(4))
def test_gam_s_two_forms_agree_as_the_differences_shrink(seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=3))
    exact = regularizers.GAM(0.1, form="hvp").flatness_gradient(
        Query(Objective.of(bent), x, jax.grad(bent)(x))
    )
    errors = []
    for r in (1e-3, 1e-5):
        gam = regularizers.GAM(0.1, form="difference", r=r)
        differences = gam.flatness_gradient(Query(Objective.of(bent), x, jax.grad(bent)(x)))
        errors.append(float(jnp.linalg.norm(differences - exact) / jnp.linalg.norm(exact)))
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 20  # First order in r.
    values = [regularizers.GAM(0.1, form=f, r=1e-5).value(bent, x) for f in ("hvp", "difference")]
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_gam_s_published_direction():
    """The authors' algorithm, written out in NumPy."""
    a, w = random_quadratic(5)
    rho, r, b0, b1, gamma = 0.2, 0.03, 0.3, 0.4, 0.5

    def unit(v):
        return v / np.linalg.norm(v)

    g0 = a @ w
    g1 = a @ (w + r * unit(g0))
    d = rho * unit(g1 - g0)
    g2 = a @ (w + d)
    g3 = a @ (w + d + r * unit(g2))
    n, m = b1 * g1 + (1 - b1) * g3, b0 * g0 + (1 - b0) * g2
    expected = n - gamma * (m - (m @ n) / (n @ n) * n)
    gam = regularizers.GAM(rho, r=r, beta_0=b0, beta_1=b1, gamma=gamma)
    _, grad = gam.value_and_grad(lambda x: 0.5 * x @ a @ x, jnp.asarray(w))
    np.testing.assert_allclose(grad, expected, rtol=1e-9)
