"""Meta-LSTM: its step in NumPy, theta's gradient, smoothing in closed form, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regularized_lopt
from regularized_lopt import learned_optimizers, regularizers, zoo
from regularized_lopt.learned_optimizers import MetaLSTMLOpt

SHAPES = {"first": {"w": (3, 4), "b": (4,)}, "norm": {"scale": (4,), "offset": (4,)}}
LOPT = MetaLSTMLOpt(SHAPES, hidden_size=5)
KEY = jax.random.PRNGKey(0)


def wide(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sign(x, p=10.0):
    large = np.abs(x) >= np.exp(-p)
    magnitude = np.log(np.where(large, np.abs(x), 1.0)) / p
    return np.stack([np.where(large, magnitude, -1.0), np.where(large, np.sign(x), np.exp(p) * x)])


class InNumPy:
    """The published equations, one coordinate after another."""

    def __init__(self, theta):
        self.theta = jax.tree.map(lambda x: np.asarray(x, np.float64), theta)
        self.c = flat(self.theta["initial"])
        n = self.c.size
        self.h, self.cell = np.zeros((n, 5)), np.zeros((n, 5))
        self.f, self.i = np.zeros(n), np.zeros(n)  # Before the sigmoid.

    def gates(self, loss, g):
        theta, found = self.theta, []
        for k in range(g.size):
            x = np.concatenate([log_sign(np.array(loss)), log_sign(g[k]), self.h[k]])
            a = theta["lstm_0"]["w"] @ x + theta["lstm_0"]["b"]
            i, u, f, o = np.split(a, 4)
            cell = sigmoid(f) * self.cell[k] + sigmoid(i) * np.tanh(u)
            h = sigmoid(o) * np.tanh(cell)
            w, b = theta["linear"]["w"], theta["linear"]["b"]
            memory = theta["memory"]
            forget, enter = (
                w[gate] @ h
                + memory["params"][gate] * self.c[k]
                + memory["gates"][gate] * (self.f, self.i)[gate][k]
                + b[gate]
                for gate in (0, 1)
            )
            found.append((h, cell, forget, enter))
        return map(np.array, zip(*found, strict=True))

    def step(self, loss, g):
        self.h, self.cell, self.f, self.i = self.gates(loss, g)
        self.c = sigmoid(self.f) * self.c - sigmoid(self.i) * g
        return self.c


def gradients(steps):
    """Of all sizes, some 0, some of less than e^-10."""
    rng = np.random.default_rng(1)
    scale = np.array([0.0, 1e-30, 1e-6, 1e-3, 1.0, 100.0])
    return [rng.normal(size=24) * scale[rng.integers(0, 6, 24)] for _ in range(steps)]


def as_tree(vector):
    return learned_optimizers.leaves.replace_flat(LOPT.init(KEY)["initial"], jnp.asarray(vector))


def test_steps_are_those_of_numpy_to_1e_10():
    with jax.enable_x64(True):
        theta = wide(LOPT.init(KEY))
        theta["memory"] = jax.tree.map(lambda x: 30 * x, theta["memory"])  # So that it matters.
        opt, ours = LOPT.opt_fn(theta), InNumPy(theta)
        state = opt.init(theta["initial"])
        update, losses = jax.jit(opt.update), (1.7, 3e-6, 0.0, 25.0)
        for loss, g in zip(losses, gradients(4), strict=True):
            tree = wide(as_tree(g))
            state = update(state, tree, jnp.asarray(loss, jnp.float64))
            np.testing.assert_allclose(flat(state.params), ours.step(loss, flat(tree)), atol=1e-10)
        assert int(state.iteration) == 4


def test_theta_is_drawn_as_published_and_params_as_haiku_draws_them():
    theta = LOPT.init(KEY)
    assert 4 < theta["linear"]["b"][0] < 6
    assert -5 < theta["linear"]["b"][1] < -4
    for small in (theta["linear"]["w"], *theta["memory"].values()):
        assert 0 < np.abs(small).max() <= 0.01
    first, norm = theta["initial"]["first"], theta["initial"]["norm"]
    assert (norm["scale"] == 1).all()
    assert not norm["offset"].any()
    assert not first["b"].any()
    large = MetaLSTMLOpt({"m": {"w": (50, 400)}}).init(KEY)["initial"]["m"]["w"]
    assert np.std(large) * np.sqrt(50) == pytest.approx(0.88, abs=0.02)  # Cut off at two.


def test_theta_gradient_reaches_where_the_learner_starts_though_the_state_is_constant():
    """Against differences, in float64, at the first step and at a later one."""
    with jax.enable_x64(True):
        theta = wide(LOPT.init(KEY))
        gs = [wide(as_tree(g)) for g in gradients(3)]

        def end(theta):
            opt = LOPT.opt_fn(theta)
            state = jax.lax.stop_gradient(opt.init(theta["initial"]))
            for g in gs:
                state = opt.update(state, g, loss=jnp.asarray(0.5))
            return jnp.sum(jnp.sin(learned_optimizers.leaves.flatten(opt.get_params(state))))

        end = jax.jit(end)
        grad, direction = jax.jit(jax.grad(end))(theta), wide(LOPT.init(jax.random.PRNGKey(3)))
        flat_grad, flat_direction = flat(grad), flat(direction)
        h = 1e-6
        up, down = (
            end(jax.tree.map(lambda x, d, s=s: x + s * h * d, theta, direction)) for s in (1, -1)
        )
        assert (up - down) / (2 * h) == pytest.approx(flat_grad @ flat_direction, rel=1e-7)
        assert np.abs(flat(grad["initial"])).min() > 0


def test_inputs_are_not_differentiated_through():
    theta = LOPT.init(KEY)
    opt = LOPT.opt_fn(theta)
    state = opt.init(theta["initial"])
    g = as_tree(gradients(1)[0])

    def moved(scale):
        after = opt.update(state, jax.tree.map(lambda x: scale * x, g), loss=scale)
        return jnp.sum(learned_optimizers.leaves.flatten(after.params))

    assert jax.jit(jax.grad(moved))(jnp.asarray(1.0)) == 0


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_smoothing_the_gradient_is_a_penalty_on_the_input_gate(fraction):
    """u is linear in g, so that the maximum in the ball is eps^2 i^2, reached in five steps."""
    theta = LOPT.init(KEY)
    opt = LOPT.opt_fn(theta)
    state = opt.init(theta["initial"])
    g, loss = as_tree(gradients(1)[0]), jnp.asarray(2.0)
    smoothing = regularizers.Smoothing(epsilon=0.5, noise=0.01)
    u, s, unit = LOPT.update_fn(theta, state, g, loss=loss, key=KEY, fraction=fraction)
    assert unit == 1
    perturbed = jax.jit(lambda s: smoothing.adversarial_input(u, s, unit, KEY))(s)
    np.testing.assert_allclose(np.abs(perturbed - s), 0.5, rtol=1e-5)
    found = smoothing.penalty(u, s, perturbed)
    after = opt.update(state, g, loss=loss)
    gate = jax.nn.sigmoid(after.gates[1])
    if fraction < 1:
        assert s.shape == (12,)
        assert 0.25 * gate.min() ** 2 <= found <= 0.25 * gate.max() ** 2
    else:
        assert found == pytest.approx(float(0.25 * jnp.mean(gate**2)), rel=1e-5)
        moved = flat(after.params) - flat(theta["initial"])
        np.testing.assert_allclose(u(s), moved, atol=1e-6)


def test_the_preprocessed_gradient_is_an_input_of_its_own():
    theta = LOPT.init(KEY)
    opt = LOPT.opt_fn(theta)
    state = opt.init(theta["initial"])
    g, loss = as_tree(gradients(1)[0]), jnp.asarray(2.0)
    u, s, _ = LOPT.update_fn(theta, state, g, loss=loss, key=KEY, space="preprocessed")
    assert s.shape == (2, 24)
    after = opt.update(state, g, loss=loss)
    np.testing.assert_allclose(u(s), flat(after.params) - flat(theta["initial"]), atol=1e-6)
    assert np.abs(u(s + 0.1) - u(s)).max() > 0


def test_it_is_saved_and_loaded(tmp_path):
    theta = LOPT.init(KEY)
    zoo.save(tmp_path / "theta.npz", LOPT, theta, {})
    loaded = regularized_lopt.load(tmp_path / "theta.npz")
    assert loaded.learned_opt.config == LOPT.config
    jax.tree.map(np.testing.assert_array_equal, loaded.theta, theta)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MetaLSTMLOpt({}), r"shapes = \{\}"),
        (lambda: MetaLSTMLOpt(SHAPES, hidden_size=0), "MetaLSTMLOpt.hidden_size = 0"),
        (lambda: MetaLSTMLOpt(SHAPES, preprocess_factor=0.0), "preprocess_factor = 0.0"),
        (lambda: LOPT.opt_fn(LOPT.init(KEY)).init({"w": jnp.zeros(3)}), "a learner of its own"),
        (
            lambda: LOPT.opt_fn(LOPT.init(KEY)).init(
                {**LOPT.init(KEY)["initial"], "norm": {"scale": jnp.zeros(4)}}
            ),
            r"at \['norm'\]\['offset'\] it has \(4,\), and the params nothing",
        ),
        (
            lambda: LOPT.opt_fn(LOPT.init(KEY)).update(
                LOPT.opt_fn(LOPT.init(KEY)).init(LOPT.init(KEY)["initial"]),
                LOPT.init(KEY)["initial"],
            ),
            "reads the loss",
        ),
        (
            lambda: LOPT.opt_fn(LOPT.init(KEY)).update(
                LOPT.opt_fn(LOPT.init(KEY)).init(LOPT.init(KEY)["initial"]),
                LOPT.init(KEY)["initial"],
                loss=jnp.ones(3),
            ),
            r"loss has shape \(3,\): give one number",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value).partition("\n  In call to configurable")[0]
