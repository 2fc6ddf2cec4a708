"""Outer training on several loss surfaces at once."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from helpers import CONSTANT, KEY, ROOT, TwoLayer, flat, weights

import regularized_lopt
from regularized_lopt import gin_files, regularizers, tasks, upstream, zoo
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.outer_training import outer_train
from regularized_lopt.run_files import load_metrics

LOPT = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
THETA = LOPT.init(KEY)


class Wider(TwoLayer):
    """Another shape of params, and a scalar among them."""

    def init(self, key):
        return {**super().init(key), "scale": jnp.asarray(1.5)}

    def loss(self, params, key, data):
        return params["scale"] ** 2 * super().loss(params, key, data)


def step_for(task, **kwargs):
    return RegularizedTruncatedStep(tasks.as_family(task), LOPT, CONSTANT(10), **kwargs)


def estimate(steps, theta=THETA, **kwargs):
    estimator = RegularizedTruncatedGrad(steps, unroll_length=5, **kwargs)
    state = estimator.init_worker_state(weights(theta), KEY)
    out, _ = estimator.compute_gradient_estimate(weights(theta), ROOT, state, True)
    return out


def test_the_gradient_is_the_weighted_mean_of_the_tasks():
    """Both tasks are deterministic, so that keys do not matter."""
    first, second = (estimate(step_for(task)) for task in (TwoLayer(), Wider()))
    both = estimate([step_for(TwoLayer()), step_for(Wider())], task_weights=(1.0, 3.0))
    expected = 0.25 * flat(first.grad) + 0.75 * flat(second.grad)
    np.testing.assert_allclose(flat(both.grad), expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(
        both.mean_loss, 0.25 * first.mean_loss + 0.75 * second.mean_loss, rtol=1e-6
    )
    assert both.unroll_info.loss.shape == (5, 2)
    for mine, theirs in zip(both.unroll_state, (first, second), strict=True):
        np.testing.assert_allclose(
            flat(mine.inner_opt_state.params),
            flat(theirs.unroll_state.inner_opt_state.params),
            rtol=1e-6,
        )


def test_a_regularizer_perturbs_theta_by_the_gradient_of_the_whole_mixture():
    rho = 0.05
    steps = [step_for(TwoLayer()), step_for(Wider())]
    plain = estimate(steps)
    norm = np.linalg.norm(flat(plain.grad))
    perturbed = jax.tree.map(lambda t, g: t + rho * g / norm, THETA, plain.grad)
    # From the same (zero) state, on the same data, at the perturbed theta.
    expected = estimate(steps, perturbed)
    ours = estimate(steps, regularizer=regularizers.SAM(rho))
    np.testing.assert_allclose(flat(ours.grad), flat(expected.grad), rtol=1e-4, atol=1e-7)
    assert float(ours.mean_loss) == float(plain.mean_loss)
    each = estimate(steps, regularizer=regularizers.SAM(rho), per_task_perturbation=True)
    assert not np.allclose(flat(each.grad), flat(ours.grad), rtol=1e-3)


def test_runs_under_upstream_s_learner():
    from learned_optimization.outer_trainers import gradient_learner

    estimator = RegularizedTruncatedGrad(
        [step_for(TwoLayer(), num_tasks=2), step_for(Wider())], unroll_length=5, regularizer="sam"
    )
    learner = gradient_learner.SingleMachineGradientLearner(LOPT, [estimator], upstream.Adam(1e-3))
    _, loss, _ = learner.update(learner.init(KEY), KEY)
    assert np.isfinite(loss)


def test_bad_weights_are_refused():
    steps = [step_for(TwoLayer()), step_for(Wider())]
    for given in ((1.0,), (0.0, 0.0)):
        with pytest.raises(ValueError, match="give 2 numbers, not all zero"):
            RegularizedTruncatedGrad(steps, task_weights=given)
    with pytest.raises(ValueError, match="it must be 0 or greater"):
        RegularizedTruncatedGrad(steps, task_weights=(1.0, -1.0))


@pytest.mark.slow
def test_networks_of_other_shapes_meta_train_together(tmp_path):
    names = ("ImageMLP_Digits_20_Sigmoid", "ImageMLP_Digits_20_Relu", "Conv_Digits_16x32")
    gin.add_config_file_search_path(str(REPOSITORY))
    gin_files.parse_gin(
        ["gin_configs/digits_mlp_none.gin"],
        [
            f"outer_train.task = {names}",
            "RegularizedTruncatedGrad.task_weights = (1.0, 1.0, 1.0)",
            'RegularizedTruncatedGrad.regularizer = "sam"',
            "SAM.rho = 0.05",
            "outer_train.num_outer_steps = 4",
            "outer_train.log_every = 1",
            "RegularizedTruncatedGrad.unroll_length = 5",
            "Curriculum.train_lengths = (10, 20)",
            "Curriculum.validation_period = 1",
            "Curriculum.num_validation_tasks = 1",
            "LSTMLOpt.hidden_size = 4",
            "ObjectiveCheck.num_trajectories = 0",
        ],
    )
    outer_train(tmp_path, progress=False)
    columns = load_metrics(tmp_path)
    assert np.all(np.isfinite(columns["loss"]))
    assert np.isfinite(columns["validation_loss"]).sum() == 2
    assert zoo.load(tmp_path).metadata["task"] == " + ".join(names)
