"""Outer losses that are sums over steps, and the smoothing term weighed as they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, ROOT, TwoLayer, flat, make, run, weights

from regularized_lopt import regularizers
from regularized_lopt.estimators import loss_weights
from regularized_lopt.learned_optimizers import SimpleLOpt

T = 4
LOPT = SimpleLOpt(hidden_size=3)
BY_UNROLL = {
    "ramp": [[1, 2, 3, 4]] * 3,
    "periodic": [[1, 2, 3, 4], [0, 1, 2, 3], [4, 0, 1, 2]],
    "by_unroll": [[0] * 4, [4] * 4, [8] * 4],
}
SUMS = pytest.mark.parametrize("loss", BY_UNROLL)


def of_trajectory(loss, length, count):
    return np.concatenate(
        [loss_weights.weights(loss, length, jnp.asarray(k * length)) for k in range(count)]
    )


def test_weights_of_a_trajectory_are_the_paper_s_and_the_code_s():
    """T = 20 of 200."""
    t = np.arange(1, 201)
    np.testing.assert_array_equal(of_trajectory("periodic", 20, 10), t % 21)
    np.testing.assert_array_equal(of_trajectory("by_unroll", 20, 10), (t - 1) // 20 * 20)
    np.testing.assert_array_equal(of_trajectory("ramp", 20, 10), (t - 1) % 20 + 1)
    np.testing.assert_allclose(
        of_trajectory("weighted", 20, 10), of_trajectory("ramp", 20, 10) / 210, rtol=1e-6
    )


@pytest.mark.parametrize("loss", loss_weights.LOSSES)
def test_shares_sum_to_1(loss):
    for k in range(3):
        w = loss_weights.weights(loss, T, jnp.asarray(k * T))
        shares = loss_weights.shares(loss, w)
        assert float(shares.sum()) == pytest.approx(1.0)
        if float(w.sum()) > 0:
            np.testing.assert_allclose(shares * w.sum(), w, rtol=1e-6)
        else:
            np.testing.assert_array_equal(shares, 1 / T)


@jax.jit
def unroll(theta, state, ramp):
    """(((sum of w_t l_t, losses), state after it), gradient), no scan."""

    def weighted(theta, state):
        opt, losses = LOPT.opt_fn(theta), []
        for _ in range(T):
            grad = jax.grad(TwoLayer().loss)(opt.get_params(state), None, None)
            state = opt.update(state, grad)
            losses.append(TwoLayer().loss(opt.get_params(state), None, None))
        losses = jnp.stack(losses)
        return ramp @ losses, (losses, state)

    return jax.value_and_grad(weighted, has_aux=True)(theta, state)


def by_hand(theta, ramps):
    """(gradient, sum of w_t l_t / sum of w_t) of unrolls in a row."""
    state = LOPT.opt_fn(theta).init(TwoLayer().init(None))
    for ramp in ramps:
        (value, (losses, state)), grad = unroll(theta, state, jnp.asarray(ramp, jnp.float64))
        yield grad, value / sum(ramp) if sum(ramp) else losses.mean()


@SUMS
def test_gradients_are_those_of_sums_written_by_hand(loss):
    """Of three unrolls in a row; what is logged is the mean by the same weights."""
    with jax.enable_x64(True):
        theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), LOPT.init(KEY))
        grads, losses, state = run(
            make(TwoLayer(), lopt=LOPT, unroll_length=T, loss=loss), theta, 3
        )
        assert int(state.inner_step[0]) == 3 * T
        wanted = list(by_hand(theta, BY_UNROLL[loss]))
        for grad, value, (of_hand, logged) in zip(grads, losses, wanted, strict=True):
            np.testing.assert_allclose(flat(grad), flat(of_hand), rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(value, logged, rtol=1e-10)


class At(regularizers.Smoothing):
    """With the gradient of R at one step alone."""

    def __init__(self, step, **kwargs):
        super().__init__(**kwargs)
        self.at = step

    def over_unroll(self, by_step, weights):
        return jax.tree.map(lambda leaf: leaf[self.at], by_step)


@SUMS
def test_the_smoothing_term_is_weighed_as_the_losses_are(loss, x64):
    """In the third unroll."""
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), LOPT.init(KEY))
    make_it = functools.partial(make, TwoLayer(), lopt=LOPT, unroll_length=T, loss=loss)
    state = run(make_it(), theta, 2)[2]

    def gradient(smoothing=None):
        one = make_it(smoothing=smoothing)
        outer_state = weights(theta).outer_state
        return ravel(one.estimate(theta, state, ROOT, one.get_datas(), outer_state).grad)

    def ravel(tree):
        return jax.flatten_util.ravel_pytree(tree)[0]

    @jax.jit
    def gradients():
        added = [
            gradient(regularizers.Smoothing(strength=0.5, over_steps=over_steps))
            for over_steps in ("as_loss", "mean")
        ]
        return gradient(), jax.vmap(lambda t: gradient(At(t)))(jnp.arange(T)), added

    plain, by_step, added = gradients()
    by_step = np.asarray(by_step) - plain
    assert all(np.linalg.norm(one) > 1e-8 for one in by_step)
    for found, ramp in zip(added, (BY_UNROLL[loss][2], [1 / T] * T), strict=True):
        wanted = 0.5 * np.array(ramp) @ by_step
        np.testing.assert_allclose(found - plain, wanted, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize(
    ("loss", "over_steps"), [("last", "as_loss"), ("weighted", "mean"), ("periodic", "as_loss")]
)
def test_without_strength_all_is_plain_to_the_bit(loss, over_steps):
    theta, found = LOPT.init(KEY), []
    smoothing = regularizers.Smoothing(strength=0.0, over_steps=over_steps, over_coordinates="sum")
    for one in (None, smoothing):
        estimator = make(TwoLayer(), lopt=LOPT, unroll_length=T, loss=loss, smoothing=one)
        state = estimator.init_worker_state(weights(theta), KEY)
        outer_state = weights(theta).outer_state
        result = jax.jit(estimator.estimate)(theta, state, ROOT, estimator.get_datas(), outer_state)
        found.append([result.grad, result.mean_loss, result.unroll_state, result.inner_loss])
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_weights_are_no_explosion():
    """Trajectories are judged by the mean loss, of which the sum of 200 steps is thousands."""
    theta = LOPT.init(KEY)
    estimator = make(TwoLayer(), 400, lopt=LOPT, unroll_length=40, loss="by_unroll")
    metrics = []
    state = estimator.init_worker_state(weights(theta), KEY)
    for i in range(3):
        out, metric = estimator.compute_gradient_estimate(
            weights(theta), jax.random.fold_in(ROOT, i), state
        )
        state = out.unroll_state
        metrics.append(float(metric["mean||redrawn"]))
    assert metrics == [0.0] * 3
    assert 40 * 80 * float(out.mean_loss) > 1e3


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: make(TwoLayer(), loss="periodical"), "Unknown loss 'periodical'.* 'periodic'"),
        (
            lambda: regularizers.Smoothing(over_coordinates="max"),
            r"Unknown Smoothing\.over_coordinates 'max'.* Known: mean, sum\.",
        ),
        (
            lambda: regularizers.Smoothing(over_steps="loss"),
            r"Unknown Smoothing\.over_steps 'loss'.* Known: as_loss, mean, sum\.",
        ),
    ],
)
def test_unknown_forms_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()
