"""Cross-entropy and accuracy against float64, at every scale of the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regularized_lopt.tasks import classification

SCALES = st.floats(-8, 30).map(lambda power: 10**power)
LABELS = np.arange(40) % 10


def exact(logits, labels):
    """In float64, the difference to the largest logit first: nothing cancels."""
    logits = np.asarray(logits, np.float64)
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    top = logits.max(axis=1)
    others = np.sort(logits - top[:, None], axis=1)[:, :-1]
    return np.log1p(np.exp(others).sum(axis=1)) + (top - own)


def draw(seed, scale, ties):
    logits = np.random.default_rng(seed).normal(size=(40, 10))
    logits[:, :ties] = logits[:, :1]
    return jnp.asarray(scale * logits, jnp.float32)


@given(seed=st.integers(0, 1000), scale=SCALES, ties=st.sampled_from([1, 3, 10]))
def test_cross_entropy_is_exact_at_every_scale(seed, scale, ties):
    logits = draw(seed, scale, ties)
    found = classification.cross_entropy(logits, LABELS)
    # exp(-70) is off by up to 70 units in its last place; below 1e-37 float32 has nothing.
    np.testing.assert_allclose(found, exact(logits, LABELS), rtol=1e-5, atol=1e-37)


@given(seed=st.integers(0, 1000), scale=SCALES, ties=st.sampled_from([1, 3, 10]))
def test_its_gradient_is_softmax_less_the_label_at_every_scale(seed, scale, ties):
    logits = draw(seed, scale, ties)
    grad = jax.grad(lambda at: classification.cross_entropy(at, LABELS).sum())(logits)
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(grad, softmax - np.eye(10)[LABELS], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ties", [1, 3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_derivatives_against_finite_differences(scale, ties):
    with jax.enable_x64(True):
        logits = jnp.asarray(draw(0, scale, ties)[:4], jnp.float64)
        step = scale * np.random.default_rng(1).normal(size=logits.shape)

        def loss(logits):
            return classification.cross_entropy(logits, LABELS[:4]).sum()

        def slope(logits):
            return jnp.vdot(jax.grad(loss)(logits), step)

        curvature = jnp.vdot(jax.grad(slope)(logits), step)
        for function, derivative in ((loss, slope(logits)), (slope, curvature)):
            ends = (function(logits + sign * 1e-4 * step) for sign in (1, -1))
            high, low = map(float, ends)
            assert float(derivative) == pytest.approx((high - low) / 2e-4, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("whole", [False, True])
def test_logits_that_are_not_finite_have_no_loss_no_gradient_and_no_right_answer(value, whole):
    logits = jnp.zeros((2, 10)).at[0, slice(None) if whole else 3].set(value)
    for label in (0, 3):  # argmax would choose one of them.
        labels = jnp.asarray([label, 0])
        found = classification.cross_entropy(logits, labels)
        np.testing.assert_allclose(found, [np.nan, np.log(10)], rtol=1e-6)
        grad = jax.grad(lambda at, to=labels: jnp.sum(classification.cross_entropy(at, to)))(logits)
        assert np.all(np.isnan(grad[0]))
        assert np.all(np.isfinite(grad[1]))
        np.testing.assert_array_equal(classification.is_correct(logits, labels), [False, True])
