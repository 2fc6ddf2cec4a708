"""What is said of the paper's claims, from differences that are given."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from helpers_results import measured_task, optimizer, trained

from regularized_lopt import statistics
from regularized_lopt.measure import flatness
from regularized_lopt.report import (
    paper_claims,
    verdicts,
)

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


def test_what_has_no_regularizer_is_no_evidence_for_regularizers():
    nothing = dict.fromkeys(("none", "with_averages"), trained([0.9], own="none"))
    task = measured_task(RELU, **nothing, sam_optimizee=trained([0.9], own="sam"))
    accuracy = paper_claims.check_claims([task], [])[0]
    told = [line.split(":")[0] for line in accuracy.evidence[:-1]]
    assert told == [f"{RELU}, sam_optimizee"]


def test_a_radius_reads_best_where_it_leads_over_optimizers_beyond_chance():
    """Four optimizers whose differences at the radii are given, in standard deviations."""
    radii = flatness.FlatnessConfig().radii

    def found(rises):
        """One run of each seed, with the given values, [seeds, radii]."""
        zero = np.zeros(1)
        ascents = [dict.fromkeys(flatness.SCALES, of[None, :, None]) for of in rises]
        at = [flatness.Flatness(zero, zero, of, of, zero, zero) for of in ascents]
        return dataclasses.replace(trained([0.9] * 3), at=dict.fromkeys(("poc", "completion"), at))

    def radius(*effects):
        """Of optimizers with three seeds, whose deviation is 1."""
        deviations = np.array([-1.0, 0.0, 1.0])[:, None]
        learned = {str(i): found(means + deviations) for i, means in enumerate(np.array(effects))}
        reference = found(np.zeros((3, len(radii))))
        task = measured_task(RELU, config=flatness.FlatnessConfig(), none=reference, **learned)
        return paper_claims.check_claims([task], [])[5]

    assert radii[2] == 0.01
    shared = [np.array([0.1, 0.2, 0.9, 0.3, 0.2]) * scale for scale in (1, 1.1, 0.9, 1.4)]
    claim = radius(*shared)
    assert claim.verdict == verdicts.HOLDS
    assert claim.evidence[2] == (
        "Radius 0.01: differences are 0.99 standard deviations, on average."
    )
    assert "short of the best" in claim.evidence[3]
    assert radius(*(np.roll(each, -1) for each in shared)).verdict == "0.005 reads best here"
    # The highest mean, but not for every optimizer.
    mixed = [[0.1, 0.1, 0.9, 0.1, 0.1], [0.1, 0.8, 0.2, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1]]
    assert radius(*mixed).verdict == verdicts.UNDECIDED
    assert radius(shared[0]).verdict == verdicts.UNDECIDED  # A single optimizer.
