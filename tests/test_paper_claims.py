"""What is said of the paper's claims, from differences that are given."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from helpers_results import measured_task, optimizer

from regularized_lopt import statistics
from regularized_lopt.report import paper_claims, verdicts

RELU, SIGMOID = "ImageMLP_Mnist_20_Relu", "ImageMLP_Mnist_20_Sigmoid"


def relu_claim(relu, sigmoid):
    """Given the worst loss nearby of every seed of the reference, on both tasks."""
    results = [
        measured_task(task, none=optimizer(loss=np.zeros(len(worst)), worst=worst))
        for task, worst in ((RELU, relu), (SIGMOID, sigmoid))
    ]
    return paper_claims.check_claims(results, [])[4]


def test_relu_is_told_from_sigmoid_by_pairs_of_the_same_optimizer():
    """Every optimizer has three times the loss with ReLU; they differ more than that."""
    sigmoid = np.array([0.1, 0.3, 1.0, 3.0, 10.0])
    relu = sigmoid * np.array([2.7, 3.0, 3.3, 3.0, 3.0])
    claim = relu_claim(relu, sigmoid)
    assert claim.verdict == verdicts.HOLDS
    assert claim.declared == verdicts.UNDECIDED  # Welch's, on raw values.
    assert claim.outcome == "holds (declared beforehand: undecided)"
    log = np.log(relu / sigmoid)
    interval = scipy.stats.ttest_1samp(log, 0).confidence_interval()
    ratio = np.exp([log.mean(), interval.low, interval.high])
    assert "{:.3g} [{:.3g}, {:.3g}] times as high".format(*ratio) in claim.evidence[0]
    assert "higher in 5 of 5" in claim.evidence[0]


def test_a_ratio_is_the_difference_of_logarithms_and_needs_positive_numbers():
    a, b = np.array([1.0, 4.0, 2.0]), np.array([2.0, 1.0, 2.0])
    ratio = statistics.paired_ratio(a, b)
    assert np.exp(ratio.log.mean) == pytest.approx(1.0 * 2 ** (1 / 3))
    assert ratio.sign == 0
    assert str(statistics.paired_ratio(a, np.array([2.0, 0.0, 2.0]))) == "not comparable"
    assert str(statistics.paired_ratio(a, np.array([2.0, -1.0, 2.0]))) == "not comparable"


def test_sams_property_is_judged_by_the_rise_and_by_each_measure_alone():
    """Both losses, at the params and nearby, are lower by as much: trained better, not flatter."""
    base, noise = np.full(5, 1.0), np.array([0.0, 0.01, -0.01, 0.02, -0.02])
    none = optimizer(loss=base, worst=base + 0.5)
    lower = optimizer(loss=base - 0.3 + noise, worst=base + 0.2 + noise, own="sam")
    flatter = optimizer(loss=base, worst=base + 0.5, relative=base + 0.2 + noise, own="sam")
    for sam, told in (
        (lower, verdicts.UNDECIDED),
        (flatter, "absolute: undecided; relative: holds; matched: undecided"),
    ):
        result = measured_task(SIGMOID, none=none, sam=sam)
        judged = verdicts.judge([result], primary=("sam", "sam"))
        claim = paper_claims.check_claims([result], judged)[1]
        assert claim.verdict == told
    assert claim.declared == verdicts.UNDECIDED  # The declared test is of max L, absolute.
    judged = verdicts.judge([measured_task(SIGMOID, none=none, sam=lower)], ("sam", "sam"))
    (tested,) = [v for v in judged if v.decision is not None]
    assert tested.declared() == verdicts.HOLDS
    assert tested.property == "sam"


def test_a_claim_without_another_declared_test_shows_one_verdict():
    claim = paper_claims.Claim("A claim.", verdicts.HOLDS, ())
    assert claim.outcome == dataclasses.replace(claim, declared="").verdict == verdicts.HOLDS
