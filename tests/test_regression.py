"""Regression of cubic polynomials."""

import jax
import numpy as np
from learned_optimization import eval_training

from regularized_lopt import tasks, upstream

KEY = jax.random.PRNGKey(0)


def test_cubic_regression_learns_the_polynomial():
    task = tasks.get("CubicRegression")
    curves = eval_training.single_task_training_curves(
        task, upstream.Adam(3e-2), 400, KEY, eval_every=400, last_eval_batches=1
    )
    assert curves["eval/train/r2"][-1] > 0.8
    cubic = task.cubic
    x = np.asarray(cubic.x, np.float64)
    powers = np.stack([x**0, x, x**2, x**3]).T @ np.asarray(cubic.coefficients, np.float64)
    residual = np.asarray(cubic.y) - powers
    assert 0.1 < residual.std() < 0.6  # The noise of 0.3, on 30 points.
