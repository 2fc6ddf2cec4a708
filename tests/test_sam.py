"""SAM, and what every regularizer has from its base."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers_regularizers import ANISOTROPIC, POINT, A, quadratic, wiggly
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import regularizers

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.smoke
def test_sam_on_a_quadratic_is_its_closed_form():
    rho = 0.3
    g = A @ POINT
    value, grad = regularizers.SAM(rho).value_and_grad(quadratic, jnp.asarray(POINT))
    np.testing.assert_allclose(grad, A @ (POINT + rho * g / np.linalg.norm(g)), rtol=1e-12)
    np.testing.assert_allclose(value, 0.5 * POINT @ A @ POINT, rtol=1e-12)  # The PLAIN value.
    perturbed = POINT + rho * g / np.linalg.norm(g)
    np.testing.assert_allclose(
        regularizers.SAM(rho).value(quadratic, jnp.asarray(POINT)),
        0.5 * perturbed @ A @ perturbed,
        rtol=1e-12,
    )


@pytest.mark.smoke
def test_sam_agrees_with_optax():
    rho, rate = 0.1, 0.5
    transformation = optax.contrib.sam(
        optax.sgd(rate),
        optax.chain(optax.contrib.normalize(), optax.sgd(rho)),
        sync_period=2,
        opaque_mode=True,
    )
    params = jax.tree.map(jnp.asarray, ANISOTROPIC)
    state = transformation.init(params)
    grad_fn = jax.grad(wiggly)
    updates, _ = transformation.update(
        grad_fn(params), state, params, grad_fn=lambda p, _: grad_fn(p)
    )
    _, ours = regularizers.SAM(rho).value_and_grad(wiggly, params)
    for theirs, mine in zip(jax.tree.leaves(updates), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(theirs, -rate * mine, rtol=1e-10)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 2.5])
def test_weight_scales_the_correction(weight):
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    plain = jax.grad(wiggly)(point)
    _, full = regularizers.SAM(0.2).value_and_grad(wiggly, point)
    _, mixed = regularizers.SAM(0.2, weight=weight).value_and_grad(wiggly, point)
    for g, r, m in zip(*map(jax.tree.leaves, (plain, full, mixed)), strict=True):
        np.testing.assert_allclose(m, g + weight * (r - g), rtol=1e-12)
        if weight == 0:
            np.testing.assert_array_equal(m, g)
        if weight == 1:
            np.testing.assert_array_equal(m, r)


@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_the_value_s_derivative_is_that_at_a_fixed_perturbation(weight):
    """In optimizee space autodiff carries the value to theta; e is a constant in it."""
    sam = regularizers.SAM(0.2, weight=weight)
    base = jax.tree.map(jnp.asarray, ANISOTROPIC)

    def through(scale):
        return sam.value(wiggly, jax.tree.map(lambda leaf: scale * leaf, base))

    g = jax.grad(wiggly)(base)
    norm = float(optax.tree.norm(g))
    e = jax.tree.map(lambda leaf: 0.2 * leaf / norm, g)

    def frozen(scale):
        at = jax.tree.map(lambda leaf: scale * leaf, base)
        shifted = jax.tree.map(jnp.add, at, e)
        return (1 - weight) * wiggly(at) + weight * wiggly(shifted)

    h = 1e-6
    finite_difference = (frozen(1 + h) - frozen(1 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(through)(1.0), finite_difference, rtol=1e-7)


def test_a_zero_gradient_gives_no_perturbation_and_no_nan():
    value, grad = regularizers.SAM(0.1).value_and_grad(quadratic, jnp.zeros(3))
    np.testing.assert_array_equal(grad, np.zeros(3))
    assert float(regularizers.SAM(0.1).value(quadratic, jnp.zeros(3))) == value == 0.0


def test_aux_is_that_of_the_unperturbed_pass():
    def with_aux(x):
        return quadratic(x), x

    (value, aux), _ = regularizers.SAM(0.1).value_and_grad(
        with_aux, jnp.asarray(POINT), has_aux=True
    )
    np.testing.assert_array_equal(aux, POINT)
    assert float(value) == pytest.approx(0.5 * POINT @ A @ POINT)


@settings(max_examples=40)
@given(
    st.floats(0, 3),
    st.lists(st.floats(-5, 5), min_size=1, max_size=6).filter(lambda x: np.linalg.norm(x) > 1e-3),
)
def test_the_perturbation_has_norm_rho(rho, coordinates):
    point = jnp.asarray(np.array(coordinates))
    seen = []

    def grad_fn(at):
        seen.append(np.asarray(at))
        return at

    query = regularizers.Query(regularizers.Objective(grad_fn), point, point)
    regularizers.SAM(rho).gradient(query)
    if rho == 0:
        assert not seen  # rho = 0 is plain, and costs no second gradient.
    else:
        assert np.linalg.norm(seen[0] - np.asarray(point)) == pytest.approx(rho, rel=1e-9)


def test_refuses_negative_parameters():
    with pytest.raises(ValueError, match=r"SAM.rho = -0.1: it must be 0 or greater"):
        regularizers.SAM(-0.1)
    with pytest.raises(ValueError, match=r"SAM.weight = -1"):
        regularizers.SAM(weight=-1)
