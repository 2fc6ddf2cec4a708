"""Autoencoders of images."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_optimization.tasks.fixed import image_mlp_ae

from regularized_lopt import tasks

KEY = jax.random.PRNGKey(0)


def test_the_loss_is_upstream_s():
    task = tasks.get("ImageAE_Digits_32x8x32_Relu")
    params, batch = task.init(KEY), next(task.datasets.train)
    theirs = hk.transform(image_mlp_ae._fc_ae_loss_fn([32, 8, 32], jax.nn.relu))
    same = jax.tree.unflatten(jax.tree.structure(theirs.init(KEY, batch)), jax.tree.leaves(params))
    expected, grad = jax.value_and_grad(theirs.apply)(same, KEY, batch)
    loss, own = jax.value_and_grad(task.loss)(params, KEY, batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(grad), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-8)
    assert not task.has_accuracy
    assert float(task.normalizer(jnp.nan)) == float(task.normalizer(jnp.inf)) == 1.0
