"""What a number of seeds could have shown, against simulation and another integral."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import power


@pytest.mark.parametrize("deviation", [0.15, 0.5])
@pytest.mark.parametrize("count", [3, 8, 16])
def test_the_detectable_difference_is_found_in_four_of_five_samples(count, deviation):
    """In 20,000 simulated ones (a standard error of 0.3 points); none is found in 5%."""
    effect = power.detectable_difference(deviation, count)
    noise = deviation * np.random.default_rng(4).normal(size=(20000, count))
    for mean, share in ((effect, 0.8), (-effect, 0.8), (0.0, 0.05)):
        found = scipy.stats.ttest_1samp(mean + noise, 0.0, axis=1).pvalue < 0.05
        assert found.mean() == pytest.approx(share, abs=0.012)


@settings(max_examples=30)
@given(
    count=st.integers(2, 100),
    deviation=st.floats(1e-3, 10),
    chance=st.floats(0.3, 0.99),
    alpha=st.sampled_from([0.05, 0.01]),
)
def test_the_detectable_difference_has_its_power_by_another_integral(
    count, deviation, chance, alpha
):
    """T exceeds the threshold where Z + c > threshold * chi / sqrt(n - 1): over Z given chi."""
    effect = power.detectable_difference(deviation, count, chance, alpha)
    centre = effect * np.sqrt(count) / deviation
    threshold = scipy.stats.t.isf(alpha / 2, count - 1)
    chi = scipy.stats.chi(count - 1)
    grid = chi.ppf((np.arange(40000) + 0.5) / 40000) * threshold / np.sqrt(count - 1)
    found = scipy.stats.norm.sf(grid - centre) + scipy.stats.norm.cdf(-grid - centre)
    assert found.mean() == pytest.approx(chance, abs=2e-3)


def test_one_seed_or_a_spread_of_zero_are_the_ends():
    assert power.detectable_difference(0.2, 1) == np.inf
    assert power.detectable_difference(0.0, 8) == 0.0
    assert np.isnan(power.detectable_difference(float("nan"), 8))
