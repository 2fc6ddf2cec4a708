"""Gradients that are estimated by evolution strategies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make, run

from regularized_lopt import LSTMLOpt, tasks
from regularized_lopt.tasks.es_wrapped import ESTask, evolution_gradient

KEY = jax.random.PRNGKey(0)


def test_estimates_have_the_gradient_as_their_mean_and_the_known_variance():
    """Of a quadratic: sum of variances (d + 1) ||g||^2 over the number of pairs."""
    curvature = jnp.asarray([1.0, 2.0, 3.0, 0.5])
    params = {"a": jnp.asarray([1.0, -1.0]), "b": jnp.asarray([0.5, 2.0])}

    def loss_and_aux(params, key, batch):
        del key
        flat = jnp.concatenate([params["a"], params["b"]])
        return 0.5 * jnp.sum(curvature * flat**2) + batch, {"aux": flat[0]}

    estimated = evolution_gradient(loss_and_aux, 2, 0.1)
    assert estimated(params, KEY, 1.0) == loss_and_aux(params, KEY, 1.0)
    grad = jax.grad(estimated, has_aux=True)
    found, _ = jax.vmap(lambda key: grad(params, key, 1.0))(jax.random.split(KEY, 20_000))
    flat = np.concatenate([found["a"], found["b"]], axis=1).astype(np.float64)
    exact = np.asarray(curvature) * np.array([1.0, -1.0, 0.5, 2.0])
    np.testing.assert_allclose(flat.mean(axis=0), exact, atol=4 * np.sqrt(2.5 * 15 / 20_000))
    assert flat.var(axis=0).sum() == pytest.approx(5 * np.sum(exact**2) / 2, rel=0.05)


def test_a_network_s_losses_are_kept_and_optimizers_are_meta_trained_on_it():
    task = tasks.get("ESWrapped_1pair_ImageMLP_Digits_20_Relu")
    plain = tasks.get("ImageMLP_Digits_20_Relu")
    params, batch = task.init(KEY), next(task.datasets.train)
    assert task.loss(params, KEY, batch) == plain.loss(params, KEY, batch)
    one, other = (jax.grad(task.loss)(params, jax.random.PRNGKey(k), batch) for k in (1, 2))
    assert not np.allclose(jax.tree.leaves(one)[1], jax.tree.leaves(other)[1])
    lopt = LSTMLOpt(hidden_size=2, num_layers=1)
    (grad,), (loss,), _ = run(make(task, length=2, lopt=lopt, unroll_length=2), lopt.init(KEY))
    assert np.isfinite(loss)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(grad))


def test_refuses_no_pairs_and_no_noise():
    task = tasks.get("ImageMLP_Digits_20_Relu")
    with pytest.raises(ValueError, match=r"ESTask\.num_pairs = 0"):
        ESTask("any", task, 0)
    with pytest.raises(ValueError, match=r"ESTask\.std = 0"):
        ESTask("any", task, 1, 0.0)
    with pytest.raises(ValueError, match=r"ESTask\.std = 1e-30: .* so that float32 has its square"):
        ESTask("any", task, 1, 1e-30)
    with pytest.raises(TypeError, match="'Digits': it must be a ResidentTask"):
        ESTask("any", "Digits", 1)
