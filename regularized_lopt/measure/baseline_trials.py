"""Settings that are tried to tune baselines of which more than a learning rate is searched."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from regularized_lopt import errors
from regularized_lopt.configurable import configurable

Settings = Mapping[str, np.ndarray]
"""By name, [trials]."""


@configurable()
def nadamw_trials(num_trials: int = 100, seed: int = 0) -> Settings:
    """What the baseline NAdamW tries: settings drawn independently of each other.

    Log-uniform are the learning rate in [1e-5, 0.1], 1 - b1 in [1e-3, 1], 1 - b2 in [1e-5, 0.1],
    eps in [1e-10, 1e-2], and the decoupled weight decay, times the rate, in [1e-5, 0.1] or, in half
    of the trials, 0. Rates are constant in training.

    Args:
      num_trials: the budget of the search, > 0.
      seed: of the draw, 0 to 2^32 - 1.
    """
    errors.check_count("nadamw_trials.num_trials", num_trials, most=100_000)
    errors.check_seed("nadamw_trials.seed", seed)
    rng = np.random.default_rng(seed)
    # Row by row, so that more trials begin with the fewer ones.
    draws = rng.random((num_trials, 6))

    def between(column: int, low: float, high: float) -> np.ndarray:
        return low * (high / low) ** draws[:, column]

    return {
        "learning_rate": between(0, 1e-5, 0.1),
        "b1": 1 - between(1, 1e-3, 1.0),
        "b2": 1 - between(2, 1e-5, 0.1),
        "eps": between(3, 1e-10, 1e-2),
        "weight_decay": between(4, 1e-5, 0.1) * (draws[:, 5] < 0.5),
    }
