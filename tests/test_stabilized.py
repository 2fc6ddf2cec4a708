"""Any learned optimizer with a nominal term, magnitudes and normalization around it."""

import functools
import re

import chex
import flax
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY, TwoLayer, flat, follow, make, run
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_optimization.learned_optimizers import base as lopt_base
from learned_optimization.learned_optimizers import mlp_lopt
from test_upstream_estimators import build
from test_upstream_estimators import run as run_upstream_s

import regularized_lopt
from regularized_lopt import learned_optimizers, regularizers, serialization, tasks, upstream
from regularized_lopt.learned_optimizers import (
    LSTMLOpt,
    Stabilized,
    StarLSTMLOpt,
    StarMLPLOpt,
    nominal,
)
from regularized_lopt.optax_bridge import as_optax

LSTM = LSTMLOpt(hidden_size=3)
MLP = mlp_lopt.MLPLOpt(hidden_size=3, compute_summary=False)
SGD = lopt_base.LearnableSGD(initial_lr=0.1)
BARE = {"nominal": "none", "controller": "none", "scale_free": False, "hold_unseen": False}
PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "s": jnp.asarray(0.3)}


def gradients(params, steps=4, scale=0.1):
    return jax.tree.map(
        lambda leaf: scale * jax.random.normal(KEY, (steps, *leaf.shape), leaf.dtype), params
    )


def perturbed(lopt):
    return jax.tree.map(lambda t: t + 0.05 * jax.random.normal(KEY, t.shape), lopt.init(KEY))


@pytest.mark.parametrize("wrapped", [LSTM, MLP, SGD], ids=lambda one: type(one).__name__)
def test_with_nothing_added_the_params_are_the_wrapped_one_s_bit_by_bit(wrapped):
    bare = Stabilized(wrapped, **BARE)
    theta = perturbed(bare)
    assert theta["head"] == {}
    grads = gradients(PARAMS)
    chex.assert_trees_all_equal(
        follow(bare, theta, PARAMS, grads), follow(wrapped, theta["learned_opt"], PARAMS, grads)
    )


def reference(name, controller, precondition, scale_free, theta, grads):
    """Params of a vector that starts at 0, in NumPy's float64, around SGD."""
    decays, decay, momenta, v, p = np.array([0.9, 0.99, 0.999])[:, None], 0.999, 0.0, 0.0, 0.0
    rate = float(np.exp(theta["learned_opt"]["log_lr"]))
    for t, g in enumerate(np.asarray(grads, np.float64), start=1):
        momenta = decays * momenta + (1 - decays) * g
        v = decay * v + (1 - decay) * g**2
        m, second = momenta / (1 - decays**t), v / (1 - decay**t)
        root, unit = np.sqrt(second), 1 / np.sqrt(second.mean()) if scale_free else 1.0
        outputs = [0.0, 0.0]
        if controller == "scalar":
            outputs = theta["head"]["magnitudes"]
        elif controller == "coordinate":
            hidden, output = (theta["head"][name] for name in ("hidden", "output"))
            x = np.concatenate([g[None], m]) / root
            x = np.maximum(hidden["w"].T @ x + hidden["b"][:, None], 0)
            outputs = output["w"].T @ x + output["b"][:, None]
        ascent = {
            "none": 0.0,
            "sgd": unit * g,
            "sgdm": unit * m[-1],
            "adam": m[-1] / root,
            "aggmo": unit * m.mean(0),
            "adam_aggmo": m.mean(0) / root,
        }[name]
        factor = 0.5 * np.exp(outputs[0])
        if precondition:
            factor = factor / np.sqrt(unit**2 * second + 1e-6)
        p = p - factor * rate * unit * g - 0.01 * np.exp(outputs[-1]) * ascent
    return p


@pytest.mark.parametrize("scale_free", [True, False])
@pytest.mark.parametrize(
    ("name", "controller", "precondition"),
    [
        ("none", "scalar", True),
        ("sgd", "none", False),
        ("sgdm", "scalar", False),
        ("adam", "coordinate", True),
        ("aggmo", "coordinate", False),
        ("adam_aggmo", "scalar", True),
    ],
)
def test_the_step_is_that_of_the_formula(name, controller, precondition, scale_free):
    lopt = Stabilized(
        SGD,
        name,
        0.01,
        controller,
        hidden_size=2 if controller == "coordinate" else 0,
        precondition=precondition,
        blackbox_scale=0.5,
        scale_free=scale_free,
    )
    theta = jax.tree.map(lambda t: t + 0.3 * jax.random.normal(KEY, t.shape), lopt.init(KEY))
    params = jnp.zeros(5)
    grads = gradients(params, steps=20)
    found = follow(lopt, theta, params, grads)[-1]
    wanted = reference(name, controller, precondition, scale_free, theta, grads)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


@settings(max_examples=8)
@given(
    exponent=st.floats(-6, 6),
    wrapped=st.sampled_from([LSTM, MLP]),
    shapes=st.sampled_from([[(4,)], [(), (2, 3)], [(1, 2, 3, 1), (3,)]]),
)
def test_a_constant_factor_on_the_loss_changes_nothing(exponent, wrapped, shapes):
    lopt = _scale_free(wrapped)
    params = [jnp.full(shape, 0.3) for shape in shapes]
    grads = gradients(params)
    scaled = jax.tree.map(lambda g: g * 10**exponent, grads)
    theta = perturbed(lopt)
    one, other = (follow(lopt, theta, params, each) for each in (grads, scaled))
    chex.assert_trees_all_close(one, other, atol=2e-6)


@functools.cache
def _scale_free(wrapped):
    """Made once, for its programs to be compiled once."""
    return Stabilized(wrapped, controller="coordinate", precondition=True)


HOLDING = {
    "Stabilized": (Stabilized(MLP), Stabilized(MLP, hold_unseen=False)),
    "StarLSTMLOpt": (StarLSTMLOpt(hidden_size=3), None),  # There is no other form.
    "StarMLPLOpt": (StarMLPLOpt(), StarMLPLOpt(hold_unseen=False)),
    "LSTMLOpt": (LSTMLOpt(hidden_size=3, hold_unseen=True), LSTM),
}


def dead_in_part(params, x):
    """A frozen layer, an input that is always 0, a row of an embedding never looked up."""
    embedded = params["embedding"][jnp.asarray([0, 2])]
    frozen = jax.lax.stop_gradient(params["frozen"])
    hidden = jnp.tanh((embedded + x) @ frozen @ params["live"])
    return jnp.mean((hidden - 0.3) ** 2)


@pytest.mark.parametrize("name", HOLDING)
def test_what_never_had_a_gradient_does_not_move(name):
    params = {
        "embedding": jnp.ones((3, 3)),
        "frozen": jnp.eye(3).at[2, 2].set(0.0),  # So that the last row of `live` reads zeros.
        "live": jnp.full((3, 2), 0.5),
    }

    def after(lopt):
        theta = perturbed(lopt)
        opt = lopt.opt_fn(theta)

        @jax.jit
        def step(state, x):
            grad = jax.grad(dead_in_part)(opt.get_params(state), x)
            return opt.update(state, grad, loss=jnp.zeros(()), key=KEY)

        state = opt.init(params, num_steps=10, key=KEY)
        for t in range(3):
            state = step(state, jax.random.normal(jax.random.fold_in(KEY, t), (2, 3)))
        new = opt.get_params(state)
        return [
            bool(jnp.all(new[key][where] == params[key][where]))
            for key, where in (("frozen", ...), ("live", 2), ("embedding", 1))
        ], bool(jnp.all(new["live"][:2] != params["live"][:2]))

    holding, loose = HOLDING[name]
    assert after(holding) == ([True] * 3, True)
    if loose is not None:
        assert not any(after(loose)[0])


def test_frozen_coordinates_start_afresh_when_their_first_gradient_comes():
    """Their averages are corrected by their own age: Adam's first step is as long as any."""
    lopt = Stabilized(SGD, "adam", 0.1, "none", blackbox_scale=0.0, momentum_decays=(0.9,))
    grads = jnp.asarray([[1.0, 0.0]] * 5 + [[1.0, 1e-3]])
    params = follow(lopt, lopt.init(KEY), jnp.zeros(2), grads)
    np.testing.assert_allclose(params[-1] - params[-2], [-0.1, -0.1], rtol=1e-5)


def test_other_leaves_are_kept_and_averages_are_wide():
    params = {
        "w": jnp.ones((2, 3), jnp.bfloat16),
        "scalar": jnp.asarray(1.0),
        "count": jnp.asarray([1, 2]),
        "conv": jnp.ones((1, 2, 1, 2)),
    }

    def loss(p):
        return jnp.sum(p["w"] * p["scalar"]).astype(jnp.float32) + jnp.sum(p["conv"] ** 2)

    for wrapped in (LSTM, MLP):
        lopt = Stabilized(wrapped)
        opt = lopt.opt_fn(lopt.init(KEY))
        state = opt.init(params, num_steps=10, key=KEY)
        assert {x.dtype for x in state.moments} == {jnp.dtype(jnp.float32)}
        grad = jax.grad(loss, allow_int=True)(params)
        new = opt.get_params(jax.jit(opt.update)(state, grad, loss=jnp.zeros(())))
        chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
        np.testing.assert_array_equal(new["count"], params["count"])
        assert float(new["scalar"]) != 1.0
    with pytest.raises(ValueError, match=r"\['w'\] of the params is complex64"):
        opt.init({"w": jnp.ones(2, complex)})


def test_it_is_saved_with_what_it_wraps_and_loaded(tmp_path):
    lopt = Stabilized(Stabilized(LSTM, nominal="none"), controller="coordinate", hidden_size=2)
    theta, path = perturbed(lopt), tmp_path / "lopt.npz"
    regularized_lopt.save(path, lopt, theta)
    loaded = regularized_lopt.load(path)
    described = learned_optimizers.describe(lopt)
    assert learned_optimizers.describe(loaded.learned_opt) == described
    grads = gradients(PARAMS)
    chex.assert_trees_all_equal(
        follow(lopt, theta, PARAMS, grads), follow(loaded.learned_opt, loaded.theta, PARAMS, grads)
    )
    described["config"]["learned_opt"]["__learned_opt__"]["learned_opt"] = "Unheard"
    serialization.save(path, theta, described)
    with pytest.raises(
        serialization.FileFormatError, match=r"holds a Unheard; known: .*Stabilized"
    ):
        regularized_lopt.load(path)

    class Nameless(upstream.LearnedOptimizer):
        init = opt_fn = None

    with pytest.raises(
        ValueError, match=r"learned_opt is a learned optimizer .Nameless cannot be saved: decorate"
    ):
        regularized_lopt.save(path, Stabilized(Nameless()), theta)


def test_as_a_gradient_transformation_it_does_the_same():
    lopt = Stabilized(LSTM)
    theta = perturbed(lopt)
    grads = gradients(PARAMS)
    tx = as_optax(lopt, theta)

    @jax.jit
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), grads)
    wanted = jax.tree.map(lambda leaf: leaf[-1], follow(lopt, theta, PARAMS, grads))
    chex.assert_trees_all_close(params, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", nominal.DIRECTIONS)
def test_a_nominal_term_by_name_is_the_one_that_is_meta_trained(name):
    """Around an optimizer that stands still, bolted on or wrapped."""
    lopt = Stabilized(LSTM, name, 0.02, "none", scale_free=False)
    theta = jax.tree.map(jnp.zeros_like, lopt.init(KEY))
    tx = as_optax(LSTM, theta["learned_opt"], nominal=name, nominal_step=0.02)
    grads = gradients(PARAMS)
    params, state = PARAMS, tx.init(PARAMS)
    for t in range(3):
        grad = {key: leaf[t] for key, leaf in grads.items()}
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    wanted = jax.tree.map(lambda leaf: leaf[2], follow(lopt, theta, PARAMS, grads))
    chex.assert_trees_all_close(params, wanted, rtol=1e-5)
    assert (name == "none") == bool(jnp.all(params["w"] == PARAMS["w"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stabilized(LSTM, "adamm"), "Unknown Stabilized.nominal 'adamm'. Did you mean 'ad"),
        (lambda: Stabilized(LSTM, controller="scaler"), "Did you mean 'scalar'"),
        (lambda: Stabilized(LSTM, nominal_step=-1.0), "nominal_step = -1.0: it must be 0 or"),
        (lambda: Stabilized(LSTM, blackbox_scale=-1.0), "blackbox_scale = -1.0: it must be 0 or"),
        (lambda: Stabilized(LSTM, momentum_decays=()), r"momentum_decays = \(\): give at least"),
        (lambda: Stabilized(LSTM, second_moment_decay=1.0), r"must be in \(0, 1\)"),
        (lambda: Stabilized(LSTM, hidden_size=2), 'hidden_size = 2 .* controller = "coordinate"'),
        (lambda: Stabilized("LSTMLOpt"), "Stabilized.learned_opt = 'LSTMLOpt'"),
        (lambda: as_optax(LSTM, {}, nominal="adamm"), "Unknown nominal 'adamm'"),
        (lambda: as_optax(LSTM, {}, nominal="adam", nominal_step=-1.0), "nominal step = -1.0"),
        (lambda: as_optax(LSTM, {}, nominal_step=0.1), "nominal_step = 0.1: it is the step of"),
        (
            lambda: make(TwoLayer(), lopt=Stabilized(LSTM), smoothing=regularizers.Smoothing()),
            "Stabilized reads, which it does not differentiate through",
        ),
        (
            lambda: make(TwoLayer(), lopt=Stabilized(LSTM), coordinate_fraction=0.5),
            "Stabilized is not known to treat each coordinate",
        ),
    ],
)
def test_what_is_wrong_is_said_on_one_line(call, message):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    # Gin adds lines of its own.
    assert re.search(message, str(error.value).splitlines()[0])


def test_an_optimizer_with_its_params_elsewhere_is_refused():
    @flax.struct.dataclass
    class State:
        params: dict
        own: dict

    class Elsewhere(upstream.Optimizer):
        def init(self, params, num_steps=None, key=None):
            return State(params, params)

        def get_params(self, state):
            return state.own

    class ElsewhereLOpt(upstream.LearnedOptimizer):
        def init(self, rng):
            return {}

        def opt_fn(self, theta, is_training=False):
            return Elsewhere()

    lopt = Stabilized(ElsewhereLOpt())
    with pytest.raises(TypeError, match="cannot wrap ElsewhereLOpt: its params are not in"):
        lopt.opt_fn(lopt.init(KEY)).init(PARAMS)


@pytest.mark.parametrize("second_derivatives", [False, True])
def test_gradients_are_differentiated_through_on_demand(second_derivatives):
    lopt = Stabilized(MLP, second_derivatives=second_derivatives)
    theta = perturbed(lopt)
    assert not Stabilized(LSTM, second_derivatives=True).second_derivatives

    def last(scale):
        grads = {"w": jnp.ones((2, 6)) * scale}
        return jnp.sum(follow(lopt, theta, {"w": jnp.ones(6)}, grads)["w"][-1] ** 3)

    slope = float(jax.grad(lambda x: last(jnp.arange(6.0) * x + x**2))(0.7))
    assert np.isfinite(slope)
    assert (slope != 0) == second_derivatives


def test_gin_makes_it():
    gin.parse_config(
        """
        LSTMLOpt.hidden_size = 3
        Stabilized.learned_opt = @LSTMLOpt()
        Stabilized.controller = "coordinate"
        """
    )
    lopt = gin.get_configurable("Stabilized")()
    described = learned_optimizers.describe(lopt)["config"]["learned_opt"]
    assert described == {"__learned_opt__": learned_optimizers.describe(LSTM)}
    assert "Stabilized" in learned_optimizers.CLASSES


@pytest.mark.parametrize("wrapped", [LSTM, MLP], ids=lambda one: type(one).__name__)
def test_it_is_meta_trained_head_and_all(wrapped):
    lopt = Stabilized(wrapped, controller="coordinate", hidden_size=2)
    grads, losses, _ = run(make(TwoLayer(), lopt=lopt, unroll_length=5), lopt.init(KEY), 2)
    assert np.all(np.isfinite(losses))
    for grad in grads:
        assert np.all(np.isfinite(flat(grad)))
        assert np.any(flat(grad["learned_opt"]) != 0)
        assert np.all(grad["head"]["output"]["b"] != 0)


def test_upstream_s_pes_trains_it():
    lopt = Stabilized(SGD)
    estimator = build("TruncatedPES", tasks.as_family(TwoLayer()), lopt)
    out, _ = run_upstream_s(estimator, lopt.init(KEY))
    assert np.all(np.isfinite(flat(out.grad)))
    assert np.all(out.grad["head"]["magnitudes"] != 0)
