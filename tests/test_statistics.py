import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt import statistics

RNG = np.random.default_rng(0)


def test_common_noise_cancels_in_a_paired_difference():
    common = 10 * RNG.normal(size=30)
    shift = 0.5 + 0.1 * RNG.normal(size=30)
    difference = statistics.paired_difference(common + shift, common)
    assert difference.low < shift.mean() < difference.high
    # The interval is that of the shift, about +-2 * 0.1 / sqrt(30).
    assert difference.high - difference.low == pytest.approx(4 * 0.1 / np.sqrt(30), rel=0.3)
    with pytest.raises(ValueError, match="Paired runs are needed: got 30 and 3"):
        statistics.paired_difference(common, common[:3])
    assert statistics.summarize(np.array([2.0])).std == 0.0


def test_identical_runs_differ_by_zero_and_decide_nothing():
    runs = RNG.normal(size=10)
    same = statistics.paired_difference(runs, runs)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    decision = statistics.decide({"same": runs - runs})["same"]
    assert (decision.p, decision.sign, decision.underpowered) == (1.0, 0, False)


def test_runs_that_diverged_leave_the_question_open():
    diverged = np.array([1.0, np.inf, 2.0])
    difference = statistics.paired_difference(diverged, np.array([0.0, np.inf, 1.0]))
    assert np.isnan(difference.mean)
    assert (difference.low, difference.high) == (-np.inf, np.inf)
    decisions = statistics.decide(
        {"diverged": diverged, "clear": np.array([1.0, 1.1, 0.9, 1.05])}, test="t"
    )
    assert decisions["diverged"].sign == 0
    assert decisions["clear"].sign == 1


def coverage(draw, mean, count=10, trials=1500):
    hits = 0
    for _ in range(trials):
        interval = statistics.paired_difference(draw(count), np.zeros(count))
        hits += interval.low <= mean <= interval.high
    return hits / trials


@pytest.mark.parametrize(("name", "mean"), [("normal", 0.0), ("standard_exponential", 1.0)])
def test_intervals_cover_the_mean_of_ten_runs(name, mean, monkeypatch):
    """Between 92 and 97% (a binomial standard error of 0.6 points at 1,500 trials)."""
    monkeypatch.setattr(statistics, "_RESAMPLES", 999)
    rng = np.random.default_rng(1)
    assert 0.92 <= coverage(lambda n: getattr(rng, name)(size=n), mean) <= 0.97


def test_fewer_than_eight_runs_have_students_interval():
    values = RNG.normal(size=5)
    ours = statistics.paired_difference(values, np.zeros(5))
    scipys = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((scipys.low, scipys.high))


@settings(max_examples=40)
@given(
    values=st.lists(
        st.floats(-5, 5, allow_subnormal=False).filter(lambda x: abs(x) > 1e-3),
        min_size=3,
        max_size=9,
        unique_by=abs,
    )
)
def test_sign_flips_agree_with_scipy(values):
    difference = np.array(values)
    theirs = scipy.stats.permutation_test(
        (difference,),
        lambda x, axis: np.abs(np.sum(x, axis=axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
    )
    assert statistics.sign_flip_p(difference) == pytest.approx(theirs.pvalue)
    assert statistics.t_p(difference) == pytest.approx(
        scipy.stats.ttest_rel(difference, np.zeros(len(values))).pvalue
    )


def test_what_could_not_be_compared_says_so():
    difference = statistics.paired_difference(np.array([1.0, np.nan, 2.0]), np.zeros(3))
    assert str(difference) == "not comparable"
    assert difference.sign == 0


def test_the_smallest_p_of_sign_flips_is_known_beforehand():
    assert statistics.sign_flip_p(np.arange(1.0, 11.0)) == 2 / 2**10
    drawn = statistics.sign_flip_p(np.arange(1.0, 21.0))  # Too many to enumerate.
    assert 0 < drawn <= 1e-4


def test_holm_compares_each_p_with_its_own_threshold():
    """p = 0.01, 0.02, 0.03, 0.04 at alpha 0.05: 0.0125 passes the first, 0.0167 stops the rest."""

    def with_p(p, count=20):
        """Differences whose paired t test has this p."""
        t = scipy.stats.t.isf(p / 2, count - 1)
        noise = np.linspace(-1, 1, count)
        return noise + t * noise.std(ddof=1) / np.sqrt(count)

    family = {str(p): with_p(p) for p in (0.04, 0.01, 0.03, 0.02)}
    decisions = statistics.decide(family, test="t")
    assert list(decisions) == list(family)
    for name, decision in decisions.items():
        assert decision.p == pytest.approx(float(name))
    assert {name: d.sign for name, d in decisions.items()} == {
        "0.01": 1,
        "0.02": 0,
        "0.03": 0,
        "0.04": 0,
    }
    assert decisions["0.02"].threshold == pytest.approx(0.05 / 3)


def test_a_design_that_cannot_come_out_says_so():
    """Ten runs reach 2/1024: enough for 9 exact tests at 0.05 (0.0056), not for 27 (0.00185)."""
    clear = np.linspace(1.0, 2.0, 10)
    for members, underpowered in ((9, False), (27, True)):
        family = {str(i): clear for i in range(members)}
        decisions = statistics.decide(family, test="sign_flip").values()
        assert {d.underpowered for d in decisions} == {underpowered}
        assert {d.sign for d in decisions} == {0 if underpowered else 1}
    # Left to itself it takes Student's t where the exact test has too few runs.
    assert statistics.decide({str(i): clear for i in range(27)})["0"].sign == 1
    assert statistics.decide({"one": clear[:1]})["one"].underpowered
    with pytest.raises(ValueError, match="Unknown test 'wilcoxon'"):
        statistics.decide({"a": clear}, test="wilcoxon")


@settings(max_examples=40)
@given(
    scores=st.lists(st.floats(-5, 5), min_size=4, max_size=24).map(
        lambda values: np.array(values[: len(values) // 4 * 4]).reshape(4, -1)
    ),
    shared=st.booleans(),
)
def test_the_interquartile_mean_is_of_the_middle_half(scores, shared):
    found = statistics.interquartile_mean(scores, shared_units=shared)
    quarter = scores.size // 4
    middle = np.sort(scores.ravel())[quarter : scores.size - quarter]
    assert found.mean == pytest.approx(middle.mean(), abs=1e-12)
    assert found.low - 1e-9 <= found.high
    assert scores.min() - 1e-9 <= found.low or found.count == 1


def test_a_failure_moves_the_mean_and_not_the_interquartile_mean():
    scores = 95 + 0.1 * RNG.normal(size=(3, 5))
    failing = scores.copy()
    failing[0, 0] = 10.0
    before, after = map(statistics.interquartile_mean, (scores, failing))
    assert abs(before.mean - after.mean) < 0.1
    assert scores.mean() - failing.mean() > 5
    assert after.low < after.mean < after.high < 96


def test_strata_are_resampled_by_themselves_unless_they_share_units():
    """Of a unit that is far off on every task: whole or not at all, so that it counts for more."""
    common = np.tile(np.arange(6.0), (8, 1))
    apart = statistics.interquartile_mean(common)
    together = statistics.interquartile_mean(common, shared_units=True)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    one = statistics.interquartile_mean(np.array([[1.0], [3.0]]))
    assert (one.mean, one.low, one.high) == (2.0, -np.inf, np.inf)
    with pytest.raises(ValueError, match=r"\[tasks, units\] are needed: got shape \(3,\)"):
        statistics.interquartile_mean(np.zeros(3))


@pytest.mark.parametrize("shared", [False, True])
def test_the_stratified_bootstrap_covers_the_interquartile_mean(shared):
    """Of uniform scores on four tasks with ten runs: 0.5, in 87 to 98% of 300 samples."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        noise = rng.uniform(size=(1 if shared else 4, 10))
        found = statistics.interquartile_mean(np.broadcast_to(noise, (4, 10)), shared_units=shared)
        hits += found.low <= 0.5 <= found.high
    assert 0.87 <= hits / 300 <= 0.98


@pytest.mark.parametrize("deviation", [0.15, 0.5])
@pytest.mark.parametrize("count", [8, 16])
def test_student_s_interval_covers_the_ratio_of_log_normal_values(count, deviation):
    """Of 0.8, in 94 to 96% of 4,000 samples (a binomial standard error of 0.35 points)."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(4000):
        b = np.exp(rng.normal(size=count))
        a = 0.8 * b * np.exp(deviation * rng.normal(size=count))
        log = statistics.paired_ratio(a, b, bootstrap=False).log
        hits += log.low <= np.log(0.8) <= log.high
    assert 0.94 <= hits / 4000 <= 0.96


@settings(max_examples=20)
@given(values=st.lists(st.floats(0.1, 10), min_size=2, max_size=20, unique=True))
def test_a_ratio_s_interval_is_that_of_scipy_on_the_log_scale(values):
    a, b = np.array(values), np.ones(len(values))
    found = statistics.paired_ratio(a, b, bootstrap=False).log
    wanted = scipy.stats.ttest_1samp(np.log(a), 0.0)
    interval = wanted.confidence_interval(0.95)
    assert np.exp(found.mean) == pytest.approx(scipy.stats.gmean(a))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
