"""What a number of seeds could have shown: no "no difference" without it."""

from __future__ import annotations

import functools
import math

import numpy as np
import scipy.optimize
import scipy.stats


def detectable_difference(
    deviation: float, count: int, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest mean of `count` paired differences that a two-sided t test finds.

    T is noncentral t about sqrt(count) mean / deviation, where the differences are normal.

    Args:
      deviation: of the differences, >= 0.
      count: how many there are; below 2 no difference is found: infinity.
      power: the chance that it is found.
      alpha: level of the test.
    """
    if count < 2:
        return math.inf
    return _found_at(count, power, alpha) * deviation / math.sqrt(count)


@functools.cache
def _found_at(count: int, power: float, alpha: float) -> float:
    """The centre of the noncentral t at which the test of `detectable_difference` has this power.

    Cached: a report asks for the same few thousands of times.
    """
    threshold = scipy.stats.t.isf(alpha / 2, count - 1)

    def lacking(centre: float) -> float:
        t = scipy.stats.nct(count - 1, centre)
        # SciPy's tail on the other side is NaN where it is too small to matter.
        return float(t.sf(threshold) + np.nan_to_num(t.cdf(-threshold))) - power

    return float(scipy.optimize.brentq(lacking, 0.0, 10 * threshold + 10))
