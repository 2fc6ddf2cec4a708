"""What tests of regularizers are tried on."""

import jax
import jax.numpy as jnp
import numpy as np

A = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
POINT = np.array([1.0, -2.0, 0.5])
ANISOTROPIC = {"w": POINT, "b": np.array(0.7)}


def quadratic(x):
    return 0.5 * x @ A @ x


def wiggly(tree):
    """Not quadratic, several leaves."""
    return jnp.sum(jnp.sin(tree["w"]) ** 2) + jnp.exp(tree["b"]) * jnp.sum(tree["w"] ** 3)


def random_quadratic(seed, n=4):
    rng = np.random.default_rng(seed)
    m = rng.normal(size=(n, n))
    return (m + m.T) / 2, rng.normal(size=n)


def bent(x):
    """A loss whose Hessian changes with x; its trace is known in closed form."""
    return jnp.sum(x**4) + x[0] ** 2 * x[1] + jnp.prod(x)


def assert_trees(ours, theirs, **kwargs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), **(kwargs or {"rtol": 0})
        )
