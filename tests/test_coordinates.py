"""Theta's gradient through a sample of the coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, TwoLayer, flat, make, run, weights
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from learned_optimization.learned_optimizers import base as lopt_base

import regularized_lopt
from regularized_lopt import regularizers
from regularized_lopt.estimators import coordinates

# Each pair of a size and a number is a program.
SIZES, COUNTS = st.sampled_from([1, 3, 40]), st.sampled_from([1, 2, 30])
IMPORTANCE = hnp.arrays(np.float32, SIZES, elements=st.floats(0, 1e3, width=32))
sample = jax.jit(coordinates.sample, static_argnums=1)
LOPT = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1)


@given(IMPORTANCE, COUNTS, st.integers(0, 2**32 - 1))
def test_each_coordinate_is_drawn_as_often_as_it_matters(importance, count, seed):
    index, weight = sample(importance, count, jax.random.PRNGKey(seed))
    total = importance.astype(np.float64).sum()
    share = importance / total if total > 0 else np.full(len(importance), 1 / len(importance))
    index = np.asarray(index)
    drawn = np.bincount(index, minlength=len(importance))
    assert np.all(np.abs(drawn - count * share) < 1.01)
    assert np.all(share[index] > 0)
    np.testing.assert_allclose(weight, 1 / (count * share[index]), rtol=1e-4)


def test_the_weighted_sum_is_right_on_average():
    importance = jnp.asarray([0.0, 0.1, 3.0, 1.0, 0.5])
    values = jnp.asarray([7.0, -2.0, 5.0, 1.0, 4.0])

    def estimate(key):
        index, weight = coordinates.sample(importance, 3, key)
        return weight @ values[index]

    estimates = jax.vmap(estimate)(jax.random.split(KEY, 4000))
    error = float(estimates.std()) / np.sqrt(4000)
    # The first coordinate does not matter, so it does not count.
    assert abs(float(estimates.mean()) - 8.0) < 4 * error


@pytest.mark.parametrize(
    ("loss", "regularizer", "inputs"),
    [
        ("last", "none", ("grad",)),
        ("last", "sam", ("grad", "params")),
        ("mean", "sam", ("grad",)),
        ("weighted", "none", ("grad", "params")),
        ("periodic", "sam", ("grad",)),
        ("last", "sam", ("grad", "momentum")),
    ],
)
def test_through_all_coordinates_it_is_backpropagation(monkeypatch, loss, regularizer, inputs):
    def all_of_them(importance, count, key):
        return jnp.arange(importance.size), jnp.ones(importance.shape, importance.dtype)

    monkeypatch.setattr(coordinates, "sample", all_of_them)
    with jax.enable_x64(True):
        lopt = regularized_lopt.LSTMLOpt(hidden_size=3, num_layers=1, inputs=inputs)
        theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), lopt.init(KEY))
        common = {
            "unroll_length": 4,
            "loss": loss,
            "lopt": lopt,
            "step": {"regularizer": regularizers.get(regularizer)},
        }
        whole, losses, _ = run(make(TwoLayer(), **common), theta, 2)
        sampled, same, _ = run(make(TwoLayer(), coordinate_fraction=0.5, **common), theta, 2)
        np.testing.assert_array_equal(losses, same)
        for a, b in zip(sampled, whole, strict=True):
            np.testing.assert_allclose(flat(a), flat(b), rtol=1e-9, atol=1e-14)


def estimates(count, lopt=LOPT, **kwargs):
    """`count` gradients at one state: all that differs is which coordinates are drawn."""
    estimator = make(TwoLayer(), lopt=lopt, unroll_length=4, **kwargs)
    theta = estimator.learned_opt.init(KEY)
    state = estimator.init_worker_state(weights(theta), KEY)

    data = estimator.get_datas()

    def one(key):
        return estimator.estimate(theta, state, key, data, weights(theta).outer_state)

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, count))


@pytest.mark.parametrize("regularizer", ["none", "sam"])
def test_the_gradient_is_right_on_average_and_the_unroll_untouched(regularizer):
    step = {"regularizer": regularizers.get(regularizer)}
    exact, sampled = estimates(1, step=step), estimates(2000, step=step, coordinate_fraction=0.25)
    for one, many in zip(
        jax.tree.leaves((exact.mean_loss, exact.unroll_state, exact.inner_loss)),
        jax.tree.leaves((sampled.mean_loss, sampled.unroll_state, sampled.inner_loss)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.broadcast_to(one, many.shape), many)
    rows = np.concatenate([np.reshape(g, (2000, -1)) for g in jax.tree.leaves(sampled.grad)], 1)
    target = flat(exact.grad)
    error = rows.std(axis=0) / np.sqrt(len(rows))
    assert np.linalg.norm(rows.std(axis=0)) > 0.01 * np.linalg.norm(target)  # It is a sample.
    assert np.mean(np.abs(rows.mean(axis=0) - target) <= 3 * error + 1e-7) > 0.98


def test_meta_space_sam_perturbs_by_the_sampled_gradient():
    """First order in rho: the regularized gradient differs from the plain one, finitely."""
    plain = estimates(3, coordinate_fraction=0.25)
    perturbed = estimates(3, coordinate_fraction=0.25, regularizer=regularizers.SAM(1e-2))
    np.testing.assert_array_equal(plain.inner_loss, perturbed.inner_loss)
    ratio = np.linalg.norm(flat(perturbed.grad) - flat(plain.grad)) / np.linalg.norm(
        flat(plain.grad)
    )
    assert 1e-4 < ratio < 1


class Flat(TwoLayer):
    def loss(self, params, key, data):
        return jnp.asarray(1.0, params["w1"].dtype)


def test_a_flat_loss_gives_zero_not_nan():
    estimator = make(Flat(), lopt=LOPT, unroll_length=4, coordinate_fraction=0.25)
    (grad,), _, _ = run(estimator, LOPT.init(KEY))
    assert not np.any(flat(grad))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lopt": lopt_base.LearnableSGD()}, "LearnableSGD is not known to treat"),
        (
            {"lopt": regularized_lopt.LSTMLOpt(second_derivatives=True)},
            "second_derivatives = False",
        ),
        ({"regularizer": regularizers.GAM(form="hvp")}, "gam in meta space takes second"),
        ({"regularizer": "hessian_trace"}, "hessian_trace in meta space takes second"),
    ],
)
def test_what_it_cannot_do_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(TwoLayer(), coordinate_fraction=0.5, **kwargs)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_fractions_out_of_range_are_refused(fraction):
    with pytest.raises(ValueError, match=r"coordinate_fraction = .*\(0, 1\]"):
        make(TwoLayer(), coordinate_fraction=fraction)
