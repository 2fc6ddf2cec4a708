"""Spectral normalization of an optimizer's weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, TwoLayer, follow, make, run

import regularized_lopt
from regularized_lopt.learned_optimizers import LSTMLOpt, spectral
from regularized_lopt.regularizers import Smoothing

MATRICES = ("lstm_0/w", "linear/w")


def test_a_matrix_is_divided_by_its_largest_singular_value(x64):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(k, k)))[0] for k in (3, 4))
    known = left @ np.eye(3, 4) * np.array([0.5, 1.0, 2.0, 0.0]) @ right
    theta = {"layer": {"w": jnp.asarray(known), "b": jnp.ones(3), "zero": jnp.zeros((2, 2))}}
    found = spectral.normalized(theta, ("layer/w", "layer/zero"))
    np.testing.assert_allclose(
        np.linalg.svd(found["layer"]["w"], compute_uv=False),
        np.linalg.svd(known, compute_uv=False) / np.linalg.svd(known, compute_uv=False)[0],
        rtol=1e-12,
    )
    np.testing.assert_array_equal(found["layer"]["b"], theta["layer"]["b"])
    np.testing.assert_array_equal(found["layer"]["zero"], np.zeros((2, 2)))


def test_its_derivative_is_that_of_w_over_sigma(x64):
    """d/dW <C, W / sigma> = C / sigma - <C, W> u v' / sigma^2 (Miyato et al. 2018, eq. 12)."""
    w, c = np.random.default_rng(1).normal(size=(2, 3, 4))

    def inner(w):
        return jnp.sum(c * spectral.normalized({"layer": {"w": w}}, ("layer/w",))["layer"]["w"])

    u, sigma, v = np.linalg.svd(w)
    wanted = c / sigma[0] - np.sum(c * w) * np.outer(u[:, 0], v[0]) / sigma[0] ** 2
    np.testing.assert_allclose(jax.grad(inner)(jnp.asarray(w)), wanted, rtol=1e-10, atol=1e-12)


def test_an_optimizer_with_it_is_the_plain_one_of_normalized_weights(tmp_path):
    plain, lopt = LSTMLOpt(hidden_size=3), LSTMLOpt(hidden_size=3, spectral_norm=MATRICES)
    theta, params = lopt.init(KEY), jnp.linspace(-1, 1, 6)
    chex.assert_trees_all_equal(theta, plain.init(KEY))
    grads = 0.01 * jax.random.normal(KEY, (4, 6))
    found = follow(lopt, theta, params, grads)
    wanted = follow(plain, spectral.normalized(theta, MATRICES), params, grads)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    assert not np.allclose(found, follow(plain, theta, params, grads), rtol=1e-4)
    regularized_lopt.save(tmp_path / "lopt.npz", lopt, theta)
    loaded = regularized_lopt.load(tmp_path / "lopt.npz")
    assert loaded.learned_opt.config["spectral_norm"] == list(MATRICES)
    np.testing.assert_array_equal(follow(loaded.learned_opt, loaded.theta, params, grads), found)
    assert "spectral_norm" not in plain.config


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mean", "smoothing": Smoothing(num_steps=2)},
        {"loss": "ramp", "smoothing": Smoothing(num_steps=2, over_steps="as_loss")},
        {"coordinate_fraction": 0.5},
    ],
)
def test_theta_s_gradient_is_the_plain_optimizer_s_times_the_derivative(options, x64):
    """dL/dtheta = dL/dW_n dW_n/dtheta, W_n being what the plain optimizer is given."""
    plain, lopt = LSTMLOpt(hidden_size=3), LSTMLOpt(hidden_size=3, spectral_norm=MATRICES)
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), lopt.init(KEY))
    ((found,), (loss,), _), ((at_normalized,), (plain_loss,), _) = (
        run(make(TwoLayer(), lopt=of, unroll_length=4, **options), weights)
        for of, weights in ((lopt, theta), (plain, spectral.normalized(theta, MATRICES)))
    )
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-12)
    _, pull_back = jax.vjp(lambda theta: spectral.normalized(theta, MATRICES), theta)
    chex.assert_trees_all_close(found, *pull_back(at_normalized), rtol=1e-7, atol=1e-12)


def test_an_unroll_normalizes_once():
    """No decomposition is at an inner step, where one would cost more than the step."""
    lopt = LSTMLOpt(hidden_size=3, spectral_norm=MATRICES)
    estimator = make(TwoLayer(), lopt=lopt, unroll_length=4, smoothing=Smoothing(num_steps=2))
    theta = lopt.init(KEY)
    program = jax.make_jaxpr(lambda theta: run(estimator, theta)[0])(theta)
    assert "svd" in everything(program.jaxpr)
    loops = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == "scan"]
    assert loops
    assert not any("svd" in everything(eqn.params["jaxpr"].jaxpr) for eqn in loops)


def equations(jaxpr):
    """Of a program, those within its parts, too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for given in eqn.params.values():
            for part in given if isinstance(given, tuple | list) else [given]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def everything(jaxpr):
    return {eqn.primitive.name for eqn in equations(jaxpr)}


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            "lstm_0/b",
            r"'lstm_0/b' has the shape \(12,\), and matrices alone have a spectral norm\. ",
        ),
        ("lstm_0", r"Unknown weight in LSTMLOpt\.spectral_norm 'lstm_0'\. Did you mean 'lstm_0/"),
    ],
)
def test_what_is_no_matrix_is_refused_in_one_line(weight, message):
    with pytest.raises(ValueError, match=message) as error:
        LSTMLOpt(hidden_size=3, spectral_norm=(weight,))
    assert "\n" not in str(error.value).partition("\n  In call to configurable")[0]
