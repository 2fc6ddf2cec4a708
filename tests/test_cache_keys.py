"""What results are called in the files that are kept: a name that changes loses them."""

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


def digests(name):
    keys = CacheKeys(EXPERIMENT, FlatnessConfig())
    one = identity(optimizers_lib.baseline(name, 0.1))
    return keys.tune(RELU, name).digest, keys.training_curves(RELU, name, one).digest


def test_the_default_baselines_are_those_that_are_stored():
    assert EXPERIMENT.baselines == tuple(KEPT)
    assert {name: digests(name) for name in KEPT} == KEPT
