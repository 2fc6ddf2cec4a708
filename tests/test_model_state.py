"""Tasks with a model state: meta-trained, trained and judged with running statistics."""

import functools

import chex
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import digits_config
from helpers import CONSTANT, KEY, weights
from learned_optimization.tasks import test_utils
from learned_optimization.tasks.fixed import image_mlp

from regularized_lopt import LSTMLOpt, gin_files, regularizers, tasks, upstream
from regularized_lopt.estimators import (
    RegularizedTruncatedGrad,
    RegularizedTruncatedPES,
    RegularizedTruncatedStep,
)
from regularized_lopt.measure import flatness, optimizers, points
from regularized_lopt.measure.loss_slices import loss_slices
from regularized_lopt.measure.trainer import Trainer
from regularized_lopt.outer_training import outer_train
from regularized_lopt.run_files import load_metrics
from regularized_lopt.study import meta_test
from regularized_lopt.tasks import image, networks

LOPT = LSTMLOpt(hidden_size=2, num_layers=1)
THETA = LOPT.init(KEY)


@functools.cache
def small(phase="meta_train"):
    """An MLP with BatchNorm on Digits."""
    datasets = image.ImageDatasets("Digits", phase, 16)
    return tasks.ImageTask("small", networks.normalized_mlp([4], jax.nn.relu), datasets)


def upstream_s():
    """Its MLP with Haiku's BatchNorm, on our images."""
    datasets = image.ImageDatasets("Digits", "meta_train", 16)
    return image_mlp._MLPImageTaskNorm(datasets, [4], norm_type="batch_norm")


def test_statistics_are_the_batch_s_in_training_and_running_ones_in_evaluation():
    task = small()
    params, state = task.init_with_state(KEY)
    batch = next(task.datasets.train)
    loss, after = task.loss_with_state(params, state, KEY, batch)
    moved = jax.tree.map(lambda leaf: leaf + 1.0, state)
    assert (
        loss == task.loss_with_state(params, moved, KEY, batch)[0] == task.loss(params, KEY, batch)
    )
    x = np.asarray(batch["image"], np.float64).reshape(16, -1) @ params["linear"]["w"]
    np.testing.assert_allclose(after["batch_norm"]["mean"], 0.1 * x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(
        after["batch_norm"]["variance"], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-4
    )
    logits = task.logits(params, batch["image"], after)
    hidden = np.maximum((x - 0.1 * x.mean(0)) / np.sqrt(0.9 + 0.1 * x.var(0, ddof=1)), 0)
    np.testing.assert_allclose(
        logits, hidden @ params["linear_1"]["w"] + params["linear_1"]["b"], rtol=1e-3, atol=1e-4
    )
    # In evaluation an image's logits do not depend on its batch.
    alone = task.logits(params, batch["image"][:1], after)
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-4, atol=1e-5)


def test_they_pass_upstream_s_smoke_test():
    test_utils.smoketest_task(small())
    stateless = tasks.get("ImageMLP_Digits_20_Relu")
    assert stateless.init_with_state(KEY)[1] is None


ESTIMATORS = {"bptt": RegularizedTruncatedGrad, "pes": RegularizedTruncatedPES}


@functools.cache
def estimated(task, estimator, space=None, name="none"):
    """One outer step: (theta's gradient, where the trajectory is after it)."""
    one = regularizers.get(name)
    step = RegularizedTruncatedStep(
        tasks.as_family(task),
        LOPT,
        CONSTANT(8),
        regularizer=one if space == "optimizee" else "none",
    )
    made = ESTIMATORS[estimator](
        step,
        unroll_length=4,
        regularizer=one if space == "meta" else "none",
        smoothing=regularizers.Smoothing(num_steps=2) if space == "smoothing" else None,
    )
    state = made.init_worker_state(weights(THETA), KEY)
    out, _ = made.compute_gradient_estimate(weights(THETA), KEY, state, with_summary=False)
    return out.grad, out.unroll_state


def inner(after):
    """The learned optimizer's states, of one trajectory or of the particles of PES."""
    return getattr(after, "particles", after).inner_opt_state


@pytest.mark.parametrize("make", [small, upstream_s])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_meta_training_carries_the_state(make, estimator):
    """By every inner step; theta has a gradient."""
    task = make()
    grad, after = estimated(task, estimator)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grad)) > 0
    state = inner(after).state
    start = task.init_with_state(KEY)[1]
    assert jax.tree.structure(state) == jax.tree.structure(start)
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(start), strict=True):
        assert np.all(np.isfinite(new))
        assert not np.any(np.allclose(new, old))


IN_OPTIMIZEE_SPACE = (
    "sam", "asam", "gsam", "gam", "hessian_trace", "hessian_top", "hessian_frobenius", "l2",
    "orthogonal",
)  # fmt: skip


@pytest.mark.parametrize(
    ("estimator", "space", "name"),
    [
        *(("bptt", "meta", name) for name in ("sam", "gam")),
        *(("bptt", "optimizee", name) for name in IN_OPTIMIZEE_SPACE),
        ("pes", "meta", "sam"),
        *(("pes", "optimizee", name) for name in ("sam", "orthogonal")),
        *((name, "smoothing", "none") for name in ESTIMATORS),
    ],
)
def test_no_regularizer_changes_the_inner_trajectory(estimator, space, name):
    """Params, running statistics and hidden states, to the bit; theta's gradient is another."""
    task = small()
    plain, regularized = estimated(task, estimator), estimated(task, estimator, space, name)
    chex.assert_trees_all_equal(inner(plain[1]), inner(regularized[1]))
    assert not jax.tree.all(jax.tree.map(np.array_equal, plain[0], regularized[0]))


def test_a_resumed_run_ends_in_the_same_bits(tmp_path):
    """Stopped within a trajectory, whose running statistics the checkpoint has."""

    def train(directory, num_outer_steps):
        gin.clear_config()
        task = 'outer_train.task = "ImageMLP_Digits_20_BatchNorm_Relu"'
        gin_files.parse_gin([], digits_config(num_outer_steps, task))
        return outer_train(tmp_path / directory, progress=False)

    whole = train("whole", 5)
    train("resumed", 3)
    (checkpoint,) = (tmp_path / "resumed/checkpoints").glob("checkpoint_*3.npz")
    assert any("batch_norm" in name for name in np.load(checkpoint))
    resumed = train("resumed", 5)
    chex.assert_trees_all_equal(resumed.theta, whole.theta)
    curves = [load_metrics(tmp_path / name) for name in ("resumed", "whole")]
    for column in ("loss", "grad_norm", "validation_loss"):
        np.testing.assert_array_equal(curves[0][column], curves[1][column])


def test_upstream_s_optimizers_and_ours_carry_it():
    task = small()
    batch = next(task.datasets.train)
    params, state = task.init_with_state(KEY)
    (loss, after), grad = jax.value_and_grad(task.loss_with_state, has_aux=True)(
        params, state, KEY, batch
    )
    for opt in (upstream.SGD(0.1), LOPT.opt_fn(THETA)):
        opt_state = opt.init(params, model_state=state)
        opt_state = opt.update(opt_state, grad, loss=loss, model_state=after)
        chex.assert_trees_all_equal(opt.get_params_state(opt_state)[1], after)


@pytest.fixture(scope="module")
def trained():
    """(task, two runs of SGD for 30 steps)."""
    task = small("meta_test")
    trainer = Trainer(task, 2, 30, eval_steps=[0, 30], progress=False)
    return task, trainer.train([optimizers.baseline("SGD", 0.3)])["SGD"]


def test_meta_test_judges_by_running_statistics(trained):
    """Accuracy and loss at the end are those of a loop by hand, of params and statistics."""
    task, curves = trained
    raw = task.datasets.host_arrays("test")
    batch = task.datasets.normalize(raw)
    for run in range(2):
        point = jax.tree.map(lambda leaf, run=run: leaf[run], curves.saved_params.final)
        params, state = points.parted(task, point)
        x = np.asarray(batch["image"], np.float64).reshape(len(raw["label"]), -1)
        norm, own = params["batch_norm"], state["batch_norm"]
        x = x @ params["linear"]["w"] - own["mean"]
        x = np.maximum(x / np.sqrt(own["variance"] + 1e-5) * norm["scale"] + norm["offset"], 0)
        logits = x @ params["linear_1"]["w"] + params["linear_1"]["b"]
        accuracy = np.mean(logits.argmax(1) == raw["label"])
        assert curves.test_accuracy[run, -1] == pytest.approx(accuracy, abs=0.01)
        assert accuracy > 0.3
        # Not by those of the test batch, nor by those at the start.
        batch_s = float(jnp.mean(task.per_example(params, batch, KEY)["loss"]))
        start_s = float(jnp.mean(task.judged(params, task.init_with_state(KEY)[1], batch)["loss"]))
        assert abs(curves.test_loss[run, -1] - batch_s) > 1e-4
        assert abs(curves.test_loss[run, -1] - start_s) > 1e-2
    norm = np.sqrt(
        sum(
            np.sum(np.square(leaf[0]))
            for leaf in jax.tree.leaves(curves.saved_params.final["params"])
        )
    )
    assert curves.param_norm[0, -1] == pytest.approx(norm, rel=1e-5)


def test_statistics_are_those_of_a_loop_by_hand(trained):
    """The same inits and batches: a run's key folded with its uses, see `measure.programs`."""
    task, curves = trained
    from regularized_lopt.measure import programs

    key = jax.random.fold_in(jax.random.PRNGKey(0), 1)
    params, state = task.init_with_state(jax.random.fold_in(key, programs._PARAMS))
    train = task.datasets.arrays("train")

    @jax.jit
    def step(params, state, t):
        batch_key = jax.random.fold_in(jax.random.fold_in(key, programs._BATCHES), t)
        batch = task.datasets.sample(train, batch_key)
        (_, state), grad = jax.value_and_grad(task.loss_with_state, has_aux=True)(
            params, state, key, batch
        )
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grad), state

    for t in range(30):
        params, state = step(params, state, t)
    found = jax.tree.map(lambda leaf: leaf[1], curves.saved_params.final)
    chex.assert_trees_all_close(points.parted(task, found), (params, state), rtol=1e-3, atol=1e-4)


def test_flatness_is_measured_with_frozen_statistics(trained):
    """At the centre the held-out loss is the judged one; perturbing moves the params alone."""
    task, curves = trained
    what = flatness.FlatnessConfig(
        radii=(0.01,),
        num_steps=2,
        num_examples=359,
        headline_starts=1,
        num_probes=1,
        num_iterations=1,
    )
    point = curves.saved_params.final
    found = flatness.measure(task, point, what)
    np.testing.assert_allclose(found.loss, curves.test_loss[:, -1], rtol=1e-4)
    moved = {**point, "model_state": jax.tree.map(lambda leaf: leaf + 0.5, point["model_state"])}
    assert not np.allclose(flatness.measure(task, moved, what).loss, found.loss)
    one = jax.tree.map(lambda leaf: leaf[0], point)
    slices = loss_slices(task, one, num_points=3, num_examples=359)
    assert slices.plane[1, 1] == pytest.approx(float(found.loss[0]), rel=1e-4)


def test_meta_test_in_one_call_keeps_and_measures_around_it():
    """Through the cache, at all points: convergence, completion and matched training loss."""
    what = flatness.FlatnessConfig(
        radii=(0.01,),
        num_steps=1,
        num_examples=100,
        headline_starts=1,
        num_probes=0,
        scales=(*flatness.SCALES, "live"),
    )
    found = meta_test(
        {"fast": upstream.SGD(0.3), "slow": upstream.SGD(0.1)},
        "ImageMLP_Digits_20_BatchNorm_Relu",
        num_runs=1,
        num_steps=30,
        baselines=(),
        flatness_config=what,
        progress=False,
    )
    assert found.test_accuracy.values[..., -1].min() > 0.6
    for name in ("around_loss", "around_loss_last", "around_live_norm", "plane"):
        assert np.all(np.isfinite(found[name].values)), name
    assert np.all(np.isfinite(found.matched_loss.values[1]))  # The reference has no other.
