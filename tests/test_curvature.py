"""GAM and the Hessian regularizers against closed forms, brute force and each other, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers
from regularized_lopt.regularizers import Objective, Query

KEY = jax.random.PRNGKey(0)


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def random_quadratic(seed, n=4):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(n, n))
    return (m + m.T) / 2, rng.normal(size=n)


def bent(x):
    """A loss whose Hessian changes with x; its trace is known in closed form."""
    return jnp.sum(x**4) + x[0] ** 2 * x[1] + jnp.prod(x)


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


@settings(max_examples=15)
@given(st.integers(0, 2**31 - 1))
def test_hutchinson_is_within_three_standard_errors_of_the_trace(seed):
    a, w = random_quadratic(seed)
    trace = regularizers.HessianTrace(1.0, num_probes=1)

    def loss(x):
        return 0.5 * x["p"] @ a @ x["p"]  # A pytree: probes must cover all of it.

    keys = jax.random.split(jax.random.PRNGKey(seed % 1000), 400)
    draws = np.asarray(
        jax.jit(jax.vmap(lambda k: trace.curvature(Objective.of(loss), {"p": jnp.asarray(w)}, k)))(
            keys
        )
    )
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    # v'Av varies with the off-diagonal alone: of a diagonal matrix every probe has the trace.
    assert abs(draws.mean() - np.trace(a)) < 3 * error + 1e-9


def test_hutchinson_covers_every_leaf_with_independent_signs():
    def loss(tree):
        return (
            0.5 * (2 * tree["a"] ** 2 + 3 * jnp.sum(tree["b"] ** 2)) + 5 * tree["a"] * tree["b"][0]
        )

    point = {"a": jnp.asarray(1.0), "b": jnp.ones(2)}
    keys = jax.random.split(KEY, 600)
    trace = regularizers.HessianTrace(1.0, num_probes=1)
    draws = jax.vmap(lambda k: trace.curvature(Objective.of(loss), point, k))(keys)
    assert set(np.round(np.asarray(draws), 6)) == {8.0 + 10.0, 8.0 - 10.0}  # 2 + 3 + 3 +- 2 * 5.
    assert abs(float(draws.mean()) - 8.0) < 3 * float(draws.std()) / np.sqrt(600)


@settings(max_examples=15)
@given(st.integers(0, 2**31 - 1))
def test_the_frobenius_norm_of_a_quadratic(seed):
    a, w = random_quadratic(seed, 3)
    keys = jax.random.split(jax.random.PRNGKey(seed % 1000), 400)
    frobenius = regularizers.HessianFrobenius(1.0, num_probes=1)
    draws = np.asarray(
        jax.vmap(
            lambda k: frobenius.curvature(
                Objective.of(lambda x: 0.5 * x @ a @ x), jnp.asarray(w), k
            )
        )(keys)
    )
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    assert abs(draws.mean() - np.sum(a**2)) < 3 * error + 1e-9


@settings(max_examples=15)
@given(st.floats(1, 10), st.booleans(), st.floats(0, 0.5), st.integers(0, 2**31 - 1))
def test_power_iteration_finds_the_signed_top_eigenvalue(top, negative, ratio, seed):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    values = np.array([-top if negative else top, *(top * ratio * rng.uniform(-1, 1, size=3))])
    a = q @ np.diag(values) @ q.T
    estimate = regularizers.HessianTop(1.0, num_iterations=40).curvature(
        Objective.of(lambda x: 0.5 * x @ a @ x), jnp.asarray(rng.normal(size=4)), KEY
    )
    assert float(estimate) == pytest.approx(values[0], rel=1e-4)


def test_the_trace_s_gradient_against_its_closed_form():
    """tr H of sum x^4 is 12 sum x^2, whose gradient is 24 x; the diagonal leaves no noise."""
    x = jnp.asarray([0.5, -1.0, 2.0])
    regularizer = regularizers.HessianTrace(0.01, num_probes=2)
    _, grad = regularizer.value_and_grad(lambda x: jnp.sum(x**4), x, key=KEY)
    np.testing.assert_allclose(grad, 4 * x**3 + 0.01 * 24 * x, rtol=1e-10)
    value = regularizer.value(lambda x: jnp.sum(x**4), x, key=KEY)
    np.testing.assert_allclose(value, jnp.sum(x**4) + 0.01 * 12 * jnp.sum(x**2), rtol=1e-10)


def test_the_frobenius_gradient_against_finite_differences():
    x = jnp.asarray([0.5, -1.0, 2.0])
    regularizer = regularizers.HessianFrobenius(0.1)
    _, grad = regularizer.value_and_grad(bent, x, key=KEY)
    h = 1e-5
    numeric = [
        (regularizer.value(bent, x + h * e, key=KEY) - regularizer.value(bent, x - h * e, key=KEY))
        / (2 * h)
        for e in np.eye(3)
    ]
    np.testing.assert_allclose(grad, numeric, rtol=1e-6)


@pytest.mark.parametrize("name", ["hessian_trace", "hessian_frobenius", "hessian_top"])
def test_probes_are_fresh_at_every_key(name):
    x = jnp.asarray([0.5, -1.0, 2.0])
    regularizer = regularizers.get(
        name, **({"num_iterations": 1} if "top" in name else {"num_probes": 1})
    )
    values = {float(regularizer.value(bent, x, key=jax.random.PRNGKey(i))) for i in range(8)}
    assert len(values) > 1
    again = float(regularizer.value(bent, x, key=jax.random.PRNGKey(0)))
    assert again == float(regularizer.value(bent, x, key=jax.random.PRNGKey(0)))
