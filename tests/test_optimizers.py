"""Baselines behind the interface of a meta-test."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regularized_lopt.measure import optimizers as optimizers_lib


@pytest.mark.parametrize("name", ["SGD", "Momentum", "Adam", "SGD+SAM", "Adam+SAM"])
def test_baselines_are_optax_s(name):
    """Two steps on a quadratic, against optax driven by hand; SAM's ascent written out."""
    a = jnp.asarray([1.0, 4.0])
    grad_fn = jax.grad(lambda p: 0.5 * jnp.sum(a * p**2))
    base = {
        "SGD": optax.sgd(0.1),
        "Momentum": optax.sgd(0.1, momentum=0.9),
        "Adam": optax.adam(0.1),
    }[name.removesuffix("+SAM")]
    params = expected = jnp.asarray([1.0, -1.0])
    optimizer = optimizers_lib.baseline(name, 0.1)
    opt = optimizer.make(optimizer.hyper)
    state, by_hand = opt.init(params), base.init(params)
    for _ in range(2):
        at = opt.get_params(state)
        state = opt.update(state, grad_fn(at), loss=0.0, grad_fn=grad_fn)
        g = grad_fn(expected)
        if name.endswith("SAM"):
            g = grad_fn(expected + optimizers_lib.SAM_RHO * g / jnp.linalg.norm(g))
        updates, by_hand = base.update(g, by_hand, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(opt.get_params(state), expected, rtol=1e-5)
    assert optimizer.gradients_per_step == (2 if name.endswith("SAM") else 1)
