import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONSTANT, KEY, ROOT, TwoLayer, flat, make, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_optimization.learned_optimizers import base as lopt_base

import regularized_lopt
from regularized_lopt import regularizers, tasks
from regularized_lopt.estimators import RegularizedTruncatedGrad, RegularizedTruncatedStep
from regularized_lopt.measure import update_curves
from regularized_lopt.report import optimizer_tables, update_figures

LOPT = regularized_lopt.LSTMLOpt(hidden_size=3)


@settings(max_examples=30)
@given(st.floats(0.1, 3), st.floats(0.1, 3), st.integers(0, 2**31 - 1))
def test_a_linear_update_s_r_is_its_closed_form(slope, epsilon, seed):
    """u(s) = a s: the maximum over the ball is (a epsilon unit)^2, at its corners."""
    s = jax.random.normal(jax.random.PRNGKey(seed), (7,))
    unit = jnp.sqrt(jnp.mean(s**2))
    smoothing = regularizers.Smoothing(epsilon=epsilon)
    perturbed = smoothing.adversarial_input(lambda x: slope * x, s, unit, KEY)
    np.testing.assert_allclose(jnp.abs(perturbed - s), epsilon * unit, rtol=1e-4)
    r = smoothing.penalty(lambda x: slope * x, s, perturbed)
    np.testing.assert_allclose(r, (slope * epsilon * unit) ** 2, rtol=1e-3)


def test_never_leaves_the_ball_and_ascends():
    s = jax.random.normal(KEY, (50,))
    values = []
    for steps in (0, 2, 10):
        smoothing = regularizers.Smoothing(epsilon=0.5, num_steps=steps, step_size=0.1)
        perturbed = smoothing.adversarial_input(jnp.tanh, s, 2.0, KEY)
        assert float(jnp.max(jnp.abs(perturbed - s))) <= 1.0 + 1e-6
        values.append(float(smoothing.penalty(jnp.tanh, s, perturbed)))
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("gradient", [0.0, 1e-45, 1e-20])
def test_finite_where_the_preprocessing_is_singular(gradient):
    """log|g| has no derivative at 0."""
    theta = LOPT.init(KEY)
    state = LOPT.opt_fn(theta).init(jnp.zeros(6))
    grad = jnp.full(6, gradient)
    u, s, unit = LOPT.update_fn(theta, state, grad, key=KEY)
    smoothing = regularizers.Smoothing()
    perturbed = smoothing.adversarial_input(u, s, unit, KEY)
    assert np.all(np.isfinite(perturbed))
    assert np.isfinite(smoothing.penalty(u, s, perturbed))


def estimate(estimator, theta):
    state = estimator.init_worker_state(weights(theta), KEY)
    return estimator.estimate(theta, state, ROOT, estimator.get_datas(), weights(theta).outer_state)


@pytest.mark.parametrize("regularizer", ["none", "sam"])
def test_its_gradient_is_added_once_and_touches_nothing_else(regularizer):
    """Total = G_reg + lambda grad R, R at the unperturbed theta; trajectories bit-identical."""
    theta = LOPT.init(KEY)
    kwargs = {"lopt": LOPT, "unroll_length": 5, "regularizer": regularizer}
    plain = estimate(make(TwoLayer(), **kwargs), theta)
    one, two = (
        estimate(
            make(TwoLayer(), smoothing=regularizers.Smoothing(strength=lambda s, w=w: w), **kwargs),
            theta,
        )
        for w in (1.0, 2.0)
    )
    states = map(jax.tree.leaves, (plain.unroll_state, one.unroll_state))
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(plain.inner_loss, one.inner_loss)
    assert float(plain.mean_loss) == float(one.mean_loss)
    added = flat(one.grad) - flat(plain.grad)
    assert np.linalg.norm(added) > 1e-6
    np.testing.assert_allclose(flat(two.grad) - flat(plain.grad), 2 * added, rtol=1e-4, atol=1e-7)
    assert float(one.smoothness) > 0
    # The same R with and without SAM: it knows nothing of the perturbed pass.
    other = estimate(
        make(
            TwoLayer(),
            lopt=LOPT,
            unroll_length=5,
            smoothing=regularizers.Smoothing(),
        ),
        theta,
    )
    assert float(other.smoothness) == float(one.smoothness)


def test_its_gradient_against_finite_differences():
    """R with s' frozen, in float64: what `smoothing_one` returns."""
    with jax.enable_x64(True):
        theta = jax.tree.map(lambda x: x.astype(jnp.float64), LOPT.init(KEY))
        step = RegularizedTruncatedStep(tasks.as_family(TwoLayer()), LOPT, CONSTANT(10))
        state = step.init_one(theta, weights(theta).outer_state, KEY)
        state, loss, grad = step.step_one(theta, state, KEY, ())
        smoothing = regularizers.Smoothing(num_steps=3)
        _, ours = step.smoothing_one(smoothing, theta, state, loss, grad, KEY)
        sample_key, start_key = jax.random.split(KEY)

        def u(theta):
            return LOPT.update_fn(theta, state.inner_opt_state, grad, key=sample_key)

        fn, s, unit = u(theta)
        perturbed = smoothing.adversarial_input(fn, s, unit, start_key)
        direction = jax.tree.map(lambda x: jax.random.normal(ROOT, x.shape), theta)

        def r(h):
            at = jax.tree.map(lambda t, d: t + h * d, theta, direction)
            return float(smoothing.penalty(u(at)[0], s, perturbed))

        numeric = (r(1e-6) - r(-1e-6)) / 2e-6
        along = flat(ours) @ flat(direction)
        assert float(along) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("over_coordinates", ["mean", "sum"])
def test_a_fraction_of_the_coordinates_estimates_the_whole(over_coordinates):
    theta = LOPT.init(KEY)
    state = LOPT.opt_fn(theta).init(jnp.zeros(400))
    grad = jax.random.normal(KEY, (400,))

    def r(fraction, key):
        smoothing = regularizers.Smoothing(fraction=fraction, over_coordinates=over_coordinates)
        u, s, unit = LOPT.update_fn(theta, state, grad, key=key, fraction=fraction)
        assert s.shape == (round(400 * fraction),)
        return smoothing.penalty(u, s, smoothing.adversarial_input(u, s, unit, ROOT), 400)

    whole = float(r(1.0, KEY))
    parts = np.array([r(0.1, jax.random.PRNGKey(i)) for i in range(40)])
    assert abs(parts.mean() - whole) < 4 * parts.std() / np.sqrt(40)


def test_any_learned_optimizer_is_smoothed_as_a_whole():
    lopt = lopt_base.LearnableAdam()
    theta = lopt.init(KEY)
    result = estimate(
        make(TwoLayer(), lopt=lopt, unroll_length=5, smoothing=regularizers.Smoothing()), theta
    )
    assert float(result.smoothness) > 0
    assert np.all(np.isfinite(flat(result.grad)))
    with pytest.raises(ValueError, match="LearnableAdam is smoothed as a whole"):
        make(TwoLayer(), lopt=lopt, smoothing=regularizers.Smoothing(fraction=0.5))


def test_the_preprocessed_space():
    theta = LOPT.init(KEY)
    result = estimate(
        make(
            TwoLayer(),
            lopt=LOPT,
            unroll_length=5,
            smoothing=regularizers.Smoothing(space="preprocessed", fraction=0.5),
        ),
        theta,
    )
    assert float(result.smoothness) > 0


def test_from_gin_and_its_refusals():
    gin.parse_config(
        """
        RegularizedTruncatedGrad.smoothing = @Smoothing()
        Smoothing.strength = @linear_schedule()
        linear_schedule.init_value = 0.0
        linear_schedule.end_value = 1.0
        linear_schedule.transition_steps = 10
        """
    )
    step = RegularizedTruncatedStep(tasks.as_family(TwoLayer()), LOPT, CONSTANT(20))
    assert RegularizedTruncatedGrad(step).smoothing.strength(5) == 0.5
    for kwargs, message in (
        ({"strength": -1}, r"Smoothing.strength = -1"),
        ({"fraction": 0}, r"Smoothing.fraction = 0: it must be in"),
        ({"epsilon": 0}, r"Smoothing.epsilon = 0"),
        ({"space": "gradients"}, "Did you mean 'gradient'"),
    ):
        with pytest.raises(ValueError, match=message):
            regularizers.Smoothing(**kwargs)


def test_the_diagnostic_draws_updates_of_any_optimizer():
    curve = update_curves.update_curve(regularized_lopt.upstream.SGD(0.5), limit=0.1, num_points=11)
    np.testing.assert_allclose(curve.update, -0.5 * np.linspace(-0.1, 0.1, 11), atol=1e-7)
    assert curve.roughness == pytest.approx(0.5, rel=1e-4)
    learned = LOPT.opt_fn(LOPT.init(KEY))
    assert np.all(np.isfinite(update_curves.update_curve(learned, num_warmup=3).update))
    figure = update_figures.smoothness({"SGD": regularized_lopt.upstream.SGD(0.5), "LSTM": learned})
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]


def test_slopes_are_relative_to_updates():
    grid = np.linspace(-2, 2, 41)
    line, kinked = (update_curves.UpdateCurve(grid, of) for of in (3 * grid, np.tanh(20 * grid)))
    # The mean of x^2 over an even grid of n points in [-1, 1] is (n + 1) / (3 (n - 1)).
    assert line.relative_roughness == pytest.approx(np.sqrt(3 * 40 / 42))
    assert kinked.relative_roughness == pytest.approx(2 * np.tanh(2) / 0.1, rel=0.05)
    assert np.isnan(update_curves.UpdateCurve(grid, 0 * grid).relative_roughness)


def test_the_steepest_slopes_are_compared_over_meta_training_seeds():
    SGD = regularized_lopt.upstream.SGD
    curves = {
        name: [update_curves.update_curves(SGD(rate), limits=(0.1,)) for rate in rates]
        for name, rates in {"none": (1.0, 2.0, 3.0), "smooth": (0.5, 1.5), "lone": (4.0,)}.items()
    }
    _, rows = optimizer_tables.smoothness_table(curves, "none")
    assert rows[0] == ["none", "2 ± 1", ""]
    # Of unequal numbers of seeds, those that both have; their differences are all the same.
    assert rows[1] == ["smooth", "1 ± 0.71", "-0.5 [-0.5, -0.5]"]
    assert rows[2][:2] == ["lone", "4 ± 0"]
    assert [row[2] for row in optimizer_tables.smoothness_table(curves, "absent")[1]] == [
        "",
        "",
        "",
    ]
