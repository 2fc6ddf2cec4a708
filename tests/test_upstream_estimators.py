"""Upstream's own estimators with our regularizers, on whichever generation is installed."""

import functools
import os
import subprocess
import sys

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, needs_tensorflow
from helpers import CONSTANT, KEY, Ascent, TwoLayer, cosine, flat, weights
from learned_optimization.learned_optimizers import base as lopt_base
from learned_optimization.outer_trainers import full_es, truncated_es, truncated_grad, truncated_pes

import regularized_lopt
from regularized_lopt import gin_files, regularizers, upstream
from regularized_lopt.estimators import FlatnessAwareFamily, RegularizedTruncatedStep, regularized

WHEEL = upstream.GENERATION == "wheel"
NAMES = ("TruncatedES", "TruncatedPES", "FullES", "TruncatedGrad")
NUM_TASKS = 6


def build(name, family, lopt, regularizer="none", horizon=10, **kwargs):
    """An estimator of upstream's, with `regularizer` in optimizee space."""
    cls = {
        "TruncatedES": truncated_es.TruncatedES,
        "TruncatedPES": truncated_pes.TruncatedPES,
        "FullES": full_es.FullES,
        "TruncatedGrad": truncated_grad.TruncatedGrad,
    }[name]
    if name == "FullES":
        endless = "NeverEndingTruncationSchedule"  # Main's FullES cuts trajectories itself.
        schedule = None if WHEEL else getattr(upstream.truncation_schedule, endless)()
        kwargs |= {"unroll_length": 5} if WHEEL else {"truncation_schedule": CONSTANT(5)}
        kwargs |= {"steps_per_jit": 5}
    else:
        schedule = CONSTANT(horizon)
        kwargs |= {"steps_per_jit": 5}
        kwargs |= {"trunc_length" if name == "TruncatedPES" else "unroll_length": 5}
    if not WHEEL:
        step = RegularizedTruncatedStep(
            family, lopt, schedule, num_tasks=NUM_TASKS, regularizer=regularizer
        )
        return cls(step, **kwargs)
    if name == "FullES":
        family = FlatnessAwareFamily(family, regularizer, as_aux=True)
        return cls(
            family,
            lopt,
            num_tasks=NUM_TASKS,
            meta_loss_with_aux_key="regularized_loss",
            **kwargs,
        )
    family = FlatnessAwareFamily(family, regularizer)
    return cls(family, lopt, schedule, NUM_TASKS, train_and_meta=True, **kwargs)


def run(estimator, theta, key=KEY, state=None):
    state = state or estimator.init_worker_state(weights(theta), KEY)
    return estimator.compute_gradient_estimate(weights(theta), key, state, False)


class Counting:
    """An endless iterator of small batches that counts."""

    def __init__(self):
        self.count = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.count += 1
        rng = np.random.default_rng(self.count)
        return {"x": rng.normal(size=(4, 3)), "y": rng.normal(size=(4, 1))}


class WithData(TwoLayer):
    def __init__(self):
        self.stream = Counting()
        example = {
            "x": jax.ShapeDtypeStruct((4, 3), jnp.float32),
            "y": jax.ShapeDtypeStruct((4, 1), jnp.float32),
        }
        self.datasets = upstream.Datasets(*[self.stream] * 4, abstract_batch=example)

    def loss(self, params, key, data):
        del key
        return jnp.mean((jnp.tanh(data["x"] @ params["w1"]) @ params["w2"] - data["y"]) ** 2)


LOPT = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
THETA = LOPT.init(KEY)


@functools.cache
def plain(name):
    """What the estimator alone gives, and how many batches it drew."""
    task = WithData()
    out, _ = run(build(name, upstream.single_task_to_family(task), LOPT), THETA)
    return out, task.stream.count


def with_regularizer(name, regularizer):
    """The same of ours in meta space, and its metrics."""
    task = WithData()
    estimator = build(name, upstream.single_task_to_family(task), LOPT)
    out, metrics = run(regularized(estimator, regularizer), THETA)
    return out, task.stream.count, metrics


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_none_is_bit_identical_to_the_estimator_alone(name):
    wrapped, _, metrics = with_regularizer(name, "none")
    for a, b in zip(jax.tree.leaves(plain(name)[0]), jax.tree.leaves(wrapped), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(metrics["mean||nonfinite"]) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("regularizer", ["sam", "gam"])
def test_every_call_sees_the_same_batches_and_the_stream_advances_once(name, regularizer):
    """State and loss are those of the unperturbed call; only the gradient changes."""
    (alone, drawn), (ours, our_drawn, _) = plain(name), with_regularizer(name, regularizer)
    assert drawn == our_drawn > 0
    for a, b in zip(
        jax.tree.leaves((alone.unroll_state, alone.mean_loss)),
        jax.tree.leaves((ours.unroll_state, ours.mean_loss)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert np.all(np.isfinite(flat(ours.grad)))
    assert not np.allclose(flat(alone.grad), flat(ours.grad))


@pytest.mark.parametrize("name", NAMES)
def test_at_radius_0_nothing_is_left_of_the_correction(name):
    """Every call is the same call on the same data."""
    same, *_ = with_regularizer(name, regularizers.SAM(lambda step: 0.0 * step))
    np.testing.assert_array_equal(flat(same.grad), flat(plain(name)[0].grad))


class Spy(regularized_lopt.LSTMLOpt):
    """Notes every loss and gradient that the optimizer is given."""

    def __init__(self):
        super().__init__(hidden_size=3, num_layers=1)
        self.seen = []

    def opt_fn(self, theta, is_training=False):
        opt = super().opt_fn(theta, is_training)
        update = opt.update

        def noted(opt_state, grad, loss=None, **kwargs):
            jax.debug.callback(lambda *seen: self.seen.append(flat(seen)), loss, grad)
            return update(opt_state, grad, loss=loss, **kwargs)

        opt.update = noted
        return opt


def followed(name, regularizer):
    """An estimate in optimizee space, and all losses and gradients of its inner trajectories."""
    spy = Spy()
    out, _ = run(build(name, upstream.single_task_to_family(WithData()), spy, regularizer), THETA)
    jax.effects_barrier()
    return out, np.array(sorted(map(tuple, spy.seen)))  # Callbacks come in any order.


@functools.cache
def followed_without(name):
    return followed(name, "none")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "regularizer",
    [
        pytest.param(each, marks=() if each in ("sam", "hessian_trace") else pytest.mark.slow)
        for each in regularizers.names()
        if each != "none"
    ],
)
def test_in_optimizee_space_the_inner_trajectory_is_bit_identical(name, regularizer):
    """The hypothesis: the user's loss, gradients and batches are those of plain training."""
    (alone, seen), (ours, our_seen) = followed_without(name), followed(name, regularizer)
    assert len(seen) >= 5 * NUM_TASKS
    np.testing.assert_array_equal(seen, our_seen)
    states = (jax.tree.leaves(out.unroll_state) for out in (alone, ours))
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(flat(alone.grad), flat(ours.grad), rtol=1e-5, atol=0)
    assert float(alone.mean_loss) != float(ours.mean_loss)


@pytest.mark.slow
def test_it_is_bit_identical_as_xla_compiles_for_users_too():
    """Tests lower XLA's optimization, which is what may fuse differently with a regularizer."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider"),
            *("-k", "bit_identical and (sam or hessian_trace) and not (asam or gsam or xla)"),
            *("tests/test_upstream_estimators.py", "tests/test_truncated_grad.py"),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]


class SetsParams(lopt_base.LearnedOptimizer):
    """params <- theta: the outer loss is then the task's loss at theta, known in closed form."""

    def init(self, key):
        return jnp.asarray([1.0, -1.0, 0.5, 0.25])

    def opt_fn(self, theta, is_training=False):
        class Opt(upstream.Optimizer):
            def init(self, params, model_state=None, num_steps=None, key=None, **kwargs):
                return {"params": params, "state": model_state, "iteration": jnp.asarray(0)}

            def get_params(self, state):
                return state["params"]

            def get_state(self, state):
                return state["state"]

            def update(self, state, grad, loss=None, model_state=None, key=None, **kwargs):
                iteration = state["iteration"] + 1
                return {"params": theta, "state": model_state, "iteration": iteration}

            def set_params(self, state, params):
                return {**state, "params": params}

        return Opt()


A = np.diag([8.0, 3.0, 1.0, 0.2])


class Bowl(upstream.Task):
    datasets = None

    def init(self, key):
        return jnp.zeros(4)

    def loss(self, params, key, data):
        return 0.5 * params @ jnp.asarray(A, params.dtype) @ params


def mean_correction(estimator, regularizer, num_keys=60):
    theta = SetsParams().init(KEY)
    corrections = []
    for i in range(num_keys):
        key = jax.random.PRNGKey(i)
        plain, _ = run(regularized(estimator, "none"), theta, key)
        ours, _ = run(regularized(estimator, regularizer), theta, key)
        corrections.append(flat(ours.grad) - flat(plain.grad))
    return np.mean(corrections, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TruncatedES", "TruncatedPES"])
def test_the_mean_correction_of_sam_points_along_h_g(name):
    """E[SAM - none] is along H g / ||g||; none under the name of SAM would not pass."""
    estimator = build(name, upstream.single_task_to_family(Bowl()), SetsParams(), std=0.05)
    theta = np.asarray(SetsParams().init(KEY))
    g = A @ theta
    expected = A @ g / np.linalg.norm(g)

    def cosine(correction):
        norm = np.linalg.norm(correction)
        return correction @ expected / (norm * np.linalg.norm(expected)) if norm else 0.0

    assert cosine(mean_correction(estimator, regularizers.SAM(0.1))) > 0.9
    assert not cosine(mean_correction(estimator, "none", 2)) > 0.9
    # And it is not a rescaled gradient: that is what the independent key is for.
    assert expected @ g / np.linalg.norm(expected) / np.linalg.norm(g) < 0.99


@pytest.mark.parametrize("name", ["TruncatedES", "TruncatedPES"])
def test_the_direction_of_ascent_shares_no_noise_with_the_estimate(name):
    """Not that of earlier unrolls either, which is most of PES'."""
    plain = build(name, upstream.single_task_to_family(WithData()), LOPT, horizon=100)
    ascent = regularized(plain, Ascent())
    state = plain.init_worker_state(weights(THETA), KEY)
    cosines = []
    for i in range(12):
        key = jax.random.fold_in(KEY, i)
        (one, _), (other, _) = (run(each, THETA, key, state) for each in (plain, ascent))
        cosines.append(cosine(flat(one.grad), flat(other.grad)))
        state = one.unroll_state
    assert abs(np.mean(cosines[4:])) < 0.3


def test_what_is_not_finite_is_zeroed_counted_and_redrawn():
    estimator = regularized(
        build("TruncatedPES", upstream.single_task_to_family(WithData()), LOPT), "sam"
    )
    state = estimator.init_worker_state(weights(THETA), KEY)
    bad = jax.tree.map(lambda x: x * jnp.nan, THETA)
    out, metrics = run(estimator, bad, state=state)
    assert float(metrics["mean||nonfinite"]) == 1
    np.testing.assert_array_equal(flat(out.grad), 0)
    assert np.all(out.unroll_state.pos_state.is_done)
    for a, b in zip(
        jax.tree.leaves(out.unroll_state.pos_state.inner_opt_state),
        jax.tree.leaves(state.pos_state.inner_opt_state),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    recovered, metrics = run(estimator, THETA, state=out.unroll_state)
    assert np.all(np.isfinite(flat(recovered.grad)))


def test_attributes_are_forwarded_and_derivatives_refused():
    estimator = build("TruncatedPES", upstream.single_task_to_family(TwoLayer()), LOPT)
    wrapped = regularized(estimator, "sam")
    assert isinstance(wrapped, upstream.GradientEstimator)
    assert wrapped.trunc_length == 5
    assert wrapped.std == estimator.std
    with pytest.raises(AttributeError):
        _ = wrapped.no_such_thing
    for name in ("hessian_trace", regularizers.GAM(form="hvp")):
        with pytest.raises(ValueError, match="Choose one of none, sam, asam, gsam, gam, l2"):
            regularized(estimator, name)


@needs_tensorflow
@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.skipif(not WHEEL, reason="the wheel's launch; main's is below")
def test_the_wheel_s_config_runs_in_local_train(tmp_path):
    from learned_optimization import outer_train
    from learned_optimization.outer_trainers import gradient_learner

    gin.add_config_file_search_path(str(REPOSITORY))
    gin_files.parse_gin(["gin_configs/upstream_wheel.gin"], ["LSTMLOpt.hidden_size = 3"])
    lopt = regularized_lopt.LSTMLOpt()
    learner = gradient_learner.GradientLearner(lopt, upstream.Adam(1e-3))
    outer_train.local_train(
        str(tmp_path), lopt, learner, num_estimators=1, num_steps=3, summary_every_n=2
    )
    assert list(tmp_path.glob("params_*"))


@needs_tensorflow
@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.skipif(WHEEL, reason="only upstream main has run_outer_train_single")
def test_main_s_config_runs_in_run_outer_train_single(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "learned_optimization.run_outer_train_single"),
            f"--config_file={REPOSITORY}/gin_configs/upstream_main.gin",
            "--gin_bindings=run_train.num_steps = 3",
            "--gin_bindings=LSTMLOpt.hidden_size = 3",
            f"--train_log_dir={tmp_path}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert list(tmp_path.glob("params_*"))
