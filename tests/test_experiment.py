"""What is compared on what."""

import dataclasses

import gin
import pytest
from helpers_study import RELU, SAM, SIGMOID, experiment

from regularized_lopt.measure.optimizers import TrainedWith, baseline
from regularized_lopt.study import Experiment, TaskPlan


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
        (
            {"primary": ("sam", "sam"), "tasks": tuple("ABCDEFGHIJ")},
            "more than 9 cannot be decided",
        ),
        (
            {"primary": ("sam", "sam"), "plan": {"measured_runs": 0}},
            "TaskPlan.measured_runs = 0 has none measured on any task: set one of them",
        ),
        ({"tasks": (RELU, SIGMOID, RELU)}, f"Experiment.tasks has '{RELU}' twice: name it once"),
        ({"baselines": ("Adma",)}, "Unknown Experiment.baselines 'Adma'. Did you mean 'Adam'"),
        ({"num_steps": 0}, "Experiment.num_steps = 0"),
        (
            {"budget": "gradient"},
            r"Unknown Experiment.budget 'gradient'\. Did you mean 'gradients'\? Known: ",
        ),
        ({"tasks": ()}, "must name at least one each"),
        (
            {"names": ("a", "b"), "baselines": ("SGD",)},
            "Experiment.reference is 'none' unless it is set, .* set it to one of a, b, SGD",
        ),
        (
            {"plan": {"optimizers": ("none", "sam", "sam")}},
            f"TaskPlan.optimizers of '{RELU}' has 'sam' twice: name each once",
        ),
        ({"joining": {"sam": "mine.npz"}}, "cannot be called 'sam'. Taken are its own names .none"),
        ({"joining": {"Adam": "mine.npz"}}, "cannot be called 'Adam'.* baselines .SGD, Momentum"),
        ({"joining": {"a/b": "mine.npz"}}, "files are called by it"),
        (
            {"plan": {"optimizers": ("none", "SDG")}},
            f"Unknown TaskPlan.optimizers of '{RELU}' 'SDG'. Did you mean 'SGD'",
        ),
        ({"plan": {"optimizers": ("sam",)}}, "lacks 'none', the reference"),
        ({"plan": {"runs": 0}}, "TaskPlan.runs = 0"),
        ({"plan": {"measured_runs": -1}}, "TaskPlan.measured_runs = -1"),
        ({"plan": {"tuning_steps": 0}}, "TaskPlan.tuning_steps = 0"),
        ({"plan": {"examples": 0}}, "TaskPlan.examples = 0"),
    ],
)
def test_refuses_bad_experiments(parameters, message):
    with pytest.raises(ValueError, match=message):
        experiment(**{"names": SAM, **parameters})


def test_who_joins_an_experiment_is_on_all_its_tasks():
    """Where a plan names others alone, too; and it may be what the experiment is about."""
    gin.parse_config(
        f"""
        Experiment.optimizers = {{"none": "none.gin"}}
        Experiment.tasks = ("{RELU}", "{SIGMOID}")
        Experiment.primary = ("mine", "sam")
        {SIGMOID}/TaskPlan.optimizers = ("none", "Adam")
        """
    )
    one = Experiment(joining={"mine": "mnist_star_none"})
    assert one.optimizers == {"none": "none.gin", "mine": "mnist_star_none"}
    assert one.optimizers_on(RELU)[:2] == ("none", "mine")
    assert one.optimizers_on(SIGMOID) == ("none", "Adam", "mine")
    assert one.baselines_on(SIGMOID) == ("Adam",)
    assert dataclasses.replace(one, num_steps=1).plans == one.plans
    with pytest.raises(ValueError, match=r"Unknown optimizer of .* 'mine'"):
        Experiment()


def test_a_plan_without_a_task_is_explained():
    gin.parse_config("Experiment.optimizers = {'none': 'none.gin'}")
    gin.parse_config("Experiment.tasks = (@TaskPlan(),)")
    with pytest.raises(
        ValueError, match=r"A TaskPlan has no name: give Experiment\.tasks the names"
    ):
        Experiment()


def test_gin_plans_all_tasks_or_one():
    """A task's name is its scope; of plans that are given, what they leave out is for all."""
    gin.parse_config(
        f"""
        Experiment.tasks = ("{RELU}", "{SIGMOID}")
        TaskPlan.runs = 5
        TaskPlan.measured_runs = 3
        {SIGMOID}/TaskPlan.measured_runs = 0
        {SIGMOID}/TaskPlan.optimizers = ("none", "Adam")
        """
    )
    optimizers = {"none": "gin_configs/digits_mlp_none.gin"}
    one = Experiment(optimizers=optimizers)
    assert one.plans == {
        RELU: TaskPlan(RELU, 5, 3),
        SIGMOID: TaskPlan(SIGMOID, 5, 0, optimizers=("none", "Adam")),
    }
    assert [plan.num_measured for plan in one.plans.values()] == [3, 0]
    assert one.baselines_on(SIGMOID) == ("Adam",)
    assert not one.matches("Adam", SIGMOID)
    given = Experiment(optimizers=optimizers, tasks=(TaskPlan(SIGMOID, runs=2),))
    assert given.plans == {SIGMOID: TaskPlan(SIGMOID, 2, 3)}
    assert dataclasses.replace(given, num_steps=1).plans == given.plans
