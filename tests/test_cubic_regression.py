"""Regression on noisy cubic polynomials."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regularized_lopt import statistics, tasks
from regularized_lopt.measure import cubic_regression
from regularized_lopt.report import (
    optimizer_tables,
)


def test_cubics_are_fitted_as_a_plain_loop_does():
    """SGD with weight decay, patience and all."""
    family = tasks.CubicRegressionFamily()
    optimizer = cubic_regression.sgd(0.1, 0.3)
    fits = cubic_regression.fit(optimizer, family, 2, num_steps=60, patience=5, seed=4)
    for i in range(2):
        key = jax.random.fold_in(jax.random.PRNGKey(4), i)
        cubic_key, init_key = jax.random.split(key)
        cubic = family.sample(cubic_key)
        task = family.task_fn(cubic)
        params = best = task.init(init_key)
        lowest, at = np.inf, 0
        for t in range(60):
            loss, grad = jax.value_and_grad(task.loss)(params, key)
            if loss < lowest and t - at <= 5:
                lowest, at, best = float(loss), t, params
            params = jax.tree.map(lambda p, g: p - 0.3 * (g + 0.1 * p), params, grad)
        assert fits.train_loss[i] == pytest.approx(lowest, rel=1e-4)
        assert fits.stopped[i] == at
        assert fits.norm[i] == pytest.approx(float(optax.tree.norm(best)), rel=1e-4)
        truth = np.asarray(cubic.value(jnp.asarray(fits.grid)))
        residual = np.mean((fits.fit[i] - truth) ** 2)
        assert fits.r2[i] == pytest.approx(1 - residual / np.var(truth), rel=1e-3)


def test_weight_decay_makes_smaller_params():
    found = cubic_regression.early_evidence({}, num_polynomials=12, num_steps=300)
    plain, decayed = found.fits.values()
    difference = statistics.paired_difference(decayed.norm, plain.norm)
    assert difference.high < 0
    header, rows = optimizer_tables.early_evidence_table(found)
    assert [len(row) for row in rows] == [len(header)] * 2
