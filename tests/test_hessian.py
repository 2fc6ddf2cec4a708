"""The Hessian's regularizers against closed forms and finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_regularizers import bent, random_quadratic
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers
from regularized_lopt.regularizers import Objective

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.PRNGKey(0)


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
