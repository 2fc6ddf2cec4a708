"""Which seeds are compared with which, and what follows from a difference."""

import numpy as np
import pytest
from helpers_results import measured_task, optimizer
from helpers_study import RELU, files_of, make_study

from regularized_lopt import serialization, statistics
from regularized_lopt.measure import FlatnessConfig, selections
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure.results import seed_pairs
from regularized_lopt.report import (
    verdicts,
)
from regularized_lopt.study.cache_keys import identity


def test_one_seed_is_compared_with_every_seed_of_the_reference():
    assert seed_pairs(1, 3) == [(0, 0), (0, 1), (0, 2)]
    assert seed_pairs(3, 1) == [(0, 0), (1, 0), (2, 0)]
    assert seed_pairs(3, 2) == [(0, 0), (1, 1)]
    assert seed_pairs(1, 1) == [(0, 0)]


def test_the_interval_of_a_baseline_at_matched_loss_is_over_the_seeds_of_the_reference():
    """The baseline has 1.0, the reference's seeds 1.0 to 3.0: one seed alone would show no more."""
    nothing = np.zeros(3)
    sgd = optimizer([0.0], [1.0], matched=[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], learning_rate=0.1)
    result = measured_task(RELU, none=optimizer(nothing, nothing + 1), SGD=sgd)
    found = {(v.property, v.point): v for v in verdicts.judge([result])}
    matched = found["sam", "completion"].matched
    assert matched.count == 3
    assert matched.mean == pytest.approx(-1.0)
    assert matched.low == pytest.approx(-1.0 - 4.303 / np.sqrt(3), rel=1e-3)


def test_baselines_are_matched_with_every_seed_of_the_reference(tmp_path):
    """Two optimizers stand for two seeds of the reference."""
    seeds = [optimizers_lib.baseline("SGD", rate) for rate in (0.5, 0.3)]
    study = make_study(tmp_path, who={"none": seeds[0]}, baselines=("Adam",), num_steps=5)
    on = study.on(RELU, {"none": seeds})
    assert selections.optimizer(on.result(), "Adam").sizes["pair"] == 2
    matched = [serialization.load_flat(file)[1]["spec"] for file in files_of(tmp_path, "matched")]
    assert {spec["reference"] for spec in matched} == {identity(one).name for one in seeds}
    labels = [step.label for step in on.steps().values() if step.stage == "match"]
    assert labels == [f"{RELU}, Adam"] * 2


def test_each_measure_is_judged_alone():
    base, noise = np.zeros(4), np.array([0.01, -0.01, 0.02, -0.02])
    none = optimizer(base, base + 1.0)
    other = optimizer(
        base, base + 1.2 + noise, relative=base + 0.8 + noise, matched=[(1.0, 1.0)] * 4
    )
    judged = verdicts.judge([measured_task(RELU, none=none, mine=other)], ("mine", "sam"))
    found = {(v.property, v.point): v for v in judged}["sam", "completion"]
    assert [found.by(measure) for measure in verdicts.MEASURES] == [
        verdicts.DOES_NOT_HOLD,
        verdicts.HOLDS,
        verdicts.UNDECIDED,
    ]
    assert found.text() == "holds: relative; does not hold: absolute; undecided: matched"
    assert found.declared() == verdicts.DOES_NOT_HOLD


def test_sam_is_judged_by_the_rise():
    nothing = {name: optimizer([0.0], [1.0], own=name) for name in ("sam", "gam")}
    task = measured_task(RELU, none=nothing["sam"], **nothing)
    judged_by = {
        key: selections.judged_by(selections.optimizer(task, key)) for key in selections.keys(task)
    }
    assert judged_by == {"none": "gsam", "sam": "gsam", "gam": "gam"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """SGD against SGD+SAM (rho 0.1) and SGD on other batches, all at the same learning rate.

    Long enough to fit the training set: before that, no regularizer has much to choose from.
    """
    out_dir = tmp_path_factory.mktemp("planted")
    flatness_config = FlatnessConfig(
        radii=(0.01,), num_examples=512, headline_starts=1, num_probes=0
    )
    settings = {"plan": {"runs": 24}, "num_steps": 1500, "parallelism": (24, 1)}
    plain = {"none": optimizers_lib.baseline("SGD", 0.3)}
    both = {**plain, "sam": optimizers_lib.baseline("SGD+SAM", 0.3)}
    (result,) = make_study(out_dir, flatness_config, both, **settings).run()
    (others,) = make_study(out_dir, flatness_config, plain, seed=1, **settings).run()
    return result, others


def test_sgd_with_sam_comes_out_flatter(planted):
    result, _ = planted
    judged = verdicts.judge([result], primary=("sam", "sam"))
    found = {(v.property, v.point): v for v in judged}
    declared = found["sam", "completion"]
    assert declared.decision is not None
    assert declared.declared() == verdicts.HOLDS
    assert declared.absolute.high < 0
    assert found["gsam", "completion"].absolute.high < 0


@pytest.mark.parametrize("name", ["sam", "gsam", "gam"])
def test_other_batches_alone_seldom_make_a_verdict(planted, name):
    """400 pairings of 10 stored runs of SGD with 10 of SGD on other inits and batches."""
    result, others = planted
    at = {"point": "completion", "scale": "absolute", "radius": 0.01}
    pools = [
        selections.last(selections.reference(task), name).sel(at).values[0]
        for task in (result, others)
    ]
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(400):
        a, b = (rng.choice(pool, 10, replace=False) for pool in pools)
        decided += statistics.decide({"null": a - b})["null"].sign != 0
    assert decided <= 0.075 * 400


def test_several_meta_training_seeds_are_the_unit(tmp_path):
    """Runs of one trained optimizer are no independent evidence on a regularizer."""
    values = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(verdicts.units(values), [0.5, 2.5, 4.5])
    np.testing.assert_array_equal(verdicts.units(values[:1]), values[0])
    # A baseline, which has one "seed", is compared with each.
    difference = verdicts.compare(values, np.ones((1, 2)))
    assert difference.count == 3
    assert difference.mean == pytest.approx(1.5)
    # Of unequal numbers of seeds, those that both have are compared.
    difference = verdicts.compare(values, np.ones((2, 2)))
    assert difference.count == 2
    assert difference.mean == pytest.approx(0.5)
