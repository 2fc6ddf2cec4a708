"""What is compared on what."""

import dataclasses

import pytest
from helpers_study import RELU, SAM, SIGMOID, experiment

from regularized_lopt.measure.optimizers import TrainedWith, baseline
from regularized_lopt.study import Experiment


def test_optimizers_may_have_different_numbers_of_seeds():
    gin_file = "gin_configs/digits_mlp_none.gin"
    what = {"optimizers": {"none": gin_file, "sam": gin_file}, "tasks": (RELU,)}
    one = Experiment(**what, meta_training_seeds={"none": (0, 1, 2), "sam": (0, 1)})
    assert [one.seeds_of(name) for name in ("none", "sam")] == [(0, 1, 2), (0, 1)]
    with pytest.raises(ValueError, match=r"of 'sam' = \(1,\): .* first of \(0, 1, 2\)"):
        Experiment(**what, meta_training_seeds={"none": (0, 1, 2), "sam": (1,)})


def test_only_optimizers_of_a_property_speak_for_it():
    """By what they were trained with, whatever they are called."""
    trained_with = {"none": "none", "a": "smoothing", "gam": "sam", "b": "gam", "mine": "none"}
    one = Experiment(
        optimizers=dict.fromkeys(trained_with, "gin_configs/digits_mlp_none.gin"),
        tasks=(RELU,),
        properties={"mine": "gsam"},
    )
    optimizers = [
        dataclasses.replace(baseline("SGD", 0.1), name=name, trained_with=TrainedWith(regularizer))
        for name, regularizer in trained_with.items()
    ]
    assert [one.is_targeted(of) for of in optimizers] == [False, False, True, True, True]
    assert [one.property_of(of) for of in optimizers] == ["sam", "sam", "sam", "gam", "gsam"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reference": "non"}, "Unknown Experiment.reference 'non'. Did you mean 'none'"),
        (
            {"primary": ("sams", "sam")},
            "Unknown optimizer of Experiment.primary 'sams'. Did you mean 'sam'",
        ),
        (
            {"primary": ("sam", "sma")},
            "Unknown property of Experiment.primary 'sma'. Did you mean 'sam'",
        ),
        ({"primary": ("sam", "sam"), "tasks": (RELU,) * 10}, "more than 9 cannot be decided"),
        ({"primary": ("sam", "sam"), "measured": False}, "has none measured: set one of them"),
        ({"primary": ("sam", "sam"), "measured": ()}, "has none measured: set one of them"),
        ({"measured": (SIGMOID,)}, "Unknown task of Experiment.measured"),
        ({"baselines": ("Adma",)}, "Unknown Experiment.baselines 'Adma'. Did you mean 'Adam'"),
        ({"num_runs": 0}, "Experiment.num_runs = 0"),
        ({"tasks": ()}, "must name at least one each"),
        ({"property_runs": {SIGMOID: 1}}, "Unknown task of Experiment.property_runs"),
        ({"property_runs": {RELU: 0}}, "Experiment.property_runs"),
        ({"task_runs": {SIGMOID: 1}}, "Unknown task of Experiment.task_runs"),
        ({"task_optimizers": {SIGMOID: ()}}, "Unknown task of Experiment.task_optimizers"),
        ({"task_optimizers": {RELU: ("none", "SDG")}}, "'SDG'. Did you mean 'SGD'"),
        ({"task_optimizers": {RELU: ("sam",)}}, "lacks 'none', the reference"),
        ({"tuning_steps": {RELU: 0}}, "Experiment.tuning_steps"),
        ({"property_examples": {RELU: 0}}, "Experiment.property_examples"),
    ],
)
def test_refuses_bad_experiments(parameters, message):
    with pytest.raises(ValueError, match=message):
        experiment(SAM, **parameters)
