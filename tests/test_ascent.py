"""Ascent in balls around a minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regularized_lopt.measure import ascent as ascent_lib

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
