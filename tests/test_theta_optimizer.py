"""The optimizers of theta."""

import gin
import jax
import numpy as np
import optax
import pytest

from regularized_lopt.outer_training import theta_optimizer


def test_theta_optimizers_are_optax_s():
    grads = {"w": np.array([3.0, 4.0])}
    params = {"w": np.array([0.0, 0.0])}
    gin.clear_config()
    gin.bind_parameter("theta_learning_rate.learning_rate", 0.1)
    sgd = theta_optimizer("sgd", clip_norm=1.0)
    updates, _ = sgd.update(grads, sgd.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.06, -0.08], rtol=1e-6)
    gin.bind_parameter("theta_learning_rate.schedule", "cosine")
    with pytest.raises(ValueError, match=r"needs theta_learning_rate\.schedule_steps"):
        theta_optimizer()
    gin.bind_parameter("theta_learning_rate.schedule_steps", 10)
    gin.bind_parameter("theta_learning_rate.final_fraction", 0.5)
    cosine = theta_optimizer("sgd", clip_norm=None)
    state = cosine.init(params)
    for _ in range(10):
        _, state = cosine.update(grads, state, params)
    updates, _ = cosine.update(grads, state, params)
    np.testing.assert_allclose(updates["w"], [-0.15, -0.2], rtol=1e-6)
    assert isinstance(theta_optimizer("adam"), optax.GradientTransformation)
    with pytest.raises(ValueError, match="Did you mean 'adam'"):
        theta_optimizer("adan")


def test_elements_are_clamped_before_the_norm_is_clipped():
    grads = {"w": np.array([3.0, -4.0, 0.5])}
    gin.clear_config()
    gin.bind_parameter("theta_learning_rate.learning_rate", 1.0)
    for clip_norm, wanted in ((None, [-1.0, 1.0, -0.5]), (0.75, [-0.5, 0.5, -0.25])):
        sgd = theta_optimizer("sgd", clip_norm=clip_norm, clip_value=1.0)
        updates, _ = sgd.update(grads, sgd.init(grads), grads)
        np.testing.assert_allclose(updates["w"], wanted, rtol=1e-6)
    with pytest.raises(ValueError, match=r"theta_optimizer\.clip_value = 0: it must be greater"):
        theta_optimizer(clip_value=0)


def test_adamw_shrinks_matrices_alone():
    """By the learning rate times the decay, at a gradient of 0."""
    gin.clear_config()
    gin.bind_parameter("theta_learning_rate.learning_rate", 0.1)
    theta = {"w": np.full((2, 3), 2.0), "b": np.full(3, 2.0), "scale": np.asarray(2.0)}
    still = jax.tree.map(np.zeros_like, theta)
    for decay, left in ((0.5, 1.9), (None, 1.98), (0.0, 2.0)):
        adamw = theta_optimizer("adamw", decay=decay)
        updates, _ = adamw.update(still, adamw.init(theta), theta)
        new = optax.apply_updates(theta, updates)
        np.testing.assert_allclose(new["w"], np.full((2, 3), left), rtol=1e-6)
        np.testing.assert_array_equal(new["b"], theta["b"])
        np.testing.assert_array_equal(new["scale"], theta["scale"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "adamw", "decay": -0.1},
            r"theta_optimizer\.decay = -0\.1: it must be in \[0, 1\]",
        ),
        ({"name": "adam", "decay": 0.1}, r"decay = 0\.1 is of AdamW, not of 'adam'"),
        ({"name": "adamw", "momentum": 0.9}, r"momentum = 0\.9 is of SGD, not of 'adamw'"),
    ],
)
def test_what_an_optimizer_of_theta_does_not_read_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        theta_optimizer(**arguments)
