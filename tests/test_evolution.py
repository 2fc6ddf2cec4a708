"""ES and PES: estimates against closed forms and upstream's, what pairs share, what is refused."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONSTANT, KEY, ROOT, Ascent, TwoLayer, cosine, flat, run, weights
from learned_optimization.learned_optimizers import base as lopt_base
from learned_optimization.outer_trainers import full_es, truncated_es, truncated_pes

import regularized_lopt
from regularized_lopt import regularizers, tasks, upstream
from regularized_lopt.estimators import (
    RegularizedTruncatedES,
    RegularizedTruncatedPES,
    RegularizedTruncatedStep,
)

ESTIMATORS = {"ES": RegularizedTruncatedES, "PES": RegularizedTruncatedPES}
BOTH = pytest.mark.parametrize("kind", ESTIMATORS)


def make(kind, task, length=20, *, lopt=None, step=None, **kwargs):
    lopt = lopt or regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    family = tasks.as_family(task)
    truncated_step = RegularizedTruncatedStep(family, lopt, CONSTANT(length), **(step or {}))
    return ESTIMATORS[kind](truncated_step, **{"unroll_length": 5, **kwargs})


def upstreams(kind, task, lopt, num_pairs, horizon, length, std):
    """Upstream's estimator, whose outer losses are the inner ones, before each step."""
    family, schedule = tasks.as_family(task), CONSTANT(horizon)
    cls = {"ES": truncated_es.TruncatedES, "PES": truncated_pes.TruncatedPES}[kind]
    name = {"ES": "unroll_length", "PES": "trunc_length"}[kind]
    kwargs = {name: length, "steps_per_jit": length, "std": std}
    if upstream.GENERATION == "wheel":
        return cls(family, lopt, schedule, num_pairs, **kwargs)
    return cls(vectorized(family, lopt, schedule, num_pairs), **kwargs)


def vectorized(family, lopt, schedule, num_pairs):
    from learned_optimization.outer_trainers import lopt_truncated_step

    return lopt_truncated_step.VectorizedLOptTruncatedStep(family, lopt, schedule, num_pairs)


def samples(estimator, theta, num_unrolls, count):
    """Estimates of `count` independent trajectories by one pair each, [count, num_unrolls, n]."""
    data, outer_state = estimator.get_datas(), upstream.OuterState(jnp.asarray(0))
    start = estimator.init_worker_state(weights(theta), KEY)

    def trajectory(key):
        def unroll(state, key):
            found = estimator.estimate(theta, state, key, data, outer_state)
            return found.unroll_state, jnp.stack(jax.tree.leaves(found.grad))

        return jax.lax.scan(unroll, start, jax.random.split(key, num_unrolls))[1]

    return np.asarray(jax.jit(jax.vmap(trajectory))(jax.random.split(ROOT, count)), np.float64)


class Rate(upstream.LearnedOptimizer):
    """SGD; theta is its learning rate."""

    def init(self, key):
        del key
        return jnp.asarray(0.4)

    def opt_fn(self, theta, is_training=False):
        del is_training
        return upstream.SGD(theta)


class Parabola(upstream.Task):
    """L(p) = p^2 / 2 from p = 1: SGD multiplies p by 1 - theta."""

    datasets = None

    def init(self, key):
        del key
        return jnp.asarray(1.0)

    def loss(self, params, key, data):
        del key, data
        return params**2 / 2


T, STD = 2, 0.3


def exact_moments(kind, num_unrolls, before):
    """Mean and variance of a pair's estimate in the last unroll, by Gauss-Hermite quadrature.

    Exact: what is integrated is a polynomial. Losses are those after each step, or before it.
    """
    points, measure = np.polynomial.hermite_e.hermegauss(20)
    measure = measure / measure.sum()
    theta, first, second = 0.4, 0.0, 0.0
    for drawn in itertools.product(range(20), repeat=num_unrolls):
        xi, probability = STD * points[list(drawn)], np.prod(measure[list(drawn)])
        losses = []
        for sign in (1, -1):
            signs = np.full(num_unrolls, sign)
            if kind == "ES":
                signs[:-1] = 1
            factors = np.repeat(1 - theta - signs * xi, T)
            path = np.cumprod(np.concatenate([[1.0], factors]))
            last = path[-T - 1 : -1] if before else path[-T:]
            losses.append(np.mean(last**2 / 2))
        e = xi[-1] if kind == "ES" else xi.sum()
        g = (losses[0] - losses[1]) / (2 * STD**2) * e
        first += probability * g
        second += probability * g**2
    return first, second - first**2


@BOTH
@pytest.mark.parametrize("num_unrolls", [1, 2])
def test_mean_and_variance_on_a_quadratic_are_those_of_the_closed_form(kind, num_unrolls):
    estimator = make(kind, Parabola(), 20, lopt=Rate(), unroll_length=T, std=STD)
    found = samples(estimator, jnp.asarray(0.4), num_unrolls, 40_000)[:, -1, 0]
    mean, variance = exact_moments(kind, num_unrolls, before=False)
    # Four standard errors; that of the variance from the samples' fourth moment.
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / found.size)
    error = np.std((found - mean) ** 2) / np.sqrt(found.size)
    assert abs(found.var() - variance) < 4 * error
    assert error < 0.1 * variance


@pytest.mark.parametrize("num_unrolls", [2, 3])
def test_pes_sums_to_the_gradient_of_whole_trajectories_and_es_does_not(num_unrolls):
    """Unrolls of one step: E L_k = m^k / 2, m = E (1 - theta - xi)^2 = (1 - theta)^2 + std^2."""
    wanted = 0.0
    for k in range(1, num_unrolls + 1):
        wanted += k * (0.36 + STD**2) ** (k - 1) * -0.6
    for kind in ESTIMATORS:
        estimator = make(kind, Parabola(), 20, lopt=Rate(), unroll_length=1, std=STD)
        sums = samples(estimator, jnp.asarray(0.4), num_unrolls, 40_000)[..., 0].sum(axis=1)
        away = abs(sums.mean() - wanted) / (sums.std() / np.sqrt(sums.size))
        assert away < 4 if kind == "PES" else away > 10


@BOTH
def test_upstream_s_estimators_have_the_same_moments_for_their_losses(kind):
    """Of means over 64 pairs, 300 times; their losses are those before each step."""
    theirs = upstreams(kind, Parabola(), Rate(), 64, 10 * T, T, STD)
    worker, found = weights(jnp.asarray(0.4)), []
    for key in jax.random.split(ROOT, 300):
        state = theirs.init_worker_state(worker, KEY)
        for one in jax.random.split(key):
            out, _ = theirs.compute_gradient_estimate(worker, one, state, False)
            state = out.unroll_state
        found.append(float(out.grad))
    mean, variance = exact_moments(kind, 2, before=True)
    assert abs(np.mean(found) - mean) < 4 * np.sqrt(variance / 64 / 300)
    error = np.std((np.array(found) - mean) ** 2) / np.sqrt(300)
    assert abs(np.var(found) - variance / 64) < 4 * error
    assert error < 0.25 * variance / 64


def test_pes_on_a_network_agrees_with_upstream_s_full_es():
    """Four unrolls of five steps of 4,096 trajectories, against unrolls of all 20 steps."""
    lopt, count, repeats = lopt_base.LearnableSGDM(0.1, 0.5), 4096, 16
    theta = lopt.init(KEY)
    ours = make("PES", TwoLayer(), 40, lopt=lopt, unroll_length=5, std=0.02)
    found = samples(ours, theta, 4, count).mean(axis=1)
    # Its mean has the loss at the start as well, which no theta changes.
    kwargs = {"steps_per_jit": 21, "std": 0.02, "loss_type": "avg"}
    family = tasks.as_family(TwoLayer())
    if upstream.GENERATION == "wheel":
        full = full_es.FullES(family, lopt, num_tasks=count, unroll_length=21, **kwargs)
    else:
        endless = upstream.truncation_schedule.NeverEndingTruncationSchedule()
        step = vectorized(family, lopt, endless, count)
        full = full_es.FullES(step, truncation_schedule=CONSTANT(21), **kwargs)
    worker, theirs = weights(theta), []
    for key in jax.random.split(ROOT, repeats):
        state = full.init_worker_state(worker, KEY)
        out, _ = full.compute_gradient_estimate(worker, key, state, False)
        theirs.append(21 / 20 * np.array(jax.tree.leaves(out.grad), np.float64))
    errors = np.hypot(found.std(axis=0) / np.sqrt(count), np.std(theirs, axis=0) / np.sqrt(repeats))
    difference = found.mean(axis=0) - np.mean(theirs, axis=0)
    assert np.all(np.abs(difference) < 4 * errors)
    assert np.all(errors < 0.1 * np.linalg.norm(np.mean(theirs, axis=0)))


@functools.cache
def digits_run(kind, meta="none", optimizee="none", **kwargs):
    """Five unrolls of five steps by two pairs: across a reset at 20."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=4, num_layers=1)
    estimator = make(
        kind,
        "ImageMLP_Digits_20_Sigmoid",
        lopt=lopt,
        regularizer=meta,
        step={"num_tasks": 2, "regularizer": optimizee},
        **kwargs,
    )
    return run(estimator, lopt.init(KEY), 5)


@BOTH
@pytest.mark.parametrize("space", ["meta", "optimizee"])
def test_a_regularizer_changes_the_gradient_and_nothing_else(kind, space):
    grads, losses, state = digits_run(kind)
    reg_grads, reg_losses, reg_state = digits_run(kind, **{space: "sam"})
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(reg_state), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(losses, reg_losses)
    for grad, reg_grad in zip(grads, reg_grads, strict=True):
        assert np.linalg.norm(flat(reg_grad) - flat(grad)) > 1e-3 * np.linalg.norm(flat(grad))


@BOTH
@pytest.mark.parametrize("space", ["meta", "optimizee"])
@pytest.mark.parametrize(
    "nothing",
    [regularizers.SAM(rho=0.0), regularizers.L2(strength=0.0), regularizers.SAM(weight=0.0)],
    ids=["radius", "strength", "weight"],
)
def test_strength_zero_is_exactly_no_regularizer(kind, space, nothing):
    grads, _, _ = digits_run(kind)
    reg_grads, _, _ = digits_run(kind, **{space: nothing})
    for grad, reg_grad in zip(grads, reg_grads, strict=True):
        np.testing.assert_array_equal(flat(grad), flat(reg_grad))


@BOTH
def test_sam_in_meta_space_is_the_estimate_at_the_perturbed_theta(kind):
    """With shared noise: of an estimator without one, from the same state, with the same key."""
    with jax.enable_x64(True):
        lopt, rho = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1), 0.05
        theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), lopt.init(KEY))
        (plain,), _, _ = run(make(kind, TwoLayer(), lopt=lopt), theta)
        norm = np.linalg.norm(flat(plain))
        at = jax.tree.map(lambda t, g: t + rho * g / norm, theta, plain)
        estimator = make(kind, TwoLayer(), lopt=lopt)
        state = estimator.init_worker_state(weights(theta), KEY)
        key = jax.random.fold_in(ROOT, 0)
        wanted, _ = estimator.compute_gradient_estimate(weights(at), key, state)
        sam = regularizers.SAM(rho)
        found = {
            shared: run(
                make(kind, TwoLayer(), lopt=lopt, regularizer=sam, shared_noise=shared), theta
            )[0][0]
            for shared in (True, False)
        }
        np.testing.assert_allclose(flat(found[True]), flat(wanted.grad), rtol=1e-6, atol=1e-10)
        assert not np.allclose(flat(found[False]), flat(wanted.grad), rtol=1e-3)


@BOTH
def test_the_direction_of_ascent_shares_no_noise_with_the_estimate(kind):
    """Not that of earlier unrolls either, which is most of PES'."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=8, num_layers=1)
    theta = lopt.init(KEY)

    def estimates(regularizer, shared=False):
        kwargs = {"regularizer": regularizer, "shared_noise": shared, "step": {"num_tasks": 2}}
        return run(make(kind, TwoLayer(), 100, lopt=lopt, **kwargs), theta, 16)[0]

    def cosines(regularizer, **kwargs):
        both = zip(plain, estimates(regularizer, **kwargs), strict=True)
        return [cosine(flat(a), flat(b)) for a, b in both]

    plain = estimates("none")
    assert np.abs(cosines(Ascent())).max() < 0.3  # Of 361 numbers: 0.05 by chance.
    np.testing.assert_allclose(cosines(Ascent(), shared=True), 1, rtol=1e-5)


def test_pairs_share_their_start_and_their_batches():
    """With next to no noise the two particles are one, on random batches and inits."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    task = "ImageMLP_Digits_20_Sigmoid"
    _, _, state = run(make("PES", task, 10, lopt=lopt, std=1e-6), lopt.init(KEY), 3)
    for leaf in jax.tree.leaves(state.particles):
        np.testing.assert_allclose(leaf[:, 0], leaf[:, 1], rtol=1e-3, atol=1e-4)
    _, _, state = run(make("PES", task, 10, lopt=lopt, std=1e-2), lopt.init(KEY), 3)
    params = lopt.opt_fn(None).get_params(state.particles.inner_opt_state)
    for leaf in jax.tree.leaves(params):
        assert not np.allclose(leaf[:, 0], leaf[:, 1], atol=1e-7)


def test_perturbations_are_summed_along_a_trajectory_and_forgotten_at_its_end():
    """Trajectories of two unrolls; the same key draws the same perturbation."""
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta, estimator = lopt.init(KEY), make("PES", TwoLayer(), 10, lopt=lopt, step={"num_tasks": 2})
    state, sums, done = estimator.init_worker_state(weights(theta), KEY), [], []
    for _ in range(4):
        out, _ = estimator.compute_gradient_estimate(weights(theta), ROOT, state)
        state = out.unroll_state
        sums.append(flat([leaf[0] for leaf in jax.tree.leaves(state.accumulated)]))
        done.append(bool(state.is_done[0]))
    assert done == [False, True, False, True]
    np.testing.assert_array_equal(sums[2], sums[0])
    np.testing.assert_allclose(sums[1], 2 * sums[0], rtol=1e-6)
    assert np.std(sums[0]) == pytest.approx(0.01, rel=0.3)


@BOTH
def test_pairs_begin_evenly_spread_over_their_trajectories(kind):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta = lopt.init(KEY)
    for staggered, wanted in ((True, [0, 0, 5, 10, 15]), (False, [0] * 5)):
        estimator = make(
            kind, TwoLayer(), 20, lopt=lopt, staggered=staggered, step={"num_tasks": 5}
        )
        state = estimator.init_worker_state(weights(theta), KEY)
        trajectories = state.particles if kind == "PES" else state
        begun = trajectories.inner_step.reshape(5, -1)[:, 0]
        assert begun.tolist() == wanted
        out, _ = estimator.compute_gradient_estimate(weights(theta), ROOT, state)
        ends = np.asarray(out.unroll_state.is_done)
        np.testing.assert_array_equal(ends, begun == 15)


class Breaks(TwoLayer):
    """Not finite any more once params have moved far: by large updates of one particle."""

    def loss(self, params, key, data):
        loss = super().loss(params, key, data)
        return jnp.where(loss < 50.0, loss, jnp.nan)


@BOTH
def test_a_nonfinite_estimate_is_zero_counted_and_followed_by_fresh_trajectories(kind):
    estimator = make(
        kind, Breaks(), 20, lopt=Rate(), std=0.01, staggered=False, step={"num_tasks": 3}
    )
    theta = jnp.asarray(3.0)  # Far too large a rate.
    state = estimator.init_worker_state(weights(theta), KEY)
    for i in range(4):
        key = jax.random.fold_in(ROOT, i)
        out, metrics = estimator.compute_gradient_estimate(weights(theta), key, state, True)
        state = out.unroll_state
        for leaf in jax.tree.leaves(state):
            assert np.all(np.isfinite(leaf))
        if metrics["mean||nonfinite"]:
            break
    assert metrics["mean||nonfinite"] == 1
    assert metrics["mean||redrawn"] >= 1
    assert float(out.grad) == 0
    assert np.any(state.is_done)
    out, metrics = estimator.compute_gradient_estimate(weights(jnp.asarray(0.1)), ROOT, state)
    out, metrics = estimator.compute_gradient_estimate(
        weights(jnp.asarray(0.1)), KEY, out.unroll_state
    )
    assert np.isfinite(out.mean_loss)
    assert metrics["mean||nonfinite"] == 0


def test_a_mixture_is_the_weighted_mean_of_its_tasks():
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)
    theta, steps = lopt.init(KEY), []
    for task, count in ((TwoLayer(), 2), ("ImageMLP_Digits_20_Sigmoid", 1)):
        family = tasks.as_family(task)
        steps.append(RegularizedTruncatedStep(family, lopt, CONSTANT(20), num_tasks=count))
    estimator = RegularizedTruncatedPES(steps, unroll_length=5, task_weights=(3.0, 1.0))
    states = estimator.init_worker_state(weights(theta), KEY)
    out, _ = estimator.compute_gradient_estimate(weights(theta), ROOT, states)
    keys = jax.random.split(jax.random.split(ROOT)[0])
    wanted = 0.0
    for share, step, state, key in zip((0.75, 0.25), steps, states, keys, strict=True):
        alone = RegularizedTruncatedPES(step, unroll_length=5)
        (problem,) = alone._problems(state, key, alone.get_datas(), upstream.OuterState(0))
        found = jax.jit(lambda alone=alone, problem=problem: alone._of_pairs(problem, theta, 0))()
        wanted += share * flat(found[1])
    np.testing.assert_allclose(flat(out.grad), wanted, rtol=2e-3, atol=1e-5)


def test_smoothing_joins():
    grads, _, _ = digits_run("PES")
    smoothing = regularizers.Smoothing(strength=10.0, num_steps=2)
    smoothed, _, _ = digits_run("PES", smoothing=smoothing)
    assert not np.allclose(flat(grads[0]), flat(smoothed[0]))


class NeverFinite(TwoLayer):
    def loss(self, params, key, data):
        return super().loss(params, key, data) + jnp.inf


class Loss(TwoLayer):
    """Its loss is no number, in one of several ways."""

    def __init__(self, kind):
        self.kind = kind

    def loss(self, params, key, data):
        loss = super().loss(params, key, data)
        pair = jnp.stack([loss, loss])
        return {"vector": pair, "count": jnp.asarray(3), "nothing": None, "pair": (loss, {})}[
            self.kind
        ]


@dataclasses.dataclass
class Bad:
    message: str
    task: object = dataclasses.field(default_factory=TwoLayer)
    length: int = 20
    step: dict = dataclasses.field(default_factory=dict)
    own: dict = dataclasses.field(default_factory=dict)


@BOTH
@pytest.mark.parametrize(
    "bad",
    [
        Bad("std = 0.0: it must be greater than 0, and finite in float32.", own={"std": 0.0}),
        Bad("std = -1.0: it must be greater than 0, and finite in float32.", own={"std": -1.0}),
        Bad("std = 1e-30: it must be from 1.1e-19 to 1.3e", own={"std": 1e-30}),
        Bad("unroll_length = 5 does not divide the trajectory of 12", length=12),
        Bad("num_tasks = 0: it must be a whole number from 1", step={"num_tasks": 0}),
        Bad("the loss of NeverFinite is inf where inner training starts", task=NeverFinite()),
        Bad(r"the loss of Loss is float32\[2\]: it must be one real number", task=Loss("vector")),
        Bad(r"the loss of Loss is int32\[\]: it must be one real", task=Loss("count")),
        Bad("the loss of Loss is NoneType: it must be one real number", task=Loss("nothing")),
        Bad("the loss of Loss is tuple: it must be one real number", task=Loss("pair")),
        Bad("'hessian_trace' differentiates the loss", own={"regularizer": "hessian_trace"}),
        Bad("Unknown loss 'best'", own={"loss": "best"}),
    ],
    ids=lambda bad: bad.message[:20],
)
def test_bad_input_is_refused_on_one_line(kind, bad):
    with pytest.raises(ValueError, match=bad.message) as refused:
        make(kind, bad.task, bad.length, step=bad.step, **bad.own)
    message, _, _ = str(refused.value).partition("\n  In call to")  # Gin says where.
    assert "\n" not in message


@BOTH
def test_a_theta_that_noise_cannot_change_is_refused_by_name(kind):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=2, num_layers=1)
    theta = lopt.init(KEY)
    with_count = {**theta, "count": jnp.asarray(3)}
    estimator = make(kind, "ImageMLP_Digits_20_Sigmoid", lopt=lopt)
    with pytest.raises(ValueError, match=r"theta\['count'\] is int32: make it a float"):
        estimator.init_worker_state(weights(with_count), KEY)
    tiny = make(kind, "ImageMLP_Digits_20_Sigmoid", lopt=lopt, std=1e-18)
    with pytest.raises(ValueError, match=r"std = 1e-18: theta's root mean square is .* would be 0"):
        tiny.init_worker_state(weights(theta), KEY)
