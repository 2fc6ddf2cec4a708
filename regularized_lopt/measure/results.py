"""All results of a study: a dataset per task, and what is known of the optimizers beside them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from regularized_lopt import errors
from regularized_lopt.measure.cubic_regression import EarlyEvidence
from regularized_lopt.measure.update_curves import UpdateCurve

try:
    import xarray as xr
except ModuleNotFoundError:
    errors.check_installed("study", "xarray", "h5netcdf")
    raise

POINTS = ("poc", "completion")


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """All that the page of a study is made from.

    Attributes:
      title, lead: of the page.
      tasks: their datasets, see `dataset`.
      primary: (optimizer, property) of the declared tests, or None.
      alpha, test: of these, see `statistics.decide`.
      seconds_per_step: by task and optimizer, of one inner step of one run, where it was timed.
      chosen: by optimizer, the place of the meta-training seed that validation chose.
      meta_training: the curves of meta-training, by optimizer and seed, see `load_metrics`.
      validation_losses: of meta-training (nats), by optimizer, one per seed.
      updates: updates by gradient, by optimizer, meta-training seed and scale.
      early_evidence: the regression on cubic polynomials, if it was asked for.
      spent: seconds of computing, by kind of result.
    """

    title: str
    lead: str
    tasks: Sequence[xr.Dataset]
    primary: tuple[str, str] | None = None
    alpha: float = 0.05
    test: str = "auto"
    seconds_per_step: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    chosen: Mapping[str, int] = dataclasses.field(default_factory=dict)
    meta_training: Mapping[str, Mapping[int, Mapping[str, np.ndarray]]] = dataclasses.field(
        default_factory=dict
    )
    validation_losses: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    updates: Mapping[str, Sequence[Sequence[UpdateCurve]]] = dataclasses.field(default_factory=dict)
    early_evidence: EarlyEvidence | None = None
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)


def paired(own: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both, [seeds, ...] each, in the pairs of `seed_pairs`: [pairs, ...]."""
    first, second = zip(*seed_pairs(len(own), len(reference)), strict=True)
    return own[list(first)], reference[list(second)]


def seed_pairs(own: int, reference: int) -> list[tuple[int, int]]:
    """Places of the meta-training seeds that are compared, of two numbers of seeds.

    One seed (a baseline has no more) goes with every seed of the other; of two unequal numbers, the
    seeds that both have are paired.
    """
    if 1 in (own, reference):
        return list(itertools.product(range(own), range(reference)))
    return [(place, place) for place in range(min(own, reference))]
