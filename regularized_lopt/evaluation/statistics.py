"""Numbers with their uncertainty: never a bare mean."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over runs (deviation 0 for a single run)."""

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.std:.2g}"


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over paired runs with a bootstrap interval.

    Attributes:
      mean: of the differences.
      low, high: ends of the interval (percentile bootstrap); equal to the mean where all
        differences are.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3g} [{self.low:+.3g}, {self.high:+.3g}]"


def summarize(values: np.ndarray) -> Summary:
    """Mean and deviation of one number per run."""
    return Summary(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    )


def paired_difference(
    a: np.ndarray, b: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> PairedDifference:
    """a - b, run by run: both have the same inits and batches, so their common noise cancels.

    Args:
      a, b: one number per run, in the same order of runs.
      confidence: of the interval.
      seed: of the bootstrap's resampling.

    Raises:
      ValueError: the two have different numbers of runs.
    """
    if len(a) != len(b):
        raise ValueError(f"Paired runs are needed: got {len(a)} and {len(b)}.")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mean = float(np.mean(difference))
    if np.ptp(difference) == 0:
        return PairedDifference(mean, mean, mean)
    interval = scipy.stats.bootstrap(
        (difference,),
        np.mean,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedDifference(mean, float(interval.low), float(interval.high))
