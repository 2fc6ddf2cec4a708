import math

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_optimization.learned_optimizers import test_utils

import regularized_lopt
from regularized_lopt import upstream
from regularized_lopt.learned_optimizers import preprocessing

CONFIGS = [
    {},
    {"inputs": ("grad", "params")},
    {"inputs": ("grad", "momentum"), "momentum_decays": (0.5, 0.9)},
    {"inputs": ("momentum", "params", "grad"), "preprocess": False},
    {"preprocess": False, "num_layers": 1, "hidden_size": 3},
    {"output_bound": 0.5, "num_layers": 3},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_passes_upstream_s_smoke_test(config):
    lopt = regularized_lopt.LSTMLOpt(**config)
    assert isinstance(lopt, upstream.LearnedOptimizer)
    test_utils.smoketest_learned_optimizer(lopt)


def test_network_is_haiku_s_lstm():
    """Layer by layer the same numbers as hk.LSTM, which adds the forget gate's bias of 1 itself."""
    with jax.enable_x64(True):
        lopt = regularized_lopt.LSTMLOpt()
        theta = jax.tree.map(
            lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape) * 0.3),
            lopt.init(jax.random.PRNGKey(0)),
        )
        n, steps = 7, 4
        gradients = jnp.asarray(np.random.default_rng(0).normal(size=(steps, n)) * 0.01)

        def reference(inputs):
            core = hk.DeepRNN([hk.LSTM(20), hk.LSTM(20)])
            outputs, _ = hk.static_unroll(core, inputs, core.initial_state(n))
            return outputs

        inputs = jax.vmap(lambda g: preprocessing.log_sign(g).T)(gradients)
        network = hk.without_apply_rng(hk.transform(reference))
        params = network.init(jax.random.PRNGKey(0), inputs)
        for layer, module in enumerate(sorted(params)):
            w, b = theta[f"lstm_{layer}"]["w"], theta[f"lstm_{layer}"]["b"]
            shift = jnp.zeros((4, 20)).at[2].set(1.0).reshape(-1)
            params[module] = {"w": w.T, "b": b - shift}
        expected = network.apply(params, inputs) @ theta["linear"]["w"].T + theta["linear"]["b"]

        hidden, got = lopt.initial_hidden(n, jnp.float64), []
        for gradient in gradients:
            update, hidden = lopt.network(theta, hidden, gradient, jnp.zeros(n))
            got.append(update / 0.1)
        np.testing.assert_allclose(np.stack(got), expected[..., 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("preprocess", [True, False])
def test_momenta_are_those_of_optax_read_as_gradients_are(preprocess):
    """The network on momenta of a decay is that on optax's averages, put in place of gradients."""
    n, decay = 5, 0.7
    gradients = jnp.asarray(np.random.default_rng(1).normal(size=(6, n)) * 0.01)
    average = optax.ema(decay, debias=False)
    plain = regularized_lopt.LSTMLOpt(preprocess=preprocess)
    lopt = regularized_lopt.LSTMLOpt(
        inputs=("grad", "momentum"), momentum_decays=(decay, 0.99), preprocess=preprocess
    )
    theta, features = plain.init(jax.random.PRNGKey(0)), 2 if preprocess else 1
    w, zeros = theta["lstm_0"]["w"], jnp.zeros((80, features))
    weights = [zeros, w[:, :features], zeros, w[:, features:]]  # grad, decay, 0.99, h
    blind = {**theta, "lstm_0": {**theta["lstm_0"], "w": jnp.concatenate(weights, axis=1)}}
    chex.assert_trees_all_equal_shapes(blind, lopt.init(jax.random.PRNGKey(0)))
    ours, theirs = (one.initial_hidden(n, jnp.float32) for one in (lopt, plain))
    state = average.init(gradients[0])
    for gradient in gradients:
        update, ours = lopt.network(blind, ours, gradient, jnp.zeros(n))
        averaged, state = average.update(gradient, state)
        expected, theirs = plain.network(theta, theirs, averaged, jnp.zeros(n))
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ours[-1][0], averaged, rtol=1e-5, atol=1e-9)
    chex.assert_trees_all_close(ours[:-1], theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("space", ["gradient", "preprocessed"])
def test_as_a_function_of_its_input_it_makes_the_update_that_follows(space):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=4, inputs=("grad", "momentum"))
    theta = lopt.init(jax.random.PRNGKey(0))
    opt, grad = lopt.opt_fn(theta), jnp.linspace(-1e-2, 1e-2, 7)
    state = opt.update(opt.init(jnp.zeros(7)), grad**2)
    u, at, _ = lopt.update_fn(theta, state, grad, key=jax.random.PRNGKey(1), space=space)
    moved = opt.update(state, grad)
    np.testing.assert_allclose(u(at), moved.params - state.params, rtol=1e-5, atol=1e-8)


def test_has_the_number_of_weights_of_the_original():
    theta = regularized_lopt.LSTMLOpt().init(jax.random.PRNGKey(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == 5141  # As in Sonnet.


def test_log_sign_is_its_formula_and_differentiable_everywhere():
    k = 10.0
    values = np.array([0.0, 1e-45, -1e-45, 1e-8, -3e-5, math.exp(-k), 1e-3, -2.0, 1e30], np.float32)
    got = np.asarray(preprocessing.log_sign(jnp.asarray(values), k))
    large = np.abs(values) >= np.float32(math.exp(-k))
    magnitude = np.log(np.where(large, np.abs(values), 1).astype(np.float64)) / k
    np.testing.assert_allclose(got[0], np.where(large, magnitude, -1), rtol=1e-5)
    np.testing.assert_allclose(
        got[1], np.where(large, np.sign(values), np.exp(k) * values), rtol=1e-5, atol=1e-38
    )
    derivative = jax.vmap(jax.grad(lambda g: preprocessing.log_sign(g[None], k).sum()))(
        jnp.asarray(values)
    )
    assert np.all(np.isfinite(derivative))


leaves = st.sampled_from(
    [
        jnp.float32(1.5),
        np.zeros((0, 3), np.float32),
        np.ones((2, 3), np.float16),
        jnp.ones((4,), jnp.bfloat16),
        np.full((2, 1, 2), -0.5, np.float32),
    ]
)
trees = st.recursive(
    st.one_of(leaves, st.none()),
    lambda child: st.one_of(
        st.lists(child, max_size=3),
        st.dictionaries(st.sampled_from("abc"), child, max_size=3),
        st.tuples(child, child),
    ),
    max_leaves=5,
)


@settings(max_examples=40)
@given(
    tree=trees,
    scale=st.sampled_from([0.0, 1e-45, 1e-20, 1.0, 1e30]),
    inputs=st.sampled_from([("grad",), ("grad", "momentum")]),
)
def test_any_tree_keeps_structure_shapes_and_dtypes_and_stays_finite(tree, scale, inputs):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, inputs=inputs)
    opt = lopt.opt_fn(lopt.init(jax.random.PRNGKey(0)))
    params = jax.tree.map(jnp.asarray, tree)
    grads = jax.tree.map(
        lambda p: jnp.clip(scale, 0, float(jnp.finfo(p.dtype).max)) * jnp.ones_like(p), params
    )
    state = opt.update(opt.init(params), grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(opt.get_params(state), params)
    chex.assert_tree_all_finite(opt.get_params(state))


def test_float64_params_are_computed_in_float64():
    with jax.enable_x64(True):
        lopt = regularized_lopt.LSTMLOpt(inputs=("grad", "momentum"))
        opt = lopt.opt_fn(lopt.init(jax.random.PRNGKey(0)))
        state = opt.update(opt.init({"w": jnp.ones(3, jnp.float64)}), {"w": jnp.ones(3)})
        assert opt.get_params(state)["w"].dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(state.hidden)} == {jnp.dtype(jnp.float64)}


def test_no_params_is_a_no_op():
    lopt = regularized_lopt.LSTMLOpt()
    opt = lopt.opt_fn(lopt.init(jax.random.PRNGKey(0)))
    state = opt.update(opt.init({}), {})
    assert opt.get_params(state) == {}
    assert int(state.iteration) == 1


def test_coordinates_do_not_see_each_other():
    """The same coordinate gets the same update, whatever stands beside it."""
    lopt = regularized_lopt.LSTMLOpt()
    opt = lopt.opt_fn(lopt.init(jax.random.PRNGKey(0)))
    g = jnp.linspace(-1, 1, 6)
    one = opt.update(opt.init(jnp.zeros(6)), g)
    split = opt.update(opt.init([jnp.zeros((2, 2)), jnp.zeros(2)]), [g[:4].reshape(2, 2), g[4:]])
    a, b = opt.get_params(split)
    np.testing.assert_allclose(
        jnp.concatenate([a.ravel(), b]), opt.get_params(one), rtol=1e-6, atol=1e-8
    )


def test_set_params_replaces_only_the_params():
    lopt = regularized_lopt.LSTMLOpt()
    opt = lopt.opt_fn(lopt.init(jax.random.PRNGKey(0)))
    state = opt.update(opt.init(jnp.zeros(3)), jnp.ones(3), model_state="kept")
    replaced = opt.set_params(state, jnp.full(3, 7.0))
    np.testing.assert_array_equal(opt.get_params(replaced), np.full(3, 7.0))
    assert replaced.hidden is state.hidden
    assert opt.get_state(replaced) == "kept"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"inputs": ("grads",)}, "Did you mean 'grad'"),
        ({"inputs": ("params",)}, "give"),
        ({"inputs": ("grad", "grad")}, "each once"),
        ({"inputs": ("grad", "momentum"), "momentum_decays": ()}, "give at least one"),
        ({"inputs": ("grad", "momentum"), "momentum_decays": (1.0,)}, "momentum_decays = 1.0"),
        ({"hidden_size": 0}, "LSTMLOpt.hidden_size = 0"),
        ({"output_bound": -1.0}, "greater than 0"),
    ],
)
def test_refuses_bad_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        regularized_lopt.LSTMLOpt(**config)
