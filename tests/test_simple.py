"""The optimizer that Xiong & Hsieh smooth, against NumPy in float64, and in every form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import digits_config
from helpers import CONSTANT, KEY, TwoLayer, flat, follow, follow_optax, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_optimization.learned_optimizers import test_utils
from test_coordinates import estimates

import regularized_lopt
from regularized_lopt import gin_files, regularizers, tasks
from regularized_lopt.estimators import RegularizedTruncatedStep
from regularized_lopt.learned_optimizers import SimpleLOpt, describe
from regularized_lopt.optax_bridge import as_optax
from regularized_lopt.outer_training import outer_train

FORMS = {
    "gradient": SimpleLOpt(hidden_size=5),
    "state": SimpleLOpt(hidden_size=5, inputs="state"),
    "spectral": SimpleLOpt(hidden_size=5, spectral_norm=("rnn/w_x", "rnn/w_h", "linear/w")),
}
FORM = pytest.mark.parametrize("form", FORMS)
PARAMS = {"matrix": (3, 4), "scalar": (), "vector": (5,)}


def normal(shapes, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(scale * rng.normal(size=of)) for name, of in shapes.items()}


def steps(count, scale=0.1, seed=1):
    """Gradients of `PARAMS` of so many steps."""
    return normal({name: (count, *of) for name, of in PARAMS.items()}, scale, seed)


def wide(lopt):
    """Theta in float64 that is not that of the init, where updates are small."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            np.asarray(leaf, np.float64)
            + 0.3 * np.random.default_rng(leaf.size).normal(size=leaf.shape)
        ),
        lopt.init(KEY),
    )


class InNumPy:
    """The optimizer, written anew."""

    def __init__(self, theta, form, num_coordinates):
        self.w_x, self.w_h, self.w = (
            np.asarray(leaf, np.float64)
            for leaf in (theta["rnn"]["w_x"], theta["rnn"]["w_h"], theta["linear"]["w"])
        )
        if form == "spectral":
            self.w_x, self.w_h, self.w = (
                leaf / np.linalg.svd(leaf, compute_uv=False)[0]
                for leaf in (self.w_x, self.w_h, self.w)
            )
        self.form = form
        self.h = np.zeros((len(self.w_h), num_coordinates))
        self.m, self.v = np.zeros((2, num_coordinates))

    def inputs(self, gradient, params):
        if self.form != "state":
            return gradient[None] / np.sqrt(np.mean(gradient**2) + 1e-5)
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        return np.stack([params, gradient, self.m, self.v])

    def layer(self, x):
        return np.tanh(self.w_x @ x + self.w_h @ self.h)

    def step(self, params, gradient):
        self.h = self.layer(self.inputs(gradient, params))
        return params + (self.w @ self.h)[0]


def of_numpy(theta, form, params, grads):
    """Flat params after each step."""
    at = flat(params)
    lopt, found = InNumPy(theta, form, at.size), []
    for t in range(len(grads["scalar"])):
        at = lopt.step(at, flat(jax.tree.map(lambda g, t=t: g[t], grads)))
        found.append(at)
    return np.stack(found)


@FORM
def test_its_updates_are_those_of_numpy(form):
    with jax.enable_x64(True):
        lopt = FORMS[form]
        theta, params, grads = wide(lopt), normal(PARAMS), steps(10)
        found = follow(lopt, theta, params, grads)
        by_step = [flat(jax.tree.map(lambda p, t=t: p[t], found)) for t in range(10)]
        wanted = of_numpy(theta, form, params, grads)
        assert np.abs(wanted[-1] - wanted[0]).max() > 0.1
        np.testing.assert_allclose(np.stack(by_step), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("inputs", "count"), [("gradient", 440), ("state", 500)])
def test_has_so_many_weights(inputs, count):
    """440 in the published form: 20 + 400 + 20."""
    theta = SimpleLOpt(inputs=inputs).init(KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == count
    bound = 20**-0.5
    assert 0.9 * bound < jnp.abs(theta["rnn"]["w_h"]).max() < bound
    assert 0.05 * bound < jnp.abs(theta["linear"]["w"]).max() < 0.1 * bound


@pytest.mark.parametrize("reduced", ["mean", "sum"])
@pytest.mark.parametrize("space", ["gradient", "preprocessed"])
@FORM
def test_the_smoothing_term_and_its_ascent_are_those_of_numpy(form, space, reduced):
    """R and its gradient w.r.t. theta, some steps into a trajectory; s' stays in the ball."""
    with jax.enable_x64(True):
        lopt, K, epsilon, noise = FORMS[form], 10, 0.7, 0.05
        smoothing = regularizers.Smoothing(
            epsilon=epsilon, num_steps=K, noise=noise, space=space, over_coordinates=reduced
        )
        theta = wide(lopt)
        problem = RegularizedTruncatedStep(tasks.as_family(TwoLayer()), lopt, CONSTANT(10))
        state = problem.init_one(theta, weights(theta).outer_state, KEY)
        ours = InNumPy(theta, form, 16)
        for t in range(3):
            before, at = state, flat(state.inner_opt_state.params)
            state, loss, grad = problem.step_one(theta, state, KEY, ())
            if t < 2:
                ours.step(at, flat(grad))
        found, found_grad = problem.smoothing_one(smoothing, theta, before, loss, grad, KEY)

        moments = ours.m, ours.v
        s, g = ours.inputs(flat(grad), at), flat(grad)
        if space == "gradient":  # Of the inputs, the gradient alone is perturbed.
            s = s if form != "state" else g[None]

        def inputs(s):
            if space == "preprocessed" or form != "state":
                return s
            ours.m, ours.v = moments
            return ours.inputs(s[0], at)

        unit = np.sqrt(np.mean(s**2)) if space == "gradient" else 1.0
        _, start_key = jax.random.split(KEY)
        shape = s.shape if space == "preprocessed" else s[0].shape
        other = s + noise * unit * np.asarray(jax.random.normal(start_key, shape, s.dtype))
        a = ours.layer(inputs(s))
        low, high = s - epsilon * unit, s + epsilon * unit
        other = np.clip(other, low, high)
        for _ in range(K):
            b = ours.layer(inputs(other))
            slope = ours.w_x.T @ ((1 - b**2) * ours.w.T)  # d u / d input
            if space == "gradient" and form == "state":
                slope = slope[1] + 0.1 * slope[2] + 0.001 * 2 * other * slope[3]
            climb = 2 * (ours.w @ (b - a)) * slope
            other = np.clip(other + epsilon / 5 * unit * np.sign(climb), low, high)
            assert np.all(np.abs(other - s) <= epsilon * unit * (1 + 1e-12))
        b, d = ours.layer(inputs(other)), (ours.w @ (ours.layer(inputs(other)) - a))[0]
        scale = 1 if reduced == "sum" else 1 / d.size
        np.testing.assert_allclose(found, scale * np.sum(d**2), rtol=1e-10)
        assert found > 1e-4 * scale
        if form == "spectral":  # Its derivative is not as short.
            return
        da, db = ((1 - x**2) * ours.w.T for x in (a, b))
        wanted = {
            "rnn": {
                "w_x": 2 * scale * ((d * db) @ inputs(other).T - (d * da) @ inputs(s).T),
                "w_h": 2 * scale * (d * (db - da)) @ ours.h.T,
            },
            "linear": {"w": 2 * scale * d[None] @ (b - a).T},
        }
        chex.assert_trees_all_close(found_grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("second_derivatives", [False, True])
@FORM
def test_passes_upstream_s_smoke_test(form, second_derivatives):
    config = {**FORMS[form].config, "second_derivatives": second_derivatives}
    test_utils.smoketest_learned_optimizer(SimpleLOpt(**config))


@FORM
@pytest.mark.parametrize(
    "options", [{}, {"chunk_size": 4}, {"per_leaf": True}, {"state_dtype": jnp.float32}], ids=str
)
def test_the_optax_form_is_the_other(form, options):
    lopt, params, grads = FORMS[form], normal(PARAMS), steps(3)
    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), wide(lopt))

    @jax.jit  # Theta is no constant: XLA takes other sums with one.
    def train(theta, params):
        return follow_optax(as_optax(lopt, theta, **options), params, grads)

    found, wanted = train(theta, params), follow(lopt, theta, params, grads)
    if {"chunk_size", "per_leaf"} & set(options):  # Products with other shapes.
        chex.assert_trees_all_close(found, wanted, rtol=1e-6, atol=1e-6)
    else:
        chex.assert_trees_all_equal(found, wanted)


@FORM
def test_a_file_makes_it_again(form, tmp_path):
    lopt, params, grads = FORMS[form], normal(PARAMS), steps(3)
    theta = lopt.init(KEY)
    regularized_lopt.save(tmp_path / "lopt.npz", lopt, theta)
    loaded = regularized_lopt.load(tmp_path / "lopt.npz")
    assert describe(loaded.learned_opt) == describe(lopt)
    found = follow(loaded.learned_opt, loaded.theta, params, grads)
    chex.assert_trees_all_equal(found, follow(lopt, theta, params, grads))


@pytest.mark.parametrize("form", ["gradient", "state"])
def test_theta_s_gradient_through_a_sample_of_coordinates_is_right_on_average(form):
    lopt = SimpleLOpt(hidden_size=3, inputs=form)
    exact, sampled = (
        estimates(count, lopt=lopt, coordinate_fraction=fraction)
        for count, fraction in ((1, 1.0), (1000, 0.25))
    )
    rows = np.concatenate([np.reshape(g, (1000, -1)) for g in jax.tree.leaves(sampled.grad)], 1)
    target, error = flat(exact.grad), rows.std(axis=0) / np.sqrt(len(rows))
    assert np.linalg.norm(error) > 0  # It is a sample.
    assert np.mean(np.abs(rows.mean(axis=0) - target) <= 3 * error + 1e-7) > 0.98


@settings(max_examples=20)
@given(scale=st.sampled_from([0.0, 1e-45, 1e-20, 1.0, 1e30]), form=st.sampled_from([*FORMS]))
def test_stays_finite_and_coordinates_without_a_gradient_where_they_are(scale, form):
    lopt, params = FORMS[form], normal(PARAMS)
    grads = jax.tree.map(lambda g: scale * g, steps(2)) | {"vector": jnp.zeros((2, 5))}
    found = follow(lopt, lopt.init(KEY), params, grads)
    chex.assert_tree_all_finite(found)
    if form != "state":
        np.testing.assert_array_equal(found["vector"][-1], params["vector"])


@pytest.mark.parametrize("smoothed", [False, True])
def test_a_population_of_it_is_meta_trained_saved_and_loaded(smoothed, tmp_path):
    extra = ["outer_train.seeds = (0, 1)", "SimpleLOpt.hidden_size = 3"]
    if smoothed:
        extra += ["RegularizedTruncatedGrad.smoothing = @Smoothing()", "Smoothing.fraction = 0.2"]
    gin_files.parse_gin([], digits_config(2, "outer_train.learned_opt = @SimpleLOpt()", *extra))
    done = outer_train(tmp_path / "run", progress=False)
    thetas = []
    for name in done:
        loaded = regularized_lopt.load(tmp_path / "run" / name)
        assert isinstance(loaded.learned_opt, SimpleLOpt)
        thetas.append(flat(loaded.theta))
    assert len(thetas) == 2
    assert not np.array_equal(*thetas)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": "gradients"}, r"Unknown SimpleLOpt\.inputs 'gradients'.* Did you mean 'grad"),
        ({"hidden_size": 0}, r"SimpleLOpt\.hidden_size = 0"),
        ({"epsilon": 0.0}, r"SimpleLOpt\.epsilon = 0\.0"),
        ({"momentum_decay": 1.0}, r"SimpleLOpt\.momentum_decay = 1\.0"),
        ({"spectral_norm": ("rnn/w",)}, r"Unknown weight in SimpleLOpt\.spectral_norm 'rnn/w'"),
    ],
)
def test_refuses_bad_configurations(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimpleLOpt(**arguments)
