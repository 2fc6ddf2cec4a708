"""What regularizers add to the outer loss, by closed forms; and that looking changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learned_optimization.learned_optimizers import base as upstream_lopts
from learned_optimization.tasks import quadratics
from test_run import flat, train

from regularized_lopt import regularizers, upstream
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.outer_training import curriculum as curriculum_lib
from regularized_lopt.outer_training.objective import ObjectiveCheck
from regularized_lopt.run_files import load_metrics

COLUMNS = [
    "meta_rise",
    "optimizee_rise",
    "meta_rise_at_reference",
    "optimizee_rise_at_reference",
]
T = 4


def test_rises_on_a_quadratic_are_those_of_the_closed_form():
    """SGD on ||p||^2: p_T = (1 - 2 e^theta)^T p_0, and theta is one number."""
    rho, meta_rho, log_lr = 0.3, 0.02, jnp.log(0.1)
    family = upstream.single_task_to_family(quadratics.QuadraticTask(dim=6))
    step = RegularizedTruncatedStep(
        family,
        upstream_lopts.LearnableSGD(),
        curriculum_lib.CurriculumTruncationSchedule(),
        regularizer=regularizers.SAM(rho),
    )
    estimator = RegularizedTruncatedGrad(
        step, unroll_length=T, regularizer=regularizers.SAM(meta_rho)
    )
    check = ObjectiveCheck(num_trajectories=1, rho_theta=0.05, rho_params=0.7)
    outer_state = curriculum_lib.CurriculumOuterState(jnp.asarray(0), jnp.asarray(3 * T))
    found = check.rises(
        estimator,
        {"log_lr": log_lr},
        jax.random.PRNGKey(0),
        outer_state,
        [step.unroll_data(3 * T, "outer_valid")],
    )
    # 2 rho ||p|| + rho^2, at the same params with both radii.
    norm = (found["optimizee_rise"] - rho**2) / (2 * rho)
    np.testing.assert_allclose(found["optimizee_rise_at_reference"], 2 * 0.7 * norm + 0.7**2, 1e-4)

    def objective(shift):
        """(||p_T|| + rho)^2 with another theta over the last T steps."""
        share = ((1 - 2 * jnp.exp(log_lr + shift)) / (1 - 2 * jnp.exp(log_lr))) ** T
        return (norm * share + rho) ** 2

    # The loss falls as theta rises, so the worst theta is the smaller one.
    for column, radius in (("meta_rise", meta_rho), ("meta_rise_at_reference", 0.05)):
        np.testing.assert_allclose(found[column], objective(-radius) - objective(0.0), 2e-3)


def test_of_an_outer_loss_that_is_a_sum_the_rises_are_those_of_the_average():
    step = RegularizedTruncatedStep(
        upstream.single_task_to_family(quadratics.QuadraticTask(dim=3)),
        upstream_lopts.LearnableSGD(),
        curriculum_lib.CurriculumTruncationSchedule(),
        regularizer=regularizers.SAM(0.3),
    )
    outer_state = curriculum_lib.CurriculumOuterState(jnp.asarray(0), jnp.asarray(2 * T))
    found = [
        ObjectiveCheck(num_trajectories=1).rises(
            RegularizedTruncatedGrad(step, unroll_length=T, loss=loss, regularizer="sam"),
            {"log_lr": jnp.log(0.1)},
            jax.random.PRNGKey(0),
            outer_state,
            [step.unroll_data(2 * T, "outer_valid")],
        )
        for loss in ("weighted", "ramp")
    ]
    for column in COLUMNS:
        np.testing.assert_allclose(found[1][column], found[0][column], 1e-3)
        assert found[0][column] > 0


def test_looking_changes_nothing_and_is_logged_with_validations(tmp_path):
    config = ["RegularizedTruncatedStep.regularizer = 'sam'", "Curriculum.max_validations = 3"]
    looked = train(tmp_path / "looked", 8, *config, "ObjectiveCheck.num_trajectories = 2")
    # The same directory may be gone on with without looking.
    train(tmp_path / "looked", 8, *config, "ObjectiveCheck.num_trajectories = 0")
    not_looked = train(tmp_path / "not", 8, *config)
    np.testing.assert_array_equal(flat(looked.theta), flat(not_looked.theta))
    columns = load_metrics(tmp_path / "looked")
    validated = np.isfinite(columns["validation_loss"])
    assert 0 < validated.sum() < len(validated)
    for name in COLUMNS:
        assert np.array_equal(np.isfinite(columns[name]), validated)
        assert np.isnan(load_metrics(tmp_path / "not")[name]).all()
    assert (columns["optimizee_rise"][validated] > 0).all()
    assert (columns["meta_rise"][validated] == 0).all()  # There is no regularizer.


def test_problems_are_looked_at_as_they_are(tmp_path):
    """Trajectories of training are rescaled, those of validation are not."""
    config = [
        "RegularizedTruncatedStep.param_scale_bound = 1.0",
        "RegularizedTruncatedStep.input_scale_bound = 1.0",
        "ObjectiveCheck.num_trajectories = 2",
    ]
    train(tmp_path, 4, *config)
    assert np.isfinite(load_metrics(tmp_path)["optimizee_rise_at_reference"][-1])


def test_the_own_rise_at_the_reference_radius_is_the_reference(tmp_path):
    config = [
        "RegularizedTruncatedStep.regularizer = @p/SAM()",
        "RegularizedTruncatedGrad.regularizer = @t/SAM()",
        "p/SAM.rho = 0.5",
        "t/SAM.rho = 0.05",
        "ObjectiveCheck.num_trajectories = 2",
    ]
    train(tmp_path, 4, *config)
    columns = load_metrics(tmp_path)
    for space in ("meta", "optimizee"):
        own, reference = columns[f"{space}_rise"], columns[f"{space}_rise_at_reference"]
        np.testing.assert_allclose(own, reference, 1e-3, 1e-6)


@pytest.mark.parametrize("name", ["rho_theta", "rho_params"])
def test_a_radius_is_positive(name):
    with pytest.raises(ValueError, match=f"ObjectiveCheck.{name} = 0: it must be greater than 0"):
        ObjectiveCheck(**{name: 0})
    with pytest.raises(ValueError, match=r"ObjectiveCheck.num_trajectories = -1"):
        ObjectiveCheck(num_trajectories=-1)
