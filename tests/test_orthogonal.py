"""Soft orthogonality, in closed form."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regularized_lopt import regularizers

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
POINT = {
    "tall": RNG.normal(size=(5, 3)),
    "wide": RNG.normal(size=(1, 4)),
    "kernel": RNG.normal(size=(2, 2, 3, 4)),
    "vector": RNG.normal(size=6),
    "scalar": np.asarray(0.5),
}


def loss(point):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(point))


def distance(w):
    """||W'W - I||^2 by singular values: sum of (s^2 - 1)^2."""
    return np.sum((np.linalg.svd(w, compute_uv=False) ** 2 - 1) ** 2)


def test_value_and_gradient_are_the_closed_form():
    """The gradient of ||W'W - I||^2 is 4 W (W'W - I)."""
    point = jax.tree.map(jnp.asarray, POINT)
    matrices = {
        "tall": POINT["tall"],
        "wide": POINT["wide"],
        "kernel": POINT["kernel"].reshape(12, 4),
    }
    orthogonal = regularizers.Orthogonal(strength=0.3)
    value, grad = orthogonal.value_and_grad(loss, point)
    total = orthogonal.value(loss, point) - value
    np.testing.assert_allclose(total, 0.3 * sum(map(distance, matrices.values())), rtol=1e-10)
    for name, plain in jax.grad(loss)(point).items():
        added = 0.0
        if name in matrices:
            w = matrices[name]
            added = 0.3 * 4 * w @ (w.T @ w - np.eye(w.shape[1]))
            added = added.reshape(plain.shape)
        np.testing.assert_allclose(grad[name], plain + added, rtol=1e-10, atol=1e-10)


def test_orthogonal_matrices_of_any_shape_are_its_minimum():
    q = np.linalg.qr(RNG.normal(size=(5, 3)))[0]
    for w in (q, q.T):
        point = jnp.asarray(w)
        value, grad = regularizers.Orthogonal(2.0).value_and_grad(lambda p: 0.0 * p.sum(), point)
        np.testing.assert_allclose(grad, np.zeros_like(w), atol=1e-12)
        found = regularizers.Orthogonal(2.0).value(lambda p: 0.0 * p.sum(), point)
        assert float(found - value) == pytest.approx(0.0, abs=1e-20)


def test_without_matrices_it_is_plain_and_gin_knows_it():
    gin.parse_config("Orthogonal.strength = 0.5")
    orthogonal = regularizers.get("orthogonal")
    assert orthogonal.strength == 0.5
    point = {"b": jnp.ones(3)}
    np.testing.assert_array_equal(
        orthogonal.value_and_grad(loss, point)[1]["b"], jax.grad(loss)(point)["b"]
    )
