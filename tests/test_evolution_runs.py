"""Outer training by ES and PES: it resumes to the bit, and members are what they are alone."""

import functools
import os
import subprocess
import sys

import gin
import numpy as np
import pytest
from conftest import REPOSITORY, digits_config
from helpers import TwoLayer, flat, stop_at

import regularized_lopt
from regularized_lopt import gin_files, run_files
from regularized_lopt.estimators import (
    RegularizedTruncatedES,
    RegularizedTruncatedGrad,
    RegularizedTruncatedPES,
)
from regularized_lopt.interruption import Interrupted
from regularized_lopt.measure import FlatnessConfig
from regularized_lopt.outer_training import outer_train, parts
from regularized_lopt.outer_training.run_dir import OtherExperimentError
from regularized_lopt.study import meta_test

SMALL = [
    "outer_train.learned_opt = @LSTMLOpt()",
    "LSTMLOpt.hidden_size = 4",
    "RegularizedTruncatedStep.num_tasks = 4",
]
SPACES = [
    "RegularizedTruncatedStep.regularizer = 'sam'",
    "ObjectiveCheck.num_trajectories = 2",
    "Curriculum.min_validations = 3",
    "Curriculum.max_validations = 3",
]
RISES = [
    f"{space}_rise{where}" for space in ("meta", "optimizee") for where in ("", "_at_reference")
]


def config(kind, num_outer_steps, *extra):
    name = f"RegularizedTruncated{kind}"
    lines = [
        line.replace("RegularizedTruncatedGrad", name) for line in digits_config(num_outer_steps)
    ]
    return [*lines, f"outer_train.estimator = @{name}", *SMALL, *extra]


def train(directory, kind, num_outer_steps, *extra, **arguments):
    gin.clear_config()
    gin_files.parse_gin([], config(kind, num_outer_steps, *extra))
    return outer_train(directory, progress=False, **arguments)


@pytest.mark.parametrize(("kind", "stops"), [("ES", [3]), ("PES", [3, 4])])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, kind, stops):
    """Stopped within trajectories, when sums of perturbations are under way, and at a stage."""
    own = (f"RegularizedTruncated{kind}.regularizer = 'sam'", "Curriculum.max_validations = 1")
    whole = train(tmp_path / "whole", kind, 6, *own)
    for stop in stops:
        train(tmp_path / f"run{stop}", kind, stop, *own)
        resumed = train(tmp_path / f"run{stop}", kind, 6, *own)
        np.testing.assert_array_equal(flat(resumed.theta), flat(whole.theta))
        curves = [run_files.load_metrics(tmp_path / name) for name in (f"run{stop}", "whole")]
        for column in ("loss", "grad_norm", "gradient_correction", "validation_loss"):
            np.testing.assert_array_equal(curves[0][column], curves[1][column])
    curves = run_files.load_metrics(tmp_path / "whole")
    assert curves["trajectory_length"].tolist() == [10.0] * 4 + [20.0] * 2
    assert np.all(curves["gradient_correction"] > 0)
    assert np.isfinite(curves["validation_loss"]).sum() == 1


def test_a_population_that_a_signal_stopped_ends_in_the_same_bits(tmp_path, monkeypatch):
    """SAM in both spaces; stopped when sums of perturbations are under way."""
    spaces = (*SPACES[:1], "RegularizedTruncatedPES.regularizer = 'sam'")
    arguments = {"seeds": (0, 1), "parallelism": (2, 1)}
    whole = train(tmp_path / "whole", "PES", 5, *spaces, **arguments)
    stop_at(monkeypatch, 2)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", "PES", 5, *spaces, **arguments)
    monkeypatch.undo()
    resumed = train(tmp_path / "run", "PES", 5, *spaces, **arguments)
    for name in whole:
        np.testing.assert_array_equal(flat(resumed[name].theta), flat(whole[name].theta))
        found = run_files.load_metrics(tmp_path / "run" / name)
        assert np.all(found["gradient_correction"] > 0)
        assert np.all(found["loss_correction"] > 0)
    thetas = [flat(one.theta) for one in whole.values()]
    assert not np.allclose(*thetas)


def test_settings_of_the_estimator_do_not_change_on_resuming(tmp_path):
    train(tmp_path / "run", "PES", 1)
    for setting in ("std = 0.02", "unroll_length = 10", "staggered = False", "loss = 'last'"):
        with pytest.raises(OtherExperimentError, match=setting):
            train(tmp_path / "run", "PES", 2, f"RegularizedTruncatedPES.{setting}")


def test_another_estimator_is_another_experiment(tmp_path):
    """Though gin shows none of those that are arguments, and what they carry has the same form."""
    lines = [line for line in config("Grad", 2) if "Grad" not in line]
    grad, es, coarser = (
        functools.partial(kind, unroll_length=5, loss="mean", **own)
        for kind, own in (
            (RegularizedTruncatedGrad, {}),
            (RegularizedTruncatedES, {}),
            (RegularizedTruncatedES, {"std": 0.1}),
        )
    )

    def go(name, estimator, num_outer_steps):
        gin.clear_config()
        gin_files.parse_gin([], lines)
        with_steps = {"num_outer_steps": num_outer_steps, "estimator": estimator}
        return outer_train(tmp_path / name, progress=False, **with_steps)

    for name, first, others in (("grad", grad, [es]), ("es", es, [grad, coarser])):
        go(name, first, 1)
        for other in others:
            with pytest.raises(OtherExperimentError, match="holds another experiment"):
                go(name, other, 2)
        go(name, first, 2)


def test_a_trained_optimizer_is_meta_tested_as_any(tmp_path):
    smoothing = (
        "RegularizedTruncatedPES.smoothing = @Smoothing()",
        "Smoothing.strength = 1.0",
    )
    train(tmp_path / "run", "PES", 3, *smoothing)
    assert np.all(run_files.load_metrics(tmp_path / "run")["smoothness"] > 0)
    found = meta_test(
        {"mine": regularized_lopt.load(tmp_path / "run")},
        "ImageMLP_Digits_20_Relu",
        1,
        4,
        baselines=(),
        progress=False,
        flatness_config=FlatnessConfig(num_examples=16, headline_starts=1, num_probes=0),
    )
    assert np.isfinite(found["train_loss"].sel(optimizer="mine")).all()


DOSES = {"SAM.rho": (0.5, 0.25), "L2.strength": (0.01, 0.0)}
BOTH = [*SPACES, "RegularizedTruncatedPES.regularizer = 'l2'"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Members' own runs: their directories, and what they found."""
    found = []
    for place in range(2):
        path = tmp_path_factory.mktemp("alone")
        own = [f"{dose} = {values[place]}" for dose, values in DOSES.items()]
        found.append((path, train(path, "PES", 4, *BOTH, *own, f"outer_train.seed = {place}")))
    return found


@pytest.mark.parametrize("way", [(2, 1), (1, 1)])
def test_a_member_is_the_run_that_it_is_alone(tmp_path, alone, way):
    """Seeds, doses in both spaces, checks of the objective: losses to 1e-6."""
    found = train(tmp_path, "PES", 4, *BOTH, seeds=(0, 1), doses=DOSES, parallelism=way)
    for (path, by_itself), name in zip(alone, found, strict=True):
        one, other = (run_files.load_metrics(each) for each in (tmp_path / name, path))
        for column in ("loss", "validation_loss", "loss_correction", *RISES):
            np.testing.assert_allclose(one[column], other[column], 1e-6, 1e-6, err_msg=column)
        # Differences of losses over sigma^2: rounding counts 5,000-fold in a gradient.
        np.testing.assert_allclose(one["grad_norm"], other["grad_norm"], 1e-3)
        np.testing.assert_allclose(flat(found[name].theta), flat(by_itself.theta), 1e-5, 1e-6)
        assert np.isfinite([one[column][-1] for column in RISES]).all()


def test_several_devices_give_the_theta_of_one(tmp_path):
    command = [sys.executable, "-m", "regularized_lopt.outer_train"]
    bindings = [f"--gin_bindings={line}" for line in config("PES", 3)]
    subprocess.run(
        [*command, *bindings, f"--train_log_dir={tmp_path / 'run'}"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    found = regularized_lopt.load(tmp_path / "run")
    assert found.metadata["devices"] == 2
    assert found.metadata["estimator"] == {
        "name": "RegularizedTruncatedPES",
        "unroll_length": 5,
        "loss": "mean",
        "std": 0.01,
        "staggered": True,
        "shared_noise": False,
    }
    alone = train(tmp_path / "alone", "PES", 3)
    np.testing.assert_allclose(flat(found.theta), flat(alone.theta), 1e-4, 1e-6)


class NeverFinite(TwoLayer):
    def loss(self, params, key, data):
        return super().loss(params, key, data) * np.nan


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("RegularizedTruncatedPES.std = 0.0", "must be greater than 0"),
        ("RegularizedTruncatedPES.unroll_length = 3", "does not divide the trajectory of 10"),
        ("RegularizedTruncatedStep.num_tasks = 0", "must be a whole number from 1"),
        ("RegularizedTruncatedPES.regularizer = 'hessian_top'", "only estimates the gradient"),
        ("outer_train.estimator = @SAM", "outer_train.estimator"),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_written(tmp_path, extra, message):
    with pytest.raises((ValueError, TypeError), match=message):
        train(tmp_path / "run", "PES", 1, extra)
    assert not (tmp_path / "run").exists()


def test_a_task_that_is_never_finite_is_refused_before_anything_is_written(tmp_path):
    gin.clear_config()
    lines = [line for line in config("PES", 1) if "outer_train.task" not in line]
    gin_files.parse_gin([], lines)
    with pytest.raises(ValueError, match="the loss of NeverFinite is nan where inner training"):
        outer_train(tmp_path / "run", task=NeverFinite(), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_configuration_trains_by_pes():
    gin_files.parse_gin(["gin_configs/digits_star_pes.gin"], [])
    assert parts.check_bindings() == {}
    made = parts.make(
        gin.query_parameter("outer_train.task"), estimator=RegularizedTruncatedPES, num_devices=1
    )
    assert isinstance(made.estimator, RegularizedTruncatedPES)
    assert made.estimator.truncated_step.num_tasks == 4


def test_what_would_read_a_regularizer_s_parameter_is_the_estimator_in_use(tmp_path):
    with pytest.raises(
        gin_files.UnreadBindingError, match=r"Add RegularizedTruncatedPES\.regularizer = 'sam'"
    ):
        train(tmp_path / "run", "PES", 1, "SAM.rho = 0.5", asked_for=["SAM.rho = 0.5"])
