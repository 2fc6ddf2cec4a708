"""A learned optimizer as a gradient transformation: the same params, in anybody's loop."""

import collections
import functools
import os
import subprocess
import sys

import chex
import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import REPOSITORY
from flax import nnx
from flax.training import train_state
from hypothesis import given, settings
from hypothesis import strategies as st

import regularized_lopt
from regularized_lopt import tasks
from regularized_lopt.optax_bridge import as_optax

LOPT = regularized_lopt.LSTMLOpt(hidden_size=5)
THETA = jax.tree.map(lambda t: t + 0.05, LOPT.init(jax.random.PRNGKey(0)))
Pair = collections.namedtuple("Pair", "first second")


def quadratic(params):
    return sum(jnp.sum((leaf - 1.0) ** 2) for leaf in jax.tree.leaves(params))


def train(tx, params, steps=5, loss=quadratic):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3), "b": jnp.zeros(4)}


@pytest.mark.slow
def test_params_are_those_of_the_optimizer_on_a_cnn():
    """Step by step, in one jitted scan, and vmapped over two inits; donated buffers included."""
    steps, task = 10, tasks.get("Conv_Digits_16x32", "meta_test")
    data = task.datasets.arrays("train")
    inits = jax.vmap(task.init)(jax.random.split(jax.random.PRNGKey(0), 2))
    params = jax.tree.map(lambda leaf: leaf[0], inits)
    opt, tx = LOPT.opt_fn(THETA), as_optax(LOPT, THETA)

    def grads(params, t):
        key = jax.random.fold_in(jax.random.PRNGKey(1), t)
        return jax.grad(task.loss)(params, key, task.datasets.sample(data, key))

    @functools.partial(jax.jit, donate_argnums=0)
    def upstream_step(state, t):
        return opt.update(state, grads(opt.get_params(state), t), loss=jnp.zeros(()))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def optax_step(params, state, t):
        updates, state = tx.update(grads(params, t), state, params)
        return optax.apply_updates(params, updates), state

    theirs, ours = (jax.tree.map(jnp.copy, params) for _ in range(2))
    theirs, state = opt.init(theirs), tx.init(ours)
    for t in range(steps):
        theirs = upstream_step(theirs, t)
        ours, state = optax_step(ours, state, t)
    chex.assert_trees_all_equal(opt.get_params(theirs), ours)
    assert int(state.iteration) == steps

    def scanned(step, get_params, start):
        def body(carry, t):
            return step(carry, t), None

        return lambda params: get_params(jax.lax.scan(body, start(params), jnp.arange(steps))[0])

    both_forms = (
        scanned(upstream_step, opt.get_params, opt.init),
        scanned(lambda c, t: optax_step(*c, t), lambda c: c[0], lambda p: (p, tx.init(p))),
    )
    chex.assert_trees_all_equal(*(jax.jit(form)(params) for form in both_forms))
    chex.assert_trees_all_equal(*(jax.jit(jax.vmap(form))(inits) for form in both_forms))


@pytest.mark.parametrize("inputs", [("grad",), ("grad", "momentum")], ids=str)
@pytest.mark.parametrize(
    "options", [{"chunk_size": 3}, {"chunk_size": 100}, {"per_leaf": True}], ids=str
)
def test_chunks_and_leaves_give_the_same_params(options, inputs):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=5, inputs=inputs)
    theta = lopt.init(jax.random.PRNGKey(0))
    chex.assert_trees_all_close(
        train(as_optax(lopt, theta, **options), PARAMS), train(as_optax(lopt, theta), PARAMS),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_inputs_that_are_params_are_asked_for():
    lopt = regularized_lopt.LSTMLOpt(hidden_size=3, inputs=("grad", "params"))
    theta = lopt.init(jax.random.PRNGKey(0))
    tx = as_optax(lopt, theta)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="call update\\(grads, state, params\\)"):
        tx.update(PARAMS, state)
    opt = lopt.opt_fn(theta)
    theirs = opt.update(opt.init(PARAMS), jax.grad(quadratic)(PARAMS), loss=jnp.zeros(()))
    chex.assert_trees_all_close(train(tx, PARAMS, 1), opt.get_params(theirs), rtol=1e-6)


def test_hidden_states_in_bfloat16_stay_close():
    tx = as_optax(LOPT, THETA, state_dtype=jnp.bfloat16)
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.hidden)} == {jnp.dtype(jnp.bfloat16)}
    plain, rounded = train(as_optax(LOPT, THETA), PARAMS), train(tx, PARAMS)
    chex.assert_trees_all_close(rounded, plain, atol=0.02)
    assert not np.array_equal(rounded["w"], plain["w"])


def test_momenta_come_all_the_way_where_hidden_states_are_in_bfloat16():
    """Of a gradient that is always 1, the average is 1 - 0.99^t; in bfloat16 it stops at 0.8."""
    lopt = regularized_lopt.LSTMLOpt(
        hidden_size=2, inputs=("grad", "momentum"), momentum_decays=(0.99,)
    )
    tx = as_optax(lopt, lopt.init(jax.random.PRNGKey(0)), state_dtype=jnp.bfloat16)
    grads = jnp.ones(3)

    def step(state, _):
        return tx.update(grads, state, grads)[1], None

    *layers, momenta = jax.lax.scan(step, tx.init(grads), length=600)[0].hidden
    assert {leaf.dtype for leaf in jax.tree.leaves(layers)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(momenta, np.full((1, 3), 1 - 0.99**600), rtol=1e-4)


@pytest.mark.smoke
def test_updates_are_clipped_mixed_and_grafted():
    grads = jax.grad(quadratic)(PARAMS)

    def first(**options):
        tx = as_optax(LOPT, THETA, **options)
        return tx.update(grads, tx.init(PARAMS), PARAMS)[0]

    plain = first()
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    clipped = first(clip=largest / 2)
    chex.assert_trees_all_equal(
        clipped, jax.tree.map(lambda u: jnp.clip(u, -largest / 2, largest / 2), plain)
    )
    sgd = jax.tree.map(lambda g: -0.1 * g, grads)
    chex.assert_trees_all_close(
        first(nominal=optax.sgd(0.1), magnitude=0.5),
        jax.tree.map(lambda u, v: u + 0.5 * v, plain, sgd),
        rtol=1e-6,
    )
    grafted = first(nominal=optax.sgd(0.1), mix="graft", magnitude=2.0)
    for u, v, g in zip(*map(jax.tree.leaves, (plain, sgd, grafted)), strict=True):
        assert float(jnp.linalg.norm(g)) == pytest.approx(2 * float(jnp.linalg.norm(v)), rel=1e-5)
        cosine = jnp.vdot(u, g) / jnp.linalg.norm(u) / jnp.linalg.norm(g)
        assert float(cosine) == pytest.approx(1, rel=1e-5)


def test_a_nominal_term_rescues_an_optimizer_that_goes_nowhere():
    """Trained for nothing, it wanders; with a tenth of Adam beside it, the loss falls."""
    still = jax.tree.map(jnp.zeros_like, THETA)
    helped = train(as_optax(LOPT, still, nominal=optax.adam(0.1)), PARAMS, 60)
    assert float(quadratic(helped)) < 0.1 * float(quadratic(PARAMS))
    chex.assert_trees_all_equal(train(as_optax(LOPT, still), PARAMS, 60), PARAMS)


COMBINED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1e6), tx),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": True}),
    "multi_transform": lambda tx: optax.multi_transform({"lo": tx}, {"w": "lo", "b": "lo"}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "accumulation": lambda tx: optax.MultiSteps(tx, 2),
    "flatten": optax.flatten,
}


@pytest.mark.parametrize("name", COMBINED)
def test_works_inside_optax(name):
    tx = COMBINED[name](as_optax(LOPT, THETA))
    steps = 10 if name == "accumulation" else 5
    loss = quadratic
    expected = train(as_optax(LOPT, THETA), PARAMS)
    chex.assert_trees_all_close(train(tx, PARAMS, steps, loss), expected, rtol=1e-5, atol=1e-6)


def test_what_is_masked_keeps_out_of_it():
    """Half of the tree by SGD: what is left to us is as if it were alone."""
    both = optax.multi_transform(
        {"lo": as_optax(LOPT, THETA), "sgd": optax.sgd(0.1)}, {"w": "lo", "b": "sgd"}
    )
    found = train(both, PARAMS)
    alone = train(as_optax(LOPT, THETA), {"w": PARAMS["w"]})
    chex.assert_trees_all_close(found["w"], alone["w"], rtol=1e-5)
    chex.assert_trees_all_close(found["b"], train(optax.sgd(0.1), {"b": PARAMS["b"]})["b"])


X = jnp.linspace(-1, 1, 12).reshape(4, 3)


@pytest.mark.smoke
def test_flax_linen_nnx_and_equinox_train_alike():
    """One linear layer, the same start in three libraries: the same losses."""
    kernel = 0.1 * jnp.arange(6.0).reshape(3, 2)
    tx = as_optax(LOPT, THETA)

    def loss(predicted):
        return jnp.mean((predicted - 1.0) ** 2)

    module = flax.linen.Dense(2)
    state = train_state.TrainState.create(
        apply_fn=module.apply,
        params={"params": {"kernel": kernel, "bias": jnp.zeros(2)}},
        tx=tx,
    )
    linen = []
    for _ in range(4):
        value, grads = jax.value_and_grad(lambda p: loss(module.apply(p, X)))(state.params)
        state = state.apply_gradients(grads=grads)
        linen.append(float(value))

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    model.kernel[...] = kernel
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    with_nnx = []
    for _ in range(4):
        value, grads = nnx.value_and_grad(lambda m: loss(m(X)))(model)
        optimizer.update(model, grads)
        with_nnx.append(float(value))

    net = eqx.nn.Linear(3, 2, key=jax.random.PRNGKey(0))
    net = eqx.tree_at(lambda n: (n.weight, n.bias), net, (kernel.T, jnp.zeros(2)))
    opt_state = tx.init(eqx.filter(net, eqx.is_inexact_array))
    with_equinox = []
    for _ in range(4):
        value, grads = eqx.filter_value_and_grad(lambda n: loss(jax.vmap(n)(X)))(net)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(net, eqx.is_inexact_array))
        net = eqx.apply_updates(net, updates)
        with_equinox.append(float(value))

    assert linen[0] != linen[-1]
    np.testing.assert_allclose(with_nnx, linen, rtol=1e-4)
    np.testing.assert_allclose(with_equinox, linen, rtol=1e-4)


DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32]
MAGNITUDES = [0.0, 1e-45, 1e-38, 1e-8, 1.0, 6e4, 1e30]


@st.composite
def leaves(draw):
    shape = draw(st.sampled_from([(), (1,), (0,), (3,), (2, 0), (2, 3)]))
    dtype = draw(st.sampled_from(DTYPES))
    sign = draw(st.sampled_from([-1.0, 1.0]))
    values = np.full(shape, sign * draw(st.sampled_from(MAGNITUDES)), np.float64)
    largest = float(jnp.finfo(dtype).max)
    return jnp.asarray(np.clip(values, -largest, largest), dtype)


TREES = st.recursive(
    st.one_of(leaves(), st.none(), st.integers(-3, 3).map(lambda i: jnp.asarray(i, jnp.int32))),
    lambda children: st.one_of(
        st.dictionaries(st.sampled_from("abc"), children, max_size=3),
        st.lists(children, max_size=3),
        st.tuples(children, children).map(lambda pair: Pair(*pair)),
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(TREES, st.sampled_from([{}, {"per_leaf": True}, {"chunk_size": 2}, {"clip": 0.01}]))
def test_any_tree_any_gradient(grads, options):
    """Structure, shapes and dtypes are kept; finite gradients give finite updates."""
    tx = as_optax(LOPT, THETA, **options)
    params = jax.tree.map(jnp.ones_like, grads)
    state = tx.init(params)
    for _ in range(2):
        updates, new_state = tx.update(grads, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            assert jnp.all(jnp.isfinite(update))
            if not jnp.issubdtype(grad.dtype, jnp.floating):
                assert not jnp.any(update)
        state = new_state


SHARDED = """
import jax, jax.numpy as jnp, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import regularized_lopt
from regularized_lopt.optax_bridge import as_optax
assert len(jax.devices()) == 8
lopt = regularized_lopt.LSTMLOpt(hidden_size=5)
theta = lopt.init(jax.random.PRNGKey(0))
tx = as_optax(lopt, theta, per_leaf=True)
mesh = Mesh(jax.devices(), ("model",))
params = {"w": jnp.linspace(-1, 1, 128).reshape(16, 8), "b": jnp.zeros(8)}
specs = {"w": P("model", None), "b": P(None)}
sharded = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, specs)

@jax.jit
def steps(params, state):
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(lambda p: 2 * (p - 1), params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state

state = jax.jit(tx.init)(sharded)
new, new_state = steps(sharded, state)
plain, _ = steps(params, tx.init(params))
for name in params:
    assert jnp.allclose(new[name], plain[name], atol=1e-5), name
h = new_state.hidden["w"][0][0]
assert h.shape == (5, 16, 8)
assert h.addressable_shards[0].data.shape == (5, 2, 8), h.sharding
print("sharded like the params")
"""


def test_states_are_sharded_like_the_params_on_eight_devices(tmp_path):
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = subprocess.run(
        [sys.executable, script],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sharded like the params" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "as_optax clip = 0.0"),
        ({"chunk_size": 0}, "as_optax chunk_size = 0"),
        ({"mix": "grafted"}, "Unknown mix 'grafted'. Did you mean 'graft'"),
        ({"magnitude": -1.0}, "as_optax magnitude = -1.0"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        as_optax(LOPT, THETA, **options)


@pytest.mark.parametrize("options", [{"mix": "graft"}, {"magnitude": 2.0}], ids=str)
def test_what_only_a_nominal_optimizer_reads_is_refused_without_one(options):
    lopt = regularized_lopt.LSTMLOpt(hidden_size=2)
    with pytest.raises(ValueError, match="there is none: give nominal"):
        as_optax(lopt, lopt.init(jax.random.PRNGKey(0)), **options)
