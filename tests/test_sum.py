"""Sums of regularizers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_regularizers import ANISOTROPIC, assert_trees, wiggly

from regularized_lopt import regularizers

pytestmark = pytest.mark.usefixtures("x64")


def test_a_sum_is_the_sum_of_the_corrections_and_evaluates_the_gradient_once():
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    calls = []

    def counted(at):
        jax.debug.callback(lambda: calls.append(0))
        return wiggly(at)

    terms = [(0.5, "sam"), (2.0, regularizers.L2(0.1)), (1.0, regularizers.ASAM(0.3))]
    _, total = regularizers.Sum(terms).value_and_grad(counted, point)
    jax.block_until_ready(total)
    jax.effects_barrier()
    assert len(calls) == 3  # At the point, and once each for SAM and ASAM.
    plain = jax.grad(wiggly)(point)
    expected = plain
    for weight, term in terms:
        _, grad = regularizers.get(term).value_and_grad(wiggly, point)
        expected = jax.tree.map(lambda e, g, p, w=weight: e + w * (g - p), expected, grad, plain)
    assert_trees(total, expected, rtol=1e-12)
    value = regularizers.Sum(terms).value(wiggly, point)
    parts = [w * (regularizers.get(t).value(wiggly, point) - wiggly(point)) for w, t in terms]
    np.testing.assert_allclose(value, wiggly(point) + sum(parts), rtol=1e-12)


def test_additive_sums_are_eq_21_read_literally():
    point = jax.tree.map(jnp.asarray, ANISOTROPIC)
    (plain, plain_grad), (sam, sam_grad) = (
        (r.value(wiggly, point), r.value_and_grad(wiggly, point)[1])
        for r in (regularizers.get("none"), regularizers.get("sam"))
    )
    total = regularizers.Sum([(0.3, "sam")], mode="additive")
    np.testing.assert_allclose(total.value(wiggly, point), plain + 0.3 * sam, rtol=1e-12)
    expected = jax.tree.map(lambda g, r: g + 0.3 * r, plain_grad, sam_grad)
    assert_trees(total.value_and_grad(wiggly, point)[1], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="Did you mean 'additive'"):
        regularizers.Sum([(1.0, "sam")], mode="addition")
