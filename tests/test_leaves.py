"""Params of any structure and dtype: each leaf is trained, kept as it is, or refused by name."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import regularized_lopt
from regularized_lopt import upstream
from regularized_lopt.optax_bridge import as_optax, from_optimizer
from regularized_lopt.outer_training import theta_optimizer

LOPT = regularized_lopt.LSTMLOpt(hidden_size=3)
THETA = LOPT.init(jax.random.PRNGKey(0))
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(4)}
OPTIONS = [
    {},
    {"per_leaf": True},
    {"chunk_size": 2},
    {"state_dtype": jnp.bfloat16},
    {"nominal": optax.adam(0.1)},
    {"clip": 0.01},
]
WITH_INTEGERS = {"w": jnp.ones(3), "i": jnp.arange(2, dtype=jnp.int8), "m": jnp.ones(2, bool)}


def gradients(params):
    """Of a loss that reads the floats; float0 for the others."""

    def loss(params):
        floats = [x for x in jax.tree.leaves(params) if _is_float(x)]
        return sum(map(jnp.sum, floats), 0.0)

    return jax.grad(loss, allow_int=True)(params)


@pytest.mark.parametrize("init", [as_optax(LOPT, THETA).init, LOPT.opt_fn(THETA).init])
@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.ones(2, complex), r"\['w'\] .*complex64\[2\].*split_real_and_imaginary"),
        (jnp.ones(2, jnp.float8_e4m3fn), r"\['w'\] .*float8_e4m3fn\[2\].*Convert it"),
        (jax.random.key(0), r"\['w'\] .*key<fry>\[\]"),
        (jnp.tanh, r"\['w'\] .*equinox\.filter"),
    ],
    ids=["complex", "float8", "key", "function"],
)
def test_what_could_not_be_trained_is_refused(init, leaf, message):
    with pytest.raises(ValueError, match=message):
        init({"b": jnp.ones(2), "w": leaf})


def test_complex_gradients_are_refused_and_split_ones_are_trained():
    params = {"w": jnp.full(2, 1 + 2j)}
    tx = as_optax(LOPT, THETA)
    with pytest.raises(ValueError, match=r"\['w'\] of the gradients is complex64"):
        tx.update(params, tx.init({"w": jnp.ones(2)}))
    split = optax.contrib.split_real_and_imaginary(tx)
    updates, _ = split.update(params, split.init(params), params)
    assert updates["w"].dtype == jnp.complex64
    assert np.all(np.real(updates["w"]) != 0)
    assert np.all(np.imag(updates["w"]) != 0)


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_states_are_made_from_shapes_alone(options):
    """As a sharded checkpoint is restored: the same state as from arrays."""
    tx = as_optax(LOPT, THETA, **options)
    shapes = jax.eval_shape(lambda: WITH_INTEGERS)
    chex.assert_trees_all_equal(tx.init(shapes), tx.init(WITH_INTEGERS))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(tx.init, WITH_INTEGERS), tx.init(shapes)
    )


def test_the_other_forms_start_from_shapes_too():
    shapes = jax.eval_shape(lambda: PARAMS)
    ours = LOPT.opt_fn(THETA)
    chex.assert_trees_all_equal(ours.init(shapes).hidden, ours.init(PARAMS).hidden)
    theirs = from_optimizer(upstream.Adam(0.1))
    chex.assert_trees_all_equal(theirs.init(shapes), theirs.init(PARAMS))


LESS, WIDER = {"w": PARAMS["w"]}, {**PARAMS, "b": jnp.ones(5)}


@pytest.mark.parametrize("options", [{}, {"per_leaf": True}], ids=str)
@pytest.mark.parametrize(
    ("grads", "params", "message"),
    [
        (WIDER, PARAMS, r"\['b'\] is float32\[5\] in the gradients and float32\[4\] in the params"),
        (LESS, PARAMS, r"\['b'\] is missing in the gradients and float32\[4\] in the params"),
        (PARAMS, LESS, r"\['b'\] is float32\[4\] in the gradients and missing in the params"),
        (LESS, LESS, "state.*init with these params"),
        (WIDER, WIDER, "state.*init with these params"),
        (WIDER, None, "state.*init with these params"),
        ({**PARAMS, "b": jnp.ones(4, int)}, PARAMS, r"\['b'\] is int32.*a float's gradient"),
    ],
)
def test_gradients_and_states_of_other_params_are_refused(options, grads, params, message):
    tx = as_optax(LOPT, THETA, **options)
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(PARAMS), params)


def test_the_state_of_another_option_and_the_leaf_are_named():
    flat, leaves = as_optax(LOPT, THETA), as_optax(LOPT, THETA, per_leaf=True)
    with pytest.raises(ValueError, match=r"state.*init with these params"):
        leaves.update(PARAMS, flat.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"gradients' leaf \['b'\] has \[5\]"):
        leaves.update(WIDER, leaves.init(PARAMS))


@pytest.mark.parametrize(("params", "what"), [(WIDER, r"float32\[5\]"), (LESS, "missing")])
def test_the_state_of_any_optimizer_is_checked(params, what):
    tx = from_optimizer(upstream.Adam(0.1))
    with pytest.raises(ValueError, match=rf"mu\['b'\] is float32\[4\], .* it is {what}: make"):
        tx.update(params, tx.init(PARAMS), params)


def test_the_optimizer_refuses_the_same():
    opt = LOPT.opt_fn(THETA)
    state = opt.init(PARAMS)
    with pytest.raises(ValueError, match=r"\['b'\] is float32\[5\] in the gradients"):
        opt.update(state, WIDER)
    with pytest.raises(ValueError, match=r"state is of coordinates \[10\], the params have \[6\]"):
        opt.update(opt.set_params(state, LESS), LESS)


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_integers_without_gradients_stay_as_they_are(options):
    tx = as_optax(LOPT, THETA, **options)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(gradients(params), state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        return optax.apply_updates(params, updates), state

    params, _ = step(WITH_INTEGERS, tx.init(WITH_INTEGERS))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, WITH_INTEGERS)
    for name in ("i", "m"):
        np.testing.assert_array_equal(params[name], WITH_INTEGERS[name])
    assert np.all(params["w"] != WITH_INTEGERS["w"])


def test_integers_without_gradients_stay_where_params_are_not_given():
    tx = as_optax(LOPT, THETA)
    updates, _ = tx.update(gradients(WITH_INTEGERS), tx.init(WITH_INTEGERS))
    params = optax.apply_updates(WITH_INTEGERS, updates)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, WITH_INTEGERS)
    np.testing.assert_array_equal(params["i"], WITH_INTEGERS["i"])


class _Adam:
    """Upstream's, with the interface of a learned optimizer."""

    def opt_fn(self, theta):
        return upstream.Adam(0.1)


@pytest.mark.parametrize(
    "tx",
    [
        as_optax(LOPT, THETA, nominal=optax.sgd(10.0)),
        as_optax(LOPT, THETA, nominal=optax.adam(1.0)),
        as_optax(LOPT, THETA, clip=0.01),
        as_optax(_Adam(), None),
    ],
    ids=["sgd", "adam", "clip", "upstream's"],
)
@pytest.mark.parametrize("integer", [jnp.int8, jnp.int4])
def test_integers_stay_as_they_are_whatever_their_gradients(tx, integer):
    params = {"w": jnp.ones(3), "i": jnp.ones(2, integer), "m": jnp.zeros(2, bool)}
    grads = jax.tree.map(jnp.ones_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=2)
    chex.assert_trees_all_equal(trained["i"], params["i"])
    chex.assert_trees_all_equal(trained["m"], params["m"])
    assert np.all(trained["w"] != params["w"])


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (as_optax, {"clip": 1e-3}),
        (as_optax, {"nominal": optax.sgd(0.1), "magnitude": 0.5}),
        (theta_optimizer, {"name": "sgd", "momentum": 0.0}),
    ],
    ids=["clip", "magnitude", "momentum"],
)
def test_hyperparameters_can_be_injected(make, given):
    """Under jit they are traced; the update is that of the plain constructor."""
    args = (LOPT, THETA) if make is as_optax else ()
    plain, injected = make(*args, **given), optax.inject_hyperparams(make)(*args, **given)
    expected, _ = plain.update(PARAMS, plain.init(PARAMS), PARAMS)
    found, _ = jax.jit(injected.update)(PARAMS, injected.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_a_size_that_is_injected_is_refused():
    tx = optax.inject_hyperparams(as_optax)(LOPT, THETA, chunk_size=2)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"as_optax chunk_size is traced.*static_args"):
        jax.jit(tx.update)(PARAMS, state, PARAMS)


@pytest.mark.parametrize("make", [functools.partial(as_optax, LOPT, THETA), None])
def test_a_step_is_compiled_once(make):
    tx = from_optimizer(upstream.Adam(0.1)) if make is None else make()
    update, state = jax.jit(tx.update), tx.init(PARAMS)
    for _ in range(3):
        _, state = update(PARAMS, state, PARAMS)
    assert update._cache_size() == 1


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")], ids=str)
def test_accumulates_gradients_of_another_dtype(dtypes):
    params, grads = (jax.tree.map(lambda x, to=to: x.astype(to), PARAMS) for to in dtypes)
    tx = optax.MultiSteps(as_optax(LOPT, THETA), 2)
    state = tx.init(params)
    for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params)
    assert np.all(np.asarray(updates["w"], np.float32) != 0)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5)], ids=repr)
def test_a_loss_may_be_any_number(value):
    for tx in (as_optax(LOPT, THETA), from_optimizer(_ReadsTheLoss())):
        chain = optax.chain(tx, optax.contrib.reduce_on_plateau())
        updates, _ = chain.update(PARAMS, chain.init(PARAMS), PARAMS, value=value)
        assert np.all(updates["w"] != 0)


class _ReadsTheLoss(type(upstream.SGD(0.1))):
    def __init__(self):
        super().__init__(0.1)

    def update(self, opt_state, grad, loss=None, **kwargs):
        scaled = jax.tree.map(lambda g: g * loss.astype(g.dtype), grad)
        return super().update(opt_state, scaled, loss, **kwargs)


def test_what_equinox_does_not_train_may_stand_in_the_params():
    model = {"net": eqx.nn.MLP(2, 1, 3, 1, key=jax.random.PRNGKey(0)), "n": jnp.arange(2)}
    arrays = eqx.filter(model, eqx.is_inexact_array)
    tx = as_optax(LOPT, THETA)
    found, _ = tx.update(arrays, tx.init(arrays), model)
    expected, _ = tx.update(arrays, tx.init(arrays), arrays)
    chex.assert_trees_all_equal(found, expected)


DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.int8, jnp.int32, jnp.uint8, jnp.bool_]


@st.composite
def arrays(draw):
    shape = draw(st.sampled_from([(), (1,), (0,), (3,), (2, 3)]))
    values = np.full(shape, draw(st.sampled_from([0, 1, 3])))
    return jnp.asarray(values, draw(st.sampled_from(DTYPES)))


TREES = st.recursive(
    st.one_of(arrays(), st.none(), st.floats(-2, 2, width=16)),
    lambda children: st.one_of(
        st.dictionaries(st.sampled_from("abc"), children, max_size=3),
        st.lists(children, max_size=3),
        st.tuples(children, children),
    ),
    max_leaves=5,
)


@settings(max_examples=40)
@given(TREES, st.sampled_from(OPTIONS), st.booleans())
def test_updates_are_shaped_like_the_gradients(params, options, with_float0):
    """Structure, shapes and dtypes; what is no float stays, whatever its gradient's dtype."""
    tx = as_optax(LOPT, THETA, **options)
    grads = gradients(jax.tree.map(jnp.asarray, params))
    if not with_float0:
        grads = jax.tree.map(lambda g, p: g if _is_float(p) else jnp.zeros_like(p), grads, params)
    updates, state = tx.update(grads, tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, jax.tree.map(jnp.asarray, params))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, tx.init(params))
    for update, param in zip(*map(jax.tree.leaves, (updates, params)), strict=True):
        assert _is_float(param) or not np.any(update)


@settings(max_examples=20)
@given(TREES, st.sampled_from([{}, {"per_leaf": True}, {"chunk_size": 2}]))
def test_both_forms_take_the_same_steps(params, options):
    opt, tx = LOPT.opt_fn(THETA), as_optax(LOPT, THETA, **options)
    params = jax.tree.map(jnp.asarray, params)
    ours, theirs, state = params, opt.init(params), tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients(ours), state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs = opt.update(theirs, gradients(opt.get_params(theirs)))
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, opt.get_params(theirs))
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (ours, opt.get_params(theirs)))
    # An update in 16 bits is rounded once more than the params of the optimizer.
    chex.assert_trees_all_close(*exact, rtol=2e-2, atol=1e-2)
    for a, b in zip(*map(jax.tree.leaves, (ours, opt.get_params(theirs))), strict=True):
        if a.dtype == jnp.float32:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def _is_float(leaf):
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
