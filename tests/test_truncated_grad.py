import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import needs_tensorflow
from helpers import CONSTANT, KEY, ROOT, TwoLayer, flat, make, run, weights
from learned_optimization.learned_optimizers import base as lopt_base
from learned_optimization.outer_trainers import gradient_learner
from learned_optimization.tasks import quadratics

import regularized_lopt
from regularized_lopt import regularizers, tasks, upstream
from regularized_lopt.estimators import RegularizedTruncatedStep
from regularized_lopt.estimators import unroll as unroll_lib
from regularized_lopt.estimators.states import UnrollState


def reference_outer_loss(lopt, task, steps, loss_weights):
    """The unroll written out by hand: no scan, no remat, no vmap, no jit."""

    def outer_loss(theta):
        opt = lopt.opt_fn(theta)
        params = task.init(None)
        state, losses = opt.init(params), []
        for _ in range(steps):
            grad = jax.grad(task.loss)(opt.get_params(state), None, None)
            state = opt.update(state, grad)
            losses.append(task.loss(opt.get_params(state), None, None))
        return jnp.dot(jnp.asarray(loss_weights), jnp.stack(losses))

    return outer_loss


def double(theta):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), theta)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("loss", "loss_weights"),
    [("last", [0, 0, 0, 1.0]), ("mean", [0.25] * 4), ("weighted", [0.1, 0.2, 0.3, 0.4])],
)
def test_gradient_is_that_of_the_unroll_written_by_hand(loss, loss_weights):
    with jax.enable_x64(True):
        task, lopt = TwoLayer(), regularized_lopt.LSTMLOpt()
        theta = double(lopt.init(KEY))
        (grad,), (value,), _ = run(make(task, unroll_length=4, loss=loss), theta)
        expected_value, expected = jax.value_and_grad(
            reference_outer_loss(lopt, task, 4, loss_weights)
        )(theta)
        np.testing.assert_allclose(value, expected_value, rtol=1e-10)
        np.testing.assert_allclose(flat(grad), flat(expected), rtol=1e-8, atol=1e-12)


@pytest.mark.smoke
def test_sam_in_meta_space_agrees_with_a_float64_reference():
    with jax.enable_x64(True):
        task, lopt, rho = TwoLayer(), regularized_lopt.LSTMLOpt(), 0.05
        theta = double(lopt.init(KEY))
        estimator = make(task, unroll_length=4, regularizer=regularizers.SAM(rho))
        (grad,), (value,), _ = run(estimator, theta)
        outer_loss = reference_outer_loss(lopt, task, 4, [0, 0, 0, 1.0])
        g = jax.grad(outer_loss)(theta)
        norm = np.linalg.norm(flat(g))
        perturbed = jax.tree.map(lambda t, leaf: t + rho * leaf / norm, theta, g)
        np.testing.assert_allclose(flat(grad), flat(jax.grad(outer_loss)(perturbed)), rtol=1e-6)
        np.testing.assert_allclose(value, outer_loss(theta), rtol=1e-10)  # Logged loss: plain.


@pytest.mark.smoke
def test_sam_in_optimizee_space_agrees_with_a_float64_reference():
    with jax.enable_x64(True):
        task, lopt, rho = TwoLayer(), regularized_lopt.LSTMLOpt(), 0.5
        theta = double(lopt.init(KEY))
        estimator = make(task, unroll_length=4, step={"regularizer": regularizers.SAM(rho)})
        (grad,), (value,), _ = run(estimator, theta)

        def last_params(theta):
            opt = lopt.opt_fn(theta)
            state = opt.init(task.init(None))
            for _ in range(4):
                grad = jax.grad(task.loss)(opt.get_params(state), None, None)
                state = opt.update(state, grad)
            return opt.get_params(state)

        end = last_params(theta)
        g = jax.grad(task.loss)(end, None, None)
        norm = np.linalg.norm(flat(g))
        e = jax.tree.map(lambda leaf: rho * leaf / norm, g)

        def sharp_loss(theta):
            return task.loss(jax.tree.map(jnp.add, last_params(theta), e), None, None)

        np.testing.assert_allclose(flat(grad), flat(jax.grad(sharp_loss)(theta)), rtol=1e-6)
        np.testing.assert_allclose(value, task.loss(end, None, None), rtol=1e-10)


def test_gradient_agrees_with_finite_differences():
    """Along a random direction; the inner gradient is an input, so it is frozen here too."""
    with jax.enable_x64(True):
        task, lopt = TwoLayer(), regularized_lopt.LSTMLOpt()
        theta = double(lopt.init(KEY))
        (grad,), _, _ = run(make(task, unroll_length=4), theta)
        opt = lopt.opt_fn(theta)
        state, inputs = opt.init(task.init(None)), []
        for _ in range(4):
            inputs.append(jax.grad(task.loss)(opt.get_params(state), None, None))
            state = opt.update(state, inputs[-1])

        def frozen(theta):
            opt = lopt.opt_fn(theta)
            state = opt.init(task.init(None))
            for gradient in inputs:
                state = opt.update(state, gradient)
            return task.loss(opt.get_params(state), None, None)

        rng = np.random.default_rng(0)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), theta)
        h = 1e-6
        up, down = (
            frozen(jax.tree.map(lambda t, d, s=sign: t + s * h * d, theta, direction))
            for sign in (1, -1)
        )
        np.testing.assert_allclose(flat(grad) @ flat(direction), (up - down) / (2 * h), rtol=1e-6)


@functools.cache
def digits_run(loss="last", meta="none", optimizee="none", per_task=False):
    """5 x 5 steps: across a reset at 20."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=4, num_layers=1)
    estimator = make(
        "ImageMLP_Digits_20_Sigmoid",
        lopt=lopt,
        unroll_length=5,
        loss=loss,
        regularizer=meta,
        per_task_perturbation=per_task,
        step={"num_tasks": 2, "regularizer": optimizee},
    )
    return run(estimator, lopt.init(KEY), 5)


@pytest.mark.parametrize(
    "variant",
    [
        {"meta": "sam"},
        {"optimizee": "sam"},
        {"meta": "sam", "per_task": True},
        {"meta": "sam", "optimizee": "sam", "loss": "weighted"},
    ],
)
def test_inner_trajectories_are_bit_identical_with_and_without_a_regularizer(variant):
    grads, losses, state = digits_run(variant.get("loss", "last"))
    reg_grads, reg_losses, reg_state = digits_run(**variant)
    assert int(state.inner_step[0]) == 5
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(reg_state), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(losses, reg_losses)
    assert not np.allclose(flat(grads[0]), flat(reg_grads[0]))


def test_per_task_perturbation_is_the_mean_of_single_tasks():
    with jax.enable_x64(True):
        lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
        theta = double(lopt.init(KEY))
        estimator = make(
            tasks.CubicRegressionFamily(hidden_size=3),
            lopt=lopt,
            unroll_length=2,
            regularizer="sam",
            per_task_perturbation=True,
            step={"num_tasks": 3},
        )
        state = estimator.init_worker_state(weights(theta), KEY)
        data, outer_state = estimator.get_datas(), upstream.OuterState(jnp.asarray(0))
        estimate = jax.jit(estimator.estimate)(theta, state, ROOT, data, outer_state)
        keys = jax.random.split(jax.random.split(ROOT)[0], 3)

        @jax.jit
        @jax.grad
        def outer_grad(theta, one, key):
            unroll = unroll_lib.Unroll(estimator.truncated_step, 2)
            return unroll(theta, one, key, data, outer_state)[0]

        total = 0.0
        for i in range(3):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], state)
            g = outer_grad(theta, one, keys[i])
            norm = np.linalg.norm(flat(g))
            at = jax.tree.map(lambda t, leaf, n=norm: t + 0.05 * leaf / n, theta, g)
            total += flat(outer_grad(at, one, keys[i]))
        np.testing.assert_allclose(flat(estimate.grad), total / 3, rtol=1e-7, atol=1e-12)


def test_a_nonfinite_estimate_is_zero_counted_and_followed_by_a_fresh_trajectory():
    class Explodes(TwoLayer):
        def loss(self, params, key, data):
            return super().loss(params, key, data) * jnp.inf

    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta = lopt.init(KEY)
    estimator = make(Explodes(), lopt=lopt, unroll_length=5)
    state = estimator.init_worker_state(weights(theta), KEY)
    out, metrics = estimator.compute_gradient_estimate(weights(theta), KEY, state)
    assert float(metrics["mean||nonfinite"]) == 1
    assert not np.any(flat(out.grad))
    params = flat(out.unroll_state.inner_opt_state.params)
    np.testing.assert_array_equal(params, flat(state.inner_opt_state.params))
    assert bool(out.unroll_state.is_done.all())


def test_an_unroll_leaves_the_dtypes_of_its_state_in_float64_too():
    """Else a checkpoint would not fit the state of the run that it is to resume."""
    with jax.enable_x64(True):
        lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
        theta = lopt.init(KEY)
        estimator = make(TwoLayer(), lopt=lopt, unroll_length=5)
        state = estimator.init_worker_state(weights(theta), KEY)
        out, _ = estimator.compute_gradient_estimate(weights(theta), KEY, state)
        before, after = (jax.tree.map(lambda x: x.dtype, s) for s in (state, out.unroll_state))
        assert out.mean_loss.dtype == np.float64
        assert before == after


@pytest.mark.parametrize("factor", [1e6, np.nan])
def test_a_trajectory_that_explodes_ends_alone_and_another_is_drawn(factor):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta = lopt.init(KEY)
    estimator = make(TwoLayer(), lopt=lopt, unroll_length=5, step={"num_tasks": 3})

    def estimate(state, index):
        return estimator.compute_gradient_estimate(
            weights(theta), jax.random.fold_in(KEY, index), state
        )

    out, _ = estimate(estimator.init_worker_state(weights(theta), KEY), 0)
    initial = TwoLayer().loss(TwoLayer().init(KEY), None, None)
    np.testing.assert_allclose(out.unroll_state.first_loss, initial, rtol=1e-6)
    thrown = out.unroll_state.inner_opt_state.params
    thrown = {**thrown, "w2": thrown["w2"].at[1].multiply(factor)}
    opt_state = out.unroll_state.inner_opt_state.replace(params=thrown)
    out, metrics = estimate(out.unroll_state.replace(inner_opt_state=opt_state), 1)
    assert float(metrics["mean||redrawn"]) == 1
    assert float(metrics["mean||nonfinite"]) == np.isnan(factor)
    assert out.unroll_state.is_done.tolist() == [False, True, False]
    out, metrics = estimate(out.unroll_state, 2)
    assert float(metrics["mean||redrawn"]) == float(metrics["mean||nonfinite"]) == 0
    assert out.unroll_state.inner_step.tolist() == [15, 5, 15]
    assert np.all(np.isfinite(flat(out.unroll_state.inner_opt_state.params)))


@pytest.mark.parametrize("explosion_factor", [1e3, np.inf])
def test_a_trajectory_that_starts_at_a_loss_of_zero_does_not_explode(explosion_factor):
    class AtItsMinimum(TwoLayer):
        """Seen from one side, so that an optimizer leaves it."""

        def loss(self, params, key, data):
            away = jnp.sum(params["w1"] - self.init(key)["w1"])
            return jnp.where(away >= 0, away, -away)

    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta = lopt.init(KEY)
    step = {"explosion_factor": explosion_factor}
    estimator = make(AtItsMinimum(), lopt=lopt, unroll_length=5, step=step)
    state = estimator.init_worker_state(weights(theta), KEY)
    out, metrics = estimator.compute_gradient_estimate(weights(theta), KEY, state)
    assert float(out.unroll_state.first_loss[0]) == 0
    assert float(out.mean_loss) > 0
    assert float(metrics["mean||redrawn"]) == 0


@pytest.mark.smoke
def test_runs_under_upstream_s_learner_on_tasks_with_and_without_data():
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    for task in (quadratics.BatchQuadraticTask(), quadratics.QuadraticTask(5)):
        estimator = make(task, lopt=lopt, unroll_length=5, regularizer="sam", step={"num_tasks": 2})
        assert isinstance(estimator, gradient_learner.GradientEstimator)
        learner = gradient_learner.SingleMachineGradientLearner(
            lopt, [estimator], upstream.Adam(1e-3)
        )
        state = learner.init(KEY)

        def theta(state, learner=learner):  # Its own getter has another name in each generation.
            inner = learner.gradient_learner
            return flat(inner.get_state_for_worker(state.gradient_learner_state).theta)

        before = theta(state)
        for i in range(3):
            state, loss, metrics = learner.update(
                state, jax.random.fold_in(KEY, i), with_metrics=True
            )
        assert np.isfinite(loss)
        assert "mean||nonfinite" in metrics
        assert not np.allclose(before, theta(state))


@needs_tensorflow
@pytest.mark.smoke
@pytest.mark.parametrize("estimator", ["Grad", "PES", "ES"])
def test_runs_in_upstream_s_outer_train(tmp_path, estimator):
    from learned_optimization import outer_train

    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    gin.parse_config(
        """
        build_gradient_estimators.learned_opt = @LSTMLOpt()
        build_gradient_estimators.sample_task_family_fn = @sample_single_task_family
        build_gradient_estimators.gradient_estimator_fn = @RegularizedTruncatedGrad
        sample_single_task_family.task_family = @single_task_to_family()
        single_task_to_family.task = @ImageMLP_Digits_20_Sigmoid()
        ImageMLP_Digits_20_Sigmoid.phase = "meta_train"
        LSTMLOpt.hidden_size = 3
        RegularizedTruncatedGrad.regularizer = "sam"
        RegularizedTruncatedGrad.unroll_length = 5
        RegularizedTruncatedStep.trunc_sched = @StagedTruncationSchedule()
        """.replace("TruncatedGrad", f"Truncated{estimator}")
    )
    if upstream.GENERATION == "main":
        gin.parse_config("build_gradient_estimators.truncated_step_fn = @RegularizedTruncatedStep")
    learner = gradient_learner.GradientLearner(lopt, upstream.Adam(1e-3))
    outer_train.local_train(
        str(tmp_path), lopt, learner, num_estimators=1, num_steps=3, summary_every_n=2
    )
    assert list(tmp_path.glob("params_*"))


@pytest.mark.skipif(upstream.GENERATION == "wheel", reason="needs upstream main's TruncatedStep")
@pytest.mark.parametrize("name", ["truncated_grad.TruncatedGrad", "truncated_pes.TruncatedPES"])
def test_truncated_step_runs_in_upstream_s_estimators(name):
    import importlib

    module, cls = name.split(".")
    estimator_cls = getattr(
        importlib.import_module(f"learned_optimization.outer_trainers.{module}"), cls
    )
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    trajectories = []
    for regularizer in ("none", "sam"):
        step = RegularizedTruncatedStep(
            upstream.single_task_to_family(TwoLayer()),
            lopt,
            CONSTANT(10),
            num_tasks=2,
            regularizer=regularizer,
        )
        length = {"unroll_length" if cls == "TruncatedGrad" else "trunc_length": 5}
        estimator = estimator_cls(step, steps_per_jit=5, **length)
        state = estimator.init_worker_state(weights(lopt.init(KEY)), KEY)
        out, _ = estimator.compute_gradient_estimate(weights(lopt.init(KEY)), KEY, state, False)
        assert np.all(np.isfinite(flat(out.grad)))
        trajectories.append(out)
    states = [jax.tree.leaves(t.unroll_state) for t in trajectories]
    if cls == "TruncatedGrad":
        for a, b in zip(*states, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.allclose(flat(trajectories[0].grad), flat(trajectories[1].grad))


def test_works_with_upstream_s_own_learned_optimizers():
    (grad,), _, _ = run(
        make(TwoLayer(), lopt=lopt_base.LearnableAdam(), unroll_length=5, regularizer="sam"),
        lopt_base.LearnableAdam().init(KEY),
    )
    assert np.all(np.isfinite(flat(grad)))
    assert np.any(flat(grad))


def test_staged_trajectories_reset_at_the_end_of_the_unroll_that_reaches_their_length():
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta = lopt.init(KEY)
    _, _, state = run(make(TwoLayer(), 10, lopt=lopt, unroll_length=5), theta, 2)
    assert isinstance(state, UnrollState)
    assert bool(state.is_done[0])
    assert int(state.inner_step[0]) == 10
    _, _, state = run(make(TwoLayer(), 10, lopt=lopt, unroll_length=5), theta, 3)
    assert int(state.inner_step[0]) == 5


class Empty(TwoLayer):
    def init(self, key):
        return {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(TwoLayer(), 30, unroll_length=20), "does not divide the trajectory of 30"),
        (lambda: make(TwoLayer(), unroll_length=0), "unroll_length = 0"),
        (lambda: make(TwoLayer(), loss="lats"), "Did you mean 'last'"),
        (lambda: make(TwoLayer(), regularizer="sma"), "Did you mean 'sam'"),
        (lambda: make(TwoLayer(), step={"num_tasks": 0}), "num_tasks = 0"),
        (lambda: make(Empty()), "has no parameters"),
    ],
)
def test_refuses_bad_input_before_compiling(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Second derivatives, and every regularizer on an unroll.


def unroll_loss(lopt, length=3):
    """The outer loss of an unroll from zero state, a function of theta alone."""
    step = RegularizedTruncatedStep(tasks.as_family(TwoLayer()), lopt, CONSTANT(10))
    outer_state = weights(None).outer_state

    def loss(theta):
        state = step.init_one(theta, outer_state, KEY)
        data = step.unroll_data(length)
        return unroll_lib.Unroll(step, length)(theta, state, KEY, data, outer_state)[0]

    return loss


def float64_theta(lopt):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), lopt.init(KEY))


@pytest.mark.parametrize("exact", [True, False])
def test_second_derivatives_make_the_gradient_of_an_unroll_exact(exact):
    with jax.enable_x64(True):
        lopt = regularized_lopt.LSTMLOpt(hidden_size=3, output_scale=10.0, second_derivatives=exact)
        theta, loss = float64_theta(lopt), unroll_loss(lopt)
        direction = jax.tree.map(lambda t: jax.random.normal(ROOT, t.shape, t.dtype), theta)

        def along(h):
            return float(loss(jax.tree.map(lambda t, d: t + h * d, theta, direction)))

        numeric = (along(1e-5) - along(-1e-5)) / 2e-5
        analytic = flat(jax.grad(loss)(theta)) @ flat(direction)
        relative = abs(analytic - numeric) / abs(numeric)
        assert relative < 1e-6 if exact else relative > 1e-2


@pytest.mark.parametrize("exact", [True, False])
def test_gam_s_two_forms_agree_on_an_unroll_only_with_second_derivatives(exact):
    """Frozen gradients: a Hessian-vector product does not see them move, a difference does."""
    with jax.enable_x64(True):
        lopt = regularized_lopt.LSTMLOpt(hidden_size=3, output_scale=10.0, second_derivatives=exact)
        theta, objective = float64_theta(lopt), regularizers.Objective.of(unroll_loss(lopt))
        found = [
            flat(
                gam.flatness_gradient(
                    regularizers.Query(objective, theta, objective.gradient(theta))
                )
            )
            for gam in (
                regularizers.GAM(0.05, form="hvp"),
                regularizers.GAM(0.05, form="difference", r=1e-6),
            )
        ]
        relative = np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[0])
        assert relative < 1e-3 if exact else relative > 1e-2


EVERY = [name for name in regularizers.names() if name != "none"]


@functools.cache
def two_estimates(name="none", space="meta"):
    """With a regularizer by name in a space, in a row from the same start; and the state after."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    few = {"num_probes": 1} if name in ("hessian_trace", "hessian_frobenius") else {}
    given = {"regularizer": regularizers.get(name, **few)}
    step = {"num_tasks": 2, **(given if space == "optimizee" else {})}
    meta = given if space == "meta" else {}
    estimator = make(TwoLayer(), lopt=lopt, unroll_length=5, step=step, **meta)
    w = weights(lopt.init(KEY))
    estimate = jax.jit(estimator.estimate)
    state, outs = estimator.init_worker_state(w, KEY), []
    for i in range(2):
        key = jax.random.fold_in(ROOT, i)
        outs.append(estimate(w.theta, state, key, estimator.get_datas(), w.outer_state))
        state = outs[-1].unroll_state
    return outs, state


@pytest.mark.slow
@pytest.mark.parametrize("space", ["meta", "optimizee"])
@pytest.mark.parametrize("name", EVERY)
def test_every_regularizer_leaves_the_trajectory_bit_identical(name, space):
    """In both spaces: the user's loss, gradients and batches are those of plain training."""
    (plain, state), (ours, our_state) = two_estimates(), two_estimates(name, space)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(our_state), strict=True):
        np.testing.assert_array_equal(a, b)
    for one, other in zip(plain, ours, strict=True):
        np.testing.assert_array_equal(one.mean_loss, other.mean_loss)
        assert np.all(np.isfinite(flat(other.grad)))
    assert not np.array_equal(flat(plain[0].grad), flat(ours[0].grad))


def corrections(regularizer, space, **kwargs):
    """(of the gradient in meta space, of the loss in optimizee space) at the first estimate."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    given = {"regularizer": regularizer}
    step = {"num_tasks": 2, **(given if space == "optimizee" else {})}
    meta = given if space == "meta" else {}
    estimator = make(TwoLayer(), lopt=lopt, unroll_length=2, step=step, **meta, **kwargs)
    w = weights(lopt.init(KEY))
    state = estimator.init_worker_state(w, KEY)
    out = jax.jit(estimator.estimate)(w.theta, state, ROOT, estimator.get_datas(), w.outer_state)
    return float(out.gradient_correction), float(out.loss_correction)


@pytest.mark.parametrize("space", ["meta", "optimizee"])
@pytest.mark.parametrize("name", EVERY)
def test_a_regularizer_is_seen_to_change_the_objective(name, space):
    (first, _), _ = two_estimates(name, space)
    seen, other = float(first.gradient_correction), float(first.loss_correction)
    if space == "optimizee":
        seen, other = other, seen
    assert 0 < seen < np.inf
    assert other == 0


@pytest.mark.parametrize("space", ["meta", "optimizee"])
@pytest.mark.parametrize("weight", [0.0, lambda step: 0.0 * step])
def test_a_weight_of_0_is_seen_to_change_nothing(weight, space):
    assert corrections(regularizers.SAM(weight=weight), space) == (0, 0)
    assert corrections(regularizers.SAM(), space) != (0, 0)


def test_the_correction_is_that_of_the_gradients():
    """Relative, as the definition has it; per task, the mean over tasks (here all alike)."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta = lopt.init(KEY)
    (plain,), _, _ = run(make(TwoLayer(), lopt=lopt, unroll_length=2), theta)
    (sam,), _, _ = run(make(TwoLayer(), lopt=lopt, unroll_length=2, regularizer="sam"), theta)
    expected = np.linalg.norm(flat(sam) - flat(plain)) / np.linalg.norm(flat(plain))
    for per_task in (False, True):
        seen, _ = corrections("sam", "meta", per_task_perturbation=per_task)
        np.testing.assert_allclose(seen, expected, rtol=1e-4)


@pytest.mark.parametrize("space", ["meta", "optimizee"])
@pytest.mark.parametrize("name", ["sam", "asam", "gsam", "gam"])
def test_a_radius_that_overflows_is_finite_or_skipped_and_counted(name, space):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    regularizer = regularizers.get(name, rho=1e38)
    kwargs = {"regularizer": regularizer} if space == "meta" else {}
    step = {"regularizer": regularizer} if space == "optimizee" else {}
    estimator = make(TwoLayer(), lopt=lopt, unroll_length=5, step=step, **kwargs)
    w = weights(lopt.init(KEY))
    state = estimator.init_worker_state(w, KEY)
    out, metrics = estimator.compute_gradient_estimate(w, ROOT, state)
    assert np.all(np.isfinite(flat(out.grad)))
    assert np.all(np.isfinite(flat(out.unroll_state.inner_opt_state.params)))
    if float(metrics["mean||nonfinite"]):
        np.testing.assert_array_equal(flat(out.grad), 0)
        assert bool(out.unroll_state.is_done[0])
