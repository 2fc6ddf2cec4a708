"""STAR's learned optimizers: upstream's numbers, closed forms, invariances, every form alike."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import KEY, flat, follow, follow_optax
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_optimization.learned_optimizers import adafac_mlp_lopt
from test_coordinates import estimates

from regularized_lopt import upstream
from regularized_lopt.learned_optimizers import Stabilized, StarLSTMLOpt, StarMLPLOpt, star_mlp
from regularized_lopt.optax_bridge import as_optax

WHEEL = upstream.GENERATION == "wheel"
LSTM = StarLSTMLOpt(hidden_size=3)
LSTM_TENSORS = StarLSTMLOpt(hidden_size=3, tensor_features=True)
MLP = StarMLPLOpt()
NATIVE = {"StarLSTMLOpt": LSTM, "of tensors": LSTM_TENSORS, "StarMLPLOpt": MLP}
SHAPES = {"matrix": (5, 7), "conv": (3, 2, 4, 5), "vector": (7,), "scalar": ()}


@pytest.fixture(autouse=True)
def no_tensor_is_small(monkeypatch):
    """Each is updated by itself, unless a test says otherwise."""
    monkeypatch.setattr(star_mlp, "_SMALL", 0)


def set_compiled(monkeypatch, name, value):
    """A constant of `star_mlp`, read when programs are made: those that were, are forgotten."""
    monkeypatch.setattr(star_mlp, name, value)
    follow.clear_cache()


def normal(tree, scale=1.0, steps=None):
    """Normal numbers of the shapes of a tree; with `steps`, as many of each."""
    leaves, treedef = jax.tree.flatten(tree)
    shapes = [leaf.shape if steps is None else (steps, *leaf.shape) for leaf in leaves]
    keys = jax.random.split(KEY, len(leaves))
    return treedef.unflatten(
        [
            (scale * jax.random.normal(key, shape)).astype(leaf.dtype)
            for key, shape, leaf in zip(keys, shapes, leaves, strict=True)
        ]
    )


def perturbed(lopt, scale=0.05):
    theta = lopt.init(KEY)
    return jax.tree.map(jnp.add, theta, normal(theta, scale))


def params_of(names=SHAPES, dtype=None):
    return normal({name: jnp.zeros(SHAPES[name], dtype) for name in names}, 0.5)


def from_upstream_s(theta, heads):
    """The weights of upstream's MLP (203 or 197 of them are read) as those of `StarMLPLOpt`."""
    nn = theta["nn"].get("~", theta["nn"])
    network = {f"layer_{i}": {"w": nn[f"w{i}"], "b": nn[f"b{i}"]} for i in range(3)}
    network["layer_2"] = jax.tree.map(lambda leaf: leaf[..., :heads], network["layer_2"])
    decays = {
        "momentum": theta["momentum_decays"],
        "second_moment": theta["rms_decays"],
        "factored": theta["adafactor_decays"],
    }
    return {"network": network, "decays": decays, "nominal_scale": jnp.zeros(())}


def upstream_s_params(lopt, theta, params, grads):
    """Like `follow`, in the params' precision: upstream makes some averages float32 always."""
    opt = lopt.opt_fn(theta)
    dtype = jax.tree.leaves(params)[0].dtype

    def widened(leaf):
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def step(state, grad):
        state = opt.update(state, grad, loss=jnp.zeros(()))
        return state, opt.get_params(state)

    state = jax.tree.map(widened, opt.init(params, num_steps=50))
    return jax.jit(lambda state, grads: jax.lax.scan(step, state, grads)[1])(state, grads)


def relative_difference(one, other):
    return max(
        float(jnp.max(jnp.abs(a - b) / jnp.maximum(jnp.abs(b), 1e-3)))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def check_against_upstream(theirs, ours, heads, names, monkeypatch, module):
    """One step in float32, to 1e-5; fifty in float64, to 1e-9."""
    check_steps(1, 1e-5, jnp.float32, theirs, ours, heads, names)
    # What upstream makes of the step is float32, also where all else is float64.
    timescales = np.asarray([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
    monkeypatch.setattr(module, "tanh_embedding", lambda x: jnp.tanh(x / timescales - 1))
    with jax.enable_x64(True):
        check_steps(50, 1e-9, jnp.float64, theirs, ours, heads, names)


def check_steps(steps, tolerance, dtype, theirs, ours, heads, names):
    theta = jax.tree.map(lambda leaf: leaf.astype(dtype), dict(perturbed(theirs)))
    params = params_of(names, dtype)
    grads = normal(params, 0.01, steps)
    wanted = upstream_s_params(theirs, theta, params, grads)
    found = follow(ours, from_upstream_s(theta, heads), params, grads)
    assert relative_difference(jax.tree.map(lambda leaf: leaf[-1], wanted), params) > 1e-3
    assert relative_difference(found, wanted) < tolerance


@pytest.mark.skipif(WHEEL, reason="MLPNomLOpt is on upstream's main branch alone")
def test_with_upstream_s_weights_it_does_what_upstream_s_does(monkeypatch):
    from learned_optimization.learned_optimizers import adafac_nominal

    theirs = adafac_nominal.MLPNomLOpt(
        nominal_stepsize=1e-3, nominal_controller=True, normalize_blackbox=True
    )
    ours = StarMLPLOpt(**star_mlp.PAPER_FORM)
    assert sum(leaf.size for leaf in jax.tree.leaves(ours.init(KEY))) == 203
    check_against_upstream(theirs, ours, 3, SHAPES, monkeypatch, adafac_nominal)


def test_its_black_box_alone_does_what_upstream_s_does(monkeypatch):
    """Of vectors, the wheel divides a momentum by sqrt(v), we and main by sqrt(v + 1e-6)."""
    theirs = adafac_mlp_lopt.AdafacMLPLOpt()
    ours = StarMLPLOpt(nominal="none", precondition=False, controller=False, **star_mlp.PAPER_FORM)
    theta = {**ours.init(KEY), "nominal_scale": ()}
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == 197
    names = ("matrix", "conv") if WHEEL else SHAPES
    check_against_upstream(theirs, ours, 2, names, monkeypatch, adafac_mlp_lopt)


def test_the_form_for_training_is_the_same_to_rounding():
    theta, params = perturbed(MLP), params_of()
    grads = normal(params, 0.01, 5)
    found = [follow(MLP, theta, params, grads, training) for training in (True, False)]
    chex.assert_trees_all_close(*found, atol=2e-6)


@pytest.mark.parametrize("small", [8, 10_000])
def test_small_tensors_side_by_side_are_the_same_to_rounding(monkeypatch, small):
    theta, params = perturbed(MLP), params_of()
    grads = normal(params, 0.01, 5)
    alone = follow(MLP, theta, params, grads)
    set_compiled(monkeypatch, "_SMALL", small)
    chex.assert_trees_all_close(follow(MLP, theta, params, grads), alone, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "name", "corrected"),
    [
        *(
            ("StarMLPLOpt", name, corrected)
            for name in ("sgd", "sgdm", "adam", "aggmo", "adam_aggmo")
            for corrected in (False, True)
        ),
        *(("StarLSTMLOpt", name, True) for name in ("adam", "adam_aggmo")),
    ],
)
def test_the_nominal_term_alone_is_that_of_the_textbook(kind, name, corrected):
    """Averages that start at 0: STAR leaves them so; they can be corrected, as Adam's are."""
    decays, step = (0.8, 0.9), 0.01
    common = {
        "momentum_decays": decays,
        "second_moment_decay": 0.99,
        "nominal": name,
        "nominal_step": step,
        "blackbox_scale": 0.0,
        "controller": False,
    }
    if kind == "StarMLPLOpt":
        form = {**star_mlp.PAPER_FORM, "bias_correction": corrected}
        lopt = StarMLPLOpt(factored_decays=decays, **{**form, **common})
    else:
        lopt = StarLSTMLOpt(hidden_size=3, **common)
    params = jnp.zeros(6)
    grads = normal(params, 0.1, 20)
    m, v, p = np.zeros((2, 6)), np.zeros(6), np.zeros(6)
    columns = np.array(decays)[:, None]
    for t, g in enumerate(np.asarray(grads, np.float64), start=1):
        m, v = columns * m + (1 - columns) * g, 0.99 * v + 0.01 * g**2
        momenta = m / (1 - columns**t) if corrected else m
        second = v / (1 - 0.99**t) if corrected else v
        root = np.sqrt(second if kind == "StarLSTMLOpt" else second + 1e-6)
        ascent = {"sgd": g, "sgdm": momenta[1], "aggmo": momenta.mean(0)}.get(name)
        if ascent is None:
            ascent = (momenta[1] if name == "adam" else momenta.mean(0)) / root
        p = p - step * ascent
    found = follow(lopt, lopt.init(KEY), params, grads)[-1]
    np.testing.assert_allclose(found, p, rtol=1e-6, atol=1e-6 * np.abs(p).max())


@settings(max_examples=8)
@given(
    exponent=st.floats(-6, 6),
    kind=st.sampled_from(sorted(NATIVE)),
    names=st.sampled_from([("matrix", "scalar"), ("conv",), ("vector", "matrix")]),
)
def test_a_constant_factor_on_the_loss_changes_nothing(exponent, kind, names):
    lopt = NATIVE[kind]
    theta, params = perturbed(lopt), params_of(names)
    grads = normal(params, 0.1, 4)
    scaled = jax.tree.map(lambda g: g * 10**exponent, grads)
    chex.assert_trees_all_close(
        follow(lopt, theta, params, grads), follow(lopt, theta, params, scaled), atol=2e-6
    )


def test_theta_s_gradient_through_a_sample_of_coordinates_is_right_on_average():
    exact = estimates(1, lopt=LSTM)
    sampled = estimates(1000, lopt=LSTM, coordinate_fraction=0.25)
    rows = np.concatenate([np.reshape(g, (1000, -1)) for g in jax.tree.leaves(sampled.grad)], 1)
    target, error = flat(exact.grad), rows.std(axis=0) / np.sqrt(len(rows))
    assert np.linalg.norm(error) > 0  # It is a sample.
    assert np.mean(np.abs(rows.mean(axis=0) - target) <= 3 * error + 1e-7) > 0.98


OPTAX = [
    (MLP, {}),
    (LSTM, {}),
    (LSTM, {"chunk_size": 4}),
    (LSTM, {"per_leaf": True}),
    (LSTM, {"state_dtype": jnp.float32}),
    (LSTM_TENSORS, {}),
    (LSTM_TENSORS, {"per_leaf": True}),
]


@pytest.mark.parametrize(
    ("lopt", "options"), OPTAX, ids=lambda one: "-".join(one) if isinstance(one, dict) else one.name
)
def test_the_optax_form_is_the_other_bit_by_bit(lopt, options):
    theta, params = perturbed(lopt), params_of(("vector", "scalar", "matrix"))
    grads = normal(params, 0.1, 3)
    tx = as_optax(lopt, theta, **options)
    found = jax.jit(lambda params: follow_optax(tx, params, grads))(params)
    chex.assert_trees_all_equal(found, follow(lopt, theta, params, grads))


def test_tensor_features_are_the_root_mean_squares_of_each_tensor():
    lopt, params = LSTM_TENSORS, params_of(("vector", "scalar", "matrix"))
    theta, grads = perturbed(lopt), normal(params, 0.1, 3)
    before = follow(lopt, theta, params, jax.tree.map(lambda g: g[:2], grads))
    state = functools.reduce(
        lopt.opt_fn(theta).update,
        [jax.tree.map(lambda g, n=n: g[n], grads) for n in range(3)],
        lopt.opt_fn(theta).init(params),
    )
    told = state.hidden[-1]
    start = 0
    for name in sorted(params):
        first, second = before[name]
        count = first.size
        rms = [np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)) for x in (second, second - first)]
        for found, wanted in zip((told.rms_params, told.rms_updates), rms, strict=True):
            np.testing.assert_allclose(found[0, start : start + count], wanted, rtol=1e-4)
        start += count


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lopt: as_optax(lopt, lopt.init(KEY), chunk_size=4), "chunk_size = 4"),
        (lambda lopt: estimates(1, lopt=lopt, coordinate_fraction=0.25), "coordinate_fraction"),
    ],
)
def test_tensor_features_refuse_parts_of_tensors(make, message):
    with pytest.raises(ValueError, match=f"{message}.*reads features of whole tensors"):
        make(LSTM_TENSORS)


def test_narrow_states_keep_wide_averages():
    tx = as_optax(LSTM, perturbed(LSTM), state_dtype=jnp.bfloat16)
    hidden = tx.init(params_of(("vector",))).hidden
    assert hidden[0][0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(hidden[2:])} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("second_derivatives", [False, True])
@pytest.mark.parametrize("make", [StarLSTMLOpt, StarMLPLOpt, functools.partial(Stabilized, LSTM)])
def test_theta_s_gradient_is_finite_where_gradients_are_zero_or_subnormal(make, second_derivatives):
    lopt = make(second_derivatives=second_derivatives)
    theta, params = perturbed(lopt), params_of(("vector", "scalar"))
    values = jnp.asarray([0.0, 1e-45, 1e-40, -1e-30, 1e-20, 1.0, 0.0])

    def last(theta, factor):
        grads = {"vector": jnp.stack([values, values]), "scalar": jnp.zeros(2)}
        grads = jax.tree.map(lambda g: g * factor, grads)
        return sum(leaf[-1].sum() for leaf in follow(lopt, theta, params, grads, True).values())

    slopes = jax.grad(last, argnums=(0, 1))(theta, 1.0)
    assert np.all(np.isfinite(flat(slopes)))
    assert np.any(flat(slopes[0]) != 0)


def forgetful():
    """Decays as meta-training makes them: sqrt(v) is forgotten sooner than the slow momentum."""
    theta = perturbed(MLP)
    theta["decays"]["momentum"] = jnp.asarray([0.0, -0.3, -0.4])
    theta["decays"]["second_moment"] = jnp.asarray([0.4])
    return theta


@pytest.mark.parametrize("small", [0, 10_000])
def test_a_tensor_without_gradient_waits_with_its_averages(monkeypatch, small):
    """It is at each later step where it would be had the steps between not been."""
    set_compiled(monkeypatch, "_SMALL", small)
    theta, params = forgetful(), params_of(("matrix", "vector"))
    grads = normal(params, 0.01, 420)
    still = slice(10, 410)
    moved = follow(MLP, theta, params, {**grads, "matrix": grads["matrix"].at[still].set(0)})
    assert np.all(moved["matrix"][still] == moved["matrix"][9])
    assert np.all(np.any(moved["vector"][1:] != moved["vector"][:-1], axis=1))
    steps = jnp.abs(jnp.diff(moved["matrix"], axis=0)).max(axis=(1, 2))
    assert steps[409:].max() < 2 * steps[:9].max()


@pytest.mark.parametrize("small", [0, 10_000])
def test_steps_are_bounded_where_gradients_fall(monkeypatch, small):
    """By blackbox_scale e^2 / sqrt(epsilon) + 10 nominal_step e^2, whatever gradients do."""
    set_compiled(monkeypatch, "_SMALL", small)
    theta, params = forgetful(), params_of(("matrix", "vector"))
    theta["nominal_scale"] = jnp.zeros(())
    fall = 10.0 ** -(jnp.arange(600) / 60)
    grads = jax.tree.map(lambda g: jax.vmap(jnp.multiply)(g, fall), normal(params, 1.0, 600))
    moved = follow(MLP, theta, params, grads)
    largest = max(float(jnp.abs(jnp.diff(leaf, axis=0)).max()) for leaf in moved.values())
    bound = np.exp(2) * (1e-4 / np.sqrt(1e-2) + 10 * 1e-3)
    assert bound / 100 < largest < bound
    set_compiled(monkeypatch, "_STEEPEST", np.inf)
    moved = follow(MLP, theta, params, grads)
    assert float(jnp.abs(jnp.diff(moved["matrix"], axis=0)).max()) > 10 * bound
    follow.clear_cache()


@pytest.mark.parametrize("kind", NATIVE)
def test_params_of_any_shape_keep_their_dtype(kind):
    lopt = NATIVE[kind]
    params = jax.tree.map(lambda leaf: leaf / 64, params_of(dtype=jnp.bfloat16))
    moved = follow(lopt, perturbed(lopt), params, normal(params, 0.1, 2))
    state = lopt.opt_fn(lopt.init(KEY)).init(params)
    assert jnp.bfloat16 not in {leaf.dtype for leaf in jax.tree.leaves(state.replace(params=()))}
    for name, leaf in moved.items():
        assert (leaf.dtype, leaf.shape) == (jnp.bfloat16, (2, *SHAPES[name]))
        assert np.all(np.isfinite(leaf.astype(np.float32)))
        assert np.any(leaf[-1] != params[name])


def test_in_optax_a_state_of_other_params_is_named():
    lopt = StarMLPLOpt()
    tx = as_optax(lopt, lopt.init(KEY))
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"The state's leaf .*momenta.* is float32\[4\]"):
        tx.update(params, tx.init({"w": jnp.ones(4)}), params)
