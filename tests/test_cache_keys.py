"""What results are called in the files that are kept: a name that changes loses them."""

import dataclasses

import pytest
from helpers_study import RELU

from regularized_lopt.measure import FlatnessConfig
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.study import Experiment, TaskPlan
from regularized_lopt.study.cache_keys import CacheKeys, identity

KEPT = {
    "SGD": ("ac1a216d6b9454aa", "2f0fe435c59eabaf"),
    "Momentum": ("b27abd6e5d461a22", "9343667229bc59ab"),
    "Adam": ("548fae26ba5e6085", "f2ec76255cd9f35b"),
    "SGD+SAM": ("4e609fc21bfdc1ba", "89974aedda4ed4ad"),
    "Adam+SAM": ("3b4db3ecbcb398fa", "3afdf4cf64ed4098"),
}
"""Digests of tuning and of training at a rate of 0.1, as stored results have them."""
EXPERIMENT = Experiment(
    optimizers={"none": "gin_configs/digits_mlp_none.gin"}, tasks=(TaskPlan(RELU),)
)


def digests(name, rate=0.1, **changes):
    keys = CacheKeys(dataclasses.replace(EXPERIMENT, **changes), FlatnessConfig())
    one = identity(optimizers_lib.baseline(name, rate))
    return keys.tune(RELU, name).digest, keys.training_curves(RELU, name, one).digest


def test_the_default_baselines_are_those_that_are_stored():
    assert EXPERIMENT.baselines == tuple(KEPT)
    assert {name: digests(name) for name in KEPT} == KEPT


@pytest.mark.parametrize("name", optimizers_lib.BASELINES)
def test_a_budget_of_gradients_renames_only_what_it_changes(name):
    one_gradient = optimizers_lib.BASELINES[name].gradients_per_step == 1
    rate = float(optimizers_lib.BASELINES[name].learning_rates[0])
    for at_steps, at_gradients in zip(
        digests(name, rate), digests(name, rate, budget="gradients"), strict=True
    ):
        assert (at_steps == at_gradients) == one_gradient


def test_a_match_depends_on_the_steps_of_both_sides():
    sgd, sam = (identity(optimizers_lib.baseline(name, 0.1)) for name in ("SGD", "SGD+SAM"))

    def digest(own, reference, budget):
        keys = CacheKeys(dataclasses.replace(EXPERIMENT, budget=budget), FlatnessConfig())
        return keys.matched(RELU, "", own, reference).digest

    for pair, same in (((sgd, sgd), True), ((sam, sgd), False), ((sgd, sam), False)):
        assert (digest(*pair, "steps") == digest(*pair, "gradients")) == same
