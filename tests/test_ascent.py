"""Ascent in balls around a minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt.measure import ascent as ascent_lib
from regularized_lopt.regularizers import tree

KEY = jax.random.PRNGKey(0)


@pytest.mark.parametrize(
    ("centre", "radius", "measured"),
    [
        ([1e3, 0.0], 0.01, True),
        ([1e9, 0.0], 0.01, False),  # Spaced by 64: one coordinate alone would climb.
        ([0.0, 0.0], 0.01, True),
        ([1e9, 1.0], [[1e7], [0.01]], True),  # In its own units it moves.
        ([1.0, 0.0], [[0.01], [0.0]], True),  # A filter of zeros has a radius of zero.
        ([0.0, 0.0], [[0.0], [0.0]], False),  # All are: a dead network looks flat.
    ],
)
def test_a_ball_without_room_among_the_floats_is_not_measured(centre, radius, measured):
    centre = {"a": jnp.asarray(centre[:1]), "b": jnp.asarray(centre[1:])}
    if isinstance(radius, list):
        radius = dict(zip(centre, map(jnp.asarray, radius), strict=True))
    ascent = ascent_lib.ascend(lambda p: p["a"][0] + p["b"][0], centre, KEY, radius)
    assert np.all(np.isfinite(ascent.values) == measured)
    assert np.isfinite(ascent.centre)
    assert np.isnan(ascent.best) != measured


def test_ascent_reaches_the_maximum_of_a_quadratic_over_the_box():
    """L = sum a (x - c)^2 / 2 is largest at a corner: each coordinate on the side away from c."""
    with jax.enable_x64(True):
        a, c = np.array([1.0, 3.0, 0.5]), np.array([0.02, -0.03, 0.01])

        def objective(x):
            return 0.5 * jnp.sum(a * (x - c) ** 2)

        radius = 0.005  # Smaller than |c|: the maximum is unique, and the gradient never turns.
        ascent = ascent_lib.ascend(objective, jnp.zeros(3), KEY, radius, num_steps=10)
        maximum = 0.5 * np.sum(a * (radius + np.abs(c)) ** 2)
        assert float(ascent.last) == pytest.approx(maximum, rel=1e-12)
        assert float(ascent.best) == pytest.approx(maximum, rel=1e-12)
        assert float(ascent.centre) == pytest.approx(0.5 * np.sum(a * c**2))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), radius=st.sampled_from([1e-3, 0.1, 1.0]))
def test_more_ascent_never_lowers_the_best_and_never_leaves_the_ball(seed, radius):
    rng = np.random.default_rng(seed)
    w = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    farthest = []

    def objective(x):
        jax.debug.callback(lambda d: farthest.append(float(d)), jnp.max(jnp.abs(x["a"] - centre)))
        return jnp.sum(jnp.sin(w @ x["a"]) * x["a"])

    centre = jnp.asarray(rng.normal(size=4), jnp.float32)
    short, long = (
        ascent_lib.ascend(objective, {"a": centre}, jax.random.PRNGKey(seed), radius, steps)
        for steps in (4, 10)
    )
    jax.effects_barrier()
    np.testing.assert_allclose(long.values[:5], short.values, rtol=1e-5, atol=1e-6)
    assert float(long.best) >= float(short.best) - 1e-6
    assert float(short.best) >= float(short.centre)
    assert max(farthest) <= radius * (1 + 1e-3) + 1e-6


def test_relative_radii_are_shares_of_each_filters_rms():
    params = {"w": jnp.asarray([[3.0, 0.0], [4.0, 0.0]]), "b": jnp.asarray([1.0, -1.0])}
    radii = ascent_lib.filter_radii(params, 0.1)
    np.testing.assert_allclose(radii["w"], [[0.1 * np.sqrt(12.5), 0.0]], rtol=1e-6)
    np.testing.assert_allclose(radii["b"], [0.1], rtol=1e-6)
    # A filter scaled up has the same ball relative to it, so a scale-free loss rises the same.

    def loss(p):
        return jnp.sum((p["w"][:, 0] / jnp.linalg.norm(p["w"][:, 0])) * jnp.asarray([1.0, 2.0]))

    larger = {"w": 10 * params["w"], "b": params["b"]}
    a, b = (
        ascent_lib.ascend(loss, p, KEY, ascent_lib.filter_radii(p, 0.1)) for p in (params, larger)
    )
    np.testing.assert_allclose(a.values, b.values, rtol=1e-4)


def test_gradient_over_its_maximum_is_another_direction_of_ascent():
    a = jnp.asarray([1.0, 0.5])
    ascent = ascent_lib.ascend(
        lambda x: jnp.sum(a * x), jnp.zeros(2), KEY, 1.0, num_steps=1, direction="max"
    )
    # Linear: a step of 1/4 along (1, 1/2) unless the ball's side is in the way.
    start = np.clip(0.5 * jax.random.normal(jax.random.split(KEY, 1)[0], (2,)), -1, 1)
    end = np.clip(start + 0.25 * np.array([1.0, 0.5]), -1, 1)
    assert float(ascent.last) == pytest.approx(float(np.sum(np.asarray(a) * end)), rel=1e-5)


def random_quadratic(seed, size=6):
    """A symmetric matrix with eigenvalues of both signs, and its eigenvalues."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    eigenvalues = np.append(rng.uniform(0.5, 1, 2) + np.array([1.0, 0.0]), rng.uniform(-1, 0.5, 4))
    return basis @ np.diag(eigenvalues) @ basis.T, eigenvalues


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.sampled_from([1e-3, 0.1, 10.0]))
def test_ascent_reaches_the_maximum_of_a_quadratic_over_the_l2_ball(seed, radius):
    """max of w'Hw / 2 over ||w|| <= r is r^2 / 2 times the largest eigenvalue, a positive one."""
    with jax.enable_x64(True):
        hessian, eigenvalues = random_quadratic(seed)

        def objective(w):
            both = jnp.concatenate([w["a"], w["b"]])
            return 0.5 * both @ hessian @ both

        centre = {"a": jnp.zeros(2), "b": jnp.zeros(4)}
        key = jax.random.PRNGKey(seed)
        ascent = ascent_lib.ascend(objective, centre, key, radius, num_steps=300, norm="l2")
        assert float(ascent.last) == pytest.approx(radius**2 / 2 * eigenvalues.max(), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_ascent_in_the_l2_ball_solves_the_trust_region_problem(seed):
    """max of g'd + d'Hd / 2 over ||d|| <= r: (m I - H) d = g on the edge, m above H's spectrum."""
    with jax.enable_x64(True):
        hessian, eigenvalues = random_quadratic(seed)
        slope, radius = 5 * np.random.default_rng(seed).normal(size=6), 0.3

        def at(m):
            return np.linalg.solve(m * np.eye(6) - hessian, slope)

        lowest = eigenvalues.max()
        m = scipy.optimize.brentq(
            lambda m: np.linalg.norm(at(m)) - radius, lowest + 1e-9, lowest + 1e4, xtol=1e-13
        )
        maximum = slope @ at(m) + at(m) @ hessian @ at(m) / 2
        ascent = ascent_lib.ascend(
            lambda d: slope @ d + 0.5 * d @ hessian @ d,
            *(jnp.zeros(6), jax.random.PRNGKey(seed), radius),
            num_steps=200,
            norm="l2",
        )
        assert float(ascent.last) == pytest.approx(maximum, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.sampled_from([1e-3, 0.1, 1.0]))
def test_ascent_stays_in_the_l2_ball_and_leaves_fixed_weights_alone(seed, radius):
    """The start is half-way to the edge, and a linear function's maximum is radius * ||slope||."""
    rng = np.random.default_rng(seed)
    centre = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.zeros(4)}
    free = {"w": jnp.asarray(rng.uniform(size=(3, 4)) < 0.7).at[0, 0].set(True), "b": True}
    slope = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), centre)
    far = []

    def objective(x):
        offset = jax.tree.map(jnp.subtract, x, centre)
        fixed = jax.tree.map(lambda d, of: jnp.max(jnp.where(of, 0, jnp.abs(d))), offset, free)
        jax.debug.callback(lambda *d: far.append(d), tree.norm(offset), fixed["w"], ordered=True)
        return tree.vdot(slope, offset)

    radii = jax.tree.map(lambda of, x: jnp.where(of, radius, jnp.zeros_like(x)), free, centre)
    key = jax.random.PRNGKey(seed)
    ascent = ascent_lib.ascend(objective, centre, key, radii, num_steps=10, norm="l2")
    jax.effects_barrier()
    norms, fixed = np.array(far).T
    assert norms.max() <= radius * (1 + 1e-3) + 1e-6
    assert norms[0] == pytest.approx(radius / 2, rel=1e-2)
    assert fixed.max() == 0
    live_slope = tree.norm(jax.tree.map(lambda g, of: jnp.where(of, g, 0), slope, free))
    assert float(ascent.last) == pytest.approx(radius * float(live_slope), rel=1e-2)


def test_an_ellipsoid_is_the_ball_of_rescaled_params():
    """Over ||d / r|| <= 1 the maximum of a linear function g'd is ||r g||."""
    slope, radii = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.1, 0.02, 0.0])
    centre = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    ascent = ascent_lib.ascend(
        lambda x: slope @ x["a"], centre, KEY, {"a": radii, "b": 0.0}, norm="l2"
    )
    assert float(ascent.last) == pytest.approx(float(jnp.linalg.norm(radii * slope)), rel=2e-3)


def test_dead_weights_have_no_part_in_relative_radii():
    """Their size does not enter, and their own radius is 0; without dead ones nothing changes."""
    params = {"w": jnp.asarray([[3.0, 1.0], [4.0, 2.0], [1e6, 1e6]]), "b": jnp.asarray([1.0, -1.0])}
    live = {"w": np.array([[True, True], [True, False], [False, False]]), "b": np.ones(2, bool)}
    radii = ascent_lib.filter_radii(params, 0.1, live)
    first = 0.1 * np.sqrt(12.5)
    np.testing.assert_allclose(radii["w"], [[first, 0.1], [first, 0], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(radii["b"], [0.1, 0.1], rtol=1e-6)
    everything = jax.tree.map(np.ones_like, live)
    both = (ascent_lib.filter_radii(params, 0.1, mask) for mask in (everything, None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, a * 0 + b, rtol=1e-6), *both)
    nothing = jax.tree.map(np.zeros_like, live)
    assert not any(r.any() for r in jax.tree.leaves(ascent_lib.filter_radii(params, 1.0, nothing)))
    norm = np.sqrt(3**2 + 4**2 + 1 + 1 + 1)
    l2 = ascent_lib.l2_radii(params, 0.1, live)
    jax.tree.map(lambda r, of: np.testing.assert_allclose(r, 0.1 * norm * of, rtol=1e-6), l2, live)
