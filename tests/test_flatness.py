"""Properties around the params at which runs arrive."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regularized_lopt
from regularized_lopt import tasks
from regularized_lopt.measure import ascent as ascent_lib
from regularized_lopt.measure import flatness, selections
from regularized_lopt.measure import optimizers as optimizers_lib
from regularized_lopt.measure import trainer as trainer_lib
from regularized_lopt.measure.live_weights import live_weights
from regularized_lopt.study import meta_test

KEY = jax.random.PRNGKey(0)
DIGITS = "ImageMLP_Digits_20_Relu"


def test_properties_are_measured_around_the_params_of_each_run(lopt_file):
    """Against the ascents called one by one, and the Hessian written out."""
    task = tasks.get(DIGITS)
    what = flatness.FlatnessConfig(
        radii=(0.01, 0.1),
        num_examples=64,
        headline_starts=1,
        num_probes=2000,
        num_iterations=200,
        scales=("l2", *flatness.SCALES, "live"),
    )
    loaded = regularized_lopt.load(lopt_file)
    found = meta_test(
        {"lo": loaded}, DIGITS, 1, 25, baselines=(), flatness_config=what,
        progress=False,
    )  # fmt: skip
    one = selections.reference(found)
    lo = optimizers_lib.learned("lo", loaded.learned_opt, loaded.theta)
    curves = trainer_lib.Trainer(task, 1, 25, progress=False).train([lo])["lo"]
    around = {
        name: selections.last(one, name).isel(seed=0, measured_run=0).sel(point="completion")
        for name in flatness.PROPERTIES
    }
    params = jax.tree.map(lambda x: x[0], curves.saved_params.final)
    raw = task.datasets.host_arrays("test")
    chosen = np.random.default_rng(0).permutation(len(raw["label"]))[:64]
    batch = task.datasets.normalize({name: jnp.asarray(v[chosen]) for name, v in raw.items()})

    def loss(p):
        return task.loss(p, KEY, batch)

    centre = one["around_loss"].sel(point="completion").item()
    assert centre == pytest.approx(float(loss(params)), rel=1e-5)
    live = live_weights(task)
    for scale in what.scales:
        for radius in what.radii:
            at = {"scale": scale, "radius": radius}
            ball = {
                "absolute": radius,
                "relative": ascent_lib.filter_radii(params, radius),
                "live": ascent_lib.filter_radii(params, radius, live),
                "l2": ascent_lib.l2_radii(params, radius, live),
            }[scale]
            norm = "l2" if scale == "l2" else "linf"
            key = jax.random.fold_in(jax.random.PRNGKey(0), 0)
            steep = ascent_lib.gradient_norm(loss)
            a, b = (ascent_lib.ascend(f, params, key, ball, norm=norm) for f in (loss, steep))
            assert around["sam"].sel(at).item() == pytest.approx(float(a.last), rel=1e-3)
            assert around["gsam"].sel(at).item() == pytest.approx(
                float(a.last - a.centre), rel=1e-2, abs=1e-4
            )
            assert around["gam"].sel(at).item() == pytest.approx(
                float(b.last - b.centre), rel=1e-2, abs=1e-4
            )
            best = selections.best(one, "sam").sel(point="completion", **at)
            assert best.item() >= around["sam"].sel(at).item()
    flat, keep = (jax.flatten_util.ravel_pytree(of)[0] for of in (params, live))
    wanted = [np.linalg.norm(part) for part in (flat, flat[keep], flat[~keep])]
    norms = [one[f"around_{name}"].sel(point="completion").item() for name in flatness.NORMS]
    np.testing.assert_allclose(norms, wanted, rtol=1e-6)
    assert min(wanted) > 0
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda p: loss(unravel(p)))(flat), np.float64)
    eigenvalues = np.linalg.eigvalsh(hessian)
    trace, top = (one[f"around_{name}"].sel(point="completion").item() for name in ("trace", "top"))
    assert top == pytest.approx(eigenvalues[np.argmax(np.abs(eigenvalues))], rel=0.01)
    deviation = np.sqrt(2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2)) / 2000)
    assert abs(trace - np.trace(hessian)) < 4 * deviation


def test_dead_weights_move_the_relative_rise_and_no_other():
    """They drift freely: a network with larger ones is the same function."""
    task = tasks.get(DIGITS)
    params = jax.vmap(task.init)(jax.random.split(KEY, 2))
    drifted = jax.tree.map(lambda w, of: jnp.where(of, w, w + 5.0), params, live_weights(task))
    what = flatness.FlatnessConfig(
        radii=(0.01,), num_examples=64, num_probes=0, scales=flatness.SCALES + flatness.LIVE_SCALES
    )
    before, after = (flatness.measure(task, of, what) for of in (params, drifted))
    np.testing.assert_array_equal(before.loss, after.loss)
    for scale in ("absolute", "live", "l2"):
        np.testing.assert_allclose(
            after.loss_ascent[scale], before.loss_ascent[scale], rtol=1e-5, err_msg=scale
        )
    rises = [(of.loss_ascent["relative"][:, 0, -1] - of.loss).mean() for of in (before, after)]
    assert rises[1] > 1.5 * rises[0]
    np.testing.assert_array_equal(before.norms["live_norm"], after.norms["live_norm"])
    assert np.all(after.norms["dead_norm"] > 10 * before.norms["dead_norm"])


def test_what_is_recorded_comes_back_and_is_as_it_was_before_there_were_scales():
    plain = flatness.FlatnessConfig(radii=(0.01, 0.1))
    assert not {"scales", "hessian_at_matched"} & set(plain.record())
    more = dataclasses.replace(plain, scales=(*flatness.SCALES, "l2"), hessian_at_matched=True)
    for config in (plain, more):
        record = json.loads(json.dumps(config.record()))
        assert flatness.FlatnessConfig.of_record(record) == config
    assert plain.headline_alone().num_probes == 0
    assert more.headline_alone() == dataclasses.replace(
        more, radii=(0.01,), hessian_at_matched=False
    )


def test_scales_that_there_are_not_and_scales_that_are_missing_are_refused():
    with pytest.raises(ValueError, match=r"Unknown FlatnessConfig.scales 'linf'"):
        flatness.FlatnessConfig(scales=(*flatness.SCALES, "linf"))
    with pytest.raises(ValueError, match=r"lacks \['absolute', 'relative'\]"):
        flatness.FlatnessConfig(scales=("live",))


def test_runs_are_measured_side_by_side_where_there_is_an_accelerator(monkeypatch):
    task = tasks.get(DIGITS)
    params = jax.vmap(task.init)(jax.random.split(KEY, 3))
    what = flatness.FlatnessConfig(
        radii=(0.01, 0.1), num_examples=64, num_probes=3, scales=(*flatness.SCALES, "live", "l2")
    )
    one_by_one = flatness.measure(task, params, what)
    batched = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "vmap", lambda f, vmap=jax.vmap: batched.append(f) or vmap(f))
    jax.clear_caches()
    chex.assert_trees_all_close(
        dataclasses.asdict(flatness.measure(task, params, what)),
        dataclasses.asdict(one_by_one),
        rtol=1e-3,
    )
    assert batched
    jax.clear_caches()  # Of what was traced for another device.
