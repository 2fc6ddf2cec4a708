"""Slices through the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regularized_lopt import tasks
from regularized_lopt.measure import (
    loss_slices,
)

KEY = jax.random.PRNGKey(0)
DIGITS = "ImageMLP_Digits_20_Relu"


def test_slices_are_normalized_by_filter(lopt_file):
    task = tasks.get(DIGITS)
    params = task.init(KEY)
    direction = loss_slices.filter_direction(params, KEY)
    for d, p in zip(*map(jax.tree.leaves, (direction, params)), strict=True):
        axes = tuple(range(p.ndim - 1)) if p.ndim > 1 else None
        np.testing.assert_allclose(
            np.sum(np.square(d), axis=axes), np.sum(np.square(p), axis=axes), rtol=1e-4
        )
    slices = loss_slices.loss_slices(task, params, num_points=5, num_examples=64)
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(len(raw["label"]))[:64]
    batch = task.datasets.normalize({name: jnp.asarray(v[chosen]) for name, v in raw.items()})
    assert slices.line[2] == pytest.approx(float(task.loss(params, KEY, batch)), rel=1e-5)
    np.testing.assert_array_equal(slices.plane[:, 2], slices.line)
